"""Products with matrices that no layer holds: parameters and buffers of the program's own."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, WeightMirror, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

N, B = 8, 6
X = 2 * torch.rand(B, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
PRODUCTS = {
    "functional.linear": (lambda net, h: functional.linear(h, net.learns), "learns"),
    "matmul": (lambda net, h: h @ net.learns, "learns.T"),
    "wide": (lambda net, h: functional.linear(h @ net.wide, net.wide), "wide"),
    "einsum": (lambda net, h: torch.einsum("bi,ij->bj", h, net.learns), "learns.T"),
    "addmm": (lambda net, h: torch.addmm(net.bias, h, net.learns), "learns.T"),
    "tokens": (lambda net, h: (h.view(-1, 2, 4) @ net.inside.small).flatten(1), "inside.small.T"),
    "tokens that are turned": (
        lambda net, h: functional.linear(h.view(-1, 4, 2).mT, net.frozen4).flatten(1), "frozen4"),
    "buffer": (lambda net, h: functional.linear(h, net.fixed), "fixed"),
    "frozen": (lambda net, h: h @ net.frozen, "frozen.T"),
    "symmetric": (lambda net, h: h @ net.same, "same"),
}  # fmt: skip
#: The program multiplies from the left, or has a matrix for each sample.
WITHOUT = {
    "from the left": lambda net, h: (net.learns @ h.t()).t(),
    "of samples": lambda net, h: (h[:, None] @ net.fixed.expand(B, N, N).clone())[:, 0],
}


def lif():
    return snn.Leaky(0.8, threshold=0.2, spike_grad=fast_sigmoid(5), init_hidden=True)


class Net(nn.Module):
    def __init__(self, product):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.lif2 = nn.Linear(4, N), lif(), lif()
        self.fc3, self.lif3 = nn.Linear(N, 3), lif()
        self.learns, self.bias = nn.Parameter(torch.randn(N, N)), nn.Parameter(torch.zeros(N))
        self.wide, self.frozen = nn.Parameter(torch.randn(N, 5)), nn.Parameter(torch.randn(N, N))
        self.frozen4 = nn.Parameter(torch.randn(4, 4))
        for frozen in (self.frozen, self.frozen4):
            frozen.requires_grad_(False)
        self.inside = nn.Module()
        self.inside.small = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("fixed", torch.randn(N, N))
        self.register_buffer("same", self.fixed + self.fixed.t())
        self.product = product
        self.double()

    def forward(self, x):
        spk = self.lif1(self.fc1(x))
        return self.lif3(self.fc3(self.lif2(self.product(self, spk))))


def loss_of(net, x=X):
    reset(net)
    return (net(x) - torch.arange(3.0)).square().sum()


def gradient(net):
    net.zero_grad()
    loss_of(net).backward()
    return net.fc1.weight.grad.clone()


def with_the_matrices(dfa, net):
    state = dfa.state_dict()
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name in state["matrices"]:
        matrix = held.get(name.removesuffix(".T"), held.get(f"{name}.weight")).detach()
        state["matrices"][name] = (matrix.t() if name.endswith(".T") else matrix).clone()
    dfa.load_state_dict(state)


@pytest.mark.parametrize(("product", "name"), PRODUCTS.values(), ids=PRODUCTS)
def test_with_one_step_and_the_matrices_as_factors_it_is_back_propagation(product, name):
    net = Net(product)
    wanted = gradient(net)
    assert wanted.any()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with DFA(net, optimizer=optimizer, feedback=WeightMirror(by_sample=1)) as dfa:
        gradient(net)
        assert name in dfa.state_dict()["matrices"]
        with_the_matrices(dfa, net)
        torch.testing.assert_close(gradient(net), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("product", "name"), PRODUCTS.values(), ids=PRODUCTS)
def test_a_factor_becomes_the_matrix_as_both_learn(product, name):
    net = Net(product)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    dfa = DFA(net, optimizer=optimizer)
    for _ in range(40):
        gradient(net)
        optimizer.step()
    factor = dfa.state_dict()["matrices"][name].double()
    with_the_matrices(dfa, net)
    torch.testing.assert_close(
        dfa.state_dict()["matrices"][name].double(), factor, rtol=0, atol=0.1
    )


@pytest.mark.parametrize("product", WITHOUT.values(), ids=WITHOUT)
def test_other_products_give_the_layer_before_a_matrix_of_its_own(product):
    net = Net(product)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    gradient(net)
    assert list(dfa.state_dict()["matrices"]) == ["fc3"]
    assert "own_matrix=('lif1',)" in repr(dfa)


def test_over_time_the_gradient_is_that_of_the_loop():
    x, grads = torch.stack([X, X.flip(0), 1.5 * X]), []
    for form in (lambda net: net, over_time):
        net = Net(PRODUCTS["matmul"][0])
        run = form(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        DFA(run, optimizer=optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            reset(net)
            out = torch.stack([net(step) for step in x]) if run is net else run(x)
            (out.sum(0) - torch.arange(3.0)).square().sum().backward()
            optimizer.step()
        grads.append(net.fc1.weight.grad)
    assert grads[0].any()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_a_position_that_is_added_is_no_factor():
    net = Net(lambda net, h: (h.view(-1, 2, 4) + net.inside.small[:2]).flatten(1) + net.frozen[0])
    wanted = gradient(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with DFA(net, optimizer=optimizer, feedback=WeightMirror(by_sample=1)) as dfa:
        gradient(net)
        assert list(dfa.state_dict()["matrices"]) == ["fc3"]
        with_the_matrices(dfa, net)
        torch.testing.assert_close(gradient(net), wanted, rtol=1e-9, atol=1e-12)
