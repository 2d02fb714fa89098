"""Tensors in the nested tuples, lists and dicts that layers are given and return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["like_spikes", "map_tensors"]


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return the nested tuples, lists and dicts of ``value`` with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(change, v) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(change, v) for v in value)
    if isinstance(value, dict):
        return {key: map_tensors(change, v) for key, v in value.items()}
    return value


def like_spikes(output: Any) -> list[Tensor]:
    """Return a layer's spikes, the first tensor it returns, and its states of the same shape."""
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        if not found or (t.shape == found[0].shape and t.is_floating_point()):
            found.append(t)
        return t

    map_tensors(note, output)
    return found
