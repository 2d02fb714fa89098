"""Clearing the states of a network's neurons between sequences."""

from __future__ import annotations

import snntorch as snn
import torch
from torch import Tensor, nn

__all__ = ["reset"]

# What snnTorch's neurons call their states, for neurons of a user's making without reset_mem().
_STATES = ("mem", "syn", "spk", "syn_exc", "syn_inh")


def reset(net: nn.Module) -> None:
    """Clear the state of every spiking neuron in ``net``, and of no other.

    Call it before each sequence. It resets all neurons in ``net.modules()``, also nested, copied
    and unpickled ones. ``snntorch.utils.reset`` of version 1.0.0 misses these neurons, and resets
    neurons of other networks.

    Args:
        net: A network, or a neuron.

    Example:
        >>> net = nn.Sequential(nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True)))
        >>> _ = net(torch.ones(1, 3))
        >>> reset(net)
        >>> net[0][0].mem
        tensor([[0., 0., 0.]])
    """
    for module in net.modules():
        reset_mem = getattr(module, "reset_mem", None)
        if callable(reset_mem):
            reset_mem()
        elif isinstance(module, snn.SpikingNeuron):
            for name in _STATES:
                state = getattr(module, name, None)
                if isinstance(state, Tensor):
                    setattr(module, name, torch.zeros_like(state))
