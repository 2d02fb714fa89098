"""The calls of one forward pass: which call of an output belongs with which of a hidden layer."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from snn_dfa._attach import messages
from snn_dfa._attach.called_once import find_steps
from snn_dfa._attach.layers import Layers
from snn_dfa._attach.steps.nodes import Record

if TYPE_CHECKING:
    from snn_dfa._attach.between.reads import Read
    from snn_dfa._attach.between.ways import Passage
    from snn_dfa._attach.collector import Collector

__all__ = ["Arrivals", "Call", "Pass", "in_sequences", "reached", "with_earlier"]


class Call:
    """One call of a layer, from its begin on; with ``layer=None`` what the network has returned.

    Args:
        layer: Name of the layer.
        learns: Whether anything but other layers goes into it that wants a gradient.
        linked: Whether the graph leads from the port to the parameters.
        collector: Receives what comes back.
        number: Of the call, in their order.
    """

    __slots__ = (
        "__weakref__", "along", "below", "came_in", "chosen", "collector", "earlier", "entered",
        "first", "inputs", "later", "layer", "learns", "leaves", "linked", "links", "number",
        "passage", "read", "record", "released", "returned", "shape", "shared", "sources", "spikes",
        "spikes_version", "steps", "supposed", "tap", "targets", "values",
    )  # fmt: skip

    def __init__(
        self, layer: str | None, learns: bool, linked: bool, collector: Collector, number: int
    ) -> None:
        self.layer, self.collector, self.number = layer, collector, number
        self.learns, self.linked = learns, linked
        self.first = number  # of the first call of its pass
        self.sources: set[Call] = set()  # the calls of other layers that its input was made of
        self.entered: list[Any] = []  # nodes that the call learns through
        self.leaves: set[int] = set()  # identity of those that its input was made of, layers apart
        self.earlier: list[Call] = []  # from whose values it goes on
        # What came in, and how samples did, where the feedback asks.
        self.read: Read | None = None
        self.passage: Passage | None = None
        #: The tensors that have a port; where the spikes have one, they come first. ``returned``
        #: counts those that were returned; the others are states.
        self.values: Sequence[Tensor] = ()
        self.returned = 0
        self.shared: list[int] | None = None  # of values that share memory, as they were returned
        self.spikes: Tensor | None = None  # the first tensor that was returned
        self.spikes_version: int  # of these spikes as the layer has handed them out, if it learns
        self.shape = torch.Size()
        self.came_in = torch.Size()  # the shape of the first tensor; of what may be an output
        self.links = False  # whether all values but the spikes are their graphs alone
        self.record: Record | None = None  # of a step that is no node of the graph
        #: Where the gradient at the current can be asked for, of a step that is one.
        self.tap: Any = None
        self.released = False
        self.targets: Tensor | None = None
        self.steps: int | None = None  # T, where time is part of the samples
        self.below: dict[str, Call] = {}
        #: Of an output that is called once for several steps: the hidden calls of the later ones.
        self.later: list[dict[str, Call]] = []
        #: Of one that was given all steps and has returned a value of each: the dimension of time.
        self.along: int | None = None
        #: Of one that was given another step of each sample: which of them, by sample.
        self.chosen: list[int] | None = None
        self.inputs: list[Any] = []  # edges of what came in; of what may be an output
        self.supposed = False  # an output has the call by order alone, and does not read it

    @property
    def hears(self) -> bool:
        """Whether an error at the spikes reaches anything: they have a graph, or had one."""
        return self.released or (bool(self.values) and self.values[0] is self.spikes)

    @property
    def steps_below(self) -> list[dict[str, Call]]:
        """The hidden calls of each step that an output's call belongs with."""
        return [self.below, *self.later]

    def without_time(self, shape: torch.Size) -> torch.Size:
        """Return the shape of one step of a value that the call has returned."""
        along = self.along
        return shape if along is None else torch.Size((*shape[:along], *shape[along + 1 :]))

    def is_lost(self, collector: Collector) -> bool:
        """Return whether the graph is used up, or ends at parameters that this pass has not.

        Args:
            collector: Of the pass that is going on.
        """
        return self.released or (self.collector is not collector and bool(self.collector.stand_ins))

    def original(self, index: int) -> Tensor:
        """Return a value with the layer's own graph."""
        if self.record is not None:
            _make_nodes(self)
        return self.values[index]

    def is_link(self, index: int) -> bool:
        """Return whether a value is kept as a tensor of its shape and graph, without its memory."""
        return self.links and index > 0

    def hears_at(self, index: int) -> bool:
        """Return whether an error at one of the values reaches anything."""
        return self.hears and (not index or self.released or self.is_state(index))

    def is_state(self, index: int) -> bool:
        """Return whether an error can be sent at a value beside the spikes, which has their shape.

        Not every value of a call has a graph, as where a credit other than the membrane's is given.
        """
        if not 0 < index < len(self.values) or self.values[index].shape != self.shape:
            return False
        return self.record is not None or self.values[index].requires_grad

    def note_shared(self) -> None:
        """Note the versions of values that share memory: each has a graph of its own from here."""
        values = self._with_memory()
        if len({value.untyped_storage()._cdata for value in values}) < len(values):
            self.shared = [value._version for value in values]

    def see_shared(self) -> None:
        """See that values which share memory are as they were returned.

        Raises:
            BackwardError: if one was changed in place.
        """
        if self.shared is None or self.released:
            return
        if [value._version for value in self._with_memory()] != self.shared:
            raise messages.shared(self.layer)

    def _with_memory(self) -> list[Tensor]:
        """Return the values that have memory of their own; a sparse one has none."""
        return [value for value in self.values if value.layout is torch.strided]

    def release(self) -> None:
        """Forget the layer's own graph, which a backward pass has used up."""
        if self.released:
            return
        self.values, self.spikes, self.released = (), None, True
        self.below, self.later, self.sources = {}, [], set()
        self.passage = self.record = self.tap = None
        self.entered, self.earlier, self.inputs = [], [], []

    def loses(self, used: Callable[[Any], bool]) -> bool:
        """Return whether a node that the layer learns through is used, now or in earlier calls."""
        return any(used(node) for call in with_earlier([self]) for node in call.entered)


