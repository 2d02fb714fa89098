"""``rule="target"`` in a form whose samples are those of all steps."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from own_networks import B, C, Hidden, T, inputs, steps
from torch import nn

from snn_dfa import DFA, TargetError, over_time


def _gradients(form, run, x, y):
    with DFA(form, rule="target", seed=2) as dfa:
        spikes = run(x)
        with dfa.targets(y):
            (spikes**2).sum().backward()
    return spikes, [p.grad for p in form.parameters()]


@pytest.mark.parametrize("y", [
    torch.arange(B) % C, torch.rand(B, C), torch.rand(T, B, C),
], ids=["classes", "targets", "each step"])  # fmt: skip
def test_targets_have_the_shapes_that_they_have_layer_by_layer(y):
    net, x = Hidden(), inputs()
    layers = copy.deepcopy(net)
    by_layer = over_time(nn.Sequential(OrderedDict(layers.named_children())))
    form = over_time(net)
    wanted = _gradients(by_layer, by_layer, x, y)
    torch.testing.assert_close(wanted, _gradients(form, form, x, y), atol=1e-10, rtol=1e-10)


def test_classes_send_what_they_send_in_the_loop():
    net, x, y = Hidden(), inputs(), torch.arange(B) % C
    form = over_time(copy.deepcopy(net))
    wanted = _gradients(net, lambda x: steps(net, x), x, y)
    torch.testing.assert_close(wanted, _gradients(form, form, x, y), atol=1e-10, rtol=1e-10)


def test_targets_of_another_shape_raise_an_error():
    form = over_time(Hidden(), check=False)
    with pytest.raises(TargetError, match=rf"class indices of shape \[{B}\]"):
        _gradients(form, form, inputs(), torch.zeros(T * B, dtype=torch.long))
