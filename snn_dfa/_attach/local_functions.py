"""Functions between two layers whose derivative is another one for each sample: what is kept of them.

Each is a node of autograd's graph, and what it has saved for its own backward pass says how an error
goes back. A weight is never kept: of a product with one there is a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_dfa.feedback.sample_ways import normalised, product, scaled, softmax

__all__ = ["ALONE", "Kept", "LocalFunction", "function_of", "signed"]

#: Functions of each number alone. A feedback without ways of samples takes them as they are.
ALONE = {
    "EluBackward0", "GeluBackward0", "LeakyReluBackward0", "ReluBackward0", "SigmoidBackward0",
    "SiluBackward0", "TanhBackward0", "NativeDropoutBackward0", "FusedDropoutBackward0",
}  # fmt: skip
#: Others, through which it has no way.
_ALONE = {
    "AbsBackward0", "ClampBackward0", "ClampBackward1", "ClampMaxBackward0", "ClampMinBackward0",
    "CosBackward0", "ErfBackward0", "ExpBackward0", "HardsigmoidBackward0", "HardswishBackward0",
    "HardtanhBackward0", "LogBackward0", "LogSigmoidBackward0", "MishBackward0", "PowBackward0",
    "PreluKernelBackward0", "ReciprocalBackward0", "RsqrtBackward0", "SinBackward0",
    "SoftplusBackward0", "SqrtBackward0",
}  # fmt: skip
_LAYER_NORM, _GROUP_NORM = "NativeLayerNormBackward0", "NativeGroupNormBackward0"
_PRODUCTS = ("MulBackward0", "DivBackward0")
_UNSIGNED = 1 << 63  # autograd shows a negative dimension as one without a sign


class Kept(NamedTuple):
    """What a node keeps of its pass.

    Args:
        back: See :class:`~snn_dfa.feedback.sample_ways.Derivative`.
        tensors: What it is given beside errors; samples, or steps and samples, come first.
    """

    back: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]


class LocalFunction(NamedTuple):
    """A function between two layers.

    Args:
        parts: Which of what comes into its node is made of other layers.
        needed: Whether there is no linear function in its place.
        kept: Returns what it keeps.
    """

    parts: tuple[int, ...]
    needed: bool
    kept: Callable[[], Kept]


def function_of(node: Any, flows: Sequence[bool], own: Sequence[bool]) -> LocalFunction | None:
    """Return the function of a node, ``None`` where it is none of these.

    Args:
        node: The node.
        flows: Of each thing that comes into it, whether it is made of other layers.
        own: Whether it is made of the layer's own earlier values.
    """
    kind = type(node).__name__
    parts = tuple(i for i, flow in enumerate(flows) if flow)
    if kind in _PRODUCTS:
        return _scaling(node, kind, parts)
    if kind == "BmmBackward0":
        others = [1 - i for i in parts]
        learns = any(node.next_functions[i][0] is not None and not own[i] for i in others)
        if len(parts) == 1 and learns:
            return None  # a matrix that learns, and no layer's
        return LocalFunction(parts, True, partial(_matrices, node, parts))
    if parts != (0,):
        return None
    if kind in ALONE or kind in _ALONE:
        return LocalFunction(parts, kind in _ALONE, partial(_alone, node))
    shape = tuple(node._input_metadata[0].shape)
    if kind == "SoftmaxBackward0":
        dim = signed(node._saved_dim) % len(shape)
        return LocalFunction(parts, True, partial(_softmax, node, dim - len(shape))) if dim else None
    if kind in (_LAYER_NORM, _GROUP_NORM):
        return LocalFunction(parts, False, partial(_norm, node, kind))
    return None


def signed(number: int) -> int:
    """Return a dimension as it was given."""
    return number - (1 << 64) if number >= _UNSIGNED else number


def _scaling(node: Any, kind: str, parts: tuple[int, ...]) -> LocalFunction | None:
    """Return a product or a quotient of numbers, ``None`` for one with a number or with a matrix."""
    shape = tuple(node._input_metadata[0].shape)
    values = _factors(node)
    dims = []
    for i in parts:
        below, index = node.next_functions[i]
        of, other = tuple(below._input_metadata[index].shape), values[1 - i]
        wide = [d for d, (a, b) in enumerate(zip(of, shape, strict=False)) if a != b]
        if other is None or len(of) != len(shape) or 0 in wide:
            return None
        by_sample = other.shape[:1] == shape[:1] and other.dim() == len(shape)
        if wide and not by_sample:
            return None  # each number goes to many by a matrix, which may be a weight
        if other.dim() == 0 and node.next_functions[1 - i][0] is None:
            return None  # a number
        dims.append([d - len(shape) for d in wide])
    needed = len(parts) > 1 or any(dims)
    return LocalFunction(parts, needed, partial(_gains, node, kind, parts, dims))


def _factors(node: Any) -> tuple[Tensor | None, Tensor | None]:
    return node._saved_self, node._saved_other


def _gains(node: Any, kind: str, parts: Sequence[int], dims: Sequence[Sequence[int]]) -> Kept:
    shape, (one, other) = tuple(node._input_metadata[0].shape), _factors(node)
    gains = []
    for i in parts:
        if kind == "MulBackward0":
            gain = other if i == 0 else one
        else:
            assert other is not None
            gain = 1 / other if i == 0 or one is None else -one / other**2
        assert gain is not None
        gains.append(gain.detach().expand(shape))
    return Kept(partial(scaled, dims), tuple(gains))


def _alone(node: Any) -> Kept:
    metadata = node._input_metadata[0]
    with torch.no_grad():
        ones = torch.ones(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)
        found = node(ones)
    gain = found[0] if isinstance(found, tuple) else found
    return Kept(partial(scaled, [[]]), (gain,))


def _matrices(node: Any, parts: Sequence[int]) -> Kept:
    values = node._saved_mat2, node._saved_self
    sides = "".join("lr"[i] for i in parts)
    return Kept(partial(product, sides), tuple(values[i].detach() for i in parts))


def _softmax(node: Any, dim: int) -> Kept:
    return Kept(partial(softmax, dim), (node._saved_result.detach(),))


def _norm(node: Any, kind: str) -> Kept:
    """Return the numbers of a sample as [..., groups, N], normalised, and by what they are scaled."""
    x, weight = node._saved_input.detach(), node._saved_weight
    mean, scale = node._saved_result1.detach(), node._saved_result2.detach()
    if kind == _LAYER_NORM:
        count = math.prod(node._saved_normalized_shape)
        before = x.shape[: x.dim() - len(node._saved_normalized_shape)]
        groups = tuple(before)
        per_number = x.new_ones(count) if weight is None else weight.detach().flatten()
    else:
        groups = tuple(mean.shape)
        count = x[0].numel() // groups[-1]
        per_number = x.new_ones(len(x[0])) if weight is None else weight.detach()
        per_number = per_number.repeat_interleave(node._saved_HxW).reshape(groups[-1], -1)
    x, mean, scale = x.reshape(*groups, count), mean.reshape(*groups, 1), scale.reshape(*groups, 1)
    x = (x - mean) * scale
    return Kept(normalised, (x, scale, per_number.expand(x.shape)))
