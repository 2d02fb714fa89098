"""Modules over sequences that see equal steps, modules that draw, modules in two places."""

import torch
from sequences import B, T, leaky
from torch import nn

from snn_dfa import fold_normalization, over_time


def test_a_normalised_constant_current_is_computed_once():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2), leaky(3))
    form, seen = over_time(net.double()), []
    net[2].register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    x = torch.rand(B, 1, 6, 6, dtype=torch.float64)
    once = form(x.expand(T, *x.shape))
    assert seen == [(B, 3, 4, 4)]
    assert 0 < once.mean() < 1
    every = form(x.repeat(T, 1, 1, 1, 1))
    assert torch.equal(once, every)


def test_dropout_draws_one_mask_for_a_sequence():
    form = over_time(nn.Sequential(nn.Dropout(0.5), nn.Identity()))
    x = torch.rand(T, B, 40) + 0.5
    for sequence in (x, x[:1].expand(T, B, 40)):
        got = form.train()(sequence)
        kept = got[0] != 0
        assert 0.3 < kept.double().mean() < 0.7
        torch.testing.assert_close(got, sequence * kept * 2)
    assert torch.equal(form.eval()(x), x)


def test_a_module_that_is_used_twice_stays_in_both_places():
    pool = nn.MaxPool2d(2)
    net = nn.Sequential(pool, nn.Conv2d(1, 2, 3), pool, leaky(2)).double()
    x = torch.rand(T, B, 1, 12, 12, dtype=torch.float64)
    assert over_time(net)(x).shape == (T, B, 2, 2, 2)
    assert [type(m) for m in fold_normalization(net)] == [type(m) for m in net]
