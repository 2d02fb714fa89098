"""A step by a compiled kernel: what it keeps, and the step as a node of the graph or as a record.

A record is no node: ``run.py`` goes back through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.autograd import Function

from snn_dfa._attach.functions import added, first_order
from snn_dfa._attach.steps.plain_step import link
from snn_dfa._attach.steps.products import Made, changed_in_place, settle, weights_of
from snn_dfa.sequence.change_step import Change, change_step, change_step_back
from snn_dfa.sequence.one_step import Constants, step, step_back

__all__ = ["CompiledStep", "Earlier", "Kept", "Record", "compiled_step"]

#: A state that comes in again: the call of the layer that it is of, and which of its values it is.
Earlier: TypeAlias = tuple[Any, int]


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


class Compiled(NamedTuple):
    """What a compiled kernel has made of a step."""

    spk: Tensor
    states: list[Tensor]
    late: Tensor | None
    counted: Tensor | None
    kept: Kept


def compiled_step(
    constants: Constants | Change, current: Tensor, recurrent: Tensor | None,
    states: Sequence[Tensor], counter: Tensor | None,
) -> Compiled:  # fmt: skip
    """Run the kernel of a step; nothing has a graph."""
    if isinstance(constants, Change):
        _, mem = states
        spk, new_mem, margin, sign = change_step(current, mem, constants)
        return Compiled(spk, [mem, new_mem], None, None, Kept(constants, margin, sign, None))
    spk, new, margin, late, counted = step(current, recurrent, states, counter, constants)
    keeps = constants.reset == "zero" or not constants.delayed or constants.tau is not None
    return Compiled(
        spk, new, late, counted, Kept(constants, margin, late if keeps else None, counter)
    )


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
