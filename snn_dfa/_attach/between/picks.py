"""What picks parts of a tensor: which parts, along which dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_dfa._attach.between.rows import PARTED
from snn_dfa._attach.graph import are_packed, shape_of, signed

__all__ = ["ORDERS", "PICKS", "Pick", "orders_samples", "picked"]

#: What may give the samples another order.
ORDERS = {"FlipBackward0", "IndexBackward0", "IndexSelectBackward0", "RollBackward0"}

PICKS = {
    "GatherBackward0", "IndexBackward0", "IndexSelectBackward0", "SelectBackward0",
    "SliceBackward0", *PARTED,
}  # fmt: skip


class Pick(NamedTuple):
    """What a node picks.

    Args:
        dims: The dimensions along which it leaves something out, or changes the order.
        along: The one of which it is known what is picked.
        of: What is picked along it, in order; ``None`` where this is not known.
        now: The dimension of these parts in the result; ``None`` where it is gone.
        of_samples: Whether there is one part for each sample.
    """

    dims: set[int]
    along: int | None = None
    of: Sequence[int] | None = None
    now: int | None = None
    of_samples: bool = False


def picked(node: Any, kind: str, before: tuple[int, ...], index: int = 0) -> Pick:
    """Return what a node picks of a tensor.

    Args:
        node: The node.
        kind: Its name.
        before: The shape of the tensor.
        index: Which of its results is asked for.
    """
    if kind == "IndexBackward0":
        if are_packed():
            return Pick(set(range(len(before))))
        return _of_indices(node._saved_indices, before)
    dim = signed(node._saved_dim) % len(before)
    every = range(before[dim])
    if kind == "SelectBackward0":
        return Pick({dim}, dim, [every[signed(node._saved_index)]])
    if kind == "UnbindBackward0":
        return Pick({dim}, dim, [index])
    if kind in PARTED:
        start = sum(metadata.shape[dim] for metadata in node._input_metadata[:index])
        size = node._input_metadata[index].shape[dim]
        return Pick({dim}, dim, every[start : start + size], dim)
    if kind == "SliceBackward0":
        of = every[signed(node._saved_start) : signed(node._saved_end) : node._saved_step]
        return Pick(set() if of == every else {dim}, dim, of, dim)
    if are_packed():
        return Pick({dim})
    if kind == "IndexSelectBackward0":
        return Pick({dim}, dim, node._saved_index.flatten().tolist(), dim)
    return _gathered(node._saved_index, dim, before)


def orders_samples(node: Any, samples: int) -> bool:
    """Return whether a node, one of ``ORDERS``, gives samples another order.

    They are the first dimension, or that behind the steps, which ``torch.stack`` has set there.

    Args:
        node: The node.
        samples: How many there are.
    """
    kind, (below, index) = type(node).__name__, node.next_functions[0]
    before = () if below is None else shape_of(below, index)
    dim = int(type(below).__name__ == "StackBackward0" and signed(below._saved_dim) == 0)
    if samples < 2 or before[dim : dim + 1] != (samples,):
        return False
    if kind in ("FlipBackward0", "RollBackward0"):
        dims = [signed(each) % len(before) for each in node._saved_dims]
        return dim in dims or not dims
    pick = picked(node, kind, before)
    of = [each % samples for each in pick.of or ()]
    return pick.along == dim and len(of) == samples and of != list(range(samples))


def _of_indices(indices: Sequence[Tensor | None], before: tuple[int, ...]) -> Pick:
    """Return what ``value[rows]`` picks, or ``value[rows, columns]``."""
    found = list[Tensor | None]()
    for index in indices:  # a mask is of as many dimensions as it has
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            found += index.nonzero().unbind(1)
        else:
            found.append(index)
    each = {dim: index for dim, index in enumerate(found) if index is not None}
    dims, first = set(each), min(each)
    if any(index.dim() != 1 for index in each.values()) or len(dims) != max(dims) - first + 1:
        return Pick(set(range(len(before))))
    of = [index.tolist() for index in each.values()]
    if len(of) == 1:
        return Pick(dims, first, of[0], first)
    for time, samples in ((0, 1), (1, 0)):
        if len(of) == 2 and of[samples] == list(range(before[first + samples])):
            return Pick(dims, first + time, of[time], first, of_samples=True)
    return Pick(dims)


def _gathered(index: Tensor, dim: int, before: tuple[int, ...]) -> Pick:
    """Return what ``gather`` picks: here one part for each sample."""
    sizes = zip(before, index.shape, strict=True)
    dims = {d for d, (a, b) in enumerate(sizes) if a != b} | {dim}
    samples = 1 - dim
    if dim > 1 or len(before) < 2 or index.shape[dim] != 1 or samples in dims or not index.numel():
        return Pick(dims)
    rows = index.movedim(samples, 0).flatten(1)
    if not torch.equal(rows, rows[:, :1].expand_as(rows)):
        return Pick(dims)
    return Pick(dims, dim, rows[:, 0].tolist(), samples, of_samples=True)
