"""What comes into the network from outside and wants a gradient."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, BackwardError, DFAError, reset
from snn_dfa.surrogate import fast_sigmoid

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def net():
    """Two steps of one input; there is a spike in each layer."""

    class Net(nn.Sequential):
        def forward(self, x):
            reset(self)
            return sum(super(Net, self).forward(x) for _ in range(2))

    lif = lambda: snn.Leaky(0.8, threshold=0.1, spike_grad=fast_sigmoid(5), init_hidden=True)  # noqa: E731
    return Net(nn.Linear(4, 8), lif(), nn.Linear(8, 2), lif())


def test_the_loss_reaches_it_and_its_hooks_see_the_gradient_once(net):
    x, seen = X.clone().requires_grad_(), []
    x.register_hook(seen.append)
    DFA(net)
    net(x).square().sum().backward()
    assert x.grad.any()
    assert [torch.equal(grad, x.grad) for grad in seen] == [True]


ASKED = {
    "grad": lambda net, x: torch.autograd.grad(net(x).sum(), x),
    "grad that may be none": lambda net, x: torch.autograd.grad(net(x).sum(), x, allow_unused=True),
    "inputs": lambda net, x: net(x).sum().backward(inputs=[x]),
    "jacobian": lambda net, x: torch.autograd.functional.jacobian(net, x.detach()),
    "vjp": lambda net, x: torch.autograd.functional.vjp(lambda v: net(v).sum(), x.detach()),
    "a graph of it": lambda net, x: torch.autograd.functional.jacobian(
        net, x.detach(), create_graph=True
    ),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_it_is_not_left_out_where_it_is_asked_for_alone(net, ask):
    with DFA(net) as dfa:
        with pytest.raises((BackwardError, DFAError), match="paused"):
            ask(net, X.clone().requires_grad_())
        assert all(p.grad is None for p in net.parameters())
        with dfa.paused():
            ask(net, X.clone().requires_grad_())


def test_parameters_alone_may_be_asked_for(net):
    DFA(net)
    found = torch.autograd.grad(net(X.clone().requires_grad_()).square().sum(), net.parameters())
    net(X).square().sum().backward()
    for parameter, grad in zip(net.parameters(), found, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
