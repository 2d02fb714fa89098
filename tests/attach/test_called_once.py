"""A readout that is called once: as if it were called at each step that it reads, and its results averaged."""

from functools import partial

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, OutOfStepError, WeightMirror
from snn_dfa.surrogate import fast_sigmoid

T, B = 5, 3
X = 2 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
WEIGHTS = nn.Parameter(torch.zeros(T, dtype=torch.float64))
MEANS = {
    "stack": lambda spikes: torch.stack(spikes).mean(0),
    "batch first": lambda spikes: torch.stack(spikes, 1).sum(1) / len(spikes),
    "running sum": lambda spikes: sum(spikes[1:], spikes[0]) / len(spikes),
}
LAST = {
    "the last": (1, lambda spikes: spikes[-1]),
    "the last of a stack": (1, lambda spikes: torch.stack(spikes)[-1]),
    "the same, batch first": (1, lambda spikes: torch.stack(spikes, 1)[:, -1]),
    "the last two": (2, lambda spikes: (spikes[-1] + spikes[-2]) / 2),
    "the last three": (3, lambda spikes: torch.stack(spikes[-3:]).mean(0)),
    "the last three of a stack": (3, lambda spikes: torch.stack(spikes)[-3:].mean(0)),
    "the same of one of parts": (3, lambda spikes: torch.stack(spikes, -1)[..., 2:].mean(-1)),
}


def filled(spikes):
    out = torch.zeros(T, B, 8, dtype=torch.float64)
    for t, spk in enumerate(spikes):
        out[t] = spk
    return out


def filled_twice(spikes):
    out = filled(spikes[::-1])
    for t, spk in enumerate(spikes):
        out[t] = spk
    return out


def added(spikes):
    out = torch.zeros(2, B, 8, dtype=torch.float64)
    for spk in spikes:
        out[1] += spk
    return out[1] / len(spikes)


#: The same, for which learned feedback has no linear network.
PICKED = {
    "weighted by a parameter": (
        T,
        lambda spikes: (WEIGHTS.softmax(0)[:, None, None] * torch.stack(spikes)).sum(0),
    ),
    "by an index": (1, lambda spikes: torch.stack(spikes)[torch.tensor([T - 1])][0]),
    "of a tensor that was filled": (1, lambda spikes: filled(spikes)[-1]),
    "of one that was filled twice": (1, lambda spikes: filled_twice(spikes)[-1]),
    "of one to which they were added": (T, added),
    "some of a tensor that was filled": (2, lambda spikes: filled(spikes)[-2:].mean(0)),
    "one of parts": (1, lambda spikes: torch.stack(spikes).unbind(0)[-1]),
    "part of parts": (2, lambda spikes: torch.stack(spikes).split([T - 2, 2])[1].mean(0)),
    "of what was computed": (2, lambda spikes: torch.stack(spikes).clone()[:, :][-2:].mean(0)),
}
ENDS, SAMPLES = torch.tensor([4, 1, 3]), torch.arange(B)
#: Another step of each sample, as the last one of sequences of different lengths.
OF_SAMPLES = {
    "index": lambda spikes: torch.stack(spikes)[ENDS, SAMPLES],
    "index, batch first": lambda spikes: torch.stack(spikes, 1)[SAMPLES, ENDS - T],
    "index of a tensor that was filled": lambda spikes: filled(spikes)[ENDS, SAMPLES],
    "gather": lambda spikes: (
        torch.stack(spikes).gather(0, ENDS.view(1, B, 1).expand(1, B, 8)).squeeze(0)
    ),
    "gather, batch first": lambda spikes: torch.stack(spikes, 1).gather(
        1, ENDS.view(B, 1, 1).expand(B, 1, 8)
    )[:, 0],
    "take_along_dim": lambda spikes: torch.take_along_dim(
        torch.stack(spikes), ENDS.view(1, B, 1), 0
    )[0],
}
lif = partial(snn.Leaky, 0.8, threshold=0.3, spike_grad=fast_sigmoid(5))


