"""Functions between two layers whose derivative differs from sample to sample."""

import pytest
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

from snn_dfa import DFA, FeedbackError, WeightMirror, reset
from snn_dfa.feedback.sample_ways import Backward
from snn_dfa.surrogate import fast_sigmoid


class Between(nn.Module):
    """Two populations, some functions of both, and neurons that get the sum."""

    def __init__(self, functions):
        super().__init__()
        self.l1, self.n1, self.l2, self.n2 = nn.Linear(8, 24), leaky(), nn.Linear(8, 24), leaky()
        self.fc, self.patch, self.conv = nn.Linear(24, 5), nn.Linear(6, 5), nn.Conv2d(6, 6, 3, 1, 1)
        self.qkv, self.narrow, self.wide = nn.Linear(6, 36), nn.Linear(6, 2), nn.Linear(2, 6)
        self.layer, self.group, self.rms = nn.LayerNorm(5), nn.GroupNorm(2, 6), nn.RMSNorm(5)
        self.instance, self.scale = nn.InstanceNorm2d(6, affine=True), nn.PReLU(5)
        self.n3, self.last, self.out = leaky(), nn.Linear(5, 3), leaky()
        self.functions = functions

    def forward(self, x):
        a, q = self.n1(self.l1(x)), self.n2(self.l2(x))
        return self.out(self.last(self.n3(sum(f(self, a, q) for f in self.functions))))


def tokens(x):
    return x.reshape(-1, 4, 6)


def images(x):
    return x.reshape(-1, 6, 2, 2)


def heads(net, a, _):
    q, k, v = net.qkv(tokens(a)).reshape(-1, 4, 3, 2, 6).permute(2, 0, 3, 1, 4)
    seen = (q @ k.mT).softmax(-1) @ v
    return net.patch(functional.scaled_dot_product_attention(seen, k, v).mean((1, 2)))


def queries(net, a, q):
    seen = torch.einsum("bqd,bkd->bqk", tokens(q), net.qkv(tokens(a)).chunk(6, -1)[1])
    return net.patch((seen @ tokens(a))[:, 0])


def gates(net, a, q):
    gate = torch.sigmoid(net.fc(a))
    return gate * net.fc(q).tanh() + (1 - gate) * q[:, :5] / (1.5 + net.fc(q).square())


def squeeze(net, a, _):
    z = net.conv(images(a))
    z = z * torch.sigmoid(net.wide(torch.relu(net.narrow(z.mean((2, 3))))))[:, :, None, None]
    return net.patch(z.flatten(2).mT).amax(1)


def unpooled(net, a, q):
    z, at = functional.max_pool2d(net.conv(images(a)), 2, return_indices=True)
    return net.patch(functional.max_unpool2d(z, at, 2).flatten(2).mT).amax(1) + net.fc(q)


def norms(net, a, q):
    z = net.instance(functional.gelu(net.group(net.conv(images(a)))))
    pooled = functional.adaptive_max_pool2d(z, 1) + functional.max_pool2d(z, 2, 1)
    return net.rms(net.layer(net.patch(pooled.flatten(1)))) + functional.normalize(
        net.fc(q), dim=-1
    )


def numbers(net, a, q):
    z = net.scale(functional.silu(net.fc(a))) * net.scale.weight + functional.softplus(net.fc(q))
    return functional.glu(torch.cat([z, z.clamp(-0.1, 0.3)], -1)) - (-z).exp().log_softmax(-1)


def moves(net, a, q):
    z = tokens(a).flip(1).roll(1, 2) + tokens(q).sum(1, keepdim=True)
    z = torch.where(z > 1, z, z.cumsum(1)).repeat(1, 2, 1)[:, [0, 2, 5]].unbind(1)
    return net.patch(torch.maximum(z[0], z[2]) + z[1] * q[:, :1])


class Reversed(torch.autograd.Function):
    """Gradient reversal, of which nothing can be seen in what it returns."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.factor * grad, None


class Rounded(torch.autograd.Function):
    """A product that is rounded, with a gradient that goes straight through."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return (4 * x * y).round() / 4

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * y, grad * x


def written(net, a, q):
    steep = fast_sigmoid(5)(a + q - 0.5)  # a neuron that is no module, and no layer
    return net.fc(Reversed.apply(a, 0.7) + steep) + Rounded.apply(net.fc(a), net.fc(q))


def curves(net, a, q):
    z, y = net.fc(a), net.fc(q)
    z = functional.hardshrink(z, 0.1) + functional.softshrink(z, 0.1)
    z = (
        functional.threshold(z, 0, 0)
        + y.atan() * y.asinh()
        + y.sinh().log1p()
        + z.cosh().log2()
        + z.cosh().log10()
    )
    z = z + functional.rrelu(z, training=False) + y.exp2().nan_to_num() + y.expm1() + y.tan()
    return functional.celu(z) + y.sigmoid().logit() + z % 0.7 + z.fmod(0.3)


def quantised(net, a, q):
    """As in training for whole numbers: gradients go straight through, but beyond the limits."""
    sizes, zeros = torch.full((5,), 0.1, dtype=torch.float32), torch.zeros(5, dtype=torch.int32)
    fixed = torch.fake_quantize_per_tensor_affine(net.fc(a), 0.05, 0, -3, 7)
    observed = torch.fake_quantize_per_tensor_affine(net.fc(a + q), sizes[:1], zeros[:1], -4, 4)
    of_each = torch.fake_quantize_per_channel_affine(net.fc(q), sizes, zeros, 1, -4, 4)
    return functional.relu(fixed) + of_each * observed


