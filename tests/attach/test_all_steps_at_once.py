"""A readout that is given all steps at once learns, and lets learn, as one that is called at each step."""

from functools import partial

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, OutOfStepError, WeightMirror, over_time
from snn_dfa.surrogate import fast_sigmoid

T, B = 5, 3
X = 2 * torch.rand(T, T, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
lif = partial(snn.Leaky, 0.8, threshold=0.3, spike_grad=fast_sigmoid(5))
linear = partial(nn.Linear, 8, 2)


def each(head, _, spikes, made=lambda spk: spk):
    """Call the head at each step; all other ways have to give the same."""
    return torch.stack([head(made(spk)) for spk in spikes])


def batch_first(value):
    return value.transpose(0, 1)


#: Ways to give all steps at once; each returns [T, B, C].
WAYS = {
    "stack": lambda head, _, spikes: head(torch.stack(spikes)),
    "batch first": lambda head, _, spikes: batch_first(head(torch.stack(spikes, 1))),
    "counted from behind": lambda head, _, spikes: batch_first(head(torch.stack(spikes, -2))),
    "turned": lambda head, _, spikes: batch_first(head(torch.stack(spikes).permute(1, 0, 2))),
    "turned back": lambda head, _, spikes: head(batch_first(torch.stack(spikes, 1))),
    "parts side by side": lambda head, _, spikes: head(torch.cat([s[None] for s in spikes])),
    "backward in time": lambda head, _, spikes: head(torch.stack(spikes[::-1])).flip(0),
}
ORDER = torch.tensor([3, 1, 4, 0, 2])


def filled(spikes, dim, order):
    """Put steps into a tensor in place, as ``rec[t] = spk`` or ``rec[:, t] = spk``."""
    rec = torch.zeros_like(torch.stack(spikes, dim))
    for t in order:
        rec.select(dim, t).copy_(spikes[t])
    return rec


#: Others, which learned feedback has no linear network for.
ODD = {
    "filled in place": lambda head, _, spikes: head(filled(spikes, 0, range(T))),
    "filled in place, batch first": lambda head, _, spikes: batch_first(
        head(filled(spikes, 1, range(T)))
    ),
    "filled in another order": lambda head, _, spikes: head(filled(spikes, 0, ORDER.tolist())),
    "flipped": lambda head, _, spikes: head(torch.stack(spikes).flip(0)).flip(0),
    "by an index": lambda head, _, spikes: head(torch.stack(spikes)[ORDER])[ORDER.argsort()],
    "by an index, batch first": lambda head, _, spikes: batch_first(
        head(torch.stack(spikes, 1).index_select(1, ORDER))
    )[ORDER.argsort()],
    "rows that are viewed": lambda head, _, spikes: head(torch.cat(spikes).view(T, -1, 8)),
    "columns that are viewed": lambda head, _, spikes: batch_first(
        head(torch.cat(spikes, 1).view(-1, T, 8))
    ),
    "parted, and stacked again": lambda head, _, spikes: head(
        torch.stack([*torch.stack(spikes).unbind(0)])
    ),
    "as rows, and apart again": lambda head, _, spikes: head(
        torch.stack(spikes).flatten(0, 1).unflatten(0, (T, -1))
    ),
    "as columns, and one number less": lambda head, _, spikes: head(
        torch.stack([torch.cat([spk, spk[:, :1]], 1) for spk in spikes])[..., :8].unsqueeze(2)
    ).squeeze(2),
    "with a first step that is dropped": lambda head, first, spikes: head(
        torch.stack([first[0], *spikes])[1:]
    ),
    "two stacks": lambda head, _, spikes: head(
        torch.cat([torch.stack(spikes[:2]), torch.stack(spikes[2:])])
    ),
}


def function(spk):
    return functional.layer_norm(torch.tanh(2 * spk), spk.shape[-1:])


def with_first(spk, first):
    return spk + 0.5 * first


class Net(nn.Module):
    """Two hidden layers; ``read`` gives the spikes of both to the head."""

    def __init__(self, read, layers=2, head=linear):
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ModuleList(nn.Linear(n, 8) for n in (4, 8)[:layers])
        self.neurons = nn.ModuleList(lif() for _ in range(layers))
        self.head = head()
        self.read = read
        self.double()

    def forward(self, x):
        mems, first, last = [n.init_leaky() for n in self.neurons], [], []
        for spk in x:
            for i, (weight, neuron) in enumerate(zip(self.weights, self.neurons, strict=True)):
                spk, mems[i] = neuron(weight(spk), mems[i])
                first += [spk] * (i == 0)
            last.append(spk)
        return self.read(self.head, first, last)


def gradients(read, layers=2, head=linear, batches=1, learns=False, samples=B, **options):
    net = Net(read, layers, head)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    DFA(net, output="head", **options, **({"optimizer": optimizer} if learns else {}))
    for _ in range(batches):
        optimizer.zero_grad()
        out = net(X[:, :samples])
        of_step = torch.arange(1.0, T + 1).view(T, *[1] * (out.dim() - 1))
        (of_step * (out - 1).square()).sum().backward()
        optimizer.step()
    return {name: p.grad for name, p in net.named_parameters()}


LEARNS = {"learns": True, "batches": 3}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"credit": "trace"}, {"credit": "current"}, {"rule": "fa"}, {"rule": "sign"},
        {"layers": 1}, {"samples": T}, {"samples": 1}, LEARNS,
        {**LEARNS, "feedback": WeightMirror(by_sample=0)},
    ],
    ids=str,
)  # fmt: skip
def test_each_step_gets_its_own_error(way, options):
    wanted, got = (gradients(each_way, **options) for each_way in (each, way))
    assert wanted["weights.0.weight"].any()
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ODD.values(), ids=ODD)
@pytest.mark.parametrize("options", [{}, {"credit": "trace"}, {"rule": "fa"}], ids=str)
def test_the_steps_are_put_together_in_another_way(way, options):
    wanted, got = (gradients(each_way, **options) for each_way in (each, way))
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, LEARNS], ids=str)
def test_functions_of_each_number_and_of_each_sample_lie_between(options):
    wanted = gradients(partial(each, made=function), **options)
    got = gradients(lambda head, _, spikes: head(function(torch.stack(spikes))), **options)
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, LEARNS], ids=str)
def test_samples_are_of_different_lengths(options):
    """A mask leaves out what comes after the end of a sample."""
    mask = torch.arange(T)[:, None, None] < torch.tensor([T, 2, 3])[:, None]
    wanted = gradients(
        lambda head, _, spikes: torch.stack(
            [head(s * m) for s, m in zip(spikes, mask, strict=True)]
        ),
        **options,
    )
    got = gradients(lambda head, _, spikes: head(torch.stack(spikes) * mask), **options)
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, LEARNS], ids=str)
def test_it_reads_two_layers_at_the_same_steps(options):
    def at_each_step(head, first, spikes):
        pairs = zip(spikes, first, strict=True)
        return torch.stack([head(with_first(*pair)) for pair in pairs])

    def at_once(head, first, spikes):
        return head(with_first(torch.stack(spikes), torch.stack(first)))

    wanted, got = (gradients(read, **options) for read in (at_each_step, at_once))
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


