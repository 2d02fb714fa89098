"""What picks parts of a tensor: which parts, along which dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_dfa._attach.between.rows import PARTED
from snn_dfa._attach.graph import are_packed, signed

__all__ = ["PICKS", "Pick", "picked"]

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
