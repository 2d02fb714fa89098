"""Products with matrices that a program makes of parameters in each pass."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from ways import leaky, loop

from snn_dfa import DFA, WeightMirror, over_time
from snn_dfa._attach.between.made_matrices import MadeMatrices
from snn_dfa._attach.between.walk import Product

B, N = 5, 8
#: What the program multiplies by, and how.
PRODUCTS = {
    "masked": (lambda net: net.learns * net.mask, functional.linear),
    "of low rank": (lambda net: net.left @ net.right, functional.linear),
    "from the right": (lambda net: net.learns.tanh(), lambda h, m: h @ m.t()),
    "of tokens": (
        lambda net: net.small.softmax(0),
        lambda h, m: (h.view(B, 2, 4) @ m.t()).flatten(1),
    ),
    "a layer's transposed weights": (
        lambda net: net.wide.weight.t(),
        lambda h, m: functional.linear(torch.cat([h, h[:, :4]], 1), m),
    ),
    "a layer's masked weights": (lambda net: net.fc2.weight * net.mask, functional.linear),
    "a part of a parameter": (lambda net: net.three.chunk(3)[1], functional.linear),
    "a mask that masks nothing yet": (lambda net: net.learns * net.ones, functional.linear),
    "of a convolution that no layer holds": (
        lambda net: net.kernel,
        lambda h, m: functional.conv1d(h.view(B, 2, 4), m, padding=1).flatten(1),
    ),
    "of a masked convolution": (
        lambda net: net.kernel.tanh(),
        lambda h, m: (
            functional.conv1d(h.view(B, 2, 4), m, stride=2, padding=1)
            .repeat_interleave(2, 2)
            .flatten(1)
        ),
    ),
    "of groups": (
        lambda net: net.kernel[:, :1].sign() * net.kernel[:, :1].abs().mean(),
        lambda h, m: functional.conv1d(h.view(B, 2, 4), m, padding=1, groups=2).flatten(1),
    ),
    "of a transposed convolution": (
        lambda net: net.kernel.mT.mT * net.kernel.detach().abs(),
        lambda h, m: functional.conv_transpose1d(h.view(B, 2, 4), m, padding=1).flatten(1),
    ),
    "ternary": (
        lambda net: net.learns + (net.learns.sign() - net.learns).detach(),
        functional.linear,
    ),
}


class Net(nn.Module):
    def __init__(self, made, product):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.wide, self.fc3 = (
            nn.Linear(*sizes) for sizes in ((4, N), (N, N), (N, 12), (N, 3))
        )
        self.lif1, self.lif2, self.out = leaky(), leaky(), leaky()
        self.learns, self.three = (nn.Parameter(torch.randn(n, N)) for n in (N, 3 * N))
        self.left, self.right = nn.Parameter(torch.randn(N, 2)), nn.Parameter(torch.randn(2, N))
        self.kernel = nn.Parameter(torch.randn(2, 2, 3))
        self.small = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("mask", (torch.rand(N, N) < 0.5).double())
        self.register_buffer("ones", torch.ones(N, N))
        self.made, self.product = made, product
        self.double()

    def forward(self, x):
        h = self.product(self.lif1(self.fc1(x)), self.made(self))
        return self.out(self.fc3(self.lif2(h)))


def gradient(net, run=None, steps=1):
    x = 2 * torch.rand(steps, B, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net.zero_grad()
    spk = loop(net, x) if run is None else run(x)
    (spk.sum(0) * torch.arange(1.0, 4)).sin().sum().backward()
    return net.fc1.weight.grad.clone()


def with_the_weights(dfa, net):
    state, modules = dfa.state_dict(), dict(net.named_modules())
    for name in state["matrices"]:
        made = net.made(net) if name == "into lif2 1" else modules[name].weight
        state["matrices"][name] = made.detach().clone()
    dfa.load_state_dict(state)


@pytest.mark.parametrize("form", [None, lambda net: over_time(net, check=False)])
@pytest.mark.parametrize(("made", "product"), PRODUCTS.values(), ids=PRODUCTS)
def test_with_one_step_and_the_matrices_as_factors_it_is_back_propagation(made, product, form):
    net = Net(made, product)
    wanted = gradient(net)
    assert wanted.any()
    run = None if form is None else form(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with DFA(run or net, optimizer=optimizer, feedback=WeightMirror(by_sample=1)) as dfa:
        gradient(net, run)
        assert "own_matrix" not in repr(dfa)
        with_the_weights(dfa, net)
        torch.testing.assert_close(gradient(net, run), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("made", "product"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_factor_becomes_the_matrix_as_both_learn(made, product):
    net = Net(made, product)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    dfa = DFA(net, optimizer=optimizer)
    for _ in range(40):
        gradient(net, steps=2)
        optimizer.step()
    found = dfa.state_dict()["matrices"]["into lif2 1"].double()
    torch.testing.assert_close(found, net.made(net).detach(), rtol=0, atol=0.15)


def test_a_loaded_factor_stands_for_the_matrix_until_it_is_made():
    made, product = PRODUCTS["masked"]
    grads = []
    for state in (None, "saved"):
        net = Net(made, product)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        dfa = DFA(net, optimizer=optimizer)
        if state is None:
            gradient(net)
            with_the_weights(dfa, net)
            saved = dfa.state_dict()
        else:
            dfa.load_state_dict(saved)
        grads.append(gradient(net))
    assert grads[0].any()
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)


def test_of_the_same_parameters_it_is_the_same_factor_in_each_pass():
    made, _ = PRODUCTS["masked"]
    net = Net(made, lambda h, m: functional.linear(h, m) * net.factor)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, optimizer=optimizer)
    for net.factor in (1.0, 1.5, 2.0):  # other functions of it
        gradient(net)
        optimizer.step()
    assert list(dfa.state_dict()["matrices"]) == ["into lif2 1", "fc3"]


VARYING = {
    "at random": lambda net: functional.dropout(net.learns, 0.2),
    "with the samples": lambda net: net.learns * net.seen,
}


@pytest.mark.parametrize("made", VARYING.values(), ids=VARYING)
def test_of_one_that_differs_from_step_to_step_the_factor_becomes_the_mean(made):
    def product(h, m):
        net.seen = 1 + (h.detach().mean() - 0.5) / 5
        return functional.linear(h, m)

    net = Net(made, product)
    net.seen = torch.tensor(1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, optimizer=optimizer)
    for _ in range(40):
        gradient(net, steps=3)
        optimizer.step()
    assert "own_matrix" not in repr(dfa)
    found = dfa.state_dict()["matrices"]["into lif2 1"].double()
    assert functional.cosine_similarity(found.flatten(), net.learns.flatten(), 0) > 0.9


UNFIT = {
    "of each sample": lambda h, m: (h[:, None] @ (m * h.detach()[:, None]).mT)[:, 0],
    "of another width": lambda h, m: functional.linear(h[:, : net_width()], m[:, : net_width()]),
}
WIDTH = [N]


def net_width():
    return WIDTH[0]


@pytest.mark.parametrize("product", UNFIT.values(), ids=UNFIT)
def test_one_for_each_sample_and_one_that_grows_give_the_layer_a_matrix_of_its_own(product):
    net = Net(lambda net: net.learns, product)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, optimizer=optimizer)
    for WIDTH[0] in (4, 6, 5):
        gradient(net, steps=3)
        optimizer.step()
    assert gradient(net).any()
    assert "own_matrix=('lif1',)" in repr(dfa)


def test_parameters_that_are_others_in_each_pass_leave_nothing_behind():
    """So it is with ``functional_call``, and in shards."""
    made = MadeMatrices()
    for new in range(100, 200):
        products = [Product(None, frozenset({number})) for number in (1, new)]
        assert made.names("lif", products) == ["into lif 1", "into lif 2"]
        made.keep(["into lif 1"], ["into lif 1"])
        made.next_round()
    assert made.names("lif", products[:1]) == ["into lif 1"]
    assert made.names("lif", products[1:]) == ["into lif 2"]
