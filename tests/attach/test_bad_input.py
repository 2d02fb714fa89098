"""What goes wrong when an attached network is run: one clear line, and all goes on afterwards."""

import math

import pytest
import snntorch as snn
import torch
from small_net import X, equal, gradients, run, small
from torch import nn

from snn_dfa import (
    DFA,
    InputError,
    NonFiniteError,
    OutOfStepError,
    encoding,
    over_time,
    reset,
)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_an_error_that_is_not_finite_reaches_no_layer(wrong):
    net = small()
    with DFA(net, output="5") as dfa:
        expected = gradients(net)
        net.zero_grad()
        reset(net)
        spk = torch.stack([net(x) for x in X])
        with pytest.raises(
            NonFiniteError, match=r"layer '5': expected a finite error .* do not take"
        ):
            (spk * wrong).sum().backward()  # fmt: skip
        assert all(p.grad is None for p in net[0].parameters())
        assert equal(gradients(net), expected)
        assert dfa.hidden == ("1", "3")


def test_half_precision_leaves_the_infinite_to_the_gradient_scaler():
    net = small().half()
    with DFA(net, output="5"):
        spk = torch.stack([net(x.half()) for x in X])
        (spk.float() * 1e30).sum().backward()
    assert not net[0].weight.grad.isfinite().all()


def test_an_output_that_is_never_called():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = small(), snn.Leaky(beta=0.5)

        def forward(self, x):
            return self.body(x)

    net = Apart()
    with (
        DFA(net, output="head"),
        pytest.raises(OutOfStepError, match=r"called 1 times and the output 'head' 0 times"),
    ):
        net(X[0])


def test_integers_are_refused_and_leave_nothing_behind():
    net = small()
    with DFA(net):
        expected = gradients(net)
        with pytest.raises(RuntimeError, match="must have the same dtype, but got Long and Float"):
            net(torch.ones(4, 5, dtype=torch.long))
        assert equal(gradients(net), expected)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.ones(3, 4, 5, dtype=torch.long), r"got torch.int64 of shape \[3, 4, 5\]"),
        (torch.ones(0, 4, 5), r"got torch.float32 of shape \[0, 4, 5\]"),
        (torch.ones(4, 5), r"got torch.float32 of shape \[4, 5\]"),
    ],
)
def test_what_is_no_sequence(x, got):
    form = over_time(small())
    with DFA(form), pytest.raises(InputError, match=rf"expected floating point .*{got}"):
        form(x)


@pytest.mark.parametrize("encode", [encoding.poisson, encoding.constant])
def test_no_steps(encode):
    with pytest.raises(ValueError, match=r"num_steps: expected .* got 0"):
        encode(torch.rand(2, 3), num_steps=0)


@pytest.mark.parametrize("credit", ["membrane", "current", "trace"])
def test_a_batch_of_another_size_begins_anew_as_in_snntorch(credit):
    net = small()
    x = torch.rand(2, 3, 5)
    with DFA(net, output="5", credit=credit):
        net(torch.rand(4, 5)).sum().backward()  # another batch, whose sequence is not at its end
        net.zero_grad()
        first = net(x[0]) + 0.0
        second = net(x[1])
        (first.sum() + second.sum()).backward()
        got = [p.grad.clone() for p in net.parameters()]
        assert got[0].any()
        reset(net)
        net.zero_grad()
        (net(x[0]).sum() + net(x[1]).sum()).backward()
        assert equal(got, [p.grad for p in net.parameters()])


@pytest.mark.parametrize("learns", [False, True], ids=["fixed", "learned"])
def test_an_empty_batch_has_no_gradient(learns):
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with DFA(net, output="5", optimizer=optimizer if learns else None):
        for batch in (0, 4, 0):
            net.zero_grad()
            run(net, torch.rand(3, batch, 5)).sum().backward()
            optimizer.step()
            grads = [p.grad for p in net.parameters()]
            assert all(g is not None and bool(g.any()) == (batch > 0) for g in grads[-2:])
    assert not any(g.any() for g in grads)
