"""Which parameters belong to which hidden layer, so that one block can be frozen at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa._attach.hooks import place
from snn_dfa._attach.layers import Reference
from snn_dfa.dfa import DFA

__all__ = ["blocks"]


def blocks(
    net: nn.Module,
    run: Callable[[nn.Module], object],
    output: Reference | list[Reference] | None = None,
    hidden: Reference | list[Reference] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return the parameters of each hidden block: between the layers before and its own spikes.

    They are the parameters that a loss on the layer's spikes reaches when DFA is attached.

    Args:
        net: A plain network. It is copied, and left as it was.
        run: Runs the network, its argument, over a batch, from rest.
        output: As for :class:`snn_dfa.DFA`; by name.
        hidden: As for :class:`snn_dfa.DFA`; by name.

    Returns:
        Name of each hidden layer, in the order of the network, to the names of its block's
        parameters; those that are frozen already are left out.

    Raises:
        AttachError: if DFA cannot be attached to the network.

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), nn.BatchNorm1d(8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 2),
        ... )
        >>> blocks(net, lambda net: net(torch.rand(3, 4)), output="3")
        {'2': ('0.weight', '0.bias', '1.weight', '1.bias')}
    """
    twin = copy.deepcopy(net)
    with DFA(twin, rule="shallow", output=output, hidden=hidden) as dfa:
        with torch.enable_grad():
            run(twin)  # by now the output is known
        return {name: _reached(twin, run, name) for name in dfa.hidden}


def _reached(net: nn.Module, run: Callable[[nn.Module], object], layer: str) -> tuple[str, ...]:
    """Return the names of the parameters that a loss on a layer's spikes reaches."""
    spikes: list[Tensor] = []
    handles = place(net.get_submodule(layer), None, partial(_note, spikes))
    try:
        with torch.enable_grad():
            run(net)
    finally:
        for handle in handles:
            handle.remove()
    net.zero_grad()
    if any(each.requires_grad for each in spikes):
        torch.autograd.backward(torch.stack([each.sum() for each in spikes]).sum())
    return tuple(name for name, p in net.named_parameters() if p.grad is not None)


def _note(spikes: list[Tensor], output: Any) -> None:
    spikes.append(output[0] if isinstance(output, (tuple, list)) else output)