class Net(nn.Module):
    """One or two hidden layers; the heads read spikes in a way ``once``, or those of each step.

    Then the means count of what they make of the ``last`` steps, of all of them if it is zero. They
    read the membrane if ``mem``.
    """

    def __init__(self, once, layers=2, last=0, mem=False):
        super().__init__()
        self.last = last
        torch.manual_seed(0)
        self.weights = nn.ModuleList(nn.Linear(n, 8) for n in (4, 8)[:layers])
        self.neurons = nn.ModuleList(lif() for _ in range(layers))
        self.head, self.value = nn.Linear(8, 2), nn.Linear(8, 1)
        self.once, self.last, self.mem = once, last, mem
        self.double()

    def forward(self, x):
        mems, out = [n.init_leaky() for n in self.neurons], []
        for spk in x:
            for i, (weight, neuron) in enumerate(zip(self.weights, self.neurons, strict=True)):
                spk, mems[i] = neuron(weight(spk), mems[i])
            out.append(mems[-1] if self.mem else spk)
        if self.once:
            read = self.once(out)
            return self.head(read), self.value(read)
        made = ([h(each) for each in out] for h in (self.head, self.value))
        return tuple(torch.stack(each[-self.last :]).mean(0) for each in made)


def gradients(once, layers=2, last=0, mem=False, batches=1, **options):
    net = Net(once, layers, last, mem)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    learns = options.pop("learns", False)
    DFA(net, **options, **({"optimizer": optimizer} if learns else {}))
    for _ in range(batches):
        optimizer.zero_grad()
        head, value = net(X)
        ((head - 1).square().sum() + (value * head.detach()).sum()).backward()
        optimizer.step()
    return {name: p.grad for name, p in net.named_parameters()}


LEARNS = {"learns": True, "batches": 3}


@pytest.mark.parametrize("once", MEANS.values(), ids=MEANS)
@pytest.mark.filterwarnings("ignore:the loss reads layer")
def test_the_linear_network_has_the_mean_too(once):
    wanted, got = (gradients(each, output="head", **LEARNS) for each in (None, once))
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"rule": "sign"}, {"credit": "trace"}, {"credit": "current"}, {"layers": 1},
        {"output": ["head", "value"]}, {**LEARNS, "feedback": WeightMirror(by_sample=0)},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:the loss reads layer")
def test_it_learns_as_a_readout_of_each_step_whose_results_are_averaged(options):
    options = {"output": "head"} | options
    wanted, got = (gradients(each, **options) for each in (None, MEANS["stack"]))
    assert wanted["weights.0.weight"].any()
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("last", "once"), LAST.values(), ids=LAST)
@pytest.mark.parametrize("mem", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"credit": "trace"}, {"rule": "fa"}, {"output": ["head", "value"]}, LEARNS],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:the loss reads layer")
def test_one_of_the_last_steps_learns_as_one_of_each_step_of_which_the_last_count(
    last, once, mem, options
):
    options = {"output": "head", "mem": mem, "last": last} | options
    wanted, got = (gradients(each, **options) for each in (None, once))
    assert wanted["weights.0.weight"].any()
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("last", "once"), PICKED.values(), ids=PICKED)
@pytest.mark.parametrize("options", [{}, {"credit": "trace"}, {"rule": "fa"}], ids=str)
@pytest.mark.filterwarnings("ignore:the loss reads layer")
def test_steps_are_picked_in_other_ways(last, once, options):
    options = {"output": "head", "last": last} | options
    wanted, got = (gradients(each, **options) for each in (None, once))
    assert wanted["weights.0.weight"].any()
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


class OfSamples(Net):
    """Reads another step of each sample; with ``once`` as none, of the results of all steps."""

    def forward(self, x):
        mem, out = self.neurons[0].init_leaky(), []
        for step in x:
            spk, mem = self.neurons[0](self.weights[0](step), mem)
            out.append(spk)
        if self.once:
            return self.head(self.once(out)), self.value(out[-1])
        heads = torch.stack([self.head(spk) for spk in out])
        return heads[ENDS, SAMPLES], [self.value(spk) for spk in out][-1]


@pytest.mark.parametrize("once", OF_SAMPLES.values(), ids=OF_SAMPLES)
@pytest.mark.parametrize(
    "options", [{}, {"credit": "trace"}, {"rule": "sign"}, {"output": ["head", "value"]}], ids=str
)
@pytest.mark.filterwarnings("ignore:the loss reads layer")
def test_each_sample_has_a_step_of_its_own(once, options):
    grads = []
    for each in (None, once):
        net = OfSamples(each, layers=1)
        DFA(net, **{"output": "head"} | options)
        head, value = net(X)
        ((head - 1).square().sum() + (value * head.detach()).sum()).backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    assert grads[0][0].any()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:the loss reads layer")
