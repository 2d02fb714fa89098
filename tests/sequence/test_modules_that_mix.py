"""``over_time`` of an ``nn.Sequential`` whose modules may mix samples, keep a state, or count."""

import types
from collections import deque

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, AttachError, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

X = torch.rand(6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def leaky():
    surrogate = fast_sigmoid(5)
    return snn.Leaky(beta=0.8, threshold=0.2, spike_grad=surrogate, init_hidden=True)


def network(*between, sizes=(7, 7)):
    torch.manual_seed(0)
    layers = nn.Linear(4, sizes[0]), leaky(), *between, nn.Linear(sizes[1], 3), leaky()
    return nn.Sequential(*layers).double()


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Delay(nn.Module):
    """Spikes of the last steps, in a list that the module keeps."""

    def __init__(self):
        super().__init__()
        self.kept = deque(maxlen=3)

    def forward(self, x):
        self.kept.append(x)
        return sum(self.kept)


class InADict(nn.Module):
    def __init__(self):
        super().__init__()
        self.state = {}

    def forward(self, x):
        out = x + self.state.get("x", 0.0)
        self.state["x"] = (x * 0.5).detach()
        return out


class InAnObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.state = types.SimpleNamespace(x=0.0)

    def forward(self, x):
        out = x + self.state.x
        self.state.x = (x * 0.5).detach()
        return out


class Counts(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + self.calls % 3)


class Follows(nn.Module):
    """A mean over the samples that it has seen, changed in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(7))

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class NoiseInTraining(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


MIX = {
    "a delay": Delay, "a dict": InADict, "an object": InAnObject, "a count": Counts,
    "a buffer": Follows, "noise": Noise,
    "a mean over samples": lambda: Function(lambda x: x - x.mean(0)),
    "another order of samples": lambda: Function(lambda x: x.flip(0)),
    "a branch on a number": lambda: Function(lambda x: 2 * x if x.sum() > 10 else x),
    "a norm over samples": lambda: Function(lambda x: functional.normalize(x + 0.1, dim=0)),
    "softmax over samples": lambda: nn.Softmax(0),
    "attention over samples": lambda: nn.TransformerEncoderLayer(7, 1, 8, dropout=0.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIX)
@pytest.mark.parametrize("nested", [False, True])
def test_a_module_that_is_another_one_on_all_steps_raises_an_error(kind, nested):
    module = MIX[kind]()
    form = over_time(network(nn.Sequential(module) if nested else module))
    with pytest.raises(AttachError, match="over_time: the network"):
        form(X)


FINE = {
    "features": lambda: Function(lambda x: x - x.mean(1, keepdim=True)),
    "softmax": lambda: nn.Softmax(1),
    "noise in training": NoiseInTraining,
}


def grads_of(run, net):
    reset(net)
    net.zero_grad()
    spk = run(X)
    assert spk.any()
    spk.square().sum().backward()
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("kind", FINE)
@pytest.mark.parametrize("attach", [DFA, lambda net: None], ids=["dfa", "plain"])
def test_a_module_of_each_sample_gives_what_the_loop_gives(kind, attach):
    net = network(FINE[kind]()).eval()
    form = over_time(net)
    dfa = attach(form)
    found = grads_of(form, net)
    if dfa is not None:
        dfa.remove()
    attach(net)
    for got, want in zip(
        found, grads_of(lambda x: torch.stack([net(step) for step in x]), net), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_without_the_check_the_module_sees_all_steps_at_once():
    form = over_time(network(Function(lambda x: x - x.mean(0))), check=False)
    assert form(X).shape == (6, 5, 3)


def test_modules_that_are_known_are_not_compared(monkeypatch):
    def compared(*_, **__):
        raise AssertionError

    monkeypatch.setattr("snn_dfa.sequence.probe.examine", compared)
    over_time(network(nn.BatchNorm1d(7), nn.Dropout(0.1), nn.ReLU()))(X)


def test_a_switch_is_compared_again():
    class Switched(nn.Module):
        mixes = False

        def __init__(self):
            super().__init__()
            self.mixes = False

        def forward(self, x):
            return x - x.mean(0) if self.mixes else x

    net = network(Switched())
    form = over_time(net)
    form(X)
    net[2].mixes = True
    with pytest.raises(AttachError, match="other values"):
        form(X)
