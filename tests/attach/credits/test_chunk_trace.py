"""Traces that go from chunk to chunk: equal to those of single steps."""

import pytest
import snntorch as snn
import torch
from own_networks import Loop, steps
from sequences import SG, B, C, F, N, T, f64
from torch import nn

from snn_dfa import DFA, AttachError, RefractoryLeaky, over_time, reset
from snn_dfa.eligibility import advance, advance_chunk
from snn_dfa.sequence.scan import cpu

NEURONS = {
    "subtract": lambda **o: snn.Leaky(f64(0.8), f64(0.3), SG, **o),
    "zero": lambda **o: snn.Leaky(f64(0.8), f64(0.3), SG, reset_mechanism="zero", **o),
    "subtract at once": lambda **o: snn.Leaky(f64(0.8), f64(0.3), SG, reset_delay=False, **o),
    "zero at once": lambda **o: snn.Leaky(
        f64(0.8), f64(0.3), SG, reset_mechanism="zero", reset_delay=False, **o
    ),
    "refractory": lambda **o: RefractoryLeaky(
        f64(0.8), f64(0.2), SG, refractory_steps=2, input_gain=0.7, **o
    ),
    "clamp": lambda **o: RefractoryLeaky(  # not all fire at once, or single steps begin anew
        f64(0.8), f64(0.6), SG, refractory_steps=1, refractory="clamp", reset_delay=False,
        reset_mechanism="zero", **o
    ),
}  # fmt: skip
WEIGHTS = torch.tensor([-1.0, 0.7, 2.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _in_torch(monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda *_: False)


def dense(make):
    net = nn.Sequential(
        nn.Linear(F, N), make(init_hidden=True), nn.Linear(N, N), nn.Identity(),
        make(init_hidden=True), nn.Linear(N, C), make(init_hidden=True, output=True),
    ).double()  # fmt: skip
    with torch.no_grad():
        for linear in (m for m in net if isinstance(m, nn.Linear)):
            linear.weight.mul_(2)
            linear.bias.add_(0.4)
    return net


class Conv(nn.Module):
    """A step with a form of its own: a convolution, an average, and a branch."""

    def __init__(self, make):
        super().__init__()
        self.conv, self.pool, self.lif = nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), make(init_hidden=True)
        self.flat, self.fc = nn.Flatten(), nn.Linear(8, C)
        self.out = make(init_hidden=True, output=True)
        self.double()
        with torch.no_grad():
            self.conv.weight.mul_(2)
            self.conv.bias.add_(0.5)
            self.fc.bias.add_(0.4)

    def forward(self, x):
        spk = self.lif(self.pool(self.conv(x)))
        return self.out(self.fc(self.flat(spk + spk**2)))


def loss(out):
    spk, mem = out
    return ((spk * WEIGHTS).sum(-1).square() + (mem.sin() * WEIGHTS).sum(-1)).sum()


def gradients(net, form, x, chunks, **options):
    """Of the same losses of single steps, with a backward pass for each chunk, two sequences."""
    net.zero_grad()
    with DFA(form, **options):
        for _ in range(2):
            reset(net)
            for chunk in chunks:
                part = x[chunk]
                loss(form(part[0] if form is net else part)).backward()
    return {n: p.grad for n, p in net.named_parameters()}


STEPS = [slice(t, t + 1) for t in range(T)]
CHUNKS = {"whole": [slice(0, T)], "chunks": [slice(0, 3), slice(3, 4), slice(4, T)], "1": STEPS}


@pytest.mark.slow
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("network", [dense, Conv])
def test_chunks_equal_single_steps(network, kind, chunks):
    net = network(NEURONS[kind])
    shape = (1, 6, 6) if network is Conv else (F,)
    x = torch.rand(T, B, *shape, dtype=torch.float64) * 2
    wanted = gradients(net, net, x, STEPS, credit="trace", seed=3)
    form = over_time(net, stateful=True)
    got = gradients(net, form, x, chunks, credit="trace", seed=3)
    for name, want in wanted.items():
        assert want.any()
        torch.testing.assert_close(got[name], want, rtol=1e-10, atol=1e-10, msg=name)


def test_where_it_is_exact_chunks_equal_membrane_credit_over_the_sequence():
    net, x = dense(NEURONS["subtract"]), torch.rand(T, B, F, dtype=torch.float64) * 2
    wanted = gradients(net, over_time(net), x, CHUNKS["whole"], seed=3)
    got = gradients(net, over_time(net, stateful=True), x, CHUNKS["chunks"], credit="trace", seed=3)
    for name, want in wanted.items():
        torch.testing.assert_close(got[name], want, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("names", [["0.weight"], ["0.weight", "0.bias"]])
@pytest.mark.parametrize("first", [True, False])
def test_a_parameter_that_is_frozen_or_thawed_between_chunks_raises_an_error(names, first):
    net, x = dense(NEURONS["subtract"]), torch.rand(T, B, F, dtype=torch.float64) * 2
    form = over_time(net, stateful=True)
    with DFA(form, credit="trace"):
        for learns in (first, not first):
            for name in names:
                net.get_parameter(name).requires_grad_(learns)
            reset(net)
            for chunk in (x[:3], x[3:]):
                loss(form(chunk)).backward()  # between sequences it may change
        for name in names:
            net.get_parameter(name).requires_grad_(first)
        with pytest.raises(AttachError, match="frozen or thawed in between"):
            form(x)


def test_lapicque_has_a_trace_over_chunks():
    net = dense(lambda **o: snn.Lapicque(f64(0.8), spike_grad=SG, threshold=f64(0.1), **o))
    x = torch.rand(T, B, F, dtype=torch.float64) * 2
    wanted = gradients(net, over_time(net), x, CHUNKS["whole"], seed=3)
    form = over_time(net, stateful=True)
    got = gradients(net, form, x, CHUNKS["chunks"], credit="trace", seed=3)
    for name, want in wanted.items():
        assert want.any()
        torch.testing.assert_close(got[name], want, rtol=1e-10, atol=1e-10, msg=name)


def test_a_loop_inside_with_explicit_states():
    net, x = Loop(lambda _: NEURONS["zero"]()), torch.rand(T, B, F, dtype=torch.float64) * 2

    def step(part):  # the same network, one step a call, with hidden states
        spk = part
        for i in "123":
            spk, mem = hidden[i](getattr(net, f"fc{i}")(spk))
        return spk, mem

    got = gradients(net, over_time(net, stateful=True), x, CHUNKS["chunks"], credit="trace", seed=3)
    hidden = {}

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            for i in "123":
                hidden[i] = NEURONS["zero"](init_hidden=True, output=True)
                setattr(self, f"fc{i}", getattr(net, f"fc{i}"))
                setattr(self, f"lif{i}", hidden[i])
            self.forward = step

    around = Around()
    got = {n: g.clone() for n, g in got.items()}
    wanted = gradients(around, around, x, STEPS, credit="trace", seed=3)
    for name, want in wanted.items():
        assert want.any()
        torch.testing.assert_close(got[name], want, rtol=1e-10, atol=1e-10, msg=name)


def test_values_are_those_of_the_loop_and_nothing_is_left_behind():
    net, x = dense(NEURONS["zero"]), torch.rand(T, B, F, dtype=torch.float64) * 2
    form = over_time(net, stateful=True)
    with DFA(form, credit="trace") as dfa:
        got = [form(x[c]) for c in CHUNKS["chunks"]]
        with dfa.paused():
            form(x)[0].sum().backward()
    wanted = steps(net, x)
    for part, want in zip(zip(*got, strict=True), wanted, strict=True):
        assert torch.equal(torch.cat(part), want)
    assert not any(m.traces for m in form.modules() if hasattr(m, "traces"))


def test_a_chunk_of_a_trace_is_its_steps():
    x, trace = torch.rand(5, 3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    wanted = (trace,)
    for step in x:
        wanted = advance(wanted, step, (0.7,))
    torch.testing.assert_close(advance_chunk(trace, x, f64(0.7)), wanted[0])


def test_what_has_no_trace_over_chunks_says_so():
    synaptic = snn.Synaptic(0.5, 0.8, init_hidden=True)
    net = nn.Sequential(
        nn.Linear(4, 4), synaptic, nn.Linear(4, 4), snn.Leaky(0.8, init_hidden=True)
    )
    with pytest.raises(AttachError, match="'1' is a Synaptic without a trace over a sequence"):
        DFA(over_time(net), credit="trace")
    net = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), snn.Leaky(0.8, init_hidden=True), nn.Linear(4, 4),
        snn.Leaky(0.8, init_hidden=True),
    )  # fmt: skip
    with (
        DFA(form := over_time(net, stateful=True), credit="trace"),
        pytest.raises(AttachError, match=r"'2': expected the output of one nn\.Linear"),
    ):
        form(torch.rand(3, 2, 4))


@pytest.mark.parametrize("where", ["in the credit", "in the neuron", "in the second call"])
def test_after_a_call_that_failed_back_propagation_is_what_it_was(where):
    def made():
        torch.manual_seed(1)
        net = dense(NEURONS["zero"])
        between = nn.Tanh() if where == "in the credit" else nn.Identity()
        return over_time(nn.Sequential(net[0], between, *net[1:]), stateful=True)

    def learned(form):
        reset(form)
        loss(form(x)).backward()
        return next(form.parameters()).grad

    x = torch.rand(T, B, F, dtype=torch.float64) * 2
    wanted, form = learned(made()), made()
    scan = form[2]
    dfa = DFA(form, credit="trace")
    if where == "in the second call":
        form(x)
    if where == "in the credit":
        with pytest.raises(AttachError, match=r"expected the output of one nn\.Linear"):
            form(x)
    else:
        scan.neuron.register_forward_hook(lambda *_: None)  # which a scan refuses
        with pytest.raises(AttachError, match="has a forward hook"):
            form(x)
        scan.neuron._forward_hooks.clear()
    with dfa.paused():
        torch.testing.assert_close(learned(form), wanted, rtol=0, atol=0)
    form.zero_grad()
    dfa.remove()
    assert not [m for m in form.modules() if "forward" in vars(m)]
    torch.testing.assert_close(learned(form), wanted, rtol=0, atol=0)
