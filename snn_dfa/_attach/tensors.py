"""Tensors inside the arguments and results of a module: tuples, lists, dicts and objects."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["map_tensors", "tensors_in"]

_PLAIN = (int, float, bool, str, bytes, complex, type(None), nn.Module, type)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return ``value`` with every tensor inside it changed.

    A container or an object in which nothing changes is returned as it is; another one is
    copied. An object is one with attributes, such as a dataclass or a graph's data.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        changed = [change(v) if type(v) is Tensor else map_tensors(change, v) for v in value]
        if _same(changed, value):
            return value
        return kind(*changed) if hasattr(value, "_fields") else kind(changed)
    if kind in _PLAIN or isinstance(value, _PLAIN):
        return value
    if isinstance(value, dict):
        items = {key: map_tensors(change, v) for key, v in value.items()}
        if _same(items.values(), value.values()):
            return value
        twin = copy.copy(value)
        twin.update(items)
        return twin
    return _map_object(change, value)


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor inside ``value``."""
    if type(value) is Tensor:
        return [value]
    if type(value) is tuple:
        return [t for part in value for t in ([part] if type(part) is Tensor else tensors_in(part))]
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) or t, value)  # type: ignore[func-returns-value]
    return found


def _same(new: Any, old: Any) -> bool:
    return all(map(operator.is_, new, old))


def _map_object(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    slots = [s for k in type(value).__mro__ for s in getattr(k, "__slots__", ())]
    names = [*getattr(value, "__dict__", ()), *(s for s in slots if hasattr(value, s))]
    if callable(value):  # a function keeps its attributes to itself
        return value
    twin = value
    for name in names:
        old = getattr(value, name)
        new = map_tensors(change, old)
        if new is not old:
            twin = copy.copy(value) if twin is value else twin
            object.__setattr__(twin, name, new)  # a frozen dataclass has no other way
    return twin
