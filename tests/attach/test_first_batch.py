"""The first batch, in which it is seen what leads where, gives the gradients of all others."""

import pytest
import torch
from block_nets import lif, passed
from kp_network import batch, loop
from torch import nn
from torch.utils.checkpoint import checkpoint

from snn_dfa import DFA, AttachError, reset


def gradients(net, x, loss_of):
    net.zero_grad()
    reset(net)
    torch.manual_seed(1)
    loss_of([net(step) for step in x]).backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


def spikes(outs):
    return (torch.stack(outs) - 1).square().sum()


class Scaled(nn.Module):
    """Hands out a function of its hidden spikes, which the loss may see."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(8, 8), lif(), nn.Linear(8, 3), lif()

    def forward(self, x):
        h = self.lif1(self.fc1(x)).flatten(1) * 1.0
        return self.lif2(self.fc2(h)), h


class Heads(nn.Module):
    """A second spiking layer that leads nowhere."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(8, 8), lif(), nn.Linear(8, 3), lif()
        self.fca, self.lifa = nn.Linear(8, 4), lif()

    def forward(self, x):
        h = self.lif1(self.fc1(x))
        self.seen = self.lifa(self.fca(h))
        return self.lif2(self.fc2(h))


def row(*between):
    return nn.Sequential(nn.Linear(8, 8), lif(), *between, nn.Linear(8, 8), lif(),
                         nn.Linear(8, 3), lif())  # fmt: skip


def both(outs):
    return spikes([o for o, _ in outs]) + spikes([h for _, h in outs])


CASES = {
    "plain": (row, "5", [], spikes, {}),
    "in place": (lambda: row(nn.Dropout(0.5, inplace=True)), "6", [], spikes, {}),
    "function": (Scaled, "lif2", [], both, {}),
    "frozen": (row, "5", ["2"], spikes, {}),
    "frozen, online": (row, "5", ["2"], spikes, {"credit": "trace"}),
    "frozen, given": (row, "5", ["2"], spikes, {"feedback": {"1": torch.ones(3, 8)}}),
    "frozen, learned": (row, "5", ["2"], spikes, {"feedback": "kolen-pollack"}),
    "frozen head": (Heads, "lif2", ["fca"], spikes, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("called", ["net", "forward"])
def test_the_first_batch_is_like_the_others(case, called):
    make, output, frozen, loss_of, options = CASES[case]
    torch.manual_seed(0)
    net, x = make(), batch(0)[0]
    for name in frozen:
        net.get_submodule(name).requires_grad_(False)
    form = net if called == "net" else type("Called", (), {
        "__call__": lambda _, x: net.forward(x), "zero_grad": net.zero_grad,
        "named_parameters": net.named_parameters, "modules": net.modules,
    })()  # fmt: skip
    with DFA(net, output=output, **options) as dfa:
        first, second, third = (gradients(form, x, loss_of) for _ in range(3))
        assert not dfa._core.paths.tracing
        hidden = [n for n in dfa.feedback if n not in ("3", "lifa")] if frozen else dfa.feedback
        assert list(dfa.feedback) == list(hidden)
    for name, gradient in second.items():
        if gradient is None:
            assert first[name] is None
            continue
        assert gradient.any()
        if "learned" not in case:
            assert torch.equal(first[name], gradient)
            assert torch.equal(third[name], gradient)


def test_a_head_that_is_left_to_its_own_loss_is_not_on_the_way():
    net = Heads()
    with DFA(net, output="lif2", hidden=["lif1"], feedback="transpose") as dfa:
        passed(net)
        assert torch.equal(dfa.feedback["lif1"], net.fc2.weight)


def test_reentrant_checkpointing_behind_a_hidden_layer_is_refused():
    class Net(nn.Sequential):
        def forward(self, x):
            return self[3](checkpoint(self[2], self[1](self[0](x)), use_reentrant=self.reentrant))

    net = Net(nn.Linear(8, 8), lif(), nn.Linear(8, 3), lif())
    net.reentrant = True
    with (
        DFA(net, output="3"),
        pytest.raises(AttachError, match="expected activation checkpointing with use_reentrant=F"),
    ):
        passed(net)
    net.reentrant = False
    reset(net)
    with DFA(net, output="3"):
        for _ in range(2):
            net.zero_grad()
            reset(net)
            passed(net)
            assert net[2].weight.grad.abs().sum() > 0


# -- layers that take shape in the first pass ------------------------------------------------------


def lazy_row():
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(8), lif(), nn.Linear(8, 8), lif(), nn.LazyLinear(3), lif())


LAZY = {
    "plain": {},
    "at currents": {"error_at": "current"},
    "kolen-pollack": {"feedback": "kolen-pollack", "optimizer": True},
    "kolen-pollack-product": {"feedback": "kolen-pollack-product", "optimizer": True},
    "weight mirror": {"optimizer": True},
    "trace": {"credit": "trace"},
}


def rates(outs):
    return (torch.stack(outs).sum(0) * torch.arange(1.0, 4)).sin().sum()


def two_batches(net, passes, options):
    """Return the gradients of two batches after some passes, and the weights of the first one."""
    optimizer, found = torch.optim.SGD(net.parameters(), lr=0.1), []
    options = options | ({"optimizer": optimizer} if "optimizer" in options else {})
    with DFA(net, **options):
        for _ in range(passes):
            loop(net, batch(0)[0])
        for seed in (1, 2):
            found.append(gradients(net, batch(seed)[0], rates))
            if seed == 1:
                weights = {name: value.clone() for name, value in net.state_dict().items()}
                optimizer.step()
    return found, weights


@pytest.mark.parametrize("passes", [0, 2])
@pytest.mark.parametrize("kind", LAZY)
def test_a_lazy_network_in_a_loop_has_the_gradients_of_one_with_a_shape(kind, passes):
    """Also after passes without a backward pass."""
    found, weights = two_batches(lazy_row(), passes, LAZY[kind])
    net = lazy_row()
    with torch.no_grad():
        loop(net, batch(0)[0])
    reset(net)
    net.load_state_dict(weights)
    wanted, _ = two_batches(net, passes, LAZY[kind])
    assert wanted[1]["0.weight"].any()
    for one, other in zip(found, wanted, strict=True):
        for name, grad in other.items():
            torch.testing.assert_close(one[name], grad)


def test_feedback_alignment_needs_layers_with_a_shape():
    net = lazy_row()
    with pytest.raises(AttachError, match="got the lazy layer '0'; call the network once"):
        DFA(net, rule="fa")
    with torch.no_grad():
        loop(net, batch(0)[0])
    with DFA(net, rule="fa"):
        passed(net)
        assert net[0].weight.grad.any()
