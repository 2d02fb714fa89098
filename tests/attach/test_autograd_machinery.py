"""PyTorch's machinery around a network: gradients that are asked for, children, sequences."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from user_nets import B, Net, T, X, assert_alike, hidden

from snn_dfa import DFA, AttachError, over_time


def test_gradients_that_are_asked_for_are_those_of_backward():
    net = Net()
    with DFA(net, output="lif2"):
        net(X).sum().backward()
        wanted = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        got = torch.autograd.grad(net(X).sum(), list(net.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        net.zero_grad()
        net(X).sum().backward(inputs=[net.fc1.weight])
        torch.testing.assert_close(net.fc1.weight.grad, wanted[0])
        assert net.fc2.weight.grad is None


def test_hooks_on_parameters_are_called_once_with_the_whole_gradient():
    net, seen = Net(), []
    net.fc1.weight.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
    net.fc2.bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    with DFA(net, output="lif2"):
        net(X).sum().backward()
        assert len(seen) == 2
        by_size = {g.dim(): g for g in seen}
        torch.testing.assert_close(net.fc1.weight.grad, 2 * by_size[2])
        torch.testing.assert_close(net.fc2.bias.grad, by_size[1])
    with DFA(net, output="lif2", rule="shallow"):
        net.zero_grad(set_to_none=True)
        seen.clear()
        net(X).sum().backward()
        assert [g.dim() for g in seen] == [1]  # no hook of a parameter without a gradient
        assert len(net.fc1.weight._backward_hooks) == 1


def test_the_gradient_of_an_input_is_that_of_the_first_block():
    net, x = Net(), X.clone().requires_grad_()
    with DFA(net, output="lif2") as dfa:
        net(x).sum().backward()
        sent = torch.ones(B, 2) * 2 @ dfa.feedback["lif1"]
    got, mem, spikes = x.grad, torch.zeros(B, 8), []
    x = X.clone().requires_grad_()
    for step in x:
        spk, mem = net.lif1(net.fc1(step), mem)
        spikes.append(spk)
    (wanted,) = torch.autograd.grad(torch.stack(spikes), x, sent.expand(T, B, 8))
    torch.testing.assert_close(got, wanted)


_FORKS = """
import multiprocessing, snntorch, torch
from torch import nn
from snn_dfa import over_time

def run():
    net = over_time(nn.Sequential(nn.Linear(64, 100), snntorch.Leaky(beta=0.9, init_hidden=True)))
    with torch.no_grad():
        assert net(torch.rand(25, 32, 64)).isfinite().all()

torch.set_num_threads(1)  # with more, torch's own products do not end in a forked child
run()
process = multiprocessing.get_context("fork").Process(target=run)
process.start()
process.join(60)
assert process.exitcode == 0, process.exitcode
"""


@pytest.mark.slow
def test_whole_sequences_in_a_forked_child():
    subprocess.run([sys.executable, "-c", _FORKS], check=True, timeout=120)


def test_over_time_does_not_take_a_module_with_a_state_for_one_without():
    class Integrator(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.mem = nn.Linear(8, 2), None

        def forward(self, x):
            self.mem = self.fc(x) if self.mem is None else 0.9 * self.mem + self.fc(x)
            return self.mem

    net = over_time(nn.Sequential(nn.Linear(4, 8), hidden(), Integrator()))
    with pytest.raises(AttachError, match="a state outside its neurons"):
        net(X)


def test_neurons_in_a_plain_list_are_named_as_such():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lifs = nn.Linear(4, 8), [hidden()]

    with pytest.raises(
        AttachError, match=r"plain list .lifs. of a Listed; put neurons in an nn\.M"
    ):
        DFA(Listed())


@pytest.mark.parametrize("frozen", [False, True])
def test_blocks_with_neurons_in_a_plain_list_are_refused_but_for_a_frozen_teacher(frozen):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 3), hidden(), nn.Linear(3, 2))
            self.blocks = [nn.Sequential(nn.Linear(2, 2), hidden())]

    net = Listed()
    net.blocks[0].requires_grad_(not frozen)
    if frozen:
        assert DFA(net, output="body.2").hidden == ("body.1",)
    else:
        with pytest.raises(AttachError, match=r"plain list .blocks. of a Listed"):
            DFA(net, output="body.2")


class EarlyExit(nn.Module):
    """An auxiliary output that is called before a later hidden layer of its step."""

    def __init__(self, early=True):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(4, 8), hidden()
        self.fc2, self.lif2 = nn.Linear(8, 8), hidden()
        self.exit, self.out, self.early = nn.Linear(8, 3), nn.Linear(8, 2), early

    def forward(self, x):
        spk1 = self.lif1(self.fc1(x))
        a = self.exit(spk1) if self.early else None
        spk2 = self.lif2(self.fc2(spk1))
        return (self.exit(spk1) if a is None else a), self.out(spk2)


@pytest.mark.parametrize("inside", [True, False])
def test_an_output_before_a_later_hidden_layer(inside):
    grads = []
    for early in (True, False):
        net = EarlyExit(early)
        with DFA(net, output=["exit", "out"]):
            step = net if inside else partial(EarlyExit.forward, net)
            outs = [step(x) for x in X]
            sum(a.square().sum() + (b - 1).square().sum() for a, b in outs).backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    assert_alike(*grads)
