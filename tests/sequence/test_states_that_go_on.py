"""Chunks of a sequence: scans begin from a state and return the last one."""

import copy

import pytest
import snntorch as snn
import torch
from own_networks import NEURONS, Loop, Step, inputs, steps, tensors
from scan_kinds import KINDS, dynamics
from sequences import SG, B, C, F, N, T, f64, leaky
from torch import nn

from snn_dfa import AttachError, RefractoryLeaky, over_time, reset
from snn_dfa.sequence.scan import cpu, leaky_scan, reference
from snn_dfa.surrogate import fast_sigmoid

CHUNKS = [(0, 2), (2, 3), (3, T)]


def in_chunks(form, x):
    """Two sequences, each in chunks of several lengths."""
    for _ in range(2):
        reset(form)
        found = [tensors(form(x[a:b])) for a, b in CHUNKS]
    return [torch.cat(each) for each in zip(*found, strict=True)]


def assert_goes_on(net, loop, x):
    wanted = tensors(loop(x))
    assert wanted[0].any()
    got = in_chunks(over_time(net, stateful=True), x)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("in_torch")
@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_hidden_states_go_on_until_reset(make):
    net = Step(make)
    assert_goes_on(net, lambda x: steps(net, x), inputs())


@pytest.mark.slow
@pytest.mark.usefixtures("in_torch")
@pytest.mark.parametrize("kind", [k for k in NEURONS if k != "DeltaLeaky"])
def test_explicit_states_that_begin_with_reset_mem_go_on(kind):
    net = Loop(NEURONS[kind])
    assert_goes_on(net, net, inputs())


@pytest.mark.usefixtures("in_torch")
def test_a_sequential_network_goes_on():
    for make in (leaky, lambda n: snn.RLeaky(f64(0.8), linear_features=n, spike_grad=SG,
                                             threshold=f64(0.1), init_hidden=True)):  # fmt: skip
        net = nn.Sequential(nn.Linear(F, N), make(N), nn.Linear(N, C), make(C)).double()
        with torch.no_grad():
            net[0].bias.add_(1)
            net[2].bias.add_(1)
        assert_goes_on(net, lambda x, net=net: steps(net, x), inputs())


@pytest.mark.usefixtures("in_torch")
def test_a_network_that_resets_hidden_states_itself_goes_on():
    class Resets(Step):
        def forward(self, x):
            reset(self)
            return tuple(torch.stack(e) for e in zip(*map(super().forward, x), strict=True))

    net = Resets(NEURONS["RefractoryLeaky"])
    assert_goes_on(net, net, inputs())


@pytest.mark.usefixtures("in_torch")
def test_states_of_another_batch_are_rest():
    net, x = Step(NEURONS["Leaky"]), inputs()
    form = over_time(net, stateful=True)
    form(x)
    got = form(x[:, :2])
    assert all(torch.equal(a, b) for a, b in zip(got, steps(net, x[:, :2]), strict=True))


@pytest.mark.usefixtures("in_torch")
def test_no_gradient_goes_from_chunk_to_chunk():
    net, x = Loop(NEURONS["Synaptic"]), inputs()
    form = over_time(net, stateful=True)
    for a, b in CHUNKS:
        form(x[a:b])[0].sum().backward()
    assert net.fc1.weight.grad.any()
    assert net.lif1.mem.grad_fn is None


def test_explicit_states_of_deltaleaky_say_what_to_do():
    with pytest.raises(AttachError, match="make the neuron with init_hidden=True"):
        over_time(Loop(NEURONS["DeltaLeaky"]), stateful=True)(inputs())


@pytest.mark.usefixtures("in_torch")
def test_the_gradient_at_a_first_membrane():
    """By the loop, for each reset; a counter in the middle of its silent steps, too."""
    x = torch.rand(T, B, N, dtype=torch.float64)
    for options in KINDS:
        dyn = dynamics(torch.float64, **options)
        neuron = RefractoryLeaky(f64(0.7), f64(0.3), spike_grad=fast_sigmoid(5), **options)
        high = 0.3 if options == KINDS[3] else 1.0  # the kernel's own reset comes after a step
        first = (high * torch.rand(B, N, dtype=torch.float64)).requires_grad_()
        wait = torch.randint(0, dyn.refractory_steps + 1, (B, N), dtype=torch.int32)
        found = []
        for way in ("loop", "scan"):
            first.grad = None
            if way == "scan":
                start = first, wait if dyn.refractory_steps else None
                spk, mem = leaky_scan(x, dyn, True, start=start)
            else:
                out, state = [], first
                for step in x:
                    if not out:
                        neuron.mem = first
                        neuron.counter = wait.clone()
                        neuron._last_mem = (first.detach(),)  # it goes on from this one
                    out.append(neuron(step, state))
                    state = out[-1][1]
                spk, mem = (torch.stack(each) for each in zip(*out, strict=True))
            g = torch.Generator().manual_seed(3)
            weights = torch.randn(2, *x.shape, generator=g, dtype=x.dtype)
            (spk * weights[0] + mem * weights[1]).sum().backward()
            found.append((spk.detach(), mem.detach(), first.grad))
        assert found[0][2].any()
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("in_torch")
def test_a_first_membrane_above_the_threshold_of_a_neuron_that_resets_at_once():
    neuron = snn.Leaky(f64(0.7), f64(0.3), SG, reset_mechanism="zero", reset_delay=False)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = neuron

        def forward(self, x, mem):
            return self.lif(x, mem)

    x, mem = torch.rand(T, B, N, dtype=torch.float64), torch.rand(B, N, dtype=torch.float64)
    got = over_time(Alone())(x, mem)
    for t, step in enumerate(x):
        spk, mem = neuron(step, mem)
        assert torch.equal(got[0][t], spk)
        assert torch.equal(got[1][t], mem)


@pytest.mark.skipif(not cpu.has_numba(), reason="numba is not installed")
@pytest.mark.parametrize("options", [KINDS[0], KINDS[5]], ids=str)
def test_compiled_equals_plain_from_a_state(options, generator):
    dyn = dynamics(torch.float32, **options)
    x, mem = torch.rand(9, 2, 70, generator=generator), torch.rand(2, 70, generator=generator)
    wait = torch.randint(0, dyn.refractory_steps + 1, (2, 70), dtype=torch.int32)
    found = []
    for kernels in (cpu, reference):
        last = torch.zeros(2, 70), torch.zeros(2, 70, dtype=torch.int32)
        states = reference.States(mem, wait, *last)
        found.append([*kernels.forward(x, dyn, 9, x.dtype, True, True, states), *last])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if dyn.refractory_steps)
    assert all(torch.equal(a, b) for a, b in zip(found[0][:4], found[1][:4], strict=True))


def test_snntorchs_detach_hidden_between_chunks():
    net = nn.Sequential(nn.Linear(F, N), snn.Leaky(0.8, init_hidden=True)).double()
    form = over_time(net, stateful=True)
    x = inputs()
    whole = over_time(copy.deepcopy(net))(torch.cat([x, x]))
    chunks = []
    for _ in range(2):
        chunks.append(form(x))
        snn.Leaky.detach_hidden()
    assert torch.equal(torch.cat(chunks), whole)
