"""Of a tensor that holds several steps side by side: which step each part was made of.

Where time lies in a tensor is told by how many numbers lie behind it: of [T, B, N] these are B * N,
and of [T * B, N] as many. So a view changes nothing, and a function of rows changes their length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from snn_dfa._attach.between.local_functions import ALONE, OTHERS_ALONE
from snn_dfa._attach.between.moves import MAXIMA, TURNED, order_of
from snn_dfa._attach.between.rows import dims_of
from snn_dfa._attach.graph import LEAF, PORT, post_order, signed

__all__ = ["order_of_steps"]

#: Functions of numbers that are at the same place.
_OF_NUMBERS = ALONE | OTHERS_ALONE | {
    "AddBackward0", "BackwardHookFunctionBackward", "CloneBackward0", "DivBackward0",
    "MaskedFillBackward0", "MulBackward0", "NegBackward0", "SubBackward0", "ToCopyBackward0",
    "WhereBackward0",
}  # fmt: skip
_VIEWS = {
    "ReshapeAliasBackward0", "SqueezeBackward0", "SqueezeBackward1", "UnsafeViewBackward0",
    "ViewBackward0",
}  # fmt: skip
#: Functions of rows, the first thing that comes in, and how many dimensions a row has not.
_OF_ROWS = dict.fromkeys(MAXIMA, 1) | {
    "AvgPool2DBackward0": 1, "BmmBackward0": 2, "ConvolutionBackward0": 1, "MmBackward0": 1,
}  # fmt: skip
_ADDED = "AddmmBackward0"  # the same, of the second thing

_TAKES = {"MeanBackward1", "SelectBackward0", "SumBackward1"}
_JOINS = {"CatBackward0", "CopySlices", "IndexPutBackward0", "StackBackward0", "UnsqueezeBackward0"}

#: By how many numbers lie behind time, the steps that each part along it was made of.
Steps: TypeAlias = dict[int, Sequence[set[int]]]


def order_of_steps(root: Any, step_of: Callable[[Any], int | None]) -> Steps | None:
    """Return the steps that each part of a value was made of.

    Args:
        root: The value's node.
        step_of: Which step a port is of, ``None`` if it is of no layer of this network.

    Returns:
        By how many numbers lie behind time. Nothing where a function lies on the way that may mix
        steps; ``None`` where no dimension is that of time.
    """
    known: dict[Any, Steps | None] = {None: {}}
    made_of: dict[Any, set[int]] = {None: set()}

    def ends(node: Any) -> bool:
        return type(node) is LEAF or (type(node) is PORT and step_of(node) is not None)

    for node, is_end in post_order([root], ends):
        if is_end:
            step = step_of(node) if type(node) is PORT else None
            known[node], made_of[node] = None, set() if step is None else {step}
            continue
        of_each = [made_of[n] for n, _ in node.next_functions]
        made_of[node] = set().union(*of_each)
        parts = [known[n] for n, _ in node.next_functions if made_of[n]]
        alike = len(of_each) > 1 and all(of == of_each[0] for of in of_each)
        joins = type(node).__name__ in _JOINS and not alike
        apart = not joins and all(part is None for part in parts)
        known[node] = None if apart else _steps_of(node, known, made_of)
    return known[root]


def _steps_of(
    node: Any, known: Mapping[Any, Steps | None], made_of: Mapping[Any, set[int]]
) -> Steps | None:
    """Return the steps of a node, of those of what comes in."""
    kind, shape = type(node).__name__, tuple(node._input_metadata[0].shape)
    edges = node.next_functions
    read = [i for i, (n, _) in enumerate(edges) if made_of[n]]
    parts = [known[edges[i][0]] or {} for i in read]
    shapes = [_shape(edges[i]) for i in read]
    if kind in _TAKES:
        return _taken(node, parts[0], shapes[0])
    if kind in ("StackBackward0", "UnsqueezeBackward0"):
        inner = math.prod(shape[signed(node._saved_dim) % len(shape) + 1 :])
        before = parts[0] if kind == "UnsqueezeBackward0" else {}
        return {inner: [made_of[n] for n, _ in edges]} | before
    if kind == "CatBackward0":
        return _side_by_side(node, shape, parts, shapes, whole=len(read) == len(edges))
    if kind in _OF_NUMBERS:
        return _joined(parts) if all(each == shape for each in shapes) else {}
    if kind in _VIEWS:
        return parts[0]
    if kind in TURNED or kind == "SliceBackward0":
        return _moved(node, kind, shape, parts[0], shapes[0])
    if kind == "NativeLayerNormBackward0":
        size = math.prod(node._saved_normalized_shape)
        return {inner: steps for inner, steps in parts[0].items() if inner % size == 0}
    if read == [int(kind == _ADDED)] and (kind == _ADDED or kind in _OF_ROWS):
        dims = _OF_ROWS.get(kind, 1)
        row, after = math.prod(shapes[0][dims:]), math.prod(shape[dims:])
        return {n // row * after: steps for n, steps in parts[0].items() if n % row == 0}
    return {}


def _taken(node: Any, part: Steps, before: tuple[int, ...]) -> Steps | None:
    """Return that a value has no time where one step is taken, or a mean or a sum of steps."""
    times = {i for i in range(len(before)) if math.prod(before[i + 1 :]) in part}
    return None if times and times == set(dims_of(node)) else {}


def _side_by_side(
    node: Any,
    shape: tuple[int, ...],
    parts: Sequence[Steps],
    shapes: Sequence[tuple[int, ...]],
    *,
    whole: bool,
) -> Steps:
    """Return the steps of values that are set side by side along a dimension which they have.

    Args:
        node: The node.
        shape: Of what it makes.
        parts: The steps of the values that are made of calls.
        shapes: Of these.
        whole: Whether these are all.
    """
    dim = signed(node._saved_dim) % len(shape)
    inner = math.prod(shape[dim + 1 :])
    if whole and all(inner in part for part in parts):
        return {inner: [step for part in parts for step in part[inner]]}
    found: list[Steps] = []
    for part, before in zip(parts, shapes, strict=True):
        in_front = {n: of for n, of in part.items() if n % (inner * before[dim]) == 0}
        behind = {n: of for n, of in part.items() if inner % (n * len(of)) == 0}
        found.append({n // before[dim] * shape[dim]: of for n, of in in_front.items()} | behind)
    return _joined(found)


def _moved(
    node: Any, kind: str, shape: tuple[int, ...], part: Steps, before: tuple[int, ...]
) -> Steps:
    """Return the steps of a value whose dimensions have another order, or of a part of it."""
    found: Steps = {}
    for dim, size in enumerate(before):
        steps = part.get(math.prod(before[dim + 1 :]), ())
        if not steps or len(steps) != size:
            continue
        now = dim
        if kind in TURNED:
            now = order_of(node, len(shape)).index(dim)
        elif signed(node._saved_dim) % len(shape) == dim:
            taken = slice(signed(node._saved_start), signed(node._saved_end), node._saved_step)
            steps = steps[taken]
        found[math.prod(shape[now + 1 :])] = steps
    return found


def _shape(edge: tuple[Any, int]) -> tuple[int, ...]:
    node, index = edge
    return tuple(node._input_metadata[index].shape)


def _joined(parts: Sequence[Steps]) -> Steps:
    """Return the calls of steps that were made of the same steps of several values."""
    found: Steps = {}
    for inner in parts[0] if parts else ():
        steps = [part[inner] for part in parts if inner in part]
        if len(steps) == len(parts) and len({len(each) for each in steps}) == 1:
            found[inner] = [set().union(*step) for step in zip(*steps, strict=True)]
    return found