def with_earlier(calls: Iterable[Call]) -> list[Call]:
    """Return calls, and those from whose values they go on."""
    todo, found = list(calls), dict[Call, None]()
    while todo:
        call = todo.pop()
        if call not in found:
            found[call] = None
            todo += call.earlier
    return list(found)


def in_sequences(arrived: Arrivals, outputs: Container[str | None]) -> list[Arrivals]:
    """Part what has arrived at outputs into sequences, if it is of several.

    The passes of a sequence go on from each other's states, or read the same hidden calls. Those of
    two sequences, as for two images that a loss compares, are of other samples.
    """
    own = [each for each in arrived if each[0].layer in outputs]
    if len({call.first for call, _ in own}) < 2:
        return [arrived]
    reads = [(call, hidden) for call, _ in own for b in call.steps_below for hidden in b.values()]
    every = with_earlier(each for pair in reads for each in pair)
    above: dict[int, int] = {}  # from passes that are joined to one that stands for all

    def of(first: int) -> int:
        while (up := above.setdefault(first, first)) != first:
            above[first] = first = above.setdefault(up, up)
        return first

    for one, other in (*reads, *((each, earlier) for each in every for earlier in each.earlier)):
        above[of(other.first)] = of(one.first)
    parts: dict[int, Arrivals] = {}
    for each in own:
        parts.setdefault(of(each[0].first), []).append(each)
    return list(parts.values())


def reached(arrived: Arrivals, outputs: Container[str | None]) -> dict[str, list[Call]]:
    """Return by layer the calls of outputs at which something has arrived, and of their steps.

    No loss reads others, as those of an evaluation before.
    """
    found: dict[str, dict[Call, None]] = {}  # once, where several outputs are of one step
    for call, _ in sorted(arrived, key=lambda each: each[0].number):
        if call.layer in outputs:
            for step in ({call.layer or "": call}, *call.steps_below):
                for name, each in step.items():
                    found.setdefault(name, {})[each] = None
    return {name: list(each) for name, each in found.items()}


def _make_nodes(call: Call) -> None:
    """Let a call's step become a node of the graph, and those that it goes on from."""
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
            (each.values, each.tap), each.record = record.node(), None


#: Calls, and the gradients at their values.
Arrivals: TypeAlias = list[tuple[Call, Sequence[Tensor | None]]]


