"""Several outputs, of which a pass may leave some out."""

import pytest
import snntorch as snn
import torch
from torch import nn
from user_nets import Head

from snn_dfa import DFA, OutOfStepError, reset


def leaky():
    return snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True)


class Tasks(nn.Module):
    """Two hidden layers, and a head for each task, of which a batch may have one."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 8), leaky()
        self.fc2, self.lif2 = nn.Linear(8, 8), leaky()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x, tasks):
        spk = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return {task: getattr(self, task)(spk) for task in tasks}


@pytest.mark.parametrize("options", [{}, {"credit": "trace"}, {"rule": "fa"}, {"optimizer": True}])
def test_an_output_that_is_not_called_has_no_error(options):
    """The gradient is that of a pass in which it is called and the loss does not read it."""
    torch.manual_seed(0)
    net = Tasks()
    if "optimizer" in options:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        options = {"optimizer": optimizer, "feedback": "kolen-pollack"}
    DFA(net, output=["a", "b"], **options)

    def grads(called, read):
        reset(net)
        net.zero_grad()
        out = net(3 * torch.ones(4, 5), called)
        sum(out[task].square().sum() for task in read).backward()
        return [p.grad.clone() for n, p in net.named_parameters() if n[0] in ("f", *read)]

    grads("ab", "ab")
    for task in "ab":
        wanted = grads("ab", task)
        assert all(g.any() for g in wanted)
        for found, want in zip(grads(task, task), wanted, strict=True):
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-7)


def test_outputs_are_all_called_first():
    net = Tasks()
    net.b = Head(8, 1)
    DFA(net, output=["a", "b"])
    with pytest.raises(OutOfStepError, match=r"'b' was not called, and.*one forward pass"):
        net(torch.rand(4, 5), "a")
    assert net.fc1.weight.grad is None


class Heads(nn.Module):
    """Three plain heads, of which each task calls its own alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif = nn.Linear(4, 20), snn.Leaky(beta=0.8, init_hidden=True)
        self.heads = nn.ModuleList(nn.Linear(20, n) for n in (2, 3, 1))

    def forward(self, x, task):
        spk = self.lif(self.fc(x))
        assert 0 < spk.mean() < 1
        return self.heads[task](spk)


HEADS = ["heads.0", "heads.1", "heads.2"]


def test_plain_heads_may_be_called_one_by_one_from_the_first_batch_on():
    """Of a linear layer it is known how many numbers it will have."""
    net, x = Heads(), 4 * torch.rand(6, 4)
    dfa = DFA(net, output=HEADS)
    grads = torch.autograd.grad(net(x, 1).square().sum(), net.fc.weight)[0]
    assert dfa.feedback["lif"].shape == (6, 20)
    B = dfa.feedback["lif"][2:5]
    dfa.remove()
    reset(net)
    current = net.fc(x).detach().requires_grad_()
    spk = net.lif(current)
    error = 2 * net.heads[1](spk.detach()).detach()
    wanted = torch.autograd.grad(spk, current, error @ B)[0].t() @ x
    torch.testing.assert_close(grads, wanted, rtol=1e-5, atol=1e-6)


def test_plain_heads_that_are_called_one_by_one_have_feedback_that_learns():
    net, x = Heads(), 4 * torch.rand(16, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    dfa = DFA(net, output=HEADS, optimizer=optimizer)

    def grad(task):
        reset(net)
        net.zero_grad()
        (net(x, task) - 1).square().sum().backward()
        return net.fc.weight.grad.flatten().clone()

    for task in (0, 1, 2, 0, 1, 2):
        grad(task)
        optimizer.step()
    for task in range(3):
        found = grad(task)
        with dfa.paused():
            wanted = grad(task)
        assert torch.cosine_similarity(found, wanted, dim=0) > 0.99
