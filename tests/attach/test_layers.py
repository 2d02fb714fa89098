"""Who is hidden and who is the output, and what is refused."""

from collections import deque
from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
from small_net import X, equal, gradients, hooks_left, small
from torch import nn

from snn_dfa import DFA, AttachError, FeedbackError, OutOfStepError


def test_layers_by_name_and_by_module():
    net = small()
    with DFA(net, output="5", hidden=["1", net[3]]) as dfa:
        assert (dfa.hidden, dfa.output) == (("1", "3"), "5")
        by_name = gradients(net)
    with DFA(net, output=net[5]) as dfa:
        assert (dfa.hidden, dfa.output) == (("1", "3"), "5")
        assert equal(gradients(net), by_name)
    with DFA(net, hidden=["1", "3"]) as dfa:
        assert dfa.output == "5"
    with DFA(net) as dfa:
        assert (dfa.hidden, dfa.output) == ((), None)
        assert equal(gradients(net), by_name)
        assert (dfa.hidden, dfa.output) == (("1", "3"), "5")
        assert equal(gradients(net), by_name)


@pytest.mark.parametrize("credit", ["membrane", "current", "trace"])
def test_arguments_by_name(credit):
    """A neuron may be called as ``lif(input_=current, mem=mem)``."""

    class ByName(nn.Module):
        def __init__(self, by_name):
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.lif1 = nn.Linear(5, 7), snn.Leaky(0.8, 0.3)
            self.fc2, self.lif2 = nn.Linear(7, 3), snn.Leaky(0.8, 0.3)
            self.by_name = by_name

        def step(self, lif, current, mem):
            return lif(input_=current, mem=mem) if self.by_name else lif(current, mem)

        def forward(self, x):
            mem1, mem2, out = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for step in x:
                spk, mem1 = self.step(self.lif1, self.fc1(step), mem1)
                spk, mem2 = self.step(self.lif2, self.fc2(spk), mem2)
                out.append(spk + 0.1 * mem2)
            return torch.stack(out)

    grads = []
    for by_name in (False, True):
        net = ByName(by_name)
        with DFA(net, credit=credit):
            net(X).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].abs().sum() > 0
    assert equal(*grads)


def test_an_unnamed_hidden_layer_is_left_to_back_propagation():
    net = small()
    bptt = gradients(net)
    with DFA(net, output="5", hidden="3"):
        got = gradients(net)
    assert not torch.equal(got[2], bptt[2])
    assert got[0].abs().sum() > 0  # through the second layer's own graph


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "nope"}, r"output: expected the name of a module .* got 'nope'"),
        ({"output": ""}, "output: expected the name of a module"),
        ({"output": nn.Linear(1, 1)}, "output: expected a module of the network, got a Linear"),
        ({"hidden": ["1"]}, r"expected one spiking neuron to be left as the output, found \['3', '5'\]"),
        ({"hidden": ["1", "5"], "output": "5"}, "'5' is the output too"),
        ({"hidden": [], "output": "5"}, "at least one hidden spiking layer, found only '5'"),
        ({"rule": "hebb"}, r"rule: expected one of \['error', 'fa', 'local', 'shallow', 'sign', 'target'\], got 'hebb'"),
        ({"credit": "x"}, r"credit: expected one of \['current', 'membrane', 'trace'\] \('trace' is 'online', too\), got 'x'"),
        ({"derivative": torch.cos}, "derivative: expected credit='current' with it"),
        ({"credit": "current", "hidden": ["2"], "output": "5"}, "hidden layer '2' is a Linear"),
        ({"feedback": "banana"}, r"feedback: expected one of \['channelwise', .*'zhang'\], options of a type that learns .*, a function"),
        ({"feedback": 3}, "got int"),
        ({"feedback": {"9": torch.zeros(3, 7)}}, r"among \['1', '3', '5'\], got one for '9'"),
        ({"feedback": {"1": [1.0]}}, r"feedback\['1'\]: expected a floating point tensor"),
        ({"feedback": {"1": torch.zeros(3, 7).numpy()}}, r"floating point tensor .* got ndarray"),
    ],
)  # fmt: skip
def test_bad_arguments_change_nothing(options, message):
    net = small()
    with pytest.raises((AttachError, FeedbackError), match=message):
        DFA(net, **options)
    assert hooks_left(net) == []


def test_networks_that_cannot_be_used():
    with pytest.raises(AttachError, match=r"at least one spiking neuron of snnTorch, found none"):
        DFA(nn.Linear(2, 2))
    with pytest.raises(AttachError, match="at least one hidden spiking layer"):
        DFA(nn.Sequential(nn.Linear(2, 2), snn.Leaky(beta=0.5)))
    with pytest.raises(AttachError, match=r"expected a torch.nn.Module, such as Net\(\), got list"):
        DFA([])
    learns = small(learn_beta=True, beta=0.5)
    with pytest.raises(
        AttachError, match=r"no gradient to parameters .* '1.beta' has requires_grad=True"
    ):
        DFA(learns, credit="current")


