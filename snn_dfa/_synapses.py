"""Finding the modules with weights that lie between a network's neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa._bank import Sites, Transposed
from snn_dfa.errors import FeedbackError
from snn_dfa.kolen_pollack import correlation
from snn_dfa.sequence import AtOnce

__all__ = [
    "SYNAPSES",
    "gradient_at_input",
    "gradient_at_weight",
    "inside_neurons",
    "product",
    "synapses",
    "transposed",
]

SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def synapses(net: nn.Module) -> dict[str, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Return the linear and convolutional layers by name, but for those inside neurons.

    In the form of :func:`snn_dfa.over_time` they have the names that they have in the network.
    """
    inside = inside_neurons(net)
    wrapped = {m.module: name for name, m in net.named_modules() if isinstance(m, AtOnce)}
    return {
        wrapped.get(module, name): module
        for name, module in net.named_modules()
        if isinstance(module, SYNAPSES) and module not in inside
    }


def inside_neurons(net: nn.Module) -> set[nn.Module]:
    """Return the modules that spiking neurons hold, such as recurrent weights."""
    neurons = (n for n in net.modules() if isinstance(n, snn.SpikingNeuron))
    return {module for neuron in neurons for module in neuron.modules()}


def gradient_at_weight(module: Any, x: Tensor, error: Tensor) -> Tensor:
    """Return what the module's weight gets from an input [..., *] and the error at its output."""
    x = x.to(error.dtype)
    if isinstance(module, nn.Linear):
        return correlation(error, x)
    with torch.enable_grad():
        weight = torch.zeros_like(module.weight, dtype=error.dtype, requires_grad=True)
        out = module._conv_forward(x, weight, None)  # the module's call would run its hooks
    return torch.autograd.grad(out, weight, error)[0]


def gradient_at_input(module: Any, x: Tensor, weight: Tensor, error: Tensor) -> Tensor:
    """Return what an input gets from the error at the output of the module with this weight."""
    if isinstance(module, nn.Linear):
        return error @ weight
    with torch.enable_grad():
        x = torch.zeros_like(x, dtype=error.dtype, requires_grad=True)
        out = module._conv_forward(x, weight, None)
    return torch.autograd.grad(out, x, error)[0]


def product(weights: Sequence[Tensor]) -> Tensor:
    """Return the product of weights [N2, N1], [N3, N2], ..., [C, Nk]: a map [C, N1].

    Example:
        >>> import torch
        >>> product([torch.ones(3, 4), torch.ones(2, 3)])
        tensor([[3., 3., 3., 3.],
                [3., 3., 3., 3.]])
    """
    first, *rest = weights
    for weight in rest:
        first = weight @ first
    return first


def transposed(net: nn.Module) -> Transposed:
    """Return what gives a layer's B as the product of the forward weights after it.

    It is what a gradient is multiplied by on its way back, but for the neurons' slopes and a
    normalisation's factors; for dense layers.
    """

    def matrix(name: str, sites: Sites) -> Tensor:
        weights = _weights_after(net, name, sites)
        return product(weights).reshape(sites[name])

    return matrix


def _weights_after(net: nn.Module, name: str, sites: Sites) -> list[Tensor]:
    """Return the weights from a layer to the output, each told by its shape.

    From the output back: among layers of equal shapes the one that is registered last is the last.
    """
    names = list(sites)
    sizes = [*(math.prod(sites[n][1:]) for n in names), sites[name][0]]
    left = [m for m in synapses(net).values() if isinstance(m, nn.Linear)]
    found: list[Tensor] = []
    for i in reversed(range(names.index(name), len(names))):
        fitting = [m for m in left if (m.in_features, m.out_features) == (sizes[i], sizes[i + 1])]
        if not fitting:
            raise FeedbackError(
                f"feedback: 'transpose' needs an nn.Linear from the {sizes[i]} neurons of layer "
                f"{names[i]!r} to the {sizes[i + 1]} after it, found none; use another kind"
            )
        found.insert(0, fitting[-1].weight.detach())
        left.remove(fitting[-1])
    return found
