"""A state that a loop changes between two steps, where no value of the comparison shows it."""

import pytest
import snntorch as snn
import torch
from own_networks import NEURONS, Hidden, Inside, inputs, linear
from sequences import C, F, N
from torch import nn

from snn_dfa import AttachError, over_time

pytestmark = pytest.mark.usefixtures("in_torch")


class Between(Inside):
    """What ``between`` makes of the hidden layer's state comes into its next step."""

    def __init__(self, between):
        super().__init__()
        self.between, self.record = between, None

    def forward(self, x):
        mem, mem_out = self.first(x)
        self.record = torch.zeros(len(x), x.shape[1], N, dtype=x.dtype)
        spikes = []
        for t in range(x.size(0)):
            spk, mem = self.lif(self.fc(x[t]), mem)
            spk, mem_out = self.lif_out(self.out(spk), mem_out)
            mem, mem_out = self.between(self, t, mem, mem_out)
            spikes.append(spk)
        del self.record
        self.record = None
        return torch.stack(spikes)


def filled(net, t, mem, mem_out):
    net.record[t] = mem
    return net.record[t], mem_out


def in_a_tensor(net, t, mem, mem_out):
    both = torch.cat([mem, mem_out], 1)
    return both[:, :N], both[:, N:]


def clamped_in_place(net, t, mem, mem_out):
    return mem.clamp_(-100, 100), mem_out


def clamped_without_gradient(net, t, mem, mem_out):
    with torch.no_grad():
        mem.clamp_(-100, 100)
    return mem.clone(), mem_out


def clamped_in_part(net, t, mem, mem_out):
    mem = mem.clone()
    mem[:, 0] = mem[:, 0].clamp(-100, 100)
    return mem, mem_out


def clamped_in_place_in_part(net, t, mem, mem_out):
    mem = mem.clone()
    mem[:, :1].clamp_(-100, 100)
    return mem, mem_out


CHANGES = {
    "clamp": lambda net, t, mem, mem_out: (mem.clamp(-100, 100), mem_out),
    "clamp of the last layer": lambda net, t, mem, mem_out: (mem, mem_out.clamp(-100, 100)),
    "clamp in place": clamped_in_place,
    "clamp without gradient": clamped_without_gradient,
    "clamp in part": clamped_in_part,
    "clamp in place in part": clamped_in_place_in_part,
    "where": lambda net, t, mem, mem_out: (torch.where(mem > 100, 0 * mem, mem), mem_out),
}
MOVES = {
    "clone": lambda net, t, mem, mem_out: (mem.clone(), mem_out),
    "view": lambda net, t, mem, mem_out: (mem.view(-1).view(mem.shape)[:], mem_out),
    "twice transposed": lambda net, t, mem, mem_out: (mem.t().contiguous().t(), mem_out),
    "record": filled,
    "in a tensor": in_a_tensor,
}


@pytest.mark.parametrize("between", CHANGES.values(), ids=CHANGES)
def test_a_change_that_the_values_do_not_show_is_an_error(between):
    name = "'lif_out'" if between is CHANGES["clamp of the last layer"] else "'lif'"
    with pytest.raises(AttachError, match=f"changes the states of {name}, a Leaky, between two"):
        over_time(Between(between))(inputs())
    form = over_time(Between(between))
    with torch.inference_mode(), pytest.raises(AttachError, match="changes the states"):
        form(inputs())


@pytest.mark.parametrize("between", MOVES.values(), ids=MOVES)
def test_a_state_that_is_moved_is_none_that_is_changed(between):
    net, x = Between(between), inputs()
    assert torch.equal(over_time(net)(x), net(x))
    with torch.inference_mode():
        assert torch.equal(over_time(net)(x), net(x))


def test_a_frozen_network_may_copy_states_without_a_graph():
    net = Between(lambda net, t, mem, mem_out: (mem.detach().clone(), mem_out))
    net.requires_grad_(False)
    assert over_time(net)(inputs()).any()
    net.requires_grad_(True)
    with pytest.raises(AttachError, match="other gradients"):
        over_time(net)(inputs())


class ClampsAHiddenState(Hidden):
    def forward(self, x):
        out = super().forward(x)
        self.lif.mem.clamp_(-100, 100)
        return out


def test_a_hidden_state_that_is_changed_in_place_is_an_error():
    with pytest.raises(AttachError, match="changes the states of 'lif', a Leaky, between two"):
        over_time(ClampsAHiddenState())(inputs())


class OneNeuronForTwoPlaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.lif = linear(F, C), linear(C, C), NEURONS["Leaky"](C)
        self.limit = None

    def forward(self, x):
        a, b = self.lif.reset_mem(), self.lif.reset_mem()
        spikes = []
        for t in range(x.size(0)):
            spk, a = self.lif(self.fc1(x[t]), a)
            spk, b = self.lif(self.fc2(spk), b)
            b = b if self.limit is None else b.clamp(-self.limit, self.limit)
            spikes.append(spk)
        return torch.stack(spikes)


def test_one_neuron_for_two_places():
    net, x = OneNeuronForTwoPlaces(), inputs()
    assert torch.equal(over_time(net)(x), net(x))
    net.limit = 100.0
    with pytest.raises(AttachError, match="changes the states of 'lif', a Leaky, between two"):
        over_time(net)(inputs())


class TakesStates(nn.Module):
    """The loop is around it."""

    def __init__(self, between):
        super().__init__()
        self.fc, self.lif, self.between = linear(F, C), NEURONS["Synaptic"](C), between

    def forward(self, x, syn, mem):
        spk, syn, mem = self.lif(self.fc(x), syn, self.between(mem))
        return spk, syn, mem


def test_states_among_the_arguments():
    x, zero = inputs(), torch.zeros(3, C, dtype=torch.float64)
    spk, *_ = over_time(TakesStates(lambda mem: mem))(x, zero, zero)
    assert spk.any()
    with pytest.raises(AttachError):
        over_time(TakesStates(lambda mem: mem.clamp(-100, 100)))(x, zero, zero)


def test_neurons_with_several_states_that_are_hidden():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = linear(F, C)
            self.lif1 = NEURONS["RSynaptic"](C, init_hidden=True)
            self.lif2 = NEURONS["RefractoryLeaky"](C, init_hidden=True)

        def forward(self, x):
            return self.lif2(self.lif1(self.fc(x)))

    net = Several()
    assert isinstance(net.lif1, snn.RSynaptic)
    assert over_time(net)(inputs()).any()
