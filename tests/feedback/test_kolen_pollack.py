"""Feedback that learns: its steps by hand, and what becomes of it."""

import copy
import io
import math

import pytest
import torch
from kp_network import DECAY, LR, SIZES, B, T, adamw, backward, batch, loop, network
from torch import nn

from snn_dfa import DFA, FeedbackError, KolenPollack, over_time, reset
from snn_dfa.kolen_pollack import FeedbackOptimizer, correlation

OPTIONS = KolenPollack(lr=LR, weight_decay=DECAY, initial=0.5)


def spikes_and_error(net, x, y):
    """The hidden layers' spikes [T][B, N] and dL/d(output spikes) [B, C], with no DFA at work."""
    reset(net)
    hidden, count = {"1": [], "3": []}, 0
    with torch.no_grad():
        for step in x:
            for name, module in net.named_children():
                step = module(step)
                if name in hidden:
                    hidden[name].append(step)
            count = count + step
        e = (count.softmax(1) - nn.functional.one_hot(y, SIZES[-1])) / B
    return hidden, e


@pytest.mark.parametrize("form", ["loop", "sequence"])
def test_matrices_follow_adamw_on_the_outer_products(form):
    net = network()
    sequence = over_time(net)
    forward = loop if form == "loop" else lambda _, x: sequence(x)
    dfa = DFA(net if form == "loop" else sequence, feedback=OPTIONS)
    plain = network()
    matrices, states = {}, {"1": {}, "3": {}}
    for seed in range(4):
        backward(forward, net, seed)
        with dfa.paused():
            hidden, e = spikes_and_error(plain, *batch(seed))
        if not matrices:
            matrices = {name: m.clone() for name, m in dfa.feedback.items()}
        for name, spk in hidden.items():
            assert 0.05 < torch.stack(spk).mean() < 0.95
            torch.testing.assert_close(dfa.feedback[name], matrices[name], rtol=1e-4, atol=1e-6)
            gradient = torch.zeros_like(matrices[name])
            for s in spk:
                for b in range(B):
                    gradient += e[b][:, None] * s[b][None, :]
            adamw(matrices[name], gradient, states[name])


@pytest.mark.slow
def test_weights_and_feedback_of_the_last_hidden_layer_become_equal():
    """Before a linear readout both get the same updates, and only their difference decays."""
    net = network()[:-1]
    dfa = DFA(net, output="4", feedback=OPTIONS)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    differences = []
    for seed in range(30):
        optimizer.zero_grad()
        x, y = batch(seed)
        spk = loop(net, x)
        differences.append(net[4].weight.detach() - dfa.feedback["3"])
        nn.functional.cross_entropy(spk.sum(0), y).backward()
        optimizer.step()
    wanted = differences[0] * (1 - LR * DECAY) ** 29
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(differences[-1], wanted, rtol=0, atol=1e-4)


def test_nothing_moves_without_a_backward_pass():
    net = network()
    dfa = DFA(net, feedback=OPTIONS)
    loop(net, batch(0)[0])
    first = {name: m.clone() for name, m in dfa.feedback.items()}
    loop(net, batch(1)[0])
    with dfa.paused():
        backward(loop, net, 2)
    with torch.no_grad():
        loop(net, batch(3)[0])
    loop(net, batch(0)[0])
    for name, matrix in first.items():
        assert torch.equal(matrix, dfa.feedback[name])
    backward(loop, net, 0)
    with torch.no_grad():
        loop(net, batch(0)[0])  # evaluation does not make the step: training does
    assert torch.equal(first["1"], dfa.feedback["1"])
    loop(net, batch(0)[0])
    assert not torch.equal(first["1"], dfa.feedback["1"])


@pytest.mark.slow
def test_a_saved_state_goes_on_where_it_stopped():
    net = network()
    dfa = DFA(net, feedback=OPTIONS)
    for seed in range(3):
        backward(loop, net, seed)
    file = io.BytesIO()
    torch.save(dfa.state_dict(), file)
    file.seek(0)
    other = network()
    loaded = DFA(other, feedback="kolen-pollack")
    loaded.load_state_dict(torch.load(file, weights_only=True))
    reset(net)
    copied = copy.deepcopy(dfa)
    for seed in range(3, 6):
        backward(loop, net, seed)
        backward(loop, other, seed)
        backward(loop, copied._net, seed)
    for name, matrix in dfa.feedback.items():
        assert torch.equal(matrix, loaded.feedback[name])
        assert torch.equal(matrix, copied.feedback[name])


def test_a_gradient_that_is_not_finite_is_dropped():
    optimizer, matrices = FeedbackOptimizer(OPTIONS), {"1": torch.ones(3, 4)}
    optimizer.accumulate("1", torch.full((3, 4), math.inf))
    assert optimizer.step(matrices) == []
    assert torch.equal(matrices["1"], torch.ones(3, 4))
    optimizer.accumulate("1", torch.ones(3, 4))
    assert optimizer.step(matrices) == ["1"]
    assert not torch.equal(matrices["1"], torch.ones(3, 4))


def test_feedback_that_follows_an_optimiser_steps_with_it():
    """Two halves of a batch, accumulated, are one update, as they are for the weights."""
    x, y = batch(0)
    found = []
    for parts in (1, 2):
        net = network()
        dfa = DFA(net, output="5", feedback=OPTIONS)
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
        dfa.follow(optimizer)
        first = None
        for _ in range(2):
            for part in range(parts):
                some = slice(part * B // parts, (part + 1) * B // parts)
                spk = loop(net, x[:, some])
                if first is None:
                    first = dfa.feedback["1"].clone()
                nn.functional.cross_entropy(spk.sum(0), y[some], reduction="sum").backward()
                assert torch.equal(dfa.feedback["1"], first)
            optimizer.zero_grad()  # the weights stay, so that both runs see the same spikes
            optimizer.step()
            assert not torch.equal(dfa.feedback["1"], first)
            first = dfa.feedback["1"].clone()
        found.append(first)
        dfa.remove()
        loop(net, x).sum().backward()
        optimizer.step()
        assert torch.equal(dfa.feedback["1"], first)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_fixed_feedback_follows_nothing():
    net = network()
    with pytest.raises(
        FeedbackError, match=r"expected one of \['kolen-pollack', .* got 'gaussian'"
    ):
        DFA(net).follow(torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_steady_signal_gives_the_same_correlation():
    signal, spikes = torch.rand(B, 3), (torch.rand(T, B, 4, 2) < 0.3).float()
    steady = signal.expand(T, B, 3)
    torch.testing.assert_close(correlation(steady, spikes), correlation(steady.clone(), spikes))
    half = correlation(steady.bfloat16(), spikes.bfloat16())
    assert half.dtype == torch.float32
    assert half.shape == (3, 4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.0}, "lr: expected a number above zero, got 0.0"),
     ({"weight_decay": -1.0}, "weight_decay: expected zero or more, got -1.0"),
     ({"initial": math.nan}, "initial: expected zero or more, got nan")],
)  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(FeedbackError, match=message):
        KolenPollack(**options)
