"""Finding the modules with weights that lie between a network's neurons."""

from __future__ import annotations

import math
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa._discover import Layers, spiking_layers
from snn_dfa._kinds import PRODUCT, TRANSPOSE, Sites
from snn_dfa.errors import FeedbackError
from snn_dfa.kolen_pollack import correlation
from snn_dfa.sequence import AtOnce

__all__ = [
    "SYNAPSES",
    "WeightsAfter",
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


class WeightsAfter:
    """The dense layers that lead from a hidden layer's spikes to the output, by name.

    The product of their weights is what a gradient is multiplied by on its way back, but for the
    neurons' slopes and a normalisation's factors.

    Args:
        net: The network.
        layers: Its layers; their output may not be known yet.
    """

    def __init__(self, net: nn.Module, layers: Layers) -> None:
        self._net = net
        self._layers = layers

    def check(self, kind: str) -> None:
        """Refuse a kind that is made of all weights on the way, where layers on it are not known.

        Raises:
            FeedbackError: if ``hidden=`` has left out a spiking layer before the output.
        """
        if kind not in (PRODUCT, TRANSPOSE) or self._layers.output is None:
            return
        order = {name: at for at, (name, _) in enumerate(self._net.named_modules())}
        first, end = min(order[n] for n in self._layers.hidden), order[self._layers.output]
        for name in spiking_layers(self._net):
            if name not in self._layers.modules and first < order[name] < end:
                raise FeedbackError(
                    f"feedback: {kind!r} expects every spiking layer between hidden ones and the "
                    f"output to be hidden, got {name!r} left out of hidden=; name it too, or use "
                    f"'gaussian'"
                )

    def weight(self, layer: str) -> Tensor:
        """Return a layer's weight."""
        return synapses(self._net)[layer].weight

    def names(self, name: str, path: Sites) -> list[str]:
        """Return the layers after a hidden one, first to last.

        From the output back, each is told by its shape, and among those of the same shape it is the
        last that is registered before the layer that it leads to.

        Args:
            name: Of the hidden layer.
            path: All hidden layers in the order of their calls, with shapes.

        Raises:
            FeedbackError: if one of them is not dense.
        """
        after = list(path)[list(path).index(name) :]
        sizes = [*(math.prod(path[n][1:]) for n in after), path[name][0]]
        to = [*after[1:], self._layers.output or ""]
        left = {n: m for n, m in synapses(self._net).items() if isinstance(m, nn.Linear)}
        found: list[str] = []
        for i in reversed(range(len(after))):
            shape = (sizes[i + 1], sizes[i])
            fitting = [n for n, m in left.items() if tuple(m.weight.shape) == shape]
            if not fitting:
                raise FeedbackError(
                    f"feedback: a product of weights or factors needs an nn.Linear from the "
                    f"{sizes[i]} neurons of layer {after[i]!r} to the {sizes[i + 1]} after it, "
                    f"found none; use another kind"
                )
            found.insert(0, to[i] if to[i] in fitting else self._last_before(to[i], fitting))
            del left[found[0]]
        return found

    def _last_before(self, name: str, fitting: list[str]) -> str:
        order = [n for n, _ in self._net.named_modules()]
        end = order.index(name) if name in order else len(order)
        return ([n for n in fitting if order.index(n) < end] or fitting)[-1]
