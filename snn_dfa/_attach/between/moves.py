"""What moves the numbers of a sample, takes some of them or pools them, as a linear function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import functional

from snn_dfa._attach.graph import signed
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.stand_in import Inflow

__all__ = [
    "MAXIMA",
    "MOVES",
    "TURNED",
    "Front",
    "NotLinearError",
    "fronted",
    "moved",
    "of_front",
    "order_of",
    "parted",
    "pooled",
    "repeated",
]

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


class Front(list[Inflow]):
    """Parts that are set side by side in front of the samples, as queries, keys and values are."""


def repeated(kind: str, x: Inflow, shape: tuple[int, ...], after: tuple[int, ...]) -> Inflow:
    """Return an inflow that is repeated along dimensions of a sample."""
    if len(shape) != len(after) or shape[0] != after[0] or x.steps is not None:
        raise NotLinearError(kind)
    first = next((i for i, n in enumerate(shape) if n != after[i]), len(shape))
    return x.then(lambda value: value.reshape(-1, *shape[first:]).expand(-1, *after[first:]))


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
        return x.then(lambda value: value.reshape(-1, *shape[dim:]).narrow(1, start, size))

    return [part(*pair) for pair in zip(starts, sizes, strict=True)]


def fronted(node: Any, kind: str, x: Inflow, shape: tuple[int, ...]) -> Front:
    """Return parts of an inflow along the dimension that comes to stand before the samples."""
    front, *rest = [signed(d) % len(shape) for d in node._saved_dims]
    if rest[0] != 0 or x.steps is not None:
        raise NotLinearError(kind)
    first = next(i for i in range(front + 1) if i == front or rest[i] != i)
    order = [0, *(1 + d - first - (d > front) for d in rest[first:])]

    def part(index: int) -> Inflow:
        def taken(value: Tensor) -> Tensor:
            value = value.reshape(-1, *shape[first:])
            return value.select(1 + front - first, index).permute(order)

        return x.then(taken)

    return Front(part(i) for i in range(shape[front]))


def of_front(node: Any, kind: str, front: Front) -> Any:
    """Return the parts that stand in front of the samples, or one of them."""
    if kind in ("CloneBackward0", "ContiguousBackward0"):
        return front
    if kind == "UnbindBackward0" and node._saved_dim == 0:
        return list(front)
    if kind == "SelectBackward0" and node._saved_dim == 0:
        return front[signed(node._saved_index)]
    sums = {"SumBackward1": 1.0, "MeanBackward1": 1 / len(front)}
    if kind in sums and tuple(node._saved_dim) == (0,) and not node._saved_keepdim:
        return stand_in.multiply(stand_in.total(front), sums[kind])
    raise NotLinearError("PermuteBackward0")


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
    first, function = MOVES[kind](node, shape, tuple(node._input_metadata[0].shape))
    if first == 0 or x.steps is not None:
        raise NotLinearError(kind)  # of samples, or of steps
    return x.then(lambda value: function(value.reshape(-1, *shape[first:])))


def pooled(node: Any, kind: str, x: Inflow, shape: tuple[int, ...], local: str) -> Inflow:
    after = tuple(node._input_metadata[0].shape)
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
