"""Outputs of any shape, and several of them."""

import pytest
import torch
from torch import nn
from user_nets import B, X, hidden

from snn_dfa import DFA, reset


@pytest.mark.parametrize("channels", [8, 2])
def test_a_convolutional_readout(channels):
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), hidden(), nn.Conv2d(8, 8, 3, padding=1), hidden(),
        nn.Conv2d(8, channels, 1),
    )  # fmt: skip
    with DFA(net, output="4") as dfa:
        torch.stack([net(x) for x in torch.rand(4, 2, 1, 6, 6)]).square().mean().backward()
        assert {n: tuple(b.shape) for n, b in dfa.feedback.items()} == {
            "1": (channels * 36, 8, 6, 6), "3": (channels * 36, 8, 6, 6),
        }  # fmt: skip


@pytest.mark.parametrize("batches", [(5, 3), (2, 8)])
def test_one_output_without_a_dimension_of_its_own(batches):
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1, self.fc2, self.lif2 = (
                nn.Linear(4, 8),
                hidden(),
                nn.Linear(8, 1),
                hidden(),
            )

        def forward(self, x):
            reset(self)
            return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(s))).squeeze(-1)) for s in x])

    net = Squeezed()
    with DFA(net) as dfa:
        for batch in batches:
            net(torch.rand(6, batch, 4)).sum().backward()
            assert dfa.feedback["lif1"].shape == (1, 8)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = (
            nn.Linear(4, 8),
            hidden(),
            nn.Linear(8, 8),
            hidden(),
        )
        self.policy, self.value = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        h = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return self.policy(h), self.value(h)


@pytest.mark.parametrize("read", ["policy", "value", "both"])
def test_several_outputs_have_rows_of_their_own(read):
    net = ActorCritic()
    with torch.no_grad():
        net.fc1.weight.mul_(3)
    with DFA(net, output=["policy", "value"]) as dfa:
        for _ in range(2):
            net.zero_grad()
            reset(net)
            p, v = net(X[0])
            loss = p.square().sum() * (read != "value") + (v - 1).square().sum() * (
                read != "policy"
            )
            loss.backward()
        e = torch.cat([2 * p * (read != "value"), 2 * (v - 1) * (read != "policy")], 1).detach()
        sent = {name: e @ b for name, b in dfa.feedback.items()}
        assert {n: tuple(b.shape) for n, b in dfa.feedback.items()} == {
            "lif1": (4, 8),
            "lif2": (4, 8),
        }
        assert dfa.output == ("policy", "value")
    reset(net)
    spk = net.lif1(net.fc1(X[0]))
    (wanted,) = torch.autograd.grad(spk, net.fc1.weight, sent["lif1"])
    torch.testing.assert_close(net.fc1.weight.grad, wanted)
    assert wanted.abs().sum() > 0


def test_a_plain_head_that_is_not_named_is_a_penalty_with_a_warning():
    net = ActorCritic()
    with DFA(net, output="policy"):
        p, v = net(X[0])
        with pytest.warns(UserWarning, match=r"through 'value', .* output=\['policy', 'value'\]"):
            (p.sum() + v.sum()).backward()
        net.zero_grad(set_to_none=True)
        reset(net)
        net(X[0])[1].sum().backward()  # once
        assert net.fc1.weight.grad is None  # no further
        got = net.fc2.weight.grad
    reset(net)
    below = net.lif1(net.fc1(X[0])).detach()
    spk = net.lif2(net.fc2(below))
    (wanted,) = torch.autograd.grad(spk, net.fc2.weight, net.value.weight.expand(B, 8))
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(got, wanted)
