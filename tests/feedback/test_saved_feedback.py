"""Feedback from a seed, saved, loaded, and moved with the network."""

import io

import pytest
import snntorch as snn
import torch
from small_net import X, equal, gradients, small
from torch import nn

from snn_dfa import DFA, FeedbackError, reset


def test_feedback_depends_on_seed_name_and_shape_alone():
    net = small()
    drawn = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        with DFA(net, seed=seed) as dfa:
            gradients(net)
            drawn.append(dict(dfa.feedback))
    assert equal(drawn[0].values(), drawn[1].values())
    assert not torch.equal(drawn[0]["1"], drawn[2]["1"])
    deeper = nn.Sequential(*small(), nn.Linear(3, 3), snn.Leaky(beta=0.8, init_hidden=True))
    with DFA(deeper) as dfa:
        gradients(deeper)
        assert torch.equal(dfa.feedback["1"], drawn[0]["1"])
        assert list(dfa.feedback) == ["1", "3", "5"]


def test_attaching_and_running_leave_the_global_generator_alone():
    net = small()
    before = torch.get_rng_state()
    with DFA(net):
        gradients(net)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_dict_round_trip():
    net = small()
    with DFA(net, seed=3) as dfa:
        wanted = gradients(net)
        buffer = io.BytesIO()
        torch.save(dfa.state_dict(), buffer)
    for before_first_pass in (True, False):
        buffer.seek(0)
        with DFA(net, seed=99) as dfa:
            if not before_first_pass:
                assert not torch.equal(gradients(net)[0], wanted[0])
            dfa.load_state_dict(torch.load(buffer, weights_only=True))
            assert equal(gradients(net), wanted)


def test_state_dict_of_another_network_is_refused_and_changes_nothing():
    net = small()
    with DFA(net) as dfa:
        wanted = gradients(net)
        state = dfa.state_dict()
        for bad, message in (
            ({**state, "matrices": {"1": torch.zeros(3, 8)}}, r"of shape \[3, 7\], got \[3, 8\]"),
            ({**state, "matrices": {"9": torch.zeros(3, 8)}}, "got one for '9'"),
            ({"matrices": {}}, r"without \['kind', 'learner', 'scale', 'seed'\]"),
        ):
            with pytest.raises(FeedbackError, match=message):
                dfa.load_state_dict(bad)
            assert equal(gradients(net), wanted)


def test_feedback_follows_the_dtype_of_the_network():
    net = small()
    with DFA(net) as dfa:
        gradients(net)
        single = dict(dfa.feedback)
        reset(net.double())
        gradients(net, X.double())
        assert dfa.feedback["1"].dtype == torch.float64
        assert net[0].weight.grad.dtype == torch.float64
        reset(net.bfloat16())
        gradients(net, X.bfloat16())
        assert dfa.feedback["1"].dtype == torch.bfloat16
        net.float()
        assert equal(dfa.feedback.values(), single.values())


def test_feedback_follows_the_device_of_the_network():
    """The meta device stands in for a GPU: no values, but every device must fit."""
    net = small().to("meta")
    with DFA(net, output="5") as dfa:
        torch.stack([net(step) for step in X.to("meta")]).sum().backward()
        assert dfa.feedback["1"].device.type == "meta"
        assert net[0].weight.grad.device.type == "meta"


def test_a_stock_surrogate_in_mixed_precision():
    net = small(spike_grad=None)
    with DFA(net), torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(net)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in got)
