"""Errors at the values that a layer hands on: its spikes, its membranes, or both."""

import pytest
import snntorch as snn
import torch
from torch import nn
from ways import grads_of, with_weights

from snn_dfa import DFA, WeightMirror
from snn_dfa.surrogate import fast_sigmoid

B, F = 6, 5
READS = {
    "spikes": lambda spk, mem: spk,
    "membranes": lambda spk, mem: mem,
    "both": lambda spk, mem: torch.cat([spk, mem.tanh()], 1),
    "sum": lambda spk, mem: spk + 0.5 * mem,
    "product": lambda spk, mem: spk * mem,
}


class Net(nn.Module):
    """Two layers and a readout, each of which reads what another function makes of both values."""

    def __init__(self, first, second, reset="subtract", kind=snn.Leaky):
        super().__init__()
        self.reads = READS[first], READS[second]
        wide = [2 * F if name == "both" else F for name in (first, second)]
        self.fcs = nn.ModuleList([nn.Linear(4, F), nn.Linear(wide[0], F)])
        options = {"spike_grad": fast_sigmoid(5), "threshold": 0.3, "reset_mechanism": reset}
        decay = {"alpha": 0.5} if kind is snn.Synaptic else {}
        self.lifs = nn.ModuleList(kind(beta=0.7, **decay, **options) for _ in "12")
        self.out = nn.Linear(wide[1], 3)
        self.spikes = 0
        with torch.no_grad():
            for fc in self.fcs:
                fc.weight *= 3

    def forward(self, x):
        out, states = [], [n.reset_mem() for n in self.lifs]
        states = [each if isinstance(each, tuple) else (each,) for each in states]
        for h in x:
            for i, (fc, lif, read) in enumerate(zip(self.fcs, self.lifs, self.reads, strict=True)):
                spk, *states[i] = lif(fc(h), *states[i])
                self.spikes += int(spk.sum())
                h = read(spk, states[i][-1])
            out.append(self.out(h))
        return torch.stack(out)


def made(*args, steps=1, **options):
    torch.manual_seed(0)
    return Net(*args, **options).double(), torch.randn(steps, B, 4, dtype=torch.double)


def loss(out):
    return (out * torch.arange(1.0, 4).double()).sin().sum()


def grads(net, x, **options):
    """The gradients of back-propagation, and those of learned feedback with the weights."""
    want = grads_of(net, net, x, loss)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    feedback = WeightMirror(by_sample=1)
    dfa = DFA(net, output="out", optimizer=optimizer, feedback=feedback, **options)
    loss(net(x)).backward()
    with_weights(dfa, net)
    return want, grads_of(net, net, x, loss)


@pytest.mark.parametrize("kind", [snn.Leaky, snn.Synaptic])
@pytest.mark.parametrize("second", READS)
@pytest.mark.parametrize("first", READS)
def test_with_one_step_and_the_weights_it_is_back_propagation(first, second, kind):
    net, x = made(first, second, kind=kind)
    want, got = grads(net, x)
    assert net.spikes
    for name, each in want.items():
        assert each.any()
        torch.testing.assert_close(got[name], each, rtol=1e-9, atol=1e-12)


def test_of_neurons_without_reset_membranes_of_several_steps_too():
    """Of a linear network gates and their course are those of all samples."""
    net, x = made("membranes", "membranes", reset="none", steps=3)
    net.out, loss = nn.Linear(F, 1).double(), lambda out: out[-1].sum()
    want = grads_of(net, net, x, loss)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, output="out", optimizer=optimizer)
    loss(net(x)).backward()
    with_weights(dfa, net)
    got = grads_of(net, net, x, loss)
    for name in ("fcs.1.weight", "out.weight"):
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12)


def test_a_layer_of_which_nothing_reads_spikes_is_sent_no_error_there():
    net, x = made("membranes", "spikes", steps=3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, output="out", optimizer=optimizer)
    loss(net(x)).backward()
    with_weights(dfa, net)
    loss(net(x)).backward()
    assert set(dfa.feedback) == {"lifs.0", "lifs.1"}
    product = net.out.weight @ net.fcs[1].weight
    torch.testing.assert_close(dfa.feedback["lifs.0"], product)


@pytest.mark.parametrize("credit", ["current", "trace"])
def test_other_credits_are_of_spikes(credit):
    net, x = made("membranes", "membranes", steps=3)
    DFA(
        net, output="out", optimizer=(o := torch.optim.SGD(net.parameters(), lr=0.1)), credit=credit
    )
    for _ in range(2):
        loss(net(x)).backward()
        o.step()
    assert all(p.grad.any() for p in net.parameters())


def test_fixed_feedback_sends_errors_to_spikes():
    """So its definition is the same for all networks."""
    net, x = made("membranes", "membranes")
    matrix = torch.randn(3, F, dtype=torch.double)
    DFA(net, output="out", feedback={"lifs.0": matrix, "lifs.1": matrix})
    out = net(x)
    at_out = out.detach().requires_grad_()
    e = torch.autograd.grad(loss(at_out), at_out)[0][0]
    loss(out).backward()
    with torch.no_grad():
        above = net.fcs[0](x[0]) - 0.3
        slope = 1 / (1 + 5 * above.abs()) ** 2
        want = (e @ matrix * slope).t() @ x[0]
    assert net.spikes
    torch.testing.assert_close(net.fcs[0].weight.grad, want)
