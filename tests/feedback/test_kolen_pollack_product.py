"""Feedback that is a product of factors that learn: its steps by hand, and what becomes of it."""

import copy
import io

import pytest
import snntorch as snn
import torch
from kp_network import DECAY, LR, B, T, adamw, backward, batch, loop, network
from kp_product import OPTIONS, followed, train
from torch import nn

from snn_dfa import DFA, FeedbackError, KolenPollackProduct, diagnostics, over_time, reset
from snn_dfa.feedback import generator_for


def drawn(net):
    """The first factors, from the law that the documentation states."""
    factors = {}
    for name in ("2", "4"):
        shape = tuple(net[int(name)].weight.shape)
        normal = torch.randn(shape, generator=generator_for(0, name, shape))
        factors[name] = normal / shape[1] ** 0.5
    return factors


def by_loops(first, second):
    """[C, N2] and [N2, N1] to [C, N1], one number at a time."""
    out = torch.zeros(len(first), second.shape[1])
    for c in range(len(first)):
        for n in range(second.shape[1]):
            for k in range(len(second)):
                out[c, n] += first[c, k] * second[k, n]
    return out


@pytest.mark.parametrize("form", ["loop", "sequence"])
def test_factors_follow_adamw_on_the_gradients_of_the_weights(form):
    net = network()
    sequence = over_time(net)
    forward = loop if form == "loop" else lambda _, x: sequence(x)
    dfa, optimizer = followed(net if form == "loop" else sequence)
    factors, states = drawn(net), {"2": {}, "4": {}}
    for seed in range(4):
        optimizer.zero_grad()
        backward(forward, net, seed)
        torch.testing.assert_close(dfa.feedback["3"], factors["4"], rtol=1e-4, atol=1e-6)
        wanted = by_loops(factors["4"], factors["2"])
        torch.testing.assert_close(dfa.feedback["1"], wanted, rtol=1e-4, atol=1e-6)
        gradients = {name: net[int(name)].weight.grad.clone() for name in factors}
        optimizer.step()
        for name, factor in factors.items():
            assert gradients[name].abs().max() > 1e-3
            adamw(factor, gradients[name], states[name])


def test_the_first_feedback_is_of_the_size_of_a_gaussian_one():
    net = nn.Sequential(nn.Linear(4, 400), snn.Leaky(0.9, init_hidden=True),
                        nn.Linear(400, 300), snn.Leaky(0.9, init_hidden=True),
                        nn.Linear(300, 50), snn.Leaky(0.9, init_hidden=True))  # fmt: skip
    for scale in (1.0, 2.0):  # on each factor
        with DFA(net, output="5", feedback="kolen-pollack-product", scale=scale) as dfa:
            optimizer = torch.optim.AdamW(net.parameters())
            dfa.follow(optimizer)
            loop(net, torch.rand(T, B, 4)).sum().backward()
            assert dfa.feedback["1"].std() * 400**0.5 == pytest.approx(scale**2, rel=0.05)
            assert dfa.feedback["3"].std() * 300**0.5 == pytest.approx(scale, rel=0.05)


