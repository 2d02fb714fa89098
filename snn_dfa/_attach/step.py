"""A step of snnTorch's neurons with the same values and less to do: read off a module here.

The node of the graph that the step becomes is in ``step_node.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import snntorch as snn
import torch
from torch import Tensor

from snn_dfa._attach.products import Book, Made
from snn_dfa._attach.record import Before, Record
from snn_dfa._attach.step_node import (
    CompiledStep,
    Form,
    LeakyFormula,
    PlainStep,
    SynapticFormula,
    compiled_step,
)
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.sequence.change_step import Change
from snn_dfa.sequence.one_step import Constants, suits
from snn_dfa.surrogate import Surrogate, inline_form, recognise

__all__ = ["Inputs", "Result", "Step", "known_class", "step_of"]
#: What a neuron computes with; where an instance has its own, it is left alone.
_METHODS = frozenset({
    "fire", "mem_reset", "state_function", "_base_state_function", "_base_sub", "_base_zero",
    "_base_int", "_block", "_restart_if_new",
})  # fmt: skip


@dataclass(slots=True)
class Inputs:
    """What a step is computed from."""

    form: Form
    current: Tensor
    recurrent: Tensor | None  # the current from the neuron's own spikes
    states: list[Tensor]
    before: list[Before | None]  # of states without a graph what they are of
    decays: list[Tensor]
    threshold: Tensor
    graded: Tensor
    constants: Constants | Change | None  # for a compiled kernel, where there is one
    counter: Tensor | None  # of a neuron with a refractory period

    @property
    def links(self) -> list[Tensor | None]:
        """The graphs of the states whose values have none."""
        return [None if each is None else each[0].original(each[1]) for each in self.before]


class Result(NamedTuple):
    """What a step has computed: ``links`` are the graphs of the states, without their values.

    A step that has a record has no graph; for each link stand the spikes, which have its shape.
    """

    spk: Tensor
    states: list[Tensor]
    links: list[Tensor]
    record: Record | None = None


class _Kind(NamedTuple):
    """How a class of snnTorch's neurons names what its formula takes."""

    formula: type[LeakyFormula] | type[SynapticFormula] | None
    states: tuple[str, ...]  # as ``forward`` takes them; the last is the membrane
    decays: tuple[str, ...]
    recurrent: bool
    resets: dict[Any, str]  # by the function that snnTorch chooses


def _kind(cls: Any, formula: Any, states: str, decays: str, *, zero: bool) -> _Kind:
    resets = {cls._base_sub: "subtract", cls._base_int: "none"}
    resets |= {cls._base_zero: "zero"} if zero else {}
    return _Kind(
        formula, tuple(states.split()), tuple(decays.split()), hasattr(cls, "_init_recurrent_net"),
        resets,
    )  # fmt: skip


