"""The walk below a value that comes into a layer, and what is known of a product without it."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, reset
from snn_dfa._attach.between.local_functions import function_of
from snn_dfa._attach.between.walk import below_product, look_below
from snn_dfa._attach.between.ways import Passage
from snn_dfa._attach.entry import Entry

T, B = 3, 2


def leaky():
    return snn.Leaky(0.9, 0.3, init_hidden=True)


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_known_as_a_walk_finds_it(bias, monkeypatch):
    """Equal notes are one function, whoever took them."""
    net = nn.Sequential(nn.Linear(4, 5, bias), leaky(), nn.Linear(5, 2, bias), leaky())
    found = []

    def look(entry, value, **options):
        layer, made = entry.layer, entry._product(value)
        walked = look_below(value, layer, entry.mine, by_sample=True)
        found.append((layer, below_product(value, *made), walked))

    monkeypatch.setattr(Entry, "look_at", look)
    DFA(net, feedback="weight-mirror")
    torch.stack([net(x) for x in torch.rand(T, B, 4)])
    assert [layer for layer, *_ in found] == ["1", "3"] * T
    for layer, known, walked in found:
        assert (known is None) == (walked is None) == (layer == "1")
        if known is not None:
            assert (known.structure, known.own) == (walked.structure, walked.own)
            assert not known.functions
            assert not walked.functions


class Doubled(nn.Sequential):
    """From the second step on the output's current is one more function of the spikes."""

    def forward(self, x):
        out = []
        for t, step in enumerate(x):
            current = self[2](self[1](self[0](step)))
            out.append(self[3](current if t == 0 else 2 * current))
        return torch.stack(out)


def test_a_product_and_what_is_made_of_it_are_two_functions():
    torch.manual_seed(0)
    net = Doubled(nn.Linear(4, 5), leaky(), nn.Linear(5, 2), leaky())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    dfa = DFA(net, optimizer=optimizer)
    for _ in range(2):
        reset(net)
        net(torch.rand(T, B, 4)).sum().backward()
        optimizer.step()
    reset(net)
    net(torch.rand(T, B, 4)).sum().backward()
    mean = (1 + 2 * (T - 1)) / T * net[2].weight
    torch.testing.assert_close(dfa.feedback["1"], mean, rtol=0.1, atol=0.1)


def test_what_a_node_of_several_steps_keeps_is_of_what_flows_in_there():
    """Of a product of two layers' values each layer has another factor."""
    a, b = torch.rand(T, B, 4).requires_grad_(), torch.rand(T, B, 4).requires_grad_()
    node, seen = (a * b).grad_fn, {}
    of_a, again, of_b = (
        Passage([(node, function_of(node, flows, (False, False)), True)], seen, alone=True)
        for flows in ((True, False), (True, False), (False, True))
    )
    assert torch.equal(of_a.local[0].tensors[0], b)
    assert again.local[0] is of_a.local[0]
    assert torch.equal(of_b.local[0].tensors[0], a)
