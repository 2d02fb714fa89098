"""Of a tensor that holds several steps side by side: which step each part was made of.

Where time lies in a tensor is told by how many numbers lie behind it: of [T, B, N] these are B * N,
and of [T * B, N] as many. So a view changes nothing, and a function of rows changes their length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from snn_dfa._attach.between.local_functions import ALONE, OTHERS_ALONE
from snn_dfa._attach.between.moves import MAXIMA, TURNED, VIEWS, order_of
from snn_dfa._attach.between.picks import PICKS, picked
from snn_dfa._attach.between.rows import FILLED, PARTED, dims_of, place_of
from snn_dfa._attach.graph import LEAF, PORT, post_order, shape_of, signed

__all__ = ["Origin", "origin_in_steps"]

#: Functions of numbers that are at the same place.
_OF_NUMBERS = ALONE | OTHERS_ALONE | {
    "AddBackward0", "BackwardHookFunctionBackward", "CloneBackward0", "DivBackward0",
    "ExpandBackward0", "MaskedFillBackward0", "MulBackward0", "NegBackward0", "SubBackward0",
    "ToCopyBackward0", "WhereBackward0",
}  # fmt: skip
#: Functions of rows, the first thing that comes in, and how many dimensions a row has not.
_OF_ROWS = dict.fromkeys(MAXIMA, 1) | {
    "AvgPool2DBackward0": 1, "BmmBackward0": 2, "ConvolutionBackward0": 1, "MmBackward0": 1,
}  # fmt: skip
_ADDED = "AddmmBackward0"  # the same, of the second thing

#: What joins all steps of a dimension to one number.
_JOINED = {"AmaxBackward0", "AminBackward0", "LogsumexpBackward0", "MaxBackward0", "MeanBackward1",
           "MedianBackward1", "MinBackward0", "SumBackward1"}  # fmt: skip
_JOINS = {"CatBackward0", "CopySlices", "IndexPutBackward0", "StackBackward0", "UnsqueezeBackward0"}
_SOFTMAX = {"LogSoftmaxBackward0", "SoftmaxBackward0"}
#: What puts values into a tensor, at places that the graph does not tell.
_FILLS = {FILLED, "IndexCopyBackward0", "IndexPutBackward0", "SelectScatterBackward0"}
#: What leaves a tensor that was filled one.
_STAYS_FILLED = _OF_NUMBERS | VIEWS | TURNED | PICKS

#: By how many numbers lie behind time, the steps that each part along it was made of.
Steps: TypeAlias = dict[int, Sequence[set[int]]]


class Origin(NamedTuple):
    """What a value was made of.

    Args:
        steps: Those that each part was made of, by how many numbers lie behind time. Nothing where
            a function lies on the way that may mix steps; ``None`` where no dimension is that of
            time.
        made_of: All of them.
        of_samples: Whether the parts are samples: of each the program has picked steps of its own.
        filled: Whether steps were put into a tensor in place, of which the order is not known.
        unsure: Whether steps were picked, and it is not known which.
    """

    steps: Steps | None
    made_of: set[int]
    of_samples: bool = False
    filled: bool = False
    unsure: bool = False


def origin_in_steps(edge: tuple[Any, int], step_of: Callable[[Any], int | None]) -> Origin:
    """Return the steps that a value, and each part of it, was made of.

    Args:
        edge: The value's node, and which of its results the value is.
        step_of: Which step a port is of, ``None`` if it is of no layer of this network.
    """
    known: dict[Any, Origin] = {None: Origin({}, set())}

    def ends(node: Any) -> bool:
        return type(node) is LEAF or (type(node) is PORT and step_of(node) is not None)

    def at(edge: tuple[Any, int]) -> Origin:
        """Return what one of a node's results was made of."""
        node, index = edge
        is_part = type(node).__name__ in PARTED and bool(known[node].made_of)
        return _made(node, [known[node]], index) if is_part else known[node]

    for node, is_end in post_order([edge[0]], ends):
        if is_end:
            step = step_of(node) if type(node) is PORT else None
            known[node] = Origin(None, set() if step is None else {step})
        elif type(node).__name__ in PARTED:  # for all of its results what comes in is kept
            known[node] = at(node.next_functions[0])
        else:
            known[node] = _made(node, [at(below) for below in node.next_functions])
    return at(edge)


