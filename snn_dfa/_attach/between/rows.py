"""Steps that a program sets side by side as rows, where it runs one layer after the other.

A layer that is called at each of T steps has T values [B, ...]. Set side by side they are
[T, B, ...] or [T * B, ...], and what lies before the next layer is computed for all of them at
once. So a value stands for that of one step, until one of the steps is taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from snn_dfa._attach.between.local_functions import signed
from snn_dfa._attach.between.moves import MOVES, Front, NotLinearError
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.stand_in import Inflow

__all__ = ["PARTED", "as_rows", "see_that_samples_stay", "side_by_side", "taken", "takes_rows"]

#: What becomes several values of one.
PARTED = {"SplitBackward0", "SplitWithSizesBackward0", "UnbindBackward0"}
#: What takes some of several steps, or their mean.
_TAKE = PARTED | {"MeanBackward1", "SelectBackward0", "SumBackward1"}


def side_by_side(node: Any, *, several: bool) -> tuple[int, int] | None:
    """Return T and B where a node sets T values of B rows side by side, as rows.

    Args:
        node: The node.
        several: Whether a layer has been called more than once.
    """
    if type(node).__name__ not in ("StackBackward0", "CatBackward0"):
        return None
    parts, shape = node.next_functions, tuple(node._input_metadata[0].shape)
    if signed(node._saved_dim) % len(shape) or not (several or len(parts) == 1):
        return None
    apart = type(node).__name__ == "StackBackward0" or all(
        type(n).__name__ == "UnsqueezeBackward0" and n._saved_dim == 0 for n, _ in parts
    )
    samples = shape[1] if apart and len(shape) > 1 else shape[0] // len(parts)
    return len(parts), samples


def takes_rows(node: Any) -> bool:
    """Return whether a node takes rows, or their mean."""
    dim = getattr(node, "_saved_dim", None) if type(node).__name__ in _TAKE else None
    return dim is not None and 0 in (dim if isinstance(dim, tuple) else (dim,))


def see_that_samples_stay(node: Any, kind: str, shape: tuple[int, ...]) -> None:
    """Raise an error for a function of [T, B, ...] that is none of each sample alone."""
    if kind not in MOVES or MOVES[kind](node, shape, tuple(node._input_metadata[0].shape))[0] < 2:
        raise NotLinearError(kind)


def as_rows(made: Any, kind: str) -> Inflow | list[Inflow]:
    """Return what a function made of the steps' rows, as that of one step."""
    if isinstance(made, Front):
        raise NotLinearError(kind)
    if isinstance(made, list):
        return [replace(each, steps=0) for each in made]
    one: Inflow = replace(made, steps=0)
    return one


def taken(
    node: Any, kind: str, x: Inflow, shape: tuple[int, ...], steps: tuple[int, int]
) -> Inflow | list[Inflow]:
    """Return one of several steps whose rows were set side by side, or all, or their mean."""
    if kind in PARTED:
        rows = {metadata.shape[0] for metadata in node._input_metadata}
        if kind == "UnbindBackward0" or rows == {shape[0] // steps[0]}:
            return [stand_in.reduce(x) for _ in node._input_metadata]
        raise NotLinearError(kind)
    alone = kind == "SelectBackward0" or tuple(node._saved_dim) == (0,)
    if shape[:2] != steps or not alone or getattr(node, "_saved_keepdim", False):
        raise NotLinearError(kind)
    return stand_in.reduce(x, steps[0] if kind == "SumBackward1" else 1.0)
