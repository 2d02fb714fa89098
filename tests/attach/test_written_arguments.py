"""Lists, dictionaries and objects that a network or a layer writes into, or keeps and returns."""

from collections import UserDict, deque
from dataclasses import dataclass

import pytest
import snntorch as snn
import torch
from oracle import Oracle
from torch import Tensor, nn

from snn_dfa import DFA, AttachError
from snn_dfa.surrogate import fast_sigmoid

T, B = 4, 5
SIZES = (6, 5, 3)


@dataclass(frozen=True)
class Frozen:
    mem: list


class Slots:
    __slots__ = ("mem",)

    def __init__(self, mem):
        self.mem = mem


class Own(snn.SpikingNeuron):
    """A neuron of the user's, whose membrane is in what the program gives it."""

    def __init__(self, features):
        super().__init__(threshold=0.3, spike_grad=fast_sigmoid(5))
        self.decay = nn.Parameter(torch.full((features,), 0.8))

    def forward(self, current, state):
        mem = self.decay * state["mem"] + current
        spk = self.fire(mem)
        state["mem"] = mem - 0.3 * spk.detach()
        state["seen"] = state.get("seen", 0) + spk
        return spk


#: How a network is given its membranes, and how it reads and writes them.
FORMS = {
    "list": (list, lambda s, i: s[i], lambda s, i, v: s.__setitem__(i, v)),
    "dict": (
        lambda mem: dict(enumerate(mem)), lambda s, i: s[i], lambda s, i, v: s.__setitem__(i, v)
    ),
    "mapping": (
        lambda mem: UserDict(enumerate(mem)), lambda s, i: s[i], lambda s, i, v: s.__setitem__(i, v)
    ),
    "object": (Slots, lambda s, i: s.mem[i],
               lambda s, i, v: setattr(s, "mem", [*s.mem[:i], v, *s.mem[i + 1:]])),
    "frozen": (Frozen, lambda s, i: s.mem[i], lambda s, i, v: s.mem.__setitem__(i, v)),
    "in a tuple": (lambda mem: (0, {"mem": mem}), lambda s, i: s[1]["mem"][i],
                   lambda s, i, v: s[1]["mem"].__setitem__(i, v)),
}  # fmt: skip


class Net(nn.Module):
    """Takes a step; writes membranes, a trace of its outputs and spikes into its arguments."""

    def __init__(self, form, own):
        super().__init__()
        torch.manual_seed(0)
        self.fcs = nn.ModuleList(map(nn.Linear, (4, *SIZES), SIZES))
        neuron = {"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(5)}
        self.lifs = nn.ModuleList(Own(n) if own else snn.Leaky(**neuron) for n in SIZES)
        self.read, self.write = FORMS[form][1:]
        self.own = own
        self.double()

    def forward(self, x, state, record):
        for i, (fc, lif) in enumerate(zip(self.fcs, self.lifs, strict=True)):
            mem = self.read(state, i)
            if self.own:
                held = {"mem": mem}
                x = lif(fc(x), held)
                mem = held["mem"]
            else:
                x, mem = lif(fc(x), mem)
            self.write(state, i, mem)
            record.setdefault("spikes", []).append(x)
        record["trace"] = 0.9 * record.get("trace", 0) + x + mem


def run(net, form, batch):
    x = 2 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(batch)).double()
    state, record = FORMS[form][0]([torch.zeros(B, n).double() for n in SIZES]), {}
    for step in x:
        net(step, state, record=record)
    return record, [net.read(state, i) for i in range(3)]