@pytest.mark.parametrize("known", [True, False])
def test_feedback_of_the_wrong_shape_names_the_layer(known):
    net = small()
    matrices = {"1": torch.zeros(3, 7), "3": torch.zeros(3, 5)}
    with (
        DFA(net, output="5" if known else None, feedback=matrices),
        pytest.raises(
            FeedbackError, match=r"feedback\['3'\]: expected shape \[3, 6\] .* got \[3, 5\]"
        ),
    ):
        gradients(net)  # fmt: skip
    with (
        DFA(net, output="5", feedback={"1": torch.zeros(3, 7)}),
        pytest.raises(FeedbackError, match=r"no matrix for hidden layer '3'; expected .* \[3, 6\]"),
    ):
        gradients(net)


class OneNeuron(nn.Module):
    """A neuron without states of its own, which the program calls for two layers."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.last = nn.Linear(X.shape[-1], 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.lif = snn.Leaky(0.9)

    def forward(self, x):
        mem = self.lif.init_leaky()
        spk, _ = self.lif(self.fc1(x), mem)
        return self.last(self.lif(self.fc2(spk), mem)[0])


def test_layers_out_of_step_are_refused_by_name():
    net = OneNeuron()
    with (
        DFA(net, output="last"),
        pytest.raises(OutOfStepError, match=r"'lif' was called 2 times and the output 'last' 1"),
    ):
        net(X[0])
    net = small()
    with (
        DFA(net, output="1"),
        pytest.raises(OutOfStepError, match="'3' is called after the output '1' in a time step"),
    ):
        net(X[0])


def _by_hand(net, *, interrupt=False):
    """Return the gradients of a loop that calls the layers, and not the network."""
    net.zero_grad()
    for module in net:
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    if interrupt:
        net[1](net[0](X[0]))
        net[1].reset_mem()
    steps = []
    for x in X:
        for module in net:
            x = module(x)
        steps.append(x)
    (torch.stack(steps) * torch.arange(len(X)).view(-1, 1, 1)).sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def test_a_step_that_was_broken_off_raises_one_error_and_is_forgotten():
    net = small()
    with DFA(net):
        expected = _by_hand(net)
        with pytest.raises(OutOfStepError, match="exception stop the last forward pass"):
            _by_hand(net, interrupt=True)
        assert all(p.grad is None for p in net.parameters())
        assert equal(_by_hand(net), expected)
    assert all(grad.any() for grad in expected)


class Online(nn.Module):
    """Its loop, with a backward pass after each step, is inside ``forward`` or around it."""

    def __init__(self, inside):
        super().__init__()
        self.body, self.inside = small(), inside

    def forward(self, x):
        return self.learn(x, self.body) if self.inside else self.body(x)

    def learn(self, xs, step):
        for x in xs:
            step(x).square().sum().backward()
            for module in self.body:
                if isinstance(module, snn.SpikingNeuron):
                    module.detach_hidden()


def test_backward_passes_inside_forward_are_those_of_the_loop_around_it():
    grads = []
    for inside in (True, False):
        torch.manual_seed(0)
        net = Online(inside)
        with DFA(net):
            if inside:
                net(X)
            else:
                net.learn(X, net)
        grads.append([p.grad for p in net.parameters()])
    assert all(grad.any() for grad in grads[0])
    assert equal(*grads)


class Kept:
    """A plain object, which knows itself."""

    def __init__(self, each):
        self.each, self.me = each, self


HOLDERS = {
    "list": list,
    "tuple": tuple,
    "dict": lambda each: {"one": each[0]},
    "pairs": lambda each: [("one", each[0])],
    "lists in a list": lambda each: [each, each],
    "lists in a dict": lambda each: {"one": each},
    "set": set,
    "deque": deque,
    "namespace": lambda each: SimpleNamespace(one=each[0]),
    "object": Kept,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_neuron_that_is_no_module_of_the_network_is_told(hold):
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.8), nn.Linear(8, 2), snn.Leaky(0.8))
    net.also = hold([net[1]])
    DFA(net).remove()
    net.also = hold([snn.Leaky(0.8)])
    with pytest.raises(AttachError, match=r"plain \w+ 'also' of a Sequential.* nn\.ModuleList"):
        DFA(net)


def test_a_neuron_that_is_set_past_the_module_is_told():
    net = small()
    object.__setattr__(net, "also", net[1])
    DFA(net).remove()
    object.__setattr__(net, "also", snn.Leaky(0.8))
    with pytest.raises(AttachError, match="plain Leaky 'also' of a Sequential"):
        DFA(net)


def test_other_networks_in_objects_and_other_attachments_may_be_kept():
    net, other = small(), small()
    net.average, net.samples = Kept(other), [[0.0] * 10] * 1000
    with DFA(other) as net.other_dfa, DFA(net):
        pass


def test_the_last_weights_are_proposed_as_the_output():
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.8), nn.Linear(8, 2))
    with pytest.raises(AttachError, match=r"found only '1'.*output='2'"):
        DFA(net)
