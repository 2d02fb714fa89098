"""One way through the layers' own graphs: from what has arrived at ports to leaves' gradients."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snn_dfa._attach.calls import Arrivals, Call
from snn_dfa._attach.functions import accumulate, added, gradients, second_time
from snn_dfa._attach.steps.products import Notes

if TYPE_CHECKING:
    from snn_dfa._attach.core import Core

__all__ = ["Run"]


class Run:
    """One way through the layers' own graphs.

    Args:
        core: The attachment, of which this is what runs now.
        at: The leaves whose gradients are wanted.
        inside: Those among them at which layers' gradients are accumulated in the pass itself.
    """

    def __init__(self, core: Core, at: Sequence[Tensor], inside: Sequence[Tensor]) -> None:
        self._core, self._at, self._inside = core, at, inside
        self.task = torch._C._current_graph_task_id()
        #: What the loss gives at ports, while that is asked; ``None`` in a layer's own graph.
        self.losses: Arrivals | None = None
        #: Errors at currents, of which weights learn in the end.
        self.notes: Notes | None = None

    def gradients(self, arrived: Arrivals, *, keep: bool, twice: bool) -> list[Tensor | None]:
        """Return the gradients of the leaves.

        Args:
            arrived: The loss's gradients.
            keep: Whether the user keeps the graph.
            twice: Whether parts of the graph have to last for one pass more.
        """
        core, reached, total = self._core, list(arrived), dict[int, Tensor]()
        if any(call.released for call, grads in arrived if any(g is not None for g in grads)):
            raise second_time()
        at = [t for t in self._at if t.requires_grad]  # one may have been frozen since
        inside = {id(t) for t in self._inside}
        own = [t for t in at if id(t) not in inside]
        core.running = self
        try:
            while roots := _roots([a for a in arrived if a[0].layer is None]):
                # Through what lies between the layers and what the network has returned, which
                # may be a value that has left it, come in and left again.
                for value, _ in roots if core.paths.tracing else ():
                    core.paths.note_read(value, core.entry.mine)
                self.losses = [a for a in arrived if a[0].layer is not None]
                _add(total, at, gradients(roots, [*at, core.leaf], keep=True))
                arrived, self.losses = self.losses, None
                reached += arrived
            arrived = _merged(arrived)
            sent = core.broadcast(arrived)
            self.notes = notes = Notes()
            others, passed = _through_records(arrived + sent)
            if roots := _roots(others):
                keeps = twice or bool(self._inside)
                _add(total, own, gradients(roots, [*own, core.trap], keep=keeps))
            self.notes = None  # so that nodes give gradients
            if roots and self._inside:
                accumulate(roots, at=self._inside, keep=twice)
            products = notes.gradients()
            _add(total, own, [products.get(id(t)) for t in own])
        finally:
            core.running = None
        if not keep:
            for call in (*[call for call, _ in reached + sent], *passed):
                call.release()
        return [total.get(id(t)) for t in self._at]

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Let nothing learn by what passes the layers' own graphs."""
        self.notes = Notes(keep=False)
        try:
            yield
        finally:
            self.notes = None

    def at_currents(self, arrived: Arrivals, asked: Sequence[Call]) -> list[Tensor | None]:
        """Return the gradients at the currents of some calls of a layer; nothing learns by them.

        Args:
            arrived: The gradients at the values of the layer's calls.
            asked: The calls.
        """
        found: dict[Call, Tensor | None] = {}
        with self.asking():
            others, _ = _through_records(arrived, found.__setitem__)
            taps = {c: c.tap for c in asked if c.tap is not None}
            if taps and (roots := _roots(others)):
                at = gradients(roots, list(taps.values()), keep=True)
                found |= zip(taps, at, strict=True)
        return [found.get(call) for call in asked]

    def replay(self, replays: Sequence[tuple[Tensor, Tensor]], *, keep: bool) -> None:
        """Go on behind reentrant checkpointing, in an autograd pass of all leaves."""
        values, grads = zip(*replays, strict=True)
        self._core.running = self
        try:
            torch.autograd.backward(values, grads, retain_graph=keep)
        finally:
            self._core.running = None


def _through_records(
    arrived: Arrivals, see: Callable[[Call, Tensor], object] = lambda *_: None
) -> tuple[Arrivals, list[Call]]:
    """Go back through steps that are no nodes, from the last one on.

    Args:
        arrived: The gradients at all calls.
        see: Called with each of these steps' calls and the error at its current.

    Returns:
        What arrives at other calls, and the calls that were gone through.

    Raises:
        BackwardError: if an earlier backward pass has used up a step.
    """
    others: Arrivals = []
    passed: list[Call] = []
    at: dict[int, tuple[Call, list[Tensor | None]]] = {}
    todo: list[int] = []  # numbers of calls, the last one first

    def send(call: Call, index: int, grad: Tensor) -> None:
        if call.released:
            raise second_time()
        if call.record is None:
            others.append((call, (*[None] * index, grad)))
            return
        if call.number not in at:
            at[call.number] = call, [None] * len(call.values)
            heapq.heappush(todo, -call.number)
        known = at[call.number][1]
        known[index] = added(known[index], grad)

    for call, grads in arrived:
        for index, grad in enumerate(grads):
            if grad is not None:
                send(call, index, grad)
    while todo:
        call, (at_spikes, *at_states) = at.pop(-heapq.heappop(todo))
        passed.append(call)
        assert call.record is not None
        total, before = call.record.back(at_spikes, at_states)
        see(call, total)
        for (earlier, index), sent in before:
            send(earlier, index, sent)
    return others, passed


def _merged(arrivals: Arrivals) -> Arrivals:
    """Return each call once, with the sums of the gradients that have arrived at its values."""
    calls: dict[int, tuple[Call, Sequence[Tensor | None]]] = {}
    for call, grads in arrivals:
        known = calls.get(id(call))
        if known is not None:
            grads = [added(a, b) for a, b in zip(known[1], grads, strict=True)]
        calls[id(call)] = call, grads
    return list(calls.values())


def _roots(arrivals: Arrivals) -> list[tuple[Tensor, Tensor]]:
    """Return values with the sums of the gradients that have arrived at them."""
    roots: dict[int, tuple[Tensor, Tensor]] = {}
    for call, grads in arrivals:
        if call.released and any(g is not None for g in grads):
            raise second_time()  # the error of this step is sent to one that is used up
        for value, grad in zip(call.values, grads, strict=False):
            if grad is not None and value.requires_grad:
                known = roots.get(id(value))
                roots[id(value)] = value, grad if known is None else known[1] + grad
    return list(roots.values())


def _add(
    total: dict[int, Tensor], leaves: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> None:
    """Add gradients at leaves, and perhaps at more, to those that are known by identity."""
    for leaf, grad in zip(leaves, grads, strict=False):
        if grad is not None:
            known = total.get(id(leaf))
            if known is not None:  # torch adds a sparse one to a dense one, and not the other way
                grad = grad + known if known.is_sparse else known + grad
            total[id(leaf)] = grad
