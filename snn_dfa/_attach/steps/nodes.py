"""A step of a neuron as a node of the graph: by the operations of torch, or by a compiled kernel.

With a kernel it may also be a record, which is no node: ``run.py`` goes back through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from snn_dfa._attach.functions import added, first_order
from snn_dfa._attach.steps.products import Made, changed_in_place, settle, weights_of
from snn_dfa.sequence.change_step import Change, change_step, change_step_back
from snn_dfa.sequence.one_step import Constants, step, step_back
from snn_dfa.surrogate import Surrogate

__all__ = ["CompiledStep", "Earlier", "Form", "Kept", "PlainStep", "Record", "compiled_step"]

#: A state that comes in again: the call of the layer that it is of, and which of its values it is.
Earlier: TypeAlias = tuple[Any, int]


# -- by torch --------------------------------------------------------------------------------------


def _advance(
    currents: Sequence[Tensor], states: Sequence[Tensor], decays: Sequence[Tensor], late: Tensor,
    reset: str,
) -> list[Tensor]:  # fmt: skip
    """Return the states of this step, but for a reset by subtraction.

    mem = beta * mem + current, of ``Leaky``, ``RLeaky`` and, with a gain, ``Lapicque``;
    syn = alpha * syn + current, mem = beta * mem + syn, of ``Synaptic`` and ``RSynaptic``.
    """
    zero, new = reset == "zero", list[Tensor]()
    if zero and len(states) == 1:  # of others a reset drops the step's input, too: see below
        states = [(1 - late) * states[0]]
    for decay, state in zip(decays, states, strict=True):
        new.append(decay * state)
        for current in currents:
            new[-1] += current
        currents = new[-1:]
    if zero and len(states) > 1:
        new[-1] -= new[-1] * late
    return new


def _go_back(
    at: Sequence[Tensor | None], late: Tensor | None
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return the gradients at the currents and at each state times its decay."""
    freed = at[-1] if at[-1] is None or late is None else at[-1] * (1 - late)
    if len(at) == 1:
        return at[0], [freed]
    at_syn = added(at[0], freed)
    return at_syn, [at_syn, freed]


class Form(NamedTuple):
    """What a step computes, tensors apart."""

    reset: str
    surrogate: Surrogate
    dtype: torch.dtype  # of the spikes