def test_it_is_given_some_of_the_steps():
    wanted = gradients(lambda head, _, spikes: each(head, _, spikes) * _of_last(3))
    got = gradients(
        lambda head, _, spikes: functional.pad(
            head(torch.stack(spikes)[-3:]), (0, 0, 0, 0, T - 3, 0)
        )
    )
    # The loss of the steps that are not read is that of zeros, which no parameter changes.
    assert wanted["weights.0.weight"].any()
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


def _of_last(count):
    return (torch.arange(T) >= T - count).double().view(T, 1, 1)


class Behind(nn.Module):
    """A layer of rows without a name, and the head behind it."""

    def __init__(self, convolves):
        super().__init__()
        self.convolves = convolves
        self.layer = nn.Conv1d(1, 2, 3) if convolves else nn.Linear(8, 12)
        self.head = nn.Linear(12, 2)

    def rows(self, x):
        if not self.convolves:
            return self.layer(x)
        rows = functional.max_pool1d(self.layer(x.reshape(-1, 1, 8)), 1)
        return rows.reshape(*x.shape[:-1], 12)

    def forward(self, x):
        return self.head(self.rows(x))


@pytest.mark.parametrize("convolves", [False, True])
@pytest.mark.parametrize("dim", [0, 1])
def test_layers_without_a_name_lie_between(convolves, dim):
    def gradients_of(read):
        net = Net(read, head=partial(Behind, convolves))
        DFA(net, output="head.head")
        (net(X[:, :B]) - 1).square().sum().backward()
        return [p.grad for p in net.parameters()]

    wanted = gradients_of(each)
    got = gradients_of(lambda head, _, spikes: head(torch.stack(spikes, dim)).transpose(0, dim))
    assert wanted[0].any()
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


