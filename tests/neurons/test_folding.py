"""A trained network without its normalisation computes the same."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import AttachError, fold_normalization, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

T, B = 12, 6


def neuron():
    return snn.Leaky(0.8, 0.3, spike_grad=fast_sigmoid(), init_hidden=True)


def dense():
    hidden = nn.Sequential(nn.Linear(9, 12), nn.BatchNorm1d(12), neuron())
    return nn.Sequential(hidden, nn.Linear(12, 4), neuron()), (9,)


def convolutional():
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.MaxPool2d(2), neuron(),
        nn.Flatten(), nn.Linear(45, 7, bias=False), nn.BatchNorm1d(7), neuron(),
    )  # fmt: skip
    return net, (2, 8, 8)


@pytest.mark.parametrize("make", [dense, convolutional])
def test_the_folded_network_computes_the_same(make):
    net, shape = make()
    net.double()
    x = torch.rand(T, B, *shape, dtype=torch.float64) * 2
    for _ in range(30):  # statistics that are not those of a fresh layer
        over_time(net.train())(x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    folded = fold_normalization(net)
    assert not any("BatchNorm" in type(m).__name__ for m in folded.modules())
    assert {n for n, m in folded.named_modules() if isinstance(m, snn.Leaky)} == {
        n for n, m in net.named_modules() if isinstance(m, snn.Leaky)
    }
    assert net.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    net.eval()
    wanted, spikes = [], []
    for one, into in ((net, wanted), (folded, spikes)):
        reset(one)
        into += [one(step) for step in x]
    assert 0.05 < torch.stack(wanted).mean() < 0.95
    assert torch.equal(torch.stack(wanted), torch.stack(spikes))


def test_what_cannot_be_folded_is_named():
    late = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4))
    with pytest.raises(AttachError, match=r"expected .2. straight after .* after ReLU"):
        fold_normalization(late)
    without = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(AttachError, match="'1' has no running statistics"):
        fold_normalization(without)
