"""Each sample's own way back through the stand-in network."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional
from ways import (
    FORMS,
    LOSSES,
    B,
    at_once,
    grads_of,
    grads_with_the_weights,
    leaky,
    loop,
    relative,
    score,
    with_weights,
)

from snn_dfa import DFA, WeightMirror, reset
from snn_dfa.feedback.stand_in import convolve, source
from snn_dfa.feedback.way_back import Value, errors_at
from snn_dfa.surrogate import fast_sigmoid


class Residual(nn.Module):
    """Convolutions with pooling and normalisation, and a branch round a neuron."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 3, 3, padding=1), leaky()
        self.conv2, self.norm, self.pool = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.lif2 = leaky(snn.Synaptic, alpha=0.5)
        self.conv3, self.lif3 = nn.Conv2d(4, 4, 3, padding=1), leaky()
        self.last, self.out = nn.Linear(36, 3), leaky()
        self.norm.running_mean.uniform_(-0.1, 0.1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.lif1(self.conv1(x))
        x = self.lif2(self.pool(self.norm(self.conv2(x))))
        x = self.lif3(self.conv3(x) + x)
        return self.out(self.last(x.flatten(1)))


def dense():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6), leaky(), nn.Linear(6, 5), leaky(), nn.Linear(5, 3), leaky()
    )


def with_resistance():
    """A neuron that multiplies its current by numbers, and whose threshold learns."""
    net = dense()
    net[4] = snn.Lapicque(
        R=2.0, C=1.5, time_step=0.5, threshold=0.2, learn_threshold=True,
        spike_grad=fast_sigmoid(5), init_hidden=True,
    )  # fmt: skip
    return net


def readout():
    return dense()[:-1]