class Score(nn.Linear):
    """One number of each sample and step, without a dimension of its own."""

    def __init__(self):
        super().__init__(8, 1)

    def forward(self, x):
        return super().forward(x).squeeze(-1)


@pytest.mark.parametrize("way", ["stack", "batch first"])
@pytest.mark.parametrize("samples", [B, T])
def test_a_readout_of_one_number(way, samples):
    wanted, got = (gradients(read, head=Score, samples=samples) for read in (each, WAYS[way]))
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "mixes",
    [
        lambda stack: stack.cumsum(0), lambda stack: stack - stack.mean(0), lambda stack: stack @ stack.mT @ stack,
        lambda stack: batch_first(stack).reshape(stack.shape), lambda stack: stack + stack[0],
        lambda stack: stack + stack.flip(0), lambda stack: functional.softmax(stack, 0),
        lambda stack: functional.layer_norm(stack, stack.shape[-2:]) + stack.roll(1, 0),
        lambda stack: torch.stack([stack[0], stack[0], *stack[2:]]),
    ],
)  # fmt: skip
def test_what_may_mix_the_steps_before_the_readout_raises_an_error(mixes):
    net = Net(lambda head, _, spikes: head(mixes(torch.stack(spikes))))
    with (
        DFA(net, output="head"),
        pytest.raises(OutOfStepError, match="call the readout at each step"),
    ):
        net(X[:, :B])


@pytest.mark.parametrize("samples", [T - 1, B])
def test_differences_of_steps_raise_an_error_whatever_the_number_of_samples(samples):
    net = Net(lambda head, _, spikes: head(torch.stack(spikes)[1:] - torch.stack(spikes)[:-1]))
    with DFA(net, output="head"), pytest.raises(OutOfStepError, match="which step each value is"):
        net(X[:, :samples])


@pytest.mark.parametrize("samples", [B, T])
def test_a_mask_of_steps_takes_some(samples):
    some = torch.tensor([False, True, True, False, True])
    wanted = gradients(
        lambda head, _, spikes: each(head, _, spikes) * some.view(T, 1, 1), samples=samples
    )

    def read(head, _, spikes):
        out = torch.zeros(T, samples, 2, dtype=torch.float64)
        return out.index_copy(0, some.nonzero()[:, 0], head(torch.stack(spikes)[some]))

    got = gradients(read, samples=samples)
    assert wanted["weights.0.weight"].any()
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-9, atol=1e-12)


def test_it_runs_over_time():
    grads = []
    for net in (Net(WAYS["stack"]), over_time(Net(WAYS["stack"]))):
        names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        with DFA(net, output=names[-1]):
            (net(X[:, :B]) - 1).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].any()
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)
