"""Credit by eligibility traces: which states and currents a trace goes on with."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, AttachError, BackwardError, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

T, B = 6, 3
X = 1.5 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
START = torch.rand(B, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def leaky(kind=snn.Leaky, **options):
    decays = {"alpha": 0.7} if kind is snn.Synaptic else {}
    options = {"beta": 0.8, "threshold": 0.4, "spike_grad": fast_sigmoid(5), **options, **decays}
    return kind(**options)


class Net(nn.Module):
    """One hidden layer, whose states the caller has in hand."""

    def __init__(self, kind=snn.Leaky, between=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.lif, self.out = nn.Linear(4, 7), leaky(kind), nn.Linear(7, 2)
        self.between = between or nn.Identity()
        self.double()

    def forward(self, x, *states):
        spk, *states = self.lif(self.between(self.a(x)), *states)
        return self.out(spk), tuple(states)


def rest(kind=snn.Leaky):
    return (torch.zeros(B, 7, dtype=torch.float64),) * (2 if kind is snn.Synaptic else 1)


def gradients(credit, start, change=lambda states, t: states, kind=snn.Leaky):
    """Of a loss of each step of the second of two sequences; ``change``: of the states."""
    net = Net(kind)
    with DFA(net, credit=credit, output="out"):
        for _ in range(2):
            net.zero_grad()
            states, losses = start, []
            for t, x in enumerate(X):
                with torch.set_grad_enabled(t not in (1, 3) or change is not STEPS_WITHOUT):
                    out, states = net(x, *change(states, t))
                losses.append((out - 1).square().sum())
            sum(loss for loss in losses if loss.requires_grad).backward()
    assert all(p.grad.any() for p in net.parameters())
    return [p.grad for p in net.parameters()]


def STEPS_WITHOUT(states, t):
    return states


def in_place(state, how):
    with torch.no_grad():
        how(state)
    return state


def mask(states, t):
    return [s * torch.tensor([[1.0], [0.0], [1.0]]) for s in states] if t == 3 else states


GO_ON = {
    "cloned": (rest(), lambda states, t: [s.clone() for s in states]),
    "steps without gradients": (rest(), STEPS_WITHOUT),
    "other states at the start": ((START,), lambda states, t: states),
}
CHANGED = {
    "masked": mask,
    "halved": lambda states, t: [0.5 * s for s in states],
    "detached and masked in place": lambda states, t: [
        in_place(s.detach(), lambda s: s[1].zero_()) if t == 3 else s for s in states
    ],
    "cleared in place": lambda states, t: [
        in_place(s, torch.Tensor.zero_) if t == 3 else s for s in states
    ],
    "one of two": lambda states, t: (0.5 * states[0], *states[1:]) if t == 3 else states,
}


@pytest.mark.parametrize(("start", "change"), GO_ON.values(), ids=GO_ON)
def test_states_that_go_on_or_begin_a_sequence_give_membrane_credit(start, change):
    for a, b in zip(*(gradients(c, start, change) for c in ("membrane", "trace")), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [snn.Leaky, snn.Synaptic])
@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_states_that_the_program_has_changed_raise_an_error(change, kind):
    with pytest.raises(AttachError, match="layer 'lif': expected the states that the neuron has"):
        gradients("trace", rest(kind), change, kind)


def test_a_membrane_that_learns_raises_an_error():
    net = Net()
    with DFA(net, credit="trace", output="out"), pytest.raises(AttachError, match="or learns"):
        net(X[0], nn.Parameter(torch.zeros(B, 7, dtype=torch.float64)))


def test_two_sequences_side_by_side_raise_an_error():
    net = Net()
    with DFA(net, credit="trace", output="out"):
        (_, one), (_, two) = net(X[0], *rest()), net(X[1], *rest())
        net(X[2], *two)
        with pytest.raises(AttachError, match="kept from an earlier step"):
            net(X[2], *one)


@pytest.mark.parametrize("hidden", ["mul_", "zero_"])
def test_a_hidden_membrane_that_is_changed_between_chunks_raises_an_error(hidden):
    neurons = [leaky(init_hidden=True) for _ in range(2)]
    net = nn.Sequential(nn.Linear(4, 7), neurons[0], nn.Linear(7, 2), neurons[1]).double()
    form = over_time(net, stateful=True)
    with DFA(form, credit="trace"):
        form(X).sum().backward()
        in_place(neurons[0].mem, lambda m: m.mul_(0.5) if hidden == "mul_" else m.zero_())
        with pytest.raises(AttachError, match="layer '1': expected the states"):
            form(X)
        reset(net)
        form(X).sum().backward()


# -- currents and inputs ---------------------------------------------------------------------------


class InPlace(nn.Module):
    """Changes what a layer returns, another way at each step."""

    def __init__(self, module):
        super().__init__()
        self.module, self.factor = module, 1.0

    def forward(self, x):
        y = self.module(x)
        self.factor += 1
        return y.mul_(self.factor)


def test_a_current_that_is_changed_in_place_raises_an_error():
    net = Net(between=InPlace(nn.BatchNorm1d(7).eval()))
    message = "no hook or in-place operation may change"
    with DFA(net, credit="trace", output="out"), pytest.raises(AttachError, match=message):
        net(X[0], *rest())


def test_a_current_of_a_chunk_that_is_changed_in_place_raises_an_error():
    class Chunks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lif, self.out = nn.Linear(4, 7), leaky(init_hidden=True), nn.Linear(7, 2)
            self.double()

        def forward(self, x):
            current = self.a(x)
            current *= 2
            return self.out(self.lif(current))

    form = over_time(Chunks(), stateful=True)
    message = "not changed in place"
    with DFA(form, credit="trace", output="out"), pytest.raises(AttachError, match=message):
        form(X)


def test_a_trace_does_not_see_what_is_written_over_an_input():
    found = []
    for shared in (False, True):
        net, states, buffer = Net(), rest(), torch.empty_like(X[0])
        with DFA(net, credit="trace", output="out"):
            for x in X:
                out, states = net(buffer.copy_(x) if shared else x, *states)
                (out - 1).square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("changed", ["weight", "input"])
def test_a_head_whose_weight_or_input_has_been_changed_raises_an_error(changed):
    """Autograd says the same; a trace must, too."""

    class Head(Net):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2).double()

        def forward(self, x, *states):
            out, _ = super().forward(x.clone(), *states)
            return out + self.head(x)

    net, x = Head(), X[0].clone()
    with DFA(net, credit="trace", output=["out", "head"]):
        loss = net(x, *rest()).sum()
        with torch.no_grad():
            (net.head.weight if changed == "weight" else x).mul_(2)
        with pytest.raises(BackwardError, match="changed in place since it was called"):
            loss.backward()
        assert all(p.grad is None for p in net.parameters())


class Changed(nn.Module):
    """Changes the current of a layer in place, before the layer reads it or after."""

    def __init__(self, before=None, after=None, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.lif, self.out = nn.Linear(4, 7), leaky(init_hidden=True), nn.Linear(7, 2)
        self.changes = [before, after, head]
        self.double()

    def forward(self, x):
        before, after, head = (each or (lambda t: t) for each in self.changes)
        current = self.a(x)
        spk = self.lif(before(current))
        after(current)
        return head(self.out(spk))


def test_a_current_that_a_program_changes_in_place_is_an_error_that_says_what_to_do():
    message = "'lif': expected its input to be the output of one .* no hook or in-place operation"
    with (
        DFA(net := Changed(before=lambda t: t.add_(0.1)), credit="trace", output="out"),
        pytest.raises(AttachError, match=message),
    ):
        net(X[0])


@pytest.mark.parametrize(
    "changes",
    [{"after": lambda t: t.zero_()}, {"head": lambda t: t.mul_(2).sub_(1)}],
    ids=["current that was read", "output"],
)
def test_what_a_layer_returns_may_be_changed_in_place_where_no_trace_reads_it(changes):
    found = []
    for each in (changes, {name: lambda t: t * 2 - 1 for name in changes}):
        with DFA(net := Changed(**each), credit="trace", output="out", seed=1):
            for x in X:
                (net(x) - 1).square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    assert found[0][0].any()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
