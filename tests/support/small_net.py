"""A small network, its gradients, and the hooks left on it."""

import snntorch as snn
import torch
from problems import T
from torch import nn

from snn_dfa import reset
from snn_dfa.surrogate import fast_sigmoid

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
         "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
         "_forward_hooks_always_called")  # fmt: skip


def small(**options):
    neuron = {"beta": 0.8, "threshold": 0.3, "init_hidden": True, "spike_grad": fast_sigmoid(10)}
    neuron.update(options)
    return nn.Sequential(
        nn.Linear(5, 7), snn.Leaky(**neuron), nn.Linear(7, 6), snn.Leaky(**neuron),
        nn.Linear(6, 3), snn.Leaky(**neuron),
    )  # fmt: skip


X = torch.rand(T, 4, 5, generator=torch.Generator().manual_seed(3))


def run(net, x=X):
    reset(net)
    return torch.stack([net(step) for step in x])


def gradients(net, x=X):
    net.zero_grad()
    run(net, x).square().mean().backward()
    return [p.grad.clone() for p in net.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def hooks_left(net):
    hooks = [hook for m in net.modules() for name in HOOKS for hook in getattr(m, name).values()]
    return hooks + [m for m in net.modules() if "forward" in vars(m)]
