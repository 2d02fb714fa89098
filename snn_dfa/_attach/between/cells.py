"""Gated cells as layers: the weights through which others flow into them, and their gates.

Behind its input weights an LSTM has several numbers for each neuron, such as the current of each
gate. Each changes its own neuron alone within a step. So it has a gate, as a current of a neuron
has: the derivative of the layer's value of the same step, which autograd knows. What goes on to
later steps is left out, since it passes the recurrent weights.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from snn_dfa._attach.between.sources import kept_weights
from snn_dfa._attach.graph import LEAF, below_of
from snn_dfa._attach.weights import computes_as, own_step
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.cells import Cell
from snn_dfa.feedback.stand_in import Inflow

__all__ = ["cell_of", "cell_weights", "into_cell", "local_gates"]

#: Cells, the class of what they multiply by weights with, its name, and that of its input weights.
_WEIGHTS: dict[Any, tuple[type[nn.Module], str, str]] = {
    snn.SLSTM: (nn.LSTMCell, "lstm_cell", "weight_ih"),
    snn.SConv2dLSTM: (nn.Conv2d, "conv", "weight"),
} | {kind: (kind, "", "weight_ih") for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)}
#: Which current is that of the candidate, and how much of it passes gates that are half open.
_CANDIDATES = {
    snn.SLSTM: (2, 0.25), snn.SConv2dLSTM: (3, 0.25), nn.LSTMCell: (2, 0.25),
    nn.GRUCell: (2, 0.5), nn.RNNCell: (0, 1.0),
}  # fmt: skip


def cell_of(module: Any) -> str:
    """Return the name, within a layer, of a cell's input weights; empty of other layers."""
    kind, path, key = _WEIGHTS.get(type(module), (None, "", ""))
    if kind is None or getattr(module, "reset_mechanism", "") == "zero":  # computes its cell twice
        return ""
    inner = module.get_submodule(path)
    known = type(inner) is kind and key in inner._parameters
    known &= all(computes_as(each, (type(each),)) for each in (module, inner))
    return f"{path}.{key}".removeprefix(".") if known else ""


def cell_weights(net: nn.Module) -> list[str]:
    """Return the names of the factors that a network's cells may have."""
    found = ((name, cell_of(module)) for name, module in net.named_modules())
    return [_factor(name, weight) for name, weight in found if weight]


def _factor(layer: str, weight: str) -> str:
    name = f"{layer}.{weight}" if layer else weight
    return name if name.endswith("_ih") else name.removesuffix(".weight")  # of a convolution


def into_cell(x: Inflow, layer: str, module: Any, weight: str, shape: tuple[int, ...]) -> Inflow:
    """Return an inflow through the factor of a cell's input weights.

    Args:
        x: What comes into the cell.
        layer: Its name.
        module: The cell.
        weight: Name of its weights within it.
        shape: Of what comes in.
    """
    name = _factor(layer, weight)
    cell = Cell(name, *_CANDIDATES[type(module)])
    if not isinstance(module, snn.SConv2dLSTM):
        return replace(stand_in.weigh(x, name), cell=cell)
    wide = [(module.in_channels, *shape[2:]), (module.out_channels, *shape[2:])]
    beside = stand_in.concatenate([x, None], wide)  # the membrane, which is the cell's own
    whole = (shape[0], module.conv.in_channels, *shape[2:])
    return replace(own_step(beside, name, module.conv, whole), cell=cell)


def local_gates(values: Sequence[Tensor], weight: Tensor) -> list[Tensor] | None:
    """Return the derivative of each step's summed value at what the input weights have made.

    Args:
        values: Of the cell, one for each step.
        weight: Its input weights.

    Returns:
        [B, gates * channels, *S] each, or ``None`` if a step has no product with the weights.
    """
    edges = [_product_below(value.grad_fn, weight) for value in values]
    if None in edges:
        return None
    return [
        torch.autograd.grad(v, [GradientEdge(e, 0)], torch.ones_like(v), retain_graph=True)[0]
        for v, e in zip(values, edges, strict=True)
    ]


def _product_below(root: Any, weight: Tensor) -> Any:
    """Return the last node that multiplies by a weight; those of earlier steps were made before."""
    todo = [] if root is None else [(-root._sequence_nr(), id(root), root)]
    seen: set[Any] = set()
    while todo:
        *_, node = heapq.heappop(todo)
        if node in seen or type(node) is LEAF:
            continue
        seen.add(node)
        below = below_of(node)
        if len(below) > 1 and any(_is_weight(n, weight) for n in below):
            return node
        if kept_weights(node, {weight.data_ptr(): "frozen"}):
            return node
        for n in below:
            heapq.heappush(todo, (-n._sequence_nr(), id(n), n))
    return None


def _is_weight(node: Any, weight: Tensor) -> bool:
    """Return whether a node passes on a weight, transposed or in another dtype."""
    while type(node) is not LEAF:
        below = below_of(node)
        if len(below) != 1:
            return False
        node = below[0]
    return node.variable is weight
