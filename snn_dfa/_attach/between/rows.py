"""Steps that a program sets side by side as rows, where it runs one layer after the other.

A layer that is called at each of T steps has T values [B, ...]. Set side by side, or put one by one
into an empty tensor, they are [T, B, ...], [T * B, ...] or [B, T, ...], and what lies before the
next layer is computed for all of them at once. So a value stands for that of one step, until one of
the steps is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_dfa._attach.between.moves import MOVES, TURNED, Behind, NotLinearError, order_of
from snn_dfa._attach.graph import shape_of, signed
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.stand_in import Inflow

__all__ = [
    "FILLED", "PARTED", "Rows", "as_rows", "dims_of", "parts_of", "place_of",
    "see_that_samples_stay", "side_by_side", "some_of", "taken", "takes_rows",
]  # fmt: skip

#: What puts a value into a tensor in place.
FILLED = "CopySlices"
#: What becomes several values of one.
PARTED = {"SplitBackward0", "SplitWithSizesBackward0", "UnbindBackward0"}
#: What takes some of several steps, or their mean.
_TAKE = PARTED | {"MeanBackward1", "SelectBackward0", "SumBackward1"}


class Rows(NamedTuple):
    """How steps lie side by side: how many, with how many samples, and whether steps come first."""

    steps: int
    samples: int
    first: bool = True

    @property
    def sizes(self) -> tuple[int, int]:
        """The first two dimensions of values whose steps have one of their own."""
        return (self.steps, self.samples) if self.first else (self.samples, self.steps)


def side_by_side(node: Any, *, several: bool, count: int = 0) -> Rows | None:
    """Return how a node sets values of several steps side by side, if it does.

    Args:
        node: The node.
        several: Whether a layer has been called more than once.
        count: How many values have been put into an empty tensor in place, with the node's.
    """
    if count:
        return _filled(node, count) if several or count == 1 else None
    if type(node).__name__ not in ("StackBackward0", "CatBackward0"):
        return None
    parts, shape = node.next_functions, shape_of(node)
    dim = signed(node._saved_dim) % len(shape)
    apart = type(node).__name__ == "StackBackward0" or all(
        type(n).__name__ == "UnsqueezeBackward0" and n._saved_dim == dim for n, _ in parts
    )
    if dim > apart or not (several or len(parts) == 1):
        return None
    if not apart or len(shape) == 1:
        return Rows(len(parts), shape[0] // len(parts))
    return Rows(len(parts), shape[1 - dim], first=dim == 0)


def _filled(node: Any, count: int) -> Rows | None:
    """Return how values lie in a tensor if each is one step, and they are as many as its steps."""
    shape = shape_of(node)
    dims = [dim for dim in range(min(2, len(shape) - 1)) if count == shape[dim]]
    dims = [dim for dim in dims if place_of(node, dim) is not None]
    return Rows(count, shape[1 - dims[0]], first=dims[0] == 0) if dims else None


def place_of(node: Any, dim: int) -> tuple[int, bool] | None:
    """Return which part along a dimension a node has put a value into, and whether in place of it.

    A node does not say so. It is asked for the shares of an error that counts the parts; no hook of
    the program's sees this. Nothing is known where the value fills no part alone, or where an
    earlier backward pass has used the node up.
    """
    shape, (below, index) = shape_of(node), node.next_functions[1]
    if below is None or shape_of(below, index) != shape[:dim] + shape[dim + 1 :]:
        return None
    count = torch.arange(shape[dim]).view(-1, *[1] * (len(shape) - dim - 1))
    place, before = 0, None
    for unit in (1, 255)[: 1 + (shape[dim] > 255)]:  # half precision has such numbers
        before, part = _shares(node, count // unit % 255 + 1)
        if part is None:
            return None
        place += unit * (part - 1)
    replaces = before is not None and place < len(count) and not before.select(dim, place).any()
    if not replaces and _shares(node, torch.ones_like(count))[1] != 1:
        return None  # it multiplies the value
    return place, replaces


def _shares(node: Any, error: Tensor) -> tuple[Tensor | None, int | None]:
    """Return what a node passes on of an error: of what it changed, and the number of its value."""
    metadata = node._input_metadata[0]
    error = error.to(metadata.device, metadata.dtype).expand(tuple(metadata.shape))
    try:
        before, share = node(error)
    except RuntimeError:
        return None, None
    least, most = share.aminmax()
    return before, int(least) if least == most and least >= 1 else None


def parts_of(node: Any, rows: Rows) -> Sequence[tuple[Any, int]]:
    """Return the edges to the values that a node has set side by side.

    Raises:
        NotLinearError: if a tensor was not filled with steps, one after the other.
    """
    if type(node).__name__ != FILLED:
        found: Sequence[tuple[Any, int]] = node.next_functions
        return found
    edges, places = list[tuple[Any, int]](), list[int | None]()
    for _ in range(rows.steps):
        place = place_of(node, int(not rows.first))
        places.append(None if place is None else place[0])
        edges.append(node.next_functions[1])
        node = node.next_functions[0][0]
    in_turn = list(range(rows.steps))
    if places not in (in_turn, in_turn[::-1]):
        raise NotLinearError(FILLED)
    return edges


def takes_rows(node: Any, rows: Rows) -> bool:
    """Return whether a node takes steps, or their mean."""
    return type(node).__name__ in _TAKE and int(not rows.first) in dims_of(node)


def some_of(node: Any, rows: Rows) -> Rows:
    """Return how steps lie after a node, which may take some, as ``stack[-3:]``, or turn them."""
    shape, kind = shape_of(node), type(node).__name__
    dim = int(not rows.first)
    below, index = node.next_functions[0]
    if below is None or shape_of(below, index)[:2] != rows.sizes:
        return rows
    if kind == "SliceBackward0" and dims_of(node) == [dim]:
        return rows._replace(steps=shape[dim])
    if kind in TURNED and order_of(node, len(shape)) == [1, 0, *range(2, len(shape))]:
        return rows._replace(first=not rows.first)
    return rows


def dims_of(node: Any) -> list[int]:
    """Return the dimensions along which a node takes some of its input, or a mean."""
    below, index = node.next_functions[0]
    dims, rank = node._saved_dim, len(below._input_metadata[index].shape)
    dims = dims if isinstance(dims, tuple) else (dims,)
    return [signed(dim) % rank for dim in dims if dim is not None]


def see_that_samples_stay(
    node: Any, kind: str, shape: tuple[int, ...], rows: Rows, *, alone: bool
) -> None:
    """Raise an error for a function that is none of each sample and step alone.

    Args:
        node: Of the function.
        kind: Its name.
        shape: Of what comes in.
        rows: How steps lie in it.
        alone: Whether it is a function of each number, or of the last dimension.
    """
    after, count = shape_of(node), rows.steps * rows.samples
    is_one = shape[0] % count == 0  # steps and samples are one dimension, with parts of a sample
    first = 2 if alone or is_one else 0
    if kind in MOVES and not is_one:
        first, _ = MOVES[kind](node, shape, after)
    if first < 2 or not all(s[0] % count == 0 or s[:2] == rows.sizes for s in (shape, after)):
        raise NotLinearError(kind)


def as_rows(made: Any, kind: str) -> Inflow | list[Inflow]:
    """Return what a function made of the steps' rows, as that of one step."""
    if isinstance(made, Behind):
        raise NotLinearError(kind)
    if isinstance(made, list):
        return [replace(each, steps=0) for each in made]
    one: Inflow = replace(made, steps=0)
    return one


def taken(
    node: Any, kind: str, x: Inflow, shape: tuple[int, ...], rows: Rows
) -> Inflow | list[Inflow]:
    """Return one of several steps whose rows were set side by side, or some, or their mean."""
    if kind == "SliceBackward0" or kind in TURNED:
        return x
    apart = shape[:2] == rows.sizes
    if kind in PARTED:
        found = {metadata.shape[0] for metadata in node._input_metadata}
        if kind == "UnbindBackward0" or (rows.first and found == {shape[0] // rows.steps}):
            return [stand_in.reduce(x) for _ in node._input_metadata]
        raise NotLinearError(kind)
    alone = kind == "SelectBackward0" or len(node._saved_dim) == 1
    if not apart or not alone or getattr(node, "_saved_keepdim", False):
        raise NotLinearError(kind)
    return stand_in.reduce(x, rows.steps if kind == "SumBackward1" else 1.0)
