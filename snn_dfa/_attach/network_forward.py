"""What stands in place of the network's ``forward``: where a pass begins and ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa._attach import messages
from snn_dfa._attach.calls import Pass
from snn_dfa._attach.core import Core
from snn_dfa._attach.forward import Forward
from snn_dfa._attach.functions import give_back, in_backward, is_transformed
from snn_dfa._attach.graph import PORT, are_sums, origin_of
from snn_dfa._attach.hooks import eager
from snn_dfa._attach.tensors import Lent, map_tensors, tensors_in
from snn_dfa._distributed import States, runs_distributed
from snn_dfa.errors import ExportError

__all__ = ["NetworkForward", "parameters_of"]


def parameters_of(net: nn.Module) -> Callable[[], list[Tensor]]:
    """Return a function that lists the parameters that want a gradient, without a walk.

    Lazy ones are among them.
    """
    stores = [m._parameters for m in net.modules()]

    def listed() -> list[Tensor]:
        every = [p for store in stores for p in store.values() if p is not None and p.requires_grad]
        return list({id(p): p for p in every}.values())

    return listed


class NetworkForward(Forward):
    """In place of the network's ``forward``: where a pass begins and ends.

    Args:
        net: The network.
        core: The attachment.
        states: Sees that no membrane is one of another process.
    """

    def __init__(self, net: nn.Module, core: Core, states: States) -> None:
        super().__init__(net, core)
        self._states, self._parameters = states, parameters_of(net)
        self._stores: list[dict[str, Any]] = [m._parameters for m in net.modules()]

    @partial(eager, recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.core.active:
            return self.plain(*args, **kwargs)
        lent, before = self._begin(args, kwargs)
        args, kwargs = (args, kwargs) if lent is None else (lent.args, lent.kwargs)
        try:
            result = self.plain(*args, **kwargs)
            self.core.end(result)
        finally:
            self._restore(lent, before)
        return result if lent is None else self._hand_out(result, lent)

    @eager
    def _begin(self, args: Any, kwargs: Any) -> tuple[Lent | None, Pass]:
        core, feedback = self.core, self.core.feedback
        learns, again = torch.is_grad_enabled(), in_backward()
        steps = feedback.accumulates and not feedback.has_optimizer
        if again and steps:
            raise messages.unled()
        if not again:
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
        before = core.begin(repeats=again)
        return self._come_in(args, kwargs) if learns else None, before

    @eager
    def _restore(self, lent: Lent | None, before: Pass) -> None:
        if lent is not None:
            lent.put_back(all_held=True)
        self.core.restore(before)

    def _come_in(self, args: Any, kwargs: Any) -> Lent:
        """Return the arguments, and parameters that were made of others, with leaves.

        So it is by ``functional_call``. In the pass a leaf stands for each, so that no layer's
        graph goes on into what made it.
        """
        leaves = self.core.collector.stand_ins
        pairs = ((s, key, p) for s in self._stores for key, p in s.items()) if leaves else ()
        held = [(s, key, p, leaves[id(p)]) for s, key, p in pairs if id(p) in leaves]
        return Lent(self._enter, args, kwargs, held)

    def _enter(self, t: Tensor) -> Tensor:
        """Return a value that comes into the network; one made of outputs' values by a port.

        So it is where an action leads to the state in which the network acts next. The loss may
        read that state, too, and autograd then frees what lies behind it before layers learn.
        """
        core = self.core
        if t.grad_fn is None:
            return t
        if t._is_view() and t._base is not None and t._base.is_leaf:
            core.note_entrance(t)
        found = core.entry.own(None, t)
        if found is not None:
            return core.entry.apart(found[0])
        if type(t.grad_fn) is PORT and core.entry.mine(t.grad_fn):
            return t  # nothing lies behind it that could be freed
        ports, leaves = core.entry.ends_of(t)
        outputs = core.layers.outputs
        if leaves or not ports or not all(node.call.layer in outputs for node in ports):
            return t
        return core.leave_network([core.entry.apart(t)])[0]

    @eager
    def _hand_out(self, result: Any, lent: Lent) -> Any:
        """Give out what the network returns by a port, where parameters lie on the way to it.

        What it has written into its arguments, it has returned, too. What it has changed in place
        is that, too, if something else stood for it; if not, it has the plain network's graph.
        """
        changed = [(old, new) for old, new in lent.changed() if new is not old]
        made = [*tensors_in(result), *lent.written(), *[new for _, new in changed]]
        made = [t for t in made if t.grad_fn is not None]
        values = {id(t): t for t in made if not self._is_of_ports(t)}
        if not (values or changed):
            return result
        given = self.core.leave_network(list(values.values())) if values else ()
        ports = dict(zip(values, given, strict=True))
        give_back(changed, ports)
        lent.exchange(ports)
        return map_tensors(lambda t: ports.get(id(t), t), result, in_place=True)

    def _is_of_ports(self, value: Tensor) -> bool:
        """Return whether autograd may go from a value to ports by itself.

        So it is with what a layer has handed out, with what the network has returned and keeps, and
        with what outputs' values were put together to, as by ``torch.stack``: on such a way lies no
        parameter, whose gradient would be written before all others are known, and nothing is kept,
        which a second way would find used up.
        """
        node: Any = value.grad_fn
        mine = self.core.entry.mine
        if type(node) is PORT:
            return mine(node)
        origin = origin_of([value], mine)
        if origin.leaves or not are_sums(origin.nodes):
            return False
        calls = [port.call for port, _ in origin.ports]
        return all([call.linked and call.layer is not None for call in calls])
