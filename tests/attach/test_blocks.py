"""Named modules that hold neurons: steps and whole sequences, and what changes inside neurons."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from snn_dfa import DFA, OutOfStepError, over_time, reset
from snn_dfa.surrogate import fast_sigmoid


def leaky(kind=snn.Leaky, **options):
    options = {"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(5), **options}
    return kind(init_hidden=True, **options)


def data(steps, samples, features=4):
    g = torch.Generator().manual_seed(steps)
    return 2 * torch.rand(steps, samples, features, generator=g, dtype=torch.float64)


class Direction(nn.Module):
    """A recurrent block over the sequence, forward or backward in time."""

    def __init__(self, features, neurons, backward):
        super().__init__()
        self.fc, self.lif, self.backward = nn.Linear(features, neurons), leaky(), backward

    def forward(self, x):
        reset(self.lif)
        x = x.flip(0) if self.backward else x
        spk = torch.stack([self.lif(self.fc(step)) for step in x])
        return spk.flip(0) if self.backward else spk


class Bidirectional(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Direction(4, 5, False), Direction(4, 6, True)
        self.out = nn.Linear(11, 3)
        self.double()

    def forward(self, x):
        return self.out(torch.cat([self.one(x), self.two(x)], -1))


def by_hand(net, x, feedback):
    """The error of each step and sample, through the block's own loop."""
    spikes = {name: net.get_submodule(name)(x) for name in ("one", "two")}
    out = net.out(torch.cat([s.detach() for s in spikes.values()], -1))
    e = torch.autograd.grad((out - 1).square().sum(), out, retain_graph=True)[0]
    sent = 0
    for name, spk in spikes.items():
        for t in range(len(x)):
            for b in range(x.shape[1]):
                sent = sent + (e[t, b] @ feedback[name]) @ spk[t, b]
    net.zero_grad()
    ((out - 1).square().sum() + sent).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters()}


def test_a_block_that_loops_over_time_has_the_error_of_each_step_and_sample():
    net = Bidirectional()
    with DFA(net, hidden=["one", "two"], output="out") as dfa:
        for shape in [(1, 3), (5, 3), (4, 4), (3, 1), (2, 5)]:
            x = data(*shape)
            net.zero_grad()
            (net(x) - 1).square().sum().backward()
            found = {n: p.grad.clone() for n, p in net.named_parameters()}
            assert {n: tuple(b.shape) for n, b in dfa.feedback.items()} == {
                "one": (3, 5), "two": (3, 6),
            }  # fmt: skip
            with dfa.paused():
                wanted = by_hand(net, x, dfa.feedback)
            for name, grad in wanted.items():
                assert grad.any(), name
                torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-10)
    assert not any("forward" in vars(m) for m in net.modules())


def test_no_sample_gets_the_error_of_another():
    blocks = [nn.Sequential(nn.Linear(4, 5), leaky()), nn.Sequential(nn.Linear(5, 6), leaky())]
    net = over_time(nn.Sequential(*blocks, nn.Linear(6, 3)).double())
    with DFA(net, hidden=["0", "1"], output="2") as dfa:
        x = data(5, 3)
        out = net(x)
        out[:, 0].sum().backward()
        assert {n: tuple(b.shape) for n, b in dfa.feedback.items()} == {"0": (3, 5), "1": (3, 6)}
        found = {n: p.grad.clone() for n, p in net.named_parameters()}
        net.zero_grad()
        net(x[:, :1]).sum().backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.grad, found[name])
            assert p.grad.any()


class Turned(Direction):
    def forward(self, x):
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


def test_where_samples_come_first_steps_are_neurons():
    net = Bidirectional()
    net.one, net.two = Turned(4, 5, False).double(), Turned(4, 6, True).double()
    net.forward = lambda x: net.out(torch.cat([net.one(x), net.two(x)], -1).mean(1))
    with DFA(net, hidden=["one", "two"], output="out") as dfa:
        for samples in (3, 5, 1):  # five samples of five steps, too
            net(data(samples, 5)).sum().backward()
        assert {n: tuple(b.shape) for n, b in dfa.feedback.items()} == {
            "one": (3, 5, 5), "two": (3, 5, 6),
        }  # fmt: skip


