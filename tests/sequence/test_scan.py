"""The scans: compiled against plain, what they keep, half precision."""

import pytest
import snntorch as snn
import torch
from scan_kinds import KINDS, dynamics
from sequences import B, C, F, N, T, f64
from snntorch import surrogate as snn_surrogate
from torch import nn

from snn_dfa import DFA, over_time
from snn_dfa.sequence import dynamics_of
from snn_dfa.sequence.scan import cpu, credit_at_current, gate_of, leaky_scan, reference
from snn_dfa.surrogate import exact, fast_sigmoid

SG = fast_sigmoid(10)


numba = pytest.mark.skipif(
    not cpu.available(torch.zeros(1), dynamics()), reason="numba is not installed"
)


# Each kind is a kernel of its own, and so is each dtype: those that differ in one thing.
@pytest.mark.slow
@numba
@pytest.mark.parametrize(
    ("dtype", "once", "options"),
    [(torch.float64, False, kind) for kind in KINDS if kind["reset_mechanism"] != "none"]
    + [(torch.float32, once, KINDS[-1]) for once in (False, True)]
    + [(torch.float32, True, KINDS[0])],
    ids=str,
)
def test_compiled_equals_plain(options, dtype, once, generator):
    dyn = dynamics(dtype, **options)
    x = torch.rand(1 if once else 9, 2, 1030, generator=generator, dtype=dtype)
    expected = reference.forward(x, dyn, 9, dtype, True, True)
    fast = cpu.forward(x, dyn, 9, dtype, True, True)
    assert 0.05 < expected[0].mean() < 1
    assert all(torch.equal(a, b) for a, b in zip(fast, expected, strict=True))
    gs, gm = torch.randn(2, 9, 2, 1030, generator=generator, dtype=dtype)
    alone = [(gs, None), (None, gm), (gs[:1].expand_as(gs), None)]  # kernels of their own
    for grads in [(gs, gm)] + alone * (dtype == torch.float64 and options == KINDS[0]):
        args = (*grads, expected[1], dyn, dtype, once)
        torch.testing.assert_close(cpu.backward(*args), reference.backward(*args))


LEARNS = {"learn_beta": True, "learn_threshold": True}
SEVERAL_STATES = {
    "leaky": (snn.Leaky(0.7, 0.5, SG, reset_delay=False, **LEARNS), torch.float32),
    "synaptic": (snn.Synaptic(f64(0.4), f64(0.7), f64(0.5), SG, reset_mechanism="zero",
                              learn_alpha=True, **LEARNS), torch.float64),
    "alpha": (snn.Alpha(torch.tensor([0.8]), torch.tensor([0.5]), 0.1, SG), torch.float32),
    "with a resistance": (
        snn.Lapicque(R=2.0, C=1.5, time_step=0.5, threshold=0.4, spike_grad=SG), torch.float32),
}  # fmt: skip


@pytest.mark.slow
@numba
@pytest.mark.parametrize("kind", SEVERAL_STATES)
def test_compiled_equals_plain_with_several_states_and_constants_that_learn(kind, monkeypatch):
    neuron, dtype = SEVERAL_STATES[kind]
    dyn, found = dynamics_of(neuron), []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr(cpu, "available", lambda *_: False)
        g = torch.Generator().manual_seed(3)
        x, *first = (torch.rand(*shape, generator=g, dtype=dtype).requires_grad_()
                     for shape in [(9, 2, 70), *[(2, 70)] * (1 + dyn.currents)])  # fmt: skip
        start = first[0], None, *first[1:]
        out = leaky_scan(x, dyn, True, start=start, want_last=True)
        assert 0.05 < out[0].mean() < 1
        several = 2 + dyn.currents
        sum((o * torch.randn(o.shape, generator=g)).sum() for o in out[:several]).backward()
        found.append((out, [t.grad for t in (x, *first)], [p.grad for p in neuron.parameters()]))
        neuron.zero_grad()
        dyn = dynamics_of(neuron)
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    for a, b in zip((*found[0][1], *found[0][2]), (*found[1][1], *found[1][2]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=numba)])
@pytest.mark.parametrize("kind", SEVERAL_STATES)
def test_gates_are_the_gradients_of_the_summed_spikes(kind, compiled, monkeypatch, generator):
    neuron, dtype = SEVERAL_STATES[kind]
    if not compiled:
        monkeypatch.setattr(cpu, "available", lambda *_: False)
    x = torch.rand(9, 2, 1050, generator=generator, dtype=dtype).requires_grad_()
    current = x.view(18, 5, 210).view(9, 2, 5, 210)
    spikes = leaky_scan(current, dynamics_of(neuron))[0]
    each = torch.autograd.grad(spikes.sum(), x, retain_graph=True)[0]
    assert each.any()
    for dims, shaped in ((2, spikes), (1, spikes.flatten(0, 1))):
        gate, sizes = gate_of(shaped, current.grad_fn, dims)
        torch.testing.assert_close(gate, each.mean(0).view(2, 5, 210))
        torch.testing.assert_close(sizes, each.abs().sum((1, 2)))


