"""A step of ``snn.Leaky`` in one node: values, states and gradients of the module's own forward."""

import copy
import itertools

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from snn_dfa import DFA, RefractoryLeaky
from snn_dfa import surrogate as own
from snn_dfa._attach.functions import Relink
from snn_dfa._attach.steps.known_neurons import step_of

T, B, N = 5, 4, 6
OWN = "PlainStepBackward", "CompiledStepBackward", "RelinkBackward"
SURROGATES = {
    "default": None,
    "fast_sigmoid": surrogate.fast_sigmoid(slope=5),
    "own": own.fast_sigmoid(5),
    "exact": own.exact(0.5, 20.0, 1.0),
    "unknown": surrogate.sigmoid(),
}


def run(forward, neuron, dtype, changed=None):
    """Return values, states and gradients of some steps that read spikes and membranes."""
    hidden = neuron.init_hidden and not neuron.output
    x = torch.rand(T, B, N, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    mem = torch.zeros(B, N, dtype=dtype)
    seen, total = [], 0.0
    for t, step in enumerate(x):
        if changed is not None and t == 2:
            changed(neuron)
        got = forward(step) if neuron.init_hidden else forward(step, mem)
        spk, mem = (got, neuron.mem) if hidden else got
        assert neuron.mem is mem
        seen += [spk, mem, neuron.reset]
        total = total + (t + 1) * ((spk * step).sum() + mem.square().sum())
    return seen, torch.autograd.grad(total, x)[0]


def in_one_node(neuron):
    """Return a call that takes the one node where it is known."""

    def call(*args):
        step = step_of(neuron)
        inputs = step.inputs(args)
        if inputs is None:
            return neuron(*args)
        spk, states, links, _ = step.compute(inputs)
        return step.result(spk, [Relink.apply([s], k) for s, k in zip(states, links, strict=True)])

    return call


def compare(neuron, dtype=torch.float64, changed=None):
    twin = copy.deepcopy(neuron)
    seen, grad = run(twin, twin, dtype, changed)
    fused, fused_grad = run(in_one_node(neuron), neuron, dtype, changed)
    assert any(0 < spk.mean() < 1 for spk in seen[::3])
    for a, b in zip(seen, fused, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        own = b.grad_fn is not None and b.grad_fn.name() in OWN
        assert own or type(a.grad_fn) is type(b.grad_fn)
    torch.testing.assert_close(grad, fused_grad)
    return fused[0].grad_fn.name() == "PlainStepBackward"


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_values_to_the_bit_and_gradients(name, reset):
    for dtype, hidden, output in itertools.product(
        (torch.float32, torch.float64), (True, False), (True, False)
    ):
        neuron = snn.Leaky(
            beta=torch.linspace(0.5, 1.2, N), threshold=0.6, reset_mechanism=reset,
            spike_grad=SURROGATES[name], init_hidden=hidden, output=output,
            graded_spikes_factor=1.5,
        ).to(dtype)  # fmt: skip
        assert compare(neuron, dtype) == (name != "unknown")


def change(name, value):
    return lambda neuron: setattr(neuron, name, value)


@pytest.mark.parametrize(
    "changed",
    [
        change("beta", torch.tensor(0.3, dtype=torch.float64)),
        change("threshold", torch.tensor(0.3, dtype=torch.float64)),
        change("spike_grad", own.fast_sigmoid(3)),
        change("state_quant", lambda mem: mem.round(decimals=1)),
        change("reset_delay", False),
        change("inhibition", True),
        change("fire", lambda mem: (mem > 0.5).double()),
        change("output", True),
    ],
    ids=["beta", "threshold", "spike_grad", "quant", "delay", "inhibition", "fire", "output"],
)
def test_an_attribute_counts_from_the_next_call_on(changed):
    neuron = snn.Leaky(beta=0.9, threshold=0.6).double()
    compare(neuron, changed=changed)


KINDS = {
    "Leaky": lambda **o: snn.Leaky(0.8, learn_beta=True, learn_graded_spikes_factor=True, **o),
    "RLeaky": lambda **o: snn.RLeaky(0.8, linear_features=N, learn_beta=True, **o),
    "Lapicque": lambda **o: snn.Lapicque(0.8, R=2, time_step=2, **o),
    "Synaptic": lambda **o: snn.Synaptic(
        torch.linspace(0.3, 0.9, N), 0.7, learn_alpha=True, learn_beta=True, **o
    ),
    "RSynaptic": lambda **o: snn.RSynaptic(0.6, 0.7, linear_features=N, learn_alpha=True, **o),
}


def steps(forward, neuron):
    """Return spikes and states of some steps, and the gradients at currents and parameters."""
    x = torch.rand(T, B, N, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    seen, total = [], 0.0
    for t, step in enumerate(x):
        spk = forward(step)
        syn = getattr(neuron, "syn", getattr(neuron, "syn_inh", spk))
        seen += [spk, neuron.mem, neuron.reset, syn]
        total = total + (t + 1) * ((spk * step).sum() + sum(s.square().sum() for s in seen[-4:]))
    return seen, torch.autograd.grad(total, [x, *neuron.parameters()])


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_neurons_and_constants_that_learn(kind, reset, learns):
    torch.manual_seed(0)
    neuron = KINDS[kind](
        threshold=0.6,
        learn_threshold=learns,
        reset_mechanism=reset,
        init_hidden=True,
        spike_grad=own.fast_sigmoid(5),
    ).double()
    twin = copy.deepcopy(neuron)
    seen, grads = steps(twin, twin)
    fused, fused_grads = steps(in_one_node(neuron), neuron)
    in_one = fused[0].grad_fn.name() in OWN
    assert in_one == (reset != "zero" or kind in ("Leaky", "Synaptic"))
    assert any(0 < spk.mean() < 1 for spk in seen[::4])
    for a, b in zip(seen, fused, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(grads, fused_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def alpha(decay, *, graded_spikes_factor, **options):
    neuron = snn.Alpha(decay, 0.5, **options)
    neuron.graded_spikes_factor.fill_(graded_spikes_factor)
    return neuron


ONLY_COMPILED = {
    "Alpha": (alpha, {}),
    "no delay": (snn.Leaky, {"reset_delay": False}),
    "refractory": (RefractoryLeaky, {"refractory_steps": 2, "input_gain": 1.5}),
    "clamped": (
        RefractoryLeaky, {"refractory_steps": 1, "refractory": "clamp", "reset_delay": False},
    ),
}  # fmt: skip


@pytest.mark.slow  # kernels are compiled
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", ONLY_COMPILED)
def test_neurons_whose_steps_are_compiled_or_their_own(kind, reset):
    pytest.importorskip("numba")
    make, options = ONLY_COMPILED[kind]
    neuron = make(
        0.8, threshold=0.6, reset_mechanism=reset, init_hidden=True, graded_spikes_factor=1.5,
        spike_grad=own.fast_sigmoid(5), **options,
    ).double()  # fmt: skip
    twin = copy.deepcopy(neuron)
    seen, (grad,) = steps(twin, twin)
    fused, (fused_grad,) = steps(in_one_node(neuron), neuron)
    assert fused[0].grad_fn.name() == "CompiledStepBackward"
    assert any(0 < spk.mean() < 1 for spk in seen[::4])
    assert all(torch.equal(a, b) for a, b in zip(seen, fused, strict=True))
    assert getattr(neuron, "counter", fused[0]).equal(getattr(twin, "counter", fused[0]))
    torch.testing.assert_close(grad, fused_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.slow  # kernels are compiled
@pytest.mark.parametrize(
    ("form", "dtype"), [(own.fast_sigmoid(5), torch.float32), (own.ATan(2.0), torch.float64)]
)
def test_a_neuron_that_spikes_where_its_membrane_changes(form, dtype):
    pytest.importorskip("numba")
    neuron = snn.DeltaLeaky(0.4, beta=0.8, spike_grad=form).to(dtype)

    def run(forward):
        x = torch.randn(T, B, N, generator=torch.Generator().manual_seed(0), dtype=dtype)
        state, seen, total = neuron.reset_mem(), [], 0.0
        for t, step in enumerate(x.requires_grad_()):
            spk, state = forward(step, state)
            assert (neuron.mem, neuron.mem_prev) == state
            seen += [spk, *state]
            total = total + (t + 1) * ((spk * step).sum() + sum(s.square().sum() for s in state))
        return seen, torch.autograd.grad(total, x)[0]

    def in_one(current, state):
        step = step_of(neuron)
        inputs = step.inputs((current, state))
        spk, states, links, _ = step.compute(inputs)
        return step.result(spk, [Relink.apply([s], k) for s, k in zip(states, links, strict=True)])

    (seen, grad), (fused, fused_grad) = run(neuron), run(in_one)
    assert fused[0].grad_fn.name() == "CompiledStepBackward"
    assert any(0 < spk.mean() < 1 for spk in seen[::3])
    assert all(torch.equal(a, b) for a, b in zip(seen, fused, strict=True))
    torch.testing.assert_close(grad, fused_grad)


def test_a_buffer_that_wants_a_gradient_gets_one():
    neuron = snn.Leaky(beta=0.9, threshold=0.6).double()
    neuron.threshold.requires_grad_()
    assert not compare(neuron)


def test_a_factor_that_learns_and_is_changed_before_the_backward_pass_is_an_error():
    neuron = snn.Leaky(
        0.9, threshold=0.6, graded_spikes_factor=2.0, learn_graded_spikes_factor=True
    )
    x = torch.rand(B, N).requires_grad_()
    spk, _ = in_one_node(neuron)(x, torch.zeros(B, N))
    with torch.no_grad():
        neuron.graded_spikes_factor.fill_(3.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spk.sum().backward()


def test_half_precision_keeps_the_module_own_promotions():
    neuron = snn.Leaky(beta=0.9, threshold=0.6)
    assert not compare(neuron, torch.bfloat16)


class Named(snn.Leaky):
    """A subclass that computes as its base."""

    def __init__(self, name):
        super().__init__(beta=0.9, threshold=0.6)
        self.name = name

    def said(self):
        return self.name


class Rounded(Named):
    """One that has another membrane."""

    def _base_state_function(self, input_):
        return super()._base_state_function(input_).round(decimals=1)


@pytest.mark.parametrize("kind", [Named, Rounded])
def test_a_subclass_that_computes_as_its_base_has_its_step(kind):
    neuron = kind("lif").double()
    assert (step_of(neuron) is not None) == (kind is Named)
    if kind is Named:
        assert compare(neuron)


def test_a_given_state_that_snntorch_ignores_is_ignored():
    """A neuron with hidden states begins with its own, whatever it is given."""
    torch.manual_seed(0)
    fc, out = nn.Linear(3, 4), nn.Linear(4, 2)
    neuron = snn.DeltaLeaky(0.3, beta=0.8, init_hidden=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.out = fc, neuron, out

        def forward(self, x):
            given = torch.ones(2, 4), torch.ones(2, 4)
            return sum(self.out(self.lif(self.fc(step), given)[0]) for step in x)

    x, net = 3 * torch.rand(3, 2, 3), Net()
    wanted = net(x)
    assert neuron.mem.any()
    neuron.reset_mem()
    with DFA(net, output="out"):
        assert torch.equal(net(x), wanted)
