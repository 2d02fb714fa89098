"""Normalisation by running statistics, in the loop over time."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, fold_normalization, reset
from snn_dfa.normalization import SteadyNorm


@pytest.mark.slow
def test_statistics_are_over_batch_and_time():
    norm = SteadyNorm(3, momentum=0.02).double()
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0.0, 4.0], dtype=torch.float64)  # every other step lies higher
    for t in range(1500):
        x = levels[t % 2] + torch.randn(64, 3, generator=generator, dtype=torch.float64)
        norm(x)
    # Within a step the variance is 1, between the steps it is 4.
    torch.testing.assert_close(norm.running_mean, torch.full((3,), 2.0).double(), atol=0.2, rtol=0)
    torch.testing.assert_close(norm.running_var, torch.full((3,), 5.0).double(), atol=0.3, rtol=0)
    before = norm.running_mean.clone()
    trained, evaluated = norm(x), norm.eval()(x)
    torch.testing.assert_close(trained, evaluated, atol=0.02, rtol=0)
    norm(x)
    assert not torch.equal(norm.running_mean, before)
    held = norm.running_mean.clone()
    norm(x)
    assert torch.equal(norm.running_mean, held)  # evaluation moves nothing


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 4)])
def test_a_step_in_training_is_what_evaluation_makes_of_the_new_statistics(shape):
    norm = SteadyNorm(3, momentum=0.5)
    x = torch.rand(shape) * 3
    got = norm(x)
    assert torch.equal(got, norm.eval()(x))
    assert got.std() > 0


def test_without_momentum_all_calls_have_the_same_share():
    norm, calls = SteadyNorm(3, momentum=None), 2 + 5 * torch.randn(6, 64, 3)
    means, squares = [], []
    for count, x in enumerate(calls, 1):
        got = norm(x)
        means.append(x.mean(0))
        squares.append((x - sum(means) / count).square().mean(0))
    torch.testing.assert_close(norm.running_mean, sum(means) / 6)
    torch.testing.assert_close(norm.running_var, sum(squares) / 6)
    assert torch.equal(got, norm.eval()(x))
    norm.reset_running_stats()
    norm.train()(x)
    torch.testing.assert_close(norm.running_mean, x.mean(0))


@pytest.mark.parametrize("credit", ["membrane", "trace"])
def test_in_a_network_that_goes_step_by_step(credit):
    net = nn.Sequential(
        nn.Linear(4, 8), SteadyNorm(8), snn.Leaky(0.8, 0.3, init_hidden=True),
        nn.Linear(8, 3), snn.Leaky(0.8, 0.3, init_hidden=True),
    )  # fmt: skip
    with DFA(net, credit=credit):
        for _ in range(2):
            reset(net)
            total = sum(net(step).sum() for step in torch.rand(6, 5, 4) * 3)
            total.backward()  # the statistics of all steps are still there
    assert net[0].weight.grad.any()
    assert net[1].weight.grad.any()
    reset(net)
    x = torch.rand(5, 4)
    want = net.eval()(x)
    reset(net)
    torch.testing.assert_close(fold_normalization(net)(x), want)


def test_without_statistics_it_cannot_be():
    with pytest.raises(ValueError, match="track_running_stats: expected True"):
        SteadyNorm(3, track_running_stats=False)
