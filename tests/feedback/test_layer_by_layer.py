"""A network that runs all steps of a layer before the next layer begins has the gradients of its loop."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, reset
from snn_dfa.surrogate import fast_sigmoid

T, B = 4, 3


def leaky():
    return snn.Leaky(0.8, threshold=0.3, spike_grad=fast_sigmoid(5), init_hidden=True)


class Dense(nn.Module):
    """What lies before each of three neurons, for values of any leading dimensions."""

    shape, count = (6,), 12

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(n, 12) for n in (6, 12, 12, 12))
        self.norm, self.narrow = nn.LayerNorm(12), nn.Linear(8, 12)

    def functions(self):
        return self.a, self.middle, lambda z: 0.5 * self.c(z) - torch.tanh(self.d(z)) * 2

    def middle(self, z):
        gate = self.norm(self.b(z.flip(-1))).softmax(-1)
        parts = self.d(torch.cat([z[..., 6:], z[..., :6]], -1)).unflatten(-1, (3, 4)).mT
        both = torch.stack([z, functional.gelu(parts.flatten(-2))], -2)
        return both[..., 0, :] + gate * both[..., 1, :] + self.narrow(z[..., 2:10])


class Images(nn.Module):
    """The same with convolutions, pooling and normalisation."""

    shape, count = (2, 8, 8), 12

    def __init__(self):
        super().__init__()
        self.conv, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.fc, self.qkv = nn.BatchNorm2d(4), nn.Linear(64, 12), nn.Linear(4, 12)

    def functions(self):
        return self.conv, self.middle, lambda z: self.fc(z.flatten(1))

    def middle(self, z):
        z = self.norm(self.deep(functional.max_pool2d(z, 2)))
        q, k, v = self.qkv(z.flatten(2).mT).chunk(3, -1)
        return z + ((q @ k.mT).softmax(-1) @ v).mT.reshape(z.shape)


def merged(function, z):
    return function(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def in_chunks(function, z):
    return function(z.reshape(-1, *z.shape[2:])).chunk(len(z))


def apart(function, z):
    return [current[t] for current in [function(z)] for t in range(len(z))]


class Net(nn.Module):
    """Step by step, or with ``before`` layer by layer, as it computes what lies before a layer."""

    def __init__(self, made, before):
        super().__init__()
        self.made, self.neurons = made(), nn.ModuleList(leaky() for _ in range(3))
        self.out, self.before = nn.Linear(made.count, 3), before

    def forward(self, x):
        reset(self)
        layers = list(zip(self.made.functions(), self.neurons, strict=True))
        if self.before is None:
            return torch.stack([self.out(self.step(layers, z)) for z in x]).mean(0)
        for function, neuron in layers:
            x = torch.stack([neuron(current) for current in self.before(function, x)])
        return self.out(x.mean(0))

    def step(self, layers, z):
        for function, neuron in layers:
            z = neuron(function(z))
        return z


def gradients(made, before, steps=T):
    torch.manual_seed(0)
    net = Net(made, before).double().eval()
    x = 2 * torch.rand(steps, B, *made.shape, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    DFA(net, output="out", optimizer=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x) * torch.arange(1.0, 4)).sin().sum().backward()
        optimizer.step()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


CASES = [(Dense, merged), (Dense, in_chunks), (Dense, apart), (Images, merged), (Images, in_chunks)]


@pytest.mark.parametrize(("made", "before"), CASES)
@pytest.mark.parametrize("steps", [T, 1])
def test_layer_by_layer_learns_as_step_by_step(made, before, steps):
    wanted, found = gradients(made, None, steps), gradients(made, before, steps)
    assert all(grad.any() for name, grad in wanted.items() if name.endswith("weight"))
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-8, atol=1e-12)