def _made(node: Any, below: Sequence[Origin], index: int = 0) -> Origin:
    """Return what a node has made of what comes in: of several results the one asked for."""
    kind, made_of = type(node).__name__, set[int]().union(*(each.made_of for each in below))
    parts = [each for each in below if each.made_of]
    unsure = any(each.unsure for each in parts)
    alike = len(below) > 1 and all(each.made_of == below[0].made_of for each in below)
    if not parts or (all(each.steps is None for each in parts) and (kind not in _JOINS or alike)):
        return Origin(None, made_of, unsure=unsure)
    if kind in PICKS and (found := _picked(node, kind, parts[0], index)) is not None:
        return found._replace(unsure=unsure or found.unsure)
    if len({each.of_samples for each in parts}) > 1:
        return Origin({}, made_of, unsure=True)
    steps = _steps_of(node, kind, below, index)
    filled = kind in _STAYS_FILLED and any(each.filled for each in parts)
    filled |= kind in _FILLS and not steps and len(made_of) > 1
    return Origin(steps, _all_of(steps, made_of), parts[0].of_samples, filled, unsure)


def _all_of(steps: Steps | None, made_of: set[int]) -> set[int]:
    """Return the steps of a value: it has no others than its parts."""
    found = [set[int]().union(*each) for each in (steps or {}).values()]
    return min([made_of, *found], key=len)


def _picked(node: Any, kind: str, part: Origin, index: int) -> Origin | None:
    """Return what a node has picked along time; ``None`` where it picks along other dimensions."""
    before, pick = shape_of(*node.next_functions[0]), None
    if part.filled and not part.steps and picked(node, kind, before, index).dims:
        return Origin({}, part.made_of, unsure=True)
    for behind, steps in (part.steps or {}).items():
        pick = pick or picked(node, kind, before, index)
        inner = {dim: math.prod(before[dim + 1 :]) for dim in pick.dims}
        of_time = [
            d for d, n in inner.items() if n < behind * len(steps) and behind < n * before[d]
        ]
        if not of_time or len(steps) == 1:
            continue
        exact = (
            pick.along in of_time
            and inner[pick.along] == behind
            and before[pick.along] == len(steps)
        )
        lost = part.of_samples or part.filled
        if pick.of is None or not exact or lost:
            return Origin({}, part.made_of, unsure=True)
        kept = [steps[i] for i in pick.of]
        made_of = set[int]().union(*kept)
        if pick.now is None:
            return Origin(None, made_of)
        shape = shape_of(node, index)
        return Origin({math.prod(shape[pick.now + 1 :]): kept}, made_of, pick.of_samples)
    return None


