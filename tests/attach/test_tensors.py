"""Tensors inside arguments: what holds others is gone through once, however it is joined."""

from types import SimpleNamespace

import pytest
import torch
from small_net import small
from torch import nn

from snn_dfa import DFA, reset
from snn_dfa._attach.tensors import map_tensors, tensors_in

OLD, NEW = torch.zeros(2), torch.ones(2)


def exchanged(value, **options):
    return map_tensors(lambda t: NEW if t is OLD else t, value, **options)


def chain(count):
    """Objects, each of which holds the next one, and the last one, which holds a tensor."""
    first = last = SimpleNamespace()
    for _ in range(count):
        last.next = SimpleNamespace()
        last = last.next
    last.mem = OLD
    return first, last


def joined(count):
    """Objects that hold each other."""
    nodes = [SimpleNamespace(mem=OLD) for _ in range(count)]
    for node in nodes:
        node.others = [other for other in nodes if other is not node]
    return nodes


@pytest.mark.parametrize("in_place", [False, True])
def test_a_long_chain_of_objects(in_place):
    first, last = chain(3000)
    changed = exchanged(first, in_place=in_place)
    assert (changed is first) == in_place
    for _ in range(3000):
        changed = changed.next
    assert changed.mem is NEW
    assert last.mem is (NEW if in_place else OLD)


def test_objects_that_hold_each_other_are_gone_through_once():
    nodes, seen = joined(30), []
    assert map_tensors(lambda t: seen.append(t) or t, nodes[0]) is nodes[0]
    assert len(seen) == 30
    exchanged(nodes[0], in_place=True)
    assert all(node.mem is NEW for node in nodes)


def test_what_is_held_twice_is_copied_once():
    inner = [OLD, 1]
    (a, rest), _ = exchanged(((inner, {"a": inner}), OLD))
    assert a is rest["a"] is not inner
    assert a[0] is NEW
    assert inner[0] is OLD


@pytest.mark.parametrize(
    "value",
    [(NEW, 1), [NEW, None], {"a": NEW}, {"a": [NEW]}.values(), {"a": (NEW,)}.items(),
     SimpleNamespace(mem=(NEW, [NEW])), (nn.functional, [torch])],
)  # fmt: skip
def test_what_does_not_change_is_returned_as_it_is(value):
    assert exchanged(value) is value


def test_tensors_are_found_in_their_order():
    a, b, c, d = (torch.zeros(i) for i in range(4))
    assert [*map(len, tensors_in([a, {"x": [b], "y": c}, (SimpleNamespace(s=d),)]))] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "argument", [chain(1000)[0], joined(12)[0], nn.functional], ids=["chain", "joined", "module"]
)
def test_a_network_is_given_any_object(argument):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, x, more):
            return self.net(x)

    net, x = Net(), torch.rand(4, 5)
    wanted = net(x, argument)
    reset(net)
    with DFA(net, output="net.5"):
        assert torch.equal(net(x, argument), wanted)
