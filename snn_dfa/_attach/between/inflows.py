"""What comes into a layer from others, read off autograd's graph as a linear function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from snn_dfa._attach.between.local_functions import ALONE, LocalFunction, repeats_a_weight
from snn_dfa._attach.between.moves import (
    MOVES,
    TURNED,
    Behind,
    NotLinearError,
    moved,
    of_behind,
    order_of,
    parted,
    pooled,
    repeated,
    turned,
)
from snn_dfa._attach.between.named_weights import (
    AS_IT_IS,
    PRODUCTS,
    known_or_made,
    made_of_parameters,
    named,
    passed,
)
from snn_dfa._attach.between.rows import (
    FILLED,
    PARTED,
    as_rows,
    dims_of,
    parts_of,
    see_that_samples_stay,
    taken,
)
from snn_dfa._attach.between.walk import NORMS, Signature, Walk, number_of
from snn_dfa._attach.graph import PORT, are_packed, below_of, shape_of, signed
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.stand_in import Inflow

__all__ = ["NotLinearError", "inflow_of"]


#: Views, which keep the order of numbers, and functions of each number alone.
_SAME = ALONE | {
    "AddBackward1", "AliasBackward0", "CloneBackward0", "ContiguousBackward0",
    "CudnnBatchNormBackward0", "DivBackward0", "DropoutBackward0", "MiopenBatchNormBackward0",
    "MulBackward0", "NativeBatchNormBackward0", "NativeGroupNormBackward0",
    "NativeLayerNormBackward0", "NegBackward0", "RegisterPostBackwardFunctionBackward",
    "ReshapeAliasBackward0", "RsubBackward1", "SqueezeBackward0", "SqueezeBackward1",
    "SqueezeBackward2", "SubBackward1", "ToCopyBackward0", "UnsafeViewBackward0",
    "UnsqueezeBackward0", "ViewBackward0",
}  # fmt: skip
#: What may become of steps that are set side by side.
_OF_STEPS = {"MeanBackward1", "SumBackward1", "SelectBackward0", "SliceBackward0"}


def inflow_of(
    value: Tensor,
    into: str,
    mine: Callable[[Any], bool],
    names: Mapping[Any, str],
    step_of: Callable[[Inflow, str, tuple[int, ...]], Inflow],
    *,
    own: Mapping[str, Tensor],
    free: Mapping[str, Tensor],
    products: Sequence[str | None],
    by_sample: bool,
) -> tuple[Inflow | None, Signature]:
    """Return a value as a linear function of the layers that it was made of; ``None`` of none.

    The layer's own values are not among them: the paths between them are the layer's own.

    Args:
        value: A tensor with a graph.
        into: Name of the layer into which the value comes.
        mine: Whether a port belongs to this network.
        names: Identity of a parameter, address of its memory, or shape of one in shards, to the
            name of its layer.
        step_of: Sends an inflow of a shape through the factor of a layer, as its module would.
        own: The layers whose modules compute with a parameter as their weight, and the parameter.
        free: Matrices that no layer holds, by name; a transpose has the name with ``.T`` behind it.
        products: Names of the matrices by which :attr:`Walk.products` multiply, in order; ``None``
            for one for which no factor can stand.
        by_sample: Whether functions may have a derivative for each sample.

    Raises:
        NotLinearError: with the name of a node that is not known, where all that flows in passes
            such nodes. Where something comes by others, too, they pass nothing.
    """
    known: dict[Any, Any] = {}
    sources: dict[tuple[str, int], Inflow] = {}
    weights: dict[Any, str] = {}  # below a node that no layer flows into
    computed: set[Any] = set()  # of these, those with other numbers than the weight
    signature: list[tuple[str, tuple[int, ...]]] = []
    unread: NotLinearError | None = None
    walk = Walk(value.grad_fn, into, mine, by_sample=by_sample and not are_packed())
    for node, ends, function in walk:
        known[node], local = None, "" if function is None else f"{into} {len(signature)}"
        signature += [] if function is None else [(type(node).__name__, function.parts)]
        if type(node) is PORT and ends:
            if walk.flows[node]:
                known[node] = _values(node.call, len(node._input_metadata), sources)
        elif ends:
            name = names.get(id(node.variable)) or names.get(node.variable.shape)
            weights |= {node: name} if name else {}
        elif not walk.flows[node]:
            weights |= passed(node, weights)
            changes = type(node).__name__ not in AS_IT_IS
            if changes or not computed.isdisjoint(below_of(node)):
                computed.add(node)
        else:
            try:
                if function is not None and not function.replaced:
                    of_rows = walk.steps_below(node) is not None
                    known[node] = _local(node, function, known, local, of_rows=of_rows)
                else:
                    known[node] = known_or_made(
                        partial(named, node, weights, names, own, free, computed),
                        made_of_parameters(node, walk, products),
                        partial(_step, node, known, step_of=step_of, local=local, walk=walk),
                    )
            except NotLinearError as error:
                unread = unread or error
                known[node] = stand_in.nothing(shape_of(node)[1:])
    made = _at(known, value.grad_fn, value.output_nr)
    if unread is not None and made is not None:
        made = _without(unread, made, sources, several=walk.several)
    return made, tuple(signature)


def _values(call: Any, count: int, sources: dict[tuple[str, int], Inflow]) -> list[Inflow]:
    """Return the values that a call handed out, each as one number of its layer."""
    each = ((call.layer, i if call.is_state(i) else 0) for i in range(count))
    return [sources.setdefault(value, stand_in.source(*value)) for value in each]


def _without(
    unread: NotLinearError,
    made: Inflow,
    sources: Iterable[tuple[str, int]],
    *,
    several: bool,
) -> Inflow:
    """Return what comes in past a node that is not known, with what it lacks by that.

    Raises:
        NotLinearError: if nothing comes in, or it is of several steps, whose order may be lost.
    """
    if several or not made.sources:
        raise unread
    layers = dict.fromkeys(layer for layer, _ in sources)
    only = tuple(layer for layer in layers if layer not in made.sources)
    return replace(made, lost=(str(unread), only))


def _at(known: Mapping[Any, Any], node: Any, index: int) -> Any:
    """Return the inflow of one of the values of a node, whose samples come first."""
    found = _any_at(known, node, index)
    if isinstance(found, Behind):
        raise NotLinearError("PermuteBackward0")
    return found


def _any_at(known: Mapping[Any, Any], node: Any, index: int) -> Any:
    """Return the inflow of one of the values of a node."""
    found: Any = known.get(node)
    if isinstance(found, NotLinearError):
        raise found
    return found[index] if isinstance(found, list) else found


def _local(
    node: Any, function: LocalFunction, known: Mapping[Any, Any], name: str, *, of_rows: bool
) -> Inflow:
    """Return a function whose derivative is kept in each pass; ``of_rows`` of several steps."""
    if repeats_a_weight(node):
        raise NotLinearError(type(node).__name__)
    parts, sizes = [], []
    for i in function.parts:
        below, index = node.next_functions[i]
        part = _at(known, below, index)
        if part is None or (part.steps is not None and not of_rows):
            raise NotLinearError(type(node).__name__)
        parts.append(replace(part, steps=None))
        sizes.append(math.prod(below._input_metadata[index].shape))
    size = math.prod(node._input_metadata[0].shape)
    made = stand_in.local(parts, sizes, size, name, needed=function.needed)
    return replace(made, steps=0) if of_rows else made


def _step(
    node: Any,
    known: Mapping[Any, Any],
    weight: str | None,
    step_of: Callable[[Inflow, str, tuple[int, ...]], Inflow],
    local: str,
    walk: Walk,
) -> Any:
    """Return the function of one node of what comes into it; ``local`` names its ways."""
    kind = type(node).__name__
    steps = walk.steps_below(node)
    if steps is None and node in walk.stacked:
        return _side_by_side(node, known, walk)
    if kind == FILLED:
        return NotLinearError(kind)  # not full yet: an error where something else takes it
    if kind == "StackBackward0":
        made = _stack(node, known, of_steps=walk.several and steps is None)
        return made if steps is None else as_rows(made, kind)
    if kind == "CatBackward0":
        return _cat(node, known, None if steps is None else 0)
    if kind in ("AddBackward0", "LerpBackward0", "SubBackward0"):
        return _sum(node, kind, known)
    x, shape = _single(node, kind, known)
    if isinstance(x, Behind):
        return _of_behind(node, kind, x, shape, weight, step_of)
    if steps is None:
        return _of_one(node, kind, x, shape, weight, step_of, local)
    if walk.stacked.get(node) != steps:
        return taken(node, kind, x, shape, steps)
    alone = kind in _SAME or kind in PRODUCTS
    see_that_samples_stay(node, kind, shape, steps, alone=alone)
    made = _of_one(node, kind, replace(x, steps=None), shape, weight, step_of, local)
    return as_rows(made, kind)


def _of_one(
    node: Any,
    kind: str,
    x: Inflow,
    shape: tuple[int, ...],
    weight: str | None,
    step_of: Callable[[Inflow, str, tuple[int, ...]], Inflow],
    local: str,
) -> Any:
    """Return the function of a node of one inflow of a shape."""
    alike = kind in _SAME and shape == shape_of(node)
    if x.steps is not None and kind not in _OF_STEPS and not alike:
        raise NotLinearError(kind)  # of several steps at once
    if weight is not None and kind == "ConvolutionBackward0":
        dims = len(node._saved_stride)
        options = [getattr(node, f"_saved_{name}") for name in (
            "stride", "padding", "dilation", "transposed", "output_padding", "groups")]  # fmt: skip
        return stand_in.convolve(x, weight, shape[-dims - 1 :], options)
    if weight is not None and kind in PRODUCTS:
        return step_of(x, weight, shape)
    return _function(node, kind, x, shape, local)


def _single(
    node: Any, kind: str, known: Mapping[Any, Any]
) -> tuple[Inflow | Behind, tuple[int, ...]]:
    """Return the one inflow of a node, and its shape."""
    pairs = [pair for pair in node.next_functions if known.get(pair[0]) is not None]
    if len(pairs) != 1:
        raise NotLinearError(kind)
    ((below, index),) = pairs
    return _any_at(known, below, index), shape_of(below, index)


def _of_behind(
    node: Any,
    kind: str,
    x: Behind,
    shape: tuple[int, ...],
    weight: str | None,
    step_of: Callable[[Inflow, str, tuple[int, ...]], Inflow],
) -> Any:
    """Return the function of a node of an inflow whose samples lie behind other dimensions."""
    if kind in ("MulBackward0", "DivBackward0", "RsubBackward1", "NegBackward0"):
        return x._replace(x=_scaled(node, kind, x.x))
    if weight is not None and kind in PRODUCTS:
        rows = math.prod(shape[:-1])
        if rows % x.parts or rows == x.parts:
            raise NotLinearError(kind)  # samples are in the last dimension
        return x._replace(x=step_of(x.x, weight, (rows, shape[-1])))
    return of_behind(node, kind, x, shape)


def _function(node: Any, kind: str, x: Inflow, shape: tuple[int, ...], local: str) -> Any:
    """Return a function of one inflow."""
    if kind in NORMS:
        return stand_in.gain(x, _per_channel(shape), local)
    if kind in _SAME:
        if shape != shape_of(node) and kind in (
            "MulBackward0",
            "DivBackward0",
        ):
            raise NotLinearError(kind)
        return _scaled(node, kind, x)
    if kind in _OF_STEPS and x.steps is not None:
        return _reduced(node, kind, x, shape)
    if kind in PARTED:
        return parted(node, kind, x, shape)
    if kind in TURNED and order_of(node, len(shape))[0]:
        return turned(node, kind, x, shape)
    move = moved if kind in MOVES else partial(pooled, local=local)
    return move(node, kind, x, shape)


def _per_channel(shape: tuple[int, ...]) -> int:
    """Return how many numbers of a sample [N, channels, *S] are of one channel."""
    return math.prod(shape[2:])


def _side_by_side(node: Any, known: Mapping[Any, Any], walk: Walk) -> Inflow:
    """Return steps that are set side by side as rows."""
    parts = [_at(known, *pair) for pair in parts_of(node, walk.stacked[node])]
    there = [part for part in parts if part is not None]
    if len(there) < len(parts):
        raise NotLinearError(type(node).__name__)
    if len({part.takes for part in there}) > 1:
        walk.stacked.pop(node)  # values of several layers: what takes one of them is not known
    return stand_in.stack(there, 0)


def _cat(node: Any, known: Mapping[Any, Any], steps: int | None) -> Inflow:
    whole = shape_of(node)
    dim = signed(node._saved_dim) % len(whole)
    shapes = [None if n is None else shape_of(n, i)[dim:] for n, i in node.next_functions]
    if dim == 0 or shapes.count(None) > 1:
        raise NotLinearError("CatBackward0")
    rest = whole[dim] - sum(shape[0] for shape in shapes if shape is not None)
    each = [(rest, *whole[dim + 1 :]) if shape is None else shape for shape in shapes]
    parts = [_at(known, *pair) for pair in node.next_functions]
    return replace(stand_in.concatenate(parts, each), steps=steps)


def _stack(node: Any, known: Mapping[Any, Any], *, of_steps: bool) -> Any:
    """Return steps that are set side by side, or parts of one step."""
    parts = [_at(known, *pair) for pair in node.next_functions]
    there = [part for part in parts if part is not None]
    if len(there) < len(node.next_functions):
        raise NotLinearError("StackBackward0")
    dim = signed(node._saved_dim) % len(node._input_metadata[0].shape)
    if of_steps or len(parts) == 1:
        return stand_in.stack(there, dim)
    shapes = [(1, *shape_of(n, i)[dim or 1 :]) for n, i in node.next_functions]
    made = stand_in.concatenate(there, shapes)
    return made if dim else Behind(made, len(parts))


def _reduced(node: Any, kind: str, x: Inflow, shape: tuple[int, ...]) -> Inflow:
    """Return the mean or the sum over steps that are set side by side, or one or some of them."""
    dims = dims_of(node)
    if dims != [x.steps] or getattr(node, "_saved_keepdim", False):
        raise NotLinearError(kind)
    if kind in ("SelectBackward0", "SliceBackward0"):
        flows = [each.takes for each, _ in x.terms]
        most = max(flows, key=len, default=frozenset())
        if any(not each <= most for each in flows):
            raise NotLinearError(kind)  # values of several layers, of which one is taken
    if kind == "SliceBackward0":
        return x
    return stand_in.reduce(x, shape[dims[0]] if kind == "SumBackward1" else 1.0)


def _sum(node: Any, kind: str, known: Mapping[Any, Any]) -> Inflow | Behind:
    if kind == "LerpBackward0":
        signs = 1 - float(node._saved_weight), float(node._saved_weight)
    else:
        alpha = float(node._saved_alpha)
        signs = 1.0, -alpha if kind == "SubBackward0" else alpha
    parts, counts, shape = [], list[int](), shape_of(node)
    for (below, index), sign in zip(node.next_functions, signs, strict=True):
        flow = _any_at(known, below, index)
        if flow is None:
            continue
        of = shape_of(below, index)
        if isinstance(flow, Behind):
            counts.append(flow.parts if of == shape else 0)
            flow = flow.x
        elif of != shape:
            flow = repeated(kind, flow, of, shape)
        parts.append(flow if sign == 1 else stand_in.multiply(flow, sign))
    made = parts[0] if len(parts) == 1 else stand_in.total(parts)
    if not counts:
        return made
    if len({*counts}) > 1 or len(counts) < len(parts) or not counts[0]:
        raise NotLinearError(kind)  # samples of one lie behind, and those of the other do not
    return Behind(made, counts[0])


def _scaled(node: Any, kind: str, x: Inflow) -> Inflow:
    """Return a function of each number alone as what it is if it is a product with a number."""
    if kind == "NegBackward0":
        return stand_in.multiply(x, -1.0)
    if kind == "RsubBackward1":
        return stand_in.multiply(x, -float(node._saved_alpha))
    if kind not in ("MulBackward0", "DivBackward0") or are_packed():
        return x
    factor = number_of(node)
    if factor is None:
        return x
    if factor.is_complex():
        raise NotLinearError(kind)
    number = float(factor)
    return stand_in.multiply(x, number if kind == "MulBackward0" else 1 / number)
