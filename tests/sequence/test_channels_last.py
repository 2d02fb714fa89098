"""Between convolutions the channels lie last in memory; no value depends on it."""

from __future__ import annotations

import copy

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, over_time, reset
from snn_dfa.sequence.scan import Dynamics, credit_at_current, leaky_scan
from snn_dfa.surrogate import fast_sigmoid

STEPS, BATCH = 3, 2


def _neuron(**options):
    return snn.Leaky(0.9, spike_grad=fast_sigmoid(5), threshold=0.2, init_hidden=True, **options)


class _View(nn.Module):
    """Asks for a view, which numbers with their channels last do not have."""

    def forward(self, x):
        return x.view(len(x), -1)


def _net(channels, flatten):
    torch.manual_seed(0)
    beta = torch.rand(4, 1, 1)
    return nn.Sequential(
        nn.Conv2d(channels, 3, 3), nn.MaxPool2d(2), _neuron(),
        nn.Conv2d(3, 4, 3), nn.AvgPool2d(2),
        snn.Leaky(beta, spike_grad=fast_sigmoid(5), threshold=0.1, init_hidden=True), flatten,
        nn.Linear(16, 5), _neuron(),
    )  # fmt: skip


@pytest.mark.parametrize("credit", [None, "membrane", "current"])
@pytest.mark.parametrize("channels", [1, 2])
def test_values_and_gradients_are_those_of_the_loop(channels, credit):
    net = _net(channels, nn.Flatten() if channels == 1 else _View())
    nets = net, copy.deepcopy(net)
    forms = nets[0], over_time(nets[1])
    if credit:
        for form in forms:
            DFA(form, output="8", seed=0, credit=credit)
    x = torch.rand(STEPS, BATCH, channels, 14, 14)
    reset(net)
    spikes = torch.stack([net(step) for step in x]), forms[1](x)
    assert spikes[0].any()
    assert torch.equal(*spikes)
    for each in spikes:
        (each.sum(0) ** 2).sum().backward()
    for a, b in zip(*(n.parameters() for n in nets), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_last_spikes_lie_as_those_of_the_loop():
    form = over_time(nn.Sequential(nn.Conv2d(2, 3, 3), _neuron()))
    assert form(torch.rand(STEPS, BATCH, 2, 6, 6)).is_contiguous()


def test_no_layer_between_convolutions_copies():
    layers = nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), _neuron(), nn.Flatten(), _neuron()
    form = over_time(nn.Sequential(*layers))
    x = torch.rand(STEPS, BATCH, 1, 8, 8)
    for layer in list(form)[:3]:
        x = layer(x)
        assert x.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scan_gives_the_same_in_any_order_of_its_dimensions(dtype):
    dyn = Dynamics(torch.rand(4, 1, 1), torch.rand(4, 3, 5) + 0.5, fast_sigmoid(5))
    x = torch.rand(STEPS, BATCH, 4, 3, 5, dtype=dtype)
    mem = torch.rand(BATCH, 4, 3, 5, dtype=dtype)
    found = []
    for order in ((0, 1, 2, 3, 4), (0, 1, 3, 4, 2), (0, 1, 4, 2, 3)):
        back = [order.index(i) for i in range(5)]
        current = x.permute(order).contiguous().permute(back).requires_grad_()
        first = mem.clone().requires_grad_()
        values = leaky_scan(current, dyn, want_states=True, start=(first, None), want_last=True)
        grads = torch.autograd.grad((values[0] * x + values[1]).sum(), (current, first))
        credit = credit_at_current(x, current.detach(), dyn.threshold, dyn.surrogate)
        found.append((*values, *grads, credit))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)
