"""Gated cells in the stand-in: what they make of the currents of their gates, and step by step.

A cell has several currents for each of its numbers, as an LSTM has four. Its gates differ in sign
from step to step, so that their mean loses much. A layer that flows into cells alone gets the error
of each step by the gates of that step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snn_dfa.feedback.sample_ways import Named

__all__ = ["Cell", "at_currents", "at_rest", "in_steps"]


class Cell(NamedTuple):
    """A gated cell.

    Args:
        weight: Name of its input weights.
        candidate: Which of the currents is that of the candidate, which the gates let through.
        share: How much of it they let through where they are half open.
    """

    weight: str
    candidate: int
    share: float


def at_rest(cell: Cell, like: Tensor, shape: Sequence[int], channels: int) -> Tensor:
    """Return gates [1, gates * C, *S] where nothing is known of them: they are half open.

    Args:
        cell: The cell.
        like: Of the gates' type, on their device.
        shape: Of what its input weights make, [M, gates * C, *S].
        channels: C.
    """
    gate = like.new_zeros(1, *shape[1:])
    gate.narrow(1, cell.candidate * channels, channels).fill_(cell.share)
    return gate


def at_currents(error: Tensor, gate: Tensor) -> Tensor:
    """Return errors [M, C, *S] at a cell's value as they are at the currents of its gates.

    Args:
        error: At the value.
        gate: The derivative of the value at the currents [M or 1, gates * C, *S]; if the value was
            pooled, that of each window.

    Example:
        >>> at_currents(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0, 0.0, -1.0]]))
        tensor([[ 1.,  2.,  0., -2.]])
    """
    error = error.repeat(1, gate.shape[1] // error.shape[1], *(1,) * (error.dim() - 2))
    for dim in range(2, error.dim()):
        wide, narrow = gate.shape[dim], error.shape[dim]
        if wide != narrow:  # each pixel has the error of its window
            at = torch.arange(wide, device=error.device) // (wide // narrow)
            error = error.index_select(dim, at.clamp_max(narrow - 1))  # the last are in none
    return error * gate


def in_steps(
    order: Iterable[str],
    above: Mapping[str, set[str]],
    gates: Mapping[str, Sequence[Tensor]],
    values_of: Callable[[str], Sequence[str]],
    error_of: Callable[[str, int], Tensor],
    through: Callable[[str, Tensor], Named],
) -> dict[str, Tensor]:
    """Return errors [T * B, *S] at the values of layers that flow into cells alone.

    Args:
        order: Layers in order of their calls.
        above: Layer to those into which it flows.
        gates: Value of a cell to its gates at each step, [B, gates * C, *S] each.
        values_of: From a layer to those of its values that others take.
        error_of: From a value of a cell and T to what it is sent, [T, B, *S].
        through: From a cell and errors [T * B, ...] at its currents to those at other values.
    """
    found: dict[str, Tensor] = {}
    for layer in reversed(list(order)):  # from the last one on, as errors go
        cells = above.get(layer, set())
        values = {cell: values_of(cell) for cell in cells}
        if not cells or any(v not in gates for each in values.values() for v in each):
            continue
        for cell in sorted(cells):
            total: Tensor | None = None
            for value in values[cell]:
                gate = torch.cat(list(gates[value]))
                error = found.get(value)
                if error is None:
                    error = error_of(value, len(gates[value])).flatten(0, 1)
                part = at_currents(error, gate)
                total = part if total is None else total + part
            assert total is not None
            back = through(cell, total)
            for value in values_of(layer):
                found[value] = found[value] + back[value] if value in found else back[value]
    return found
