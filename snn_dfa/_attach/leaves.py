"""The leaves of the graph that layers learn from and that are no parameters of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from snn_dfa._attach.collector import Collector
    from snn_dfa._attach.core import Core

__all__ = ["Leaves"]


class Leaves:
    """Notes leaves from outside, and what autograd finds a way to them by."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._others: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        #: What ports of this pass lead to, beside the parameters of the network.
        self.entrances: dict[int, Tensor] = {}

    def forget(self) -> None:
        """Forget the pass that has ended; what layers learn from may be read once more."""
        self.entrances = {}

    def note(self, leaf: Tensor) -> bool:
        """Note a leaf that came into a layer; return whether it learns."""
        if leaf is self._core.leaf or leaf is self._core.trap:
            return False
        if id(leaf) not in self._core.collector.known:
            self.note_other(leaf)
            if not isinstance(leaf, Parameter) and leaf.dim():
                self.note_entrance(leaf)
        return True

    def note_other(self, leaf: Tensor) -> None:
        """Note a leaf that layers learn from and that is none of the parameters of this pass."""
        self._others[id(leaf)] = leaf

    def note_entrance(self, value: Tensor) -> None:
        """Note a leaf, or a view of one, that comes from outside: autograd may be asked for it."""
        if id(value) not in self.entrances:
            self.entrances[id(value)] = self._core.collector.entrance(value)

    def note_network(self, other: Collector) -> None:
        """Note another attached network, so that autograd finds a way to its parameters."""
        self.entrances[id(other)] = other.deliver

    def others(self, collector: Collector) -> list[Tensor]:
        """Return the leaves that layers learn from, parameters of a pass apart."""
        known = collector.known
        return [t for key, t in self._others.items() if t.requires_grad and key not in known]
