"""Values inside a layer that come out by a hook or an object, and not by what the layer returns."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snn_dfa._attach import messages
from snn_dfa._attach.calls import Call
from snn_dfa.errors import AttachError, BackwardError

if TYPE_CHECKING:
    from snn_dfa._attach.core import Core

__all__ = ["Insides"]


class Insides:
    """Sees that no layer and no loss reads a value inside a layer."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._calls: list[tuple[int, int, str]] = []  # first node, last node, layer

    def forget(self) -> None:
        """Forget the pass that has ended."""
        self._calls = []

    def note(self, layer: str, since: int) -> None:
        """Note a call whose insides are not known by its nodes."""
        self._calls.append((since, torch.autograd._get_sequence_nr(), layer))  # type: ignore[attr-defined]

    def refuse(self, layer: str, nodes: Sequence[Any]) -> None:
        """Raise an error for a node inside a call of another layer.

        Args:
            layer: Into which comes what the nodes have made.
            nodes: Of the graph.

        Raises:
            AttachError: if there is one.
        """
        if not self._calls:
            return
        for node in nodes:
            of = self._layer_of(node._sequence_nr())
            if of not in (None, layer):
                raise AttachError(
                    f"layer {layer!r}: a value from inside layer {of!r}, which {of!r} neither "
                    f"returns nor keeps as an attribute, comes into it; return the value from "
                    f"{of!r}, or name the modules inside {of!r} with hidden="
                )

    def _layer_of(self, number: int) -> str | None:
        if number >= self._calls[-1][1]:
            return None  # younger than all of these calls
        at = bisect_right(self._calls, (number, float("inf"), "")) - 1
        return self._calls[at][2] if at >= 0 and number < self._calls[at][1] else None

    def refuse_loss(self, layer: str, _: Tensor) -> None:
        """Raise an error for a loss that has come through a layer, by a value from inside it."""
        if self._core.running is None or self._core.running.losses is not None:
            raise BackwardError(
                f"layer {layer!r}: the loss reads a value inside the layer that the layer neither "
                f"returns nor keeps as an attribute, so that back-propagation would go on into the "
                f"layers before; return the value from {layer!r}, or keep it as an attribute"
            )

    def watch(self, call: Call, values: Sequence[Tensor]) -> None:
        """See that no loss reads a block's values as a hook inside has kept them.

        The loss may read those of a hidden block. A change in place of what the block returned
        changes the kept value's numbers, and not its graph, which no port is in.
        """
        if self._core.aligned or call.layer is None:
            return
        for value in values:
            if call.linked and value.requires_grad:
                refuse: Callable[[Tensor], None] = partial(self._refuse_reading, call.layer)
            elif value.grad_fn is not None:
                refuse = partial(self._refuse_changed, call.layer, value.detach(), value._version)
            else:
                continue
            value.register_hook(refuse)  # type: ignore[no-untyped-call]

    def _refuse_reading(self, layer: str, _: Tensor) -> None:
        if self._core.running is None:
            raise messages.read_inside(layer)

    def _refuse_changed(self, layer: str, value: Tensor, version: int, _: Tensor) -> None:
        if self._core.running is None and value._version != version:
            raise messages.changed_inside(layer)
