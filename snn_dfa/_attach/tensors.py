"""Tensors inside the arguments and results of a module: tuples, lists, dicts and objects."""

from __future__ import annotations

import copy
import operator
from collections import deque
from collections.abc import Callable, Generator, ItemsView, Iterable, Mapping, Sequence, ValuesView
from types import ModuleType
from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = ["Held", "Lent", "map_tensors", "tensors_in"]

#: What a module holds and a call replaces: where, its name there, itself and what stands for it.
Held: TypeAlias = tuple[dict[str, Any], str, Tensor, Tensor]

#: What has been seen, by identity: itself, so that no other has its place, and what stands for it.
Done: TypeAlias = dict[int, tuple[Any, Any]]

_NUMBERS = (int, float, bool, str, bytes, complex, type(None))
_FLAT = frozenset({Tensor, *_NUMBERS})
_PLAIN = (*_NUMBERS, nn.Module, type, ModuleType)
_HOLD_NONE = (Tensor, *_PLAIN)
#: Of a dictionary's view of its values only a list can have other ones.
_SERIES = (tuple, list, deque, ValuesView, ItemsView)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any, *, in_place: bool = False) -> Any:
    """Return ``value`` with every tensor inside it changed.

    A container or an object in which nothing changes is returned as it is; another one is
    copied, once. An object is one with attributes, such as a dataclass or a graph's data. What
    holds itself is left there as it is.

    Args:
        change: Returns what stands for a tensor.
        value: A tensor, or what holds tensors.
        in_place: Whether lists, dicts and objects are changed themselves, and no copies made.
    """
    if isinstance(value, Tensor):
        return change(value)
    kind = type(value)
    if kind is tuple or kind is dict or kind is list:
        parts = value.values() if kind is dict else value
        if _FLAT.issuperset(map(type, parts)):  # so it is nearly always
            changed = [change(v) if type(v) is Tensor else v for v in parts]
            return value if _same(changed, parts) else _filled(value, changed, in_place=in_place)
    if _holds_none(value):
        return value
    # A chain of objects may be longer than calls may be deep: so no call is inside another one.
    done: Done = {id(value): (value, value)}
    todo, new = [_changed(change, value, done, in_place=in_place)], None
    while todo:
        try:
            inner = todo[-1].send(new)
        except StopIteration as end:
            new = end.value
            todo.pop()
            continue
        if id(inner) in done:
            new = done[id(inner)][1]
        else:
            done[id(inner)] = inner, inner
            todo.append(_changed(change, inner, done, in_place=in_place))
            new = None
    return new


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


def _holds_none(value: Any) -> bool:
    return type(value) in _PLAIN or isinstance(value, _PLAIN)


def _changed(
    change: Callable[[Tensor], Tensor], value: Any, done: Done, *, in_place: bool
) -> Generator[Any, Any, Any]:
    """Return a container or an object with its tensors changed; yield what it holds, for the same.

    Args:
        change: Returns what stands for a tensor.
        value: The container or object.
        done: What has been seen, by identity: itself and what stands for it.
        in_place: Whether lists, dicts and objects are changed themselves.
    """
    parts = list(value) if isinstance(value, _SERIES) else [v for _, v in _named(value)]
    changed = []
    for part in parts:
        if isinstance(part, Tensor):
            changed.append(change(part))
        else:
            changed.append(part if _holds_none(part) else (yield part))
    new = value if _same(changed, parts) else _filled(value, changed, in_place=in_place)
    done[id(value)] = value, new
    return new


def _named(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return what a dict or an object holds, with its key or its name there."""
    if isinstance(value, dict):
        return value.items()
    if callable(value):  # a function keeps its attributes to itself
        return ()
    slots = [s for k in type(value).__mro__ for s in getattr(k, "__slots__", ())]
    names = [*getattr(value, "__dict__", ()), *(s for s in slots if hasattr(value, s))]
    return [(name, getattr(value, name)) for name in names]


def _filled(value: Any, changed: list[Any], *, in_place: bool) -> Any:
    """Return a container or an object with other parts."""
    if isinstance(value, tuple):
        return type(value)(*changed) if hasattr(value, "_fields") else type(value)(changed)
    if isinstance(value, _SERIES) and not isinstance(value, (list, deque)):
        return changed
    twin: Any = value if in_place else copy.copy(value)
    if isinstance(value, (list, deque)):
        for i, new in enumerate(changed):
            twin[i] = new
    elif isinstance(value, dict):
        twin.update(zip(value, changed, strict=True))
    else:
        for (name, old), new in zip(_named(value), changed, strict=True):
            if new is not old:
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
        self.without_graph = False  # whether the call makes no graph
        #: By identity of a tensor: itself, what stands for it, and node and version of that.
        self._lent = dict[int, tuple[Tensor, Tensor, Any, int]]()
        for _, _, old, new in held:
            self._note(old, new)
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

    def _note(self, old: Tensor, new: Tensor) -> None:
        self._lent[id(old)] = old, new, new.grad_fn, _version_of(new)

    def _change(self, old: Tensor) -> Tensor:
        if id(old) in self._old:
            return old  # it stands for another one, in a list that is given twice
        if id(old) in self._lent:
            new = self._lent[id(old)][1]
        else:
            new = self._enter(old)
            self._note(old, new)
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

    def changed(self) -> list[tuple[Tensor, Tensor]]:
        """Return the tensors that the call has changed in place, each with what stood for it."""
        if self.without_graph:
            return [(old, new) for old, new in self._overwritten() if new.is_floating_point()]
        return [(old, new) for old, new, node, _ in self._lent.values() if new.grad_fn is not node]

    def overwritten(self) -> list[Tensor]:
        """Return those with a graph for which one without stood, and stands after a change."""
        found = [] if self.without_graph else self._overwritten()
        return [old for old, new in found if old.requires_grad and not new.requires_grad]

    def _overwritten(self) -> list[tuple[Tensor, Tensor]]:
        found = self._lent.values()
        return [(old, new) for old, new, _, version in found if _version_of(new) != version]

    def written(self) -> list[Tensor]:
        """Return the tensors that the call has written into what holds tensors."""
        known = {id(t) for t in self._came_in}
        return [t for t in tensors_in(self._holders) if id(t) not in known]

    def exchange(self, others: Mapping[int, Tensor]) -> None:
        """Put other tensors, by the number of the one that is there, into what holds tensors."""
        if self._holders:
            map_tensors(lambda t: others.get(id(t), t), self._holders, in_place=True)


def _version_of(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version  # one of inference mode has none


def _can_be_written(value: Any) -> bool:
    """Return whether a call can write tensors into an argument."""
    if type(value) is tuple:
        return any([_can_be_written(each) for each in value])
    return not isinstance(value, _HOLD_NONE)
