"""Whether a network's form leaves on its modules what the loop over time leaves there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from snn_dfa.errors import AttachError
from snn_dfa.sequence.any_network import is_the_users, own_attributes

__all__ = ["see_same_left"]


def see_same_left(by_steps: nn.Module, at_once: nn.Module, tolerance: float) -> None:
    """See that tensors among the attributes of a user's modules are alike, also in lists.

    Their buffers are among them. Those of torch's and snnTorch's modules are not: normalisation
    takes its statistics over all steps, as it says.

    A tensor of a step [B, ...] is, of the form, the sequence [T, B, ...], which ends with it.

    Args:
        by_steps: The network after the loop.
        at_once: The network after the form.
        tolerance: Of the numbers.

    Raises:
        AttachError: naming an attribute that differs; a loss that reads it would be another one.
    """
    for module, other in zip(by_steps.modules(), at_once.modules(), strict=True):
        left = _left_on(other)
        for key, value in _left_on(module).items() if is_the_users(module) else ():
            if not _alike(value, left.get(key), tolerance):
                raise AttachError(
                    f"over_time: the network keeps {key!r} on its {type(module).__name__}, which "
                    f"differs with all time steps in one call from that of the loop over time, as "
                    f"a list of steps, a sum or mean over steps, or a number of the last one does; "
                    f"return what a loss reads, or keep a tensor [B, ...] of the step, which the "
                    f"form gives as [T, B, ...]; if nothing reads {key!r}, pass check=False"
                )


def _left_on(module: nn.Module) -> dict[str, Any]:
    return {**own_attributes(module), **module._buffers}


def _alike(wanted: Any, got: Any, tolerance: float) -> bool:
    pairs = [[v for v in tree_flatten(each)[0] if isinstance(v, Tensor)] for each in (wanted, got)]
    if len(pairs[0]) != len(pairs[1]):
        return False
    return all(_equal(a, b, tolerance) for a, b in zip(*pairs, strict=True))


def _equal(a: Tensor, b: Tensor, tolerance: float) -> bool:
    b = b[-1] if b.dim() and b.shape[1:] == a.shape != b.shape else b
    if a.shape != b.shape:
        return False
    if a.layout != torch.strided:
        a, b = a.to_dense(), b.to_dense()
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return torch.allclose(a.double(), b.double(), tolerance, tolerance, equal_nan=True)
