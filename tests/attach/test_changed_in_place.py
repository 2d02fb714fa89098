"""Tensors that are changed in place after they have come in."""

import snntorch as snn
import torch
from oracle import Oracle
from torch import nn

from snn_dfa import DFA
from snn_dfa.surrogate import fast_sigmoid

T, B = 5, 3
LIF = {"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(2.0)}


def steps(batch):
    return 3 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(batch)).double()


def loss_of(values):
    return sum((v - 0.5).square().sum() for v in values)


def made(make):
    """Return a network whose outputs spike."""
    torch.manual_seed(0)
    net = make().double()
    for weight in net.parameters():
        weight.data += 0.08 * (weight.dim() > 1)
    return net


def assert_as_the_oracle(make, layers, outputs, run=lambda net, x: net(x), **options):
    """Compare two batches; ``run`` returns values, of which the first one are spikes."""
    plain, net = made(make), made(make)
    oracle, dfa = Oracle(plain, layers, outputs), DFA(net, **options)
    for batch in range(2):
        oracle.clear()
        net.zero_grad()
        wanted, got = run(plain, steps(batch)), run(net, steps(batch))
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
        assert torch.stack(got[:T]).gt(0).any()
        loss_of(got).backward()
        feedback = {} if options.get("rule") == "shallow" else dfa.feedback
        for name, grad in oracle.gradients(loss_of(wanted), feedback).items():
            found = net.get_parameter(name).grad
            if grad is None:
                assert found is None or not found.any()
            else:
                torch.testing.assert_close(found, grad, rtol=1e-9, atol=1e-9)


def test_the_program_changes_a_state_after_it_has_come_in():
    class Decayed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(**LIF)
            self.fc2, self.lif2 = nn.Linear(8, 2), snn.Leaky(**LIF)

        def forward(self, x):
            mem1, mem2, out = x.new_zeros(B, 8), x.new_zeros(B, 2), []
            for step in x:
                last1, last2 = 0.9 * mem1, 0.9 * mem2
                spk, mem1 = self.lif1(self.fc1(step), last1)
                spk, mem2 = self.lif2(self.fc2(spk), last2)
                out += [spk, last1.mul_(5)[:, :2], last2.mul_(3)]
            return out

    assert_as_the_oracle(Decayed, ["lif1"], ["lif2"])
