"""How an error at a layer's spikes becomes a gradient at its input current, for each neuron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from snn_dfa._autograd import AtCurrent
from snn_dfa._discover import Layers, is_spiking
from snn_dfa.errors import AttachError
from snn_dfa.rules import RULES
from snn_dfa.sequence import Scan
from snn_dfa.sequence.scan import credit_at_current
from snn_dfa.surrogate import derivative_of, recognise

__all__ = ["check_choices", "credits_at_current"]


_CREDITS = ("current", "membrane", "trace")


def check_choices(rule: str, credit: str, derivative: Callable[[Tensor], Tensor] | None) -> None:
    """Refuse names that are unknown, and a derivative that nothing would use.

    Raises:
        AttachError: naming the argument.
    """
    if rule not in RULES:
        raise AttachError(f"rule: expected one of {sorted(RULES)}, got {rule!r}")
    if credit not in _CREDITS:
        raise AttachError(f"credit: expected one of {list(_CREDITS)}, got {credit!r}")
    if derivative is not None and credit != "current":
        raise AttachError(
            f"derivative: expected credit='current' with it, got credit={credit!r}; with "
            f"credit='membrane' give the neuron another spike_grad instead"
        )


def credits_at_current(
    layers: Layers, derivative: Callable[[Tensor], Tensor] | None
) -> dict[str, AtCurrent]:
    """Return, for ``credit="current"``, each layer's map from error and current to gradient.

    Raises:
        AttachError: if a layer has no slope to give, or parameters that would get no gradient.
    """
    found = {}
    for name, module in layers.modules.items():
        if not is_spiking(module):
            if name == layers.output:
                continue  # a plain readout keeps its own graph
            raise AttachError(
                f"credit='current': hidden layer {name!r} is a {type(module).__name__}, expected a "
                f"snntorch.SpikingNeuron, whose threshold and surrogate it needs; use 'membrane'"
            )
        neuron: Any = module.neuron if isinstance(module, Scan) else module
        learns = [p for p, value in neuron.named_parameters() if value.requires_grad]
        if learns:
            raise AttachError(
                f"credit='current' gives no gradient to parameters of the neuron itself, but "
                f"{f'{name}.{learns[0]}'!r} wants one; freeze it, or use credit='membrane'"
            )
        found[name] = _credit(module, neuron, derivative)
    return found


def _credit(module: Any, neuron: Any, derivative: Callable[[Tensor], Tensor] | None) -> AtCurrent:
    """Return (error at the spikes, current) -> error * g(current - threshold) * size of a spike."""
    surrogate = recognise(neuron.spike_grad) if derivative is None else None
    if isinstance(module, Scan) and surrogate is not None:

        def in_one_pass(at_spikes: Tensor, current: Tensor) -> Tensor:
            factor = neuron.graded_spikes_factor
            at_spikes = at_spikes if bool((factor == 1).all()) else at_spikes * factor
            return credit_at_current(at_spikes, current, neuron.threshold, surrogate)

        return in_one_pass
    slope = derivative or derivative_of(neuron.spike_grad)

    def credit(at_spikes: Tensor, current: Tensor) -> Tensor:
        return at_spikes * slope(current - neuron.threshold) * neuron.graded_spikes_factor

    return credit
