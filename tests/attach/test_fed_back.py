"""A network whose output leads to its next input, as an action to the next state in a roll-out."""

import pytest
import snntorch as snn
import torch
from oracle import Oracle
from torch import nn

from snn_dfa import DFA, BackwardError
from snn_dfa.surrogate import fast_sigmoid

B, STEPS = 4, 3


def lif():
    return snn.Leaky(beta=0.8, threshold=0.3, spike_grad=fast_sigmoid(5))


class Actor(nn.Module):
    """Acts on a state; ``skip`` lets the state come into the output, too."""

    def __init__(self, readout=False, residual=False, skip=False):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(3, 8), lif(), nn.Linear(8, 7), lif()
        self.readout = nn.Linear(7, 3)
        self.lif3 = None if readout else lif()
        self.residual, self.skip = residual, skip
        self.double()

    def forward(self, x):
        mem1, mem2, total = self.lif1.init_leaky(), self.lif2.init_leaky(), 0
        mem3 = None if self.lif3 is None else self.lif3.init_leaky()
        for _ in range(STEPS):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            out = self.readout(spk) + (x if self.skip else 0)
            if self.lif3 is not None:
                _, mem3 = self.lif3(out, mem3)
                out = mem3
            total = total + out
        return x + total if self.residual else total


def world(state, action):
    return torch.tanh(1.5 * state - action) + 0.5 * state.roll(1, -1)


def rollout(actor, batch, reads="states"):
    state = torch.randn(B, 3, generator=torch.Generator().manual_seed(batch)).double()
    loss = 0
    for _ in range(4):
        action = actor(2 * state)
        state = world(state, action)
        loss = loss + (state if reads == "states" else action).square().mean()
    return loss


@pytest.mark.parametrize(
    ("options", "reads", "keep"),
    [
        ({}, "states", False), ({}, "actions", False), ({"readout": True}, "states", False),
        ({"residual": True}, "actions", False), ({"skip": True}, "actions", False),
        ({"residual": True}, "states", True), ({"skip": True}, "states", True),
    ],
    ids=str,
)  # fmt: skip
def test_each_output_learns_from_all_that_its_action_leads_to(options, reads, keep):
    output = "readout" if "readout" in options else "lif3"
    plain, net = Actor(**options), Actor(**options)
    oracle = Oracle(plain, ["lif1", "lif2"], [output])
    dfa = DFA(net, output=output)
    for batch in range(3):
        oracle.clear()
        net.zero_grad()
        wanted, got = rollout(plain, batch, reads), rollout(net, batch, reads)
        assert torch.equal(wanted, got)
        got.backward(retain_graph=keep)
        for name, grad in oracle.gradients(wanted, dfa.feedback).items():
            torch.testing.assert_close(net.get_parameter(name).grad, grad, rtol=1e-9, atol=1e-12)
        assert net.fc1.weight.grad.any()


@pytest.mark.parametrize("option", ["residual", "skip"])
def test_a_state_that_the_loss_and_the_output_itself_read_is_an_error(option):
    net = Actor(**{option: True})
    with DFA(net, output="lif3"):
        loss = rollout(net, 0)
        with pytest.raises(BackwardError, match="retain_graph=True"):
            loss.backward()
        assert all(p.grad is None for p in net.parameters())
        rollout(net, 0).backward(retain_graph=True)
        assert net.fc1.weight.grad.any()


class Decoded(nn.Module):
    """Two outputs of different sizes are sampled to a code, which a hidden layer decodes."""

    def __init__(self, detached):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.mean = nn.Linear(3, 8), lif(), nn.Linear(8, 2)
        self.gain = nn.Linear(8, 1)
        self.fc2, self.lif2, self.out = nn.Linear(2, 9), lif(), nn.Linear(9, 3)
        self.detached = detached
        self.double()

    def forward(self, x):
        spk, _ = self.lif1(self.fc1(x), self.lif1.init_leaky())
        mean, gain = self.mean(spk), self.gain(spk)
        code = mean + torch.exp(gain) * x[:, :2]
        cur = self.fc2(code.detach() if self.detached else code)
        spk, _ = self.lif2(cur, self.lif2.init_leaky())
        return self.out(spk), mean, gain


@pytest.mark.parametrize("learns", [False, True])
def test_what_outputs_hand_to_a_hidden_layer_is_cut(learns):
    x, grads = 2 * torch.rand(B, 3, generator=torch.Generator().manual_seed(1)).double(), []
    for detached in (False, True):
        net = Decoded(detached)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        options = {"optimizer": optimizer} if learns else {}
        DFA(net, output=["mean", "gain", "out"], **options)
        for _ in range(2):
            optimizer.zero_grad()
            sum((each - 1).square().mean() for each in net(x)).backward()
            optimizer.step()
        assert all(p.grad.any() for p in net.parameters())
        grads.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
