"""What feedback that learns may follow, and states of it that are taken and given back."""

import copy

import pytest
import torch
from kp_network import DECAY, LR, backward, batch, loop, network
from kp_product import OPTIONS, followed, train
from torch import nn
from torch.nn.utils import prune

from snn_dfa import DFA, FeedbackError, KolenPollack, KolenPollackProduct, diagnostics
from snn_dfa._attach.hooks import after_steps

KINDS = [OPTIONS, KolenPollack(lr=LR, weight_decay=DECAY)]


class Mine(torch.optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS)
def test_a_subclass_that_calls_its_base_takes_one_step(options):
    found = []
    for kind in (torch.optim.AdamW, Mine):
        net = network()
        dfa, _ = followed(net, feedback=options)
        optimizer = kind(net.parameters(), lr=LR, weight_decay=DECAY)
        dfa.follow(optimizer)
        train(net, optimizer, range(4))
        backward(loop, net, 9)
        found.append(dict(dfa.feedback))
    for name, matrix in found[0].items():
        assert torch.equal(matrix, found[1][name])


@pytest.mark.parametrize("loads", [False, True])
def test_another_class_of_optimiser_begins_with_its_own_moments(loads):
    net = network()
    first = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
    dfa = DFA(net, output="5", optimizer=first)
    train(net, first, range(3))
    if loads:
        state, twin = dfa.state_dict(), network()
        other = torch.optim.Adam(twin.parameters(), lr=LR)
        fresh = DFA(twin, output="5", optimizer=other)
        backward(loop, twin, 0)
        fresh.load_state_dict(state)
        net, dfa = twin, fresh
    else:
        other = torch.optim.Adam(net.parameters(), lr=LR)
        dfa.follow(other)
    before = dfa.state_dict()["matrices"]
    train(net, other, range(2))
    after = dfa.state_dict()["matrices"]
    assert before
    assert all(not torch.equal(matrix, before[name]) for name, matrix in after.items())


def test_a_step_that_failed_is_none():
    weight = nn.Parameter(torch.ones(1))
    optimizer, taken = torch.optim.SGD([weight], lr=0.1), []
    stop = after_steps(optimizer, taken.append)

    def fail():
        raise RuntimeError("in the closure")

    with pytest.raises(RuntimeError):
        optimizer.step(fail)
    assert not taken
    optimizer.step()
    assert len(taken) == 1
    stop()
    optimizer.step()
    assert len(taken) == 1