class Decoder(nn.Module):
    """Transposed convolutions, and what moves the numbers of a sample."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3, stride=2, padding=1), leaky()
        self.up, self.lif2 = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2), leaky()
        self.conv2, self.lif3 = nn.Conv2d(4, 3, 3, stride=2), leaky()
        self.last, self.out = nn.Linear(25, 1), leaky()

    def forward(self, x):
        x = self.lif2(self.up(self.lif1(self.conv1(x))))
        x = functional.interpolate(functional.pad(x, (1, 0, 0, 1))[..., :-1, ::2], (9, 11))
        x = self.lif3(self.conv2(x)).transpose(-1, -2).permute(0, 2, 3, 1)
        x = functional.interpolate(x.mT.mT.permute(0, 3, 2, 1), (5, 5), mode="bilinear")
        return self.out(self.last(x.flatten(2)).squeeze(-1))


class Heads(nn.Module):
    """Two outputs."""

    def __init__(self):
        super().__init__()
        self.body, self.one, self.two = dense()[:-2], nn.Linear(5, 2), nn.Linear(5, 1)

    def forward(self, x):
        spk = self.body(x)
        return torch.cat([self.one(spk), self.two(spk)], -1)


CASES = [pytest.param(Residual, {}, marks=pytest.mark.slow), (dense, {}), (Decoder, {}),
    (with_resistance, {}), (Heads, {"output": ["one", "two"]}), *(
    (readout, {"output": "5", "credit": c}) for c in ("membrane", "current", "trace"))]  # fmt: skip


@pytest.mark.parametrize(("make", "options"), CASES)
def test_with_one_step_and_the_weights_it_is_back_propagation(make, options):
    """Slopes, maxima and gains are those of the one step: nothing is left out."""
    torch.manual_seed(0)
    net = make().double().eval()
    x = 2 * torch.rand(1, B, 1, 8, 8, dtype=torch.float64)
    wanted = grads_of(net, lambda x: loop(net, x), x, score)
    for form in FORMS:
        if form is at_once and options.get("credit") == "current":
            continue  # its kernel in float64 takes seconds to compile
        found = grads_with_the_weights(form, net, x, **options)
        for name, grad in wanted.items():
            assert grad.any(), name
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [snn.Leaky, snn.RLeaky, snn.Synaptic])
def test_one_hidden_layer_with_the_weights_is_back_propagation(kind):
    """Over several steps, too: the error goes through the last weights alone."""
    torch.manual_seed(0)
    options = {snn.RLeaky: {"linear_features": 6}, snn.Synaptic: {"alpha": 0.8}}.get(kind, {})
    net = nn.Sequential(nn.Linear(4, 6), leaky(kind, **options), nn.Linear(6, 3), leaky()).double()
    x = 2 * torch.rand(5, B, 4, dtype=torch.float64)

    def run(x):
        return loop(net, x)

    wanted = grads_of(net, run, x, score)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    score(run(x)).backward()
    with_weights(dfa, net)
    for name, grad in grads_of(net, run, x, score).items():
        assert grad.any(), name
        torch.testing.assert_close(grad, wanted[name], rtol=1e-9, atol=1e-12)


def test_feedback_alignment_with_the_weights_is_back_propagation():
    torch.manual_seed(0)
    net, x = Decoder().double(), 2 * torch.rand(2, B, 1, 8, 8, dtype=torch.float64)

    def run(x):
        return loop(net, x)

    wanted = grads_of(net, run, x, score)
    weights = {n: m.weight.detach().clone() for n, m in net.named_modules() if hasattr(m, "weight")}
    DFA(net, rule="fa", feedback=weights)
    for name, grad in grads_of(net, run, x, score).items():
        assert grad.any(), name
        torch.testing.assert_close(grad, wanted[name], rtol=1e-9, atol=1e-12)


# -- batch normalisation ---------------------------------------------------------------------------


def test_batch_normalisation_takes_the_mean_error_of_the_batch_away():
    """In training, what all samples' errors have in common changes nothing before it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6), leaky(), nn.Linear(6, 5), nn.BatchNorm1d(5), leaky(), nn.Linear(5, 3),
        leaky(),
    ).double()  # fmt: skip
    x = 2 * torch.rand(1, B, 4, dtype=torch.float64)
    fc1, lif1, fc2, norm, lif2, last, out = net
    spikes1 = loop(lif1, fc1(x[0])[None])[0]
    current = fc2(spikes1.detach())
    current2 = norm(current).detach().requires_grad_()
    spikes2 = loop(lif2, current2[None])[0]
    gate = torch.autograd.grad(spikes2.sum(), current2)[0]
    current3 = last(spikes2.detach()).requires_grad_()
    error = torch.autograd.grad(score(loop(out, current3[None])), current3)[0] @ last.weight * gate
    error = (error - error.mean(0)) * norm.weight / (current.var(0, correction=0) + norm.eps).sqrt()
    wanted = torch.autograd.grad(spikes1, fc1.weight, error @ fc2.weight)[0]
    assert wanted.any()
    for form in FORMS:
        found = grads_with_the_weights(form, net, x)["0.weight"]
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


# -- a slow reference of more steps ----------------------------------------------------------------


