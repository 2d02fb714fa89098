"""Layers that DFA knows, and that a program runs without calling them."""

import types

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, AttachError

T, B = 5, 3
X = 3 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(1))


def fired(lif, current, mem):
    mem = lif.beta * mem + current
    spk = lif.fire(mem)
    return spk, mem - spk.detach() * lif.threshold


RUNS = {
    "by its class": lambda lif, *args: snn.Leaky.forward(lif, *args),
    "by its type": lambda lif, *args: type(lif).forward(lif, *args),
    "by fire": fired,
}


class Net(nn.Module):
    """Three layers, of which some are run in another way than by a call."""

    def __init__(self, run=None, others=()):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.lif1, self.lif2, self.lif3 = (snn.Leaky(0.8, 0.3) for _ in "123")
        self.run, self.others = run, others

    def forward(self, x):
        return torch.stack([*self.steps(x)])

    def steps(self, x):
        mems = [torch.zeros(B, n) for n in (8, 8, 2)]
        for spk in x:
            for i, name in enumerate(("1", "2", "3")):
                lif, fc = getattr(self, f"lif{name}"), getattr(self, f"fc{name}")
                run = self.run if name in self.others else nn.Module.__call__
                spk, mems[i] = run(lif, fc(spk), mems[i])
            yield spk


@pytest.mark.parametrize("rule", ["error", "shallow"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_all_layers(run, rule):
    net = Net(run, "123")
    with DFA(net, rule=rule):
        with torch.no_grad():
            net(X)
        with pytest.raises(AttachError, match=r"Write lif\(x, mem\) in place of"):
            net(X)


@pytest.mark.parametrize("name", ["1", "2", "3"])
@pytest.mark.parametrize("output", [None, "lif3"])
def test_one_layer(name, output):
    net = Net(RUNS["by its class"], name)
    said = rf"layer 'lif{name}' was not called .* its state is a new one"
    with DFA(net, output=output), pytest.raises(AttachError, match=said):
        net(X)


def test_one_layer_where_the_program_calls_the_others():
    net = Net(RUNS["by its class"], "2")
    with DFA(net, output="lif3"), pytest.raises(AttachError, match="layer 'lif2' was not called"):
        list(net.steps(X))


CHANGES = {
    "set": lambda lif: setattr(lif, "forward", types.MethodType(snn.Leaky.forward, lif)),
    "deleted": lambda lif: delattr(lif, "forward"),
}


@pytest.mark.parametrize("names", ["1", "2", "3", "123"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_forward_that_was_put_back(change, names):
    net = Net()
    with DFA(net):
        net(X).sum().backward()
        for name in names:
            change(getattr(net, f"lif{name}"))
        with pytest.raises(AttachError, match=rf"'lif{names[0]}': the program has deleted its"):
            net(X)


def test_a_forward_that_calls_the_one_of_dfa_may_be_set():
    net = Net()
    with DFA(net):
        inner = net.lif2.forward
        net.lif2.forward = lambda *args: inner(*args)
        net(X).sum().backward()
    assert net.fc2.weight.grad.any()


class Tasks(nn.Module):
    """Each task has a hidden layer of its own, and neurons that keep their states."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fcs = nn.ModuleList(nn.Linear(4, 8) for _ in "12")
        self.lifs = nn.ModuleList(snn.Leaky(0.8, 0.3, init_hidden=True) for _ in "12")
        self.last, self.out = nn.Linear(8, 2), snn.Leaky(0.8, 0.3, init_hidden=True)

    def forward(self, x, task, calls=True):
        if not calls:
            return self.fcs[task](x)
        return torch.stack([self.out(self.last(self.lifs[task](self.fcs[task](s)))) for s in x])


def test_a_layer_that_is_not_called_may_hold_an_old_state():
    net = Tasks()
    net(X, 1)  # of back-propagation
    net.out.detach_hidden()
    with DFA(net, output="out") as dfa:
        for task in (0, 1, 0):
            if task:
                net.lifs[1].detach_hidden()
            net(X, task).sum().backward()
            net.lifs[1 - task].mem = 0.5 * net.lifs[1 - task].mem
            net.out.detach_hidden()
            net.lifs[0].detach_hidden()
        assert all(fc.weight.grad.any() for fc in net.fcs)
        with pytest.raises(AttachError, match=r"none of the layers .* was called"):
            net(X, 0, calls=False)
        with dfa.paused():
            net(X, 0, calls=False).sum().backward()
