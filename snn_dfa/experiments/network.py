"""The experiments' network: plain snnTorch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import snntorch as snn
import torch
from torch import nn

from snn_dfa.surrogate import fast_sigmoid

__all__ = ["multilayer"]


def multilayer(
    sizes: Sequence[int], *, beta: float, threshold: float, slope: float, seed: int
) -> nn.Sequential:
    """Build Linear, normalisation of the current, Leaky for each layer; the last one unnormalised.

    Inputs of a spiking layer are never negative, so that a mean error pushes all weights of a
    neuron the same way, until it is silent or fires at every step and learning ends.
    Normalising the current before the neuron removes that direction.

    Args:
        sizes: Features, hidden sizes, classes.
        beta: Decay of the membranes.
        threshold: Of the neurons.
        slope: Of the fast-sigmoid surrogate.
        seed: Of the weights; the global generator is left as it was.
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
            layers.append(nn.Linear(n_in, n_out))
            if number < len(sizes) - 1:
                layers.append(nn.BatchNorm1d(n_out))
            layers.append(
                snn.Leaky(beta, threshold, spike_grad=fast_sigmoid(slope), init_hidden=True)
            )
    return nn.Sequential(*layers)
