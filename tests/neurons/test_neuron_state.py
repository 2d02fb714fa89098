"""The counter of the refractory neuron is a state: what clears it, and what does not."""

import copy

import pytest
import snntorch as snn
import torch
import torch._dynamo
from snntorch import utils
from spike_trains import intervals
from torch import nn

from snn_dfa import InputError, RefractoryLeaky, reset

T, B, N = 12, 3, 6
STRONG = torch.rand(40, B, N, generator=torch.Generator().manual_seed(0)) * 3


def fresh(**options):
    return RefractoryLeaky(0.8, refractory_steps=5, **options)


def just_fired(**options):
    """A neuron whose every cell fired in its last step."""
    neuron = fresh(**options)
    neuron(torch.full((B, N), 5.0))
    assert (neuron.counter == 5).all()
    return neuron


def fires(neuron, *args):
    out = neuron(torch.full((B, N), 5.0), *args)
    return bool((out[0] if isinstance(out, tuple) else out).all())


def later_reset(net):
    """What snntorch's reset does after 1.0.0: recursive, per network, by ``reset_mem``."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron) and hasattr(module, "reset_mem"):
            module.reset_mem()
            module.mem.detach_()


@pytest.mark.parametrize("clear", [utils.reset, reset, later_reset], ids=lambda f: f.__module__)
@pytest.mark.parametrize("times", [1, 2])
def test_every_reset_clears_the_counter(clear, times):
    neuron = just_fired(init_hidden=True)
    net = nn.Sequential(nn.Identity(), neuron)
    assert not fires(neuron)
    for _ in range(times):
        clear(net)
    assert not neuron.mem.any()
    assert fires(neuron)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("sizes", [(N, N, N), (N, 2, 3)])
def test_a_neuron_of_several_layers_is_an_error(layers, sizes):
    neuron = fresh()
    mems = [torch.zeros(B, size) for size in sizes[:layers]]
    with pytest.raises(InputError, match="give each layer a neuron of its own"):
        for _ in range(2):
            for i, mem in enumerate(mems):
                _, mems[i] = neuron(torch.full(mem.shape, 0.1), mem)


def test_an_earlier_membrane_is_an_error_and_a_changed_one_goes_on():
    neuron = fresh()
    _, first = neuron(torch.full((B, N), 5.0))
    _, second = neuron(torch.zeros(B, N), first)
    assert not fires(neuron, second * 2)
    with pytest.raises(InputError, match=r"call reset\(net\) and hand in mem.clone\(\)"):
        neuron(torch.zeros(B, N), first)
    reset(neuron)
    assert fires(neuron, first.clone())


def test_explicit_states_start_anew_with_a_membrane_of_zeros():
    neuron = just_fired()
    assert not fires(neuron, neuron.mem)
    assert fires(neuron, torch.zeros(B, N))
    assert not fires(neuron, neuron.mem.detach())
    assert not fires(neuron, neuron.mem.clone())
    assert fires(neuron, neuron.reset_mem())
    neuron(torch.full((B, N), 5.0), neuron.mem)
    assert fires(neuron, neuron.init_leaky())


def test_another_batch_size_starts_anew():
    neuron = just_fired(init_hidden=True)
    assert bool(neuron(torch.full((B + 1, N), 5.0)).all())


def test_a_membrane_that_is_zero_in_mid_sequence_does_not_restart_the_counter():
    neuron = fresh(init_hidden=True, refractory="clamp")
    with torch.no_grad():
        spikes = torch.stack([neuron(torch.full((1, 1), 5.0)) for _ in range(13)])
    assert set(intervals(spikes)) == {6}


def test_reset_reaches_nested_and_copied_neurons_of_this_network_alone():
    net = nn.Sequential(nn.Sequential(just_fired(init_hidden=True)))
    other = just_fired(init_hidden=True)
    twin = copy.deepcopy(just_fired(init_hidden=True))
    reset(net)
    assert not net[0][0].mem.any()
    assert not net[0][0].counter.any()
    assert other.mem.any()
    assert twin.mem.any()
    reset(twin)
    assert not twin.mem.any()
    assert other.mem.any()


def test_reset_of_a_neuron_of_a_users_making():
    class Own(snn.LIF):
        def __init__(self):
            super().__init__(beta=0.5)
            self.mem = torch.zeros(0)

        def forward(self, x):
            self.mem = self.beta * (self.mem if self.mem.shape == x.shape else 0) + x
            return self.fire(self.mem)

    net = nn.Sequential(Own())
    net(torch.ones(2, 2))
    assert net[0].mem.any()
    reset(net)
    assert not net[0].mem.any()


def test_reset_clears_every_neuron_of_snntorch():
    neurons = [
        snn.Leaky(0.5), snn.Lapicque(0.5), snn.Synaptic(0.5, 0.5), snn.Alpha(0.6, 0.5),
        snn.RLeaky(0.5, linear_features=4), snn.RSynaptic(0.5, 0.5, linear_features=4),
        snn.SLSTM(4, 4), snn.SConv2dLSTM(1, 1, 3),
    ]  # fmt: skip
    for neuron in neurons:
        x = torch.rand(2, 1, 4, 4) if isinstance(neuron, snn.SConv2dLSTM) else torch.rand(2, 4)
        neuron(x)
        names = [n for n, _ in neuron.named_buffers() if n in ("mem", "syn", "spk", "syn_exc")]
        assert any(getattr(neuron, name).any() for name in names)
        reset(nn.Sequential(neuron))
        assert not any(getattr(neuron, name).any() for name in names)
