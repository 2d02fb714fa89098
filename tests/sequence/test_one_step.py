"""The compiled step of a leaky neuron: values of torch's operations to the bit, and their slopes."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, RefractoryLeaky
from snn_dfa._attach.steps import nodes
from snn_dfa.sequence.one_step import Constants, step, step_back, suits
from snn_dfa.surrogate import ATan, FastSigmoid, inline_form

pytest.importorskip("numba")
SHAPE = 64, 70


@pytest.mark.slow  # kernels are compiled
@pytest.mark.parametrize(("reset", "dtype"), [("subtract", torch.float32), ("zero", torch.float64)])
def test_a_step_forward_and_back(reset, dtype):
    torch.manual_seed(0)
    surrogate = ATan(3.0) if reset == "zero" else FastSigmoid(7.0)
    constants = Constants(0.9, 0.7, 1.5, reset, inline_form(surrogate))
    current, mem = (torch.randn(SHAPE, dtype=dtype) for _ in range(2))
    assert suits(current)
    spk, (new,), margin, late, _ = step(current, None, [mem], None, constants)
    reset_now = (mem > 0.7).to(dtype)
    wanted = 0.9 * ((1 - reset_now) * mem if reset == "zero" else mem) + current
    wanted = wanted - reset_now * 0.7 if reset == "subtract" else wanted
    for got, expected in ((late, reset_now), (new, wanted), (margin, wanted - 0.7)):
        assert torch.equal(got, expected)
    assert torch.equal(spk, (wanted > 0.7).to(dtype) * 1.5)
    at_spk, at_mem = (torch.randn(SHAPE, dtype=dtype) for _ in range(2))
    for given in ((at_spk, at_mem), (at_spk, None), (None, at_mem)):
        total, (before,) = step_back(margin, late, None, given[0], given[1:], constants)
        expected = torch.zeros(SHAPE, dtype=dtype) if given[1] is None else at_mem
        if given[0] is not None:
            expected = expected + surrogate.derivative(margin) * at_spk * 1.5
        torch.testing.assert_close(total, expected)
        kept = 1 - reset_now if reset == "zero" else 1
        torch.testing.assert_close(before, 0.9 * expected * kept)


def test_what_the_kernels_leave_to_torch():
    assert suits(torch.rand(SHAPE))
    assert not suits(torch.rand(SHAPE).bfloat16())
    assert not suits(torch.rand(0, 3))
    assert not suits(torch.empty(1).expand(1 << 23))


# -- where numbers lie in memory -------------------------------------------------------------------

KINDS = {
    "Leaky": lambda **o: snn.Leaky(0.9, threshold=0.3, **o),
    "Leaky to zero": lambda **o: snn.Leaky(0.9, threshold=0.3, reset_mechanism="zero", **o),
    "Synaptic": lambda **o: snn.Synaptic(0.5, 0.8, threshold=0.3, **o),
    "DeltaLeaky": lambda **o: snn.DeltaLeaky(0.2, beta=0.8, **o),
    "RefractoryLeaky": lambda **o: RefractoryLeaky(0.9, threshold=0.3, refractory_steps=1, **o),
}
LAYOUTS = {
    "plain": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
    "every second": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


class TwoLayers(nn.Module):
    """The second is the output, whose gradient under DFA is that of back-propagation."""

    def __init__(self, kind, layout):
        super().__init__()
        self.gain, self.layout = nn.Parameter(torch.tensor(1.5)), layout
        self.hidden = KINDS["Leaky"](spike_grad=FastSigmoid(5.0), init_hidden=True)
        self.lif = KINDS[kind](spike_grad=FastSigmoid(5.0), init_hidden=True)

    def forward(self, x):
        out = self.lif(self.layout(x * self.gain + self.hidden(x)))
        return out[0] if isinstance(out, tuple) else out


@pytest.mark.slow  # kernels are compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_results_lie_in_memory_as_those_of_the_plain_neuron(kind, layout, monkeypatch):
    steps = torch.rand(4, 4, 6, 3, 5)
    calls, found = [], []
    for name in ("step", "change_step"):
        monkeypatch.setattr(nodes, name, counted(getattr(nodes, name), calls))
    for attached in (False, True):
        net = TwoLayers(kind, layout)
        dfa = DFA(net) if attached else None
        spikes = [net(x) for x in steps]
        (torch.stack(spikes) * torch.rand(6, 3, 5, generator=generator())).sum().backward()
        mem = net.lif.mem.detach()
        found.append((spikes, mem, [s.stride() for s in (*spikes, mem)], net.gain.grad))
        if dfa is not None:
            dfa.remove()
    (spikes, mem, strides, grad), (spikes_dfa, mem_dfa, strides_dfa, grad_dfa) = found
    assert len(calls) == 2 * 4  # layers and steps
    assert torch.stack(spikes).any()
    assert torch.equal(torch.stack(spikes), torch.stack(spikes_dfa))
    assert torch.equal(mem, mem_dfa)
    assert strides == strides_dfa
    torch.testing.assert_close(grad, grad_dfa)


def counted(function, calls):
    def call(*args):
        calls.append(1)
        return function(*args)

    return call


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.slow  # kernels are compiled
def test_results_lie_as_the_state_that_is_given():
    current = LAYOUTS["channels last"](torch.rand(4, 6, 3, 5))
    neuron = snn.Leaky(0.9, threshold=0.3, spike_grad=FastSigmoid(5.0))
    for mem in (torch.rand(4, 6, 3, 5), torch.rand(3, 5).expand(4, 6, 3, 5)):
        wanted = neuron(current, mem)
        constants = Constants(0.9, 0.3, 1.0, "subtract", inline_form(FastSigmoid(5.0)))
        spk, (new,), *_ = step(current, None, [mem], None, constants)
        for a, b in zip(wanted, (spk, new), strict=True):
            assert torch.equal(a, b)
            assert a.stride() == b.stride()
