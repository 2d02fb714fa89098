"""Tensors that a network or a layer is given, or keeps, and that it changes in place."""

import pytest
import snntorch as snn
import torch
from oracle import Oracle
from torch import nn

from snn_dfa import DFA, AttachError, BackwardError, reset
from snn_dfa.surrogate import fast_sigmoid

T, B = 5, 3
LIF = {"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(2.0)}


def steps(batch):
    return 3 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(batch)).double()


def loss_of(values):
    return sum((v - 0.5).square().sum() for v in values)


def made(make):
    """Return a network whose outputs spike."""
    torch.manual_seed(0)
    net = make().double()
    for weight in net.parameters():
        weight.data += 0.08 * (weight.dim() > 1)
    return net


def assert_as_the_oracle(make, layers, outputs, run=lambda net, x: net(x), **options):
    """Compare two batches; ``run`` returns values, of which the first one are spikes."""
    plain, net = made(make), made(make)
    oracle, dfa = Oracle(plain, layers, outputs), DFA(net, **options)
    for batch in range(2):
        oracle.clear()
        net.zero_grad()
        wanted, got = run(plain, steps(batch)), run(net, steps(batch))
        assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))
        assert torch.stack(got[:T]).gt(0).any()
        loss_of(got).backward()
        feedback = {} if options.get("rule") == "shallow" else dfa.feedback
        for name, grad in oracle.gradients(loss_of(wanted), feedback).items():
            found = net.get_parameter(name).grad
            if grad is None:
                assert found is None or not found.any()
            else:
                torch.testing.assert_close(found, grad, rtol=1e-9, atol=1e-9)


# -- a network, whose neurons are stock ------------------------------------------------------------


