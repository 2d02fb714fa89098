"""Copies of a network, on which the library tries things."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from snn_dfa.errors import AttachError
from snn_dfa.state import reset

__all__ = ["copy_of"]


def copy_of(net: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode and at rest.

    Args:
        net: The network.

    Raises:
        AttachError: naming an attribute that cannot be copied.

    Example:
        >>> copy_of(nn.Linear(2, 3)).training
        False
    """
    memo: dict[int, Any] = {}
    for module in net.modules():
        for value in tree_flatten([module._buffers, _own(module)])[0]:
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        twin = copy.deepcopy(net, dict(memo)).eval()
    except Exception as error:
        raise _cannot_be_copied(net, memo, error) from error
    for m in twin.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is None:
            # Without running statistics it takes those of what it sees, in evaluation, too.
            like = next(net.parameters())
            m.running_mean = torch.zeros(m.num_features, dtype=like.dtype, device=like.device)
            m.running_var = torch.ones_like(m.running_mean)
    reset(twin)
    return twin


def _own(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes but for the modules below it."""
    return {name: value for name, value in vars(module).items() if name != "_modules"}


def _cannot_be_copied(net: nn.Module, memo: dict[int, Any], error: Exception) -> AttachError:
    where = type(net).__name__
    for module in net.modules():
        for name, value in _own(module).items():
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                where = f"{type(module).__name__}.{name}"
                break
    return AttachError(
        f"over_time: cannot copy {where} ({type(error).__name__}: {error}), expected a network of "
        f"which copies can be made, on which the form is compared with the loop; keep what cannot "
        f"be copied, such as a lock, a generator or a graph, outside of the network, or give its "
        f"class a method __deepcopy__"
    )
