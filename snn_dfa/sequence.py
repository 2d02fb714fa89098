"""Whole sequences: a snnTorch network turned inside out, each layer over all steps at once."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa.errors import AttachError
from snn_dfa.state import reset

__all__ = ["OverTime", "Scan", "over_time"]


class Scan(nn.Module):
    """A spiking neuron over a sequence: [T, B, ...] in and out, from rest.

    Returns what the neuron returns at a step, stacked over T.
    """

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Any:
        """Run the neuron over the sequence [T, B, ...]."""
        reset(self.neuron)
        steps = [self.neuron(step) for step in x]
        reset(self.neuron)  # its last state would keep the whole graph alive
        if isinstance(steps[0], Tensor):
            return torch.stack(steps)
        return tuple(torch.stack(states) for states in zip(*steps, strict=True))


class _AtOnce(nn.Module):
    """A stateless module on all T * B samples at once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class OverTime(nn.Sequential):
    """What :func:`over_time` returns: the layers of a network, each over the whole sequence."""

    def __init__(self, net: nn.Module, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self._source = (net,)  # in a tuple: its parameters are registered once, by the layers
        for name, layer in layers.items():
            self.add_module(name, layer)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the network that this was made of."""
        return self._source[0].state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the network that this was made of, with which parameters are shared."""
        return self._source[0].load_state_dict(*args, **kwargs)


def over_time(net: nn.Sequential) -> OverTime:
    r"""Return ``net`` in a form that takes whole sequences and shares its parameters and buffers.

    The loop over time around the network becomes a loop inside each neuron: stateless modules see
    all T * B samples in one call. Values and gradients are those of the loop, from rest. A module
    that mixes the samples of a batch, such as batch normalisation, mixes over T * B: its
    statistics are over time and batch.

    Layers keep their names, so that :class:`snn_dfa.DFA` draws the same feedback for both forms.
    Attach it to the form that is run.

    Args:
        net: ``nn.Sequential``, nested too, of snnTorch neurons and stateless modules. A network
            whose ``forward`` is a loop over time is brought into this form by writing its layers
            as an ``nn.Sequential``, with ``init_hidden=True`` in the neurons.

    Returns:
        A module that maps [T, B, ...] to the output spikes [T, B, C], or to what else the last
        neuron returns at a step, stacked over T.

    Raises:
        AttachError: if a module inside is neither.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), snn.Leaky(beta=0.9, init_hidden=True))
        >>> over_time(net)(torch.rand(25, 3, 4)).shape
        torch.Size([25, 3, 2])
    """
    return OverTime(net, _layers(net, ""))


def _layers(net: nn.Module, prefix: str) -> dict[str, nn.Module]:
    if not isinstance(net, nn.Sequential):
        raise AttachError(
            f"over_time: expected nn.Sequential, got {prefix or 'net'} of type "
            f"{type(net).__name__}, which holds spiking neurons; write its layers as an "
            f"nn.Sequential, with init_hidden=True in the neurons"
        )
    return {name: _layer(child, f"{prefix}{name}") for name, child in net.named_children()}


def _layer(module: nn.Module, name: str) -> nn.Module:
    if isinstance(module, snn.SpikingNeuron):
        return Scan(module)
    if any(isinstance(m, snn.SpikingNeuron) for m in module.modules()):
        return OverTime(module, _layers(module, f"{name}."))
    return _AtOnce(module)
