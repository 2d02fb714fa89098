"""Where a layer begins and ends: what comes in, what goes out, and what is sent to it.

Each call of a layer is an island of autograd's graph. What it returns, and every state that it
leaves in its attributes, is handed out by a :class:`~snn_dfa._attach.functions.Port`, where the
graph ends. What comes in is looked up in the graph, never by the identity of an object:

- the layer's own value, as it was handed out: exchanged for the original;
- a value that the program made of the layer's own: passes a ``Bridge``;
- everything else: its graph ends at other layers' ports, and is left as it is.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import Parameter

from snn_dfa._attach import messages
from snn_dfa._attach.broadcast import Broadcast, is_steady
from snn_dfa._attach.calls import Call, Layers, Pass
from snn_dfa._attach.collector import Arrivals, Collector, Run
from snn_dfa._attach.functions import Bridge, Guard, Port, Relink, Replay, Stale, gradients
from snn_dfa._attach.graph import PORT, origin_of
from snn_dfa._attach.paths import Paths
from snn_dfa._attach.products import Current, Made, Notes, made_of
from snn_dfa._attach.ways import Passage, passage_of, ways_of
from snn_dfa.errors import AttachError, BackwardError, OutOfStepError
from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.feedback.stand_in import Ways
from snn_dfa.rules import Rule
from snn_dfa.sequence import Layout

__all__ = ["Core"]

#: Layer to gradients at its currents.
Gates: TypeAlias = dict[str, list[Tensor]]


class Core:
    """What is known of one attached network. It holds no module, since graphs hold it.

    Args:
        layers: The layers.
        rule: What is broadcast, ``None`` for nothing.
        feedback: The feedback.
        paths: Finds which weights lie between layers.
        parameters: Those of the network, as they are now.
    """

    def __init__(
        self,
        layers: Layers,
        rule: Rule | None,
        feedback: FeedbackWeights,
        paths: Paths,
        parameters: Sequence[Tensor],
    ) -> None:
        self.layers, self._rule, self.feedback, self.paths = layers, rule, feedback, paths
        self.active = True
        #: Takes the errors of outputs where they are to be taken.
        self.errors_of: Callable[[Arrivals], Arrivals] | None = None
        #: Raises an error if the network has other layers now than when it was attached to.
        self.see_that_it_is_whole: Callable[[], None] = lambda: None
        self.aligned = False  # errors go from layer to layer, and nothing is cut
        self.knows_currents = False  # a credit looks currents up as the program made them
        self.targets: Tensor | None = None
        self.layouts: list[Layout] = []  # of the forms in the network that run time as samples
        self.running: Run | None = None
        self.asks = False  # the layers' own graphs are asked for gates, and no gradient is made
        self.now, self._numbers = Pass(), itertools.count()
        self.within = False  # a pass of the network is going on
        self.repeats = False  # the pass is one that activation checkpointing does again
        self.inside: str | None = None
        self._shapes: dict[str, list[torch.Size]] = {}  # of what a layer returned, by layer
        self._taken: set[str] = set()  # layers whose values another layer was given
        self._others: dict[int, weakref.ref[Tensor]] = {}  # leaves that are no parameters
        #: By identity of a leaf, or a view, that came into this pass from outside, its token.
        self._entrances: dict[int, Tensor] = {}
        self._intervals: list[tuple[int, int, str]] = []  # calls whose insides may come out
        self._warned = False
        # The call that is going on: whether it learns, and the nodes that it learns through.
        self._learning, self._entered = False, list[Any]()
        self._block = self._guards = False
        self._read: dict[str, set[int]] = {}  # of each other layer the calls that it reads
        self._seen: list[tuple[torch.Size, ...]] = []  # shapes for which there is feedback
        self._kinds: list[tuple[int, torch.dtype, torch.device]] | None = None
        self.collector: Collector
        self.bind(parameters)

    @property
    def sends_nothing(self) -> bool:
        """Whether the rule is that only the output block learns."""
        return self._rule is None and not self.aligned

    def bind(self, parameters: Sequence[Tensor]) -> None:
        """Take note of the parameters that want a gradient, where they are others than before."""
        kinds = [(id(p), p.dtype, p.device) for p in parameters]
        if kinds == self._kinds:
            return
        self._kinds = kinds
        # First let go of the nodes that autograd has for the old ones: it keeps one for each
        # parameter, of the dtype that the parameter had.
        self.__dict__.pop("collector", None)
        device = parameters[0].device if parameters else torch.device("cpu")
        # Two leaves: ports lead to the first, and are passed where it is asked for. What a layer
        # learns through and is no parameter leads to the second.
        self.leaf, self.trap = (
            torch.zeros((), dtype=torch.float32, device=device, requires_grad=True) for _ in "12"
        )
        self.collector = Collector(self, parameters)

    def others(self, collector: Collector) -> list[Tensor]:
        """Return the leaves that layers learn from, parameters of the network apart."""
        found = {key: ref() for key, ref in self._others.items()}
        self._others = {k: self._others[k] for k, leaf in found.items() if leaf is not None}
        return [leaf for k, leaf in found.items() if leaf is not None and k not in collector.known]

    # -- what comes into a layer -------------------------------------------------------------------

    def _mine(self, node: Any) -> bool:
        core: Core = node.call.collector.core
        return core is self

    def is_port(self, value: Tensor) -> bool:
        """Return whether a value is one that a layer has handed out, as it was handed out."""
        node: Any = value.grad_fn
        return type(node) is PORT and node.call.layer is not None and self._mine(node)

    def own(self, layer: str | None, value: Tensor) -> Tensor | None:
        """Return the original of a value that a layer (``None``: the network) has handed out."""
        node: Any = value.grad_fn
        if type(node) is not PORT or node.call.layer != layer or not self._mine(node):
            return None
        if node.call.released:
            stale: Tensor = Stale.apply([value], self.trap)
            return stale
        original: Tensor = node.call.values[value.output_nr]
        if node.call.is_link(value.output_nr):
            relinked: Tensor = Relink.apply([value], original)
            return relinked
        return original if original.data_ptr() == value.data_ptr() else None

    def link(self, layer: str, value: Tensor) -> Tensor | None:
        """Return the graph of a state that comes back, where it is kept without its value."""
        node: Any = value.grad_fn
        if type(node) is not PORT or node.call.layer != layer or node.call.released:
            return None
        if not node.call.is_link(value.output_nr) or not self._mine(node):
            return None
        self._go_on(node.call)
        if value._backward_hooks:
            return self._with_hooks(layer, value)
        found: Tensor = node.call.values[value.output_nr]
        return found

    def _with_hooks(self, layer: str, value: Tensor) -> Tensor:
        """Return a state's original with the user's hooks on it, and no longer on the state.

        So they are called once, with the sum of what the loss and the later steps send. In the
        plain network that sum has one part more, from the spikes of the same step. So a hook may
        look, and one that changes the gradient raises an error.
        """

        def looks(hook: Callable[[Tensor], Any], grad: Tensor) -> None:
            if not self.asks and hook(grad) is not None:
                raise BackwardError(messages.hooked(layer))

        node: Any = value.grad_fn
        call, index = node.call, value.output_nr
        original = call.values[index]
        if original is call.spikes and self.errors_of is not None:
            return cast("Tensor", original)  # by which the output's current is known
        hooked: Tensor = original.view_as(original)
        hooks = cast("dict[int, Callable[[Tensor], Any]]", value._backward_hooks)
        for hook in hooks.values():
            hooked.register_hook(partial(looks, hook))  # type: ignore[no-untyped-call]
        hooks.clear()
        call.values = [*call.values[:index], hooked, *call.values[index + 1 :]]
        if original is call.spikes:
            call.spikes = hooked
        return hooked

    def enter(self, layer: str, value: Tensor) -> Tensor:
        """Return a value that comes into a layer, with the graph that the layer learns from."""
        if self.aligned:
            return value
        if value.grad_fn is None:
            if value.requires_grad:
                self._note_leaf(value)
            return self._guarded(layer, value)
        original = self.own(layer, value)
        if original is not None:
            node: Any = value.grad_fn
            self._go_on(node.call)
            hooked = value._backward_hooks and not node.call.released
            return self._with_hooks(layer, value) if hooked else original
        return self._enter_made(layer, value)

    def _enter_made(self, layer: str, value: Tensor) -> Tensor:
        """Return a value that the program made of others, as it comes into a layer."""
        if self.paths.tracing:
            self.paths.note(layer, value, self._mine)
        made = self._made(layer, value)
        if made is not None:
            check = partial(self._refuse_insides_read, layer) if self._guards else None
            current: Tensor = Current.apply([value], self.book, check, *made)
            return current
        return self._guarded(layer, self._enter_graph(layer, value))

    def passage(self, layer: str, value: Any) -> Passage | None:
        """Return how samples come into a layer, if the feedback has ways of samples."""
        asked = self.feedback.by_sample and self._rule is not None and not self.aligned
        if not asked or not isinstance(value, Tensor):
            return None
        return passage_of(value, layer, self._mine)

    def enter_current(self, layer: str, value: Tensor) -> tuple[Tensor, Made | None]:
        """Return a value that comes into a layer, or it without its graph and what made it."""
        if value.grad_fn is None or type(value.grad_fn) is PORT:
            return self.enter(layer, value), None
        if self.paths.tracing:
            self.paths.note(layer, value, self._mine)
        made = self._made(layer, value)
        return (self._enter_graph(layer, value), None) if made is None else (value.detach(), made)

    def _enter_graph(self, layer: str, value: Tensor) -> Tensor:
        """Return a value with a graph of any kind, cut or bridged where layers lie behind it."""
        if type(value.grad_fn) is not PORT:
            self._entered.append(value.grad_fn)
        check = partial(self._refuse_insides, layer) if self._intervals else None
        origin = origin_of(value, self._mine, check=check)
        for leaf in origin.leaves.values():
            self._note_leaf(leaf)
        own: dict[Any, Tensor] = {}
        for node, index in origin.ports:
            of = node.call.layer
            if of == layer or of is None:
                self._go_on(node.call)
                own[node, index] = self._original(layer, node, index)
            else:
                self._taken.add(of)
                self._read.setdefault(of, set()).add(node.call.number)
        own = {edge: t for edge, t in own.items() if t.requires_grad}
        if origin.reentrant:
            replayed: Tensor = Replay.apply(self.collector.replay, [value], self.trap)
            return replayed
        if not own and not self._block:
            return value
        if not own and not origin.leaves:
            if not self.layers.may_be_output(layer):
                return value.detach()
            # With a graph, so that a loss that reads a value inside is seen.
            traced: Tensor = Relink.apply([value], self.trap.to(value.dtype).expand(value.shape))
            return traced
        # From inside a block, whose values may come out by a hook on a module in it, no path leads
        # to another layer.
        self.collector.bridged = True
        at = (*(GradientEdge(*edge) for edge in own), *origin.leaves.values())
        bridged: Tensor = Bridge.apply([value], at, *own.values(), *origin.leaves.values())
        return bridged

    def _made(self, layer: str, value: Tensor) -> Made | None:
        """Return what a linear layer made a value of, if no more than that has to be known."""
        if self.knows_currents:
            return None
        found = made_of(value, layer, self._mine, self.collector.known)
        if found is None:
            return None
        if self._intervals:
            self._refuse_insides(layer, value.grad_fn)
        self._learning = True
        made, source = found
        if source is not None:
            self._taken.add(source.call.layer)
        return made

    def book(self) -> Notes | None:
        """Return the notes of the pass that is going on through the layers' own graphs."""
        return None if self.running is None else self.running.notes

    def call(self, layer: str, *, learns: bool, closed: bool, block: bool) -> None:
        """Begin a call of a layer.

        Args:
            layer: Its name.
            learns: Whether the layer has parameters of its own that want a gradient.
            closed: Whether values come out by its result and its attributes alone.
            block: Whether it is not closed and holds modules, which hooks may look at.

        Raises:
            AttachError: if another layer is at work.
        """
        if self.inside is not None:
            raise messages.nested(layer, self.inside)
        self._learning, self._entered, self._read = learns, [], {}
        self._block, self._guards = block, not (closed or block)

    def _original(self, layer: str, node: Any, index: int) -> Tensor:
        if node.call.released:
            lost = torch.zeros((), device=self.leaf.device).expand(node.call.sizes[index])
            stale: Tensor = Stale.apply([lost], self.trap)
            return stale
        original: Tensor = node.call.values[index]
        return original if node.call.layer == layer else self.enter(layer, original)

    def learns(self, value: Tensor) -> bool:
        """Return whether a value was made of anything that learns, layers apart."""
        if value.grad_fn is None:
            return value.requires_grad
        return bool(origin_of(value, self._mine).leaves)

    def _go_on(self, earlier: Call) -> None:
        """Note that the call goes on from an earlier one's values."""
        self._learning |= earlier.learns
        entered = self._entered
        if earlier.entered and not (entered and entered[-1] is earlier.entered):
            entered.append(earlier.entered)

    def _guarded(self, layer: str, value: Tensor) -> Tensor:
        """Return a value on its way into a layer; backward, no loss comes by from inside it.

        A layer's own state needs no guard: what lies behind it came in by guards of earlier calls.
        """
        if not (self._guards and value.requires_grad):
            return value
        guarded: Tensor = Guard.apply(partial(self._refuse_insides_read, layer), value)
        return guarded

    def _refuse_insides_read(self, layer: str) -> None:
        if self.running is None or self.running.losses is not None:
            raise BackwardError(
                f"layer {layer!r}: the loss reads a value inside the layer that the layer neither "
                f"returns nor keeps as an attribute, so that back-propagation would go on into the "
                f"layers before; return the value from {layer!r}, or keep it as an attribute"
            )

    def _refuse_reading(self, layer: str, _: Tensor) -> None:
        """Raise an error for a loss that reads an output's value before it is handed out."""
        if self.running is None:
            raise BackwardError(
                f"output {layer!r}: the loss reads a value inside the layer, for instance one that "
                f"a hook has kept, and not the value that {layer!r} returns; let the loss read the "
                f"value that {layer!r} returns"
            )

    def _note_leaf(self, leaf: Tensor) -> None:
        own = leaf is self.leaf or leaf is self.trap
        self._learning |= not own
        if id(leaf) not in self.collector.known and not own:
            self._others[id(leaf)] = weakref.ref(leaf)
            if not isinstance(leaf, Parameter):
                self.note_entrance(leaf)

    def note_entrance(self, value: Tensor) -> None:
        """Note a leaf, or a view of one, that comes from outside: autograd may be asked for it."""
        if id(value) not in self._entrances:
            self._entrances[id(value)] = self.collector.entrance(value)

    def _refuse_insides(self, layer: str, node: Any) -> None:
        """Raise an error for a node inside a call of another layer."""
        number = node._sequence_nr()
        at = bisect_right(self._intervals, (number, float("inf"), "")) - 1
        if at >= 0 and self._intervals[at][0] <= number < self._intervals[at][1]:
            of = self._intervals[at][2]
            if of != layer:
                raise AttachError(
                    f"layer {layer!r}: a value from inside layer {of!r}, which {of!r} neither "
                    f"returns nor keeps as an attribute, comes into it; return the value from "
                    f"{of!r}, or name the modules inside {of!r} with hidden="
                )

    def note_insides(self, layer: str, since: int) -> None:
        """Note a call whose insides are not known by its nodes."""
        self._intervals.append((since, torch.autograd._get_sequence_nr(), layer))  # type: ignore[attr-defined]

    def note_leaves(self, values: Sequence[Tensor], ends: set[Any]) -> None:
        """Note what a call learns from inside, beside the parameters of its module.

        Args:
            values: What the call returned.
            ends: Nodes of what came in.
        """
        for value in values:
            if value.grad_fn is not None:
                found = origin_of(value, self._mine, ends, self._entered.append)
                for leaf in found.leaves.values():
                    self._note_leaf(leaf)

    # -- what goes out -----------------------------------------------------------------------------

    def leave(
        self,
        layer: str,
        values: Sequence[Tensor],
        spikes: Tensor | None,
        returned: int,
        shown: Sequence[Tensor] = (),
        passage: Passage | None = None,
    ) -> tuple[Tensor, ...]:
        """Note a call of a layer; return its values by a port.

        Args:
            layer: Its name.
            values: Those that are handed out, with the graph that the layer learns from.
            spikes: The first that was returned.
            returned: How many of them were returned.
            shown: The values themselves, where all but the spikes are links.
            passage: How samples came in.
        """
        if self.aligned:
            return tuple(values)
        linked = self.layers.may_be_output(layer)
        number = next(self._numbers)
        call = Call(layer, values, spikes, returned, self._learning, linked, self.collector, number)
        call.targets, call.entered, call.links = self.targets, self._entered, bool(shown)
        call.passage = passage
        call.steps = next((each.steps for each in self.layouts if each.running), None)
        call.reads = max(map(len, self._read.values()), default=0)
        self.now.note(call, self.layers)
        if linked and self._block:  # of other layers, what comes in has guards
            for value in values:
                if value.requires_grad:
                    value.register_hook(partial(self._refuse_reading, layer))  # type: ignore[no-untyped-call]
        if not self.within and self.now.is_even(self.layers):
            now, self.now = self.now, Pass()  # layers are called without the network: step by step
            self._intervals, self._entrances = [], {}
            now.end(self.layers)
        if spikes is not None:
            self._shapes[layer] = [spikes.shape, *(v.shape for v in values[:returned])]
            if call.learns and self._rule is not None:
                self.paths.look_for(layer)
        return self._port(call, shown or values)

    def leave_network(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what the network returns by a port, so that the loss passes no layer's insides."""
        if self.paths.tracing:
            for value in values:
                self.paths.note_returned(value, self._mine)
        number = next(self._numbers)
        call = Call(None, values, None, len(values), True, True, self.collector, number)
        return self._port(call, values)

    def _port(self, call: Call, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if not call.values:
            return ()
        tokens = [self.collector.gather, *self._entrances.values()]
        tokens += [self.collector.deliver] * call.linked
        ports: tuple[Tensor, ...] = Port.apply(call.collector, call, values, *tokens)
        return ports

    # -- one forward pass --------------------------------------------------------------------------

    def begin(self, *, repeats: bool) -> tuple[Pass, bool]:
        """Begin a pass; return the one that was going on, for :meth:`restore`.

        Args:
            repeats: Whether activation checkpointing does a pass again.
        """
        self.collector.restore()
        before = self.now, self.repeats
        self.now, self.repeats, self.within, self.inside = Pass(), repeats, True, None
        self._intervals, self._entrances = [], {}
        return before

    def restore(self, before: tuple[Pass, bool]) -> None:
        """Go on after a pass, whether or not it came to its end."""
        again, self.inside, self.within = self.repeats, None, False
        self.now, self.repeats = before if again else (Pass(), False)

    def end(self) -> None:
        """End a pass.

        Raises:
            OutOfStepError: if a layer was not called as often as the output.
        """
        try:
            self.now.end(self.layers, whole=True)
        except OutOfStepError:
            self.see_that_it_is_whole()  # a layer that is gone says more
            raise
        if torch.is_grad_enabled() and self._rule is not None and not self.aligned:
            first = [c[0] for n, c in self.now.calls.items() if n in self.layers.outputs]
            shapes = [
                (call.shape, *(c.shape for c in call.below.values() if c.learns)) for call in first
            ]
            if shapes != self._seen:
                self._broadcast().require(first)
                self._seen = shapes

    def _broadcast(self, *, steady: bool = False) -> Broadcast:
        assert self._rule is not None
        return Broadcast(
            self.layers, self._rule, self.feedback, self._shapes, self.targets, self._ways,
            steady=steady,
        )  # fmt: skip

    def _ways(self, calls: Mapping[str, Sequence[Call]], batch: int, dims: int) -> Ways:
        """Return how samples have passed layers, as means over the steps.

        Args:
            calls: Of each layer, one for each step.
            batch: How many samples there are.
            dims: How many dimensions of a call are samples and steps.
        """
        passages: dict[str, list[Passage]] = {}
        gates: dict[str, list[Tensor]] = {}
        for layer, each in calls.items():
            known = [call.passage for call in each if call.passage is not None]
            if len(known) == len(each):
                passages[layer] = known
                if all(p.tap is not None for p in known):
                    gates |= self._gates(layer, each, [p.tap for p in known])
        return ways_of(passages, gates, batch, dims)

    def _gates(self, layer: str, calls: Sequence[Call], taps: Sequence[Any]) -> Gates:
        """Return the gradients at a layer's currents of the sum of its spikes, where there are."""
        spikes = [c.spikes for c in calls if c.spikes is not None and c.spikes.requires_grad]
        if len(spikes) < len(calls):
            return {}
        assert self.running is not None
        self.running.notes, self.asks = Notes(), True  # notes that nothing is made of
        try:
            found = gradients([(s, torch.ones_like(s)) for s in spikes], taps, keep=True)
        finally:
            self.running.notes, self.asks = None, False
        grads = [g for g in found if g is not None]
        return {layer: grads} if len(grads) == len(taps) else {}

    # -- what is broadcast -------------------------------------------------------------------------

    def broadcast(self, arrived: Arrivals) -> Arrivals:
        """Return what each hidden call is sent for the errors that have arrived at the outputs.

        Raises:
            AttachError: if the loss reads a layer that may be a second output, or a layer has come
                into the network, or has left it, since DFA was attached.
            OutOfStepError: if a hidden layer has other steps or samples than the output.
            FeedbackError: if a matrix does not fit.
        """
        self._settle(arrived)
        self.see_that_it_is_whole()
        if self.paths.tracing:
            self._look_at_heads()
            self.paths.tracing = False
        if self._rule is None:
            return []
        self._refuse_second_output(arrived)
        steady = self.feedback.by_sample and is_steady(
            [a for a in arrived if a[0].layer in self.layers.outputs]
        )
        if self.errors_of is not None:
            arrived = self.errors_of(arrived)
        return self._broadcast(steady=steady)(arrived)

    def _settle(self, arrived: Arrivals) -> None:
        """Settle who is the output, and end a pass that is made without the network's forward.

        Such a pass has no other end where layers were not called equally often, as after an
        exception in the middle of a step.
        """
        may_be_output = self.layers.may_be_output
        last = {id(c) for n, calls in self.now.calls.items() if may_be_output(n) for c in calls}
        now, unknown = self.now, not self.layers.outputs
        ends = not self.within and any(id(call) in last for call, _ in arrived)
        if ends:
            self.now = Pass()
        if ends or unknown:
            now.end(self.layers)

    def _look_at_heads(self) -> None:
        """See which layers the loss reads through weights."""
        outputs, found = self.layers.outputs, self.paths.heads
        for name, of in found.items():
            if of in outputs and not self.layers.given:
                raise AttachError(messages.unnamed_readout(name, of))
        heads = {name: of for name, of in found.items() if of not in outputs}
        if heads and not self._warned:
            self._warned = True
            warnings.warn(messages.heads(heads, outputs), stacklevel=2)

    def _refuse_second_output(self, arrived: Arrivals) -> None:
        if self.layers.named:
            return
        for call, grads in arrived:
            name = call.layer or ""
            alone = name not in self.layers.outputs and name not in self._taken
            if alone and call.learns and any(g is not None for g in grads):
                raise AttachError(messages.second_output(name, self.layers.outputs[0]))
