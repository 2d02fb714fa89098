"""Steps that are no nodes: what they have read must be there unchanged in the backward pass."""

import itertools

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, BackwardError, RefractoryLeaky
from snn_dfa.surrogate import fast_sigmoid

pytest.importorskip("numba")


class Net(nn.Module):
    """Two layers, and what a program does after each step."""

    def __init__(self, after):
        super().__init__()
        options = {"reset_mechanism": "zero", "spike_grad": fast_sigmoid(5), "threshold": 0.3}
        self.fc1, self.lif1 = nn.Linear(4, 5), snn.Leaky(0.9, **options)
        self.fc2, self.lif2 = nn.Linear(5, 2), snn.Leaky(0.9, **options)
        self.after = after

    def forward(self, x):
        mem1, mem2, out, mems = torch.zeros(3, 5), torch.zeros(3, 2), [], []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            out2, mem2 = self.lif2(self.fc2(spk), mem2)
            mems.append(mem1)
            out.append(out2)
            self.after(self, step, spk)
        return torch.stack(out), torch.stack(mems)


def leave(net, step, spk):
    """Change nothing that a step has read."""
    (2 * step).mul_(2)
    spk.clone().zero_()


def gradients(after, penalty):
    torch.manual_seed(0)
    net, x = Net(after), 3 * torch.rand(4, 3, 4)
    DFA(net, seed=1)
    for _ in range(2):  # in the first pass the output is not known
        out, mems = net(x.clone())
    (out.sum() + penalty * (2 * mems).square().sum()).backward()
    return net


CHANGES = {
    "input": lambda net, step, spk: step.zero_(),
    "spikes": lambda net, step, spk: spk.mul_(0.5),
    "reset": lambda net, step, spk: net.lif1.reset.fill_(1.0),
}


@pytest.mark.parametrize("penalty", [0, 1], ids=["record", "node"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_step_has_read_and_is_changed_in_place_is_an_error(change, penalty):
    with pytest.raises(BackwardError, match="changed in place"):
        gradients(CHANGES[change], penalty)


def test_no_gradient_is_written_then():
    torch.manual_seed(0)
    net = Net(leave)
    DFA(net)
    x = torch.rand(4, 3, 4)
    loss = net(x)[0].sum()
    x.add_(1)
    with pytest.raises(BackwardError, match="change a copy"):
        loss.backward()
    assert all(p.grad is None for p in net.parameters())


class Own(snn.SpikingNeuron):
    """A neuron whose step only its own ``forward`` knows."""

    def __init__(self):
        super().__init__(threshold=0.3, spike_grad=fast_sigmoid(5))

    def forward(self, current, mem):
        mem = 0.8 * mem + current
        return self.fire(mem), mem


@pytest.mark.parametrize("change", ["input", "spikes"])
def test_what_a_neuron_of_the_users_has_read_is_an_error_too(change):
    torch.manual_seed(0)
    net = Net(CHANGES[change])
    net.lif1, net.lif2 = Own(), Own()
    with DFA(net):
        out, _ = net(3 * torch.rand(4, 3, 4))
        with pytest.raises(BackwardError, match="changed in place"):
            out.sum().backward()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("penalty", [0, 1])
def test_a_changed_copy_is_none(penalty):
    net = gradients(leave, penalty)
    assert all(p.grad is not None for p in net.parameters())


class Returning(nn.Module):
    """Three layers, whose membranes go back as they are, or through a function in one step."""

    def __init__(self, through):
        super().__init__()
        sizes, self.through = (4, 5, 6, 2), through
        self.fcs = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self.lifs = nn.ModuleList(snn.Leaky(0.9, 0.3, fast_sigmoid(5)) for _ in self.fcs)

    def forward(self, x):
        mems, out = [x[0].new_zeros(3, fc.out_features) for fc in self.fcs], []
        for t, spk in enumerate(x):
            if t == 2 and self.through:
                mems = [torch.tanh(mem) for mem in mems]
            for i, (fc, lif) in enumerate(zip(self.fcs, self.lifs, strict=True)):
                spk, mems[i] = lif(fc(spk), mems[i])
            out += [spk, mems[-1]]
        return torch.stack(out)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("through", [False, True], ids=["record", "node"])
def test_records_answer_what_is_asked_of_them_as_nodes_do(through, frozen, monkeypatch):
    """The errors at an output's currents, and gates of hidden layers, which learned feedback has."""

    def gradients_of():
        torch.manual_seed(0)
        net = Returning(through).double()
        net.fcs[-1].requires_grad_(not frozen)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        DFA(net, optimizer=optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            out = net(3 * torch.rand(4, 3, 4, dtype=torch.float64))
            (out.square() * torch.rand(out.shape, dtype=out.dtype)).sum().backward()
            optimizer.step()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    found = gradients_of()
    assert all(grad.any() for grad in found.values())
    monkeypatch.setattr("snn_dfa._attach.steps.step.suits", lambda current: False)
    wanted = gradients_of()
    assert wanted.keys() == found.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("penalty", [0, 1], ids=["record", "node"])
def test_a_step_in_inference_mode_before_those_that_learn(penalty):
    grads = []
    for mode in (torch.no_grad, torch.inference_mode):
        torch.manual_seed(0)
        options = {"spike_grad": fast_sigmoid(5), "threshold": 0.3, "refractory_steps": 2}
        net = nn.Sequential(
            nn.Linear(4, 5), RefractoryLeaky(0.9, init_hidden=True, **options),
            nn.Linear(5, 2), RefractoryLeaky(0.9, init_hidden=True, **options),
        )  # fmt: skip
        x = 3 * torch.rand(4, 3, 4)
        with DFA(net, output="3", seed=1):
            with mode():
                net(x[0])
            assert net[1].counter.any()
            loss = sum(net(step).sum() + penalty * net[1].mem.square().sum() for step in x[1:])
            loss.backward()
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].any()
    assert all(map(torch.equal, *grads))
