"""A network as people write it, with explicit states, and its gradients under DFA."""

import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA
from snn_dfa.surrogate import fast_sigmoid

T, B = 6, 3
X = 2 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(2))


def lif(**options):
    return snn.Leaky(**{"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(10), **options})


def hidden(**options):
    return lif(init_hidden=True, **options)


class Head(nn.Linear):
    """A linear layer with a ``forward`` of its own, so that its size is not known beforehand."""

    def forward(self, x):
        return super().forward(x)


class Net(nn.Module):
    """Explicit states; ``change`` is what the program does to spikes and membranes of each layer."""

    def __init__(self, change=lambda spk, mem: (spk, mem), call=lambda module: module):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(4, 8), lif(), nn.Linear(8, 2), lif()
        self.change, self.call = change, call

    def forward(self, x):
        mem1, mem2, out = torch.zeros(B, 8), torch.zeros(B, 2), []
        for step in x:
            spk1, mem1 = self.call(self.lif1)(self.fc1(step), mem1)
            spk1, mem1 = self.change(spk1, mem1)
            spk2, mem2 = self.call(self.lif2)(self.fc2(spk1), mem2)
            out.append(spk2 + mem2)
            spk2, mem2 = self.change(spk2, mem2)
        return torch.stack(out)


def gradients(net, batches=2, output="lif2", x=X, **options):
    """Gradients of the last batch; values are those of the plain network."""
    plain = net(x).detach()
    with DFA(net, output=output, **options):
        for _ in range(batches):
            net.zero_grad(set_to_none=True)
            out = net(x)
            assert torch.equal(out, plain)
            (out - 1).square().sum().backward()
    return {n: p.grad for n, p in net.named_parameters()}


def assert_alike(a, b):
    for name, gradient in a.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(b[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
