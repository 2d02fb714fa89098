"""Sign symmetry, low-rank feedback and product feedback alignment, each against loops."""

import copy

import pytest
import snntorch as snn
import torch
from kp_network import DECAY, LR, adamw, backward, loop, network
from torch import nn

from snn_dfa import DFA, FeedbackError, ProductFeedbackAlignment, over_time, reset
from snn_dfa.feedback import generator_for, low_rank


def by_loops(first, second):
    """[A, K] and [K, B] to [A, B], one number at a time."""
    out = torch.zeros(len(first), second.shape[1])
    for a in range(len(first)):
        for b in range(second.shape[1]):
            for k in range(len(second)):
                out[a, b] += first[a, k] * second[k, b]
    return out


# -- sign symmetry ---------------------------------------------------------------------------------


def signs(weight, scale):
    """Of each number of a matrix [C, N], of the size scale / sqrt(N)."""
    out = torch.zeros_like(weight)
    for c in range(len(weight)):
        for n in range(weight.shape[1]):
            value = weight[c, n].item()
            out[c, n] = (value > 0) - (value < 0)
    return out * scale / weight.shape[1] ** 0.5


def test_signs_of_each_weight_as_it_is_now():
    net = network()
    with torch.no_grad():
        net[2].weight[0, 0] = 0.0
    dfa = DFA(net, rule="fa", feedback="sign-symmetry", scale=2.0)
    for _ in range(2):
        backward(loop, net, 0)
        for name in ("2", "4"):
            weight = net[int(name)].weight.detach()
            torch.testing.assert_close(dfa.feedback[name], signs(weight, 2.0))
        with torch.no_grad():
            net[4].weight.neg_()
    assert dfa.feedback["2"][0, 0] == 0
    assert not dfa.state_dict()["matrices"]
    reset(net)
    twin = copy.deepcopy(dfa)
    backward(loop, twin.net, 0)
    assert torch.equal(twin.feedback["4"], dfa.feedback["4"])


def test_direct_rules_get_the_signs_of_the_product():
    net = network()
    dfa = DFA(net, output="5", feedback="sign-symmetry")
    backward(loop, net, 0)
    product = by_loops(net[4].weight.detach(), net[2].weight.detach())
    torch.testing.assert_close(dfa.feedback["1"], signs(product, 1.0))
    torch.testing.assert_close(dfa.feedback["3"], signs(net[4].weight.detach(), 1.0))


# -- low rank --------------------------------------------------------------------------------------


def test_low_rank_is_a_product_of_two_gaussian_matrices():
    shape = (6, 2, 3)
    generator = generator_for(0, "lif1", shape)
    left = torch.randn(6, 2, generator=generator)
    right = torch.randn(2, 2, 3, generator=generator).flatten(1)
    wanted = by_loops(left, right).view(shape) / (2 * 6) ** 0.5
    got = low_rank(shape, generator_for(0, "lif1", shape), rank=2)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("rank", "wanted"), [(None, 5), (3, 3), (20, 10)])
def test_its_rank_and_its_size(rank, wanted):
    matrix = low_rank((10, 4000), generator_for(0, "lif1", (10, 4000)), rank=rank)
    assert torch.linalg.matrix_rank(matrix) == wanted
    assert matrix.norm(dim=1).square().mean() == pytest.approx(1, abs=0.6)
    many = [low_rank((10, 50), generator_for(s, "", (10, 50)), rank=rank) for s in range(300)]
    assert torch.stack(many).var() * 50 == pytest.approx(1, rel=0.1)


def test_a_rank_below_one_is_none():
    with pytest.raises(ValueError, match="rank: expected one or more, got 0"):
        low_rank((2, 3), generator_for(0, "", (2, 3)), rank=0)


# -- product feedback alignment --------------------------------------------------------------------

OPTIONS = ProductFeedbackAlignment(lr=LR, weight_decay=DECAY, expansion=3)