BETWEEN = ((heads, queries), (gates, squeeze), (norms, numbers), (moves,), (written,))
BETWEEN += ((curves,), (quantised,), (unpooled,))


@pytest.mark.parametrize("functions", BETWEEN)
def test_functions_of_samples_with_one_step_and_the_weights_are_back_propagation(functions):
    torch.manual_seed(0)
    net = Between(functions).double()
    x = 2 * torch.rand(1, B, 8, dtype=torch.float64)
    wanted = grads_of(net, lambda x: loop(net, x), x, score)
    for form in FORMS:
        found = grads_with_the_weights(form, net, x)
        assert wanted["l1.weight"].any()
        assert wanted["l2.weight"].any()
        for name, grad in wanted.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_product_over_several_steps_has_the_means_of_its_factors(kind):
    torch.manual_seed(0)
    net = Between([lambda net, a, q: (a * q)[:, :5]]).double()
    x, (loss, steady) = 2 * torch.rand(4, B, 8, dtype=torch.float64), LOSSES[kind]
    a, q = (loop(n, torch.stack([f(step) for step in x]))
            for f, n in ((net.l1, net.n1), (net.l2, net.n2)))  # fmt: skip
    current = (a * q)[..., :5].detach().requires_grad_()
    spikes = loop(net.n3, current)
    gates = torch.autograd.grad(spikes.sum(), current)[0]
    gate, course = gates.mean(0), relative(gates)[:, None, None]
    last = torch.stack([net.last(s) for s in spikes.detach()]).requires_grad_()
    error = torch.autograd.grad(loss(loop(net.out, last)), last)[0]
    mean, other = error.mean(0), q.detach()[..., :5].mean(0)
    sent = torch.zeros_like(a)
    sent[..., :5] = course * (mean @ net.last.weight * gate * other)
    if not steady:
        rest = error - relative(error)[:, None, None] * mean
        sent[..., :5] += rest @ net.last.weight * gate.mean(0) * other.mean(0)
    wanted = torch.autograd.grad(a, net.l1.weight, sent)[0]
    assert wanted.any()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, feedback=WeightMirror(by_sample=1))
    loss(loop(net, x)).backward()
    with_weights(dfa, net)
    found = grads_of(net, lambda x: loop(net, x), x, loss)["l1.weight"]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 4])
def test_masks_and_whole_numbers_have_the_means_of_the_same_numbers(kind, form, steps):
    def mask(dtype):
        """One that a neuron's current makes, and one that is the same for all samples."""
        always = torch.arange(24) % 3 > 0
        return lambda net, a, q: net.fc(a * (q + a > 0).to(dtype) * always.to(dtype))

    found = []
    for dtype in (torch.float64, torch.bool, torch.int64):
        torch.manual_seed(0)
        net = Between([mask(dtype)]).double()
        x, loss = 2 * torch.rand(steps, B, 8, dtype=torch.float64), LOSSES[kind][0]
        run, optimizer = form(net), torch.optim.SGD(net.parameters(), lr=0.1)
        dfa = DFA(run, optimizer=optimizer)
        call = run if form is at_once else lambda x, net=net: loop(net, x)
        loss(call(x)).backward()
        with_weights(dfa, net)
        found.append(grads_of(net, call, x, loss)["l1.weight"])
    assert found[0].any()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_layers_before_a_complex_number_have_a_matrix_of_their_own():
    torch.manual_seed(0)
    net = Between([lambda net, a, q: net.fc((torch.complex(a, q) * (1 + 1j)).imag)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    DFA(net, optimizer=optimizer)
    x = 2 * torch.rand(4, B, 8)
    for _ in range(2):
        grads = grads_of(net, lambda x: loop(net, x), x, score)
        optimizer.step()
    assert grads["l1.weight"].any()
    assert grads["l2.weight"].any()


def test_of_what_samples_ask_errors_more_than_samples_take_one_each():
    back = Backward(2, [(1, lambda e: [e * torch.tensor([[1.0], [2.0]])])])
    assert back.send(torch.ones(3, 4))[0].tolist() == [[1.0] * 4, [2.0] * 4, [1.0] * 4]


class Cell(nn.Module):
    """A state of the program's own, with gates made of spikes."""

    def __init__(self):
        super().__init__()
        self.l1, self.n1, self.gates = nn.Linear(8, 6), leaky(), nn.Linear(6, 8)
        self.back, self.n2, self.last = nn.Linear(4, 8), leaky(), nn.Linear(4, 3)

    def forward(self, x):
        cell, spk, found = 0, torch.zeros(x.shape[1], 4, dtype=x.dtype), []
        for step in x:
            stay, new = (self.gates(self.n1(self.l1(step))) + self.back(spk)).chunk(2, -1)
            cell = stay.sigmoid() * cell + new
            spk = self.n2(cell)
            found.append(self.last(spk))
        return torch.stack(found)


def test_a_gated_state_of_the_program_takes_sequences_of_any_length():
    torch.manual_seed(0)
    net = Cell()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, output="last", optimizer=optimizer)
    for steps in (4, 2, 5, 1):
        reset(net)
        score(net(2 * torch.rand(steps, B, 8))).backward()
        with_weights(dfa, net)
    assert net.l1.weight.grad.any()


def test_a_product_of_one_sample_alone_raises_an_error():
    net = Between([lambda net, a, q: a * q])
    net.l1, net.l2 = nn.Linear(8, 5), nn.Linear(8, 5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    DFA(net, optimizer=optimizer)
    spk = loop(net, torch.rand(2, 8))
    with pytest.raises(FeedbackError, match="what comes into layer 'n3' is a product of values"):
        spk.sum().backward()
