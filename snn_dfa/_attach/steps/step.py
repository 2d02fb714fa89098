"""A step of snnTorch's neurons with the same values and less to do, read off a module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_dfa._attach.graph import are_packed
from snn_dfa._attach.steps.nodes import (
    CompiledStep,
    Earlier,
    Form,
    PlainStep,
    Record,
    compiled_step,
)
from snn_dfa._attach.steps.products import Made, weights_of
from snn_dfa.sequence.change_step import Change
from snn_dfa.sequence.one_step import Constants, suits
from snn_dfa.surrogate import Surrogate, inline_form, recognise

__all__ = ["Inputs", "Kind", "Result", "Step"]


#: What a neuron computes with; where an instance has its own, it is left alone.
_METHODS = frozenset({
    "fire", "mem_reset", "_base_state_function", "_base_sub", "_base_zero", "_base_int", "_block",
    "_restart_if_new",
})  # fmt: skip


@dataclass(slots=True)
class Inputs:
    """What a step is computed from."""

    form: Form
    current: Tensor
    recurrent: Tensor | None  # the neuron's own last spikes, where they come in
    states: list[Tensor]
    before: list[Earlier | None]  # of states without a graph what they are of
    decays: list[Tensor]
    threshold: Tensor
    graded: Tensor
    gains: list[Tensor]  # by which the current is multiplied before it reaches the membrane
    constants: Constants | Change | None = None  # for a compiled kernel, where there is one
    counter: Tensor | None = None  # of a neuron with a refractory period

    @property
    def may_record(self) -> bool:
        """Whether a kernel knows the step, and nothing that it is made of has a graph."""
        if self.constants is None or self.gains or self.recurrent is not None:
            return False
        graphs = any([t.requires_grad for t in (self.current, *self.states)])
        return not (graphs or are_packed())

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


class Kind(NamedTuple):
    """How a class of snnTorch's neurons names what a step takes."""

    states: tuple[str, ...]  # as ``forward`` takes them; the last is the membrane
    decays: tuple[str, ...]
    recurrent: bool
    resets: dict[Any, str]  # by the function that snnTorch chooses, or by name
    compiled: bool = False  # kernels alone know the step


