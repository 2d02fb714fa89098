"""A network that runs all steps of a layer before the next layer begins has the gradients of its loop."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, reset
from snn_dfa._attach.between.rows import place_of
from snn_dfa.surrogate import fast_sigmoid

T, B = 4, 3


def leaky():
    return snn.Leaky(0.8, threshold=0.3, spike_grad=fast_sigmoid(5), init_hidden=True)


class Dense(nn.Module):
    """What lies before each of three neurons, for values of any leading dimensions."""

    shape, count = (6,), 12

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(n, 12) for n in (6, 12, 12, 12))
        self.norm, self.narrow = nn.LayerNorm(12), nn.Linear(8, 12)

    def functions(self):
        return self.a, self.middle, lambda z: 0.5 * self.c(z) - torch.tanh(self.d(z)) * 2

    def middle(self, z):
        gate = self.norm(self.b(z.flip(-1))).softmax(-1)
        parts = self.d(torch.cat([z[..., 6:], z[..., :6]], -1)).unflatten(-1, (3, 4)).mT
        both = torch.stack([z, functional.gelu(parts.flatten(-2))], -2)
        return both[..., 0, :] + gate * both[..., 1, :] + self.narrow(z[..., 2:10])


class Images(nn.Module):
    """The same with convolutions, pooling and normalisation."""

    shape, count = (2, 8, 8), 12

    def __init__(self):
        super().__init__()
        self.conv, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.fc, self.qkv = nn.BatchNorm2d(4), nn.Linear(64, 12), nn.Linear(4, 12)

    def functions(self):
        return self.conv, self.middle, lambda z: self.fc(z.flatten(1))

    def middle(self, z):
        z = self.norm(self.deep(functional.max_pool2d(z, 2)))
        q, k, v = self.qkv(z.flatten(2).mT).chunk(3, -1)
        return z + ((q @ k.mT).softmax(-1) @ v).mT.reshape(z.shape)


def merged(function, z):
    return function(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def in_chunks(function, z):
    return function(z.reshape(-1, *z.shape[2:])).chunk(len(z))


def apart(function, z):
    return [current[t] for current in [function(z)] for t in range(len(z))]


class Lines(Dense):
    """Linear functions alone, for values of samples that come first."""

    def functions(self):
        return self.a, lambda z: z + self.b(z.flip(-1)), lambda z: 0.5 * self.c(z) - self.d(z)


class Frozen(Lines):
    """A frozen weight, which the graph has expanded for all steps and samples."""

    def __init__(self):
        super().__init__()
        self.still = nn.Linear(3, 3).requires_grad_(requires_grad=False)

    def functions(self):
        first, second, third = super().functions()
        return first, lambda z: second(self.still(z.unflatten(-1, (3, 4)).mT).flatten(-2)), third


class Lerped(Dense):
    """Two branches, by a number and by a gate."""

    def functions(self):
        return self.a, self.middle, lambda z: torch.lerp(self.c(z), self.d(z), 0.3)

    def middle(self, z):
        return torch.lerp(self.b(z), z, torch.sigmoid(self.d(z)))


def batch_first(function, z):
    return function(z).unbind(1)


def from_the_end(function, z):
    return function(z).unbind(-3)


def filled(spikes, dim):
    """Put steps into a tensor in place, as ``rec[t] = spk`` or ``rec[:, t] = spk``."""
    sizes = list(spikes[0].shape)
    rec = torch.empty(*sizes[:dim], len(spikes), *sizes[dim:], dtype=spikes[0].dtype)
    steps = range(len(spikes))
    for t in reversed(steps) if dim else steps:
        rec[(slice(None),) * dim + (t,)] = spikes[t]
    return rec


class Net(nn.Module):
    """Step by step, or with ``before`` layer by layer, as it computes what lies before a layer."""

    join = staticmethod(torch.stack)

    def __init__(self, made, before):
        super().__init__()
        self.made, self.neurons = made(), nn.ModuleList(leaky() for _ in range(3))
        self.out, self.before = nn.Linear(made.count, 3), before

    def forward(self, x):
        reset(self)
        layers = list(zip(self.made.functions(), self.neurons, strict=True))
        if self.before is None:
            return torch.stack([self.out(self.step(layers, z)) for z in x]).mean(0)
        dim = {batch_first: 1, from_the_end: -3}.get(self.before, 0)
        for i, (function, neuron) in enumerate(layers):
            before = merged if i == 0 else self.before  # the input is [T, B, ...]
            spikes = [neuron(current) for current in before(function, x)]
            x = self.join(spikes, dim)
        return self.out(x.mean(dim))

    def step(self, layers, z):
        for function, neuron in layers:
            z = neuron(function(z))
        return z


def gradients(made, before, steps=T, join=torch.stack):
    torch.manual_seed(0)
    net = Net(made, before).double().eval()
    net.join = join
    x = 2 * torch.rand(steps, B, *made.shape, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    DFA(net, output="out", optimizer=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x) * torch.arange(1.0, 4)).sin().sum().backward()
        optimizer.step()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


CASES = [
    (Dense, merged), (Dense, in_chunks), (Dense, apart), (Images, merged), (Images, in_chunks),
    (Lines, batch_first), (Lines, apart), (Lines, from_the_end), (Frozen, apart), (Frozen, merged),
    (Lerped, apart), (Lerped, merged),
]  # fmt: skip


@pytest.mark.parametrize(("made", "before"), CASES)
@pytest.mark.parametrize("steps", [T, 1])
def test_layer_by_layer_learns_as_step_by_step(made, before, steps):
    wanted, found = gradients(made, None, steps), gradients(made, before, steps)
    assert len(wanted) > 8
    assert all(grad.any() for grad in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("made", "before"), CASES)
@pytest.mark.parametrize("steps", [T, B, 1])
def test_steps_that_are_put_into_a_tensor_in_place_are_as_stacked_ones(made, before, steps):
    wanted = gradients(made, before, steps)
    found = gradients(made, before, steps, filled)
    assert all(grad.any() for grad in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


class Mixed(Net):
    """All steps of the second layer make each of its currents, or the one readout."""

    def __init__(self, readout):
        super().__init__(Lines, None)
        self.mix, self.readout = nn.Conv1d(12, 12, 3, padding=1), readout
        self.out = nn.Linear(12 * T if readout else 12, 3)

    def forward(self, x):
        reset(self)
        first, second, third = self.neurons
        spikes = [second(self.made.b(first(self.made.a(step)))) for step in x]
        if self.readout:
            return self.out(torch.stack(spikes, 1).flatten(1))
        currents = self.mix(torch.stack(spikes, -1)).unbind(-1)
        return torch.stack([self.out(third(current)) for current in currents]).mean(0)


def trained(net):
    """Return DFA of a network after three steps of its optimiser."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    dfa = DFA(net, output="out", optimizer=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        net(2 * torch.rand(T, B, 6)).square().sum().backward()
        optimizer.step()
    return dfa