def _steps_of(node: Any, kind: str, below: Sequence[Origin], index: int) -> Steps | None:
    """Return the steps of a node's result, of those of what comes in."""
    shape, edges = shape_of(node, index), node.next_functions
    read = [i for i, each in enumerate(below) if each.made_of]
    parts, shapes = [below[i].steps or {} for i in read], [shape_of(*edges[i]) for i in read]
    made_of = [each.made_of for each in below]
    if kind in _JOINED:
        return _joined_along(node, parts[0], shapes[0])
    if kind in ("StackBackward0", "UnsqueezeBackward0"):
        inner = math.prod(shape[signed(node._saved_dim) % len(shape) + 1 :])
        before = parts[0] if kind == "UnsqueezeBackward0" else {}
        return {inner: made_of} | before
    if kind == "CatBackward0":
        return _side_by_side(node, shape, [below[i] for i in read], shapes, len(edges))
    if kind == FILLED:
        return _filled(node, shape, below)
    if kind in _OF_NUMBERS:
        return _joined(parts) if all(each == shape for each in shapes) else {}
    if kind in VIEWS:
        return parts[0]
    if kind in TURNED or kind in (*PICKS, "FlipBackward0", *_SOFTMAX):
        return _moved(node, kind, shape, parts[0], shapes[0])
    if kind == "NativeLayerNormBackward0":
        size = math.prod(node._saved_normalized_shape)
        return {inner: steps for inner, steps in parts[0].items() if inner % size == 0}
    if read == [int(kind == _ADDED)] and (kind == _ADDED or kind in _OF_ROWS):
        dims = _OF_ROWS.get(kind, 1)
        row, after = math.prod(shapes[0][dims:]), math.prod(shape[dims:])
        return {n // row * after: steps for n, steps in parts[0].items() if n % row == 0}
    return {}


def _joined_along(node: Any, part: Steps, before: tuple[int, ...]) -> Steps | None:
    """Return that a value has no time where all steps of its dimension are joined."""
    times = {i for i in range(len(before)) if math.prod(before[i + 1 :]) in part}
    return None if times and times == set(dims_of(node)) and not node._saved_keepdim else {}


def _filled(node: Any, shape: tuple[int, ...], below: Sequence[Origin]) -> Steps:
    """Return the steps of a tensor into which a node has put a value in place."""
    found: Steps = {}
    before, value = below[0], below[-1].made_of
    for dim, size in enumerate(shape):
        inner = math.prod(shape[dim + 1 :])
        parts = (before.steps or {}).get(inner) if before.made_of else [set[int]()] * size
        found_at = None if parts is None else place_of(node, dim)
        if parts is not None and found_at is not None:
            place, replaces = found_at
            part = value if replaces else parts[place] | value
            found[inner] = [*parts[:place], part, *parts[place + 1 :]]
    return found


def _side_by_side(
    node: Any,
    shape: tuple[int, ...],
    parts: Sequence[Origin],
    shapes: Sequence[tuple[int, ...]],
    count: int,
) -> Steps:
    """Return the steps of values that are set side by side along a dimension which they have.

    Args:
        node: The node.
        shape: Of what it makes.
        parts: The values that are made of calls.
        shapes: Of these.
        count: How many values there are.
    """
    dim = signed(node._saved_dim) % len(shape)
    inner = math.prod(shape[dim + 1 :])
    whole, steps = len(parts) == count, [part.steps or {} for part in parts]
    if whole and all(inner in each for each in steps):
        return {inner: [step for each in steps for step in each[inner]]}
    if whole and len(set(shapes)) == 1 and all(part.steps is None for part in parts):
        return {inner * shapes[0][dim]: [part.made_of for part in parts]}  # [T * B, N], say
    found: list[Steps] = []
    for part, before in zip(steps, shapes, strict=True):
        in_front = {n: of for n, of in part.items() if n % (inner * before[dim]) == 0}
        behind = {n: of for n, of in part.items() if inner % (n * len(of)) == 0}
        found.append({n // before[dim] * shape[dim]: of for n, of in in_front.items()} | behind)
    return _joined(found)


def _moved(
    node: Any, kind: str, shape: tuple[int, ...], part: Steps, before: tuple[int, ...]
) -> Steps:
    """Return the steps of a value whose dimensions have another order, or of a part of it."""
    found: Steps = {}
    changed = set() if kind in TURNED or kind not in PICKS else picked(node, kind, before).dims
    turned = order_of(node, len(shape)) if kind in TURNED else None
    for dim, size in enumerate(before):
        steps = part.get(math.prod(before[dim + 1 :]), ())
        if not steps or len(steps) != size or dim in changed:
            continue
        if kind in _SOFTMAX and signed(node._saved_dim) % len(shape) == dim and size > 1:
            continue
        if kind == "FlipBackward0" and dim in [signed(d) % len(shape) for d in node._saved_dims]:
            steps = steps[::-1]
        now = dim - (len(before) - len(shape) if changed and max(changed) < dim else 0)
        now = turned.index(dim) if turned is not None else now
        found[math.prod(shape[now + 1 :])] = steps
    return found


def _joined(parts: Sequence[Steps]) -> Steps:
    """Return the steps of a value that was made of several ones, number by number."""
    found: Steps = {}
    for inner in parts[0] if parts else ():
        steps = [part[inner] for part in parts if inner in part]
        if len(steps) == len(parts) and len({len(each) for each in steps}) == 1:
            found[inner] = [set().union(*step) for step in zip(*steps, strict=True)]
    return found