@pytest.mark.slow
def test_every_factor_becomes_its_weight():
    """Both get the same updates, and their difference decays by (1 - lr decay) a step, exactly."""
    net = network()
    dfa, optimizer = followed(net)
    weights = {name: net[int(name)].weight.detach().clone() for name in ("2", "4")}
    first = {name: weights[name] - factor for name, factor in drawn(net).items()}
    train(net, optimizer, range(30))
    left = (1 - LR * DECAY) ** 30
    factors = dfa.state_dict()["matrices"]
    for name in ("2", "4"):
        moved = net[int(name)].weight.detach() - weights[name]
        assert moved.abs().max() > 0.1
        difference = net[int(name)].weight.detach() - factors[name]
        torch.testing.assert_close(difference, first[name] * left, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_feedback_turns_towards_the_product_of_the_weights():
    net = network()
    strong = {"lr": 0.02, "weight_decay": 0.5}
    dfa = DFA(net, output="5", feedback=KolenPollackProduct(**strong))
    optimizer = torch.optim.AdamW(net.parameters(), **strong)
    dfa.follow(optimizer)
    train(net, optimizer, [0])
    before = diagnostics.feedback_angles(dfa)
    train(net, optimizer, [0] * 300)
    after = diagnostics.feedback_angles(dfa)
    assert min(before.values()) > 40
    assert max(after.values()) < 10
    x, y = batch(0)
    assert nn.functional.cross_entropy(loop(net, x).sum(0), y) < 0.1


def test_a_backward_pass_before_it_follows_is_refused():
    net = network()
    dfa = DFA(net, output="5", feedback="kolen-pollack-product")
    with pytest.raises(FeedbackError, match=r"call dfa.follow\(optimizer\) before"):
        backward(loop, net, 0)
    assert all(p.grad is None for p in net.parameters())
    with dfa.paused():  # back-propagation needs no feedback
        backward(loop, net, 0)
    net.zero_grad()
    optimizer = torch.optim.AdamW(net.parameters())
    dfa.follow(optimizer)
    backward(loop, net, 0)
    assert net[0].weight.grad.abs().max() > 0
    del optimizer  # and no other is followed
    with pytest.raises(FeedbackError, match=r"call dfa.follow\(optimizer\) before"):
        backward(loop, net, 1)


@pytest.mark.slow
def test_halves_of_a_batch_are_one_update_and_evaluation_is_none():
    found = []
    for parts in (1, 2):
        net = network()
        dfa, optimizer = followed(net)
        for seed in range(3):
            x, y = batch(seed)
            optimizer.zero_grad()
            for part in range(parts):
                some = slice(part * B // parts, (part + 1) * B // parts)
                counts = loop(net, x[:, some]).sum(0)
                nn.functional.cross_entropy(counts, y[some], reduction="sum").backward()
            before = {n: m.clone() for n, m in dfa.feedback.items()}
            loop(net, x)
            assert all(torch.equal(before[n], m) for n, m in dfa.feedback.items())
            optimizer.step()
            assert not any(torch.equal(before[n], m) for n, m in dfa.feedback.items())
        found.append(dict(dfa.feedback))
    for name, matrix in found[0].items():
        torch.testing.assert_close(matrix, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_saved_state_and_a_copy_go_on_where_it_stopped():
    net = network()
    dfa, optimizer = followed(net)
    train(net, optimizer, range(3))
    file = io.BytesIO()
    torch.save(dfa.state_dict(), file)
    reset(net)
    others, optimizers = [copy.deepcopy(dfa)], []
    for feedback in ("gaussian", "kolen-pollack-product"):  # what was drawn before is forgotten
        other = copy.deepcopy(net)
        others.append(DFA(other, output="5", feedback=feedback))
        with torch.no_grad():
            loop(other, batch(0)[0])
        file.seek(0)
        others[-1].load_state_dict(torch.load(file, weights_only=True))
    for other in others:
        known = copy.deepcopy(optimizer.state_dict())
        own = torch.optim.AdamW(other.net.parameters(), lr=LR, weight_decay=DECAY)
        own.load_state_dict(known)
        other.follow(own)
        optimizers.append(own)  # it is followed as long as it is there
        train(other.net, own, range(3, 6))
    train(net, optimizer, range(3, 6))
    backward(loop, net, 9)
    for other in others:
        backward(loop, other.net, 9)
        assert set(other.feedback) == {"1", "3"}
        for name, matrix in dfa.feedback.items():
            assert torch.equal(matrix, other.feedback[name])


def test_the_state_of_another_network_is_refused():
    net = network()
    dfa, optimizer = followed(net)
    train(net, optimizer, range(2))
    state = dfa.state_dict()
    before = {n: m.clone() for n, m in dfa.feedback.items()}
    wider = {**state, "matrices": {**state["matrices"], "2": torch.ones(6, 8)}}
    with pytest.raises(
        FeedbackError, match=r"a factor of shape \[6, 7\], .* layer '2', got \[6, 8\]"
    ):
        dfa.load_state_dict(wider)
    with pytest.raises(FeedbackError, match=r"expected matrices for layers among .* got one for"):
        dfa.load_state_dict({**state, "matrices": {"1": torch.ones(3, 7)}})
    assert all(torch.equal(before[n], m) for n, m in dfa.feedback.items())
    fresh = DFA(network(), output="5")
    with pytest.raises(FeedbackError, match=r"factor of shape \[6, 7\], .* '2', got \[6, 8\]"):
        fresh.load_state_dict(wider)
    backward(loop, fresh.net, 0)
    assert set(fresh.feedback) == {"1", "3"}


def test_another_kind_of_which_nothing_is_drawn_yet_is_taken_over():
    net = network()
    dfa = DFA(net, output="5")
    backward(loop, net, 0)
    before = dict(dfa.feedback)
    dfa.load_state_dict(DFA(network(), output="5", feedback=OPTIONS).state_dict())
    optimizer = torch.optim.AdamW(net.parameters())
    dfa.follow(optimizer)
    backward(loop, net, 0)
    factors = drawn(net)
    torch.testing.assert_close(dfa.feedback["3"], factors["4"])
    torch.testing.assert_close(dfa.feedback["1"], factors["4"] @ factors["2"])
    assert not torch.equal(dfa.feedback["1"], before["1"])


def test_half_precision_leaves_the_factors_as_they_are():
    net = network()
    dfa, optimizer = followed(net)
    train(net, optimizer, range(3))
    before = dfa.feedback["1"].clone()
    net.half()
    assert dfa.feedback["1"].dtype == torch.float16
    net.float()
    assert torch.equal(dfa.feedback["1"], before)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_changes_nothing_of_it(fused):
    """Gradients are unscaled when the optimiser steps, and a step passed over is none for V."""
    found = []
    for scaled in (False, True):
        net = network()
        dfa = DFA(net, output="5", feedback=OPTIONS)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY, fused=fused)
        dfa.follow(optimizer)
        # The scale doubles at each step, which AdamW would feel.
        scaler = torch.amp.GradScaler("cpu", 2.0**6, growth_interval=1, enabled=scaled)
        for seed in range(5):
            x, y = batch(seed)
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(loop(net, x).sum(0), y)).backward()
            if seed == 2:
                if not scaled:
                    continue
                net[0].bias.grad[0] = float("inf")
                before = {n: m.clone() for n, m in dfa.feedback.items()}
            scaler.step(optimizer)
            scaler.update()
            if seed == 2:
                assert all(torch.equal(before[n], m) for n, m in dfa.feedback.items())
        found.append(dict(dfa.feedback))
    for name, matrix in found[0].items():
        torch.testing.assert_close(matrix, found[1][name], rtol=1e-3, atol=1e-4)


def test_weights_that_are_frozen_leave_their_factors():
    net = network()
    net[2].weight.requires_grad_(False)
    dfa, optimizer = followed(net)
    train(net, optimizer, range(3))
    factors = dfa.state_dict()["matrices"]
    torch.testing.assert_close(factors["2"], drawn(net)["2"], rtol=0, atol=0)
    assert not torch.equal(factors["4"], drawn(net)["4"])


def test_weights_of_another_optimiser_leave_their_factors():
    net = network()
    dfa = DFA(net, output="5", feedback=OPTIONS)
    optimizer = torch.optim.AdamW([*net[:2].parameters(), *net[4:].parameters()], lr=LR)
    dfa.follow(optimizer)
    train(net, optimizer, range(3))
    assert net[2].weight.grad is not None
    factors = dfa.state_dict()["matrices"]
    assert torch.equal(factors["2"], drawn(net)["2"])
    assert not torch.equal(factors["4"], drawn(net)["4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.0}, "KolenPollackProduct: lr: expected a number above zero, got 0.0"),
     ({"initial": -1.0}, "KolenPollackProduct: initial: expected zero or more, got -1.0")],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(FeedbackError, match=message):
        KolenPollackProduct(**options)
