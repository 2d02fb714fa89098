"""What goes past ports: values inside a layer that come out unseen, and hooks of the program.

A value comes out unseen by a hook or an object inside the layer, and not by what the layer returns.
The gradient at a layer's own value has two parts, of which a hook sees one at a time: one comes
from the loss, by a port, and one from the layer's later steps, by its own graph.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from snn_dfa._attach import messages
from snn_dfa.errors import AttachError, BackwardError

if TYPE_CHECKING:
    from snn_dfa._attach.core import Core

__all__ = ["Insides", "see_no_change", "with_hooks"]


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

    def refuse_overwritten(self, layer: str, shape: torch.Size, _: Tensor) -> None:
        """Raise an error for a loss that reads what a layer has overwritten."""
        if self._core.running is None or self._core.running.losses is not None:
            raise messages.read_overwritten(layer, shape)

    def watch(self, layer: str, values: Sequence[Tensor], *, linked: bool) -> None:
        """See that no loss reads a block's values as a hook inside has kept them.

        The loss may read those of a hidden block. A change in place of what the block returned
        changes the kept value's numbers, and not its graph, which no port is in.
        """
        if self._core.aligned:
            return
        for value in values:
            if linked and value.requires_grad:
                refuse: Callable[[Tensor], None] = partial(self._refuse_reading, layer)
            elif value.grad_fn is not None:
                refuse = partial(self._refuse_changed, layer, value.detach(), value._version)
            else:
                continue
            value.register_hook(refuse)  # type: ignore[no-untyped-call]

    def _refuse_reading(self, layer: str, _: Tensor) -> None:
        if self._core.running is None:
            raise messages.read_inside(layer)

    def _refuse_changed(self, layer: str, value: Tensor, version: int, _: Tensor) -> None:
        if self._core.running is None and value._version != version:
            raise messages.changed_inside(layer)


def with_hooks(core: Core, layer: str, value: Tensor) -> Tensor:
    """Return a state's original with the user's hooks on it, and no longer on the state.

    So they are called once, with the sum of what the loss and the later steps send. In the plain
    network that sum has one part more, from the spikes of the same step. So a hook may look, and
    one that changes the gradient raises an error.
    """

    def looks(hook: Callable[[Tensor], Any], grad: Tensor) -> None:
        if not core.asks and hook(grad) is not None:
            raise messages.hooked(layer)

    node: Any = value.grad_fn
    call, index = node.call, value.output_nr
    original = call.original(index)
    hooked: Tensor = original.view_as(original)
    hooks = cast("dict[int, Callable[[Tensor], Any]]", value._backward_hooks)
    for hook in hooks.values():
        hooked.register_hook(partial(looks, hook))  # type: ignore[no-untyped-call]
    hooks.clear()
    call.values = [*call.values[:index], hooked, *call.values[index + 1 :]]
    if original is call.spikes:
        call.spikes = hooked
    return hooked


def see_no_change(core: Core, layer: str, at: Iterable[Any]) -> None:
    """See that no hook changes a gradient that comes in two parts.

    Args:
        core: The attachment.
        layer: The layer.
        at: Tensors with hooks that the program made of the layer's own, and nodes with hooks of
            modules on the way to them.
    """

    def see(passed: dict[int, bool], changed: bool) -> None:
        if core.asks:
            return
        if core.task in passed and (changed or passed[core.task]):
            raise messages.hooked(layer)
        passed.clear()
        passed[core.task] = changed

    for each in at:
        _watch(each, partial(see, {}))


def _watch(at: Any, see: Callable[[bool], None]) -> None:
    """See what the hooks that are on a node of the graph, or on a tensor, do to gradients.

    Args:
        at: A tensor, or a node that returns the gradients that it gets.
        see: Called when the backward pass has called the hooks, with whether they changed anything.
    """
    before: list[Any] = []

    def first(grads: Any) -> None:
        before.append(grads if type(grads) is tuple else (grads,))

    def last(grads: Any, *_: Any) -> None:
        pairs = zip(before.pop(), grads if type(grads) is tuple else (grads,), strict=False)
        see(any(g is not None and new is not g and not _same(g, new) for g, new in pairs))

    is_tensor = isinstance(at, Tensor)
    handle = (at.register_hook if is_tensor else at.register_prehook)(first)
    hooks = handle.hooks_dict_ref()
    others = [hooks.popitem(last=False) for _ in range(len(hooks) - 1)]
    hooks.update(others)  # so that `first` is called first, in the order that C sees
    at.register_hook(last)


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and torch.equal(a, b)
