"""Steps that are no nodes of the graph: what the way back needs is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from snn_dfa._attach.steps.products import Book, Made, Notes, changed_in_place, settle
from snn_dfa._attach.steps.step_node import CompiledStep, Kept

__all__ = ["Earlier", "Record"]

#: A state that comes in again: the call of the layer that it is of, and which of its values it is.
Earlier: TypeAlias = tuple[Any, int]


class Record:
    """A step without a node.

    Args:
        spk: The spikes.
        kept: What the way back needs.
        made: What the current was made of; ``None`` where nothing is learned by it.
        before: For each state where it comes from; ``None`` where nothing is learned by it.
        book: Gives the notes of the pass that is going on, if the step becomes a node.
    """

    __slots__ = ("before", "book", "kept", "made", "spk", "versions")

    def __init__(
        self,
        spk: Tensor,
        kept: Kept,
        made: Made | None,
        before: Sequence[Earlier | None],
        book: Book,
    ) -> None:
        self.spk, self.kept, self.made, self.before, self.book = spk, kept, made, before, book
        self.versions = self._versions()

    def back(
        self, notes: Notes, at_spikes: Tensor | None, at_states: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[tuple[Earlier, Tensor]]]:
        """Note the error at the current; return it, and the gradients at the states that learn.

        Raises:
            BackwardError: if what the step has read was changed in place.
        """
        self._see_unchanged()
        total, last = self.kept.back(at_spikes, at_states)
        if self.made is not None:
            settle(notes, self.made, total)
        pairs = zip(self.before, last, strict=True)
        return total, [(each, g) for each, g in pairs if each is not None and g is not None]

    def node(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return spikes and links of the states with a graph, and a leaf for the current."""
        self._see_unchanged()
        weight, bias = (None, None) if self.made is None else self.made[1:3]
        links = [None if b is None else b[0].values[b[1]] for b in self.before]
        tap = self.spk.new_zeros(()).expand(self.spk.shape).requires_grad_()
        # What was made learned then, also if it has been frozen since.
        frozen = [t for t in (weight, bias) if t is not None and not t.requires_grad]
        for t in frozen:
            t.requires_grad_()
        try:
            found: tuple[Tensor, ...] = CompiledStep.apply(
                [self.spk], self.kept, self.book, self.made, tap, None, weight, bias, *links
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
