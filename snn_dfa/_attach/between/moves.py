"""What moves the numbers of a sample, takes some of them or pools them, as a linear function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from snn_dfa._attach.graph import shape_of, signed
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.stand_in import Inflow, Known, Values
from snn_dfa.feedback.way_back import Value, through

__all__ = [
    "MAXIMA", "MOVES", "TURNED", "VIEWS", "Behind", "NotLinearError", "moved", "of_behind",
    "order_of", "parted", "pooled", "repeated", "turned",
]  # fmt: skip

#: Pooling that takes some pixels, and in how many dimensions.
MAXIMA = {
    "AdaptiveMaxPool2DBackward0": 2,
    "AdaptiveMaxPool3DBackward0": 3,
    "MaxPool2DWithIndicesBackward0": 2,
    "MaxPool3DWithIndicesBackward0": 3,
}

#: What gives dimensions another order.
TURNED = {"PermuteBackward0", "TransposeBackward0"}


class NotLinearError(Exception):
    """A node for which there is no linear function."""


class Behind(NamedTuple):
    """An inflow whose samples lie behind other dimensions, as those of ``x.transpose(0, 1)``.

    Args:
        x: The inflow of a sample; as always, its rows come first.
        parts: How many parts of each sample lie in front of the samples.
    """

    x: Inflow
    parts: int

    def samples(self, shape: tuple[int, ...]) -> int:
        """Return which dimension of a value of a shape is that of the samples.

        Raises:
            NotLinearError: if it is none of its own, or the last one, or cannot be told.
        """
        for dim in range(1, len(shape) - 1):
            if math.prod(shape[:dim]) == self.parts and shape[dim] > 1:
                return dim
        raise NotLinearError("PermuteBackward0")

    def then(self, shape: tuple[int, ...], function: Callable[[Tensor], Tensor]) -> Inflow:
        """Return a function of values [M, front, rest of the samples' dimension, behind]."""
        return _opened(self.x, shape, self.samples(shape), function)


def _opened(
    x: Inflow, shape: tuple[int, ...], samples: int, function: Callable[[Tensor], Tensor]
) -> Inflow:
    def apply(values: Values, known: Known) -> Value:
        rows = len(next(iter(values.values())))
        # Of several heads the samples' dimension may hold more than samples.
        sizes = (*shape[:samples], -1, *shape[samples + 1 :])
        return through(function, x.apply(values, known).reshape(rows, *sizes))

    return x.made(apply)


def turned(node: Any, kind: str, x: Inflow | Behind, shape: tuple[int, ...]) -> Inflow | Behind:
    """Return an inflow whose samples' dimension changes places with others."""
    order = order_of(node, len(shape))
    if isinstance(x, Behind):
        samples, inflow = x.samples(shape), x.x
    else:
        samples, inflow = next((i for i, n in enumerate(shape) if n > 1), len(shape)), x
    if samples == len(shape) or inflow.steps is not None:
        raise NotLinearError(kind)
    dims = [0, *(1 + dim for dim in order)]
    made = _opened(inflow, shape, samples, lambda value: value.permute(dims))
    count = math.prod(shape[dim] for dim in order[: order.index(samples)])
    return made if count == 1 else Behind(made, count)


#: What leaves all numbers in their order.
VIEWS = {
    "AliasBackward0", "ReshapeAliasBackward0", "SqueezeBackward0", "SqueezeBackward1",
    "UnsafeViewBackward0", "ViewBackward0",
}  # fmt: skip
#: The same, with copies and what changes dimensions of size one.
_IN_ORDER = VIEWS | {
    "CloneBackward0", "ContiguousBackward0", "SqueezeBackward2", "ToCopyBackward0",
    "UnsqueezeBackward0",
}  # fmt: skip
_SUMS = {"MeanBackward1": torch.mean, "SumBackward1": torch.sum}
_CUTS = {"SliceBackward0", "SplitBackward0", "SplitWithSizesBackward0"}


def of_behind(node: Any, kind: str, x: Behind, shape: tuple[int, ...]) -> Any:
    """Return a function of values whose samples lie behind other dimensions."""
    if kind in TURNED:
        return turned(node, kind, x, shape)
    if kind in _IN_ORDER:
        return x  # the order of numbers is the same
    if kind not in (*_SUMS, *_CUTS, "SelectBackward0", "UnbindBackward0"):
        raise NotLinearError(kind)
    samples, saved = x.samples(shape), node._saved_dim
    dims = {signed(d) % len(shape) for d in (saved if isinstance(saved, tuple) else (saved,))}
    if samples in dims or not dims:
        raise NotLinearError(kind)
    left = x.parts // math.prod(shape[dim] for dim in dims if dim < samples)

    def made(function: Callable[[Tensor], Tensor], size: int = 1) -> Inflow | Behind:
        inflow, parts = x.then(shape, function), left * size
        return inflow if parts == 1 else Behind(inflow, parts)

    if kind in _SUMS:
        return made(partial(_SUMS[kind], dim=[1 + dim for dim in dims]))
    (dim,) = dims
    if kind == "SelectBackward0":
        return made(partial(torch.select, dim=1 + dim, index=signed(node._saved_index)))
    if kind == "UnbindBackward0":
        return [made(partial(torch.select, dim=1 + dim, index=i)) for i in range(shape[dim])]
    cuts = _cuts(node, kind, dim, shape[dim])
    found = [made(partial(_taken, 1 + dim, at), len(at) if dim < samples else 1) for at in cuts]
    return found[0] if kind == "SliceBackward0" else found


def _cuts(node: Any, kind: str, dim: int, size: int) -> list[Tensor]:
    """Return the places along a dimension that each part of a value has."""
    sizes = [metadata.shape[dim] for metadata in node._input_metadata]
    if kind == "SliceBackward0":
        return [signed(node._saved_start) % size + node._saved_step * torch.arange(sizes[0])]
    return list(torch.split(torch.arange(size), sizes))


def _taken(dim: int, places: Tensor, value: Tensor) -> Tensor:
    return value.index_select(dim, places.to(value.device))


def repeated(kind: str, x: Inflow, shape: tuple[int, ...], after: tuple[int, ...]) -> Inflow:
    """Return an inflow that is repeated along dimensions of a sample."""
    if len(shape) != len(after) or shape[0] != after[0] or x.steps is not None:
        raise NotLinearError(kind)
    first = next((i for i, n in enumerate(shape) if n != after[i]), len(shape))
    return x.then(shape[first:], lambda value: value.expand(-1, *after[first:]))


def parted(node: Any, kind: str, x: Inflow, shape: tuple[int, ...]) -> list[Inflow]:
    """Return the parts of an inflow along a dimension of a sample."""
    dim = signed(node._saved_dim) % len(shape)
    if dim == 0 or x.steps is not None:
        raise NotLinearError(kind)
    sizes = [1] * shape[dim]
    if kind != "UnbindBackward0":
        sizes = [metadata.shape[dim] for metadata in node._input_metadata]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def part(start: int, size: int) -> Inflow:
        return x.then(shape[dim:], lambda value: value.narrow(1, start, size))

    return [part(*pair) for pair in zip(starts, sizes, strict=True)]


#: The first dimension of a sample of which a function takes more than one number, and the function
#: of values whose rows come first, in one dimension.
_Move: TypeAlias = tuple[int, Callable[[Tensor], Tensor]]


def _padded(node: Any, shape: tuple[int, ...], _: tuple[int, ...]) -> _Move:
    pad = [signed(number) for number in node._saved_pad]
    return len(shape) - len(pad) // 2, partial(functional.pad, pad=pad)


def _resized(node: Any, _: tuple[int, ...], after: tuple[int, ...]) -> _Move:
    mode = "bilinear" if "Bilinear" in type(node).__name__ else "nearest"
    corners = getattr(node, "_saved_align_corners", None)
    return 1, partial(functional.interpolate, size=after[2:], mode=mode, align_corners=corners)


def _sliced(node: Any, shape: tuple[int, ...], after: tuple[int, ...]) -> _Move:
    dim = signed(node._saved_dim) % len(shape)
    start = signed(node._saved_start) % shape[dim]
    taken = slice(start, start + (after[dim] - 1) * node._saved_step + 1, node._saved_step)
    return dim, lambda value: value[:, taken]


def _selected(node: Any, shape: tuple[int, ...], _: tuple[int, ...]) -> _Move:
    dim, index = signed(node._saved_dim) % len(shape), signed(node._saved_index)
    return dim, lambda value: value[:, index]


def _expanded(node: Any, shape: tuple[int, ...], after: tuple[int, ...]) -> _Move:
    if len(shape) != len(after):
        raise NotLinearError("ExpandBackward0")
    first = next((i for i, n in enumerate(shape) if n != after[i]), len(shape))
    return first, lambda value: value.expand(-1, *after[first:])


def _mirrored(node: Any, shape: tuple[int, ...], _: tuple[int, ...]) -> _Move:
    dims = [signed(dim) % len(shape) for dim in node._saved_dims]
    first = min(dims)
    return first, lambda value: value.flip([1 + dim - first for dim in dims])


def _rolled(node: Any, shape: tuple[int, ...], _: tuple[int, ...]) -> _Move:
    dims = [signed(dim) % len(shape) for dim in node._saved_dims]
    first, shifts = min(dims, default=0), [signed(n) for n in node._saved_shifts]
    return first, lambda value: value.roll(shifts, [1 + dim - first for dim in dims])


def _shuffled(node: Any, shape: tuple[int, ...], _: tuple[int, ...]) -> _Move:
    factor = node._saved_upscale_factor
    return len(shape) - 3, lambda value: functional.pixel_shuffle(value, factor)


def order_of(node: Any, dims: int) -> list[int]:
    """Return which dimension each one was before a node that is one of ``TURNED``."""
    if hasattr(node, "_saved_dims"):
        return [signed(dim) % dims for dim in node._saved_dims]
    order = list(range(dims))
    one, other = (signed(d) % dims for d in (node._saved_dim0, node._saved_dim1))
    order[one], order[other] = other, one
    return order


def _permuted(node: Any, shape: tuple[int, ...], _: tuple[int, ...]) -> _Move:
    order = order_of(node, len(shape))
    first = next((i for i, dim in enumerate(order) if i != dim), 1)
    moved = [1 + dim - first for dim in order[first:]]
    return first, lambda value: value.permute(0, *moved)


MOVES: Mapping[str, Callable[[Any, tuple[int, ...], tuple[int, ...]], _Move]] = {
    "ConstantPadNdBackward0": _padded,
    "ExpandBackward0": _expanded,
    "FlipBackward0": _mirrored,
    "PermuteBackward0": _permuted,
    "PixelShuffleBackward0": _shuffled,
    "RollBackward0": _rolled,
    "SelectBackward0": _selected,
    "SliceBackward0": _sliced,
    "TransposeBackward0": _permuted,
    "UpsampleBilinear2DBackward0": _resized,
    "UpsampleNearest1DBackward0": _resized,
    "UpsampleNearest2DBackward0": _resized,
    "UpsampleNearest3DBackward0": _resized,
}


def moved(node: Any, kind: str, x: Inflow, shape: tuple[int, ...]) -> Inflow:
    """Return a function that moves numbers of a sample, or makes others of them."""
    first, function = MOVES[kind](node, shape, shape_of(node))
    if first == 0 or x.steps is not None:
        raise NotLinearError(kind)  # of samples, or of steps
    return x.then(shape[first:], function)


def pooled(node: Any, kind: str, x: Inflow, shape: tuple[int, ...], local: str) -> Inflow:
    after = shape_of(node)
    for dims in (2, 3):
        sample = shape[-dims - 1 :]
        if kind.startswith((f"MaxPool{dims}DWithIndices", f"AvgPool{dims}D")):
            kernel, stride = list(node._saved_kernel_size), list(node._saved_stride)
            dilation = getattr(node, "_saved_dilation", (1,))
            pads = any(node._saved_padding) and not getattr(node, "_saved_count_include_pad", True)
            divisor = getattr(node, "_saved_divisor_override", None)
            if any(d != 1 for d in dilation) or pads or divisor is not None:
                raise NotLinearError(kind)
            options = [tuple(stride or kernel), tuple(node._saved_padding), node._saved_ceil_mode]
            kernel *= dims if len(kernel) == 1 else 1
            apart = list(options[0]) == kernel and not any(options[1])
            name = local if kind in MAXIMA else ""
            return stand_in.pool(x, sample, kernel, options, after[-dims:], name, apart=apart)
        if kind.startswith((f"AdaptiveAvgPool{dims}D", f"AdaptiveMaxPool{dims}D")):
            return stand_in.average(x, sample, after[-dims:], local if kind in MAXIMA else "")
    if kind in ("MeanBackward1", "SumBackward1"):
        dims_of = sorted(signed(d) % len(shape) - len(shape) for d in node._saved_dim)
        if not dims_of or len(shape) + dims_of[0] == 0 or x.steps is not None:
            raise NotLinearError(kind)  # over samples, or over steps in another way
        found = stand_in.mean(x, shape[dims_of[0] :], dims_of)
        count = math.prod(shape[d] for d in dims_of)
        return found if kind == "MeanBackward1" else stand_in.multiply(found, count)
    raise NotLinearError(kind)
