"""What stands in place of the network's ``forward``: where a pass begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa._attach import messages
from snn_dfa._attach.core import Core
from snn_dfa._attach.forward import Forward, Held, parameters_of
from snn_dfa._attach.functions import in_backward, is_transformed
from snn_dfa._attach.graph import uses_of
from snn_dfa._attach.hooks import eager
from snn_dfa._attach.tensors import map_tensors, tensors_in
from snn_dfa._attach.weights import added_parameters, synapses
from snn_dfa._distributed import States, runs_distributed
from snn_dfa.errors import AttachError, ExportError

__all__ = ["NetworkForward"]


class NetworkForward(Forward):
    """In place of the network's ``forward``: where a pass begins and ends.

    Args:
        net: The network.
        core: The attachment.
        states: Sees that no membrane is one of another process.
        weights: For feedback alignment: the modules whose weights have feedback, by name.
    """

    def __init__(
        self,
        net: nn.Module,
        core: Core,
        states: States,
        weights: Mapping[str, nn.Module],
    ) -> None:
        super().__init__(net, core)
        self._states, self._weights = states, weights
        self._parameters = parameters_of(net)
        self._stores: list[dict[str, Any]] = [m._parameters for m in net.modules()]

    @partial(eager, recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.core.active:
            return self.plain(*args, **kwargs)
        args, kwargs, since, before = self._begin(args, kwargs)
        try:
            result = self.plain(*args, **kwargs)
            self._end()
        finally:
            self._restore(before)
        return self._hand_out(result, since) if torch.is_grad_enabled() else result

    @eager
    def _begin(self, args: Any, kwargs: Any) -> tuple[Any, Any, int, Any]:
        core, feedback = self.core, self.core.feedback
        learns, again = torch.is_grad_enabled(), in_backward()
        steps = feedback.accumulates and not feedback.has_optimizer
        if again:
            messages.refuse_unled(steps)
        else:
            self._states.begin()
            if steps and learns:
                feedback.learn()
        if learns:
            if core.sends_nothing and runs_distributed():
                raise messages.shallow_distributed()
            if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
                raise ExportError(messages.exported())
            if is_transformed():
                raise messages.transformed()
            core.bind(self._parameters())
        since = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        before = core.begin(repeats=again)
        made: list[Held] = []
        if learns:
            args = map_tensors(self._enter, args)
            kwargs = map_tensors(self._enter, kwargs) if kwargs else kwargs
            made = [] if core.aligned else self._made_parameters(core.collector.stand_ins)
            for store, key, _, leaf in made:
                store[key] = leaf
        return args, kwargs, since, (before, made)

    @eager
    def _end(self) -> None:
        self.core.end()

    @eager
    def _restore(self, before: Any) -> None:
        before, made = before
        for store, key, parameter, _ in made:
            store[key] = parameter
        self.core.restore(before)

    def _made_parameters(self, leaves: Mapping[int, Tensor]) -> list[Held]:
        """Return the parameters that were made of others, as by ``functional_call``, with leaves.

        In the pass a leaf stands for each, so that no layer's graph goes on into what made it.
        """
        if not leaves:
            return []
        return [
            (store, key, p, leaves[id(p)])
            for store in self._stores
            for key, p in store.items()
            if id(p) in leaves
        ]

    def _enter(self, t: Tensor) -> Tensor:
        if t.grad_fn is None:
            return t
        if t._is_view() and t._base is not None and t._base.is_leaf and not self.core.aligned:
            self.core.leaves.note_entrance(t)
        original = self.core.entry.own(None, t)
        if original is None and not self.core.aligned:
            return self.core.entry.enter_network(t)
        return t if original is None else original

    @eager
    def _hand_out(self, result: Any, since: int) -> Any:
        """Give out what the network returns by a port, where parameters lie on the way to it."""
        if self.core.aligned:
            return self._aligned(result, since)
        made = [t for t in tensors_in(result) if t.grad_fn is not None]
        values = {id(t): t for t in made if not self.core.entry.is_of_ports(t)}
        if not values:
            return result
        ports = dict(zip(values, self.core.leave_network(list(values.values())), strict=True))
        return map_tensors(lambda t: ports.get(id(t), t), result)

    def _aligned(self, result: Any, since: int) -> Any:
        """See that every weight is used by its layer alone, and other parameters are added."""
        values = tensors_in(result)
        self._see_that_weights_are_known()
        own = {
            id(p): name for name, m in self._weights.items() for p in m.parameters() if p.dim() > 1
        }
        added = added_parameters(self.module)
        names = {id(store[key]): name for store, key, name, _ in added}
        rest = {id(store[key]) for store, key, _, may_rest in added if may_rest}
        uses = uses_of(values, names.keys(), since)
        if found := uses.leaves & own.keys():
            raise messages.functional_weight(min(own[each] for each in found))
        if wrong := (names.keys() - uses.added - rest) | uses.multiplied:
            raise messages.multiplied(min(names[each] for each in wrong))
        return result

    def _see_that_weights_are_known(self) -> None:
        """Raise an error for a layer with weights that has come into the network since."""
        known = set(self._weights.values())
        new = [name for name, module in synapses(self.module).items() if module not in known]
        if new:
            raise AttachError(messages.changed([], new))