def followed(net, **options):
    dfa = DFA(net, feedback=OPTIONS, **options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    dfa.follow(optimizer)
    return dfa, optimizer


def drawn(net):
    """The first R and U of each weight, from the laws that the documentation states."""
    fixed, learned = {}, {}
    for name in ("2", "4"):
        n_out, n_in = net[int(name)].weight.shape
        k = 3 * n_out
        normal = torch.randn(n_out, k, generator=generator_for(0, f"{name} R", (n_out, k)))
        fixed[name] = normal / k**0.5
        learned[name] = (
            torch.randn(k, n_in, generator=generator_for(0, name, (k, n_in))) / n_in**0.5
        )
    return fixed, learned


@pytest.mark.parametrize("rule", ["fa", "error"])
def test_a_fixed_factor_and_one_that_follows_adamw(rule):
    net = network()
    dfa, optimizer = followed(net, rule=rule, **({} if rule == "fa" else {"output": "5"}))
    fixed, learned = drawn(net)
    states = {"2": {}, "4": {}}
    for seed in range(2):
        optimizer.zero_grad()
        backward(loop, net, seed)
        factors = {name: by_loops(fixed[name], learned[name]) for name in fixed}
        wanted = factors
        if rule == "error":
            wanted = {"1": by_loops(factors["4"], factors["2"]), "3": factors["4"]}
        for name, matrix in wanted.items():
            torch.testing.assert_close(dfa.feedback[name], matrix, rtol=1e-4, atol=1e-6)
        gradients = {name: by_loops(fixed[name].T, net[int(name)].weight.grad) for name in fixed}
        optimizer.step()
        for name, each in learned.items():
            assert gradients[name].abs().max() > 1e-3
            adamw(each, gradients[name], states[name])


def test_with_gradient_descent_the_product_becomes_r_rt_w():
    """U - R^T W decays by (1 - lr decay) a step, as W and U get the same updates."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1.0)
    dfa = DFA(net, output="5", feedback="product-feedback-alignment", optimizer=optimizer)
    differences = []
    for seed in range(8):
        optimizer.zero_grad()
        backward(loop, net, seed)
        left = {}
        for name, learned in dfa.state_dict()["matrices"].items():
            weight = net[int(name)].weight.detach()
            fixed = dfa._feedback._fixed(name, len(weight), learned)
            left[name] = learned - fixed.T @ weight
        differences.append(left)
        optimizer.step()
    for name, first in differences[0].items():
        assert first.abs().max() > 0.1
        torch.testing.assert_close(differences[-1][name], first * 0.9**7, rtol=1e-3, atol=1e-5)


def test_convolutions_and_a_saved_state():
    def made():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), snn.Leaky(0.8, threshold=0.2, init_hidden=True),
            nn.Conv2d(3, 4, 3), snn.Leaky(0.8, threshold=0.2, init_hidden=True),
            nn.Flatten(), nn.Linear(16, 2), snn.Leaky(0.8, threshold=0.2, init_hidden=True),
        )  # fmt: skip

    first, other = over_time(made()), over_time(made())
    x = torch.rand(3, 2, 1, 6, 6)
    dfa, optimizer = followed(first, output="6")
    for _ in range(2):
        optimizer.zero_grad()
        first(x).sum().backward()
        optimizer.step()
    assert dfa.state_dict()["matrices"]["2"].shape == (12, 3, 3, 3)
    assert {n: b.shape for n, b in dfa.feedback.items()} == {"1": (2, 3, 4, 4), "3": (2, 4, 2, 2)}
    twin = DFA(other, output="6", feedback="product-feedback-alignment")
    twin.load_state_dict(dfa.state_dict())  # with another expansion than the usual one
    another = torch.optim.SGD(other.parameters(), lr=0.1)
    twin.follow(another)
    other.load_state_dict(first.state_dict())
    grads = []
    for net in (first, other):
        net.zero_grad()
        net(x).sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_an_expansion_is_a_whole_number():
    for wrong in (0, 1.5):
        with pytest.raises(FeedbackError, match="expansion: expected a whole number above zero"):
            ProductFeedbackAlignment(expansion=wrong)
