"""The credit ``trace`` where a program changes a neuron after ``DFA(net, credit="trace")``."""

import types

import pytest
import snntorch as snn
import torch
from snntorch.functional import quant
from torch import nn

from snn_dfa import DFA, AttachError, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

X = 1.5 * torch.rand(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def leaky(**options):
    surrogate = fast_sigmoid(5)
    given = {"beta": 0.8, "threshold": 0.3, "spike_grad": surrogate, "init_hidden": True}
    return snn.Leaky(**(given | options))


def network(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), leaky(**options), nn.Linear(4, 3), leaky()).double()
    for layer, neuron in (net[:2], net[2:]):
        nn.init.uniform_(layer.weight, 0, 0.6)
        for p in neuron.parameters():
            p.requires_grad_(False)
    return net


def by_steps(net, x):
    return torch.stack([net(step) for step in x])


def train(net, run, x=X):
    net.zero_grad()
    reset(net)
    spk = run(x)
    assert spk.any()
    spk.square().sum().backward()
    return [p.grad for p in net.parameters()]


class Mine(snn.Leaky):
    def _base_state_function(self, input_):
        return self.beta**2 * self.mem + input_


def own_function(neuron):
    neuron.state_function = types.MethodType(lambda n, x: 0.3 * n.mem + x, neuron)


CHANGES = {
    "a constant that learns": (
        lambda n: n.beta.requires_grad_(), {"learn_beta": True}, "own parameter 'beta'"),
    "a threshold that learns": (
        lambda n: n.threshold.requires_grad_(), {"learn_threshold": True}, "parameter 'threshold'"),
    "a decay of each neuron": (
        lambda n: setattr(n, "beta", torch.linspace(0.5, 0.9, 4)), {}, "a beta for each neuron"),
    "rounded states": (
        lambda n: setattr(n, "state_quant", lambda x: x.clamp(-1, 0.5)), {},
        "has a function of your own"),
    "another function": (own_function, {}, "has a function of your own"),
    "another class": (lambda n: setattr(n, "__class__", Mine), {}, "is of type Mine"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_neuron_that_has_no_trace_from_now_on_raises_an_error(change):
    change, options, message = CHANGES[change]
    net = network(**options)
    DFA(net, credit="trace")
    train(net, lambda x: by_steps(net, x))
    net.zero_grad()
    reset(net)
    change(net[1])
    with pytest.raises(AttachError, match=message):
        by_steps(net, X)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("change", ["a constant that learns", "a decay of each neuron"])
def test_so_does_one_over_a_chunk(change):
    change, options, message = CHANGES[change]
    net = network(**options)
    form = over_time(net, stateful=True)
    DFA(form, credit="trace")
    train(net, form)
    reset(net)
    change(net[1])
    with pytest.raises(AttachError, match=message):
        form(X)


def test_a_function_that_makes_the_states_is_refused_when_dfa_is_attached():
    net = network(state_quant=lambda x: x.clamp(-1, 0.5))
    with pytest.raises(AttachError, match="has a function of your own"):
        DFA(net, credit="trace")


SAME = {
    "decay": (lambda n: setattr(n, "beta", torch.tensor(0.3)), torch.float64),
    "thresholds": (lambda n: setattr(n, "threshold", torch.linspace(0.2, 0.5, 4)), torch.float64),
    "snnTorch's quantisation": (  # which is of single precision
        lambda n: setattr(n, "state_quant", quant.state_quant(6, uniform=True, threshold=0.4)),
        torch.float32),
}  # fmt: skip


@pytest.mark.parametrize("change", SAME)
def test_other_numbers_and_snntorchs_quantisation_give_membrane_credit(change):
    (changed, dtype), found = SAME[change], []
    for credit in ("trace", "membrane"):
        net = network().to(dtype)
        DFA(net, credit=credit)
        train(net, lambda x, net=net: by_steps(net, x), X.to(dtype))
        changed(net[1])
        found.append(train(net, lambda x, net=net: by_steps(net, x), X.to(dtype)))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for got, want in zip(*found, strict=True):
        if want is not None:
            assert want.any()
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