class Spiking(nn.Module):
    """The readout is a neuron; which inputs a step has is seen at the columns of a weight."""

    def __init__(self, once):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(T, 8), lif()
        self.fc2, self.lif2, self.once = nn.Linear(8, 2), lif(), once
        self.double()

    def forward(self, x):
        mem, out = self.lif1.init_leaky(), []
        for step in x:
            spk, mem = self.lif1(self.fc1(step), mem)
            out.append(spk)
        return self.lif2(self.fc2(self.once(out)), self.lif2.init_leaky())[1]


@pytest.mark.parametrize("once", OF_SAMPLES.values(), ids=OF_SAMPLES)
@pytest.mark.parametrize("sample", range(B))
def test_so_it_is_with_a_readout_that_is_a_neuron(once, sample):
    net = Spiking(once)
    DFA(net, output="lif2")
    x = torch.eye(T, dtype=torch.float64).unsqueeze(1).expand(T, B, T)
    net(x)[sample].sum().backward()
    seen = net.fc1.weight.grad.abs().sum(0) > 0
    assert seen.tolist() == [t <= ENDS[sample] for t in range(T)]


def test_it_learns_with_learned_feedback_where_each_sample_has_a_step_of_its_own():
    net = OfSamples(OF_SAMPLES["index"], layers=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    DFA(net, output="head", optimizer=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (net(X)[0] - 1).square().sum().backward()
        optimizer.step()
    assert net.weights[0].weight.grad.any()


def filled_in_part(spikes):
    out = torch.zeros(T, B, 9, dtype=torch.float64)
    for t, spk in enumerate(spikes):
        out[t, :, :8] = spk
    return out[..., :8]


def filled_by_two(spikes):
    out = torch.zeros(T, B, 8, dtype=torch.float64)
    out[0] = spikes[0]
    for t in range(1, T, 2):
        out[t : t + 2] = torch.stack(spikes[t : t + 2])
    return out


def filled_by_an_index(spikes):
    out = torch.zeros(T, B, 8, dtype=torch.float64)
    for t, spk in enumerate(spikes):
        out[torch.tensor([t])] = spk
    return out


class Mixed(Net):
    """A layer without a name mixes the steps, of which each was put together in place."""

    def __init__(self, mixes):
        super().__init__(self.last_of_mixed, layers=1)
        self.mixes = mixes
        self.rnn = nn.GRU(8, 4, bidirectional=True).double()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).double()

    def last_of_mixed(self, spikes):
        parts = [torch.zeros_like(spk) for spk in spikes]
        for part, spk in zip(parts, spikes, strict=True):
            part[:, :4], part[:, 4:] = spk[:, :4], spk[:, 4:]
        return self.mixes(self, torch.stack(parts))[-1]


@pytest.mark.parametrize("mixes", [lambda net, x: net.rnn(x)[0], lambda net, x: net.encoder(x)])
@pytest.mark.filterwarnings("ignore:the loss reads layer")
def test_one_that_reads_a_step_of_mixed_ones_reads_all_of_them(mixes):
    grads = []
    for net in (Net(MEANS["stack"], layers=1), Mixed(mixes)):
        with DFA(net, output="head"):
            head, _ = net(X)
            (head * torch.arange(6.0).view(3, 2)).sum().backward()  # the error is the same
        grads.append(net.weights[0].weight.grad)
    assert grads[0].any()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "unknown",
    [
        lambda spikes: filled_in_part(spikes)[-1], lambda spikes: filled_by_an_index(spikes)[-1],
        lambda spikes: filled_by_two(spikes)[-1],
        lambda spikes: torch.stack(spikes)[ENDS, SAMPLES.flip(0)],
        lambda spikes: torch.stack(spikes).gather(0, torch.arange(B * 8).view(1, B, 8) % T)[0],
        lambda spikes: torch.stack(spikes)[ENDS, SAMPLES] + torch.stack(spikes).mean(0),
        lambda spikes: torch.stack(spikes)[:4].view(2, 2, B, 8)[0].mean(0),
    ],
)  # fmt: skip
def test_steps_that_are_picked_in_an_unknown_way_raise_an_error(unknown):
    net = Net(unknown)
    with (
        DFA(net, output=["head", "value"]),
        pytest.raises(OutOfStepError, match="Pick steps of its result"),
    ):
        net(X)


def test_one_that_reads_layers_at_other_steps_than_each_other_raises_an_error():
    class Apart(Net):
        def forward(self, x):
            first, mem = self.neurons[0](self.weights[0](x[0]), self.neurons[0].init_leaky())
            self.neurons[1](self.weights[1](first))
            spk, _ = self.neurons[0](self.weights[0](x[1]), mem)
            return self.head(first + self.neurons[1](self.weights[1](spk))[0])

    net = Apart(None)
    with DFA(net, output="head"), pytest.raises(OutOfStepError, match="read at the same steps"):
        net(X)


