"""The backward pass: what arrives at ports, when all has arrived, and who gets the gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from snn_dfa._attach import messages
from snn_dfa._attach.calls import Arrivals, Call
from snn_dfa._attach.functions import Token, accumulate, second_time, silenced, will_pass
from snn_dfa._attach.graph import PORT, begun_at, post_order
from snn_dfa._attach.run import Run
from snn_dfa.errors import BackwardError

if TYPE_CHECKING:
    from snn_dfa._attach.core import Core

__all__ = ["Collector"]


class Collector:
    """Collects the loss's gradients at the ports, and turns them into those of the parameters.

    Args:
        core: The attachment.
        parameters: Those that want a gradient; the graph leads to them by ``deliver``, so that
            ``torch.autograd.grad``, hooks on parameters and DistributedDataParallel find them.
        before: Those of earlier passes, which had other parameters.
    """

    def __init__(
        self, core: Core, parameters: Sequence[Tensor], before: list[weakref.ref[Collector]]
    ) -> None:
        self.core, self.before = core, before
        self.parameters = tuple(parameters)
        #: By identity of a parameter that was made of others, the leaf in its place in a pass.
        self.stand_ins = {id(p): p.detach().requires_grad_() for p in parameters if not p.is_leaf}
        self._leaves = [self.stand_ins.get(id(p), p) for p in parameters]
        self.known = {id(leaf) for leaf in self._leaves}
        # Ports of an output lead to `deliver`, and all ports to `gather`. Of the nodes that are
        # ready autograd runs the one that was made last: so `gather` is run before `deliver`.
        self.deliver: Tensor = Token.apply(_if_alive(self._deliver), core.leaf, *parameters)
        self.gather: Tensor = Token.apply(_if_alive(self.finish), core.leaf)
        # Whether a part of the graph is passed by itself, and then with the rest.
        self.bridged = bool(self.stand_ins)
        self._task, self._partial, self._alone = -1, False, False
        #: Those of other networks that read calls of this one, and those that this one reads.
        self._readers: WeakKeyDictionary[Collector, WeakSet[Call]] = WeakKeyDictionary()
        self._sources: WeakSet[Collector] = WeakSet()
        self._given: Arrivals = []  # what has come back from readers
        self._waits = False  # all ports have been reached, and not all readers have
        self._settled = -1  # the pass of autograd in which all was turned into gradients last
        self._replays: list[tuple[Tensor, Tensor]] = []
        self._arrived: Arrivals = []
        self._results: Sequence[Tensor | None] | None = None  # `()` once they are handed out

    @property
    def has_settled(self) -> bool:
        """Whether a backward pass has gone through."""
        return self._settled >= 0

    def replay(self, value: Tensor, grad: Tensor) -> None:
        """Note a value behind reentrant checkpointing, for a pass of its own."""
        if self.core.asks:
            return
        if self._partial:
            raise BackwardError(
                "torch.autograd.grad and backward(inputs=...) do not pass reentrant activation "
                "checkpointing; use checkpoint(..., use_reentrant=False), or loss.backward()"
            )
        self._replays.append((value, grad))

    def entrance(self, value: Tensor) -> Tensor:
        """Return the token of a leaf, or a view of one, that came into the network.

        By it autograd finds a way to the leaf. No gradient passes: it is accumulated at the leaf.
        """
        leaf: Any = value if value.is_leaf else value._base
        see = _if_alive(self._see_entrance, weakref.ref(leaf))
        token: Tensor = Token.apply(see, value, leaf)
        return token

    # -- what autograd calls -----------------------------------------------------------------------

    def arrive(self, call: Call, grads: Sequence[Tensor | None]) -> None:
        """Take the gradients at the values of one call."""
        running = self.core.running
        if running is not None:  # between two layers nothing passes
            if running.losses is not None:
                running.losses.append((call, grads))
            return
        if (reader := self._reader()) is not None:
            self._begin(reader.task)
            self._given.append((call, grads))
            return
        call.see_shared()
        task = torch._C._current_graph_task_id()
        if self._begin(task):
            keeps = torch._C._autograd._get_current_graph_task_keep_graph()
            # Where `deliver` is passed, autograd writes no parameter's gradient before its end.
            self._alone = not keeps and not will_pass(self.deliver.grad_fn)
        elif self._results is not None:
            raise BackwardError(
                "backward: the loss reads a value of a layer after the network's gradients were "
                "handed out, because a value is on another device; return the value from the "
                "network"
            )
        if self._alone and call.learns and call.loses(will_pass):
            raise second_time()
        self._arrived.append((call, grads))

    def _begin(self, task: int) -> bool:
        """Return whether what arrives is the first of a backward pass; forget what was before."""
        begins = task != self._task
        if begins:
            self._task, self._arrived, self._given, self._waits = task, [], [], False
            self._results, self._alone = None, False
        return begins

    def finish(self) -> None:
        """Turn what has arrived into gradients; those that ``deliver`` has not, accumulate."""
        if self.core.running is not None or self._reader() is not None or not self._arrived:
            return
        self._waits = self._has_to_wait()
        if self._waits and self._partial:
            raise _not_passed()
        if not self._waits:
            self._settle()

    def _settle(self) -> None:
        """Turn what has arrived into gradients, now that nothing more is to come."""
        self.restore()
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        others = self.core.other_leaves(self.known)
        linked = any(call.linked for call, _ in self._arrived) and not self._waits
        arrived, self._arrived, self._given = self._arrived + self._given, [], []
        # Parameters that come and go, as those of a network in shards, are accumulated where they
        # are, inside the pass, since hooks around it count on that.
        known = self.core.collector.known
        inside = [t for t in others if isinstance(t, nn.Parameter) and id(t) not in known]
        run = Run(self.core, [*self._leaves, *others], [] if self._partial else inside)
        goes_on = not self._waits and self._reads_earlier()
        twice = keep or self.bridged or goes_on
        results = run.gradients(arrived, keep=keep, twice=twice)
        replays, self._replays = self._replays, []
        if replays:
            run.replay(replays, keep=keep)
        self._settled = run.task
        # Networks that gave values to this one go on with what has come back to them.
        for source in list(self._sources):
            source._go_on(partial=self._partial)
        if goes_on and not (self._partial or self.stand_ins):
            # The last of the passes that the loss reads writes for all: till then errors may come.
            self.core.waiting.append((self, [*self.parameters, *others], results))
            self._results = ()
            return
        if not goes_on:
            self._write_waiting()
        self._hand_over(others, results, linked=linked)

    def _reads_earlier(self) -> bool:
        """Return whether the backward pass reads earlier passes with other parameters, too."""
        before = (ref() for ref in self.before)
        return any(c is not None and c.will_run() for c in before)

    def _write_waiting(self) -> None:
        """Write the gradients of the passes with other parameters that the loss reads, too."""
        waiting = self.core.waiting
        while waiting:
            collector, leaves, grads = waiting.pop()
            if collector._task == self._task:
                _write(leaves, grads)

    def _hand_over(
        self, others: Sequence[Tensor], results: Sequence[Tensor | None], *, linked: bool
    ) -> None:
        """Write the gradients, but for those that ``deliver`` hands out.

        Args:
            others: Leaves that are no parameters of the network.
            results: Gradients of the parameters, then of the others.
            linked: Whether ``deliver`` is run after this.
        """
        if self._waits and self.stand_ins:  # autograd has been at what they were made of
            raise BackwardError(
                "backward: a network whose parameters were made of others, as by "
                "torch.func.functional_call, feeds another network with DFA of its own; attach "
                "DFA to one module that holds both networks"
            )
        own = len(self.parameters)
        if not self._partial:
            _write(others, results[own:])
        elif any(isinstance(t, nn.Parameter) and g is not None
                 for t, g in zip(others, results[own:], strict=True)):  # fmt: skip
            raise _not_passed()  # other leaves have an entrance, by which autograd finds them
        if linked:
            self._results = results[:own]
        else:
            _write(self.parameters, results[:own])

    # -- networks that feed each other -------------------------------------------------------------

    def read_by(self, reader: Collector, call: Call) -> None:
        """Note that another network gets a value of a call, and sends its gradient back."""
        self._readers.setdefault(reader, WeakSet()).add(call)
        reader._sources.add(self)

    def _read(self) -> list[Collector]:
        """Return those that have read a call whose graph is not used up."""
        if not self._readers:
            return []
        for reader, calls in list(self._readers.items()):
            if all(call.released for call in calls):
                del self._readers[reader]
        return list(self._readers)

    def _has_to_wait(self) -> bool:
        """Return whether networks that read this one have still to be gone through in this pass.

        Raises:
            BackwardError: if one of them is read by this one.
        """
        later = self._read()
        for each in later:  # which grows
            if each is self:
                for waits in later:
                    waits._arrived, waits._given = [], []
                raise BackwardError(
                    "backward: networks with DFA of their own read values of each other, so that "
                    "none can be the first in the backward pass; attach DFA to one module that "
                    "holds them"
                )
            if each._settled != self.core.task:
                later += [reader for reader in each._read() if reader not in later]
        return any(each._is_to_come() for each in later if each._settled != self.core.task)

    def _is_to_come(self) -> bool:
        """Return whether something has arrived, or will arrive, in this pass."""
        arrived = self._task == self.core.task and (self._arrived or self._given)
        return bool(arrived) or will_pass(self.gather.grad_fn)

    def is_left_out(self) -> bool:
        """Return whether the loss reads values, and autograd is asked for gradients elsewhere."""
        arrived = self._task == self.core.task and bool(self._arrived)
        return arrived and not will_pass(self.gather.grad_fn)

    def _reader(self) -> Run | None:
        """Return what runs in another network, on its way to this one."""
        if not self._readers:
            return None
        running = (reader.core.running for reader in self._read())
        return next((run for run in running if run is not None), None)

    def _go_on(self, *, partial: bool) -> None:
        """Go on with what a network that this one feeds has sent back, when all of them have."""
        if self._task != self.core.task or not (self._given or self._waits):
            return
        if partial:
            raise _not_passed()
        if self._waits or not will_pass(self.gather.grad_fn):  # else autograd calls `finish`
            self._waits = True  # what leads to the parameters may have been run
            if not self._has_to_wait():
                self._settle()

    def _deliver(self) -> Sequence[Tensor | None]:
        """Return the gradients of what `deliver` leads to, once: of the parameters."""
        nothing = (None,) * (1 + len(self.parameters))
        if self.core.running is not None or self._reader() is not None:
            return nothing
        if self._waits:
            self._silence(self.parameters)
            return nothing
        if any(r.is_left_out() for r in self._read()):
            raise _not_passed()
        if not self._results:
            # Asked for the gradients at some tensors, autograd does not run `gather`.
            self._see_left_out()
            self._partial = True
            try:
                self.finish()
            finally:
                self._partial = False
        results, self._results = self._results, ()
        results = (None, *results) if results else nothing
        self._silence([p for p, g in zip(self.parameters, results[1:], strict=True) if g is None])
        return results

    def _see_left_out(self) -> None:
        """Raise an error for a value of a layer that the loss reads, and that autograd leaves out.

        Of a hidden layer nothing leads to the parameters.
        """
        if will_pass(self.gather.grad_fn):
            return
        for roots in begun_at():
            found = post_order(roots, lambda node: type(node) is PORT)
            ports = [node for node, _ in found if type(node) is PORT]
            passed = [node for node in ports if will_pass(node)]
            if any(node.call.collector is self for node in passed):
                left_out = [n.call for n in ports if n not in passed and n.call.learns]
                if left_out:
                    raise messages.left_out(left_out[0].layer)

    def _see_entrance(self, entrance: weakref.ref[Tensor]) -> None:
        """See that a leaf from outside gets its gradient when all has arrived, and none here."""
        leaf = entrance()
        if leaf is not None and self.core.running is None:
            if not will_pass(self.gather.grad_fn):
                raise _not_passed()
            self._silence([leaf])

    def will_run(self) -> bool:
        """Return whether the pass of autograd that is going on reads values of this one."""
        return will_pass(self.gather.grad_fn) or will_pass(self.deliver.grad_fn)

    def _silence(self, parameters: Sequence[Tensor]) -> None:
        """Let autograd call no hook of parameters without a gradient, until its pass has ended."""
        found = silenced(parameters)
        if found and not self.core.silenced:
            Variable._execution_engine.queue_callback(self.restore)
        self.core.silenced += found

    def restore(self) -> None:
        """Put hooks back."""
        while self.core.silenced:
            hooks, were = self.core.silenced.pop()
            hooks.update(were)


def _if_alive(method: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Return a call of a method that does not keep the method's object alive."""
    kept = weakref.WeakMethod(method)

    def run() -> Any:
        found = kept()
        return None if found is None else found(*args)

    return run


def _not_passed() -> BackwardError:
    return BackwardError(
        "torch.autograd.grad, torch.autograd.functional and backward(inputs=...) do not pass what "
        "comes into the network or learns outside of it; call loss.backward() and read .grad, or "
        "give net(x.detach()); for back-propagation's gradient do so in `with dfa.paused():`"
    )


def _write(leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Let autograd accumulate gradients at leaves, with their hooks."""
    known = [(leaf, g) for leaf, g in zip(leaves, grads, strict=True) if g is not None]
    if known:
        accumulate(known)