#: Reset to zero of the others drops the step's input, too, and is left to their ``forward``.
_KINDS: dict[type, _Kind] = {
    snn.Leaky: _kind(snn.Leaky, LeakyFormula, "mem", "beta", zero=True),
    snn.RLeaky: _kind(snn.RLeaky, LeakyFormula, "mem", "beta", zero=False),
    snn.Lapicque: _kind(snn.Lapicque, LeakyFormula, "mem", "", zero=False),
    snn.Synaptic: _kind(snn.Synaptic, SynapticFormula, "syn mem", "alpha beta", zero=True),
    snn.RSynaptic: _kind(snn.RSynaptic, SynapticFormula, "syn mem", "alpha beta", zero=False),
    snn.Alpha: _kind(snn.Alpha, None, "syn_exc syn_inh mem", "alpha beta", zero=True),
    RefractoryLeaky: _kind(RefractoryLeaky, None, "mem", "beta", zero=True),
    snn.DeltaLeaky: _kind(snn.DeltaLeaky, None, "mem_prev mem", "beta", zero=False),
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


class Step:
    """Computes steps of a neuron, with the results and states of its ``forward``.

    Args:
        neuron: The module.
        kind: Its kind.
    """

    def __init__(self, neuron: Any, kind: _Kind) -> None:
        self._neuron, self._kind = neuron, kind
        self._names = ("spk", *kind.states) if kind.recurrent else kind.states
        self._known: tuple[Any, Surrogate | None] = (None, None)
        self._gains: list[Tensor] = []
        #: The numbers of ``Lapicque``'s circuit, and what came of them.
        self._circuit: tuple[Any, Any] = (None, None)
        #: What constants for a kernel were last made of, and those.
        self._last: tuple[Any, Constants | None] = (None, None)

    def inputs(self, args: Sequence[Any], book: Book | None = None) -> Inputs | None:
        """Return what :meth:`compute` takes, as things are now; ``recurrent`` has the spikes.

        Args:
            args: What the module is called with.
            book: Gives the notes of the pass that is going on.

        Returns:
            ``None`` where only ``forward`` knows what to do: other surrogates, membranes that are
            quantised or inhibited, mixed dtypes.
        """
        neuron, kind, names = self._neuron, self._kind, self._names
        if len(args) == 1:
            current, buffers = args[0], neuron._buffers
            states = [buffers.get(name) for name in names]
        elif len(args) == 1 + len(names) and not neuron.init_hidden:
            current, *states = args
        else:
            return None
        surrogate, reset = self._surrogate(), self._reset()
        if surrogate is None or reset is None or type(current) is not Tensor:
            return None
        for i, state in enumerate(states):
            if type(state) is not Tensor:
                return None
            if state.shape != current.shape:
                states[i] = torch.zeros_like(current)
        decays = self._decays()
        threshold, graded = self._constant("threshold"), self._constant("graded_spikes_factor")
        if not _are_alike(current, [*states, *decays, threshold, graded]):
            return None
        dtype = current.dtype if surrogate is neuron.spike_grad else torch.float32
        form = Form(kind.formula, reset, surrogate, dtype, book)
        constants = None
        transformed = torch._C._are_functorch_transforms_active()  # such tensors have no address
        if dtype == current.dtype and suits(current) and not transformed:
            constants = self._constants(form, decays, threshold, graded)
        if constants is None and self._is_for_kernels():
            return None
        spk = states.pop(0) if kind.recurrent else None
        before: list[Before | None] = [None] * len(states)
        counter = self._counter(current, states[-1])
        return Inputs(
            form, current, spk, states, before, decays, threshold, graded, constants, counter
        )

    def _constants(
        self, form: Form, decays: Sequence[Tensor], threshold: Tensor, graded: Tensor
    ) -> Constants | None:
        """Return the numbers for a kernel; ``None`` if neurons differ, or there is no kernel."""
        parts = (*decays, threshold, graded)
        slope = inline_form(form.surrogate)
        if not slope[0] or any([t.dim() or t.requires_grad for t in parts]):
            return None
        gain = 1.0
        if len(self._gains) == 1 and not self._gains[0].dim():
            gain = self._gains.pop().item()
        delayed = bool(getattr(self._neuron, "reset_delay", True))
        numbers = [t.item() for t in parts]
        now = slope, form.reset, gain, delayed, numbers
        if now != self._last[0]:
            *rates, height, size = numbers
            if self._kind.decays:
                rates = [min(max(rate, 0.0), 1.0) for rate in rates]
            alpha = rates[0] if len(rates) == 2 else None
            found = Constants(
                rates[-1], height, size, form.reset, slope, gain, delayed, alpha=alpha
            )  # fmt: skip
            self._last = now, found
        return self._last[1]

    def _is_for_kernels(self) -> bool:
        """Return whether a kernel alone has the formula."""
        return not getattr(self._neuron, "reset_delay", True)

    def _counter(self, current: Tensor, mem: Tensor) -> Tensor | None:
        """Return the counter of silent steps, of a neuron that has one."""
        return None

    def scaled(self, current: Tensor) -> Tensor:
        """Return the current as it reaches the membrane: ``Lapicque`` has a resistance."""
        for gain in self._gains:
            current = current * gain
        return current

    @property
    def scales(self) -> bool:
        """Whether the current does not reach the membrane as it is."""
        return bool(self._gains)

    def recurrent(self, spk: Tensor) -> Tensor:
        """Return the current from the neuron's own spikes."""
        current: Tensor = self._neuron.recurrent(spk)
        return current

    def compute(
        self, inputs: Inputs, made: Made | None = None, *, may_record: bool = False
    ) -> Result:
        """Return spikes and states.

        Args:
            inputs: From :meth:`inputs`.
            made: What a linear layer made the current of, which then has no graph.
            may_record: Whether the step need not become a node of the graph.
        """
        form, current, recurrent = inputs.form, inputs.current, inputs.recurrent
        states, own = inputs.states, vars(self._neuron)
        if inputs.constants is None or not _fits(recurrent, current):
            return self._plain(inputs, made)
        spk, new, late, counted, kept = compiled_step(
            inputs.constants, current, recurrent, states, inputs.counter
        )
        if late is not None:
            own["reset"] = late
        if counted is not None:
            self._neuron._buffers["counter"] = counted
        graphs = recurrent is not None or any([t.requires_grad for t in (current, *states)])
        if may_record and not graphs and form.book is not None:
            record = Record(spk, kept, made, inputs.before, form.book)
            learns = made is not None or any(inputs.before)
            return Result(spk, new, [spk] * len(new), record if learns else None)
        x, weight, bias, seen = made or (None,) * 4
        into = [
            t if t.requires_grad else link for t, link in zip(states, inputs.links, strict=True)
        ]
        spk, *links = CompiledStep.apply(
            [spk], kept, form.book, seen, current, recurrent, x, weight, bias, *into
        )
        return Result(spk, new, links)

    def _plain(self, inputs: Inputs, made: Made | None) -> Result:
        """Return spikes and states by the operations of torch."""
        form, states, graded = inputs.form, inputs.states, inputs.graded
        x, weight, bias, seen = made or (None,) * 4
        decays = inputs.decays
        if self._kind.decays:
            decays = [decay.clamp(0, 1) for decay in decays]
        spk, vars(self._neuron)["reset"], *rest = PlainStep.apply(
            form, seen, len(states), inputs.current, inputs.recurrent, inputs.threshold,
            None if _is_one(graded) else graded, x, weight, bias, *states, *inputs.links, *decays,
        )  # fmt: skip
        return Result(spk, rest[: len(states)], rest[len(states) :])

    def result(self, spk: Tensor, states: Sequence[Tensor]) -> Any:
        """Leave the states in the module, and return what its ``forward`` returns."""
        buffers = self._neuron._buffers
        for name, state in zip(self._kind.states, states, strict=True):
            buffers[name] = state
        if self._kind.recurrent:
            buffers["spk"] = spk
        return spk if self.hides_states else (spk, *states)

    @property
    def hides_states(self) -> bool:
        """Whether ``forward`` returns the spikes alone."""
        return self._neuron.init_hidden and not self._neuron.output

    def _constant(self, name: str) -> Any:
        """Return a parameter, or a buffer that wants no gradient; else ``None``."""
        known = self._neuron._parameters.get(name)
        if known is None:
            known = self._neuron._buffers.get(name)
            known = None if known is None or known.requires_grad else known
        return known

    def _decays(self) -> list[Any]:
        if self._kind.decays:
            return [self._constant(name) for name in self._kind.decays]
        parts = [self._constant(name) for name in ("R", "C", "time_step")]
        now = [(t.item(), t.dtype) for t in parts if type(t) is Tensor and _is_number(t)]
        if len(now) < len(parts) or now != self._circuit[0]:
            self._circuit = now, _circuit(*parts)
        gains, decay = self._circuit[1]
        self._gains = list(gains)
        return [decay]

    def _surrogate(self) -> Surrogate | None:
        now = self._neuron.spike_grad
        if self._known[0] is not now:
            known = recognise(now)
            spikes = known is not None and type(known).__call__ is Surrogate.__call__
            self._known = now, known if spikes else None
        return self._known[1]

    def _reset(self) -> str | None:
        """Return the kind of reset; ``None`` where the step is none that is known."""
        neuron, own = self._neuron, vars(self._neuron)
        if neuron.state_quant or neuron.inhibition:
            return None
        if "fire" in own or "mem_reset" in own or "_base_state_function" in own:
            return None
        return self._kind.resets.get(getattr(own.get("state_function"), "__func__", None))


class RefractoryStep(Step):
    """The same for this library's neuron with a refractory period, by kernels alone."""

    def _constants(
        self, form: Form, decays: Sequence[Tensor], threshold: Tensor, graded: Tensor
    ) -> Constants | None:
        neuron, known = self._neuron, super()._constants(form, decays, threshold, graded)
        if known is None or type(neuron.input_gain) not in (int, float):
            return None
        clamps = neuron.refractory == "clamp"
        silent = neuron.refractory_steps
        return known._replace(gain=float(neuron.input_gain), refractory=silent, clamps=clamps)

    def _is_for_kernels(self) -> bool:
        return True

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

    def _reset(self) -> str | None:
        neuron, own = self._neuron, vars(self._neuron)
        if neuron.state_quant or neuron.inhibition or not _METHODS.isdisjoint(own):
            return None
        reset: str = neuron.reset_mechanism
        return reset


class AlphaStep(Step):
    """The same for ``Alpha``, by kernels alone."""

    def __init__(self, neuron: Any, kind: _Kind) -> None:
        super().__init__(neuron, kind)
        self._tau: tuple[Any, float] = (None, 0.0)

    def _constants(
        self, form: Form, decays: Sequence[Tensor], threshold: Tensor, graded: Tensor
    ) -> Constants | None:
        known = super()._constants(form, decays, threshold, graded)
        if known is None:
            return None
        now = known.alpha, known.beta, form.dtype
        if now != self._tau[0]:
            alpha, beta = (torch.log(decay.clamp(0, 1)) for decay in decays)
            self._tau = now, (alpha / (beta - alpha) + 1).item()
        return known._replace(tau=self._tau[1])

    def _is_for_kernels(self) -> bool:
        return True


class DeltaStep(Step):
    """The same for ``DeltaLeaky``, by kernels alone: of the last membrane, which it keeps, too."""

    def inputs(self, args: Sequence[Any], book: Book | None = None) -> Inputs | None:
        neuron, own, buffers = self._neuron, vars(self._neuron), self._neuron._buffers
        if not args or "mem" not in buffers or "mem_prev" not in own:
            return None
        current, *given = args
        if neuron.init_hidden and not given:
            mem = buffers["mem"]
        elif len(given) == 1 and type(given[0]) is tuple and len(given[0]) == 2:
            mem = given[0][0]
        else:
            return None
        surrogate, beta = self._surrogate(), self._constant("beta")
        if surrogate is None or type(current) is not Tensor:
            return None
        mem = torch.zeros_like(current) if mem is None else mem
        if type(mem) is not Tensor or mem.shape != current.shape:
            return None
        constants = self._change(current, surrogate, beta)
        if constants is None or not _are_alike(current, [mem, beta]):
            return None
        form = Form(None, "none", surrogate, current.dtype, book)
        # The last membrane is handed out again, and its gradient comes in by a link of its own.
        states = [mem.detach(), mem]
        before: list[Before | None] = [None, None]
        return Inputs(form, current, None, states, before, [beta], beta, beta, constants, None)

    def _change(self, current: Tensor, surrogate: Surrogate, beta: Any) -> Change | None:
        """Return the numbers for the kernel; ``None`` where it cannot compute the step."""
        neuron, slope = self._neuron, inline_form(surrogate)
        single = current.dtype == torch.float32 or surrogate is neuron.spike_grad
        transformed = torch._C._are_functorch_transforms_active()
        if not (slope[0] and single and suits(current)) or transformed:
            return None
        if type(beta) is not Tensor or beta.dim() or beta.requires_grad:
            return None
        if type(neuron.delta_threshold) not in (int, float):
            return None
        return Change(beta.item(), neuron.delta_threshold, slope)

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


def _fits(recurrent: Tensor | None, current: Tensor) -> bool:
    return recurrent is None or (
        recurrent.shape == current.shape and recurrent.dtype == current.dtype
    )


def _is_one(factor: Tensor) -> bool:
    return _is_number(factor) and factor.item() == 1


def _is_number(t: Tensor) -> bool:
    """Return whether a tensor is one number, which need not be waited for as on another device."""
    return not (t.requires_grad or t.dim()) and t.device.type == "cpu"


def _circuit(r: Any, c: Any, step: Any) -> tuple[list[Tensor], Tensor | None]:
    """Return what snnTorch's ``Lapicque`` multiplies current and membrane by."""
    parts = (r, c, step)
    if any(type(each) is not Tensor or each.requires_grad for each in parts):
        return [], None
    gains = [g for g in (r, 1 / (r * c), step) if not _is_one(g)]
    return gains, 1 - step / (r * c)


def _are_alike(current: Tensor, others: Sequence[Any]) -> bool:
    """Return whether all are of one dtype and device, and constants, but for parameters, fixed."""
    dtype, device = current.dtype, current.device
    for t in others:
        if not isinstance(t, Tensor) or t.dtype != dtype or t.device != device:
            return False
    return True
