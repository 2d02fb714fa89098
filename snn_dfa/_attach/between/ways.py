"""How each sample passes the layers, read off the pass: what a linear network cannot know.

Where a layer's current comes in, the graph shows which pixels maxima were of and by what
normalisations multiply. What the layer's spikes gain by a change of the current is asked of the
layer's own graph, before the errors are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snn_dfa._attach.between.local_functions import Asked, Kept, LocalFunction
from snn_dfa._attach.between.walk import Gains, Signature
from snn_dfa.feedback.sample_ways import (
    Backward,
    BatchNorm,
    Derivative,
    Taken,
    Way,
    sizes_of,
)

__all__ = ["Passage", "gate_over", "ways_of"]


class Passage:
    """How samples come into one call of a layer.

    Args:
        functions: Those below, with their nodes, and whether they are of several steps.
        seen: Of the pass, by node of several steps and by what flows in what it keeps; it is
            extended.
        alone: Whether each number that comes in changes its own neuron's spikes alone.
    """

    __slots__ = ("alone", "local", "signature")

    def __init__(
        self,
        functions: Sequence[tuple[Any, LocalFunction, bool]],
        seen: dict[Any, Any],
        *,
        alone: bool,
    ) -> None:
        self.alone = alone
        self.signature: Signature = tuple((type(n).__name__, f.parts) for n, f, _ in functions)
        self.local = []  # what they keep, in order
        for node, function, several in functions:
            if not several:
                self.local.append(function.kept())
                continue
            key = node, function.parts
            if key not in seen:  # once for all steps
                seen[key] = function.kept()
            self.local.append(seen[key])


def ways_of(
    passages: Mapping[str, Sequence[tuple[Passage, int]]],
    signatures: Mapping[str, Signature],
    batch: int,
) -> dict[str, Way]:
    """Return the means over steps of the functions that samples met, by layer and number.

    Args:
        passages: Of all calls of each layer, with how many samples and steps each has.
        signatures: Of the functions into each layer, as they are in its linear function. Calls
            with others, as the first step may have, do not count.
        batch: How many samples there are.
    """
    local: dict[str, Way] = {}
    for layer, each in passages.items():
        known = [(p.local, rows) for p, rows in each if p.signature == signatures.get(layer)]
        all_rows = [rows for _, rows in known]
        for i, kept in enumerate(zip(*(of for of, _ in known), strict=True)):
            found = _of_steps(kept, all_rows, batch)
            local |= {} if found is None else {f"{layer} {i}": found}
    return local


def gate_over(grads: Sequence[Tensor], batch: int, dims: int) -> tuple[Tensor, Tensor]:
    r"""Return gradients at the currents of steps as their mean, and how large each step's are.

    Args:
        grads: Of each call.
        batch: How many samples there are.
        dims: How many dimensions of a call are samples and steps.

    Returns:
        [B, \*S] and [T].
    """
    parts = [g.reshape(-1, batch, *g.shape[dims:]) for g in grads]
    return _mean(parts), torch.cat([sizes_of(each) for each in parts])


def _of_steps(kept: Sequence[Any], rows: Sequence[int], batch: int) -> Way | None:
    """Return a normalisation of mean gains, the places taken in each step, or a mean derivative."""
    # What is of all steps at once comes with each of them, and counts once.
    each_once = {id(each): (each, n) for each, n in zip(kept, rows, strict=True)}.values()
    kept, rows = [each for each, _ in each_once], [n for _, n in each_once]
    if isinstance(kept[0], Gains):
        gains = torch.stack([each.gains for each in kept]).mean(0)
        return BatchNorm(gains, kept[0].of_batch)
    if isinstance(kept[0], Asked):
        calls = [(each.steps * n // batch, each.back) for n, each in zip(rows, kept, strict=True)]
        return Backward(batch, calls)
    if isinstance(kept[0], Kept):
        every = zip(*(each.tensors for each in kept), strict=True)
        return Derivative(kept[0].back, tuple(_of_samples(each, rows, batch) for each in every))
    shape = kept[0].shape
    if any(each.at.dim() < len(shape) or len(each.at) % batch for each in kept):
        return None
    # One step after the other: places are large, and a copy of all would cost more than the sums.
    sides = shape[1], kept[0].at[0, 0].numel()
    steps = [at for each in kept for at in each.at.flatten(2).reshape(-1, batch, *sides)]
    return Taken(shape[1:], steps)


def _of_samples(calls: Sequence[Tensor], rows: Sequence[int], batch: int) -> Tensor:
    """Return the mean over the steps of calls, [batch, ...]."""
    found = (by_rows(t, n) for t, n in zip(calls, rows, strict=True))
    steps = [t.reshape(-1, batch, *t.shape[1:]) for t in found]
    alone = len(steps) == len(steps[0]) == 1 and steps[0].is_floating_point()
    return steps[0][0] if alone else _mean(steps)


def _mean(calls: Sequence[Tensor]) -> Tensor:
    """Return the mean over the steps of calls, which are their first dimension."""
    # Summed as each part lies in memory: so it is fastest. Masks and whole numbers have means, too.
    kind = calls[0].dtype if calls[0].is_floating_point() else torch.float64
    sums = (torch.sum(t, 0, dtype=kind, out=torch.empty_like(t[0], dtype=kind)) for t in calls)
    total = next(sums)
    for part in sums:
        total += part
    return total.div_(sum(map(len, calls)))


def by_rows(x: Tensor, rows: int) -> Tensor:
    """Return numbers of samples and steps with these as one dimension in front of all others.

    Of several heads a sample's dimension may have become part of that of the samples.
    """
    count = 1
    for i, size in enumerate(x.shape):
        count *= size
        if count % rows == 0:
            parts = (rows,) if count == rows else (rows, count // rows)
            return x.reshape(*parts, *x.shape[i + 1 :])
    return x.reshape(rows, -1)