def tensors(state):
    """All tensors of a state, however deep."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS)
def test_a_snapshot_stays_what_it_was_and_leads_back(options):
    net = network()
    dfa, optimizer = followed(net, feedback=options)
    train(net, optimizer, range(3))
    saved = dfa.state_dict()
    known = copy.deepcopy(saved)
    weights, moments = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    found = []
    for _ in range(2):
        train(net, optimizer, range(3, 6))
        backward(loop, net, 9)
        found.append({n: m.clone() for n, m in dfa.feedback.items()})
        torch.testing.assert_close(list(tensors(saved)), list(tensors(known)), rtol=0, atol=0)
        net.load_state_dict(weights)
        optimizer.load_state_dict(copy.deepcopy(moments))
        dfa.load_state_dict(saved)
    for name, matrix in found[0].items():
        assert torch.equal(matrix, found[1][name])


def test_what_is_no_leader_is_refused_and_the_old_one_stays():
    net, other = network(), network()
    dfa, optimizer = followed(net)
    backward(loop, net, 0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for wrong, said in (
        (None, "expected a torch.optim.Optimizer, got NoneType"),
        (schedule, "expected a torch.optim.Optimizer, got StepLR"),
        (torch.optim.SGD(other.parameters(), lr=0.1), "got one that has none of them"),
        (torch.optim.SGD(net.parameters(), lr=0.1, maximize=True), "with maximize=True; negate"),
    ):
        with pytest.raises(FeedbackError, match=said):
            dfa.follow(wrong)
    before = {n: m.clone() for n, m in dfa.feedback.items()}
    optimizer.step()
    assert not any(torch.equal(m, before[n]) for n, m in dfa.feedback.items())


def test_other_weights_may_lead_where_only_the_time_of_the_steps_is_asked():
    net = network()
    dfa = DFA(net, output="5", feedback="kolen-pollack")
    copies = [p.detach().clone() for p in net.parameters()]  # as in mixed precision
    optimizer = torch.optim.SGD(copies, lr=0.1)
    dfa.follow(optimizer)
    backward(loop, net, 0)
    before = {n: m.clone() for n, m in dfa.feedback.items()}
    optimizer.step()
    assert not any(torch.equal(m, before[n]) for n, m in dfa.feedback.items())


def test_weights_that_are_gone_are_named():
    net = network()
    _dfa, optimizer = followed(net)
    train(net, optimizer, [0])
    net[4] = nn.Sequential(nn.Dropout(0.0), net[4])
    with pytest.raises(FeedbackError, match=r"layer '4' had weights and has none now; call remove"):
        train(net, optimizer, [1])


@pytest.mark.parametrize("kind", [KolenPollack, KolenPollackProduct])
def test_a_class_in_place_of_options_is_refused(kind):
    with pytest.raises(FeedbackError, match=f"got the class {kind.__name__} itself"):
        DFA(network(), feedback=kind)


def test_a_weight_that_is_pruned_later_is_an_error_before_the_first_gradient():
    net = network()
    dfa, optimizer = followed(net, feedback=OPTIONS)
    train(net, optimizer, range(2))
    optimizer.zero_grad()
    prune.l1_unstructured(net[2], "weight", 0.5)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(FeedbackError, match="of layer '2' is computed from other parameters"):
        train(net, optimizer, range(2, 3))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert dfa.feedback


# -- states ----------------------------------------------------------------------------------------


def test_a_state_of_which_nothing_is_drawn_yet_takes_the_place_of_what_was():
    first, second = network(), network()
    saved = DFA(first, output="5", seed=1).state_dict()
    dfa = DFA(second, output="5")
    backward(loop, second, 0)
    dfa.load_state_dict(saved)
    backward(loop, second, 0)
    third = network()
    wanted = DFA(third, output="5", seed=1)
    backward(loop, third, 0)
    for name, matrix in wanted.feedback.items():
        assert torch.equal(matrix, dfa.feedback[name])


def test_a_state_that_the_network_could_not_have_been_given_is_refused():
    net = network()
    dfa = DFA(net, rule="fa")
    for kind in ("zhang", "channelwise", "shared"):
        saved = DFA(network(), feedback=kind).state_dict()
        with pytest.raises(
            FeedbackError, match=f"a kind that has the shape of weights, got '{kind}"
        ):
            dfa.load_state_dict(saved)
    assert dfa.state_dict()["kind"] == "gaussian"
    drawn = DFA(network(), feedback=lambda shape, generator: torch.ones(shape)).state_dict()
    with pytest.raises(FeedbackError, match="not drawn by a function, which cannot be saved"):
        DFA(network()).load_state_dict(drawn)


def test_a_state_of_another_version_is_an_error_and_changes_nothing():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    dfa = DFA(net, output="5", optimizer=optimizer)
    train(net, optimizer, range(2))
    before, saved = dfa.state_dict(), dfa.state_dict()
    saved["learner"]["twin"] = saved["learner"]["twin"]["state"]
    with pytest.raises(
        FeedbackError, match=r"expected a state of 'weight-mirror' .* without 'class'"
    ):
        dfa.load_state_dict(saved)
    after = dfa.state_dict()["matrices"]
    assert before["matrices"]
    assert all(torch.equal(matrix, after[name]) for name, matrix in before["matrices"].items())


@pytest.mark.parametrize("kind", ["zhang", "shared"])
def test_feedback_does_not_depend_on_what_is_frozen(kind):
    found = []
    for frozen in (False, True):
        net = network()
        dfa = DFA(net, output="5", feedback=kind)
        net[0].requires_grad_(not frozen)
        backward(loop, net, 0)
        net[0].requires_grad_(True)
        backward(loop, net, 0)
        assert list(dfa.sites) == ["1", "3"]
        found.append(dict(dfa.feedback))
    for name, matrix in found[0].items():
        assert torch.equal(matrix, found[1][name])


def test_angles_between_a_backward_pass_and_a_step_are_those_of_the_feedback_as_it_is():
    net = network()
    dfa, optimizer = followed(net, feedback=KolenPollack(lr=0.5))
    train(net, optimizer, range(3))
    optimizer.zero_grad()
    angles = lambda: diagnostics.gradient_angles(dfa, lambda n: loop(n, batch(5)[0]).square().sum())  # noqa: E731
    before = angles()
    backward(loop, net, 3)
    assert angles() == before
