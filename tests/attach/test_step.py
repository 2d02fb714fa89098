"""A step of ``snn.Leaky`` in one node: values, states and gradients of the module's own forward."""

import copy
import itertools

import pytest
import snntorch as snn
import torch
from snntorch import surrogate

from snn_dfa import surrogate as own
from snn_dfa._attach.step import Step

T, B, N = 5, 4, 6
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
        step = Step(neuron)
        inputs = step.inputs(args)
        return neuron(*args) if inputs is None else step.result(*step.compute(inputs))

    return call


def compare(neuron, dtype=torch.float64, changed=None):
    twin = copy.deepcopy(neuron)
    seen, grad = run(twin, twin, dtype, changed)
    fused, fused_grad = run(in_one_node(neuron), neuron, dtype, changed)
    assert any(0 < spk.mean() < 1 for spk in seen[::3])
    for a, b in zip(seen, fused, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert type(a.grad_fn) is type(b.grad_fn) or b.grad_fn.name() == "_StepBackward"
    torch.testing.assert_close(grad, fused_grad)
    return fused[0].grad_fn.name() == "_StepBackward"


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


def test_what_learns_keeps_its_own_graph():
    neuron = snn.Leaky(beta=0.9, threshold=0.6, learn_beta=True).double()
    assert not compare(neuron)
    neuron = snn.Leaky(beta=0.9, threshold=0.6).double()
    neuron.threshold.requires_grad_()
    assert not compare(neuron)


def test_half_precision_keeps_the_module_own_promotions():
    neuron = snn.Leaky(beta=0.9, threshold=0.6)
    assert not compare(neuron, torch.bfloat16)
