"""Programs that call parts of a network one by one, or freeze and thaw parts between two steps."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, NonFiniteError, OutOfStepError, reset
from snn_dfa.surrogate import fast_sigmoid

B, W = 4, torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
MATRIX = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
X = torch.rand(B, 5, generator=torch.Generator().manual_seed(2))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        options = {"beta": 0.9, "threshold": 0.3, "spike_grad": fast_sigmoid(10)}
        self.fc1, self.lif1 = nn.Linear(5, 6), snn.Leaky(**options)
        self.fc2, self.lif2 = nn.Linear(6, 3), snn.Leaky(**options)

    def encode(self, x, mem=None):
        return self.lif1(self.fc1(x), torch.zeros(B, 6) if mem is None else mem)

    def decode(self, z, mem=None):
        return self.lif2(self.fc2(z), torch.zeros(B, 3) if mem is None else mem)

    def forward(self, x):
        return self.decode(self.encode(x)[0])[0]


# Each returns what the outputs gave, with the spikes that each of them belongs with, and a loss.


def twice(net, reads):
    z = net.encode(X)[0]
    a, b = net.decode(z)[0], net.decode(1.5 * z)[0]
    return [(a, z), (b, z)], sum((out * W * k).sum() for k, out in ((1, a), (2, b)) if k in reads)


def a_loop_twice(net, reads):
    mem, spikes, pairs = None, [], []
    for k in range(3):
        z, mem = net.encode(k * X, mem)
        spikes.append(z)
    for factor in (1, 2):
        mem = None
        for z in spikes:
            out, mem = net.decode(factor * z, mem)
            pairs.append((out, z))
    return pairs, sum((out * W * k).sum() for k, (out, _) in enumerate(pairs))


def once_and_a_loop(net, reads):
    z, mem, pairs = net.encode(X)[0], None, []
    for _ in range(3):
        out, mem = net.decode(z, mem)
        pairs.append((out, z))
    return pairs, sum((out * W * k).sum() for k, (out, _) in enumerate(pairs, 1))


def in_another_order(net, reads):
    y, z = net.encode(X)[0], net.encode(X + 1)[0]
    a, b = net.decode(z)[0], net.decode(y)[0]
    return [(a, z), (b, y)], (a * W).sum() + (b * W).square().sum()


def an_old_value(net, reads):
    z = net.encode(X)[0]
    a, y = net.decode(z)[0], net.encode(X + 1)[0]
    b, c = net.decode(2 * z)[0], net.decode(y)[0]
    return [(a, z), (b, z), (c, y)], ((a + 2 * b + 3 * c) * W).sum()


def of_a_stack(net, reads):
    kept = [net.encode(k * X)[0] for k in range(2)]
    spikes = torch.stack(kept)
    pairs = [(net.decode(spikes[k])[0], kept[k]) for k in (0, 1, 0)]
    return pairs, sum((out * W * k).sum() for k, (out, _) in enumerate(pairs, 1))


def noise_first(net, reads):
    a, z = net.decode(torch.ones(B, 6))[0], net.encode(X)[0]
    b = net.decode(z)[0]
    return [(b, z)], ((a + 2 * b) * W).sum()


def noise_last(net, reads):
    z = net.encode(X)[0]
    a, b = net.decode(z)[0], net.decode(torch.ones(B, 6))[0]
    return [(a, z)], ((a + 2 * b) * W).sum()


def alike(net, reads):
    z = net.encode(X)[0]
    a, y = net.decode(z)[0], net.encode(X + 1)[0]
    return [(a, z)], (a * W).sum() + (y - z).square().sum()


PROGRAMS = [twice, a_loop_twice, once_and_a_loop, in_another_order, an_old_value, of_a_stack,
            noise_first, noise_last, alike]  # fmt: skip


def right(program, reads):
    """The definition by hand: values that enter the output are cut, e B is added at the spikes."""
    net = Parts()
    decode = net.decode
    net.decode = lambda z, mem=None: decode(z.detach(), mem)
    pairs, loss = program(net, reads)
    errors = torch.autograd.grad(
        loss, [out for out, _ in pairs], retain_graph=True, allow_unused=True
    )
    for error, (_, z) in zip(errors, pairs, strict=True):
        if error is not None:
            loss = loss + (z * (error @ MATRIX)).sum()
    loss.backward()
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("credit", ["membrane", "trace"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_parts(program, credit):
    net = Parts()
    dfa = DFA(net, output="lif2", feedback={"lif1": MATRIX}, credit=credit)
    for reads in ([1, 2], [1], [2]) if program is twice else ([1, 2],):
        net.zero_grad()
        program(net, reads)[1].backward()
        torch.testing.assert_close([p.grad for p in net.parameters()],
                                   right(program, reads))  # fmt: skip
    dfa.remove()


@pytest.mark.parametrize("program", [twice, a_loop_twice, an_old_value])
def test_the_first_batch_shows_the_output(program):
    net = Parts()
    with DFA(net, feedback={"lif1": MATRIX}) as dfa:
        program(net, [1, 2])[1].backward()
    assert dfa.output == "lif2"
    torch.testing.assert_close([p.grad for p in net.parameters()], right(program, [1, 2]))


def test_values_of_the_network_go_into_a_part_again():
    """The second error goes to the same call, by whatever rule."""
    found = []
    for again in (False, True):
        net = Parts()
        kept = []
        net.lif1.register_forward_hook(lambda *args, kept=kept: kept.append(args[2][0]))
        with DFA(net, output="lif2", feedback={"lif1": MATRIX}):
            out = net(X)
            second = net.decode(kept[0])[0] if again else out
            ((out + second) * W).sum().backward()
        found.append(net.fc1.weight.grad)
    torch.testing.assert_close(*found)


def noise_between(net):
    z = net.encode(X)[0]
    return net.decode(torch.ones(B, 6))[0] + net.decode(z)[0]


def of_all_steps(net):
    spikes = torch.stack([net.encode(k * X)[0] for k in range(2)])
    first = [net.decode(z)[0] for z in spikes]
    return sum(first) + net.decode(spikes.unbind()[0])[0]


def once_for_all(net):
    return net.decode(net.encode(X)[0] + net.encode(X + 1)[0])[0]


@pytest.mark.parametrize("program", [noise_between, of_all_steps, once_for_all])
def test_what_cannot_be_told_raises_an_error(program):
    net = Parts()
    with DFA(net, output="lif2") as dfa:
        for _ in range(2):
            with pytest.raises(OutOfStepError, match="layer 'lif1'"):
                program(net).sum().backward()
            assert all(p.grad is None for p in net.parameters())
        net(X).sum().backward()  # the next batch is none of this one
        assert dfa.feedback["lif1"].shape == (3, 6)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 6), snn.Leaky(0.8, threshold=0.3, init_hidden=True)
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x):
        spk = self.lif(self.fc(x))
        return self.one(spk), self.two(spk)


@pytest.mark.parametrize("evaluated", [False, True])
def test_an_output_that_is_left_out_at_some_steps_is_told_where_layers_are_called_alone(evaluated):
    net = Heads()
    with DFA(net, output=["one", "two"]):
        net(torch.rand(B, 4))[0].sum().backward()  # shows how many numbers each output has
        net.zero_grad()
        reset(net)
        loss = 0
        for k, step in enumerate(torch.rand(4, B, 4)):
            spk = net.lif(net.fc(step))
            if evaluated:
                net.one(spk)  # with its graph
            elif k % 2:
                loss = loss + net.one(spk).sum()
            else:
                loss = loss + net.two(spk).sum()
        if evaluated:
            reset(net)
            spk = net.lif(net.fc(step))
            loss = net.one(spk).sum() + net.two(spk).sum()
        with pytest.raises(OutOfStepError, match=r"layer .* an output not called at"):
            loss.backward()
        assert all(p.grad is None for p in net.parameters())


# -- freezing and thawing -----------------------------------------------------------------------------


class Step(Parts):
    def forward(self, x, mem1, mem2):
        self.spk1, mem1 = self.encode(x, mem1)
        spk2, mem2 = self.decode(self.spk1, mem2)
        return spk2, mem1, mem2


def outputs(net, names, learns):
    """The outputs of four steps, in which the named parameters learn or not; the hidden spikes."""
    mem1, mem2, found = torch.zeros(B, 6), torch.zeros(B, 3), []
    for k, does in enumerate(learns):
        for name in names:
            net.get_parameter(name).requires_grad_(does)
        out, mem1, mem2 = net((k + 1) * X, mem1, mem2)
        found.append((out, net.spk1))
    return found


def loss_of(found, reads):
    return sum((found[k][0] * W).sum() * (k + 1) for k in reads)


def right_of_steps(names, learns, reads):
    net = Step()
    decode = net.decode
    net.decode = lambda z, mem: decode(z.detach().requires_grad_(), mem)
    found = outputs(net, names, learns)
    loss = loss_of(found, reads)
    errors = torch.autograd.grad(loss, [out for out, _ in found], retain_graph=True,
                                 allow_unused=True)  # fmt: skip
    for error, (_, spk) in zip(errors, found, strict=True):
        if error is not None:
            loss = loss + (spk * (error @ MATRIX)).sum()
    loss.backward()
    return [p.grad for p in net.parameters()]


NAMES = [["fc1.weight"], ["fc2.weight", "fc2.bias"], ["fc1.weight", "fc2.weight"]]
LEARNS = [[0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize("learns", LEARNS)
@pytest.mark.parametrize("names", NAMES)
def test_the_gradient_is_that_of_the_steps_in_which_a_parameter_learned(names, learns):
    for reads in ([3], [1, 2], [0, 1, 2, 3]):
        net = Step()
        with DFA(net, output="lif2", feedback={"lif1": MATRIX}):
            loss_of(outputs(net, names, map(bool, learns)), reads).backward()
        torch.testing.assert_close([p.grad for p in net.parameters()],
                                   right_of_steps(names, map(bool, learns), reads))  # fmt: skip


def test_an_error_of_an_early_pass_comes_before_any_gradient():
    net = Step()
    seen = []
    net.fc1.bias.register_hook(seen.append)
    with DFA(net, output="lif2"):
        found = outputs(net, ["fc1.weight"], [False, False, True, True])
        loss = loss_of(found, [1, 2, 3]) + (found[0][0] * float("nan")).sum()
        with pytest.raises(NonFiniteError):
            loss.backward()
        assert all(p.grad is None for p in net.parameters())
        loss_of(outputs(net, ["fc1.weight"], [False, True]), [0, 1]).backward()
    assert seen
    assert all(p.grad is not None for p in net.parameters())
