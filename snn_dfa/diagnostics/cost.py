"""What a network costs on hardware that adds a weight for a spike and multiplies nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from snn_dfa._attach.hooks import place
from snn_dfa._attach.layers import spiking_layers
from snn_dfa._attach.weights import gradient_at_input, synapses

__all__ = ["Cost", "cost"]


@dataclass
class Cost:
    """Totals over the calls that were watched; divide them by the number of samples.

    Args:
        spikes: Of all spiking layers.
        synaptic_operations: Additions of a weight, one for each spike and each connection that it
            takes; additions within a neuron are not among them.
        multiplications: Of a weight with an input that is no spike, such as a pixel's value or a
            constant current. Spikes are zeros and ones, or have the size that ``net``'s neurons and
            dropouts give them.

    Example:
        >>> Cost(spikes=1200.0, synaptic_operations=12000.0).synaptic_operations / 8  # of 8 samples
        1500.0
    """

    spikes: float = 0.0
    synaptic_operations: float = 0.0
    multiplications: float = 0.0


@contextmanager
def cost(net: nn.Module) -> Iterator[Cost]:
    """Count spikes and operations of the calls inside the block, steps or whole sequences.

    A layer counts for what it executes: where :func:`snn_dfa.over_time` computes a constant
    current once, its products are counted once. Weights inside neurons are left out.

    Args:
        net: A network; what it computes is unchanged.

    Yields:
        A :class:`Cost` that is filled as the network runs.

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(snn.Leaky(beta=0.0, init_hidden=True), nn.Linear(2, 5))
        >>> with cost(net) as total:
        ...     _ = net(torch.tensor([[2.0, 0.5]]))  # one spike, five connections
        >>> total
        Cost(spikes=1.0, synaptic_operations=5.0, multiplications=0.0)
    """
    total, inputs, handles = Cost(), dict[nn.Module, Tensor](), list[Any]()

    def count_spikes(output: Any) -> None:
        spk = output[0] if isinstance(output, (tuple, list)) else output
        total.spikes += spk.detach().count_nonzero().item()

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs[module] = (args[0] if args else kwargs["input"]).detach()

    def count_operations(module: nn.Module, output: Tensor) -> None:
        x = inputs.pop(module)
        if _are_spikes(x, net):
            total.synaptic_operations += _connections(module, x.ne(0), output)
        else:
            total.multiplications += _connections(module, torch.ones_like(x), output)

    for module in spiking_layers(net).values():
        handles += place(module, None, count_spikes)
    for module in synapses(net).values():
        handles += place(module, partial(note, module), partial(count_operations, module))
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def _are_spikes(x: Tensor, net: nn.Module) -> bool:
    """Whether there are zeros and ones, or zeros and the size of the network's spikes."""
    top = x.max() if x.numel() else x.new_zeros(())
    if not ((x == 0) | (x == top)).all():
        return False
    return top.item() in (0, 1) or any(math.isclose(top, s, rel_tol=0.01) for s in _sizes(net))


def _sizes(net: nn.Module) -> list[float]:
    """Return the sizes of spikes that are not one: of neurons, and behind dropout in training."""
    neurons = (getattr(m, "neuron", m) for m in spiking_layers(net).values())  # within a scan
    factors = (getattr(neuron, "graded_spikes_factor", 1.0) for neuron in neurons)
    graded = {1.0, *(float(f) for f in map(torch.as_tensor, factors) if f.numel() == 1)}
    drops = {m.p for m in net.modules() if isinstance(m, _DropoutNd) and m.training and m.p < 1}
    return [size / (1 - p) for size in graded for p in {0.0, *drops} if size / (1 - p) != 1]


def _connections(module: nn.Module, active: Tensor, output: Tensor) -> float:
    """Return how many connections the active inputs have."""
    if isinstance(module, nn.Linear):
        return active.sum().item() * module.out_features
    weight: Any = module.weight
    fan_out = gradient_at_input(
        module,
        active[:1].float(),
        torch.ones_like(weight).float(),
        torch.ones_like(output[:1]).float(),
    )
    return (active * fan_out).sum().item()
