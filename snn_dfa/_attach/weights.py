"""Finding the modules with weights that lie between a network's neurons."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa.feedback.apply import correlation
from snn_dfa.sequence import AtOnce

__all__ = [
    "SYNAPSES",
    "gradient_at_input",
    "gradient_at_weight",
    "inside_neurons",
    "synapses",
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