@pytest.mark.parametrize("readout", [True, False])
def test_where_steps_are_mixed_the_layers_before_have_a_matrix_of_their_own(readout):
    torch.manual_seed(0)
    net = Mixed(readout)
    dfa = trained(net)
    assert dfa.feedback["neurons.1"].shape == (3, 12)
    assert net.made.b.weight.grad.any()


def in_part(spikes, b):
    rec = torch.zeros(T, B, 12)
    for t, spk in enumerate(spikes[:-1]):
        rec[t + 1] = spk
    return b(rec)


def twice(spikes, b):
    rec = torch.zeros(T, B, 12)
    for t, spk in enumerate(spikes):
        rec[max(t - 1, 0)] = spk
    return b(rec)


def slices(spikes, b):
    rec = torch.zeros(T, B, 12)
    for t, spk in enumerate(spikes):
        rec[t, :, :6] = spk[:, :6]
    return b(rec)


def multiplied(spikes, b):
    rec = torch.full((T, B, 12), 2.0)
    for t, spk in enumerate(spikes):
        rec[t].mul_(spk)
    return b(rec)


def read_early(spikes, b):
    rec, currents = torch.zeros(T, B, 12), []
    for t, spk in enumerate(spikes):
        currents.append(b(rec[t - 1].clone()))
        rec[t] = spk
    return currents


def out_of_order(spikes, b):
    rec = torch.zeros(T, B, 12)
    for t in (1, 0, *range(2, T)):
        rec[t] = spikes[t]
    return b(rec)


def changed(spikes, b):
    rec = filled(spikes, 0)
    rec[0] = rec[1]
    return b(rec)


def neurons_by_one(spikes, b):
    rec = torch.zeros(B, 12)
    for i in range(12):
        rec[:, i] = spikes[0][:, i]
    return [b(rec)] * T


OTHERS = (in_part, twice, slices, multiplied, read_early, out_of_order, changed, neurons_by_one)


@pytest.mark.parametrize("fill", OTHERS)
def test_a_tensor_that_is_filled_in_another_way_gives_matrices_of_their_own(fill):
    class Filling(Net):
        def forward(self, x):
            reset(self)
            first, second, _ = self.neurons
            currents = fill([first(self.made.a(step)) for step in x], self.made.b)
            return torch.stack([self.out(second(current)) for current in currents]).mean(0)

    torch.manual_seed(0)
    net = Filling(Lines, None)
    dfa = trained(net)
    assert set(dfa.state_dict()["learner"]["own"]) == {"neurons.0"}
    assert net.made.a.weight.grad.any()


def test_a_loss_reads_spikes_that_were_put_into_a_tensor():
    """To see where they lie uses nothing up and runs no hook on them."""

    class Penalised(Net):
        def forward(self, x):
            reset(self)
            first, second, _ = self.neurons
            spikes = [first(self.made.a(step)) for step in x]
            for spk in spikes:
                spk.register_hook(self.seen.append)
            self.spikes = self.join(spikes, 0)
            currents = self.made.b(self.spikes)
            return torch.stack([self.out(second(current)) for current in currents]).mean(0)

    found = []
    for join in (torch.stack, filled):
        torch.manual_seed(0)
        net = Penalised(Lines, None).double()
        net.join, net.seen = join, []
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        DFA(net, output="out", optimizer=optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            out = net(2 * torch.rand(T, B, 6, dtype=torch.float64))
            assert len(net.seen) in (0, T)
            (out.square().sum() + net.spikes.sin().sum()).backward()
            optimizer.step()
        found.append(net.made.a.weight.grad)
    assert found[0].any()
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_known_where_each_of_many_steps_lies(dtype):
    value = torch.ones(2, 3, requires_grad=True) * 1
    for place, dim in ((0, 0), (300, 0), (699, 1), (4, 2)):
        rec = torch.zeros((*value.shape[:dim], 700, *value.shape[dim:]), dtype=dtype)
        for at in (5, place):
            rec.select(dim, at).copy_(value)
        assert place_of(rec.grad_fn, dim) == (place, True)
        rec.select(dim, place).add_(value)
        assert place_of(rec.grad_fn, dim) == (place, False)
        for change in (lambda part: part.sub_(value), lambda part: part.add_(value, alpha=2)):
            change(rec.select(dim, place))
            assert place_of(rec.grad_fn, dim) is None
