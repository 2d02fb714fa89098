"""Outputs that no way leads to, beside others."""

import pytest
import torch
from torch import nn
from user_nets import Head
from ways import (
    B,
    leaky,
)

from snn_dfa import DFA, FeedbackError, reset


class EarlyExit(nn.Module):
    """Two outputs; the first reads values without a graph, the second the largest pixel."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.exit = nn.Linear(5, 8), leaky(), nn.Linear(8, 3)
        self.fc2, self.lif2, self.last = nn.Linear(8, 8), leaky(), nn.Linear(4, 2)

    def forward(self, x):
        first = self.lif1(self.fc1(x))
        second = self.lif2(self.fc2(first)).reshape(-1, 4, 2).amax(-1)
        return self.exit(first.detach()), self.last(second)


class ThreeHeads(nn.Module):
    """Two of them behind a product with weights from the left, and one of one number."""

    def __init__(self, head):
        super().__init__()
        self.fc, self.lif, self.mix = nn.Linear(5, 6), leaky(), nn.Parameter(torch.rand(6, 6))
        self.one, self.two, self.three = head(6, 2), head(6, 1), nn.Linear(6, 1)

    def forward(self, x):
        spk = self.lif(self.fc(x))
        mixed = (self.mix @ spk.t()).t()
        return self.one(mixed), self.two(mixed), self.three(spk)


@pytest.mark.parametrize("outputs", [["one", "three"], ["one", "two"], ["one", "two", "three"]])
def test_outputs_without_a_way_beside_one_with_it(outputs):
    net = ThreeHeads(nn.Linear)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with DFA(net, output=outputs, optimizer=optimizer) as dfa:
        for _ in range(2):
            reset(net)
            net.zero_grad()
            found = dict(zip(("one", "two", "three"), net(3 * torch.rand(B, 5)), strict=True))
            sum(found[name].square().sum() for name in outputs).backward()
            optimizer.step()
        assert dfa.feedback["lif"].any()
        assert net.fc.weight.grad.any()


def test_of_several_outputs_without_a_way_beside_one_with_it_the_sizes_are_to_be_known():
    net = ThreeHeads(Head)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    DFA(net, output=["one", "two", "three"], optimizer=optimizer)
    loss = sum(out.square().sum() for out in net(3 * torch.rand(B, 5)))
    with pytest.raises(FeedbackError, match=r"outputs \['one', 'two'\], .* at most one output"):
        loss.backward()
    assert all(p.grad is None for p in net.parameters())


def test_an_output_without_a_way_and_a_function_of_samples_leave_the_matrices_readable():
    torch.manual_seed(0)
    net = EarlyExit()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, output=["exit", "last"], optimizer=optimizer)
    for _ in range(2):
        reset(net)
        net.zero_grad()
        one, two = net(3 * torch.rand(6, 5))
        (one.square().sum() + two.square().sum()).backward()
        optimizer.step()
    assert {name: tuple(b.shape) for name, b in dfa.feedback.items()} == {
        "lif1": (5, 8),
        "lif2": (5, 8),
    }
    assert not any(b.any() for b in dfa.feedback.values())  # no product lets an error through alone
    assert net.fc2.weight.grad.any()  # each sample's way does
