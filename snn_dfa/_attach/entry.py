"""What comes into a layer: looked up in the graph, never by the identity of an object.

- The layer's own value, as it was handed out: exchanged for the original.
- A value that the program made of the layer's own: passes a ``Bridge``.
- A current that a linear layer alone made: its graph is left out, and its error is noted.
- Everything else: its graph ends at other layers' ports, and is left as it is, but for what comes
  into a block, from which no path leads to another layer, or into a module of unknown kind, where
  no loss may come by.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from snn_dfa._attach import messages
from snn_dfa._attach.between.picks import ORDERS, orders_samples
from snn_dfa._attach.between.walk import below_product, look_below
from snn_dfa._attach.between.ways import Passage
from snn_dfa._attach.calls import Call
from snn_dfa._attach.functions import Bridge, Overwritten, Relink, rebase, second_time
from snn_dfa._attach.graph import PORT, Origin, are_packed, origin_of
from snn_dfa._attach.steps.nodes import Earlier
from snn_dfa._attach.steps.products import Current, Made, made_of
from snn_dfa._attach.unseen import Insides, see_no_change, with_hooks
from snn_dfa.errors import AttachError

if TYPE_CHECKING:
    from snn_dfa._attach.collector import Collector
    from snn_dfa._attach.core import Core

__all__ = ["Entry"]

_COPY: Any = type(torch.ones(1).copy_(torch.ones(1, requires_grad=True)).grad_fn)
_OVERWRITTEN: Any = Overwritten._backward_cls


class Entry:
    """Takes what comes into each call of a layer, and notes what the call learns through."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.call: Call  # the one that is going on
        self.layer = ""  # whose it is
        self._open = self._block = self._guards = False
        #: A current that was looked at, and what made it, if a linear layer alone did.
        self._looked_at: tuple[Tensor | None, tuple[Made, Any] | None] = (None, None)
        self.insides = Insides(core)
        self.taken: set[str] = set()  # layers whose values another layer was given
        self._of_steps: dict[Any, Any] = {}  # what nodes of several steps keep for errors

    def forget(self) -> None:
        """Forget the pass that has ended."""
        self.insides.forget()
        self._core.tokens = {}
        self._of_steps = {}

    def begin(self, layer: str, *, learns: bool, closed: bool, block: bool) -> None:
        """Begin a call of a layer.

        Args:
            layer: Its name.
            learns: Whether the layer has parameters of its own that want a gradient.
            closed: Whether values come out by its result and its attributes alone.
            block: Whether it is not closed and holds modules, which hooks may look at.

        Raises:
            AttachError: if another layer is at work.
        """
        if self._core.inside is not None:
            raise messages.nested(layer, self._core.inside)
        linked = self._core.layers.may_be_output(layer)
        self.layer = layer
        self.call = Call(layer, learns, linked, self._core.collector, next(self._core.numbers))
        self._open, self._block, self._guards = not closed, block, not (closed or block)
        self._looked_at = (None, None)

    # -- values -----------------------------------------------------------------------------------

    def enter(self, value: Tensor) -> Tensor:
        """Return a value that comes into the layer, with the graph that the layer learns from."""
        if self._core.aligned:
            return value
        if not value.requires_grad:
            # What is written into a part gives the whole a graph, which only the port is to have.
            return value.detach() if self._open and value._is_view() else value
        if value.grad_fn is None:
            self.call.learns |= self._core.note_leaf(value)
            return self._guarded(value)
        found = self.own(self.layer, value)
        if found is not None:
            original, call = found
            self._go_on(call)
            if value._backward_hooks and not call.is_lost(self._core.collector):
                original = with_hooks(self._core, self.layer, value)
            return self.apart(original) if self._open else original
        made = self._made(value)
        if made is None:
            return self._guarded(self._enter_graph(value))
        current: Tensor = Current.apply([value], made, self._guard(), made.weight, made.bias)
        return current

    def enter_current(self, value: Tensor) -> tuple[Tensor, Made | None]:
        """Return a neuron's current, and what made it, if a linear layer alone: without a graph."""
        if value.grad_fn is None or type(value.grad_fn) is PORT:
            return self.enter(value), None
        made = self._made(value)
        return (self._enter_graph(value), None) if made is None else (value.detach(), made)

    def enter_state(self, value: Tensor) -> tuple[Tensor, Earlier | None]:
        """Return a neuron's state; one with a link without its graph, and of which call it is."""
        node: Any = value.grad_fn
        if type(node) is not PORT or node.call.layer != self.layer:
            return self.enter(value), None
        call, index, collector = node.call, value.output_nr, self._core.collector
        # The graph of one with other parameters leads to them.
        if call.collector is not collector or call.released or not call.is_link(index):
            return self.enter(value), None
        self._go_on(call)
        if value._backward_hooks:
            with_hooks(self._core, self.layer, value)
        return value.detach(), (call, index)

    def _enter_graph(self, value: Tensor) -> Tensor:
        """Return a value with a graph of any kind, cut or bridged where layers lie behind it."""
        layer = self.layer
        if type(value.grad_fn) is not PORT:
            self.call.entered.append(value.grad_fn)
        origin = self._origin([value])
        self.call.leaves.update(origin.leaves)
        self.insides.refuse(layer, origin.nodes)
        for leaf in origin.leaves.values():
            self.call.learns |= self._core.note_leaf(leaf)
        orders = [node for node in origin.nodes if type(node).__name__ in ORDERS]
        if orders:
            self._see_order(value, origin, orders)
        own: dict[Any, Tensor] = {}
        for node, index in origin.ports:
            of = node.call.layer
            if of not in (layer, None):
                self.note_read(node.call)
            elif of is None and not self._leads_on(node.call, index):
                continue
            elif not self._core.traced:  # a trace has no past
                self._go_on(node.call)
                if node.call.is_lost(self._core.collector):
                    return self._stale(value)
                original = node.call.original(index)
                own[node, index] = original if of == layer else self.enter(original)
        own = {edge: t for edge, t in own.items() if t.requires_grad}
        if own:
            self._see_own_is_whole(value, origin, own)
            at = (*origin.hooked, *[value] * bool(value._backward_hooks))
            see_no_change(self._core, layer, at)
        return self._bridged(value, origin, own)

    def _see_order(self, value: Tensor, origin: Origin, orders: Sequence[Any]) -> None:
        """See that other layers' samples come in the order in which the layers gave them.

        An error is sent to the sample at the same place. Samples may also come in another order
        beside their own, as where pairs of them are mixed.

        Raises:
            AttachError: if samples of a layer come in another order alone.
        """
        others = [edge for edge in origin.ports if edge[0].call.layer not in (self.layer, None)]
        for samples in {node.call.shape[:1].numel() for node, _ in others}:
            ordered = {node for node in orders if orders_samples(node, samples)}
            in_place = origin_of([value], self.mine, ordered).ports if ordered else others
            for node, index in others:
                if (node, index) not in in_place:
                    raise messages.other_order_of_samples(node.call.layer, self.layer)

    def _see_own_is_whole(self, value: Tensor, origin: Origin, own: Container[Any]) -> None:
        """See that no own value comes in again that another layer has overwritten.

        Raises:
            AttachError: if one does.
        """
        over = {node for node in origin.nodes if type(node) is _OVERWRITTEN}
        if over:
            found = origin_of([value], self.mine, {*over}).ports
            if any(edge in own and edge not in found for edge in origin.ports):
                other, shape = next(iter(over)).see.args
                raise messages.overwritten(self.layer, other, shape)

    def _leads_on(self, call: Call, index: int) -> bool:
        """Return whether the layer learns through what the network was given or has returned."""
        if call.is_lost(self._core.collector):
            return True
        ports, leaves = self.ends_of(call.original(index))
        for node in ports:
            if node.call.layer not in (self.layer, None):
                self.note_read(node.call)
        return leaves or any(node.call.layer in (self.layer, None) for node in ports)

    def ends_of(self, value: Tensor) -> tuple[list[Any], bool]:
        """Return the layers' ports that a value was made of, and whether leaves are behind it.

        What the network was given and what it has returned is passed, unless it is lost.
        """
        todo, seen, found, leaves = [value], set[Any](), list[Any](), False
        while todo:
            origin = self._origin([todo.pop()])
            leaves |= bool(origin.leaves) or origin.reentrant
            for node, index in origin.ports:
                call = node.call
                if call.layer is not None or call.is_lost(self._core.collector):
                    found.append(node)
                elif (node, index) not in seen:
                    seen.add((node, index))
                    todo.append(call.original(index))
        return found, leaves

    def _bridged(self, value: Tensor, origin: Origin, own: Mapping[Any, Tensor]) -> Tensor:
        """Return a value with the graph to the layer's own earlier values and to leaves alone."""
        if origin.reentrant:
            return self._trapped(value, partial(self._core.collector.replay, value))
        if not own and not self._block:
            return value
        if not own and not origin.leaves:
            if not self.call.linked:
                return value.detach()
            return self._trapped(value)  # so that a loss that reads a value inside is seen
        # From inside a block, whose values may come out by a hook on a module in it, no path leads
        # to another layer.
        self._core.collector.bridged = True
        at = (*(GradientEdge(*edge) for edge in own), *origin.leaves.values())
        bridged: Tensor = Bridge.apply([value], at, *own.values(), *origin.leaves.values())
        return bridged

    def _made(self, value: Tensor) -> Made | None:
        """Note the paths to a value; return what made it, where a linear layer alone did.

        ``None`` stands also for a value of which more has to be known.
        """
        core = self._core
        if self.call.linked:
            self.call.inputs.append((value.grad_fn, value.output_nr))
            self.call.came_in = self.call.came_in or value.shape
        if core.paths.tracing:
            core.paths.note(self.layer, value, self.mine, by_sample=core.takes_ways)
        found = self._product(value)
        if found is None:
            return None
        self.insides.refuse(self.layer, [value.grad_fn])
        self.call.learns = True
        made, source = found
        self.call.leaves.add(id(made.weight))
        if source is not None:
            self.note_read(source.call)
        return made

    def note_read(self, call: Call) -> None:
        """Note a call of another layer that the call which is going on reads."""
        self.call.sources.add(call)
        self.taken.add(call.layer or "")

    def look_at(self, value: Any, *, alone: bool) -> None:
        """Note what comes into the layer, and how samples do, if the feedback has their ways.

        Args:
            value: What comes in.
            alone: Whether no neuron of the layer passes its spikes to others.
        """
        if not isinstance(value, Tensor):
            return
        core = self._core
        by_sample, made = core.takes_ways, self._product(value)
        self._looked_at = value, made
        if made is None and are_packed():
            return  # what lies below is not to be seen
        if made is None:
            below = look_below(value, self.layer, self.mine, by_sample=by_sample)
        else:
            below = below_product(value, *made)
        structure = None if below is None else below.structure
        self.call.read = core.paths.see(
            self.layer, structure, value, self.mine,
            products=() if below is None else below.products, by_sample=by_sample,
        )  # fmt: skip
        if below is not None and by_sample:
            alone = alone and not below.own
            self.call.passage = Passage(below.functions, self._of_steps, alone=alone)

    def _product(self, value: Tensor) -> tuple[Made, Any] | None:
        """Return what :func:`made_of` does, of a current that has been looked at at no cost."""
        (seen, found), self._looked_at = self._looked_at, (None, None)
        core = self._core
        if seen is value:
            return found
        if core.traced:
            return None
        return made_of(value, self.layer, self.mine, core.collector.known, core.book)

    def tapped(self, current: Tensor) -> Tensor:
        """Return a current whose gradient can be asked for."""
        if current.requires_grad:
            current = current.view_as(current)  # behind it no hook of the program is passed
            self.call.tap = get_gradient_edge(current)
            return current
        self.call.tap = link = current.new_zeros(()).expand(current.shape).requires_grad_()
        linked: Tensor = Relink.apply([current], link)
        return linked

    def _guarded(self, value: Tensor) -> Tensor:
        """Return a value on its way into a layer of unknown kind, past which no loss comes.

        A layer's own state needs no guard: what lies behind it came in by guards of earlier calls.
        """
        if not self._guards or not value.requires_grad:
            return value
        guarded: Tensor = Relink.apply([value], value, self._guard())
        return guarded

    def _guard(self) -> Callable[[Tensor], None] | None:
        """Return what sees that no loss comes by from inside the layer, if its kind is unknown."""
        return partial(self.insides.refuse_loss, self.layer) if self._guards else None

    # -- the layer's own values -------------------------------------------------------------------

    def mine(self, node: Any) -> bool:
        """Return whether a port belongs to this network."""
        core: Core = node.call.collector.core
        if core is not self._core:  # another attached network has made what comes in
            other: Collector = node.call.collector
            other.read_by(self._core.collector, node.call)
            self._core.tokens[id(other)] = other.deliver
        return core is self._core

    def own(self, layer: str | None, value: Tensor) -> tuple[Tensor, Call] | None:
        """Return the original of a value that a call of a layer has handed out, and the call.

        Args:
            layer: The layer's name; ``None`` for the network.
            value: What comes in.
        """
        node, index = _handed_out(value)
        if type(node) is not PORT or node.call.layer != layer or not self.mine(node):
            return None
        call = node.call
        if call.is_lost(self._core.collector):
            return self._stale(value), call
        original: Tensor = call.original(index)
        if call.is_link(index):
            return Relink.apply([value], original), call
        same = original.data_ptr() == value.data_ptr() and original.shape == value.shape
        return (original, call) if same else None

    def apart(self, value: Tensor) -> Tensor:
        """Return what a call may change in place, so that the value keeps its own graph."""
        stand_in: Tensor = Relink.apply([value], value)
        return stand_in

    def see_not_read(self, value: Tensor) -> None:
        """See that no loss reads what the call has overwritten, and that has its old graph."""
        refuse = partial(self.insides.refuse_overwritten, self.layer, value.shape)
        rebase(value, Overwritten.apply([value], value, refuse))

    def _stale(self, value: Tensor) -> Tensor:
        """Return a state whose graph is used up: a value, with an error on the way back."""

        def refuse(_: Tensor) -> None:
            raise second_time()

        return self._trapped(value, refuse)

    def _trapped(self, value: Tensor, see: Callable[[Tensor], None] | None = None) -> Tensor:
        """Return a value with a graph that leads to nothing that learns."""
        trapped: Tensor = Relink.apply([value], self._core.trap.to(value).expand(value.shape), see)
        return trapped

    def _go_on(self, earlier: Call) -> None:
        """Note that the call goes on from an earlier one's values."""
        self.call.learns |= earlier.learns
        self.call.earlier.append(earlier)

    # -- leaves -----------------------------------------------------------------------------------

    def _origin(self, values: Sequence[Tensor], ends: set[Any] | None = None) -> Origin:
        """Return what came into a layer was made of.

        Raises:
            AttachError: if reentrant checkpointing lies on the way from a port.
        """
        origin = origin_of(values, self.mine, ends)
        if origin.reentrant and origin.ports:
            raise AttachError(
                "net: expected activation checkpointing with use_reentrant=False after a hidden "
                "layer, got use_reentrant=True, which gives no gradient if no input of the "
                "checkpoint requires one"
            )
        return origin

    def learns(self, value: Tensor) -> bool:
        """Return whether a value was made of anything that learns, layers apart."""
        if value.grad_fn is None:
            return value.requires_grad
        return bool(self._origin([value]).leaves)

    def note_leaves(self, values: Sequence[Tensor], ends: set[Any]) -> None:
        """Note what a call learns from inside, beside the parameters of its module.

        Args:
            values: What the call returned.
            ends: Nodes of what came in.

        Raises:
            AttachError: if an own value came in by another way, and has not its own graph.
        """
        origin = self._origin(values, ends)
        if any(node.call.layer == self.call.layer for node, _ in origin.ports):
            raise messages.came_in_unseen(self.call.layer or "")
        self.call.entered += origin.nodes
        for leaf in origin.leaves.values():
            self.call.learns |= self._core.note_leaf(leaf)


def _handed_out(value: Tensor) -> tuple[Any, int]:
    """Return the node by which a value was handed out, and which of its results it is.

    What a call has changed in place has the graph of a copy: see :func:`rebase`.
    """
    node: Any = value.grad_fn
    if type(node) is _COPY and not value._backward_hooks:
        below, source = node.next_functions
        if below[0] is None:
            return source
    return node, value.output_nr
