"""Functions between two layers whose derivative is another one for each sample.

Each is a node of autograd's graph. What it has saved for its own backward pass says how an error
goes back. A weight is never kept: of a product with one there is a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn import Parameter

from snn_dfa._attach.graph import shape_of, signed
from snn_dfa.feedback.sample_ways import normalised, product, scaled, softmax

__all__ = [
    "ALONE", "OTHERS_ALONE", "Asked", "Kept", "LocalFunction", "function_of", "of_steps",
    "repeats_a_weight",
]  # fmt: skip

#: Functions of each number alone. A feedback without ways of samples takes them as they are.
ALONE = {
    "CeluBackward0", "EluBackward0", "FakeQuantizeLearnablePerChannelAffineBackward0",
    "FakeQuantizeLearnablePerTensorAffineBackward0",
    "FakeQuantizePerChannelAffineCachemaskBackward0",
    "FakeQuantizePerTensorAffineCachemaskBackward0",
    "FakeQuantizePerTensorAffineCachemaskTensorQparamsBackward0", "FusedDropoutBackward0",
    "GeluBackward0", "LeakyReluBackward0", "NanToNumBackward0", "NativeDropoutBackward0",
    "ReluBackward0", "RreluWithNoiseBackward0", "SigmoidBackward0", "SiluBackward0",
    "TanhBackward0",
}  # fmt: skip
#: Others, through which it has no way.
OTHERS_ALONE = {
    "AbsBackward0", "AsinhBackward0", "AtanBackward0", "ClampBackward0", "ClampBackward1",
    "ClampMaxBackward0", "ClampMinBackward0", "CosBackward0", "CoshBackward0", "ErfBackward0",
    "Exp2Backward0", "ExpBackward0", "Expm1Backward0", "FmodBackward0", "HardshrinkBackward0",
    "HardsigmoidBackward0", "HardswishBackward0", "HardtanhBackward0", "Log10Backward0",
    "Log1PBackward0", "Log2Backward0", "LogBackward0", "LogSigmoidBackward0", "LogitBackward0",
    "MishBackward0", "PowBackward0", "PreluKernelBackward0", "ReciprocalBackward0",
    "RemainderBackward0", "RsqrtBackward0", "SinBackward0", "SinhBackward0", "SoftplusBackward0",
    "SoftshrinkBackward0", "SqrtBackward0", "TanBackward0", "ThresholdBackward0",
}  # fmt: skip
#: Others, whose derivative is asked of their node: of one layer's values, or of several.
_OTHERS = {
    "AmaxBackward0", "AminBackward0", "CumsumBackward0", "GatherBackward0", "GluBackward0",
    "Im2ColBackward0", "IndexBackward0", "IndexSelectBackward0", "LinalgVectorNormBackward0",
    "LogSoftmaxBackward0", "LogsumexpBackward0", "MaskedFillBackward0", "MaxBackward0",
    "MaximumBackward0", "MaxUnpool2DBackward0", "MaxUnpool3DBackward0", "MinBackward0",
    "MinimumBackward0", "ReflectionPad1DBackward0", "ReflectionPad2DBackward0", "RepeatBackward0",
    "ReplicationPad1DBackward0", "ReplicationPad2DBackward0",
    "ScaledDotProductEfficientAttentionBackward0", "ScaledDotProductFlashAttentionBackward0",
    "ScaledDotProductFlashAttentionForCpuBackward0",
    "SortBackward0", "StdBackward0", "TopkBackward0", "UnfoldBackward0",
    "UpsampleBicubic2DBackward0", "UpsampleLinear1DBackward0", "VarBackward0", "WhereBackward0",
}  # fmt: skip
#: Where functions are that do not compute a value, or are products with weights.
_NOT_WRITTEN = ("torch.", "snn_dfa._attach.", "snn_dfa.sequence.")
_LAYER_NORM, _GROUP_NORM = "NativeLayerNormBackward0", "NativeGroupNormBackward0"
_PRODUCTS = ("MulBackward0", "DivBackward0")
_LERP = "LerpBackward1"  # with gains of each number, not one number


class Kept(NamedTuple):
    """What a node keeps of its pass.

    Args:
        back: See :class:`~snn_dfa.feedback.sample_ways.Derivative`.
        tensors: What it is given beside errors; samples, or steps and samples, come first.
    """

    back: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]


class Asked(NamedTuple):
    """A node that says itself what errors [T * B, ...] become.

    Args:
        back: From errors of the node to those before it.
        steps: How many calls' rows have been set side by side in it.
    """

    back: Callable[[Tensor], Sequence[Tensor]]
    steps: int = 1


class LocalFunction(NamedTuple):
    """A function between two layers.

    Args:
        parts: Which of what comes into its node is made of other layers.
        needed: Whether there is no linear function in its place.
        kept: Returns what it keeps.
        replaced: Whether the linear network has a function of its own in its place.
    """

    parts: tuple[int, ...]
    needed: bool
    kept: Callable[[], Any]
    replaced: bool = False


def function_of(node: Any, flows: Sequence[bool], own: Sequence[bool]) -> LocalFunction | None:
    """Return the function of a node, ``None`` where it is none of these.

    Args:
        node: The node.
        flows: Of each thing that comes into it, whether it is made of other layers.
        own: Whether it is made of the layer's own earlier values.
    """
    kind = type(node).__name__
    parts = tuple(i for i, flow in enumerate(flows) if flow)
    others = [i for i, flow in enumerate(flows) if not flow]
    if kind in _PRODUCTS:
        return _scaling(node, kind, parts)
    if kind == "BmmBackward0":
        if _learns(node, others, own) or _is_weight(node, others):
            return None  # a matrix that learns, and no layer's, or a frozen weight
        return LocalFunction(parts, True, partial(_matrices, node, parts))
    if kind in _OTHERS or kind == _LERP or _is_written(node):
        learns = kind != _LERP and _learns(node, others, own)
        known = not learns and _keeps_samples(node, parts)
        return LocalFunction(parts, True, partial(_asked, node, parts)) if known else None
    if parts != (0,):
        return None
    if kind in ALONE or kind in OTHERS_ALONE:
        return LocalFunction(parts, kind in OTHERS_ALONE, partial(_alone, node))
    shape = shape_of(node)
    if kind == "SoftmaxBackward0":
        dim = signed(node._saved_dim) % len(shape)
        return (
            LocalFunction(parts, True, partial(_softmax, node, dim - len(shape))) if dim else None
        )
    if kind in (_LAYER_NORM, _GROUP_NORM):
        return LocalFunction(parts, False, partial(_norm, node, kind))
    if kind == "NativeBatchNormBackward0" and shape[0] == 1 and node._saved_training:
        return LocalFunction(parts, False, partial(_norm, node, kind))  # of each sample's channels
    return None


def of_steps(function: LocalFunction, node: Any, steps: tuple[int, int]) -> LocalFunction | None:
    """Return the function of a node whose rows are those of several steps.

    Args:
        function: That of all rows.
        node: The node.
        steps: T and B.
    """
    rows = node._input_metadata[0].shape[0]
    apart = rows % math.prod(steps) > 0  # [T, B, ...]
    if apart and not _is_of_each(node, steps):
        return None

    def mean(t: Tensor) -> Tensor:
        kind = t.dtype if t.is_floating_point() or t.is_complex() else torch.float64  # a mask's
        return (t if apart else t.reshape(steps[0], -1, *t.shape[1:])).mean(0, dtype=kind)

    def kept() -> Any:
        found = function.kept()
        if isinstance(found, Kept):
            return Kept(found.back, tuple(mean(t) for t in found.tensors))
        return found._replace(steps=steps[0]) if isinstance(found, Asked) else found

    return function._replace(kept=kept)


def _is_of_each(node: Any, steps: tuple[int, int]) -> bool:
    """Return whether a function of [T, B, ...] is one of each sample alone."""
    kind, shape = type(node).__name__, shape_of(node)
    if kind in (*_PRODUCTS, _LERP):
        parts = [i for i, (n, _) in enumerate(node.next_functions) if n is not None]
        return all(shape_of(*node.next_functions[i])[:2] == steps for i in parts)
    if kind == "SoftmaxBackward0":
        return signed(node._saved_dim) % len(shape) > 1
    if kind == _LAYER_NORM:
        return len(node._saved_normalized_shape) < len(shape) - 1
    return kind in ALONE or kind in OTHERS_ALONE


def _is_written(node: Any) -> bool:
    """Return whether a node is a ``torch.autograd.Function`` of a program, with one result."""
    kind: Any = type(node)
    if not issubclass(kind, BackwardCFunction) or len(node._input_metadata) > 1:
        return False
    return not kind._forward_cls.__module__.startswith(_NOT_WRITTEN)


def _learns(node: Any, others: Sequence[int], own: Sequence[bool]) -> bool:
    """Return whether one of some things that come into a node learns, and is no layer's."""
    return any(node.next_functions[i][0] is not None and not own[i] for i in others)


