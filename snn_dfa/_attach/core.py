"""One attachment: what goes out of a layer, by ports, and what is sent to it."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Container, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from snn_dfa._attach import messages
from snn_dfa._attach.between.paths import Paths
from snn_dfa._attach.broadcast import Broadcast
from snn_dfa._attach.calls import Arrivals, Call, Pass, in_sequences
from snn_dfa._attach.collector import Collector
from snn_dfa._attach.entry import Entry
from snn_dfa._attach.functions import Port
from snn_dfa._attach.hooks import eager
from snn_dfa._attach.layers import Layers, Structure
from snn_dfa._attach.run import Run
from snn_dfa._attach.samples import dims_of, with_samples
from snn_dfa._attach.steps.nodes import Record
from snn_dfa._attach.steps.products import Notes
from snn_dfa._attach.tensors import tensors_in
from snn_dfa.errors import OutOfStepError
from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.rules import Rule, local
from snn_dfa.sequence import Layout

__all__ = ["Core"]


class Core:
    """What is known of one attached network. It holds no module, since graphs hold it.

    Args:
        layers: The layers.
        rule: What is broadcast, ``None`` for nothing.
        feedback: The feedback.
        paths: Finds which weights lie between layers.
        structure: The network's modules, as they were.
        parameters: Those of the network, as they are now.
        aligned: Whether errors go from layer to layer, and nothing is cut.
        traced: Whether a credit looks currents up as the program made them.
        at_current: Whether the error of a spiking output is taken at its current, and not at its
            spikes.
        layouts: Of the forms in the network that run time as samples.
    """

    def __init__(
        self,
        layers: Layers,
        rule: Rule | None,
        feedback: FeedbackWeights,
        paths: Paths,
        structure: Structure,
        parameters: Sequence[Tensor],
        *,
        aligned: bool,
        traced: bool,
        at_current: bool,
        layouts: Sequence[Layout],
    ) -> None:
        self.layers, self.rule, self.feedback, self.paths = layers, rule, feedback, paths
        self._structure, self._layouts = structure, layouts
        self.aligned, self.traced, self.at_current = aligned, traced, at_current
        self.active = True
        self.targets: Tensor | None = None
        self.running: Run | None = None
        self.now, self.numbers = Pass(layers), itertools.count()
        self.inside: str | None = None
        self.shapes: dict[str, list[torch.Size]] = {}  # of what a layer returned, by layer
        self._warned = False
        self._seen: list[tuple[torch.Size, ...]] = []  # shapes for which there is feedback
        self._kinds: Any = None  # stream and parameters of the last pass
        self._lazy = set[int]()  # those among them that no pass had made yet
        self.entry = Entry(self)
        #: By identity leaves that layers learn from, of which this pass has no parameters.
        self._others: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        #: What ports of this pass lead to, beside the parameters of the network.
        self.tokens: dict[int, Tensor] = {}
        self.collector: Collector
        #: Hooks of parameters that autograd is to call none of, and what they were.
        self.silenced: list[tuple[dict[int, Any], dict[int, Any]]] = []
        #: Of passes with other parameters that one loss reads: what gradients are to be written.
        self.waiting: list[tuple[Collector, list[Tensor], Sequence[Tensor | None]]] = []
        self.leaf: Tensor
        self.trap: Tensor
        self.bind(parameters)

    @property
    def sends_nothing(self) -> bool:
        """Whether the rule is that only the output block learns."""
        return self.rule is None and not self.aligned

    @property
    def follows_ways(self) -> bool:
        """Whether the feedback is made of what comes into layers, as each pass makes it."""
        return self.feedback.by_weight and self.rule is not None

    @property
    def takes_ways(self) -> bool:
        """Whether errors take the ways of samples, so that functions may have a derivative each."""
        return self.feedback.by_sample and self.rule not in (None, local)

    @property
    def asks(self) -> bool:
        """Whether the layers' own graphs are asked for gates, and no gradient is made."""
        notes = self.book()
        return notes is not None and not notes.keep

    @property
    def task(self) -> int:
        """The number of the user's backward pass that is going on."""
        return torch._C._current_graph_task_id() if self.running is None else self.running.task

    def bind(self, parameters: Sequence[Tensor]) -> None:
        """Take note of the parameters that want a gradient, where they are others than before."""
        device = parameters[0].device if parameters else torch.device("cpu")
        # Autograd's nodes belong to the stream in which they were made, which is another one while
        # a CUDA graph is captured.
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        kinds = stream, [(id(p), p.dtype, p.device) for p in parameters]
        lazy = {id(p) for p in parameters if type(p) is not Parameter and is_lazy(p)}
        # Parameters that the first pass makes come in after its backward pass: passes before may go
        # on from its states.
        if kinds == self._kinds and (lazy == self._lazy or not self.collector.has_settled):
            return
        first, self._kinds, self._lazy = self._kinds is None, kinds, lazy
        parameters = [p for p in parameters if id(p) not in lazy]
        before: list[weakref.ref[Collector]] = []
        if not first:
            # A state may have a graph that leads to parameters which are frozen now.
            for p in self.collector.parameters:
                if p.is_leaf and not p.requires_grad:
                    self._others[id(p)] = p
            before = [ref for ref in self.collector.before if ref() is not None]
            before.append(weakref.ref(self.collector))
        # First let go of the nodes that autograd has for the old ones: it keeps one for each
        # parameter, of the dtype that the parameter had.
        self.__dict__.pop("collector", None)
        # Two leaves: ports lead to the first, and are passed where it is asked for. What a layer
        # learns through and is no parameter leads to the second. Passes with other parameters have
        # the same, since one loss may read them all.
        if first or self.leaf.device != device:
            self.leaf, self.trap = (
                torch.zeros((), dtype=torch.float32, device=device, requires_grad=True)
                for _ in "12"
            )
        self.collector = Collector(self, parameters, before)

    def book(self) -> Notes | None:
        """Return the notes of the pass that is going on through the layers' own graphs."""
        return None if self.running is None else self.running.notes

    # -- what layers learn from, and is no parameter of the network --------------------------------

    def note_leaf(self, leaf: Tensor) -> bool:
        """Note a leaf that came into a layer; return whether it learns."""
        if leaf is self.leaf or leaf is self.trap:
            return False
        if id(leaf) not in self.collector.known:
            self._others[id(leaf)] = leaf
            if not isinstance(leaf, Parameter) and leaf.dim():
                self.note_entrance(leaf)
        return True

    def note_entrance(self, value: Tensor) -> None:
        """Note a leaf, or a view of one, that comes from outside: autograd may be asked for it."""
        if id(value) not in self.tokens:
            self.tokens[id(value)] = self.collector.entrance(value)

    def other_leaves(self, known: Container[int]) -> list[Tensor]:
        """Return the leaves that layers learn from, but for those that are known by identity."""
        return [t for key, t in self._others.items() if t.requires_grad and key not in known]

    # -- what goes out -----------------------------------------------------------------------------

    def leave(
        self,
        values: Sequence[Tensor],
        spikes: Tensor | None,
        returned: int,
        shown: Sequence[Tensor] = (),
        record: Record | None = None,
    ) -> tuple[Tensor, ...]:
        """Note that the call of a layer that is going on has ended; return its values by a port.

        Args:
            values: Those that are handed out, with the graph that the layer learns from.
            spikes: The first that was returned.
            returned: How many of them were returned.
            shown: The values themselves, where all but the spikes are links.
            record: Of a step that is no node of the graph.
        """
        if self.aligned:
            return tuple(values)
        entry, call, layer = self.entry, self.entry.call, self.entry.layer
        call.values, call.returned, call.links, call.record = values, returned, bool(shown), record
        call.targets, call.spikes = self.targets, spikes
        if spikes is not None:
            call.shape = spikes.shape
            if call.learns:
                call.spikes_version = spikes._version
        if self._layouts:
            call.steps = next((each.steps for each in self._layouts if each.running), None)
        try:
            self.now.note(call)
        except OutOfStepError:  # the call is none that can be: a new pass begins
            self.now = Pass(self.layers, self.now.whole, self.now.repeats)
            raise
        if not self.now.whole and self.now.is_even():
            # Layers are called without the network: step by step.
            now, self.now = self.now, Pass(self.layers)
            entry.forget()
            self._see_unseen(now)
            now.end()
        if spikes is not None:
            counted = values[:returned] if call.linked else ()
            self.shapes[layer] = [call.shape, *[v.shape for v in counted]]
            if call.learns and self.rule is not None:
                self.paths.look_for(layer)
        return self._port(call, shown or values)

    def leave_network(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what the network returns by a port, so that the loss passes no layer's insides."""
        call = Call(None, True, True, self.collector, next(self.numbers))
        call.values, call.returned = values, len(values)
        return self._port(call, values)

    def _port(self, call: Call, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not call.values:
            return ()
        if len(call.values) > 1 and not call.links:
            call.note_shared()
        tokens = [self.collector.gather, *self.tokens.values()]
        tokens += [self.collector.deliver] * call.linked
        ports: tuple[Tensor, ...] = Port.apply(call, values, *tokens)
        return ports

    # -- one forward pass --------------------------------------------------------------------------

    def begin(self, *, repeats: bool) -> Pass:
        """Begin a pass; return the one that was going on, for :meth:`restore`.

        Args:
            repeats: Whether activation checkpointing does a pass again.
        """
        self.collector.restore()
        before, self.now, self.inside = self.now, Pass(self.layers, True, repeats), None
        self.entry.forget()
        return before

    def restore(self, before: Pass) -> None:
        """Go on after a pass, whether or not it came to its end."""
        self.now, self.inside = before if self.now.repeats else Pass(self.layers), None

    @eager
    def end(self, result: Any) -> None:
        """End a pass.

        Args:
            result: What the network returns.

        Raises:
            AttachError: if a layer has run without being called.
            OutOfStepError: if a layer was not called as often as the output.
        """
        if torch.is_grad_enabled() and not self.aligned:
            self._see_unseen(self.now, result)
        try:
            self.now.end()
        except OutOfStepError:
            self._structure.check()  # a layer that is gone says more
            raise
        first = [c[0] for n, c in self.now.calls.items() if n in self.layers.outputs]
        for call in first:
            if call.along is not None:  # the only call of this output
                name = call.layer or ""
                self.shapes[name] = [call.without_time(s) for s in self.shapes[name]]
        if torch.is_grad_enabled() and self.rule is not None:
            for call in first:
                if any([hidden.learns for hidden in call.below.values()]):
                    name, dims = call.layer or "", dims_of(call, self.layers)
                    self.shapes[name] = [with_samples(s, call, dims) for s in self.shapes[name]]
            shapes = [
                (call.shape, *(c.shape for c in call.below.values() if c.learns)) for call in first
            ]
            if shapes != self._seen:
                Broadcast(self).require(first, self.now.calls)
                self._seen = shapes

    def _see_unseen(self, now: Pass, result: Any = None) -> None:
        """See that no layer has run in a pass without being called."""
        if len(now.calls) < len(self.layers.names):
            self._structure.see_unseen(now.calls, now.since)
            ran = bool(now.calls) or now.last is not None  # perhaps without gradients
            if not ran and any(t.requires_grad for t in tensors_in(result)):
                raise messages.none_called(self.layers.names)

    # -- what is broadcast -------------------------------------------------------------------------

    def broadcast(self, arrived: Arrivals) -> Arrivals:
        """Return what each hidden call is sent for the errors that have arrived at the outputs.

        Raises:
            AttachError: if the loss reads a layer that may be a second output, a layer has come
                into the network, or has left it, since DFA was attached, or a hidden layer has a
                hook that would not see what it is sent.
            OutOfStepError: if a hidden layer has other steps or samples than the output.
            FeedbackError: if a matrix does not fit.
        """
        self._settle(arrived)
        self._structure.check()
        if self.paths.tracing:
            self._look_at_heads()
            self.paths.tracing = False
        self.paths.next_round()
        if self.rule is None:
            return []
        if hooked := self._structure.hooked():  # seldom; then the calls are gone through
            _see_that_none_hears(hooked, arrived)
        self._refuse_second_output(arrived)
        # Each sequence has samples of its own, with their own ways.
        parts = in_sequences(arrived, self.layers.outputs) if self.follows_ways else [arrived]
        return [sent for part in parts for sent in Broadcast(self)(part)]

    def _settle(self, arrived: Arrivals) -> None:
        """Settle who is the output, and end a pass that is made without the network's forward.

        Such a pass has no other end where layers were not called equally often, as after an
        exception in the middle of a step. One in which no output was called has nothing to send.
        """
        layers, now, unknown = self.layers, self.now, not self.layers.outputs
        mine = {id(call) for calls in now.calls.values() for call in calls}
        if not now.whole and any(id(call) in mine for call, _ in arrived):
            self.now = Pass(layers)
            if unknown and now.last is not None:
                layers.outputs = (now.last,)
                now = now.parted()
            if any(map(layers.may_be_output, now.calls)):
                now.end()
        elif unknown:
            now.end()

    def _look_at_heads(self) -> None:
        """See which layers the loss reads through weights."""
        outputs, found = self.layers.outputs, self.paths.heads
        for name, of in found.items():
            if of.intersection(outputs) and not self.layers.given:
                raise messages.unnamed_readout(name, outputs[0])
        rest = {name: of.difference(outputs) for name, of in found.items()}
        heads = {name: min(of) for name, of in rest.items() if of}
        if heads and not self._warned:
            self._warned = True
            warnings.warn(messages.heads(heads, outputs), stacklevel=2)

    def _refuse_second_output(self, arrived: Arrivals) -> None:
        if self.layers.named:
            return
        for call, grads in arrived:
            name = call.layer or ""
            alone = name not in self.layers.outputs and name not in self.entry.taken
            if alone and call.learns and any(g is not None for g in grads):
                raise messages.second_output(name, self.layers.outputs[0])


def _see_that_none_hears(hooked: Sequence[str], arrived: Arrivals) -> None:
    """See that no layer is sent an error that would go past a hook of its module."""
    below = [each for call, _ in arrived for each in call.steps_below]
    for name in hooked:
        if any(name in each and each[name].hears for each in below):
            raise messages.hooked_layer(name)