def test_one_output_at_each_step_and_one_for_all_steps():
    class Both(Net):
        def forward(self, x):
            out, mem = [], self.neurons[0].init_leaky()
            for step in x:
                spk, mem = self.neurons[0](self.weights[0](step), mem)
                out.append(spk)
            each = lambda: torch.stack([self.value(spk) for spk in out]).mean(0)  # noqa: E731
            value = self.value(self.once(out)) if self.once else each()
            return torch.stack([self.head(spk) for spk in out]), value

    grads = []
    for once in (MEANS["stack"], None):
        net = Both(once, layers=1)
        DFA(net, output=["head", "value"])
        head, value = net(X)
        (head.square().sum() + (value - 1).square().sum()).backward()
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].any()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_it_has_to_be_named_and_to_come_last():
    class Early(Net):
        def forward(self, x):
            head = self.head(self.neurons[0](self.weights[0](x[0]))[0])
            return head, [self.neurons[0](self.weights[0](step))[0] for step in x[1:]]

    net = Early(None, layers=1)
    with DFA(net, output="head"), pytest.raises(OutOfStepError, match=r"neurons\.0"):
        net(X)


@pytest.mark.parametrize("batch", [B, T])
def test_one_may_have_as_many_samples_inputs_and_outputs_as_there_are_steps(batch):
    class Square(Net):
        def __init__(self, once):
            super().__init__(once, layers=1)
            self.weights[0], self.head = nn.Linear(4, T).double(), nn.Linear(T, T).double()
            self.value = nn.Linear(T, 1).double()

    net = Square(MEANS["batch first"])
    with DFA(net, output=["head", "value"]) as dfa:
        sum(each.square().sum() for each in net(X[:, :1].expand(T, batch, 4))).backward()
        assert dfa.feedback["neurons.0"].shape == (T + 1, T)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the loss reads layer")
def test_many_steps_are_one_sum():
    net = Net(MEANS["running sum"], layers=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    DFA(net, output="head", optimizer=optimizer)
    for _ in range(2):
        net(X[:1].expand(400, B, 4))[0].sum().backward()
        optimizer.step()
    assert net.weights[0].weight.grad.any()


@pytest.mark.parametrize("way", ["the last", "the last of a stack", "the last three of a stack"])
def test_one_may_read_as_many_channels_as_there_are_steps(way):
    class Conv(nn.Module):
        def __init__(self, once):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.lif, self.head = nn.Conv1d(1, T, 3), lif(), nn.Conv1d(T, T, 2)
            self.once = once
            self.double()

        def forward(self, x):
            mem, out = self.lif.init_leaky(), []
            for step in x:
                spk, mem = self.lif(self.conv(step[:, None]), mem)
                out.append(spk)
            if self.once:
                return self.head(self.once(out))
            return torch.stack([self.head(spk) for spk in out][-last:]).mean(0)

    (last, once), grads = LAST[way], []
    for each in (None, once):
        net = Conv(each)
        DFA(net, output="head")
        (net(X[:, :1].expand(T, T, 4)) - 1).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].any()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_steps_may_be_weighed_by_parameters():
    """At equal weights they are their mean; a parameter that is unsqueezed is of no step."""

    class Weighed(nn.Module):
        def __init__(self, equal):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.lif, self.head = nn.Linear(4, 8), lif(), nn.Linear(8, 2)
            self.weights, self.equal = nn.Parameter(torch.zeros(T)), equal

        def forward(self, x):
            mem, spikes = self.lif.reset_mem(), []
            for step in x:
                spk, mem = self.lif(self.fc(step), mem)
                spikes.append(spk)
            shares = self.weights.softmax(0).unsqueeze(-1).unsqueeze(-1)
            stack = torch.stack(spikes)
            assert stack.any()
            return self.head(stack.mean(0) if self.equal else (shares * stack).sum(0))

    found = []
    for equal in (True, False):
        net = Weighed(equal).double()
        DFA(net, output="head", feedback={"lif": torch.ones(2, 8)})
        net(X).sin().sum().backward()
        assert equal or net.weights.grad.any()
        found.append([p.grad for n, p in net.named_parameters() if n != "weights"])
    torch.testing.assert_close(*found)
