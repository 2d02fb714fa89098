"""Whether a network's loop hands each neuron's states from step to step as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from snn_dfa.errors import AttachError
from snn_dfa.sequence.neuron import states_of

__all__ = ["HandedOn"]

#: Functions that only move numbers. Whether they move a state, the values of the network show.
_MOVES = frozenset(
    f"{name}Backward{i}"
    for name in (
        "Alias", "AsStrided", "Cat", "Clone", "Expand", "Index", "IndexSelect", "Permute",
        "ReshapeAlias", "Select", "Slice", "Split", "SplitWithSizes", "Squeeze", "Stack", "T",
        "ToCopy", "Transpose", "Unbind", "UnsafeView", "Unsqueeze", "View",
    )
    for i in range(4)
) | {"CopyBackwards"}  # fmt: skip


class _State(NamedTuple):
    """A tensor as it came out of a neuron."""

    tensor: Tensor
    version: int
    node: Any

    @property
    def is_unchanged(self) -> bool:
        """Whether its memory is as it was."""
        return _version(self.tensor) == self.version

    def is_in(self, t: Tensor) -> bool:
        """Return whether a tensor has this one's memory or, without a graph, its numbers."""
        same = t.data_ptr() == self.tensor.data_ptr() and t.shape == self.tensor.shape
        same = same or (t.grad_fn is None and torch.equal(t, self.tensor))
        return same and self.is_unchanged


class HandedOn:
    """Watches the neurons of a network in its loop over time.

    A change that does not reach the states of the comparison, such as a clamp, shows in no value.

    Args:
        net: The network.

    Example:
        >>> net = nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True))
        >>> handed_on = HandedOn(net)
        >>> outputs = [net(torch.rand(3, 2)) for _ in range(4)]
        >>> handed_on.see(num_steps=4)
    """

    def __init__(self, net: nn.Module) -> None:
        self._calls: dict[str, list[bool]] = {}  # whether each got what had come out before
        self._given: dict[str, list[_State]] = {}
        self._neurons = {n: m for n, m in net.named_modules() if isinstance(m, snn.SpikingNeuron)}
        for name, neuron in self._neurons.items():
            self._watch(name, neuron)

    def _watch(self, name: str, neuron: nn.Module) -> None:
        def before(_: Any, args: Any, kwargs: Any) -> None:
            states = list(_tensors((args[1:], kwargs), neuron))
            given = self._given.setdefault(name, list(map(_noted, states)))  # at first any
            known = [any(s.is_in(t) for s in reversed(given)) or self._are_in(t) for t in states]
            self._calls.setdefault(name, []).append(all(known))

        def after(_: Any, __: Any, result: Any) -> None:
            self._given[name] += map(_noted, _tensors(result, neuron))

        neuron.register_forward_pre_hook(before, with_kwargs=True)
        neuron.register_forward_hook(after)

    def _are_in(self, t: Tensor) -> bool:
        """Return whether functions that only move numbers made a tensor of states alone."""
        states = {s.node: s for given in self._given.values() for s in given}
        todo, seen = [t.grad_fn], set[Any]()
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in states:
                if not states[node].is_unchanged:
                    return False
            elif not _moves(node):
                return False
            else:
                todo += [n for n, _ in node.next_functions]
        return t.grad_fn is not None

    def see(self, num_steps: int) -> None:
        """See that all was handed on since the last call of this method.

        Args:
            num_steps: So many steps there were.

        Raises:
            AttachError: naming a neuron whose states were changed.
        """
        calls = self._calls
        self._calls, self._given = {}, {}
        for name, known in calls.items():
            a_step = max(len(known) // num_steps, 1)  # of calls: a neuron may have several places
            if not all(known[a_step:]):
                raise AttachError(
                    f"over_time: the network changes the states of {name!r}, a "
                    f"{type(self._neurons[name]).__name__}, between two steps, and the form over "
                    f"time does not; expected that each step gets what the last one gave. Make "
                    f"the change in a class derived from snntorch.SpikingNeuron, or loop over time "
                    f"around the network"
                )


def _tensors(values: Any, neuron: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of arguments or results, and the states inside a neuron."""
    hidden = states_of(neuron) if getattr(neuron, "init_hidden", True) else ()
    for value in tree_flatten((values, [state for _, state in hidden]))[0]:
        if isinstance(value, Tensor):
            yield value


def _noted(t: Tensor) -> _State:
    return _State(t, _version(t), t.grad_fn)


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _moves(node: Any) -> bool:
    """Return whether a function only moves numbers, or fills a part of a tensor with others."""
    name = node.name().rpartition("::")[2]
    return name in _MOVES or (name == "CopySlices" and len(node.next_functions) > 1)
