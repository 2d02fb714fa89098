"""Steps that are no nodes of the graph: what is known of them is kept, and gone back through here.

A neuron's step that reads a linear layer's result and the states of its own last step, and learns
through nothing else, is such a step. So a layer's steps in a loop are a chain, and autograd has
nothing to do for them. Where something asks for the graph of a step, it becomes a node, and so do
those before it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor

from snn_dfa._attach.functions import added, second_time
from snn_dfa._attach.steps.products import Book, Made, changed_in_place, settle
from snn_dfa._attach.steps.step_node import CompiledStep, Kept

if TYPE_CHECKING:
    from snn_dfa._attach.calls import Call

__all__ = ["Before", "Record", "Way", "with_graph"]

#: A state that comes in again: the call that it is of, and which of the call's values it is.
Before: TypeAlias = "tuple[Call, int]"
#: Calls, and the gradients at their values.
Arrivals: TypeAlias = "list[tuple[Call, Sequence[Tensor | None]]]"


class Record:
    """A step without a node.

    Args:
        spk: The spikes.
        kept: What the way back needs.
        made: What the current was made of; ``None`` where nothing is learned by it.
        before: For each state where it comes from; ``None`` where nothing is learned by it.
        book: Gives the notes of the pass that is going on.
    """

    __slots__ = ("before", "book", "kept", "made", "spk", "versions")

    def __init__(
        self,
        spk: Tensor,
        kept: Kept,
        made: Made | None,
        before: Sequence[Before | None],
        book: Book,
    ) -> None:
        self.spk, self.kept, self.made, self.before, self.book = spk, kept, made, before, book
        self.versions = self._versions()

    def back(
        self, at_spikes: Tensor | None, at_states: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """Note the error at the current; return the gradients at the last states.

        Raises:
            BackwardError: if what the step has read was changed in place.
        """
        self._see_unchanged()
        total, before = self.kept.back(at_spikes, at_states)
        if self.made is not None:
            settle(self.book(), self.made, total)
        return before

    def node(self) -> tuple[Tensor, ...]:
        """Return spikes and links of the states with a graph."""
        self._see_unchanged()
        _, weight, bias, _ = self.made or (None,) * 4
        links = [None if b is None else b[0].values[b[1]] for b in self.before]
        # What was made learned then, also if it has been frozen since.
        frozen = [t for t in (weight, bias) if t is not None and not t.requires_grad]
        for t in frozen:
            t.requires_grad_()
        try:
            found: tuple[Tensor, ...] = CompiledStep.apply(
                [self.spk], self.kept, self.book, self.made, None, None, weight, bias, *links
            )
        finally:
            for t in frozen:
                t.requires_grad_(False)
        return found

    def _versions(self) -> list[int]:
        """Return the version counters of what the program has, too."""
        x = None if self.made is None else self.made.x
        return [t._version for t in (*self.kept[2:], x) if t is not None]

    def _see_unchanged(self) -> None:
        if self._versions() != self.versions:
            raise changed_in_place()


def with_graph(call: Call) -> None:
    """Let a call's step be a node of the graph, and those that it goes on from."""
    todo = [call]
    while todo:
        record: Record | None = todo[-1].record
        earlier = [] if record is None else [b[0] for b in record.before if b is not None]
        earlier = [each for each in earlier if each.record is not None]
        if earlier:
            todo += earlier
            continue
        each = todo.pop()
        if record is not None:
            each.values, each.record = record.node(), None


class Way:
    """The way back through steps that are no nodes, from the last one on.

    ``others`` is what arrives at other calls, ``passed`` are the calls that were gone through.

    Args:
        arrived: Calls, and the gradients at their values.

    Raises:
        BackwardError: if an earlier backward pass has used up a step.
    """

    def __init__(self, arrived: Arrivals) -> None:
        self.others: Arrivals = []
        self.passed: list[Call] = []
        self._at: dict[int, tuple[Call, list[Tensor | None]]] = {}
        self._todo: list[int] = []  # numbers of calls, the last one first
        for call, grads in arrived:
            if call.record is None:
                self.others.append((call, grads))
                continue
            for i, grad in enumerate(grads):
                if grad is not None:
                    self._send(call, i, grad)
        while self._todo:
            self._pass(*self._at.pop(-heapq.heappop(self._todo)))

    def _send(self, call: Call, index: int, grad: Tensor) -> None:
        if call.released:
            raise second_time()
        if call.record is None:
            self.others.append((call, (*[None] * index, grad)))
            return
        if call.number not in self._at:
            self._at[call.number] = call, [None] * len(call.values)
            heapq.heappush(self._todo, -call.number)
        grads = self._at[call.number][1]
        grads[index] = added(grads[index], grad)

    def _pass(self, call: Call, grads: Sequence[Tensor | None]) -> None:
        record = call.record
        assert record is not None
        self.passed.append(call)
        at_spikes, *at_states = grads
        for before, grad in zip(record.before, record.back(at_spikes, at_states), strict=True):
            if before is not None and grad is not None:
                self._send(*before, grad)
