"""Whether a block with neurons inside returns a step [B, ...] or a whole sequence [T, B, ...]."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from snn_dfa._attach.core import Core
from snn_dfa._attach.forward import Around
from snn_dfa._attach.layers import spiking_layers, takes_sequences
from snn_dfa._attach.tensors import tensors_in

__all__ = ["Series"]


class Series:
    """Watches the neurons inside a block.

    A block that loops over time calls each of them T times, with B samples, and returns
    [T, B, ...]. One that returns [B, T, ...] has T times as many neurons; where T and B are equal,
    it is taken for what it was in an earlier call.

    Args:
        block: The block.
        core: The attachment.
    """

    def __init__(self, block: nn.Module, core: Core) -> None:
        #: T and B of the calls of each neuron since :meth:`begin`, and the dimensions of a step.
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._was: bool | None = None
        self._around = [
            Around(
                neuron, core, lambda *_: None, partial(self._note, name, takes_sequences(neuron))
            )
            for name, neuron in spiking_layers(block).items()
            if neuron is not block
        ]

    def remove(self) -> None:
        """Take everything off."""
        for each in self._around:
            each.remove()

    def begin(self) -> None:
        """Begin a call of the block."""
        self._seen.clear()

    def is_returned(self, shape: torch.Size) -> bool:
        """Return whether the call has returned a whole sequence, given the shape of its result."""
        is_one = any(
            shape[:2] == (steps, samples) and len(shape) > 2 and (steps > 1 or len(shape) > dims)
            for steps, samples, dims in self._seen.values()
        )
        if self._was is None or not is_one or shape[0] != shape[1]:
            self._was = is_one
        return self._was

    def _note(self, name: str, whole: bool, result: Any) -> None:
        values = tensors_in(result)
        if not values or values[0].dim() < 1 + whole:
            return
        shape = values[0].shape
        before = self._seen.get(name, (0, 0, 0))[0]
        steps, samples = shape[:2] if whole else (before + 1, shape[0])
        self._seen[name] = steps, samples, len(shape) - whole
