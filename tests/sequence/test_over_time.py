"""Whole sequences: values and gradients of the loop over time, on every implementation."""

import itertools

import pytest
import snntorch as snn
import torch
from sequences import SG, B, C, F, N, T, f64, leaky
from snntorch import surrogate as snn_surrogate
from torch import nn

from snn_dfa import DFA, AttachError, RefractoryLeaky, over_time, reset
from snn_dfa.diagnostics import activity
from snn_dfa.encoding import constant
from snn_dfa.sequence import dynamics_of
from snn_dfa.surrogate import exact


def net_of(make, output=None):
    net = nn.Sequential(
        nn.Linear(F, N), make(N), nn.Sequential(nn.Linear(N, N), make(N)), nn.Dropout(0.0),
        nn.Linear(N, C), (output or make)(C),
    ).double()  # fmt: skip
    with torch.no_grad():  # so that every layer fires
        for linear in (m for m in net.modules() if isinstance(m, nn.Linear)):
            linear.weight.mul_(2)
            linear.bias.add_(0.2)
    return net


def loop(net, x):
    reset(net)
    out = [net(step) for step in x]
    if isinstance(out[0], torch.Tensor):
        return (torch.stack(out),)
    return tuple(torch.stack(part) for part in zip(*out, strict=True))


def whole(net, x):
    out = over_time(net)(x)
    return out if isinstance(out, tuple) else (out,)


