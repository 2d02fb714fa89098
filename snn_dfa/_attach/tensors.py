"""Tensors inside the arguments and results of a module: tuples, lists, dicts and objects."""

from __future__ import annotations

import copy
import operator
from collections import deque
from collections.abc import Callable, ItemsView, Mapping, Sequence, ValuesView
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = ["Held", "Lent", "map_tensors", "tensors_in"]

#: What a module holds and a call replaces: where, its name there, itself and what stands for it.
Held: TypeAlias = tuple[dict[str, Any], str, Tensor, Tensor]

_PLAIN = (int, float, bool, str, bytes, complex, type(None), nn.Module, type)
_HOLD_NONE = (Tensor, *_PLAIN)
#: Of a dictionary's view of its values only a list can have other ones.
_SERIES = (tuple, list, deque, ValuesView, ItemsView)


def map_tensors(
    change: Callable[[Tensor], Tensor],
    value: Any,
    *,
    in_place: bool = False,
    within: tuple[Any, ...] = (),
) -> Any:
    """Return ``value`` with every tensor inside it changed.

    A container or an object in which nothing changes is returned as it is; another one is
    copied. An object is one with attributes, such as a dataclass or a graph's data.

    Args:
        change: Returns what stands for a tensor.
        value: A tensor, or what holds tensors.
        in_place: Whether lists, dicts and objects are changed themselves, and no copies made.
        within: What the value lies in: what holds itself is left there as it is.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return change(value)
    if kind in _PLAIN or isinstance(value, _PLAIN) or any([value is each for each in within]):
        return value
    inside = partial(map_tensors, change, in_place=in_place, within=(*within, value))
    if isinstance(value, _SERIES):
        changed = [change(v) if type(v) is Tensor else inside(v) for v in value]
        if _same(changed, value):
            return value
        if isinstance(value, tuple):
            return kind(*changed) if hasattr(value, "_fields") else kind(changed)
        if not isinstance(value, (list, deque)):
            return changed
        twin: Any = value if in_place else copy.copy(value)
        for i, new in enumerate(changed):
            twin[i] = new
        return twin
    if isinstance(value, dict):
        items = {key: inside(v) for key, v in value.items()}
        if _same(items.values(), value.values()):
            return value
        twin = value if in_place else copy.copy(value)
        twin.update(items)
        return twin
    return _map_object(inside, value, in_place=in_place)


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


def _map_object(inside: Callable[[Any], Any], value: Any, *, in_place: bool) -> Any:
    slots = [s for k in type(value).__mro__ for s in getattr(k, "__slots__", ())]
    names = [*getattr(value, "__dict__", ()), *(s for s in slots if hasattr(value, s))]
    if callable(value):  # a function keeps its attributes to itself
        return value
    twin = value
    for name in names:
        old = getattr(value, name)
        new = inside(old)
        if new is not old:
            twin = copy.copy(value) if twin is value and not in_place else twin
            object.__setattr__(twin, name, new)  # a frozen dataclass has no other way
    return twin


class Lent:
    """What a call is given and its module holds, with other tensors until the call is over.

    A list, a dict or an object stays the same one, so that the program sees what the call writes
    into it, such as the next state.

    Args:
        enter: Returns the tensor that stands for one of the arguments.
        args: Of the call.
        kwargs: Of the call.
        held: What the module holds.
    """

    def __init__(
        self, enter: Callable[[Tensor], Tensor], args: Any, kwargs: Any, held: Sequence[Held] = ()
    ) -> None:
        self._enter, self._old, self.held = enter, dict[int, tuple[Tensor, Tensor]](), held
        self._holders = [v for v in (*args, *kwargs.values()) if _can_be_written(v)]
        self._came_in = [*tensors_in(args), *tensors_in(kwargs)] if self._holders else []
        try:
            self.args = map_tensors(self._change, args, in_place=True)
            # It is this call's own dictionary.
            self.kwargs = map_tensors(self._change, kwargs, in_place=True)
        except BaseException:
            self.put_back()
            raise
        for store, key, _, new in held:
            store[key] = new

    def _change(self, old: Tensor) -> Tensor:
        new = self._enter(old)
        if new is not old:
            self._old[id(new)] = new, old
        return new

    def put_back(self, *, all_held: bool = False) -> None:
        """Put tensors back where the call has left others; ``all_held``: held ones in any case."""
        for store, key, old, new in self.held:
            if all_held or store.get(key) is new:
                store[key] = old
        if self._old:
            self.exchange({key: old for key, (_, old) in self._old.items()})

    def written(self) -> list[Tensor]:
        """Return the tensors that the call has written into what holds tensors."""
        known = {id(t) for t in self._came_in}
        return [t for t in tensors_in(self._holders) if id(t) not in known]

    def exchange(self, others: Mapping[int, Tensor]) -> None:
        """Put other tensors, by the number of the one that is there, into what holds tensors."""
        if self._holders:
            map_tensors(lambda t: others.get(id(t), t), self._holders, in_place=True)


def _can_be_written(value: Any) -> bool:
    """Return whether a call can write tensors into an argument."""
    if type(value) is tuple:
        return any([_can_be_written(each) for each in value])
    return not isinstance(value, _HOLD_NONE)