class Writing(nn.Module):
    """Takes a step; writes into what it is given."""

    def __init__(self, how):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(**LIF, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(8, 2), snn.Leaky(**LIF, init_hidden=True)
        self.how = how

    def forward(self, x, record, t):
        spk = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        if self.how == "record":
            record[t] = spk
        elif self.how == "membranes":
            record[t] = self.lif2.mem
        elif self.how == "part":
            record[t].copy_(spk)
        elif self.how == "trace":
            record[0].mul_(0.9).add_(spk)
        else:
            record.add_(spk)
        return record if self.how == "sum returned" else spk


@pytest.mark.parametrize("how", ["record", "membranes", "part", "trace", "sum", "sum returned"])
def test_a_network_writes_into_a_tensor(how):
    def run(net, x):
        reset(net)
        record = x.new_zeros(T, B, 2)
        spikes = [net(step, record, t) for t, step in enumerate(x)]
        if how == "sum returned":
            assert all(each is record for each in spikes)
        return [*(each.clone() for each in spikes), *record]

    assert_as_the_oracle(lambda: Writing(how), ["lif1"], ["lif2"], run)


class WithStates(nn.Module):
    """Writes its next states into the last ones."""

    def __init__(self, write):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(**LIF)
        self.fc2, self.lif2 = nn.Linear(8, 2), snn.Leaky(**LIF)
        self.write = write

    def forward(self, x, mem1, mem2):
        spk, new1 = self.lif1(self.fc1(x), mem1)
        out, new2 = self.lif2(self.fc2(spk), mem2)
        self.write(mem1, new1)
        self.write(mem2, new2)
        return out


@pytest.mark.parametrize(
    "write",
    [lambda old, new: old.copy_(new), lambda old, new: old.__setitem__(slice(None), new)],
    ids=["copy_", "[:]"],
)
def test_a_network_writes_states_into_tensors(write):
    def run(net, x):
        mem1, mem2 = x.new_zeros(B, 8), x.new_zeros(B, 2)
        return [net(step, mem1, mem2) for step in x] + [mem2]

    assert_as_the_oracle(lambda: WithStates(write), ["lif1"], ["lif2"], run)


class Masking(WithStates):
    """Changes the states that it is given, and returns the next ones."""

    def forward(self, x, mem1, mem2):
        for mem in (mem1, mem2):
            self.write(mem)
        spk, mem1 = self.lif1(self.fc1(x), mem1)
        spk, mem2 = self.lif2(self.fc2(spk), mem2)
        return spk, 0.9 * mem1, 0.9 * mem2


@pytest.mark.parametrize(
    "write", [lambda mem: mem.mul_(0.5), lambda mem: mem[:, :1].zero_()], ids=["mul_", "mask"]
)
def test_a_network_changes_the_states_that_it_is_given(write):
    def run(net, x):
        mems, out, record = [x.new_zeros(B, 8), x.new_zeros(B, 2)], [], []
        for step in x:
            spk, *mems = net(step, *mems)
            out.append(spk)
            record += [mem.clone() for mem in mems]
        return [*out, *record, *mems]

    assert_as_the_oracle(lambda: Masking(write), ["lif1"], ["lif2"], run)


def test_the_program_changes_a_state_after_it_has_come_in():
    class Decayed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(**LIF)
            self.fc2, self.lif2 = nn.Linear(8, 2), snn.Leaky(**LIF)

        def forward(self, x):
            mem1, mem2, out = x.new_zeros(B, 8), x.new_zeros(B, 2), []
            for step in x:
                last1, last2 = 0.9 * mem1, 0.9 * mem2
                spk, mem1 = self.lif1(self.fc1(step), last1)
                spk, mem2 = self.lif2(self.fc2(spk), last2)
                out += [spk, last1.mul_(5)[:, :2], last2.mul_(3)]
            return out

    assert_as_the_oracle(Decayed, ["lif1"], ["lif2"])


# -- layers with a forward of their own ------------------------------------------------------------


class Own(snn.SpikingNeuron):
    """A neuron of the user's that changes its membrane in place."""

    def __init__(self, how):
        super().__init__(threshold=0.3, spike_grad=fast_sigmoid(2.0))
        self.how, self.kept, self.gain = how, None, nn.Parameter(torch.tensor(0.8))

    def forward(self, current, mem):
        if self.how == "not in place":
            mem = 0.8 * mem + self.gain * current
        elif self.how == "masked":
            mem[:, ::2] = 0
            mem = 0.8 * mem + self.gain * current
        elif self.how == "kept":
            if self.kept is None:
                self.kept = torch.zeros_like(current)
            mem = self.kept.mul_(0.8).add_(self.gain * current)
        elif self.how == "detached":
            self.last = mem.detach_()
            mem = 0.8 * mem + self.gain * current
        else:
            mem.mul_(0.8).add_(self.gain * current)
        spk = self.fire(mem)
        if self.how == "reset":
            mem.sub_(0.3 * spk.detach())
        return spk if self.how == "not returned" else (spk, mem)


class OwnNet(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)
        self.lif1, self.lif2 = Own(how), Own(how)
        self.how = how

    def forward(self, x):
        mems, out, record = [x.new_zeros(B, 8), x.new_zeros(B, 2)], [], []
        self.lif1.kept = self.lif2.kept = None
        for step in x:
            spk = step
            for i, (fc, lif) in enumerate([(self.fc1, self.lif1), (self.fc2, self.lif2)]):
                last = mems[i]
                spk = lif(fc(spk), last)
                if self.how == "detached":
                    record.append(last[:, :2])
                if self.how != "not returned":
                    spk, mems[i] = spk
            out.append(spk)
            record += [mem.clone()[:, :2] for mem in mems]
        return out + record


@pytest.mark.parametrize("rule", ["error", "shallow"])
@pytest.mark.parametrize("how", ["masked", "kept", "returned", "not returned", "reset", "detached"])
def test_neurons_change_their_states_in_place(how, rule):
    assert_as_the_oracle(lambda: OwnNet(how), ["lif1"], ["lif2"], rule=rule)


class Integrator(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.fc, self.how, self.mem = nn.Linear(8, 2), how, None

    def forward(self, x, mem):
        if self.how == "kept":
            mem = self.mem = self.fc(x) if self.mem is None else self.mem
        mem.mul_(0.9).add_(self.fc(x))
        return mem.clone() if self.how == "not returned" else mem


class Integrated(nn.Module):
    def __init__(self, how, records=torch.clone):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(**LIF, init_hidden=True)
        self.out, self.records = Integrator(how), records

    def forward(self, x):
        reset(self)
        self.out.mem, mem, out = None, x.new_zeros(B, 2), []
        for step in x:
            new = self.out(self.lif1(self.fc1(step)), mem)
            mem = mem if self.out.how == "not returned" else new
            out.append(self.records(new))
        return [*out, mem]


@pytest.mark.parametrize("records", [torch.clone, lambda mem: mem], ids=["clones", "itself"])
@pytest.mark.parametrize("how", ["kept", "returned", "not returned"])
def test_an_output_changes_its_state_in_place(how, records):
    assert_as_the_oracle(lambda: Integrated(how, records), ["lif1"], ["out"], output="out")


class Block(nn.Module):
    """Writes its spikes, or its membrane, into a tensor that it is given."""

    def __init__(self, inputs, outputs, how):
        super().__init__()
        self.fc, self.how = nn.Linear(inputs, outputs), how
        self.lif = snn.Leaky(**LIF, init_hidden=True)

    def forward(self, x, out):
        spk = self.lif(self.fc(x))
        if self.how == "sum":
            out.add_(spk)
        elif self.how == "record":
            out[0] = self.lif.mem
        elif self.how == "part":
            out[0].copy_(spk)
        return spk


class Blocks(nn.Module):
    """The next block reads what the first one has written; the loss what the last one has."""

    def __init__(self, hidden, output):
        super().__init__()
        self.block1, self.block2 = Block(4, 8, hidden), Block(8, 2, output)

    def forward(self, x):
        reset(self)
        written, out, total = x.new_zeros(1, B, 8), [], x.new_zeros(B, 2)
        for step in x:
            given = written[0] if self.block1.how == "sum" else written
            spk = self.block1(step, given)
            spk = spk if self.block1.how == "" else written[0].clone()
            out.append(self.block2(spk, total))
        return [*out, total]


@pytest.mark.parametrize(
    ("hidden", "output"), [("sum", ""), ("record", ""), ("part", ""), ("", "sum"), ("sum", "sum")]
)
def test_a_block_writes_into_a_tensor(hidden, output):
    names = {"hidden": ["block1"], "output": "block2"}
    assert_as_the_oracle(lambda: Blocks(hidden, output), ["block1"], ["block2"], **names)


def assert_as_outside(in_place, outside, **options):
    """Compare a network that changes values in place with one that does not."""
    found = []
    for make in (outside, in_place):
        net = made(make)
        dfa = DFA(net, **options)
        for batch in range(2):
            net.zero_grad()
            values = net(steps(batch))
            loss_of(values).backward()
        assert torch.stack(values[:T]).gt(0).any()
        found.append({n: p.grad for n, p in net.named_parameters() if p.requires_grad})
        dfa.remove()
    assert all(g.any() for g in found[0].values())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", ["kept", "returned", "not returned"])
def test_credit_at_the_current_of_neurons_that_change_their_states_in_place(how):
    def make(how):
        net = OwnNet(how)
        net.lif1.gain.requires_grad_(False)
        net.lif2.gain.requires_grad_(False)
        return net

    assert_as_outside(lambda: make(how), lambda: make("not in place"), credit="current")


@pytest.mark.parametrize("output", [False, True])
def test_a_block_writes_into_a_part_of_a_tensor(output):
    class Parts(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.in_place = in_place
            self.block1 = Block(4, 8, "sum" if in_place and not output else "")
            self.block2 = Block(8, 2, "sum" if in_place and output else "")

        def forward(self, x):
            reset(self)
            hidden, outputs, out = x.new_zeros(T, B, 8), x.new_zeros(T, B, 2), []
            for t, step in enumerate(x):
                spk = self.block1(step, hidden[t])
                spk = hidden[t].clone() if self.in_place and not output else spk
                out.append(self.block2(spk, outputs[t]))
            return [*outputs.clone()] if self.in_place and output else out

    names = {"hidden": ["block1"], "output": "block2"}
    assert_as_outside(lambda: Parts(True), lambda: Parts(False), **names)


# -- what is not known -----------------------------------------------------------------------------


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(8, 8), snn.Leaky(**LIF, init_hidden=True)

    def forward(self, x):
        return self.lif(self.fc(x.mul_(0.5)))


class Residual(nn.Module):
    """A block overwrites another layer's spikes."""

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(**LIF, init_hidden=True)
        self.block, self.fc2 = Overwriting(), nn.Linear(8, 2)
        self.lif2, self.read = snn.Leaky(**LIF, init_hidden=True), read

    def forward(self, x):
        reset(self)
        out, spk = [], x.new_zeros(B, 8)
        for step in x:
            spk = self.lif1(self.fc1(step) + (spk if self.read == "own" else 0))
            if self.read == "before":
                out.append(spk[:, :2].clone())
            after = self.block(spk)
            out.append(self.lif2(self.fc2(after + spk)))
            if self.read == "loss":
                out.append(spk[:, :2].clone())
        return out


@pytest.mark.parametrize("read", ["next layer", "before"])
def test_a_layer_reads_what_another_one_has_overwritten(read):
    names = {"hidden": ["lif1", "block"], "output": "lif2"}
    assert_as_the_oracle(lambda: Residual(read), ["lif1", "block"], ["lif2"], **names)


def test_a_loss_or_its_own_layer_reads_what_another_one_has_overwritten():
    net = Residual("loss").double()
    DFA(net, hidden=["lif1", "block"], output="lif2")
    loss = loss_of(net(steps(0)))
    with pytest.raises(BackwardError, match=r"'block' has changed in place a value of shape"):
        loss.backward()
    assert all(p.grad is None for p in net.parameters())
    net = Residual("own").double()
    DFA(net, hidden=["lif1", "block"], output="lif2")
    with pytest.raises(AttachError, match=r"'lif1' gets an earlier value .* 'block' was given"):
        net(steps(0))
