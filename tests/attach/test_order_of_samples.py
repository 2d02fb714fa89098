"""Samples that come into a layer in another order than another layer has given them."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, AttachError
from snn_dfa.surrogate import fast_sigmoid

T, B = 4, 3
X = 3 * torch.rand(T, B, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ORDER = torch.tensor([2, 0, 1])
#: Which change the order alone.
CHANGED = {
    "index": lambda h: h[ORDER],
    "mask and index": lambda h: h[ORDER.tolist()],
    "index_select": lambda h: h.index_select(0, ORDER),
    "flip": lambda h: h.flip(0),
    "roll": lambda h: h.roll(1, 0),
    "behind the steps": lambda h: torch.stack([h, h])[:, ORDER].mean(0),
    "after a function": lambda h: (2 * h)[ORDER].relu(),
}
#: In these each sample is at its own place, too, or its features have another order.
KEPT = {
    "the same order": lambda h: h[torch.arange(B)],
    "all by a mask": lambda h: h[torch.ones(B, dtype=torch.bool)],
    "pairs that are mixed": lambda h: 0.7 * h + 0.3 * h[ORDER],
    "features by an index": lambda h: h[:, ORDER],
    "features the other way round": lambda h: h.flip(1),
    "copies of a mean": lambda h: torch.stack([h, h.flip(1)])[[1, 0]].mean(0),
}


class Net(nn.Module):
    def __init__(self, between, own=None):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.between, self.own = nn.Linear(3, 3), nn.Linear(3, 2), between, own
        self.lif1, self.lif2 = (snn.Leaky(0.8, 0.3, spike_grad=fast_sigmoid(5)) for _ in "12")
        self.double()

    def forward(self, x):
        one, two, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x:
            spk, one = self.lif1(self.fc1(step), one)
            spk, two = self.lif2(self.fc2(self.between(spk)), two)
            one = self.own(one) if self.own else one
            out.append(spk)
        return torch.stack(out)


@pytest.mark.parametrize("between", CHANGED.values(), ids=CHANGED)
def test_another_order_is_an_error(between):
    net = Net(between)
    with DFA(net), pytest.raises(AttachError, match=r"'lif2' gets the samples of layer 'lif1'"):
        net(X)
    with DFA(net, rule="fa"):
        net(X).sum().backward()
    assert net.fc1.weight.grad.any()


@pytest.mark.parametrize("between", KEPT.values(), ids=KEPT)
def test_what_leaves_samples_at_their_places_is_none(between):
    net = Net(between)
    with DFA(net):
        net(X).sum().backward()
    assert net.fc1.weight.grad.any()


def test_a_layers_own_states_may_change_places():
    net = Net(lambda h: h, own=lambda mem: mem[ORDER])
    with DFA(net):
        net(X).sum().backward()
    assert net.fc1.weight.grad.any()
