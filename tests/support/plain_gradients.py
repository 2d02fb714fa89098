"""The gradients of DFA without any of PyTorch's machinery around it."""

import torch
from distributed import OverSteps, data, network
from torch import nn

from snn_dfa import (
    DFA,
)

X, Y = data(0)


def loss_of(out, y=Y):
    return nn.functional.cross_entropy(out.float().sum(0), y)


def grads(module):
    return [p.grad.clone() for p in module.parameters()]


def attached(**options):
    form = OverSteps(network())
    return form, DFA(form, output="net.5", **options)


def plain_gradients(x=X, y=Y, **options):
    form, _ = attached(**options)
    loss_of(form(x), y).backward()
    return grads(form)


def assert_close(a, b, tolerance=1e-6):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance)
