"""Finding the modules with weights that lie between a network's neurons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa._distributed import whole
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.apply import correlation
from snn_dfa.feedback.stand_in import Inflow
from snn_dfa.sequence import AtOnce

__all__ = [
    "SYNAPSES",
    "gradient_at_input",
    "gradient_at_weight",
    "gradient_to_mirror",
    "inside_neurons",
    "own_step",
    "synapses",
]

#: A layer is driven by noise in so many rows at least, or an eighth of the number of inputs of one
#: of its neurons: so its factor comes closer by a tenth or more each time, however many there are.
MIRROR_ROWS = 64
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


def gradient_to_mirror(module: Any, factor: Tensor, noise: Callable[..., Tensor]) -> Tensor:
    """Return the step that makes a factor answer noise more as the module's weight does.

    Args:
        module: The module; it is driven by noise, forwards.
        factor: Of its weight's shape.
        noise: From a shape to numbers of mean 0 and variance 1.
    """
    inputs = factor[0].numel()
    rows = max(MIRROR_ROWS, inputs // 8)
    if isinstance(module, nn.Linear):
        x = noise(rows, inputs)
    else:
        sizes = [d * (k - 1) + s * 8 for d, k, s in zip(
            module.dilation, module.kernel_size, module.stride, strict=True)]  # fmt: skip
        x = noise(-(-rows // 8 ** len(sizes)) + 1, module.in_channels, *sizes)
    with torch.no_grad():
        weight = whole(module.weight.detach()).to(factor)
        if isinstance(module, nn.Linear):
            error = x @ weight.t() - x @ factor.t()
        else:
            error = module._conv_forward(x, weight, None) - module._conv_forward(x, factor, None)
    rows = error.numel() // error.shape[1]
    return gradient_at_weight(module, x, error) / (rows + inputs)


def own_step(x: Inflow, name: str, module: Any, shape: tuple[int, ...] | None = None) -> Inflow:
    """Return an inflow through the factor of a layer, as the layer's module would send it.

    Args:
        x: The inflow.
        name: Of the layer.
        module: The module.
        shape: Of what comes in; ``None`` if it has the dimensions that the module takes.
    """
    if isinstance(module, nn.Linear):
        return stand_in.weigh(x, name)
    dims = len(module.kernel_size) + 1  # a weight that is computed would change by being read

    def convolved(value: Tensor, v: Tensor) -> Tensor:
        value = value if shape is None else value.reshape(-1, *shape[-dims:])
        out: Tensor = module._conv_forward(value, v, None)
        return out

    return x.through(name, convolved)