def results(run, net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    out = run(net, x)
    g = torch.Generator().manual_seed(2)
    sum((o * torch.randn(o.shape, generator=g, dtype=o.dtype)).sum() for o in out).backward()
    return [o.detach() for o in out], [x.grad, *(p.grad for p in net.parameters())]


def assert_same(net, x):
    for got, wanted in zip(results(whole, net, x), results(loop, net, x), strict=True):
        assert len(got) == len(wanted)
        assert wanted[0].any()  # spikes, and the input's gradient
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


LEAKY = [
    dict(zip(("reset_mechanism", "reset_delay", "output"), values, strict=True))
    for values in itertools.product(("subtract", "zero", "none"), (True, False), (True, False))
]


KINDS = ["Leaky", "exact", "learns", "Refractory", "clamp", "Synaptic"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_torch")
@pytest.mark.parametrize("options", LEAKY, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_resets_and_constants_that_learn(kind, options):
    surrogate = exact(0.3, 5.0, 1.0) if kind == "exact" else SG
    learns = {"learn_beta": True, "learn_threshold": True}

    def make(n, **more):
        common = {"beta": f64(0.8), "threshold": f64(0.3), "spike_grad": surrogate,
                  "init_hidden": True, **options, "output": False, **more}  # fmt: skip
        if kind == "Synaptic":
            alpha = torch.linspace(0.3, 0.6, n).double()
            return snn.Synaptic(alpha, learn_alpha=True, **learns, **common)
        if kind in ("Refractory", "clamp"):
            mode = "clamp" if kind == "clamp" else "integrate"
            return RefractoryLeaky(**common, refractory_steps=2, refractory=mode, input_gain=0.9)
        return snn.Leaky(**common, **(learns if kind == "learns" else {}))

    net = net_of(make, lambda n: make(n, output=options["output"]))
    assert dynamics_of(net[1]) is not None
    assert_same(net, torch.rand(T, B, F, dtype=torch.float64) * 2)


OTHERS = {
    "learns": lambda n: snn.Leaky(
        f64(0.8), f64(0.3), SG, init_hidden=True, learn_beta=True, learn_threshold=True
    ),
    "per-neuron": lambda n: snn.Leaky(
        torch.linspace(0.5, 0.9, n).double(), torch.linspace(0.2, 0.4, n).double(), SG,
        init_hidden=True,
    ),
    "graded": lambda n: snn.Leaky(
        f64(0.8), f64(0.3), SG, init_hidden=True, graded_spikes_factor=f64(1.5)
    ),
    **{f"lapicque, {reset}": lambda n, reset=reset: snn.Lapicque(
        f64(0.6), threshold=f64(0.1), spike_grad=SG, init_hidden=True, reset_mechanism=reset,
        learn_threshold=True,
    ) for reset in ("subtract", "zero")},
    "synaptic": lambda n: snn.Synaptic(f64(0.5), f64(0.8), f64(0.3), SG, init_hidden=True),
    **{f"alpha, {reset}": lambda n, reset=reset: snn.Alpha(
        f64(0.8), f64(0.6), f64(0.1), SG, init_hidden=True, reset_mechanism=reset
    ) for reset in ("subtract", "zero", "none")},
    "rleaky": lambda n: snn.RLeaky(
        f64(0.8), linear_features=n, threshold=f64(0.1), spike_grad=SG, init_hidden=True
    ),
    "rsynaptic": lambda n: snn.RSynaptic(
        f64(0.5), f64(0.8), linear_features=n, threshold=f64(0.1), spike_grad=SG, init_hidden=True
    ),
}  # fmt: skip


@pytest.mark.usefixtures("in_torch")
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_neurons(make):
    assert_same(net_of(make), torch.rand(T, B, F, dtype=torch.float64) * 2)


def test_explicit_states_at_the_output():
    net = nn.Sequential(nn.Linear(F, C), snn.Synaptic(f64(0.5), f64(0.8), f64(0.3), SG)).double()
    out = whole(net, torch.rand(T, B, F, dtype=torch.float64))
    assert [tuple(o.shape) for o in out] == [(T, B, C)] * 3
    assert_same(net, torch.rand(T, B, F, dtype=torch.float64))


def test_convolutions():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), leaky(2), nn.Flatten(), nn.Linear(8, C), leaky(C)
    ).double()
    net[4].bias.data.add_(0.5)
    assert_same(net, torch.rand(T, B, 1, 6, 6, dtype=torch.float64))


@pytest.mark.usefixtures("in_torch")
@pytest.mark.parametrize("make", [leaky, OTHERS["synaptic"]])
def test_a_constant_current(make):
    net = net_of(make)
    x = torch.rand(B, F, dtype=torch.float64)
    calls = []
    net[0].register_forward_hook(lambda m, a, out: calls.append(out.shape))
    wanted = results(lambda n, z: loop(n, constant(z, T)), net, x)
    calls.clear()
    got = results(lambda n, z: whole(n, constant(z, T)), net, x)
    assert calls == [(B, N)]  # one product for all steps
    for a, b in zip([*got[0], *got[1]], [*wanted[0], *wanted[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_batch_normalisation_sees_time_and_batch():
    norm = nn.BatchNorm1d(N).double()
    net = nn.Sequential(
        nn.Linear(F, N).double(), norm, leaky(N), nn.Linear(N, C).double(), leaky(C)
    )
    x = torch.rand(T, B, F, dtype=torch.float64)
    current = net[0](x)
    mean, var = current.mean((0, 1)), current.var((0, 1), unbiased=False)
    hat = (current - mean) / (var + norm.eps).sqrt()
    wanted = loop(nn.Sequential(*net[2:]), hat)[0]
    torch.testing.assert_close(over_time(net)(x), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)


@pytest.mark.usefixtures("in_torch")
@pytest.mark.parametrize(
    ("make", "credit"),
    [(leaky, "current"), (OTHERS["synaptic"], "current"), (OTHERS["learns"], "membrane"),
     (OTHERS["alpha, subtract"], "membrane"), (OTHERS["rleaky"], "membrane")],
)  # fmt: skip
def test_dfa_over_the_sequence_is_dfa_over_the_loop(credit, make):
    net, x = net_of(make), torch.rand(T, B, F, dtype=torch.float64) * 2
    grads, feedback = [], []
    for run in ("loop", "whole"):
        form = net if run == "loop" else over_time(net)
        with DFA(form, credit=credit, seed=4) as dfa:
            for _ in range(2):
                net.zero_grad()
                out = loop(net, x)[0] if run == "loop" else form(x)
                torch.nn.functional.cross_entropy(out.sum(0), torch.tensor([0, 1, 2])).backward()
                grads.append([p.grad.clone() for p in net.parameters()])
            feedback.append(dict(dfa.feedback))
            assert (dfa.hidden, dfa.output) == (("1", "2.1"), "5")
    assert all(torch.equal(feedback[0][n], feedback[1][n]) for n in ("1", "2.1"))
    for other in grads[1:]:
        for a, b in zip(other, grads[0], strict=True):
            assert b.abs().sum() > 0
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_readout_as_output_over_the_sequence():
    net = nn.Sequential(nn.Linear(F, N), leaky(N), nn.Linear(N, C)).double()
    x, grads = torch.rand(T, B, F, dtype=torch.float64), []
    for form, run in ((net, lambda: loop(net, x)[0]), (over_time(net), None)):
        with DFA(form, output="2"):
            net.zero_grad()
            (run() if run else form(x)).square().sum().backward()
            grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_it_shares_parameters_and_state_dict():
    net = net_of(leaky)
    fast = over_time(net)
    assert {id(p) for p in fast.parameters()} == {id(p) for p in net.parameters()}
    assert list(fast.state_dict()) == list(net.state_dict())
    state = {k: v + 1 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    fast.load_state_dict(state)
    assert torch.equal(net[0].weight, state["0.weight"])
    fast.eval()
    assert not net[3].training


def test_nothing_is_left_in_the_neurons():
    net = net_of(OTHERS["rleaky"])
    over_time(net)(torch.rand(T, B, F, dtype=torch.float64))
    assert net[1].mem.grad_fn is None
    assert not net[1].mem.any()


def test_neurons_of_a_users_making_run_step_by_step():
    class Doubled(snn.Leaky):
        def forward(self, x):
            return super().forward(2 * x)

    net = net_of(lambda n: Doubled(f64(0.8), f64(0.3), SG, init_hidden=True))
    assert dynamics_of(net[1]) is None
    assert_same(net, torch.rand(T, B, F, dtype=torch.float64))
    waits = RefractoryLeaky(0.8, refractory_steps=2, learn_beta=True)
    for neuron in (waits, snn.Alpha(0.8, 0.6, learn_beta=True), snn.Lapicque(0.8, learn_beta=True)):
        assert dynamics_of(neuron) is None


@pytest.mark.usefixtures("in_torch")
@pytest.mark.parametrize(
    "stock",
    [
        snn_surrogate.atan(3.0), snn_surrogate.fast_sigmoid(25), None, snn_surrogate.sigmoid(5),
        snn_surrogate.triangular(0.5), snn_surrogate.heaviside(),
        snn_surrogate.spike_rate_escape(), snn_surrogate.straight_through_estimator(),
    ],
)  # fmt: skip
def test_stock_surrogates_are_scanned_alike(stock):
    net = nn.Sequential(
        nn.Linear(F, C), snn.Leaky(0.8, 0.3, spike_grad=stock, init_hidden=True, output=True)
    )
    assert dynamics_of(net[1]) is not None
    x = torch.rand(T, B, F)
    for got, wanted in zip(results(whole, net, x), results(loop, net, x), strict=True):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    unknown = snn.Leaky(0.8, spike_grad=snn_surrogate.LSO())
    assert dynamics_of(unknown) is None


def test_activity_over_the_sequence():
    net, x = net_of(leaky), torch.rand(T, B, F, dtype=torch.float64) * 2
    with activity(net) as slow:
        loop(net, x)
    form = over_time(net)
    with activity(form) as fast:
        form(x)
    assert fast == slow
    assert 0 < fast["1"].rate < 1
    assert list(fast) == ["1", "2.1", "5"]


def test_a_neuron_in_two_places_is_refused():
    shared = snn.Leaky(0.9, init_hidden=True)
    with pytest.raises(AttachError, match="a Leaky that is used twice"):
        over_time(nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared))


# -- DFA on the plain network, and the form over time that runs ------------------------------------


class FormInForward(nn.Module):
    """A network that makes a form of its body in each call."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*parts())

    def forward(self, x):
        return over_time(self.body, check=False)(x)


class LoopInForward(FormInForward):
    """A network with the loop inside, of which no form is made."""

    def forward(self, x):
        return torch.stack([self.body(step) for step in x])


def parts():
    return nn.Linear(F, N), leaky(N), nn.Linear(N, C), leaky(C)


def attached_and_run(kind, rule):
    """Return a network with DFA on its plain form, and the form that runs past it."""
    if kind == "in forward":
        net = FormInForward().double()
        return net, net, DFA(net, rule=rule)
    net = nn.Sequential(*parts()) if kind == "sequential" else LoopInForward()
    net.double()
    form = over_time(net, check=False)
    return net, form, DFA(net, rule=rule)


@pytest.mark.parametrize("rule", ["error", "shallow", "fa"])
@pytest.mark.parametrize("kind", ["sequential", "class", "in forward"])
def test_a_form_that_runs_past_dfa_raises_an_error(kind, rule):
    torch.manual_seed(0)
    x = 2 * torch.rand(T, B, F, dtype=torch.float64)
    net, form, dfa = attached_and_run(kind, rule)
    with pytest.raises(AttachError, match="of the plain network"):
        form(x)
    assert all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        values = form(x)
    reset(net)
    with dfa.paused():  # back-propagation, as was asked for
        form(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    dfa.remove()
    assert torch.equal(form(x), values)
