"""Activation checkpointing around a network with DFA, or parts of it: the same gradient, or a refusal."""

import pytest
import torch
from distributed import network
from plain_gradients import X, assert_close, grads, loss_of, plain_gradients
from torch import nn
from torch.utils.checkpoint import checkpoint

from snn_dfa import DFA, AttachError, FeedbackError, OutOfStepError, over_time, reset


class Checkpointed(nn.Module):
    """The loop over time, in which some layers are computed again in the backward pass."""

    def __init__(self, net, layers, reentrant):
        super().__init__()
        self.net, self.layers, self.reentrant = net, layers, reentrant

    def forward(self, x):
        reset(self.net)
        out = []
        for step in x:
            again = checkpoint(self.net[: self.layers], step, use_reentrant=self.reentrant)
            out.append(self.net[self.layers :](again) if self.layers < 6 else again)
        return torch.stack(out)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"rule": "fa"}, {"credit": "current"}])
def test_layers_without_neurons_may_be_checkpointed(reentrant, options):
    net = network()
    form = Checkpointed(net, 1, reentrant)
    x = X.clone().requires_grad_(reentrant)  # else reentrant checkpointing gives no gradient
    dfa = DFA(form, output="net.5", hidden=["net.1", "net.3"], **options)
    loss_of(form(x)).backward()
    assert_close(grads(net), plain_gradients(**options))
    dfa.remove()


@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("options", [{}, {"rule": "fa"}, {"credit": "current"}])
def test_a_checkpointed_neuron_is_refused(layers, options):
    """Without DFA it gives a wrong gradient, or an error about other shapes, too.

    With torch 2.6, which does not say that values are packed, some are refused in the first pass.
    """
    form = Checkpointed(network(), layers, False)
    DFA(form, output="net.5", hidden=["net.1", "net.3"], **options)
    said = r"activation checkpointing calls layer 'net\.1' again|'net\.1' was called 15 times"
    with pytest.raises((AttachError, OutOfStepError), match=said):
        loss_of(form(X)).backward()


def test_traces_are_not_carried_on_twice():
    form = Checkpointed(network(), 2, False)
    DFA(form, output="net.5", hidden=["net.1", "net.3"], credit="trace")
    loss = loss_of(form(X))
    with pytest.raises(
        AttachError, match=r"credit='trace': activation checkpointing calls a Linear again"
    ):
        loss.backward()


def test_hidden_states_of_a_checkpointed_network_are_refused():
    net = network()
    DFA(net, output="5")
    loss = loss_of(checkpoint(lambda x: torch.stack([net(s) for s in x]), X, use_reentrant=False))
    with pytest.raises(AttachError, match=r"layer '1' .* its hidden state would then start"):
        loss.backward()


def train(form, optimizer, again, reentrant):
    """Take two steps, with passes that are repeated or not."""
    x = X.clone().requires_grad_(reentrant)
    for _ in range(2):
        optimizer.zero_grad()
        out = checkpoint(form, x, use_reentrant=reentrant) if again else form(x)
        loss_of(out).backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"credit": "current"}, {"feedback": "kolen-pollack"}])
def test_a_network_over_time_may_be_checkpointed(reentrant, options):
    found = []
    for again in (False, True):
        form = over_time(network())
        dfa = DFA(form, output="5", **options)
        optimizer = torch.optim.SGD(form.parameters(), lr=0.1)
        if "feedback" in options:
            dfa.follow(optimizer)
        train(form, optimizer, again, reentrant)
        found.append([*grads(form), *(m.clone() for m in dfa.feedback.values())])
    assert_close(*found)


class Own(nn.Module):
    """A network that is no ``nn.Sequential``, of which the first call is compared with its loop."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"feedback": "kolen-pollack"}])
def test_a_network_of_ones_own_over_time_may_be_checkpointed(reentrant, options):
    found = []
    for again in (False, True):
        form = over_time(Own())
        optimizer = torch.optim.SGD(form.parameters(), lr=0.1)
        DFA(form, output="layers.5", optimizer=optimizer if options else None, **options)
        train(form, optimizer, again, reentrant)
        found.append(grads(form))
    assert all(grad.any() for grad in found[0])
    assert_close(*found)


@pytest.mark.parametrize("make", [network, Own])
def test_a_checkpointed_network_over_time_that_goes_on_is_refused(make):
    """Its states would begin, the second time, where the first time ended."""
    form = over_time(make(), stateful=True)
    DFA(form, output="5" if make is network else "layers.5")
    loss = loss_of(checkpoint(form, X, use_reentrant=False))
    with pytest.raises(AttachError, match="use over_time without stateful=True"):
        loss.backward()
    assert not any(p.grad is not None for p in form.parameters())


def test_feedback_that_learns_with_repeated_passes_is_refused():
    form = over_time(network())
    DFA(form, output="5", feedback="kolen-pollack")
    loss = loss_of(checkpoint(form, X, use_reentrant=False))
    with pytest.raises(FeedbackError, match=r"forward pass; call dfa.follow\(optimizer\)"):
        loss.backward()
