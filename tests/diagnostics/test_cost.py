"""Accumulates on spikes, multiplications on all else."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import over_time
from snn_dfa.diagnostics import cost, training_cost


def operations(net, x):
    with cost(net) as spent, torch.no_grad():
        net(x)
    return spent.synaptic_operations, spent.multiplications


@pytest.mark.parametrize(
    ("x", "counted"),
    [
        ([[1, 0, 1, 0]], (2 * 8, 0)),
        ([[0, 0, 0, 0]], (0, 0)),
        ([[0.5, 0.5, 0.5, 0.5]], (0, 4 * 8)),
        ([[0, 0.5, 0, 0.5]], (0, 4 * 8)),
        ([[-1, 0, 1, 0]], (0, 4 * 8)),
    ],
)
def test_a_constant_current_is_multiplied(x, counted):
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True))
    x = torch.tensor(x, dtype=torch.float32)
    assert operations(net, x) == counted
    macs = training_cost(net, lambda net: net(x), ["dfa"])["dfa"].forward.macs
    assert macs == counted[1] + 8


@pytest.mark.parametrize("form", [lambda net: net, over_time])
@pytest.mark.parametrize(("factor", "p"), [(1.0, 0.0), (3.0, 0.0), (1.0, 0.25), (3.0, 0.5)])
def test_spikes_have_the_size_that_neuron_and_dropout_give_them(form, factor, p):
    layers = (
        nn.Linear(4, 50), snn.Leaky(0.9, 0.01, graded_spikes_factor=factor, init_hidden=True),
        nn.Dropout(p), nn.Linear(50, 2), snn.Leaky(0.9, 0.01, init_hidden=True),
    )  # fmt: skip
    given, net = [], form(nn.Sequential(*layers))
    layers[3].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    x = 0.1 + torch.rand(3, 1, 4)
    with cost(net) as spent, torch.no_grad():
        for each in [x] if form is over_time else x:
            net(each)
    fired = sum(int(each.count_nonzero()) for each in given)
    assert fired > 0
    assert (spent.synaptic_operations, spent.multiplications) == (2 * fired, 3 * 4 * 50)
