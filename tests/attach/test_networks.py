"""Networks of every shape: what each hidden layer learns, and what is refused."""

import pytest
import torch
from shapes import SHAPES, B, N, Net, T, X, compare, count_loss, lif, made
from torch import nn

from snn_dfa import DFA, AttachError, OutOfStepError


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("output", [None, "lif3"])
def test_shapes(kind, output):
    compare(*made(kind), count_loss, output=output)


def test_a_penalty_on_hidden_spikes_reaches_them_under_shallow():
    net, x = made()
    with DFA(net, rule="shallow", output="lif3"):
        count_loss(*net(x)).backward()
        assert net.fc1.weight.grad is None
        spk, _, below = net(x)
        (spk.sum() + below["lif2"].sum()).backward()
        assert net.fc2.weight.grad.any()
        assert net.fc1.weight.grad is None  # the second layer sees values only


# -- several outputs, and layers that are used twice ------------------------------------------------


class TwoHeads(Net):
    def __init__(self):
        super().__init__()
        self.fc4, self.lif4 = nn.Linear(N, 2), lif()

    def forward(self, x):
        mems = [m.reset_mem() for m in (self.lif1, self.lif3, self.lif4)]
        one, two = [], []
        for step in x:
            spk, mems[0] = self.lif1(self.fc1(step), mems[0])
            a, mems[1] = self.lif3(self.fc3(spk), mems[1])
            b, mems[2] = self.lif4(self.fc4(spk), mems[2])
            one.append(a)
            two.append(b)
        return torch.stack(one), torch.stack(two)


def test_a_second_output_is_refused_by_name_and_may_be_left_to_its_own_loss():
    torch.manual_seed(0)
    net = TwoHeads()
    del net.fc2, net.lif2
    x = torch.rand(T, B, X) * 3
    for output in (None, "lif4"):
        with (
            DFA(net, output=output),
            pytest.raises(
                AttachError, match="the loss reads two spiking layers, 'lif4' and 'lif3'"
            ),
        ):
            one, two = net(x)
            (one.sum() + two.sum()).backward()
        assert all(p.grad is None for p in net.parameters())
    with DFA(net, output="lif4", hidden="lif1"):
        one, two = net(x)
        with pytest.warns(UserWarning, match="the loss reads layer 'lif1' through 'fc3'"):
            (one.sum() + two.sum()).backward()
        both = net.fc1.weight.grad.clone()
        assert net.fc3.weight.grad.any()
        net.zero_grad()
        net(x)[1].sum().backward()
        assert not torch.equal(net.fc1.weight.grad, both)  # the other head is a penalty on lif1


class OwnLinear(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(n_out, n_in))

    def forward(self, x):
        return nn.functional.linear(x, self.matrix)


class Lstm(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


class Readout(nn.Module):
    """Spikes, a readout of them all, and one that is multiplied by a factor for each step."""

    def __init__(self, readout):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(X, N), lif(), nn.Linear(N, N), lif()
        self.readout, self.gain = readout, nn.Parameter(torch.ones(T, 1, 1))

    def forward(self, x):
        mem1, mem2, out = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            out.append(spk)
        return self.readout(torch.stack(out)) * self.gain


@pytest.mark.parametrize("readout", [nn.Linear(N, 3), OwnLinear(N, 3), Lstm(N, 3)], ids=str)
def test_weights_of_any_module_behind_the_last_neuron_are_seen(readout):
    net, x = Readout(readout), torch.rand(T, B, X) * 3
    with DFA(net), pytest.raises(AttachError, match=r"which layer is the output\? .*'readout'"):
        net(x).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    with DFA(net, output="lif2"):
        net(x).sum().backward()


class Residual(nn.Module):
    """Blocks of a neuron beside a straight way, and a head that reads all of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ModuleList(nn.Linear(X, X) for _ in range(6))
        self.neurons = nn.ModuleList(lif() for _ in range(6))
        self.head = nn.Linear(X, 3)

    def forward(self, x):
        mems, out = [neuron.reset_mem() for neuron in self.neurons], []
        for value in x:
            for i, (weight, neuron) in enumerate(zip(self.weights, self.neurons, strict=True)):
                spk, mems[i] = neuron(weight(value), mems[i])
                value = value + spk
            out.append(self.head(value))
        return torch.stack(out)


def test_a_head_that_reads_the_last_neuron_and_others_is_seen():
    net = Residual()
    with DFA(net), pytest.raises(AttachError, match=r"neuron 'neurons.5' is followed by 'head'"):
        net(torch.rand(T, B, X) * 3).sum().backward()
    assert all(p.grad is None for p in net.parameters())


def test_a_parameter_that_multiplies_each_number_is_no_readout():
    net = Readout(nn.Identity())
    with DFA(net):
        net(torch.rand(T, B, X) * 3).sum().backward()
    assert net.gain.grad.any()


class Reused(Net):
    """The neuron of the first layer is called again in place of the second one's."""

    def forward(self, x):
        mem1, mem2, mem3 = (m.reset_mem() for m in (self.lif1, self.lif1, self.lif3))
        out = []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            spk, mem2 = self.lif1(self.fc2(spk), mem2)
            spk, mem3 = self.lif3(self.fc3(spk), mem3)
            out.append(spk)
        return torch.stack(out)


@pytest.mark.parametrize("named", [{}, {"output": "lif3", "hidden": "lif1"}])
def test_a_neuron_that_is_called_twice_a_step_is_refused_with_what_to_do(named):
    net = Reused()
    del net.lif2
    with (
        DFA(net, **named),
        pytest.raises(OutOfStepError, match=r"'lif1' was called 10 times .* a neuron of its own"),
    ):
        net(torch.rand(T, B, X))


def test_frozen_layers_stay_and_the_others_learn():
    net, x = made()
    net.fc2.requires_grad_(False)
    expected = compare(net, x, count_loss)
    assert expected["fc2.weight"] is None
    net.fc1.requires_grad_(False)
    net.zero_grad()
    with DFA(net):
        count_loss(*net(x)).backward()
        assert net.fc1.weight.grad is None
        assert net.fc3.weight.grad.any()
