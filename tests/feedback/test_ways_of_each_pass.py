"""Feedback made of what comes into layers: of the passes that the loss reads, and of each alone.

With one step, each neuron's own gate and the weights as factors the gradient is back-propagation's.
"""

import pytest
import torch
from torch import nn
from ways import leaky, with_weights

from snn_dfa import DFA, KolenPollackProduct, WeightMirror, reset

X = 2 * torch.rand(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def dropout():
    return nn.Sequential(
        nn.Linear(5, 8), leaky(), nn.Dropout(), nn.Linear(8, 8), leaky(), nn.Dropout(),
        nn.Linear(8, 3), leaky(),
    )  # fmt: skip


class Branches(nn.Module):
    """A layer that takes one of two others, or the input."""

    way = 0

    def __init__(self):
        super().__init__()
        self.l0, self.n0 = nn.Linear(5, 8), leaky()
        self.l1, self.n1, self.l2, self.n2 = nn.Linear(8, 7), leaky(), nn.Linear(8, 7), leaky()
        self.last, self.past, self.out = nn.Linear(7, 3), nn.Linear(5, 3), leaky()

    def forward(self, x):
        h = self.n0(self.l0(x))
        if self.way == 2:
            return self.out(self.past(x))
        return self.out(self.last(self.n2(self.l2(h)) if self.way else self.n1(self.l1(h))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.l0, self.n0, self.drop = nn.Linear(5, 8), leaky(), nn.Dropout(0.3)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.n1, self.last, self.out = leaky(), nn.Linear(8, 3), leaky()

    def forward(self, x):
        h = self.n0(self.l0(x.unsqueeze(1) * torch.tensor([[1.0], [0.5], [0.8]])))
        shares = torch.softmax(self.q(h) @ self.k(h).mT, -1)
        return self.out(self.last(4 * self.n1(self.drop(shares) @ self.v(h)).mean(1)))


def loss_of(net, x=X[0], way=0, *, training=True, seed=1):
    net.way = way
    net.train(training)
    reset(net)
    torch.manual_seed(seed)
    spk = net(x)
    assert 0 < spk.mean() < 1
    return (spk * torch.arange(1.0, 4)).sin().sum()


def grads_of(net, backward):
    net.zero_grad()
    backward(net)
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def attached(kind, ways=(0,), feedback=None):
    """Return a network whose factors are the weights, and what has to be kept."""
    torch.manual_seed(0)
    net = kind().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, feedback=feedback or WeightMirror(by_sample=1))
    for way in ways:
        loss_of(net, way=way).backward()
    with_weights(dfa, net)
    return net, dfa, optimizer


def assert_back_propagation(net, dfa, backward):
    found = grads_of(net, backward)
    with dfa.paused():
        wanted = grads_of(net, backward)
    for name, grad in wanted.items():
        assert grad.any() or name.startswith(("l", "past"))
        torch.testing.assert_close(found.get(name, 0 * grad), grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [dropout, Attention])
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_passes_that_no_loss_reads_do_not_count(kind, passes):
    """As an evaluation without torch.no_grad()."""
    net, dfa, _optimizer = attached(kind)

    def backward(net):
        for _ in range(passes):
            loss_of(net, X[1], training=False)
        loss_of(net).backward()

    assert_back_propagation(net, dfa, backward)


def in_turn(net, ways):
    for x, way in zip(X, ways, strict=True):
        loss_of(net, x, way).backward()


def both_first(net, ways):
    losses = [loss_of(net, x, way) for x, way in zip(X, ways, strict=True)]
    for loss in losses:
        loss.backward()


def the_last_first(net, ways):
    losses = [loss_of(net, x, way) for x, way in zip(X, ways, strict=True)]
    for loss in reversed(losses):
        loss.backward()


def as_one_loss(net, ways):
    sum(loss_of(net, x, way) for x, way in zip(X, ways, strict=True)).backward()


ORDERS = [in_turn, both_first, the_last_first, as_one_loss]


@pytest.mark.parametrize("ways", [(0, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("order", ORDERS)
def test_each_pass_has_its_own_way(order, ways):
    """By way 2 nothing flows from the hidden layers to the output."""
    net, dfa, _optimizer = attached(Branches, (0, 1))
    assert_back_propagation(net, dfa, lambda net: order(net, ways))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("feedback", [KolenPollackProduct(), WeightMirror(by_sample=0)])
def test_so_it_is_without_ways_of_samples(feedback, order):
    net, _dfa, _optimizer = attached(Branches, (0, 1), feedback)
    wanted = grads_of(net, lambda net: in_turn(net, (0, 1)))
    found = grads_of(net, lambda net: order(net, (0, 1)))
    for name, grad in wanted.items():
        assert grad.any() or name.startswith(("l", "past"))
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


def test_a_training_pass_and_an_evaluation_in_one_loss():
    net, dfa, _optimizer = attached(Attention)

    def backward(net):
        (loss_of(net) + loss_of(net, X[1], training=False)).backward()

    assert_back_propagation(net, dfa, backward)


def test_where_saved_tensors_are_packed_a_layer_keeps_its_way():
    """As on their way to the CPU. What comes in is not to be seen then: it is not nothing."""
    net, dfa, _optimizer = attached(dropout)
    before = dfa.feedback

    def backward(net):
        with torch.autograd.graph.save_on_cpu():
            loss = loss_of(net)
        loss.backward()

    assert grads_of(net, backward)["0.weight"].any()
    for name, matrix in before.items():
        torch.testing.assert_close(dfa.feedback[name], matrix)


class Heads(nn.Module):
    """Three outputs, of which a loss reads one, or two read the input alone at times."""

    alone = False

    def __init__(self):
        super().__init__()
        self.l0, self.n0 = nn.Linear(5, 8), leaky()
        self.heads = nn.ModuleList(nn.Linear(8, n) for n in (3, 4, 2))
        self.past = nn.ModuleList(nn.Linear(5, n) for n in (3, 4, 2))
        self.outs = nn.ModuleList(leaky() for _ in range(3))

    def forward(self, x):
        h = self.n0(self.l0(x))
        currents = [head(h) for head in self.heads]
        if self.alone:
            currents[1:] = [past(x) for past in self.past[1:]]
        return [out(current) for out, current in zip(self.outs, currents, strict=True)]


def test_of_outputs_that_no_loss_reads_the_sizes_are_known():
    """Also where layers are called without the network, so that a pass has no end."""
    torch.manual_seed(0)
    net = Heads().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    DFA(net, optimizer=optimizer, output=["outs.0", "outs.1", "outs.2"])
    for _ in range(2):
        reset(net)
        net.zero_grad()
        Heads.forward(net, X[0])[1].sum().backward()
        optimizer.step()
    assert net.l0.weight.grad.any()


def test_outputs_that_read_the_input_alone_at_times():
    torch.manual_seed(0)
    net = Heads().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    outputs, feedback = ["outs.0", "outs.1", "outs.2"], WeightMirror(by_sample=1)
    dfa = DFA(net, optimizer=optimizer, output=outputs, feedback=feedback)

    def backward(net):
        reset(net)
        sum((i + spk.sum(1)).sin().sum() for i, spk in enumerate(net(X[0]))).backward()

    backward(net)
    with_weights(dfa, net)
    for net.alone in (False, True, False):
        assert_back_propagation(net, dfa, backward)
