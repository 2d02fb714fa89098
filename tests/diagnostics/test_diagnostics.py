"""What layers are said to do, and the word that is given when they cannot learn."""

import math
import re
import warnings

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import RefractoryLeaky, diagnostics, over_time, reset
from snn_dfa.diagnostics import (
    Activity,
    ActivityWarning,
    LearningWarning,
    activity,
    complaints,
)

T = 20


def watched(*neurons, currents):
    """Each neuron over T steps of constant currents [B, N], in a network of their own."""
    seen = []
    for neuron in neurons:
        net = nn.Sequential(neuron)
        reset(net)
        with activity(net) as layers:
            for _ in range(T):
                net(currents)
        seen.append(layers["0"])
    return seen


def test_counts_by_hand():
    plain = snn.Leaky(0.0, reset_mechanism="none", init_hidden=True)
    held = RefractoryLeaky(0.0, reset_mechanism="none", init_hidden=True, refractory_steps=3)
    currents = torch.tensor([[2.0, 0.5, 2.0, 0.5], [2.0, 0.5, 0.5, 0.5]])  # one neuron minds it
    for neuron, most in ((plain, 1.0), (held, 0.25)):
        (seen,) = watched(neuron, currents=currents)
        assert seen.neurons == 4
        assert seen.rate == pytest.approx(most * 3 / 8)
        assert seen.silent == 0.5
        assert seen.saturated == 0.25


def test_a_raster_is_the_first_sample_step_by_step_and_over_whole_sequences():
    net = nn.Sequential(nn.Linear(3, 4), snn.Leaky(0.8, init_hidden=True))
    x = torch.rand(T, 2, 3, generator=torch.Generator().manual_seed(0)) * 8
    reset(net)
    with diagnostics.raster(net) as by_step:
        wanted = torch.stack([net(step)[0] for step in x])
    with diagnostics.raster(over_time(net)) as nothing:
        pass
    sequence = over_time(net)
    with diagnostics.raster(sequence) as at_once:
        sequence(x)
    assert 0 < wanted.sum() < wanted.numel()
    torch.testing.assert_close(by_step, {"1": wanted.detach()})
    torch.testing.assert_close(at_once, by_step)
    assert nothing == {}


def test_neurons_of_images_are_counted_one_by_one():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), snn.Leaky(0.9, init_hidden=True))
    form = over_time(net)
    with activity(form) as layers:
        form(torch.rand(T, 3, 1, 8, 8))
    assert layers["1"].neurons == 2 * 6 * 6


def test_nothing_is_left_on_the_network():
    net = nn.Sequential(snn.Leaky(0.9, init_hidden=True))
    with pytest.raises(ZeroDivisionError), activity(net):
        raise ZeroDivisionError
    assert not net[0]._forward_hooks


def test_a_warning_names_the_layer_its_rate_and_what_to_do():
    well = Activity(100, 0.2, silent=0.1, saturated=0.1)
    dead = Activity(100, 0.01, silent=0.8, saturated=0.0)
    full = Activity(100, 0.245, silent=0.0, saturated=0.98)
    said = complaints({"a": well, "b": dead, "c": full})
    assert set(said) == {"b", "c"}
    with pytest.warns(ActivityWarning) as caught:
        diagnostics.warn({"a": well, "b": dead, "c": full})
    texts = [str(w.message) for w in caught]
    assert texts == list(said.values())
    assert "layer 'b': 80 % of its neurons never fire (rate 0.010 a step)" in texts[0]
    assert "layer 'c': 98 % of its neurons fire whenever they can (rate 0.245" in texts[1]
    assert all("batch normalisation" in text for text in texts)


def test_a_block_is_what_lies_between_the_layers_before_and_its_spikes():
    """In a network with a branch, a plain readout, a frozen bias and a recurrent layer."""

    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
            self.norm, self.out = nn.BatchNorm1d(5), nn.Linear(3, 2)
            self.one, self.two = (snn.Leaky(0.9, init_hidden=True) for _ in range(2))
            self.three = snn.RLeaky(0.9, linear_features=3, init_hidden=True, learn_beta=True)
            self.a.bias.requires_grad_(False)

        def forward(self, x):
            both = self.one(self.norm(self.a(x))) + self.two(self.b(x))
            return self.out(self.three(self.c(both)))

    net = Branched()
    state = {name: value.clone() for name, value in net.state_dict().items()}

    def run(net):
        reset(net)
        return torch.stack([net(x) for x in torch.rand(3, 6, 4)])

    found = diagnostics.blocks(net, run, output="out")
    assert {name: set(names) for name, names in found.items()} == {
        "one": {"a.weight", "norm.weight", "norm.bias"},
        "two": {"b.weight", "b.bias"},
        "three": {"c.weight", "c.bias", "three.beta", "three.recurrent.weight",
                  "three.recurrent.bias"},
    }  # fmt: skip
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_an_output_that_is_silent_in_the_first_epoch_is_no_alarm():
    dead, full = Activity(10, 0.0, silent=1.0, saturated=0.0), Activity(10, 1.0, 0.0, 1.0)
    assert list(complaints({"a": dead, "b": dead}, first_epoch=True)) == ["a"]
    assert list(complaints({"a": dead, "b": full}, first_epoch=True)) == ["a", "b"]
    assert list(complaints({"a": dead, "b": dead})) == ["a", "b"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagnostics.warn({"out": dead}, accuracies=[10.0])
    with pytest.warns(ActivityWarning):
        diagnostics.warn({"out": dead}, accuracies=[10.0, 10.0])


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"accuracies": [0.5, 0.8], "shallow": 0.9}, "0.8 is below .* alone \\(0.9\\)"),
        ({"accuracies": [50, 90, 60, 30]}, "was 90 after epoch 2 and is 30 now"),
        ({"angles": {"a": 91.0, "b": 10.0}}, "\\('a' 91\\)"),
        ({"accuracies": [50, 90, 60], "shallow": 60}, None),  # one epoch is none
        ({"accuracies": [10.0], "angles": {"a": math.nan, "b": 84.0}}, None),
        ({"accuracies": [90.0, 89.5], "shallow": 90.0}, None),  # within chance
    ],
)
def test_a_warning_where_hidden_layers_learn_nothing_of_use(seen, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        diagnostics.warn({}, **seen)
    assert [w.category for w in caught] == [LearningWarning] * (said is not None)
    assert said is None or re.search(said, str(caught[0].message))
