"""The credit `current`: a step's gradient is that of the neuron as it was at this step."""

import pytest
import torch
from small_net import X, run, small
from torch import nn

from snn_dfa import DFA, AttachError, BackwardError, over_time, reset
from snn_dfa.surrogate import fast_sigmoid


def replaced(neuron, name, number):
    setattr(neuron, name, torch.full_like(getattr(neuron, name), number))


def in_place(neuron, name, number):
    getattr(neuron, name).fill_(number)


@pytest.mark.parametrize("change", [replaced, in_place])
@pytest.mark.parametrize("name", ["threshold", "graded_spikes_factor"])
@pytest.mark.parametrize("shape", ["a number", "one for each neuron"])
@pytest.mark.parametrize("sequence", [False, True])
def test_what_is_changed_for_the_next_step_leaves_the_gradient_of_this_one(
    sequence, shape, name, change
):
    grads = []
    for changes in (False, True):
        torch.manual_seed(1)
        net = small()
        neurons = [*net[1::2]]
        for neuron, size in zip(neurons, (7, 6, 3), strict=True):
            if shape == "one for each neuron":
                neuron.threshold = torch.full((size,), 0.3)
                neuron.graded_spikes_factor = torch.ones(size)
        with DFA(form := over_time(net) if sequence else net, output="5", credit="current"):
            spikes = form(X) if sequence else run(form)
            assert 0 < spikes.mean() < 1
            if changes:
                for neuron in neurons:
                    change(neuron, name, 5.0)
            spikes.square().mean().backward()
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].any()
    for wanted, got in zip(*grads, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("sequence", [False, True])
def test_a_surrogate_that_is_annealed_is_the_neurons_own_at_each_step(sequence):
    def learned(first, later, derivative=None):
        torch.manual_seed(1)
        net = small(spike_grad=fast_sigmoid(first))
        form = over_time(net) if sequence else net
        with DFA(form, output="5", credit="current", derivative=derivative):
            for neuron in net[1::2]:
                neuron.spike_grad = fast_sigmoid(later)
            (form(X) if sequence else run(form)).square().mean().backward()
        return net[0].weight.grad

    assert torch.equal(learned(10, 2), learned(2, 2))
    assert not torch.equal(learned(10, 2), learned(10, 10))
    given = fast_sigmoid(5).derivative
    assert torch.equal(learned(10, 2, given), learned(10, 10, given))


@pytest.mark.parametrize("sequence", [False, True])
def test_a_parameter_of_the_neuron_that_is_thawed_is_an_error_before_the_step(sequence):
    net = small(learn_beta=True)
    for neuron in net[1::2]:
        neuron.beta.requires_grad_(False)
    form = over_time(net) if sequence else net
    with DFA(form, output="5", credit="current"):
        (form(X) if sequence else run(form)).sum().backward()
        net[3].beta.requires_grad_(True)
        reset(net)
        with pytest.raises(AttachError, match=r"to parameters of .* '3.*beta' has requires_grad=T"):
            form(X if sequence else X[0])
        net[3].beta.requires_grad_(False)
        if not sequence:
            net.zero_grad()
            run(net).square().mean().backward()
            assert net[0].weight.grad.any()


def test_a_current_that_is_changed_in_place_behind_the_neuron_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = small()

        def forward(self, x):
            current = self.layers[0](x)
            spk = self.layers[1](current)
            current.zero_()
            return self.layers[2:](spk)

    with DFA(net := Net(), output="layers.5", credit="current"):
        loss = sum(net(x).sum() for x in X)
        with pytest.raises(BackwardError, match="changed in place after the layer had read it"):
            loss.backward()
    assert all(p.grad is None for p in net.parameters())
