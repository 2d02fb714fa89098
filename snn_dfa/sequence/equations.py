"""The equations of snnTorch's neurons that a scan knows, read off a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from torch import Tensor

from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.sequence.facts import Facts
from snn_dfa.sequence.scan import Dynamics
from snn_dfa.surrogate import Surrogate, derivative_of, recognise

__all__ = ["dynamics_of", "has_trace", "state_series"]


def dynamics_of(neuron: Any, facts: Facts | None = None) -> Dynamics | None:
    """Return the equations of a neuron that ``leaky_scan`` knows; ``None`` for any other.

    Known are ``Leaky``, ``RefractoryLeaky``, ``Lapicque``, ``Synaptic`` and ``Alpha`` (not their
    subclasses, which may do anything) with the surrogates of this library and those of snnTorch
    that are fixed functions, where nothing in the neuron is quantised or inhibited and the
    threshold is above zero. Decays and thresholds of ``Leaky`` and ``Synaptic`` may learn, and the
    threshold of ``Lapicque``.

    Args:
        neuron: One of snnTorch's, or derived from it.
        facts: What is known of the neuron's tensors.

    Example:
        >>> dynamics_of(snn.Leaky(beta=0.5)).beta
        tensor(0.5000)
        >>> dynamics_of(snn.RLeaky(beta=0.5, linear_features=2)) is None
        True
    """
    kind, surrogate = type(neuron), recognise(neuron.spike_grad) or _differentiated(neuron)
    if kind not in _MAKERS or surrogate is None:
        return None
    if neuron.inhibition or neuron.state_quant:
        return None
    if not (facts or Facts()).holds("threshold", neuron.threshold, _is_positive):
        return None
    maker, may_learn = _MAKERS[kind]
    if kind is RefractoryLeaky and not neuron.refractory_steps:
        may_learn = _MAKERS[snn.Leaky][1]
    learns = {n for n, p in neuron.named_parameters() if p.requires_grad}
    return maker(neuron, surrogate) if learns <= may_learn | {"graded_spikes_factor"} else None


def _leaky(neuron: Any, surrogate: Surrogate) -> Dynamics:
    refractory = type(neuron) is RefractoryLeaky
    return Dynamics(
        beta=neuron.beta.clamp(0, 1),
        threshold=neuron.threshold,
        surrogate=surrogate,
        gain=neuron.input_gain if refractory else 1.0,
        reset=_mechanism(neuron),
        immediate_reset=not neuron.reset_delay,
        refractory_steps=neuron.refractory_steps if refractory else 0,
        clamp=refractory and neuron.refractory == "clamp",
    )


def _lapicque(neuron: Any, surrogate: Surrogate) -> Dynamics | None:
    """Return a leaky neuron with the decay and the input gain of a resistor and a capacitor."""
    constants = (neuron.R, neuron.C, neuron.time_step)
    if any(c.numel() > 1 or c.requires_grad for c in constants):
        return None
    tau = neuron.R * neuron.C
    return Dynamics(
        beta=(1 - neuron.time_step / tau).reshape(()),
        threshold=neuron.threshold,
        surrogate=surrogate,
        gain=float(neuron.R * (1 / tau) * neuron.time_step),
        reset=_cleared(_mechanism(neuron)),
    )


def _synaptic(neuron: Any, surrogate: Surrogate) -> Dynamics:
    reset, immediate = _mechanism(neuron), not neuron.reset_delay
    return Dynamics(
        beta=neuron.beta.clamp(0, 1),
        threshold=neuron.threshold,
        surrogate=surrogate,
        reset=reset if immediate else _cleared(reset),
        immediate_reset=immediate,
        alpha=neuron.alpha.clamp(0, 1),
    )


def _alpha(neuron: Any, surrogate: Surrogate) -> Dynamics | None:
    alpha, beta = neuron.alpha.clamp(0, 1), neuron.beta.clamp(0, 1)
    if alpha.requires_grad or beta.requires_grad:
        return None
    tau = torch.log(alpha) / (torch.log(beta) - torch.log(alpha)) + 1
    return Dynamics(
        beta, neuron.threshold, surrogate, reset=_mechanism(neuron), alpha=alpha, tau=tau
    )


def _cleared(reset: str) -> str:
    """Return the reset to zero of neurons that drop the input of its step, too."""
    return "clear" if reset == "zero" else reset


# How a neuron's equations are made, and which of its parameters may learn.
_MAKERS: dict[type, tuple[Callable[[Any, Surrogate], Dynamics | None], set[str]]] = {
    snn.Leaky: (_leaky, {"beta", "threshold"}),
    RefractoryLeaky: (_leaky, set()),
    snn.Lapicque: (_lapicque, {"threshold"}),
    snn.Synaptic: (_synaptic, {"alpha", "beta", "threshold"}),
    snn.Alpha: (_alpha, set()),
}


def has_trace(dyn: Dynamics) -> bool:
    """Return whether a scan computes the neuron's eligibility traces: those of one decay.

    Args:
        dyn: From :func:`dynamics_of`.

    Example:
        >>> [has_trace(dynamics_of(n)) for n in (snn.Leaky(0.5), snn.Synaptic(0.5, 0.5))]
        [True, False]
    """
    return not dyn.currents and dyn.reset != "clear"


def state_series(dyn: Dynamics) -> tuple[str, ...]:
    """Return the names of the states that a scan has at each step, in snnTorch's order."""
    return ((), ("syn",), ("syn_exc", "syn_inh"))[dyn.currents] + ("mem",)


# Of snnTorch's other surrogates those that are fixed functions of mem - threshold.
_FIXED = ("heaviside", "sigmoid", "spike_rate_escape", "straight_through_estimator", "triangular")


@dataclass(frozen=True)
class _Differentiated(Surrogate):
    """A surrogate of snnTorch whose slope autograd gives."""

    spike_grad: Callable[[Tensor], Tensor]

    def derivative(self, x: Tensor) -> Tensor:
        """Return the slope at ``x = mem - threshold``."""
        return derivative_of(self.spike_grad)(x)


def _differentiated(neuron: Any) -> Surrogate | None:
    # In refractory steps the margin is minus infinity, where not every slope is zero.
    spike_grad = neuron.spike_grad
    names = [f"{name}.<locals>.inner" for name in _FIXED]
    known = getattr(spike_grad, "__qualname__", "") in names
    if not known or getattr(spike_grad, "__module__", "") != "snntorch.surrogate":
        return None
    return None if getattr(neuron, "refractory_steps", 0) else _Differentiated(spike_grad)


def _mechanism(neuron: Any) -> str:
    """The reset that is at work: ``Leaky`` keeps the one that it was made with."""
    if isinstance(neuron, RefractoryLeaky):
        return neuron.reset_mechanism
    bound = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
    # Of the function, not of the bound method, since older compilers do not know the latter's name.
    return bound[neuron.state_function.__func__.__name__]


def _is_positive(threshold: Tensor) -> bool:
    return bool((threshold > 0).all())
