"""What a network returns: values of its output put together, and what parameters made of them."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, OutOfStepError
from snn_dfa.surrogate import fast_sigmoid

T, B = 4, 3


class Net(nn.Module):
    """Two layers in a loop; ``returned`` makes what is returned of the output's spikes."""

    def __init__(self, returned):
        super().__init__()
        options = {"threshold": 0.3, "spike_grad": fast_sigmoid(5)}
        self.fc1, self.lif1 = nn.Linear(4, 5), snn.Leaky(0.9, **options)
        self.fc2, self.lif2 = nn.Linear(5, 2), snn.Leaky(0.9, **options)
        self.gain, self.returned = nn.Parameter(torch.tensor(1.5)), returned

    def forward(self, x):
        mem1, mem2, spikes = torch.zeros(B, 5), torch.zeros(B, 2), []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
        return self.returned(self, spikes)


def stacked(net, spikes):
    whole = torch.stack(spikes)
    return whole, torch.sigmoid(net.gain * whole)


def added(net, spikes):
    total = spikes[0]
    for spk in spikes[1:]:
        total = total + spk
    whole = torch.cat([total, total - spikes[0]])
    return whole, (net.gain * whole).tanh()


def one_by_one(net, spikes):
    return spikes


def gradients(inside, outside, ask):
    """Return the gradients where some is computed in the network, and the rest of its result."""
    torch.manual_seed(0)
    net, x = Net(inside).double(), 2 * torch.rand(T, B, 4, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        with DFA(net, seed=1):
            for _ in range(2):  # in the first pass the output is not known
                result = net(x)
            plain, made = result if outside is None else outside(net, result)
            loss = plain.square().mean() + (plain * made).sum()
            assert 0.1 < (plain != 0).double().mean() < 1
            if ask == "grad":
                return torch.autograd.grad(loss, list(net.parameters()))
            loss.backward()
            return [p.grad for p in net.parameters()]
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("ask", ["backward", "grad"])
@pytest.mark.parametrize("make", [stacked, added])
def test_what_is_made_inside_the_network_learns_as_what_is_made_outside(make, ask):
    expected = gradients(one_by_one, make, "backward")
    for got, reference in zip(gradients(make, None, ask), expected, strict=True):
        assert reference.any()
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-12)


class TwoOutputs(nn.Module):
    """Two outputs; in the steps of ``late`` the hidden layer is called after both."""

    def __init__(self, late):
        super().__init__()
        self.fc, self.late = nn.Linear(4, 4), late
        self.hidden, self.left, self.right = (
            snn.Leaky(0.9, threshold=0.3, init_hidden=True) for _ in range(3)
        )

    def forward(self, x):
        out = []
        for i, step in enumerate(x):
            spk = self.fc(step)
            spk = spk if i in self.late else self.hidden(spk)
            out.append(self.left(spk) + self.right(spk))
            if i in self.late:
                self.hidden(spk)
        return torch.stack(out)


@pytest.mark.parametrize("late", [[0], [1]])
def test_a_layer_that_comes_after_both_outputs_in_one_step_is_refused(late):
    net = TwoOutputs(late)
    with (
        DFA(net, output=["left", "right"]),
        pytest.raises(OutOfStepError, match="'hidden' is called after the output"),
    ):
        net(torch.rand(2, B, 4))


def test_a_layer_that_comes_before_both_is_not():
    net = TwoOutputs([])
    with DFA(net, output=["left", "right"]):
        net(2 * torch.rand(2, B, 4)).sum().backward()
    assert net.fc.weight.grad.any()