def _is_weight(node: Any, others: Sequence[int]) -> bool:
    """Return whether a product of matrices is with a frozen weight, which samples share."""
    for i in others:
        matrix = None if node.next_functions[i][0] is not None else _sides(node)[i]
        if matrix is None:
            continue
        of = matrix if matrix._base is None else matrix._base
        # Of one sample the shape alone tells that a matrix was expanded, as functional.linear does.
        shared = matrix.stride(0) == 0 or sorted(of.shape) == sorted(matrix.shape[1:])
        if isinstance(of, Parameter) or (i == 1 and shared):
            return True
    return False


def repeats_a_weight(node: Any) -> bool:
    """Return whether a product is with frozen matrices, copied for each sample, as of each head.

    It compares numbers, and is asked when a function is read, not in each pass.
    """
    if type(node).__name__ != "BmmBackward0" or node.next_functions[1][0] is not None:
        return False
    matrices = node._saved_mat2
    heads = (n for n in range(1, len(matrices)) if len(matrices) % n == 0)
    return bool(matrices.any()) and any(torch.equal(matrices[n:], matrices[:-n]) for n in heads)


def _keeps_samples(node: Any, parts: Sequence[int]) -> bool:
    """Return whether a function is one of each sample alone."""
    after = shape_of(node)
    befores = [shape_of(*node.next_functions[i]) for i in parts]
    found = [getattr(node, name, None) for name in ("_saved_dim", "_saved_dimension")]
    dims = [d for each in found for d in (each if isinstance(each, tuple) else (each,))]
    over = {signed(d) % len(befores[0]) for d in dims if d is not None}
    indices, repeats = (getattr(node, f"_saved_{n}", None) for n in ("indices", "repeats"))
    if isinstance(indices, tuple) and indices[0] is not None:
        return False
    if repeats is not None and len(repeats) != len(befores[0]):
        return False
    return 0 not in over and all(b[:1] == after[:1] for b in befores)


