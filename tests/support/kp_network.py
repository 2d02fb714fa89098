"""The network, data and optimizer's equations of the Kolen-Pollack tests."""

import itertools
import math

import snntorch as snn
import torch
from torch import nn

from snn_dfa import reset
from snn_dfa.surrogate import fast_sigmoid

T, B, SIZES = 6, 5, (8, 7, 6, 3)


LR, DECAY = 0.02, 0.1


def network(seed=0):
    torch.manual_seed(seed)
    layers = []
    for n_in, n in itertools.pairwise(SIZES):
        layers += [nn.Linear(n_in, n),
                   snn.Leaky(0.8, 0.3, spike_grad=fast_sigmoid(5), init_hidden=True)]  # fmt: skip
    with torch.no_grad():
        for linear in layers[::2]:
            linear.weight.mul_(2)
            linear.bias.add_(0.2)
    return nn.Sequential(*layers)


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(T, B, SIZES[0], generator=generator),
            torch.randint(SIZES[-1], (B,), generator=generator))  # fmt: skip


def loop(net, x):
    reset(net)
    return torch.stack([net(step) for step in x])


def backward(forward, net, seed):
    x, y = batch(seed)
    nn.functional.cross_entropy(forward(net, x).sum(0), y).backward()


def adamw(matrix, gradient, state):
    """One number at a time, from the paper (Loshchilov and Hutter 2019, algorithm 2)."""
    n = state["n"] = state.get("n", 0) + 1
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            g = gradient[i, j].item()
            m, v = state.get((i, j), (0.0, 0.0))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            state[i, j] = m, v
            step = m / (1 - 0.9**n) / (math.sqrt(v / (1 - 0.999**n)) + 1e-8)
            matrix[i, j] -= LR * (step + DECAY * matrix[i, j].item())
