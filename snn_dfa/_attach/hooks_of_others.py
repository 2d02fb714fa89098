"""Hooks that the program has placed on a layer's own values, of which the gradient has two parts.

One part comes from the loss, by a port, and one from the layer's later steps, by its own graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from snn_dfa._attach import messages
from snn_dfa._attach.hooks import watch

if TYPE_CHECKING:
    from snn_dfa._attach.core import Core

__all__ = ["see_no_change", "with_hooks"]


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
        watch(each, partial(see, {}))
