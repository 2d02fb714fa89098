"""Networks with a forward of their own, run once on T * B samples: the loop is the reference."""

import copy
import pickle

import pytest
import snntorch as snn
import torch
from own_networks import (
    NEURONS,
    Hidden,
    Inside,
    Loop,
    Residual,
    States,
    Step,
    inputs,
    linear,
    steps,
    tensors,
    zeros,
)
from sequences import C, F, N
from torch import nn

from snn_dfa import DFA, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

pytestmark = pytest.mark.usefixtures("in_torch")


def gradients(net, run, x, **options):
    """Values and gradients; with options by DFA around what is run, else by back-propagation."""
    net.zero_grad()
    if not options:
        out = tensors(run(x))
        loss_of(out).backward()
    else:
        form = run if isinstance(run, nn.Module) else net
        with DFA(form, **options):
            for _ in range(2):  # the first pass and the others have paths of their own
                net.zero_grad()
                out = tensors(run(x))
                loss_of(out).backward()
    return [o.detach() for o in out], {n: p.grad for n, p in net.named_parameters()}


def loss_of(out):
    g = torch.Generator().manual_seed(2)
    return sum(
        (o * torch.randn(o.shape, generator=g, dtype=o.dtype)).sum() for o in out if o.requires_grad
    )


def assert_same(net, loop, x, rules=({}, {"seed": 4})):
    """Values to the bit and gradients, by back-propagation and by DFA."""
    form = over_time(net)
    for options in rules:
        wanted, at_loop = gradients(net, loop, x, **options)
        got, at_once = gradients(net, form, x, **options)
        assert len(got) == len(wanted)
        assert wanted[0].any()
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b)
        assert any(g is not None and g.any() for g in at_loop.values())
        for name, grad in at_loop.items():
            torch.testing.assert_close(at_once[name], grad, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_a_loop_inside_with_explicit_states(make):
    net = Loop(make)
    assert_same(net, net, inputs())


@pytest.mark.slow
@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_one_step_with_hidden_states(make):
    net = Step(make)
    assert_same(net, lambda x: steps(net, x), inputs())


def test_a_residual_convolutional_step():
    net = Residual()
    x = torch.rand(7, 3, 1, 8, 8, dtype=torch.float64) * 2
    assert_same(net, lambda x: steps(net, x), x)


class Normalised(Hidden):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(N).double(), nn.Dropout(0.5)

    def forward(self, x):
        spk = self.lif(self.norm(self.fc(x)))
        return self.lif_out(self.out(self.drop(spk))), self.drop(x + 0.5)


def test_the_check_changes_nothing():
    net, x, found = Normalised(), inputs(), []
    for check in (True, False):
        torch.manual_seed(3)
        net.norm.reset_running_stats()
        found.append((over_time(net, check=check)(x)[0], net.norm.running_mean.clone()))
    assert int(net.norm.num_batches_tracked) == 1
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    mean = net.fc(x).mean((0, 1))  # over time and batch
    torch.testing.assert_close(net.norm.running_mean, 0.1 * mean)


def test_a_dropout_module_draws_one_mask_for_a_sequence():
    form, x = over_time(Normalised()), inputs()
    kept = form(x)[1] != 0
    assert 0.1 < kept.double().mean() < 0.9
    assert torch.equal(kept, kept[:1].expand_as(kept))
    assert torch.equal(form.eval()(x)[1], x + 0.5)
    assert not form.drop.module.training


class Asks(nn.Module):
    """Asks for classes, attributes and hidden states."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([
            linear(F, N), NEURONS["Leaky"](N, init_hidden=True),
            linear(N, C), NEURONS["Leaky"](C, init_hidden=True),
        ])  # fmt: skip
        self.neurons, self.scale, self.seen = [self.layers[1], self.layers[3]], 1.0, None

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) if isinstance(layer, snn.Leaky) else self.scale * layer(x)
        self.seen = x
        mem = self.neurons[1].mem  # of this step
        return {"spikes": x, "mem": [mem - self.neurons[1].threshold, self.layers[1].mem]}


def test_code_that_asks_for_classes_attributes_and_hidden_states():
    net, x = Asks(), inputs()
    form = over_time(net)
    for net.scale in (1.0, 1.5):
        reset(net)
        out = [net(step) for step in x]
        got, spikes = form(x), torch.stack([o["spikes"] for o in out])
        assert torch.equal(got["spikes"], spikes)
        assert torch.equal(net.seen, spikes)
        for i, mem in enumerate(got["mem"]):
            assert torch.equal(mem, torch.stack([o["mem"][i] for o in out]))


def test_a_loss_on_a_hidden_state_that_is_read():
    class Reads(Hidden):
        def forward(self, x):
            return super().forward(x), self.lif.mem

    net = Reads()
    assert_same(net, lambda x: steps(net, x), inputs())


def test_states_among_arguments_and_results():
    net, x = States(), inputs()
    mem, state = zeros(N) + 0.2, (zeros(C) + 0.1, zeros(C) + 0.5)
    got = over_time(net)(x, mem, state, scale=1.2)
    for t, step in enumerate(x):
        spk, mem, state = net(step, mem, state, scale=1.2)
        for a, b in zip(tensors(got), (spk, mem, *state), strict=True):
            assert torch.equal(a[t], b)


class Soft(snn.Leaky):
    """A user's neuron, which begins by itself."""

    def forward(self, x, mem=None):
        mem = torch.zeros_like(x) if mem is None else mem
        mem = (self.beta * mem + x).clamp(-1, 1)
        spk = self.spike_grad(mem - self.threshold)
        return spk, mem - spk * self.threshold


@pytest.mark.parametrize("named", [False, True])
def test_a_users_neuron_may_begin_without_a_state(named):
    class Begins(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.fc2 = linear(F, N), linear(N, C)
            self.lif1, self.lif2 = (
                Soft(0.9, 0.3, spike_grad=fast_sigmoid(5)).double() for _ in "12"
            )

        def forward(self, x):
            one, two, out = None, None, []
            for step in x:
                spk, one = (
                    self.lif1(self.fc1(step), mem=one) if named else self.lif1(self.fc1(step), one)
                )
                spk, two = self.lif2(self.fc2(spk), two)
                out.append(spk)
            return torch.stack(out)

    net = Begins()
    assert_same(net, net, 3 * inputs())


def test_a_first_state_that_learns():
    class Learns(Inside):
        def __init__(self):
            super().__init__()
            self.mem0 = nn.Parameter(torch.full((C,), 0.2, dtype=torch.float64))

        def first(self, x):
            return self.lif.reset_mem(), self.mem0.expand(x.size(1), C)

    net = Learns()
    assert_same(net, net, inputs())
    assert net.mem0.grad.any()


def test_a_copy_and_the_names_are_those_of_the_network():
    net, x = Loop(NEURONS["Leaky"]), inputs()
    form = over_time(net)
    wanted = form(x)
    assert {id(p) for p in form.parameters()} == {id(p) for p in net.parameters()}
    assert list(form.state_dict()) == list(net.state_dict())
    assert [n for n, _ in form.named_children()] == [n for n, _ in net.named_children()]
    twin = copy.deepcopy(form)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in net.parameters()}
    unpickled = over_time(Asks())
    pickle.loads(pickle.dumps(unpickled))(x)
    assert all(torch.equal(a, b) for a, b in zip(twin(x), wanted, strict=True))
    assert form.to(torch.float32)(x.float())[0].dtype == torch.float32
    assert net.fc1.weight.dtype == torch.float32


def test_autocast_gives_spikes_in_single_precision_at_the_end():
    net = Step(lambda n, **options: snn.Leaky(0.9, **options)).float()
    form, x = over_time(net), inputs().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spk, mem = form(x)
    assert spk.dtype == mem.dtype == torch.float32
    assert form.lif1.is_last is False


def test_a_network_that_makes_single_precision_itself_is_compared_in_it():
    class Lstm(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = snn.SLSTM(F, N, threshold=0.02, init_hidden=True)
            self.fc, self.lif = nn.Linear(N, C), snn.Leaky(0.9, init_hidden=True)

        def forward(self, x):
            return self.lif(5 * self.fc(self.lstm(x)))

    net, x = Lstm(), inputs().float()
    got = over_time(net)(x)
    assert got.any()
    assert torch.equal(got, steps(net, x))
