"""The error at the current of a spiking output, in place of that at its spikes and membrane."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from snn_dfa._attach.calls import Arrivals
from snn_dfa._attach.functions import gradients
from snn_dfa._attach.layers import Layers

__all__ = ["OutputCurrents"]


class OutputCurrents:
    """Notes the input current of each call that may be an output's, and takes the error there.

    The error at the current of a step is dL/dI, by way of the neuron's surrogate, of its later
    steps and of all that the loss reads of it. It is what the last weights learn from.
    """

    cuts: Container[str] = ()  # the neuron keeps its graph

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._now: dict[str, Tensor] = {}
        self._currents = WeakTensorKeyDictionary()

    def before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Note the current; see that it has a gradient where the weights before it are frozen."""
        self._now.pop(name, None)
        every = [*args, *kwargs.values()]
        current = every[0] if every and self._layers.may_be_output(name) else None
        if isinstance(current, Tensor) and current.is_floating_point():
            if not current.requires_grad:
                every[0] = current = current.detach().requires_grad_()
            self._now[name] = current
            named = dict(zip(kwargs, every[len(args) :], strict=True))
            return tuple(every[: len(args)]), named
        return args, kwargs

    def after(self, name: str, module: nn.Module, values: list[Tensor]) -> list[Tensor]:
        """Note which call the current is of."""
        current = self._now.pop(name, None)
        if current is not None:
            self._currents[values[0]] = current
        return values

    def __call__(self, arrived: Arrivals) -> Arrivals:
        """Return what has arrived, with the errors of outputs taken at their currents."""
        calls, roots = [], []
        for call, grads in arrived:
            if call.layer in self._layers.outputs and call.spikes in self._currents:
                known = [(v, g) for v, g in zip(call.values, grads, strict=False) if g is not None]
                known = [(v, g) for v, g in known if v.requires_grad]
                if known and self._currents[call.spikes].shape == call.shape:
                    calls.append(call)
                    roots += known
        if not calls:
            return arrived
        at = [self._currents[call.spikes] for call in calls]
        errors = dict(zip(map(id, calls), gradients(roots, at, keep=True), strict=True))
        return [
            (
                call,
                [errors[id(call)], *[None] * (len(call.values) - 1)]
                if id(call) in errors
                else grads,
            )
            for call, grads in arrived
        ]