@dataclass
class Pass:
    """One forward pass of the network.

    Args:
        layers: The layers.
        whole: Whether the pass is one call of the network. Then an output that the user named may
            be called once, as a readout of mean spikes or of the last ones is.
        repeats: Whether activation checkpointing does a pass again.
    """

    layers: Layers
    whole: bool = False
    repeats: bool = False
    calls: dict[str, list[Call]] = field(default_factory=dict)
    last: str | None = None  # the neuron that was called last
    #: The number of the first node that the pass makes.
    since: int = field(default_factory=torch.autograd._get_sequence_nr)  # type: ignore[attr-defined]

    def note(self, call: Call) -> None:
        """Note a call; what may be an output's gets the hidden calls of its step.

        Raises:
            OutOfStepError: if it is not known which hidden call an output's belongs with.
        """
        name, layers = call.layer or "", self.layers
        before = self.calls.setdefault(name, [])
        step = len(before)
        before.append(call)
        call.first = next(iter(self.calls.values()))[0].number
        if layers.may_be_output(name):
            call.below = {
                other: calls[step]
                for other, calls in self.calls.items()
                if len(calls) > step and other != name and other not in layers.outputs
            }
            complete = len(call.below) == len(layers.hidden)
            if name in layers.outputs and not (self.whole and complete):
                self._match(call)
        elif len(layers.outputs) > 1:  # some of which may have been called before
            for output in layers.outputs:
                calls = self.calls.get(output, ())
                if len(calls) > step:
                    calls[step].below[name] = call

    def _match(self, call: Call) -> None:
        """Give an output's call the hidden calls that it reads, where these are not of its step.

        In one call of the network the order decides, but for layers that were called before it.
        """
        read = self._read_by(call)
        for name, calls in read.items():
            known = call.below.get(name)
            if name in self.layers.outputs or known in calls or (self.whole and known is not None):
                continue
            if len(calls) > 1 or any(c.supposed for c in calls):
                raise messages.other_call(name, call.layer or "", len(calls))
            (call.below[name],) = calls
        if not self.whole:
            for name, hidden in call.below.items():
                hidden.supposed = name not in read

    def _read_by(self, call: Call) -> dict[str, set[Call]]:
        """Return by layer the calls that a call was made of, through layers of this pass."""
        found: dict[str, set[Call]] = {}
        todo = [*call.sources]
        while todo:
            each = todo.pop()
            known = found.setdefault(each.layer or "", set())
            if each not in known:
                known.add(each)
                if each.number >= call.first or each.layer not in self.calls:
                    todo += each.sources
        return found

    def parted(self) -> Pass:
        """Part calls at which the output was not known into passes; return the last, if unended.

        Raises:
            OutOfStepError: if it is not known which hidden call an output's belongs with.
        """
        now = Pass(self.layers)
        calls = (call for each in self.calls.values() for call in each)
        for call in sorted(calls, key=lambda call: call.number):
            call.below = {}
            now.note(call)
            if now.is_even():
                now.end()
                now = Pass(self.layers)
        return now

    def is_even(self) -> bool:
        """Return whether every layer that was called has been called as often as the outputs."""
        counts, outputs = set(self.counts().values()), self.layers.outputs
        return len(counts) == 1 and all(output in self.calls for output in outputs or [""])

    def counts(self) -> Mapping[str, int]:
        """Return how often each layer was called."""
        return {name: len(calls) for name, calls in self.calls.items()}

    def end(self) -> None:
        """Settle which layer is the output; see that all layers kept step with it.

        Of several outputs some may not have been called, as where each batch has a task of its own.

        Raises:
            OutOfStepError: naming a layer that did not.
        """
        layers, counts = self.layers, self.counts()
        if not layers.outputs and self.last is not None:
            layers.outputs = (self.last,)
        once = find_steps(self.calls, layers) if self.whole and layers.given else set()
        called = [output for output in layers.outputs if output in counts]
        for output in called or layers.outputs:
            for name in layers.names:
                if once & {name, output} or name not in counts:
                    continue
                if counts[name] != counts.get(output, 0):
                    if not self.whole:
                        raise messages.parts_out_of_step(name, output, counts)
                    raise messages.out_of_step(name, output, counts, given=layers.given)
        self._see_that_an_output_is_last()
        if self.whole:
            for output in called:
                self._see_that_steps_are_in_order(output)

    def _see_that_steps_are_in_order(self, output: str) -> None:
        """See that no layer runs through the steps in another order, as backward in time.

        Then the output's first call reads the layer's last one. It is seen where each call of the
        output reads calls of its own. Of a tensor that holds all steps all are read.
        """
        calls = self.calls[output]
        first, hidden = calls[0].number, self._hidden().items()
        ahead = [name for name, each in hidden if len(each) > 1 and each[1].number < first]
        if len(calls) > 1 and ahead:
            for call in calls:
                read = self._read_by(call)
                for name in [name for name in ahead if name in read]:
                    if all(c.number > call.below[name].number for c in read[name]):
                        raise messages.other_order(name, output)

    def _see_that_an_output_is_last(self) -> None:
        outputs = self.layers.outputs
        steps = max(map(len, self.calls.values()), default=0)
        numbers = [[call.number for call in self.calls.get(name, ())] for name in outputs]
        padded = [each + each[-1:] * (steps - len(each)) for each in numbers if each]
        last = [max(each) for each in zip(*padded, strict=True)]
        for name, each in self._hidden().items():
            if any(call.number > end for call, end in zip(each, last, strict=False)):
                raise messages.called_late(name, outputs)

    def _hidden(self) -> Mapping[str, list[Call]]:
        """Return the calls of all layers but the outputs."""
        return {n: calls for n, calls in self.calls.items() if n not in self.layers.outputs}