class Step:
    """Computes steps of a neuron, with the results and states of its ``forward``.

    Args:
        neuron: The module.
        kind: Its kind.
    """

    def __init__(self, neuron: Any, kind: Kind) -> None:
        self._neuron, self._kind = neuron, kind
        self._names = ("spk", *kind.states) if kind.recurrent else kind.states
        self._known: tuple[Any, Surrogate | None] = (None, None)
        #: The numbers of ``Lapicque``'s circuit, and what came of them.
        self._circuit: tuple[Any, Any] = (None, None)
        #: What constants for a kernel were last made of, and those.
        self._last: tuple[Any, Constants | None] = (None, None)

    def inputs(self, args: Sequence[Any]) -> Inputs | None:
        """Return what :meth:`compute` takes, as things are now.

        Args:
            args: What the module is called with.

        Returns:
            ``None`` where only ``forward`` knows what to do: other surrogates, membranes that are
            quantised or inhibited, mixed dtypes.
        """
        neuron, kind = self._neuron, self._kind
        surrogate, reset, states = self._surrogate(), self._reset(), self._states(args)
        if surrogate is None or reset is None or states is None or type(args[0]) is not Tensor:
            return None
        current = args[0]
        for i, state in enumerate(states):
            if type(state) is not Tensor:
                return None
            if state.shape != current.shape:
                states[i] = torch.zeros_like(current)
        gains, decays = self._factors()
        threshold, graded = self._constant("threshold"), self._constant("graded_spikes_factor")
        if not _are_alike(current, [*states, *decays, threshold, graded]):
            return None
        dtype = current.dtype if surrogate is neuron.spike_grad else torch.float32
        form = Form(reset, surrogate, dtype)
        spk = states.pop(0) if kind.recurrent else None
        before: list[Earlier | None] = [None] * len(states)
        found = Inputs(form, current, spk, states, before, decays, threshold, graded, list(gains))
        transformed = torch._C._are_functorch_transforms_active()  # such tensors have no address
        if dtype == current.dtype and suits(current) and not transformed:
            found.constants = self._constants(found)
        alone = kind.compiled or not getattr(neuron, "reset_delay", True)
        if found.constants is None and alone:  # a kernel alone knows the step
            return None
        found.counter = self._counter(current, states[-1])
        return found

    def _states(self, args: Sequence[Any]) -> list[Any] | None:
        """Return the states that come in, ``None`` where the call is none that is known."""
        neuron, names = self._neuron, self._names
        if len(args) == 1:
            return [neuron._buffers.get(name) for name in names]
        return [*args[1:]] if len(args) == 1 + len(names) and not neuron.init_hidden else None

    def _constants(self, of: Inputs) -> Constants | Change | None:
        """Return the numbers for a kernel; ``None`` if neurons differ, or there is no kernel.

        A gain that is one number becomes one of them.
        """
        form, parts = of.form, (*of.decays, of.threshold, of.graded)
        slope = inline_form(form.surrogate)
        if not slope[0] or any([t.dim() or t.requires_grad for t in parts]):
            return None
        gain = 1.0
        if len(of.gains) == 1 and not of.gains[0].dim():
            gain = of.gains.pop().item()
        delayed = bool(getattr(self._neuron, "reset_delay", True))
        numbers = [t.item() for t in parts]
        now = slope, form.reset, form.dtype, gain, delayed, numbers
        if now != self._last[0]:
            *rates, height, size = numbers
            if self._kind.decays:
                rates = [min(max(rate, 0.0), 1.0) for rate in rates]
            alpha = rates[0] if len(rates) == 2 else None
            found = Constants(
                rates[-1], height, size, form.reset, slope, gain, delayed, alpha=alpha
            )  # fmt: skip
            self._last = now, self._with_more(found, of.decays)
        return self._last[1]

    def _with_more(self, constants: Constants, decays: Sequence[Tensor]) -> Constants:
        """Return the numbers for a kernel with those that were made of the decays."""
        return constants

    def _counter(self, current: Tensor, mem: Tensor) -> Tensor | None:
        """Return the counter of silent steps, of a neuron that has one."""
        return None

    def compute(
        self, inputs: Inputs, made: Made | None = None, *, may_record: bool = False
    ) -> Result:
        """Return spikes and states.

        Args:
            inputs: From :meth:`inputs`.
            made: What a linear layer made the current of, which then has no graph.
            may_record: Whether the step need not become a node of the graph.
        """
        states, current = inputs.states, inputs.current
        recurrent = None if inputs.recurrent is None else self._neuron.recurrent(inputs.recurrent)
        for gain in inputs.gains:  # ``Lapicque`` has a resistance
            current = current * gain
        if inputs.constants is None or not _fits(recurrent, current):
            return self._plain(inputs, current, recurrent, made)
        spk, new, late, counted, kept = compiled_step(
            inputs.constants, current, recurrent, states, inputs.counter
        )
        if late is not None:
            vars(self._neuron)["reset"] = late
        if counted is not None:
            self._neuron._buffers["counter"] = counted
        if may_record:
            record = Record(spk, kept, made, inputs.before)
            return Result(spk, new, [spk] * len(new), record)
        into = [
            t if t.requires_grad else link for t, link in zip(states, inputs.links, strict=True)
        ]
        spk, *links = CompiledStep.apply(
            [spk], kept, made, current, recurrent, *weights_of(made), *into
        )
        return Result(spk, new, links)

    def _plain(
        self, inputs: Inputs, current: Tensor, recurrent: Tensor | None, made: Made | None
    ) -> Result:
        """Return spikes and states by the operations of torch."""
        form, states, graded = inputs.form, inputs.states, inputs.graded
        decays = inputs.decays
        if self._kind.decays:
            decays = [decay.clamp(0, 1) for decay in decays]
        spk, vars(self._neuron)["reset"], *rest = PlainStep.apply(
            form, made, len(states), current, recurrent, inputs.threshold,
            None if _is_one(graded) else graded, *weights_of(made), *states, *inputs.links, *decays,
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

    def _factors(self) -> tuple[Sequence[Tensor], list[Any]]:
        """Return what the current and what the states are multiplied by."""
        if self._kind.decays:
            return (), [self._constant(name) for name in self._kind.decays]
        parts = [self._constant(name) for name in ("R", "C", "time_step")]
        now = [(t.item(), t.dtype) for t in parts if type(t) is Tensor and _is_number(t)]
        if len(now) < len(parts) or now != self._circuit[0]:
            self._circuit = now, _circuit(*parts)
        gains, decay = self._circuit[1]
        return gains, [decay]

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
        if neuron.state_quant or neuron.inhibition or not _METHODS.isdisjoint(own):
            return None
        chosen = own.get("state_function")
        by = neuron.reset_mechanism if chosen is None else getattr(chosen, "__func__", None)
        return self._kind.resets.get(by)


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
