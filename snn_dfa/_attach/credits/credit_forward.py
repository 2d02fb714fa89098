"""In place of a layer's ``forward``, where a credit replaces what autograd does inside."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from snn_dfa._attach.core import Core
from snn_dfa._attach.layer_forward import LayerForward, State
from snn_dfa._attach.tensors import Lent
from snn_dfa._distributed import States

__all__ = ["Credit", "CreditForward"]


class Credit(Protocol):
    """Replaces what autograd does inside a layer."""

    #: The layers that run without a graph, which :meth:`after` makes.
    cuts: Container[str]

    def before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments that the module is called with."""

    def after(self, name: str, module: nn.Module, values: list[Tensor]) -> list[Tensor]:
        """Return the layer's values with the graph that it learns by."""


class CreditForward(LayerForward):
    """The same as :class:`LayerForward`, with a credit that replaces what autograd does inside."""

    def __init__(
        self, name: str, module: nn.Module, core: Core, *, closed: bool, states: States,
        credit: Credit,
    ) -> None:  # fmt: skip
        super().__init__(name, module, core, closed=closed, states=states)
        self._credit, self._is_plain = credit, False

    def _look(self, *, closed: bool) -> None:
        super()._look(closed=closed)
        self._step = None

    def _call(self, args: Any, kwargs: Any) -> Any:
        credit, cuts = self._credit, self._name in self._credit.cuts
        lent = self._come_in(args, kwargs)
        lent.without_graph = cuts
        args, kwargs = lent.args, lent.kwargs
        before = self._attributes() if cuts else []
        # A credit that cuts makes spikes of the current; one that traces knows it by identity.
        if cuts:
            args, kwargs = self._tapped(args, kwargs)
        args, kwargs = credit.before(self._name, self.module, args, kwargs)
        if not cuts:
            args, kwargs = self._tapped(args, kwargs)
        result = self._run(args, kwargs, lent, self._without_graph if cuts else self.plain)
        states = self._attributes() if cuts else self._graphs()
        states = [s for s in states if cuts or s[2].grad_fn is not None]
        known = {id(old) for _, _, old, _ in lent.held} | {id(old) for _, _, old in before}
        return self._hand_out(result, [s for s in states if id(s[2]) not in known], lent)

    def _without_graph(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.plain(*args, **kwargs)

    def _attributes(self) -> list[State]:
        """Return the module's attributes that hold numbers, but for the resets of the last step."""
        return [
            (store, key, value)
            for store in self._stores
            for key, value in store.items()
            if isinstance(value, Tensor) and value.is_floating_point() and key != "reset"
        ]

    def _ported(
        self, tensors: Sequence[Tensor], left: list[State], lent: Lent, *, linked: bool
    ) -> tuple[dict[int, Tensor], int]:
        found, returned = super()._ported(tensors, left, lent, linked=True)
        if found:
            values = self._credit.after(self._name, self.module, list(found.values()))
            found = dict(zip(found, values, strict=True))
            if not linked:
                returned = sum(v.requires_grad for v in values[:returned])
                found = {key: v for key, v in found.items() if v.requires_grad}
        return found, returned
