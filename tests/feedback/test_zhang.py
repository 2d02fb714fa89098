"""The first weights and the feedback of Zhang et al. 2024 against their equations, by hand."""

import math

import pytest
import torch

from snn_dfa.zhang import zhang_feedback, zhang_weights

ALPHA, MEAN_RATE, SECOND = 0.066, 8.0, 164.0


def moments(n):
    """A.7 and A.8, written as they are published."""
    mean = (MEAN_RATE - 0.8) / (ALPHA * n * MEAN_RATE)
    top = SECOND + ALPHA**2 * (n - n**2) * mean**2 * MEAN_RATE**2
    top -= 1.6 * ALPHA * n * MEAN_RATE * mean + 0.64
    return mean, top / (ALPHA**2 * n * SECOND)


@pytest.mark.parametrize("n", [784, 1000])
def test_weights_have_the_published_moments(n, generator):
    w = zhang_weights((2000, n), generator).double()
    mean, square = moments(n)
    spread = math.sqrt(square - mean**2)
    assert w.mean().item() == pytest.approx(mean, abs=5 * spread / math.sqrt(w.numel()))
    assert w.std().item() == pytest.approx(spread, rel=0.01)
    assert (w - mean).abs().max().item() <= math.sqrt(3) * spread * 1.0001  # a uniform law


def test_such_weights_keep_the_activity_of_the_layer_before(generator):
    """What A.7 and A.8 solve: v = W (alpha v') + 0.8 has the mean and square that v' has."""
    n = 1000
    before = MEAN_RATE + math.sqrt(SECOND - MEAN_RATE**2) * torch.randn(
        n, 200, generator=generator, dtype=torch.float64
    )
    v = zhang_weights((3000, n), generator).double() @ (ALPHA * before) + 0.8
    assert v.mean().item() == pytest.approx(MEAN_RATE, rel=0.05)
    assert v.square().mean().item() == pytest.approx(SECOND, rel=0.05)


def test_feedback_is_a_product_over_the_layers_that_follow():
    seeded = torch.Generator().manual_seed(3)
    first, second = zhang_weights((7, 20), seeded), zhang_weights((4, 7), seeded)
    got = zhang_feedback((20, 7, 4), torch.Generator().manual_seed(3), gamma=0.5)
    wanted = [
        [0.5 * sum(second[c, j].item() * first[j, n].item() for j in range(7)) for n in range(20)]
        for c in range(4)
    ]
    torch.testing.assert_close(got, torch.tensor(wanted))