class PlainStep(Function):
    """Spikes, states, resets and links of one step.

    Backward: with u the new membrane, dL/du gets dL/dspk * slope(u - threshold) * graded; what
    comes before is in `_go_back`. The reset has no derivative, as in snnTorch. What is kept is
    what back-propagation keeps. So states are handed out as values alone, and each has a link,
    a tensor of its shape without memory, that gradients at it come in by.
    """

    @staticmethod
    def forward(
        ctx: Any, form: Form, made: Made | None, count: int, current: Tensor,
        recurrent: Tensor | None, threshold: Tensor, graded: Tensor | None,
        weight: Tensor | None, bias: Tensor | None, *rest: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        states, decays = rest[:count], rest[2 * count :]
        late = (states[-1] > threshold).to(form.dtype)  # type: ignore[operator]
        currents = [current] if recurrent is None else [current, recurrent]
        new = _advance(currents, states, decays, late, form.reset)  # type: ignore[arg-type]
        if form.reset == "subtract":
            new[-1] -= late * threshold
        margin = new[-1] - threshold
        spk = (margin > 0).to(form.dtype)
        spk = spk if graded is None else spk * graded
        ctx.learns = any(ctx.needs_input_grad[9 + 2 * count :]), ctx.needs_input_grad[5]
        resets = form.reset == "zero" or ctx.learns[1]
        before = states if ctx.learns[0] else ()
        ctx.save_for_backward(margin, graded, late if resets else None, *decays, *before)
        ctx.form, ctx.made, ctx.count, ctx.threshold = form, made, count, threshold.shape
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(late, *new)
        return spk, late, *new, *map(link, new)

    @staticmethod
    @first_order
    def backward(ctx: Any, at_spikes: Tensor | None, _: Any, *rest: Tensor | None) -> Any:
        form, count, needs = ctx.form, ctx.count, ctx.needs_input_grad
        margin, graded, late, *kept = ctx.saved_tensors
        decays, before, at = kept[:count], kept[count:], list(rest[count:])
        at_graded = at_fire = None
        if at_spikes is not None:
            if needs[6]:
                at_graded = (at_spikes * (margin > 0)).sum_to_size(graded.shape)
            at_fire = form.surrogate.derivative(margin)
            at_fire = at_fire * (at_spikes if graded is None else at_spikes * graded)
            at[-1] = added(at_fire, at[-1])
        at_threshold = _at_threshold(at[-1], at_fire, late, form.reset, ctx) if needs[5] else None
        resets = late if form.reset == "zero" else None
        total, scaled = _go_back(at, resets)
        at_states: list[Tensor | None] = []
        at_decays: list[Tensor | None] = []
        for i, (decay, grad) in enumerate(zip(decays, scaled, strict=True)):
            wanted = grad is not None and (needs[9 + i] or needs[9 + count + i])
            at_states.append(decay * grad if wanted else None)
            wanted = grad is not None and needs[9 + 2 * count + i]
            at_decays.append((grad * before[i]).sum_to_size(decay.shape) if wanted else None)
        at_weights = settle(ctx.made, total)
        links = [None if not needs[9 + count + i] else g for i, g in enumerate(at_states)]
        at_states = [None if not needs[9 + i] else g for i, g in enumerate(at_states)]
        at_currents = (total if needs[3] else None, total if needs[4] else None)
        return (None, None, None, *at_currents, at_threshold, at_graded, *at_weights,
                *at_states, *links, *at_decays)  # fmt: skip


def link(state: Tensor) -> Tensor:
    """Return a tensor of a state's shape without its memory; its numbers are never read."""
    return state.new_empty_strided(state.shape, (0,) * state.dim())


def _at_threshold(
    total: Tensor | None, at_fire: Tensor | None, late: Tensor | None, reset: str, ctx: Any
) -> Tensor | None:
    """Return the gradient at the threshold: of the spike, and of what a reset takes away."""
    parts = [at_fire] if at_fire is not None else []
    if reset == "subtract" and total is not None and late is not None:
        parts.append(total * late)
    found = sum(parts[1:], parts[0]) if parts else None
    return None if found is None else -found.sum_to_size(ctx.threshold)


# -- by a kernel -----------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What the way back through a compiled step needs."""

    constants: Constants | Change
    margin: Tensor  # membrane minus threshold
    late: Tensor | None  # the resets, where they are needed; of a change its sign
    counter: Tensor | None  # as it was before the step

    def back(
        self, at_spikes: Tensor | None, at_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the gradients at the current and at the last states."""
        constants, margin, late, counter = self
        if isinstance(constants, Change):
            assert late is not None
            at_last, at_mem = at_states
            total, before = change_step_back(margin, late, at_spikes, at_mem, constants)
            return total, (None, added(before, at_last))
        return step_back(margin, late, counter, at_spikes, at_states, constants)


def compiled_step(
    constants: Constants | Change, current: Tensor, recurrent: Tensor | None,
    states: Sequence[Tensor], counter: Tensor | None,
) -> tuple[Tensor, list[Tensor], Tensor | None, Tensor | None, Kept]:  # fmt: skip
    """Return spikes, states, resets, the counter and what is kept; nothing has a graph."""
    if isinstance(constants, Change):
        _, mem = states
        spk, new_mem, margin, sign = change_step(current, mem, constants)
        return spk, [mem, new_mem], None, None, Kept(constants, margin, sign, None)
    if counter is not None and counter.is_inference():
        counter = counter.clone()  # autograd keeps none of inference mode, and they have no version
    spk, new, margin, late, counted = step(current, recurrent, states, counter, constants)
    keeps = constants.reset == "zero" or not constants.delayed or constants.tau is not None
    return spk, new, late, counted, Kept(constants, margin, late if keeps else None, counter)


class CompiledStep(Function):
    """Spikes and links of a step whose kernel has been run, as functions of what went into it.

    ``CompiledStep.apply([spk], kept, made, current, recurrent, weight, bias, *states)``;
    for a state stands its link, or ``None`` where nothing is learned by it.
    """

    @staticmethod
    def forward(
        ctx: Any, spk: list[Tensor], kept: Kept, made: Made | None, current: Tensor | None,
        recurrent: Tensor | None, weight: Tensor | None, bias: Tensor | None,
        *states: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.save_for_backward(*kept[1:])
        ctx.constants, ctx.made = kept.constants, made
        ctx.set_materialize_grads(False)
        return spk[0], *[link(spk[0]) for _ in states]

    @staticmethod
    @first_order
    def backward(ctx: Any, at_spikes: Any, *at_states: Any) -> Any:
        needs = ctx.needs_input_grad
        if at_spikes is None and not any([g is not None for g in at_states]):
            return (None,) * len(needs)
        total, before = Kept(ctx.constants, *ctx.saved_tensors).back(at_spikes, at_states)
        parts = zip(before, needs[7:], strict=True)
        return (
            None, None, None, total if needs[3] else None, total if needs[4] else None,
            *settle(ctx.made, total), *[g if need else None for g, need in parts],
        )  # fmt: skip


class Record:
    """A step without a node.

    Args:
        spk: The spikes.
        kept: What the way back needs.
        made: What the current was made of; ``None`` where nothing is learned by it.
        before: For each state where it comes from; ``None`` where nothing is learned by it.
    """

    __slots__ = ("before", "kept", "made", "spk", "versions")

    def __init__(
        self, spk: Tensor, kept: Kept, made: Made | None, before: Sequence[Earlier | None]
    ) -> None:
        self.spk, self.kept, self.made, self.before = spk, kept, made, before
        self.versions = self._versions()

    def back(
        self, at_spikes: Tensor | None, at_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[tuple[Earlier, Tensor]]]:
        """Note the error at the current; return it, and the gradients at the states that learn.

        Raises:
            BackwardError: if what the step has read was changed in place.
        """
        self._see_unchanged()
        total, last = self.kept.back(at_spikes, at_states)
        settle(self.made, total)
        pairs = zip(self.before, last, strict=True)
        return total, [(each, g) for each, g in pairs if each is not None and g is not None]

    def node(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return spikes and links of the states with a graph, and a leaf for the current."""
        self._see_unchanged()
        weight, bias = weights_of(self.made)
        links = [None if b is None else b[0].values[b[1]] for b in self.before]
        tap = self.spk.new_zeros(()).expand(self.spk.shape).requires_grad_()
        # What was made learned then, also if it has been frozen since.
        frozen = [t for t in (weight, bias) if t is not None and not t.requires_grad]
        for t in frozen:
            t.requires_grad_()
        try:
            found: tuple[Tensor, ...] = CompiledStep.apply(
                [self.spk], self.kept, self.made, tap, None, weight, bias, *links
            )
        finally:
            for t in frozen:
                t.requires_grad_(False)
        return found, tap

    def _versions(self) -> list[int]:
        """Return the version counters of what the program has, too."""
        return [t._version for t in self.kept[2:] if t is not None]

    def _see_unchanged(self) -> None:
        if self._versions() != self.versions:
            raise changed_in_place()