@pytest.mark.parametrize("own", [False, True], ids=["Leaky", "own neuron"])
@pytest.mark.parametrize("form", FORMS)
def test_a_network_writes_its_states_into_what_it_is_given(form, own):
    plain, net = Net(form, own), Net(form, own)
    oracle = Oracle(plain, ["lifs.0", "lifs.1"], ["lifs.2"])
    dfa = DFA(net)
    for batch in range(3):
        oracle.clear()
        net.zero_grad()
        (wanted, mems), (record, got) = run(plain, form, batch), run(net, form, batch)
        assert len(record["spikes"]) == 3 * T
        every = zip([*wanted["spikes"], *mems], [*record["spikes"], *got], strict=True)
        assert all(torch.equal(a, b) for a, b in every)
        assert 0 < torch.cat([s.flatten() for s in record["spikes"]]).mean() < 1

        def loss(record):
            return record["trace"].square().mean() + sum(s.mean() for s in record["spikes"])

        loss(record).backward()
        for name, grad in oracle.gradients(loss(wanted), dfa.feedback).items():
            torch.testing.assert_close(net.get_parameter(name).grad, grad, rtol=1e-9, atol=1e-12)


class Counting(nn.Module):
    """Hidden neurons whose states the program keeps, and reads in the loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(4, 6), Own(6), nn.Linear(6, 3), Own(3)
        self.skip = nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        first, second = {"mem": x.new_zeros(B, 6)}, {"mem": x.new_zeros(B, 3)}
        out = []
        for step in x:
            spk = self.lif1(self.fc1(step), first)
            # What the layer has written comes into another one.
            out.append(self.lif2(self.fc2(spk) + self.skip(first["seen"]), second))
        return torch.stack(out), first["mem"], second["seen"]


def test_what_a_layer_writes_comes_into_other_layers_and_the_loss():
    plain, net = Counting(), Counting()
    oracle, dfa = Oracle(plain, ["lif1"], ["lif2"]), DFA(net)
    x = 2 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(1)).double()
    for _ in range(2):
        oracle.clear()
        net.zero_grad()
        wanted, got = plain(x), net(x)
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
        got[0].mean().add(got[1].square().mean()).add(got[2].square().mean()).backward()
        loss = wanted[0].mean() + wanted[1].square().mean() + wanted[2].square().mean()
        for name, grad in oracle.gradients(loss, dfa.feedback).items():
            torch.testing.assert_close(net.get_parameter(name).grad, grad, rtol=1e-9, atol=1e-12)


class Failing(Net):
    fails = False

    def forward(self, x, state, record):
        if self.fails:
            raise ValueError("on purpose")
        return super().forward(x, state, record)


def test_after_an_error_arguments_hold_what_the_program_put_there():
    net = Failing("list", own=False)
    DFA(net)
    x = 2 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(1)).double()
    state, record = [torch.zeros(B, n).double() for n in SIZES], {}
    for step in x:
        net(step, state, record)
    record["trace"].mean().backward(retain_graph=True)
    before = [*state, *record["spikes"]]
    net.fails = True
    with pytest.raises(ValueError, match="on purpose"):
        net(x[0], state, record)
    after = [*state, *record["spikes"]]
    assert all(a is b for a, b in zip(before, after, strict=True))


class Config:
    """Holds itself, as a trainer does that its parts know."""

    def __init__(self):
        self.me, self.parts, self.gain = self, [self, {"whole": self}], torch.ones(())


def test_an_argument_that_holds_itself():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net("list", own=False)

        def forward(self, x, state, record, config):
            self.net(config.gain * x, state, record)
            return record["trace"], config

    net, config = Scaled(), Config()
    DFA(net)
    state, record = [torch.zeros(B, n).double() for n in SIZES], {}
    for step in torch.rand(T, B, 4).double():
        out, same = net(step, state, record, config)
    out.mean().backward()
    assert same is config
    grads = [p.grad for p in net.parameters()]
    assert all(isinstance(g, Tensor) and g.isfinite().all() for g in grads)


class Delayed(Own):
    """Takes its last membranes, in any container."""

    def forward(self, current, past):
        mem = current + self.decay * sum(0.7**i * m for i, m in enumerate(past))
        spk = self.fire(mem)
        return spk, mem - 0.3 * spk.detach()


class WithPast(nn.Module):
    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2 = nn.Linear(4, 6), Delayed(6), nn.Linear(6, 3)
        self.lif2, self.form = Own(3), form
        self.double()

    def forward(self, x):
        past, state, out, total = deque(maxlen=2), {"mem": x.new_zeros(B, 3)}, [], 0
        for step in x:
            spk, mem = self.lif1(self.fc1(step), self.form(past))
            past.appendleft(mem)
            out.append(self.lif2(self.fc2(spk), state))
            total = total + mem.square().mean()
        return torch.stack(out), total


@pytest.mark.parametrize(
    "form", [lambda past: past, tuple, lambda past: dict(enumerate(past)).values()],
    ids=["deque", "tuple", "values of a dict"],
)  # fmt: skip
def test_a_layer_is_given_its_last_membranes(form):
    plain, net = WithPast(form), WithPast(form)
    oracle, dfa = Oracle(plain, ["lif1"], ["lif2"]), DFA(net)
    x = 2 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(1)).double()
    for _ in range(2):
        oracle.clear()
        net.zero_grad()
        wanted, got = plain(x), net(x)
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
        assert 0 < got[0].mean() < 1
        (got[0].mean() + got[1]).backward()
        for name, grad in oracle.gradients(wanted[0].mean() + wanted[1], dfa.feedback).items():
            torch.testing.assert_close(net.get_parameter(name).grad, grad, rtol=1e-9, atol=1e-12)


def test_own_values_that_come_in_by_a_generator_raise_an_error():
    net = WithPast(iter)
    DFA(net)
    with pytest.raises(AttachError, match=r"layer 'lif1': a value that it has returned comes in"):
        net(torch.rand(T, B, 4).double())


class Keeping(nn.Module):
    """Keeps its states and traces in a dictionary of its own, and returns that at each step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        neuron = {"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(5)}
        self.fcs = nn.ModuleList(map(nn.Linear, (4, *SIZES), SIZES))
        self.lifs = nn.ModuleList(snn.Leaky(**neuron) for _ in SIZES)
        self.back = nn.Linear(SIZES[1], SIZES[0])
        self.kept = {"log": []}
        self.double()

    def forward(self, x):
        kept = self.kept
        if "seen" in kept:  # another layer's values, and the first one's own
            current = self.fcs[0](x) + self.back(kept["trace"]) + 0.3 * kept["seen"]
        else:
            current = self.fcs[0](x)
        spikes = []
        for i, lif in enumerate(self.lifs):
            mem = kept.get(i, torch.zeros_like(current))
            spk, kept[i] = lif(current, mem)
            spikes.append(spk)
            current = self.fcs[i + 1](spk) if i < 2 else None
        kept["seen"] = 0.5 * kept.get("seen", 0) + spikes[0]
        kept["trace"] = 0.9 * kept.get("trace", 0) + spikes[1]
        kept["log"].append(spikes[2].square() + kept[2])
        return kept


def test_the_program_clears_what_the_network_has_returned_and_keeps():
    plain, net = Keeping(), Keeping()
    oracle, dfa = Oracle(plain, ["lifs.0", "lifs.1"], ["lifs.2"]), DFA(net)
    for batch in range(3):
        oracle.clear()
        net.zero_grad()
        x = 2 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(batch)).double()
        losses = []
        for each in (plain, net):
            traces = 0
            for step in x:
                kept = each(step)
                traces = traces + kept["trace"].square().mean() + kept["seen"].mean()
            assert len(kept["log"]) == T
            losses.append(torch.stack(kept["log"]).square().mean() + traces)
            kept.clear()
            kept["log"] = []
        wanted, got = losses
        assert torch.equal(wanted, got)
        got.backward()
        for name, grad in oracle.gradients(wanted, dfa.feedback).items():
            torch.testing.assert_close(net.get_parameter(name).grad, grad, rtol=1e-9, atol=1e-12)
