"""Feedback alignment and traces stand around what a layer with weights computes, inside of all hooks."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from snn_dfa import DFA, AttachError, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

X = 2 * torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FORMS = [{"rule": "fa"}, {"credit": "trace"}, {}]


def leaky(**options):
    return snn.Leaky(
        beta=0.8, threshold=0.3, spike_grad=fast_sigmoid(5), init_hidden=True, **options
    )


class Net(nn.Module):
    """Three layers; ``changed`` is what is done around the one in the middle."""

    def __init__(self, changed=lambda layer, x: layer(x), kind=nn.Linear):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(5, 7), leaky(), kind(7, 6), leaky()
        self.fc3, self.lif3 = nn.Linear(6, 3), leaky(output=True)
        self.changed = changed
        self.double()

    def forward(self, x):
        reset(self)
        steps = []
        for step in x:
            spk = self.lif2(self.changed(self.fc2, self.lif1(self.fc1(step))))
            steps.append(sum(self.lif3(self.fc3(spk))))
        return torch.stack(steps)


def gradients(net, x=X, before=lambda net: None, after=lambda net: None, **options):
    before(net)
    with DFA(net, output=net.readout if hasattr(net, "readout") else "lif3", **options):
        after(net)
        for _ in range(2):
            net.zero_grad()
            (net(x) - 1).square().sum().backward()
    return {n: p.grad for n, p in net.named_parameters()}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert grad.any(), name
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-10, msg=name)


def doubled(net):
    net.fc2.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def halved(net):
    net.fc2.register_forward_hook(lambda module, args, output: output * 0.5)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("hook", "plain"),
    [(doubled, lambda layer, x: layer(x * 2)), (halved, lambda layer, x: layer(x) * 0.5)],
    ids=["pre-hook", "hook"],
)
def test_hooks_of_others_see_and_change_what_goes_in_and_out(hook, plain, when, form):
    """They are what the program would write around the call, whoever has placed his first."""
    net = Net()
    if form.get("credit") and hook is halved:
        with pytest.raises(
            AttachError, match="no hook or in-place operation may change what they return"
        ):
            gradients(net, **{when: hook}, **form)
        assert all(p.grad is None for p in net.parameters())
        return
    assert_equal(gradients(net, **{when: hook}, **form), gradients(Net(plain), **form))


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def test_a_backward_hook_gets_the_error_that_feedback_alignment_sends_on():
    def hook(net):
        net.fc2.register_full_backward_hook(lambda module, at_input, _: (at_input[0] / 2,))

    wanted = gradients(Net(lambda layer, x: layer(Half.apply(x))), rule="fa")
    assert_equal(gradients(Net(), before=hook, rule="fa"), wanted)
    assert_equal(gradients(Net(), after=hook, rule="fa"), wanted)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forward_of_a_layer_with_weights_may_be_called_directly(form):
    wanted = gradients(Net(), **form)
    assert_equal(gradients(Net(lambda layer, x: layer.forward(x)), **form), wanted)


def test_layers_called_one_by_one_by_their_forward_have_feedback_alignment():
    net = Net()
    wanted = gradients(net, rule="fa")
    net.zero_grad()
    with DFA(net, rule="fa"):
        reset(net)
        steps = []
        for step in X:
            spk = net.lif2(net.fc2.forward(net.lif1(net.fc1.forward(step))))
            steps.append(sum(net.lif3(net.fc3.forward(spk))))
        (torch.stack(steps) - 1).square().sum().backward()
    assert_equal({n: p.grad for n, p in net.named_parameters()}, wanted)


class Up(nn.Module):
    """A transposed convolution of which a call names the size, or the module."""

    readout = "lif2"

    def __init__(self, more):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.lif1 = nn.Conv2d(1, 2, 3, stride=2), leaky()
        self.up = nn.ConvTranspose2d(2, 1, 3, stride=2, output_padding=more)
        self.lif2, self.more = leaky(output=True), more
        self.double()

    def forward(self, x):
        reset(self)
        steps = []
        for step in x:
            spk = self.lif1(self.conv(step))
            size = {} if self.more else {"output_size": step.shape[2:]}
            steps.append(sum(self.lif2(self.up(spk, **size))))
        return torch.stack(steps)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_call_may_name_the_size_of_a_transposed_convolution(form):
    x = 2 * torch.rand(3, 2, 1, 8, 8, dtype=torch.float64)
    assert_equal(gradients(Up(0), x, **form), gradients(Up(1), x, **form))


class Normalised(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [Normalised, Twice])
def test_a_forward_of_ones_own_is_an_error_where_only_that_of_torch_is_known(kind):
    for form in FORMS[:2]:
        net = Net(kind=kind)
        with pytest.raises(AttachError, match=f"layer 'fc2' of type {kind.__name__} has a forward"):
            DFA(net, output="lif3", **form)
        net = Net()
        net.fc2.forward = lambda x, layer=net.fc2: F.linear(x, 2 * layer.weight)
        with pytest.raises(AttachError, match="has a forward of its own"):
            DFA(net, output="lif3", **form)
    if kind is Twice:
        assert_equal(gradients(Net(kind=kind)), gradients(Net(lambda layer, x: 2 * layer(x))))


def test_weights_of_parametrisations_have_feedback_alignment():
    plain, net = Net(), Net()
    at_weight = gradients(plain, rule="fa")["fc2.weight"]
    weight_norm(net.fc2)
    found = gradients(net, rule="fa")
    parts = list(net.fc2.parametrizations.weight.parameters())
    wanted = torch.autograd.grad(net.fc2.weight, parts, at_weight)
    for part, grad in zip(parts, wanted, strict=True):
        torch.testing.assert_close(part.grad, grad)
    torch.testing.assert_close(found["fc1.weight"], gradients(Net(), rule="fa")["fc1.weight"])


@pytest.mark.parametrize(
    "change", [weight_norm, lambda fc: prune.l1_unstructured(fc, "weight", 0.3)]
)
def test_a_function_on_a_weight_that_is_computed_is_seen(change):
    net = Net(lambda layer, x: layer(x) + F.linear(x, layer.weight))
    change(net.fc2)
    with pytest.raises(AttachError, match="a function uses the weight of layer 'fc2'"):
        gradients(net, rule="fa")


class Adapted(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.down = layer, nn.Parameter(torch.rand(2, 7, dtype=torch.float64))
        self.up = nn.Parameter(torch.rand(6, 2, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x) + x @ self.down.t() @ self.up.t()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net, "fc2", nn.Linear(7, 6).double()), "'fc2' was added to the"),
        (lambda net: setattr(net, "fc2", Adapted(net.fc2)), r"parameter 'fc2.(down|up)' to"),
    ],
)
def test_weights_that_come_in_later_are_an_error_of_feedback_alignment(change, message):
    net = Net()
    with DFA(net, rule="fa"):
        (net(X) - 1).square().sum().backward()
        before = {n: p.grad.clone() for n, p in net.named_parameters()}
        change(net)
        with pytest.raises(AttachError, match=message):
            net(X)
    known = dict(net.named_parameters())
    assert all(torch.equal(known[n].grad, g) for n, g in before.items() if not n.startswith("fc2"))


def test_removed_nothing_is_left():
    net = Net()
    for form in FORMS:
        DFA(net, output="lif3", **form).remove()
        assert not any("forward" in vars(m) for m in net.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_hook_inside_a_form_over_time_is_an_error_of_traces():
    layers = [nn.Linear(5, 7), leaky(), nn.Linear(7, 3), leaky()]
    net = over_time(nn.Sequential(*layers).double(), stateful=True)
    prune.l1_unstructured(layers[0], "weight", 0.3)  # such a hook makes a weight, and no more
    with DFA(net, credit="trace"):
        net(X).sum().backward()
        assert layers[0].weight_orig.grad.any()
        net.zero_grad()
        layers[2].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        with pytest.raises(AttachError, match="a Linear has a forward hook"):
            net(X)
        assert all(p.grad is None for p in net.parameters())
