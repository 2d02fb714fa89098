"""What holds for any small network, drawn at random."""

import kinds
import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_net import hooks_left

from snn_dfa import DFA, RefractoryLeaky

NEURONS = st.one_of(
    st.builds(
        lambda reset, delay: (
            lambda m, h: snn.Leaky(
                beta=0.8, reset_mechanism=reset, reset_delay=delay, **kinds.options(h)
            )
        ),
        st.sampled_from(["subtract", "zero", "none"]),
        st.booleans(),
    ),
    st.builds(
        lambda steps, kind: (
            lambda m, h: RefractoryLeaky(
                beta=0.8, refractory_steps=steps, refractory=kind, **kinds.options(h)
            )
        ),
        st.integers(0, 3),
        st.sampled_from(["integrate", "clamp"]),
    ),
    st.just(lambda m, h: snn.Synaptic(alpha=0.6, beta=0.8, **kinds.options(h))),
    st.just(lambda m, h: snn.RLeaky(beta=0.8, linear_features=m, **kinds.options(h))),
)
SIZES = st.lists(st.integers(1, 6), min_size=3, max_size=5)


def network(neuron, sizes, hidden, seed):
    torch.manual_seed(seed)
    net = kinds.Net(kinds.dense(neuron), hidden, False, sizes).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0) if p.dim() > 1 else p.add_(0.3 * (p.numel() > 1))
    return net


def grads(net, x, weights):
    net.zero_grad()
    out = net(x)
    (out * weights).sum().backward()
    return out.detach(), [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def same(one, other):
    return all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    neuron=NEURONS, sizes=SIZES, hidden=st.booleans(), steps=st.integers(1, 5),
    batch=st.integers(1, 4), seed=st.integers(0, 10_000), named=st.booleans(),
)  # fmt: skip
def test_any_network(neuron, sizes, hidden, steps, batch, seed, named):
    net = network(neuron, sizes, hidden, seed)
    x = torch.rand(steps, batch, sizes[0], dtype=torch.float64) * 2
    weights = torch.randn(steps, batch, sizes[-1], dtype=torch.float64)
    values, plain = grads(net, x, weights)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    last = f"blocks.{len(sizes) - 2}.1"
    dfa = DFA(net, output=last if named else None, seed=seed)
    for _ in range(2):
        out, got = grads(net, x, weights)
        assert torch.equal(out, values)
    feedback = [dfa.feedback[name] for name in dfa.hidden]
    assert [tuple(m.shape) for m in feedback] == [(sizes[-1], n) for n in sizes[1:-1]]
    _, doubled = grads(net, x, 2 * weights)
    for one, two in zip(got, doubled, strict=True):
        torch.testing.assert_close(2 * one, two, rtol=1e-12, atol=1e-12)
    dfa.remove()
    assert hooks_left(net) == []
    assert net.state_dict().keys() == state.keys()
    assert same(grads(net, x, weights)[1], plain)
    expected, _ = kinds.by_hand(net, x, weights, feedback)
    for mine, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 10_000), rule=st.sampled_from(["error", "sign", "fa"]))
def test_with_the_transpose_one_hidden_layer_gets_its_true_gradient(sizes, seed, rule):
    """With one hidden layer without a memory, e W is what back-propagation sends."""
    sizes = [sizes[0], sizes[1], sizes[-1]]
    net = network(lambda m, h: snn.Leaky(beta=0.0, reset_mechanism="none", **kinds.options(h)), sizes, True, seed)  # fmt: skip
    x = torch.rand(3, 2, sizes[0], dtype=torch.float64)
    weights = torch.randn(3, 2, sizes[-1], dtype=torch.float64)
    _, plain = grads(net, x, weights)
    readout = "blocks.1.0" if rule != "fa" else None
    with DFA(
        net,
        output=readout,
        hidden=None if rule == "fa" else "blocks.0.1",
        rule=rule,
        feedback="transpose",
    ):
        _, got = grads(net, x, weights)
    if rule == "sign":
        assert torch.equal(got[2], plain[2])
        return
    for mine, reference in zip(got, plain, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)
