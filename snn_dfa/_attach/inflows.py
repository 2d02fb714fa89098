"""What comes into a layer from others, read off autograd's graph as a linear function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from snn_dfa._attach.graph import LEAF, PORT, are_packed, below_of
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.stand_in import Inflow

__all__ = ["NotLinearError", "inflow_of", "local_nodes", "local_values"]


class NotLinearError(Exception):
    """A node for which there is no linear function."""


#: Views, which keep the order of numbers, and functions of each number alone.
_SAME = {
    "AliasBackward0", "CloneBackward0", "ContiguousBackward0", "CudnnBatchNormBackward0",
    "DropoutBackward0", "EluBackward0", "FusedDropoutBackward0", "GeluBackward0",
    "LeakyReluBackward0", "MiopenBatchNormBackward0", "MulBackward0", "NativeBatchNormBackward0",
    "NativeDropoutBackward0", "NativeGroupNormBackward0", "NativeLayerNormBackward0",
    "ReluBackward0", "ReshapeAliasBackward0", "SigmoidBackward0", "SiluBackward0",
    "RegisterPostBackwardFunctionBackward",
    "SqueezeBackward0", "SqueezeBackward1", "SqueezeBackward2", "TanhBackward0", "ToCopyBackward0",
    "UnsafeViewBackward0", "UnsqueezeBackward0", "ViewBackward0", "DivBackward0",
}  # fmt: skip
#: Products with a weight, beside convolutions: this library's among them, and those of traces.
_PRODUCTS = {
    "AddmmBackward0", "BaddbmmBackward0", "BmmBackward0", "LinearBackward0", "MmBackward0",
    "TracedBackward", "_SpikeLinearBackward",
}  # fmt: skip
#: What differs from sample to sample, or from batch to batch, between two layers.
_MAXIMA = {"MaxPool2DWithIndicesBackward0": 2, "MaxPool3DWithIndicesBackward0": 3}
_NORMS = {"CudnnBatchNormBackward0", "NativeBatchNormBackward0"}
#: What may become of steps that are set side by side.
_OF_STEPS = {"MeanBackward1", "SumBackward1", "SelectBackward0"}
_UNSIGNED = 1 << 63  # autograd shows a negative dimension as one without a sign


def _post_order(root: Any, mine: Callable[[Any], bool]) -> Iterator[tuple[Any, bool]]:
    """Yield the nodes of a graph up to ports, each after those below it; whether it is an end."""
    seen: set[Any] = set()
    todo: list[tuple[Any, bool]] = [(root, False)]
    while todo:
        node, done = todo.pop()
        if node in seen:
            continue
        ends = type(node) is LEAF or (type(node) is PORT and mine(node))
        if ends or done:
            seen.add(node)
            yield node, ends
        else:
            todo.append((node, True))
            todo += [(n, False) for n in below_of(node)]


def inflow_of(
    value: Tensor,
    mine: Callable[[Any], bool],
    names: Mapping[Any, str],
    kept: Callable[[Any], list[str]],
    step_of: Callable[[Inflow, str, tuple[int, ...]], Inflow],
    into: str = "",
) -> Inflow | None:
    """Return a value as a linear function of the layers that it was made of; ``None`` of none.

    Args:
        value: A tensor with a graph.
        mine: Whether a port belongs to this network.
        names: Identity of a parameter, address of its memory, or shape of one in shards, to the
            name of its layer.
        kept: The layers whose frozen weights a node keeps.
        step_of: Sends an inflow of a shape through the factor of a layer, as its module would.
        into: Name of the layer into which the value comes.

    Raises:
        NotLinearError: with the name of a node that is not known.
    """
    known: dict[Any, Inflow | None] = {}
    sources: dict[str, Inflow] = {}
    weights: dict[Any, str] = {}  # below a node that no layer flows into
    local = 0
    for node, ends in _post_order(value.grad_fn, mine):
        known[node] = None
        if type(node) is PORT and ends:
            layer = node.call.layer
            if layer is not None:
                known[node] = sources.setdefault(layer, stand_in.source(layer))
        elif ends:
            name = names.get(id(node.variable)) or names.get(node.variable.shape)
            weights |= {node: name} if name else {}
        else:
            below = below_of(node)
            inside = [n for n in below if known[n] is not None]
            passing = [weights[n] for n in below if n in weights]
            if inside:
                weight = next(iter(passing or kept(node)), None)
                known[node] = _step(node, inside, known, weight, step_of, f"{into} {local}")
                local += _is_local(node)
            else:
                weights |= {node: passing[0]} if passing else {}
    return known[value.grad_fn]


# -- the ways of samples ---------------------------------------------------------------------------


def _is_local(node: Any) -> bool:
    kind = type(node).__name__
    return kind in _MAXIMA or kind in _NORMS


def local_nodes(value: Tensor, layer: str, mine: Callable[[Any], bool]) -> list[Any] | None:
    """Return the nodes below a value, in order, whose linear function differs by the pass.

    Args:
        value: What comes into a layer.
        layer: Its name.
        mine: Whether a port belongs to this network.

    Returns:
        ``None`` where no other layer's value flows into it, or an own one does, too.
    """
    flows: dict[Any, bool] = {}
    found = []
    for node, ends in _post_order(value.grad_fn, mine):
        if ends:
            of = node.call.layer if type(node) is PORT else None
            if of == layer:
                return None
            flows[node] = of is not None
        else:
            flows[node] = any(flows[n] for n in below_of(node))
            if flows[node] and _is_local(node):
                found.append(node)
    return found if flows.get(value.grad_fn) else None


def local_values(node: Any) -> tuple[tuple[int, ...], Tensor]:
    """Return what a node of :func:`local_nodes` keeps of its pass.

    Returns:
        Of a maximum the shape of what came in and the places of what was taken [N, channels, *S];
        of a normalisation no shape and by what it multiplies, [channels].
    """
    if type(node).__name__ in _MAXIMA:
        below, index = node.next_functions[0]
        return tuple(below._input_metadata[index].shape), node._saved_result1
    if node._saved_training:
        gains = node._saved_result2.detach()
    else:
        gains = torch.rsqrt(node._saved_running_var.detach() + _epsilon(node))
    weight = node._saved_weight
    return (), gains if weight is None else gains * weight.detach()


def _epsilon(node: Any) -> float:
    return float(getattr(node, "_saved_eps", None) or node._saved_epsilon)


def _shape(node: Any, below: Any) -> tuple[int, ...]:
    """Return the shape of what comes from one node into another."""
    index = next((i for n, i in node.next_functions if n is below), 0)
    return tuple(below._input_metadata[index].shape)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= _UNSIGNED else number


def _step(
    node: Any,
    inside: list[Any],
    known: Mapping[Any, Inflow | None],
    weight: str | None,
    step_of: Callable[[Inflow, str, tuple[int, ...]], Inflow],
    local: str,
) -> Inflow:
    """Return the function of one node of what comes into it; ``local`` names its ways."""
    kind = type(node).__name__
    if kind == "CatBackward0":
        return _cat(node, known)
    if kind == "StackBackward0":
        return _stack(node, known)
    if kind in ("AddBackward0", "SubBackward0"):
        return _sum(node, kind, known)
    x = known[inside[0]]
    if len(inside) > 1 or x is None:
        raise NotLinearError(kind)
    shape = _shape(node, inside[0])
    if weight is not None and kind == "ConvolutionBackward0":
        dims = len(node._saved_stride)
        options = [getattr(node, f"_saved_{name}") for name in (
            "stride", "padding", "dilation", "transposed", "output_padding", "groups")]  # fmt: skip
        return stand_in.convolve(x, weight, shape[-dims - 1 :], options)
    if weight is not None and kind in _PRODUCTS:
        return step_of(x, weight, shape)
    if kind in _NORMS:
        return stand_in.gain(x, _per_channel(shape), local)
    if kind in _SAME:
        return _scaled(node, kind, x)
    if kind in _OF_STEPS and x.steps is not None:
        return _reduced(node, kind, x, shape)
    move = _moved if kind in _MOVES else partial(_pooled, local=local)
    return move(node, kind, x, shape)


def _per_channel(shape: tuple[int, ...]) -> int:
    """Return how many numbers of a sample [N, channels, *S] are of one channel."""
    return math.prod(shape[2:])


def _cat(node: Any, known: Mapping[Any, Inflow | None]) -> Inflow:
    if any(n is None for n, _ in node.next_functions):
        raise NotLinearError("CatBackward0")
    dim = _signed(node._saved_dim)
    if dim % len(node._input_metadata[0].shape) == 0:
        raise NotLinearError("CatBackward0")
    shapes = [tuple(n._input_metadata[i].shape)[dim:] for n, i in node.next_functions]
    return stand_in.concatenate([known[n] for n, _ in node.next_functions], shapes)


def _stack(node: Any, known: Mapping[Any, Inflow | None]) -> Inflow:
    parts = [known[n] for n, _ in node.next_functions if n is not None]
    there = [part for part in parts if part is not None]
    if len(there) < len(node.next_functions):
        raise NotLinearError("StackBackward0")
    return stand_in.stack(there, _signed(node._saved_dim) % len(node._input_metadata[0].shape))


def _reduced(node: Any, kind: str, x: Inflow, shape: tuple[int, ...]) -> Inflow:
    """Return the mean or the sum over steps that are set side by side, or one of them."""
    saved = node._saved_dim
    dims = [_signed(d) % len(shape) for d in (saved if isinstance(saved, tuple) else [saved])]
    if dims != [x.steps] or getattr(node, "_saved_keepdim", False):
        raise NotLinearError(kind)
    return stand_in.reduce(x, shape[dims[0]] if kind == "SumBackward1" else 1.0)


def _sum(node: Any, kind: str, known: Mapping[Any, Inflow | None]) -> Inflow:
    signs = (1.0, -float(node._saved_alpha) if kind == "SubBackward0" else float(node._saved_alpha))
    parts, shape = [], tuple(node._input_metadata[0].shape)
    for (below, index), sign in zip(node.next_functions, signs, strict=True):
        flow = None if below is None else known[below]
        if flow is None:
            continue
        if tuple(below._input_metadata[index].shape) != shape:
            raise NotLinearError(kind)
        parts.append(flow if sign == 1 else stand_in.multiply(flow, sign))
    return parts[0] if len(parts) == 1 else stand_in.total(parts)


def _scaled(node: Any, kind: str, x: Inflow) -> Inflow:
    """Return a function of each number alone as what it is if it is a product with a number."""
    if kind not in ("MulBackward0", "DivBackward0") or are_packed():
        return x
    other = node._saved_other
    if not isinstance(other, Tensor) or other.dim() > 0:
        return x
    number = float(other.detach())
    return stand_in.multiply(x, number if kind == "MulBackward0" else 1 / number)


#: The first dimension of a sample of which a function takes more than one number, and the function
#: of values whose rows come first, in one dimension.
_Move: TypeAlias = tuple[int, Callable[[Tensor], Tensor]]


def _padded(node: Any, shape: tuple[int, ...], _: tuple[int, ...]) -> _Move:
    pad = [_signed(number) for number in node._saved_pad]
    return len(shape) - len(pad) // 2, partial(functional.pad, pad=pad)


def _resized(node: Any, _: tuple[int, ...], after: tuple[int, ...]) -> _Move:
    mode = "bilinear" if "Bilinear" in type(node).__name__ else "nearest"
    corners = getattr(node, "_saved_align_corners", None)
    return 1, partial(functional.interpolate, size=after[2:], mode=mode, align_corners=corners)


def _sliced(node: Any, shape: tuple[int, ...], after: tuple[int, ...]) -> _Move:
    dim = _signed(node._saved_dim) % len(shape)
    start = _signed(node._saved_start) % shape[dim]
    taken = slice(start, start + (after[dim] - 1) * node._saved_step + 1, node._saved_step)
    return dim, lambda value: value[:, taken]


def _permuted(node: Any, shape: tuple[int, ...], _: tuple[int, ...]) -> _Move:
    order = list(range(len(shape)))
    if hasattr(node, "_saved_dims"):
        order = [_signed(dim) % len(shape) for dim in node._saved_dims]
    else:
        one, other = (_signed(d) % len(shape) for d in (node._saved_dim0, node._saved_dim1))
        order[one], order[other] = other, one
    first = next((i for i, dim in enumerate(order) if i != dim), len(order))
    moved = [1 + dim - first for dim in order[first:]]
    return first, lambda value: value.permute(0, *moved)


_MOVES: Mapping[str, Callable[[Any, tuple[int, ...], tuple[int, ...]], _Move]] = {
    "ConstantPadNdBackward0": _padded,
    "PermuteBackward0": _permuted,
    "SliceBackward0": _sliced,
    "TransposeBackward0": _permuted,
    "UpsampleBilinear2DBackward0": _resized,
    "UpsampleNearest1DBackward0": _resized,
    "UpsampleNearest2DBackward0": _resized,
    "UpsampleNearest3DBackward0": _resized,
}


def _moved(node: Any, kind: str, x: Inflow, shape: tuple[int, ...]) -> Inflow:
    """Return a function that moves numbers of a sample, or makes others of them."""
    first, function = _MOVES[kind](node, shape, tuple(node._input_metadata[0].shape))
    if first == 0 or x.steps is not None:
        raise NotLinearError(kind)  # of samples, or of steps
    return x.then(lambda value: function(value.reshape(-1, *shape[first:])))


def _pooled(node: Any, kind: str, x: Inflow, shape: tuple[int, ...], local: str) -> Inflow:
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
            # Of windows that overlap a pixel may be the largest in one and not in another.
            apart = kind in _MAXIMA and list(options[0]) == kernel and not any(options[1])
            return stand_in.pool(x, sample, kernel, options, local if apart else "")
        if kind.startswith((f"AdaptiveAvgPool{dims}D", f"AdaptiveMaxPool{dims}D")):
            return stand_in.average(x, sample, tuple(node._input_metadata[0].shape)[-dims:])
    if kind == "MeanBackward1":
        dims_of = sorted(_signed(d) % len(shape) - len(shape) for d in node._saved_dim)
        first = min(dims_of)
        if len(shape) + first == 0:
            raise NotLinearError(kind)  # over samples, or over steps in another way
        return stand_in.mean(x, shape[first:], dims_of)
    raise NotLinearError(kind)
