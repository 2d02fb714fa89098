"""A weight mirror in programs that compute with weights in their own way, or step in another one."""

import gc
import warnings

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, FeedbackError, KolenPollack, WeightMirror, reset
from snn_dfa.surrogate import fast_sigmoid

X = torch.rand(32, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(4, (32,), generator=torch.Generator().manual_seed(2))


class Masked(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mask", (torch.rand(sizes[::-1]) < 0.5).float())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return functional.linear(x, self.weight * self.mask, self.bias)


class Positive(nn.Linear):
    def forward(self, x):
        return functional.linear(x, bias=self.bias, weight=self.weight.abs())


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * functional.linear(x, self.weight, self.bias)


class Product(nn.Linear):
    def forward(self, x):
        return x @ (0.5 * self.weight).t() + self.bias


class MaskedConvolution(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight.abs(), self.bias)


def leaky():
    return snn.Leaky(0.8, threshold=0.4, spike_grad=fast_sigmoid(5), init_hidden=True)


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 20), leaky(), kind(20, 16), leaky(), kind(16, 4), leaky())


def train(net, steps=20, step=lambda optimizer, net: optimizer.step(), **options):
    """Return the attachment after some steps, and its optimiser."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, **options)
    for _ in range(steps):
        reset(net)
        optimizer.zero_grad()
        functional.cross_entropy(sum(net(X) for _ in range(4)), Y).backward()
        step(optimizer, net)
    return dfa, optimizer


def jacobian(layer):
    bare = layer(torch.zeros(1, layer.in_features))
    return (layer(torch.eye(layer.in_features)) - bare).t().detach()


def assert_alike(feedback, wanted):
    cosine = torch.cosine_similarity(feedback.flatten(), wanted.flatten(), dim=0)
    assert cosine > 0.98
    assert 0.8 < feedback.norm() / wanted.norm() < 1.25


@pytest.mark.parametrize("kind", [Masked, Positive, Scaled])
def test_a_layer_with_a_forward_of_its_own_is_mirrored_as_it_computes(kind):
    net = network(kind)
    dfa, _ = train(net)
    last, before = jacobian(net[4]), jacobian(net[2])
    assert_alike(dfa.feedback["3"], last)
    assert_alike(dfa.feedback["1"], last @ before)


def test_the_mirror_leaves_a_layers_buffers_and_the_generator_as_they_are():
    net = network(Masked)
    train(net, steps=3)
    assert net[2].calls == 3 * 4


def test_a_convolution_with_a_forward_of_its_own_is_mirrored_as_it_computes():
    net = nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 3, 1), leaky(),
        MaskedConvolution(3, 2, (2, 2)), nn.Flatten(), leaky(), nn.Linear(6, 4), leaky(),
    )  # fmt: skip
    dfa, _ = train(net)
    x = torch.eye(24).view(24, 3, 2, 4)
    answers = functional.conv2d(x, net[3].weight.abs()).flatten(1).t()
    assert_alike(dfa.feedback["2"].reshape(4, 24), net[6].weight.detach() @ answers.detach())


def test_a_layer_that_computes_in_an_unknown_way_raises_an_error():
    net = network(Product)
    with pytest.raises(FeedbackError, match="'2' of type Product has a forward of its own"):
        train(net)
    assert all(p.grad is None for p in net.parameters())


def test_a_function_of_a_weight_has_a_factor_of_its_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(nn.Linear)

        def forward(self, x):
            spk = self.net[:4](x)
            return self.net[5](functional.linear(spk, self.net[4].weight.clamp(-0.1, 0.1)))

    dfa, _ = train(Net())
    state = dfa.state_dict()
    assert "net.4" not in state["matrices"]
    assert "into net.5 1" in state["matrices"]
    assert not state["learner"]["own"]


def by_hand(optimizer, net):
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "fa"},
        {"feedback": WeightMirror(by_sample=0)},
        {"feedback": "kolen-pollack-product"},
    ],
)
def test_an_optimiser_that_takes_no_step_while_weights_change_gives_a_warning(options):
    with pytest.warns(UserWarning, match="has taken no step in between") as seen:
        train(network(nn.Linear), steps=20, step=by_hand, **options)
    assert len(seen) == 1


def test_an_optimiser_that_is_gone_gives_a_warning():
    net = network(nn.Linear)
    first = torch.optim.Adam(net.parameters(), lr=0.01)
    dfa = DFA(net, feedback=KolenPollack(lr=0.02))
    dfa.follow(first)
    net(X).sum().backward()
    del first
    gc.collect()
    reset(net)
    with pytest.warns(UserWarning, match=r"\(0.02\) and follows no optimiser"):
        net(X).sum().backward()


def difference(dfa, net):
    """Of a factor and its weight, as a share of the weight."""
    factor = dfa.state_dict()["matrices"]["4"]
    return (factor - net[4].weight).norm() / net[4].weight.norm()


@torch.no_grad()
def draw_anew(layer):
    layer.reset_parameters()


def load(layer):
    layer.weight.data = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("change", [draw_anew, load])
@pytest.mark.parametrize("options", [{}, {"rule": "fa"}, {"feedback": WeightMirror(by_sample=0)}])
def test_factors_become_weights_that_are_drawn_or_loaded_anew(change, options):
    steps = iter(range(24))

    def changed(optimizer, net):
        optimizer.step()
        if next(steps) == 11:
            change(net[4])

    net = network(nn.Linear)
    dfa, _ = train(net, steps=24, step=changed, **options)
    assert difference(dfa, net) < 0.1


@pytest.mark.parametrize("in_place", [True, False])
def test_factors_stay_near_weights_that_a_program_changes_at_each_step(in_place):
    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(3)) < 0.3

    def masked(optimizer, net):
        optimizer.step()
        weight = net[4].weight
        (weight.detach() if in_place else weight.data).mul_(mask).clamp_(min=0)

    net = network(nn.Linear)
    dfa, _ = train(net, steps=48, step=masked)
    assert difference(dfa, net) < 0.3


def test_weights_that_change_beside_the_optimiser_or_rest_give_no_warning():
    def clamped(optimizer, net):
        optimizer.step()
        with torch.no_grad():
            net[4].weight.clamp_(-0.2, 0.2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(network(nn.Linear), step=clamped)
        train(network(nn.Linear), step=lambda optimizer, net: None)


# -- the order in which values flow, which may be another one than that of the calls ---------------


class Pipeline(nn.Module):
    """Each layer reads what the one below has fired in the step before."""

    def __init__(self, *, backwards):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(n, 8) for n in (8, 8, 8))
        self.neurons, self.last = nn.ModuleList(leaky() for _ in range(3)), nn.Linear(8, 4)
        self.order = (2, 1, 0) if backwards else (0, 1, 2)

    def forward(self, x):
        below, total = [torch.zeros(len(x), 8) for _ in "12"], 0
        for _ in range(5):
            came_in, spikes = [x, *below], {}
            for i in self.order:
                spikes[i] = self.neurons[i](self.layers[i](came_in[i]))
            below, total = [spikes[0], spikes[1]], total + self.last(spikes[2])
        return total


def gradients_after(net, options, steps=12):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    dfa = DFA(net, output="last", optimizer=optimizer, **options)
    for _ in range(steps):
        reset(net)
        optimizer.zero_grad()
        functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
    return [p.grad for p in net.parameters()], dfa


@pytest.mark.parametrize("options", [{}, {"feedback": "kolen-pollack-product"}])
def test_layers_that_are_called_last_to_first_get_the_errors_of_a_pipeline(options):
    (found, dfa), (wanted, _) = (
        gradients_after(Pipeline(backwards=backwards), options) for backwards in (True, False)
    )
    assert all(grad.norm() > 1e-6 for grad in wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    assert all(matrix.norm() > 1e-6 for matrix in dfa.feedback.values())


class Growing(Pipeline):
    """The middle layer is a part of the network from some batch on."""

    grown = False

    def forward(self, x):
        total = 0
        for _ in range(5):
            spikes = self.neurons[0](self.layers[0](x))
            if self.grown:
                spikes = self.neurons[1](self.layers[1](spikes))
            total = total + self.last(self.neurons[2](self.layers[2](spikes)))
        return total


def test_a_layer_before_one_that_comes_in_later_is_still_sent_errors():
    net = Growing(backwards=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    DFA(net, output="last", optimizer=optimizer)
    for batch in range(12):
        net.grown = batch >= 4
        reset(net)
        optimizer.zero_grad()
        functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
    assert net.layers[0].weight.grad.norm() > 1e-6
    assert net.layers[1].weight.grad.norm() > 1e-6
