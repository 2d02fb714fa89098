"""Weight gradients of a loop in one sum: those of back-propagation, whatever the inputs are."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, reset
from snn_dfa._attach.steps import products
from snn_dfa.surrogate import fast_sigmoid

T, B = 6, 4


def grads(net, x):
    """Return the gradients of a loop over time, and how many products were noted."""
    net.zero_grad()
    reset(net)
    torch.stack([net(step) for step in x]).square().mean().backward()
    return [p.grad.clone() for p in net.parameters()]


def net_of(bias=True):
    torch.manual_seed(0)
    made = {"init_hidden": True, "threshold": 0.3, "spike_grad": fast_sigmoid(10)}
    return nn.Sequential(
        nn.Linear(5, 8, bias=bias), snn.Leaky(0.9, **made),
        nn.Linear(8, 3, bias=bias), snn.Leaky(0.9, **made),
    ).double()  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("room", "noted"), [(1, 1 << 22), (1 << 20, 1 << 22), (1 << 20, 70)])
@pytest.mark.parametrize("constant", [True, False])
def test_the_gradients_are_sums_over_all_steps(constant, room, noted, bias, monkeypatch):
    monkeypatch.setattr(products, "_ROOM", room)
    monkeypatch.setattr(products, "_NOTED", noted)
    x = torch.rand(1 if constant else T, B, 5, dtype=torch.float64).expand(T, B, 5) * 2
    net = net_of(bias)
    wanted = grads(net, x)
    with DFA(net, output="3"):
        got = grads(net, x)
        # A hook wants the gradient of each step, which autograd then computes as ever.
        seen = []
        net[0].register_forward_hook(lambda m, a, out: out.register_hook(seen.append) and None)
        plain = grads(net, x)
    half = len(got) // 2
    torch.testing.assert_close(got[half:], wanted[half:], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(got, plain, rtol=1e-10, atol=1e-14)
    assert len(seen) == T
    assert all(g.abs().sum() > 0 for g in got)


def test_a_backward_pass_that_is_called_in_autocast_keeps_the_type_of_products(monkeypatch):
    monkeypatch.setattr(products, "_ROOM", 1)
    net, found = net_of().float(), []
    x = 2 * torch.rand(T, B, 5)
    for on in (False, True):
        with DFA(net, output="3"):
            reset(net)
            loss = torch.stack([net(step) for step in x]).square().mean()
            net.zero_grad()
            with torch.autocast("cpu", enabled=on):
                loss.backward()
            found.append([p.grad.clone() for p in net.parameters()])
    assert found[0][0].any()
    torch.testing.assert_close(*found, rtol=0.05, atol=1e-3)  # autocast rounds what is sent


def test_an_input_may_be_overwritten_where_no_gradient_is_asked_for():
    net = net_of()
    with DFA(net, output="3"):
        x = torch.rand(B, 5, dtype=torch.float64)
        current = net[0](x)
        x.zero_()
        out = net[3](net[2](net[1](current)))
        with pytest.raises(RuntimeError, match="inplace operation"):
            out.sum().backward()