def by_hand(net, x, loss, steady, own):
    """Return what comes to the first layer's weight: sums over samples, pixels and steps."""
    conv1, lif1, conv2, pool, lif2, _, last, out = net
    steps = len(x)
    current1 = torch.stack([conv1(step) for step in x])
    spikes1 = loop(lif1, current1)
    before = torch.stack([conv2(step) for step in spikes1.detach()])
    current2 = torch.stack([pool(step) for step in before]).detach().requires_grad_()
    spikes2 = loop(lif2, current2)
    gates = torch.autograd.grad(spikes2.sum(), current2)[0]
    gate, course = gates.mean(0), relative(gates)
    usual = torch.outer(gate.flatten(1).mean(1), gate.mean(0).flatten()) / gate.mean()
    gate = own * gate + (1 - own) * usual.reshape(gate.shape)
    current3 = torch.stack([last(s.flatten(1)) for s in spikes2.detach()]).requires_grad_()
    error = torch.autograd.grad(loss(loop(out, current3)), current3)[0]
    share = torch.zeros_like(before[0])  # of steps in which a pixel was its window's maximum
    for t in range(steps):
        for b, c, i, j in torch.cartesian_prod(*map(torch.arange, current2.shape[1:])).tolist():
            window = before[t, b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            at = int(window.argmax())
            share[b, c, 2 * i + at // 2, 2 * j + at % 2] += 1 / steps

    def back(e, gate, share):
        """One sample's error [3] through weights, gate and maxima."""
        at = (e @ last.weight).reshape(current2.shape[2:]) * gate
        wide = at.repeat_interleave(2, 1).repeat_interleave(2, 2)
        wide = functional.pad(wide, (0, share.shape[-1] - wide.shape[-1]) * 2) * share
        return functional.conv_transpose2d(wide[None], conv2.weight)[0]

    sent = torch.zeros_like(spikes1)
    mean, size = error.mean(0), relative(error)
    for b in range(B):
        for t in range(steps):
            sent[t, b] = course[t] * back(mean[b], gate[b], share[b])
            if not steady:
                rest = error[t, b] - size[t] * mean[b]
                sent[t, b] += back(rest, gate.mean(0), share.mean(0))
    return torch.autograd.grad(spikes1, conv1.weight, sent)[0]


CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


@pytest.mark.parametrize("share", [1, 0.5])
@pytest.mark.parametrize("kind", LOSSES)
def test_several_steps(kind, share):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), leaky(), nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), leaky(), nn.Flatten(),
        nn.Linear(3, 3), leaky(),
    ).double()  # fmt: skip
    x, (loss, steady) = 2 * torch.rand(4, B, 1, 6, 6, dtype=torch.float64), LOSSES[kind]
    wanted = by_hand(net, x, loss, steady, share)
    assert wanted.any()
    # In single precision images have their channels last in memory.
    for form, dtype in (*((form, x.dtype) for form in FORMS), (at_once, torch.float32)):
        net.to(dtype)
        x, wanted = x.to(dtype), wanted.to(dtype)
        run, optimizer = form(net), torch.optim.SGD(net.parameters(), lr=0.1)
        dfa = DFA(run, optimizer=optimizer, feedback=WeightMirror(by_sample=share))
        call = run if form is at_once else lambda x: loop(net, x)
        loss(call(x)).backward()
        with_weights(dfa, net)
        found = grads_of(net, call, x, loss)["0.weight"]
        torch.testing.assert_close(found, wanted, **CLOSE.get(dtype, {}))
        dfa.remove()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_of_all_kinds_send_errors_back(transposed, dtype):
    torch.manual_seed(0)
    function = functional.conv_transpose2d if transposed else functional.conv2d
    for stride, padding, dilation, groups, side in (
        (1, 0, 1, 1, 6),
        (2, 1, 1, 2, 7),
        (3, 2, 2, 1, 8),
    ):
        rest = stride - 1 if transposed else 0
        v = torch.randn(4, 6 // groups if transposed else 4 // groups, 3, 2, dtype=dtype)
        options = [[stride] * 2, [padding] * 2, [dilation] * 2, transposed, [rest] * 2, groups]
        inflow = convolve(source("lif"), "conv", (4, side, side - 1), options)
        x = torch.zeros(2, 4, side, side - 1, dtype=dtype, requires_grad=True)
        extra = {"output_padding": rest} if transposed else {}
        out = function(x, v, None, stride, padding, dilation=dilation, groups=groups, **extra)
        value = Value(x.new_zeros(()), x.shape, wanted=True)
        found = inflow.apply({"lif": value}, {"conv": v})
        assert found.shape == out.shape
        error = torch.randn_like(out)
        torch.testing.assert_close(
            errors_at(found, error, [value]), [*torch.autograd.grad(out, x, error)]
        )


# -- where there are no ways -----------------------------------------------------------------------


def first_gradient(middle, feedback):
    """Return the first layer's gradient, with a layer in the middle and the weights as factors."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), leaky(), nn.Linear(4, 4), middle(), nn.Linear(4, 3),
                        leaky()).double()  # fmt: skip
    x = 3 * torch.rand(3, B, 5, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, feedback=feedback)
    score(loop(net, x)).backward()
    with_weights(dfa, net)
    return grads_of(net, lambda x: loop(net, x), x, score)["0.weight"]


@pytest.mark.parametrize("kind", LOSSES)
def test_of_many_outputs_no_matrix_is_made(kind, monkeypatch):
    """Each sample twice, with half of its loss, has errors enough for the matrix."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), leaky(), nn.Linear(6, 5), leaky())
    net = nn.Sequential(body, nn.Linear(5, 8), leaky()).double()
    x, loss = 2 * torch.rand(2, B, 1, 8, 8, dtype=torch.float64), LOSSES[kind][0]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    grads_of(net, lambda x: loop(net, x), x, lambda spk: spk.sum())
    with_weights(dfa, net)

    def each(spk):
        return sum(loss(part) for part in spk[..., :6].split(3, -1))

    wanted = grads_of(
        net, lambda x: loop(net, x), x.repeat(1, 2, 1, 1, 1),
        lambda spk: (each(spk[:, :B]) + each(spk[:, B:])) / 2,
    )  # fmt: skip
    monkeypatch.setattr("snn_dfa.feedback.jacobians.torch.eye", None)  # which the matrix needs
    found = grads_of(net, lambda x: loop(net, x), x, each)
    for name, grad in wanted.items():
        assert grad.any(), name
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


def test_a_neuron_that_hears_others_lets_errors_through_as_they_are():
    def recurrent():
        return leaky(snn.RLeaky, linear_features=4)

    mean = first_gradient(recurrent, WeightMirror(by_sample=1))
    linear = first_gradient(recurrent, WeightMirror(by_sample=0))
    assert torch.cosine_similarity(mean.flatten(), linear.flatten(), 0) > 0.9
    gated = first_gradient(leaky, WeightMirror(by_sample=1))
    assert not torch.allclose(gated, first_gradient(leaky, WeightMirror(by_sample=0)))


def test_an_output_that_goes_back_into_a_hidden_layer_passes_no_error():
    class TopDown(nn.Module):
        def __init__(self, cut):
            super().__init__()
            torch.manual_seed(0)
            self.l1, self.n1, self.l2, self.n2 = nn.Linear(5, 4), leaky(), nn.Linear(4, 3), leaky()
            self.back, self.cut = nn.Linear(3, 4), cut

        def forward(self, x):
            out = torch.zeros(B, 3)
            for step in x:
                down = self.back(out.detach() if self.cut else out)
                out = self.n2(self.l2(self.n1(self.l1(step) + down)))
            return out

    found = []
    for cut in (True, False):
        net = TopDown(cut)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        DFA(net, optimizer=optimizer)
        for _ in range(2):
            reset(net)
            net.zero_grad()
            net(torch.linspace(0, 2, 3 * B * 5).reshape(3, B, 5)).square().sum().backward()
            optimizer.step()
        found.append(net.l1.weight.grad)
    assert found[0].any()
    torch.testing.assert_close(*found)


def test_a_hook_sees_errors_and_no_gates():
    torch.manual_seed(0)
    seen = {}
    for feedback in (WeightMirror(by_sample=0), WeightMirror(by_sample=1)):
        net = dense()
        lif, notes = net[4], []
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        DFA(net, optimizer=optimizer, feedback=feedback)
        reset(net)
        out = []
        for step in torch.rand(3, B, 1, 8, 8):
            out.append(net(step))
            lif.mem.register_hook(notes.append)
        score(torch.stack(out)).backward()
        seen[feedback] = len(notes)
    first, second = seen.values()
    assert first == second
