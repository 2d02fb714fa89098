"""What comes into a layer from others, read off autograd's graph as a linear function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from snn_dfa._attach.graph import LEAF, PORT, are_packed, below_of
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.stand_in import Inflow

__all__ = ["NotLinearError", "inflow_of"]


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
_UNSIGNED = 1 << 63  # autograd shows a negative dimension as one without a sign


def inflow_of(
    value: Tensor,
    mine: Callable[[Any], bool],
    names: Mapping[Any, str],
    kept: Callable[[Any], list[str]],
    step_of: Callable[[Inflow, str, tuple[int, ...]], Inflow],
) -> Inflow | None:
    """Return a value as a linear function of the layers that it was made of; ``None`` of none.

    Args:
        value: A tensor with a graph.
        mine: Whether a port belongs to this network.
        names: Identity of a parameter, address of its memory, or shape of one in shards, to the
            name of its layer.
        kept: The layers whose frozen weights a node keeps.
        step_of: Sends an inflow of a shape through the factor of a layer, as its module would.

    Raises:
        NotLinearError: with the name of a node that is not known.
    """
    known: dict[Any, Inflow | None] = {}
    weights: dict[Any, str] = {}  # below a node that no layer flows into
    todo: list[tuple[Any, bool]] = [(value.grad_fn, False)]
    while todo:
        node, done = todo.pop()
        if node in known:
            continue
        if type(node) is PORT and mine(node):
            layer = node.call.layer
            known[node] = None if layer is None else stand_in.source(layer)
        elif type(node) is LEAF:
            known[node] = None
            name = names.get(id(node.variable)) or names.get(node.variable.shape)
            weights |= {node: name} if name else {}
        elif done:
            below = below_of(node)
            inside = [n for n in below if known[n] is not None]
            passing = [weights[n] for n in below if n in weights]
            if inside:
                weight = next(iter(passing or kept(node)), None)
                known[node] = _step(node, inside, known, weight, step_of)
            else:
                known[node] = None
                weights |= {node: passing[0]} if passing else {}
        else:
            todo.append((node, True))
            todo += [(n, False) for n in below_of(node)]
    return known[value.grad_fn]


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
) -> Inflow:
    """Return the function of one node of what comes into it."""
    kind = type(node).__name__
    if kind == "CatBackward0":
        return _cat(node, known)
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
    return _scaled(node, kind, x) if kind in _SAME else _pooled(node, kind, x, shape)


def _cat(node: Any, known: Mapping[Any, Inflow | None]) -> Inflow:
    if any(n is None for n, _ in node.next_functions):
        raise NotLinearError("CatBackward0")
    dim = _signed(node._saved_dim)
    if dim % len(node._input_metadata[0].shape) == 0:
        raise NotLinearError("CatBackward0")
    shapes = [tuple(n._input_metadata[i].shape)[dim:] for n, i in node.next_functions]
    return stand_in.concatenate([known[n] for n, _ in node.next_functions], shapes)


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


def _pooled(node: Any, kind: str, x: Inflow, shape: tuple[int, ...]) -> Inflow:
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
            return stand_in.pool(x, sample, kernel * (dims if len(kernel) == 1 else 1), options)
        if kind.startswith((f"AdaptiveAvgPool{dims}D", f"AdaptiveMaxPool{dims}D")):
            return stand_in.average(x, sample, tuple(node._input_metadata[0].shape)[-dims:])
    if kind == "MeanBackward1":
        dims_of = sorted(_signed(d) % len(shape) - len(shape) for d in node._saved_dim)
        first = min(dims_of)
        return stand_in.mean(x, shape[first:], dims_of)
    raise NotLinearError(kind)
