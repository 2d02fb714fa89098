"""The networks and loops of snnTorch's tutorials 5, 6 and 7, with one line more."""

import pytest
import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import nn
from torch.nn import functional as F

from snn_dfa import DFA


class FullyConnected(nn.Module):
    """Tutorial 5: explicit membranes, the loop over time in ``forward``."""

    def __init__(self, num_inputs=784, num_hidden=1000, num_outputs=10, beta=0.95, num_steps=25):
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(num_inputs, num_hidden), snn.Leaky(beta=beta)
        self.fc2, self.lif2 = nn.Linear(num_hidden, num_outputs), snn.Leaky(beta=beta)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


def convolutional(channels, maps, features, beta, spike_grad):
    """Tutorials 6 and 7: hidden states, the loop over time around ``nn.Sequential``."""
    lif = {"beta": beta, "spike_grad": spike_grad, "init_hidden": True}
    return nn.Sequential(
        nn.Conv2d(channels, 12, 5), nn.MaxPool2d(2), snn.Leaky(**lif),
        nn.Conv2d(12, maps, 5), nn.MaxPool2d(2), snn.Leaky(**lif),
        nn.Flatten(), nn.Linear(features, 10), snn.Leaky(**lif, output=True),
    )  # fmt: skip


def loop(net, data):
    utils.reset(net)
    spk_rec, mem_rec = [], []
    for step in data:
        spk, mem = net(step)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


def images(digits, side):
    return F.interpolate(digits.train.x, size=(side, side))


def tutorial_5(digits):
    net = FullyConnected()
    x, criterion = images(digits, 28).flatten(1), nn.CrossEntropyLoss()

    def loss_of(rows, y):
        spk_rec, mem_rec = net(x[rows])
        return sum(criterion(mem, y) for mem in mem_rec), spk_rec

    return net, torch.optim.Adam(net.parameters(), lr=5e-4, betas=(0.9, 0.999)), loss_of


def tutorial_6(digits):
    net = convolutional(1, 64, 64 * 4 * 4, 0.5, surrogate.fast_sigmoid(slope=25))
    x, criterion = images(digits, 28), SF.ce_rate_loss()

    def loss_of(rows, y):
        spk_rec, _ = loop(net, x[rows].expand(10, -1, -1, -1, -1))
        return criterion(spk_rec, y), spk_rec

    return net, torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.9, 0.999)), loss_of


def tutorial_7(digits):
    net = convolutional(2, 32, 32 * 5 * 5, 0.5, surrogate.atan())
    x, criterion = images(digits, 34), SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    generator = torch.Generator().manual_seed(0)

    def loss_of(rows, y):
        on = x[rows].expand(8, -1, -1, -1, -1)
        rates = torch.cat([0.5 * on, 0.2 * (1 - on)], 2)  # of the two polarities
        spk_rec, _ = loop(net, torch.bernoulli(rates, generator=generator))
        return criterion(spk_rec, y), spk_rec

    return net, torch.optim.Adam(net.parameters(), lr=2e-2, betas=(0.9, 0.999)), loss_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tutorial", "options", "batches"),
    [
        (tutorial_5, {}, 24),
        (tutorial_6, {}, 80),
        # Its rate of 0.02, without normalisation, silences the network under fixed feedback.
        (tutorial_7, {"feedback": "kolen-pollack"}, 80),
    ],
)
def test_it_trains(tutorial, options, batches, digits):
    torch.manual_seed(0)
    net, optimizer, loss_of = tutorial(digits)
    dfa = DFA(net, **options)
    first = {k: p.detach().clone() for k, p in net.named_parameters()}
    losses, rates = [], []
    for batch in range(batches):
        rows = slice(32 * batch % 1216, 32 * batch % 1216 + 32)
        y = digits.train.y[rows]
        loss, spk_rec = loss_of(rows, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rates.append(SF.accuracy_rate(spk_rec.detach(), y))
    assert len(dfa.hidden) == (1 if tutorial is tutorial_5 else 2)
    for name, p in net.named_parameters():
        assert not torch.equal(p, first[name]), name
    assert sum(losses[-8:]) < 0.85 * sum(losses[:8])
    assert sum(rates[-8:]) / 8 > 0.35
