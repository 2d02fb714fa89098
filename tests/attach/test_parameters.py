"""Parameters and constants that change, are made of others, or have a shape of their own."""

import copy

import pytest
import torch
from torch import nn
from user_nets import Net, X, assert_alike, gradients, hidden

from snn_dfa import DFA, BackwardError, reset


def test_a_surrogate_that_learns():
    slopes = []
    for inside in (True, False):
        slope = nn.Parameter(torch.tensor(3.0))

        def spike(x, slope=slope):
            smooth = torch.sigmoid(slope * x)
            return (x > 0).to(x.dtype).sub(smooth).detach() + smooth

        net = Net()
        net.lif1.spike_grad = spike
        if inside:
            net.slope = slope
        with DFA(net, output="lif2"):
            (net(X) - 1).square().sum().backward()
        slopes.append(slope.grad)
    assert slopes[0] != 0
    assert torch.equal(*slopes)


def test_a_constant_that_is_made_to_learn_after_dfa():
    grads = []
    for late in (False, True):
        net = Net()
        net.fc1.requires_grad_(False)
        attached = [] if not late else [DFA(net, output="lif2")]
        del net.lif1.beta
        net.lif1.beta = nn.Parameter(torch.tensor(0.8))
        attached += [] if late else [DFA(net, output="lif2")]
        (net(X) - 1).square().sum().backward()
        grads.append(net.lif1.beta.grad)
    assert grads[0] != 0
    assert torch.equal(*grads)


def test_gradients_of_some_tensors_do_not_leave_out_what_comes_into_the_network():
    net, before = Net(), nn.Linear(4, 4)
    with DFA(net, output="lif2"):
        loss = net(before(X)).square().sum()
        with pytest.raises(BackwardError, match="do not pass what comes into the network"):
            loss.backward(inputs=[*before.parameters(), *net.parameters()])
        assert all(p.grad is None for p in net.parameters())
        net(before(X)).square().sum().backward()
        assert before.weight.grad.any()


def test_a_current_that_is_looked_at_after_its_layer_was_called():
    net, kept = Net(), []
    net.fc1.register_forward_hook(lambda module, args, current: kept.append(current))
    with DFA(net, output="lif2"):
        loss = net(X).square().sum()
        for current in kept:
            current.retain_grad()
        with pytest.raises(BackwardError, match="placed after its spiking layer was called"):
            loss.backward()
        assert all(p.grad is None for p in net.parameters())


def test_a_parameter_that_is_frozen_before_the_backward_pass():
    net = Net()
    with DFA(net, output="lif2"):
        loss = (net(X) - 1).square().sum()
        net.fc1.weight.requires_grad_(False)
        loss.backward()
    found = {name: p.grad for name, p in net.named_parameters()}
    wanted = gradients(Net(), batches=1)
    assert found.pop("fc1.weight") is None
    assert_alike({name: wanted[name] for name in found}, found)


def test_a_bias_with_a_dimension_of_its_own():
    class Added(Net):
        def __init__(self, rows):
            super().__init__()
            bias = self.fc1.bias.detach()
            self.bias = nn.Parameter(bias.clone().expand(rows, 8).clone() if rows else bias.clone())
            self.fc1 = nn.Linear(4, 8, bias=False)
            with torch.no_grad():
                self.fc1.weight.copy_(Net().fc1.weight)

        def forward(self, x):
            weight, plain = self.fc1.weight, self.fc1.forward
            self.fc1.forward = lambda step: torch.addmm(self.bias, step, weight.t())
            try:
                return super().forward(x)
            finally:
                self.fc1.forward = plain

    flat, rows = (gradients(Added(n), batches=1) for n in (0, 1))
    assert rows["bias"].shape == (1, 8)
    assert flat["bias"].any()
    torch.testing.assert_close(rows["bias"][0], flat["bias"])


def test_feedback_alignment_of_parameters_that_were_made_of_others():
    net = Net()
    given = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    with DFA(net, rule="fa"):
        made = {name: 1.0 * p for name, p in given.items()}
        (torch.func.functional_call(net, made, (X,)) - 1).square().sum().backward()
        (net(X) - 1).square().sum().backward()
    assert_alike(
        {n: p.grad for n, p in net.named_parameters()}, {n: p.grad for n, p in given.items()}
    )


def test_a_sparse_input():
    """A sparse tensor has no address."""
    net = Net()
    with DFA(net, output="lif2", seed=1):
        (net([x.to_sparse() for x in X]) - 1).square().sum().backward()
    got = {n: p.grad for n, p in net.named_parameters()}
    assert_alike(gradients(Net(), batches=1, seed=1), got)


