"""Which neurons have steps that are known, and those among them that have more to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import snntorch as snn
import torch
from torch import Tensor

from snn_dfa._attach.steps.step import Inputs, Kind, Step
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.sequence.change_step import Change
from snn_dfa.sequence.one_step import Constants
from snn_dfa.surrogate import inline_form

__all__ = ["known_class", "step_of"]


def _kind(cls: Any, states: str, decays: str, *, zero: bool, compiled: bool = False) -> Kind:
    resets = {cls._base_sub: "subtract", cls._base_int: "none"}
    resets |= {cls._base_zero: "zero"} if zero else {}
    if "state_function" in vars(cls):  # which chooses by the name
        resets = {name: name for name in resets.values()}
    recurrent = hasattr(cls, "_init_recurrent_net")
    return Kind(tuple(states.split()), tuple(decays.split()), recurrent, resets, compiled)


#: Reset to zero of the others drops the step's input, too, and is left to their ``forward``.
_KINDS: dict[type, Kind] = {
    snn.Leaky: _kind(snn.Leaky, "mem", "beta", zero=True),
    snn.RLeaky: _kind(snn.RLeaky, "mem", "beta", zero=False),
    snn.Lapicque: _kind(snn.Lapicque, "mem", "", zero=False),
    snn.Synaptic: _kind(snn.Synaptic, "syn mem", "alpha beta", zero=True),
    snn.RSynaptic: _kind(snn.RSynaptic, "syn mem", "alpha beta", zero=False),
    snn.Alpha: _kind(snn.Alpha, "syn_exc syn_inh mem", "alpha beta", zero=True, compiled=True),
    RefractoryLeaky: _kind(RefractoryLeaky, "mem", "beta", zero=True, compiled=True),
    snn.DeltaLeaky: _kind(snn.DeltaLeaky, "mem_prev mem", "beta", zero=False, compiled=True),
}


#: What a subclass may have of its own, and compute the same.
_HARMLESS = frozenset({
    "__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__dict__",
    "__weakref__", "__orig_bases__", "__parameters__", "__firstlineno__", "__static_attributes__",
    "__annotations_cache__", "__annotate_func__", "__slots__", "reset_mem", "extra_repr",
    "__repr__",
})  # fmt: skip


def known_class(neuron: Any) -> type | None:
    """Return the class whose steps are known and which a module computes as; ``None`` if none is.

    A subclass computes as its base where it has no name in common with it.
    """
    order = type(neuron).__mro__
    base = next((each for each in order if each in _KINDS), None)
    if base is None or base is order[0]:
        return base
    own = {name for each in order[: order.index(base)] for name in vars(each)} - _HARMLESS
    stores = (dir(base), vars(neuron), neuron._buffers, neuron._parameters, neuron._modules)
    return base if all(own.isdisjoint(store) for store in stores) else None


def step_of(neuron: Any) -> Step | None:
    """Return how to compute steps of a module; ``None`` where only its ``forward`` knows."""
    base = known_class(neuron)
    if base is None:
        return None
    return _STEPS.get(base, Step)(neuron, _KINDS[base])


class RefractoryStep(Step):
    """The same for this library's neuron with a refractory period, by kernels alone."""

    def _constants(self, of: Inputs) -> Constants | None:
        neuron, known = self._neuron, super()._constants(of)
        if not isinstance(known, Constants) or type(neuron.input_gain) not in (int, float):
            return None
        clamps = neuron.refractory == "clamp"
        silent = neuron.refractory_steps
        return known._replace(gain=float(neuron.input_gain), refractory=silent, clamps=clamps)

    def _counter(self, current: Tensor, mem: Tensor) -> Tensor | None:
        if not self._neuron.refractory_steps:
            return None
        self._neuron._restart_if_new(current, mem)
        counter: Tensor = self._neuron.counter
        return counter.to(torch.int32)

    def result(self, spk: Tensor, states: Sequence[Tensor]) -> Any:
        if self._neuron.refractory_steps:
            self._neuron._last_mem = (states[-1].detach(),)
        return super().result(spk, states)


class AlphaStep(Step):
    """The same for ``Alpha``, by kernels alone."""

    def _with_more(self, constants: Constants, decays: Sequence[Tensor]) -> Constants:
        alpha, beta = (torch.log(decay.clamp(0, 1)) for decay in decays)
        return constants._replace(tau=(alpha / (beta - alpha) + 1).item())


class DeltaStep(Step):
    """The same for ``DeltaLeaky``, by kernels alone: of the last membrane, which it keeps, too."""

    def _states(self, args: Sequence[Any]) -> list[Any] | None:
        """Return the last membrane twice: it is handed out again, by a link of its own."""
        neuron = self._neuron
        if not args or "mem" not in neuron._buffers or "mem_prev" not in vars(neuron):
            return None
        current, *given = args
        mem = neuron._buffers["mem"]
        if not neuron.init_hidden:
            if len(given) != 1 or type(given[0]) is not tuple or len(given[0]) != 2:
                return None
            mem = given[0][0]
        elif given:
            return None
        if mem is None and type(current) is Tensor:
            mem = torch.zeros_like(current)
        known = type(mem) is Tensor and mem.shape == current.shape
        return [mem.detach(), mem] if known else None

    def _reset(self) -> str | None:
        return "none"

    def _constants(self, of: Inputs) -> Change | None:
        (beta,), slope = of.decays, inline_form(of.form.surrogate)
        height = self._neuron.delta_threshold
        if not slope[0] or beta.dim() or beta.requires_grad or type(height) not in (int, float):
            return None
        return Change(beta.item(), height, slope)

    @property
    def hides_states(self) -> bool:
        return False

    def result(self, spk: Tensor, states: Sequence[Tensor]) -> Any:
        last, mem = states
        self._neuron._buffers["mem"] = mem
        vars(self._neuron)["mem_prev"] = last
        return spk, (mem, last)


_STEPS: dict[type, type[Step]] = {
    RefractoryLeaky: RefractoryStep, snn.Alpha: AlphaStep, snn.DeltaLeaky: DeltaStep,
}  # fmt: skip