def test_a_mean_over_as_many_steps_as_samples_and_classes_is_none_of_a_sequence():
    net = Bidirectional()
    with DFA(net, hidden=["one", "two"], output="out"):
        net(data(3, 3)).sum().backward()
    net.zero_grad()
    net.forward = lambda x: net.out(torch.cat([net.one(x), net.two(x)], -1).mean(0))
    with (
        DFA(net, hidden=["one", "two"], output="out"),
        pytest.raises(OutOfStepError, match=r"\[3, 3\], may be of steps and samples, or"),
    ):
        net(data(3, 3))


class Listed(nn.Module):
    """The same with neurons that are layers, and a list of steps."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = (
            nn.Linear(4, 5), leaky(), nn.Linear(4, 6), leaky(),
        )  # fmt: skip
        self.fc3, self.lif3 = nn.Linear(11, 3), leaky()

    def forward(self, x):
        reset(self)
        one = [self.lif1(self.fc1(step)) for step in x]
        two = [self.lif2(self.fc2(step)) for step in x.flip(0)][::-1]
        pairs = zip(one, two, strict=True)
        return torch.stack([self.lif3(self.fc3(torch.cat(pair, -1))) for pair in pairs])


@pytest.mark.parametrize("options", [{}, {"output": "lif3"}])
def test_a_layer_that_goes_backward_in_time_is_an_error_that_names_it(options):
    net = Listed().double()
    with DFA(net, **options), pytest.raises(OutOfStepError, match="layer 'lif2' runs through"):
        net(data(5, 3))
    with DFA(net, **options):
        net(data(1, 3)).sum().backward()  # of one step there is one order


# -- what changes inside a neuron after DFA ---------------------------------------------------------


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def recurrent():
    torch.manual_seed(0)
    neurons = [leaky(snn.RLeaky, linear_features=5), leaky(learn_beta=True), leaky(output=True)]
    return nn.Sequential(
        nn.Linear(4, 5), neurons[0], nn.Linear(5, 6), neurons[1], nn.Linear(6, 3), neurons[2]
    ).double()


def gradients(net, x):
    reset(net)
    net.zero_grad()
    torch.stack([sum(net(step)) for step in x]).sub(1).square().sum().backward()
    return {n: p.grad for n, p in net.named_parameters()}


CHANGES = {
    "weight normalisation": lambda net: weight_norm(net[1].recurrent),
    "parametrisation": lambda net: parametrize.register_parametrization(
        net[3], "beta", Half(), unsafe=True
    ),
    "other recurrent weights": lambda net: setattr(
        net[1], "recurrent", nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 5)).double()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_that_come_into_a_neuron_later_learn(change):
    """As if it had been changed before DFA."""
    x, found = data(5, 3), []
    for early in (True, False):
        net = recurrent()
        torch.manual_seed(1)
        if early:
            CHANGES[change](net)
        with DFA(net):
            if not early:
                gradients(net, x)
                CHANGES[change](net)
            found.append(gradients(net, x))
    wanted, got = found
    assert wanted.keys() == got.keys()
    for name, grad in wanted.items():
        assert grad.any(), name
        torch.testing.assert_close(got[name], grad, rtol=1e-10, atol=1e-10)


class Kept(nn.Module):
    """Recurrent weights whose current another layer reads."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, spk):
        self.seen = self.fc(spk)
        return self.seen


def test_a_value_inside_a_neuron_leads_into_no_other_layer():
    net = recurrent()
    net[1].recurrent = Kept().double()
    net[2].register_forward_pre_hook(lambda module, args: (args[0] + net[1].recurrent.seen,))
    x = data(5, 3)
    with DFA(net, rule="shallow"):
        found = gradients(net, x)
    assert found["1.recurrent.fc.weight"] is None
    assert found["4.weight"].any()


def test_a_lazy_readout_behind_a_neuron_that_holds_a_convolution():
    options = {"threshold": 0.05, "spike_grad": fast_sigmoid(5), "init_hidden": True}
    net = nn.Sequential(
        snn.SConv2dLSTM(1, 2, 3, **options), snn.SConv2dLSTM(2, 2, 3, **options), nn.Flatten(),
        nn.LazyLinear(3), leaky(output=True),
    )  # fmt: skip
    with DFA(net):
        for _ in range(2):
            found = gradients(net, torch.rand(3, 2, 1, 4, 4))
        assert all(grad.any() for name, grad in found.items() if "lstm" not in name)