@pytest.mark.parametrize("made", [lambda p: p - 0.01, lambda p: 1.0 * p, lambda p: p.view_as(p)])
def test_parameters_that_were_made_of_others(made):
    """``functional_call``, as in meta-learning: the gradient is that at what was made, once."""
    net = Net()
    given = dict(net.named_parameters())

    def train(parameters):
        out = torch.func.functional_call(net, parameters, (X,))
        return (out - 1).square().sum()

    with DFA(net):
        leaves = {name: made(p).detach().requires_grad_() for name, p in given.items()}
        train(leaves).backward()
        fast = {name: made(p) for name, p in given.items()}
        asked = torch.autograd.grad(train(fast), list(fast.values()), retain_graph=True)
        wanted = [leaf.grad for leaf in leaves.values()]
        torch.testing.assert_close(list(asked), wanted)
        train(fast).backward(retain_graph=True)
        assert all(type(p) is nn.Parameter for p in net.parameters())
        scale = made(torch.ones(1)) - made(torch.zeros(1))
        for p, gradient in zip(given.values(), wanted, strict=True):
            torch.testing.assert_close(p.grad, scale * gradient)
        net.zero_grad()
        (train(fast) + train(given) + train({n: made(p) for n, p in given.items()})).backward()
        plainly = torch.autograd.grad(train(given), list(given.values()))
        for p, one, two in zip(given.values(), wanted, plainly, strict=True):
            torch.testing.assert_close(p.grad, 2 * scale * one + two)


def test_a_parameter_that_was_made_of_another_one_that_learns():
    net = Net()
    net.scores = nn.Parameter(torch.rand(8, 4, generator=torch.Generator().manual_seed(1)))
    weight = net.fc1.weight
    with DFA(net):
        out = torch.func.functional_call(net, {"fc1.weight": weight.detach() * net.scores}, (X,))
        out.square().sum().backward()
        got = net.scores.grad
        with torch.no_grad():
            weight *= net.scores
        net(X).square().sum().backward()
        torch.testing.assert_close(got, weight.grad * (weight / net.scores).detach())


def test_a_weight_that_each_reading_changes():
    """Spectral normalisation takes a step with each use while it trains."""
    net = Net()
    nn.utils.parametrizations.spectral_norm(net.fc2)
    twin = copy.deepcopy(net)
    with DFA(twin, output="lif2"):
        for _ in range(2):
            assert torch.equal(twin(X), net(X))


class Dropped(nn.Module):
    """Connections that are left out by chance while the network trains."""

    def forward(self, weight):
        return nn.functional.dropout(weight, 0.3, self.training)


def dropped(module):
    nn.utils.parametrize.register_parametrization(module, "weight", Dropped())


@pytest.mark.parametrize("make", [nn.utils.parametrizations.spectral_norm, dropped])
@pytest.mark.parametrize("learned", [True, False])
def test_feedback_that_reads_such_a_weight_changes_nothing(make, learned):
    found = []
    for attached in (True, False):
        torch.manual_seed(0)
        net = Net()
        make(net.fc2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        options = {"optimizer": optimizer} if learned else {"feedback": "transpose"}
        dfa = DFA(net, output="lif2", **options) if attached else None
        outs = []
        for _ in range(3):
            outs.append(net(X))
            (outs[-1] - 1).square().sum().backward()
            optimizer.step()
        if dfa is not None:
            dfa.remove()
        found.append([*outs, *net.state_dict().values()])
    assert found[0][0].any()
    for mine, plain in zip(*found, strict=True):
        assert torch.equal(mine, plain)


def of_head(make, steps=2, **options):
    """Return the first gradient of a network that ends in weights, after steps of an optimiser."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), hidden(), nn.Linear(8, 2))
    make(net[2])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    if options.get("feedback") != "transpose":
        options["optimizer"] = optimizer
    dfa = DFA(net, output="2", **options)
    for _ in range(steps):
        reset(net)
        optimizer.zero_grad()
        sum(net(step) for step in X).square().sum().backward()
        optimizer.step()
    dfa.remove()
    return net, net[0].weight.grad


MADE = (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal)


@pytest.mark.parametrize("make", MADE)
def test_a_weight_that_is_made_of_others_may_be_the_output(make):
    """The transposed weight of a head alone is back-propagation."""
    net, found = of_head(make, 1, feedback="transpose")
    net, _ = of_head(make, 0, feedback="transpose")
    sum(net(step) for step in X).square().sum().backward()
    assert found.any()
    torch.testing.assert_close(found, net[0].weight.grad)


@pytest.mark.parametrize("make", [*MADE, nn.utils.parametrizations.spectral_norm, dropped])
def test_an_output_that_is_made_of_others_is_mirrored(make):
    assert of_head(make)[1].any()


def test_a_sparse_embedding_whose_weight_a_linear_product_has_too():
    class Tied(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.words = nn.Embedding(6, 4, sparse=sparse)
            self.lif1, self.lif2 = hidden(), hidden()

        def forward(self, x):
            return self.lif2(nn.functional.linear(self.lif1(self.words(x)), self.words.weight))

    grads = []
    for sparse in (False, True):
        with DFA(net := Tied(sparse), output="lif2", seed=1):
            for _ in range(2):
                reset(net)
                sum(net(x).square().sum() for x in torch.tensor([[0, 1], [2, 2]])).backward()
        grads.append(net.words.weight.grad)
    assert grads[0].any()
    torch.testing.assert_close(grads[1].to_dense(), grads[0])
