"""A loss that reads several sequences: each has samples of its own, with their own ways back."""

import pytest
import torch
from torch import nn
from ways import at_once, leaky

from snn_dfa import DFA, reset

SHAPES = ((4, 5), (4, 5), (3, 5), (2, 3))  # steps and samples


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 24), leaky(), nn.Linear(24, 16), leaky(), nn.Linear(16, 3), leaky()
    ).double()


class Inside(nn.Module):
    """A loop over time inside of the network."""

    goes_on = False

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        if not self.goes_on:
            reset(self)
        return torch.stack([self.net(step) for step in x])


def inside():
    net = Inside()
    return net, net


def around():
    net = network()

    def run(x):
        reset(net)
        return torch.stack([net(step) for step in x])

    return net, run


def all_at_once():
    net = at_once(network())
    return net, net


def loss_of(spk, i):
    """Of spikes [T, B, C] of the i-th sequence; another one at each step."""
    by = torch.arange(1.0, 1 + len(spk))[:, None, None] if i % 2 else 1.0
    return ((spk.sum(0) * (torch.arange(1.0, 4) + i)).sin().mean() + (by * spk).mean()) * (1 + i)


def prepared(form):
    """Return a network whose factors have learned, and how it is run."""
    net, run = form()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(run(2 * torch.rand(4, 5, 8).double()), 0).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net, run, (dfa, optimizer)


@pytest.mark.parametrize("form", [inside, around, all_at_once])
def test_the_gradient_of_a_sum_over_sequences_is_the_sum_of_gradients(form):
    found = []
    for apart in (True, False):
        net, run, _kept = prepared(form)
        generator, total = torch.Generator().manual_seed(1), 0
        for i, shape in enumerate(SHAPES):
            spk = run(2 * torch.rand(*shape, 8, generator=generator).double())
            assert 0 < spk.mean() < 1
            loss = loss_of(spk, i)
            if apart:
                loss.backward()
            else:
                total = total + loss
        if not apart:
            total.backward()
        found.append([p.grad for p in net.parameters()])
    for wanted, got in zip(*found, strict=True):
        assert wanted.any()
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def distance(one, other):
    return (one - other).square().sum()


def test_two_images_that_a_loss_compares_have_ways_of_their_own():
    """The same errors at the outputs, in one backward pass and in two."""
    found = []
    for apart in (True, False):
        net, run, _kept = prepared(inside)
        x = 2 * torch.rand(2, 4, 5, 8, generator=torch.Generator().manual_seed(2)).double()
        rates = [run(each).mean(0) for each in x]
        if apart:
            leaves = [rate.detach().requires_grad_() for rate in rates]
            for rate, error in zip(
                rates, torch.autograd.grad(distance(*leaves), leaves), strict=True
            ):
                rate.backward(error)
        else:
            distance(*rates).backward()
        found.append([p.grad for p in net.parameters()])
    for wanted, got in zip(*found, strict=True):
        assert wanted.any()
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_passes_that_go_on_from_each_others_states_are_one_sequence():
    """Chunks of a sequence, and the same sequence in one pass."""
    found = []
    for chunks in (1, 2, 4):
        net, _, _kept = prepared(inside)
        net.goes_on = True
        reset(net)
        x = 2 * torch.rand(4, 5, 8, generator=torch.Generator().manual_seed(3)).double()
        loss_of(torch.cat([net(part) for part in x.chunk(chunks)]), 1).backward()
        found.append([p.grad for p in net.parameters()])
    assert all(grad.any() for grad in found[0])
    for got in found[1:]:
        for wanted, grad in zip(found[0], got, strict=True):
            torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-12)