def _scaling(node: Any, kind: str, parts: tuple[int, ...]) -> LocalFunction | None:
    """Return a product or a quotient, ``None`` for one with a number or with a matrix."""
    shape = shape_of(node)
    values = _factors(node)
    dims = []
    for i in parts:
        of, other = shape_of(*node.next_functions[i]), values[1 - i]
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


def _gains(node: Any, kind: str, parts: Sequence[int], dims: Sequence[list[int]]) -> Kept:
    shape, (one, other) = shape_of(node), _factors(node)
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
    sides = "".join("lr"[i] for i in parts)
    return Kept(partial(product, sides), tuple(_sides(node)[1 - i].detach() for i in parts))


def _sides(node: Any) -> tuple[Any, Any]:
    return node._saved_self, node._saved_mat2


def _asked(node: Any, parts: Sequence[int]) -> Asked:
    first, *others = node._input_metadata
    run = getattr(node, "apply", node)  # one that is written in Python cannot be called itself

    def back(error: Tensor) -> list[Tensor]:
        with torch.no_grad():
            given = error.to(first.dtype).reshape(tuple(first.shape))
            found = run(given, *[None] * len(others))
        found = found if isinstance(found, tuple) else (found,)
        return [found[i].to(error.dtype) for i in parts]

    return Asked(back)


def _softmax(node: Any, dim: int) -> Kept:
    return Kept(partial(softmax, dim), (node._saved_result.detach(),))


def _norm(node: Any, kind: str) -> Kept:
    """Return numbers of samples [..., groups, N], normalised, and by what they are scaled."""
    x, weight = node._saved_input.detach(), node._saved_weight
    mean, scale = node._saved_result1.detach(), node._saved_result2.detach()
    if kind == _LAYER_NORM:
        count = math.prod(node._saved_normalized_shape)
        before = x.shape[: x.dim() - len(node._saved_normalized_shape)]
        groups = tuple(before)
        per_number = x.new_ones(count) if weight is None else weight.detach().flatten()
    elif kind == _GROUP_NORM:
        groups = tuple(mean.shape)
        count = x[0].numel() // groups[-1]
        per_number = x.new_ones(len(x[0])) if weight is None else weight.detach()
        per_number = per_number.repeat_interleave(node._saved_HxW).reshape(groups[-1], -1)
    else:
        groups, count = tuple(x.shape[1:2]), x[0, 0].numel()
        per_number = x.new_ones(1) if weight is None else weight.detach()[:, None]
    x, mean, scale = x.reshape(*groups, count), mean.reshape(*groups, 1), scale.reshape(*groups, 1)
    x = (x - mean) * scale
    return Kept(normalised, (x, scale, per_number.expand(x.shape)))