@pytest.mark.slow
@numba
def test_compiled_takes_the_slope_of_any_surrogate(generator):
    x, gs = torch.rand(2, 9, 2, 50, generator=generator)
    for surrogate in (exact(0.3, 5.0, 1.0), fast_sigmoid(7), snn_surrogate.atan(3.0)):
        dyn = dynamics_of(snn.Leaky(torch.linspace(0.3, 0.9, 50), 0.3, spike_grad=surrogate))
        margin = reference.forward(x, dyn, 9, x.dtype, False, True)[1]
        args = (gs, None, margin, dyn, x.dtype, False)
        torch.testing.assert_close(cpu.backward(*args), reference.backward(*args))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", [reference, pytest.param(cpu, marks=numba)])
def test_bfloat16_in_and_out_with_the_membrane_in_single(implementation, generator):
    dyn = dynamics()
    x = torch.rand(9, 2, 70, generator=generator).bfloat16()
    spikes, margin, _ = implementation.forward(x, dyn, 9, torch.bfloat16, False, True)
    single = reference.forward(x.float(), dyn, 9, torch.float32, False, True)
    assert spikes.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), single[0])
    assert torch.equal(margin, single[1].bfloat16())
    gs = torch.randn(9, 2, 70, generator=generator)
    got = implementation.backward(gs, None, margin, dyn, torch.bfloat16, False)
    wanted = reference.backward(gs, None, margin, dyn, torch.float32, False)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted.bfloat16(), rtol=1e-2, atol=1e-6)


@pytest.mark.slow
def test_autocast_keeps_the_membrane_in_single_precision():
    net = nn.Sequential(
        nn.Linear(F, N), snn.Leaky(0.8, 0.3, spike_grad=SG, init_hidden=True),
        nn.Linear(N, C), snn.Leaky(0.8, 0.3, spike_grad=SG, init_hidden=True, output=True),
    )  # fmt: skip
    fast = over_time(net)
    with DFA(fast):
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                spk, mem = fast(torch.rand(T, B, F))
            assert mem.dtype == torch.float32
            spk.float().sum().backward()
            assert all(p.grad.dtype == torch.float32 for p in net.parameters())
            assert all(p.grad.isfinite().all() for p in net.parameters())


def test_scan_keeps_no_more_than_one_tensor():
    dyn, kept = dynamics(), []
    x = torch.rand(T, B, N, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        leaky_scan(x, dyn)
    assert [t.shape for t in kept] == [(T, B, N)]


def test_scan_keeps_nothing_where_no_gradient_is_wanted(generator):
    x = torch.rand(9, 2, 30, generator=generator)
    for implementation in (reference, *([cpu] if cpu.has_numba() else [])):
        with_it = implementation.forward(x, dynamics(), 9, x.dtype, True, True)
        spikes, margin, mems = implementation.forward(x, dynamics(), 9, x.dtype, True, False)
        assert margin is None
        assert torch.equal(spikes, with_it[0])
        assert torch.equal(mems, with_it[2])


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", [SG, exact(0.3, 5.0, 1.0)], ids=["fast_sigmoid", "exact"])
@pytest.mark.parametrize("shape", [(T, B, N), (T, B, 2, 3)], ids=str)
def test_credit_at_the_current_is_error_times_slope(surrogate, shape, generator):
    current, errors = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    threshold = torch.full(shape[2:], 0.4, dtype=torch.float64)
    got = credit_at_current(errors, current, threshold, surrogate)
    wanted = errors * surrogate.derivative(current - threshold)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_credit_at_a_constant_current_keeps_the_sum_over_steps(generator):
    errors = torch.rand(T, B, N, generator=generator, dtype=torch.float64)
    current = torch.rand(B, N, generator=generator, dtype=torch.float64).expand(T, B, N)
    got = credit_at_current(errors, current, f64(0.4), SG)
    assert got.stride(0) == 0
    wanted = errors * SG.derivative(current - 0.4)
    torch.testing.assert_close(got.sum(0), wanted.sum(0), rtol=1e-12, atol=1e-12)
