"""How each sample passes the layers, read off the pass: what a linear network cannot know.

Where a layer's current comes in, the graph shows which pixels maxima were of and by what
normalisations multiply. What the layer's spikes gain by a change of the current is asked of the
layer's own graph, before the errors are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from snn_dfa._attach.functions import Relink
from snn_dfa._attach.graph import are_packed
from snn_dfa._attach.inflows import local_nodes, local_values
from snn_dfa.feedback.stand_in import Taken, Ways

__all__ = ["Passage", "passage_of", "ways_of"]


class Passage:
    """How samples come into one call of a layer.

    Args:
        local: From :func:`local_values`, in the order of the nodes.
    """

    __slots__ = ("local", "tap")

    def __init__(self, local: list[tuple[tuple[int, ...], Tensor]]) -> None:
        self.local = local
        #: Where the gradient at the current can be asked for; ``None`` where it cannot.
        self.tap: Any = None

    def tapped(self, current: Tensor) -> Tensor:
        """Return the current on its way into a neuron of which each number is one's own."""
        if current.requires_grad:
            current = current.view_as(current)  # behind it no hook of the program is passed
            self.tap = get_gradient_edge(current)
            return current
        self.tap = link = current.new_zeros(()).expand(current.shape).requires_grad_()
        linked: Tensor = Relink.apply([current], link)
        return linked


def passage_of(value: Tensor, layer: str, mine: Callable[[Any], bool]) -> Passage | None:
    """Return how samples come into a layer; ``None`` where no other layer's value alone does.

    Args:
        value: What comes into the layer, as the program made it.
        layer: Its name.
        mine: Whether a port belongs to this network.
    """
    if value.grad_fn is None or are_packed():
        return None
    nodes = local_nodes(value, layer, mine)
    return None if nodes is None else Passage([local_values(node) for node in nodes])


def ways_of(
    passages: Mapping[str, Sequence[Passage]],
    gates: Mapping[str, Sequence[Tensor]],
    batch: int,
    dims: int,
) -> Ways:
    """Return the means over steps of what samples met.

    Args:
        passages: Of all calls of each layer.
        gates: Gradients at the layers' currents, of the sums of their spikes.
        batch: How many samples there are.
        dims: How many dimensions of a call are samples and steps.
    """
    means = {}
    for layer, grads in gates.items():
        steps = [g.reshape(-1, batch, *g.shape[dims:]) for g in grads]
        total = _sum(steps[0])
        for step in steps[1:]:
            total += _sum(step)
        means[layer] = total.div_(sum(map(len, steps)))
    local: dict[str, Tensor | Taken] = {}
    for layer, each in passages.items():
        if len({len(p.local) for p in each}) == 1:
            for i, pairs in enumerate(zip(*(p.local for p in each), strict=True)):
                found = _of_steps(pairs, batch)
                local |= {} if found is None else {f"{layer} {i}": found}
    return Ways(means, local)


def _sum(steps: Tensor) -> Tensor:
    """Return a sum over the first dimension, as each part lies in memory: so it is fastest."""
    return torch.sum(steps, 0, out=torch.empty_like(steps[0]))


def _of_steps(pairs: Sequence[tuple[tuple[int, ...], Tensor]], batch: int) -> Tensor | Taken | None:
    """Return a normalisation's mean gains, or the places that were taken in each step."""
    shape = pairs[0][0]
    if not shape:
        return torch.stack([gains for _, gains in pairs]).mean(0)
    if any(at.dim() < len(shape) or len(at) % batch for _, at in pairs):
        return None
    # One step after the other: places are large, and a copy of all would cost more than the sums.
    sides = shape[1], pairs[0][1][0, 0].numel()
    steps = [at for _, each in pairs for at in each.flatten(2).reshape(-1, batch, *sides)]
    return Taken(shape[1:], steps)
