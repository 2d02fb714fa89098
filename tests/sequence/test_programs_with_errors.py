"""Programs that cannot run once on T * B samples: each raises an error, and nothing is changed."""

import copy
import threading
from dataclasses import dataclass

import pytest
import snntorch as snn
import torch
from own_networks import Hidden, Inside, inputs, linear
from sequences import B, C, F, N, T
from torch import nn

from snn_dfa import AttachError, DFAError, InputError, over_time, reset

pytestmark = pytest.mark.usefixtures("in_torch")


class MixesTheBatch(Hidden):
    def forward(self, x):
        spk = self.lif(self.fc(x))
        return self.lif_out(self.out(spk - spk.mean(0)))


class CountsSteps(Hidden):
    number = 0

    def forward(self, x):
        self.number += 1
        return self.lif_out(self.out(self.lif(self.fc(x)) * self.number))


class KeepsATrace(Hidden):
    trace = None

    def forward(self, x):
        spk = self.lif(self.fc(x))
        self.trace = spk if self.trace is None else 0.5 * self.trace + spk
        return self.lif_out(self.out(self.trace))


class FeedsBack(Hidden):
    def __init__(self):
        super().__init__()
        self.back, self.last = linear(C, N), torch.zeros(1, C, dtype=torch.float64)

    def forward(self, x):
        spk = self.lif(self.fc(x) + self.back(self.last))
        self.last = self.lif_out(self.out(spk))
        return self.last


class FeedsBackInTheLoop(Inside):
    last = 0.0

    def current(self, t, step):
        return self.fc(step) + self.last

    def result(self, spikes):
        self.last = spikes[-1].sum(1, keepdim=True)
        return super().result(spikes)


class DrawsNumbers(Hidden):
    def forward(self, x):
        return self.lif_out(self.out(self.lif(self.fc(x)) * torch.rand_like(x[:, :1])))


class LooksBefore(Hidden):
    def forward(self, x):
        return self.lif_out(self.out(self.lif(self.fc(x + self.lif.mem.sum()))))


class SetsAState(Hidden):
    def forward(self, x):
        spk = self.lif(self.fc(x))
        self.lif.mem = 0.5 * self.lif.mem
        return self.lif_out(self.out(spk))


class UsesANeuronTwice(Hidden):
    def forward(self, x):
        return self.lif_out(self.out(self.lif(self.lif(self.fc(x)))))


class Branches(Hidden):
    def forward(self, x):
        spk = self.lif(self.fc(x))
        return self.lif_out(self.out(2 * spk if spk.sum() > 3 else spk))


class FixesTheBatch(Hidden):
    def forward(self, x):
        return self.lif_out(self.out(self.lif(self.fc(x)).view(B, -1)))


class ReturnsAMean(Hidden):
    def forward(self, x):
        spk = super().forward(x)
        return spk, spk.mean()


class TakesNothing(Hidden):
    def forward(self, x):
        return self.lif_out(self.out(self.lif(self.fc(x[:, :2]))))


class SumsOverTime(Inside):
    def result(self, spikes):
        return sum(spikes)


class ReturnsAList(Inside):
    def result(self, spikes):
        return spikes


@dataclass
class Record:
    spikes: torch.Tensor


class ReturnsAnObject(Inside):
    def result(self, spikes):
        return Record(super().result(spikes))


class ReturnsAnObjectAtEachStep(Hidden):
    def forward(self, x):
        return Record(super().forward(x))


class WeighsSteps(Inside):
    def current(self, t, step):
        return self.fc(step) * (t + 1)


class Delays(Inside):
    """Hands on the spikes of three steps before."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def current(self, t, step):
        self.kept = [*(self.kept if t else []), self.fc(step)]
        return self.kept[t - 3] if t >= 3 else 0 * self.kept[t]


class HasAParameterOfEachStep(Inside):
    """All of them are zero when they are made."""

    def __init__(self):
        super().__init__()
        self.of_step = nn.Parameter(torch.zeros(T, N))

    def current(self, t, step):
        return self.fc(step) + self.of_step[t]


class KeepsAMeanInTraining(Inside):
    mean = 0.0

    def current(self, t, step):
        current = self.fc(step)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * current.detach().mean(0)
        return current - self.mean


class DropsAndMixesInTraining(Hidden):
    def forward(self, x):
        current = self.fc(nn.functional.dropout(x, 0.1, self.training))
        if self.training:
            current = current - current.mean(0)
        return self.lif_out(self.out(self.lif(current)))


class DropsAndKeepsATraceInTraining(Hidden):
    trace = 0.0

    def forward(self, x):
        current = self.fc(nn.functional.dropout(x, 0.1, self.training))
        if self.training:
            self.trace = 0.5 * self.trace + current.detach()
        return self.lif_out(self.out(self.lif(current - self.trace)))


class MixesUpInTraining(Hidden):
    def forward(self, x):
        if self.training:
            x = 0.9 * x + 0.1 * x[torch.randperm(len(x))]
        return super().forward(x)


class DetachesAState(Hidden):
    def forward(self, x):
        snn.Leaky.detach_hidden()
        return super().forward(x)


class ReadsNumbers(Hidden):
    def forward(self, x):
        spk = self.lif(self.fc(x))
        return self.lif_out(self.out(2 * spk if spk.detach().numpy().sum() > 3 else spk))


class FixedSteps(Inside):
    def forward(self, x):
        return super().forward(x.expand(25, *x.shape))


DIFFERS = "in the loop over time: result 0"
ERRORS = {
    MixesTheBatch: DIFFERS,
    CountsSteps: DIFFERS,
    KeepsATrace: DIFFERS,
    FeedsBack: DIFFERS,
    DrawsNumbers: DIFFERS,
    LooksBefore: DIFFERS,
    WeighsSteps: DIFFERS,
    FeedsBackInTheLoop: "in the loop over time: a RuntimeError in the second call",
    SetsAState: "sets the state 'mem' of a Leaky, which has run over all steps by then",
    UsesANeuronTwice: "a Leaky that is used twice",
    Delays: DIFFERS,
    HasAParameterOfEachStep: DIFFERS,
    KeepsAMeanInTraining: DIFFERS,
    DropsAndMixesInTraining: DIFFERS,
    DropsAndKeepsATraceInTraining: DIFFERS,
    MixesUpInTraining: DIFFERS,
    DetachesAState: "gives the values of its loop, and other gradients, such as that of 'fc.weight'",
    ReadsNumbers: "reads a number off its samples",
    Branches: "reads a number off its samples",
    FixesTheBatch: r"but not all T \* B = 7 \* 3 in one call",
    ReturnsAMean: r"returned shape \[\], expected \[21, ...\]; leave the first dimension",
    TakesNothing: r"takes neither a step \[B, ...\] of the sequence nor the sequence",
    SumsOverTime: r"returned shape \[21, 3\], expected \[1, 21, ...\]; return torch.stack\(spikes\)",
    ReturnsAList: r"return torch.stack\(spikes\), with time as the first dimension",
    ReturnsAnObject: "an object of type Record, .* return a NamedTuple or a dictionary",
    ReturnsAnObjectAtEachStep: "an object of type Record, .* return a NamedTuple or a dictionary",
    FixedSteps: r"runs its neurons 25 times, .* `for t in range\(x.size\(0\)\)`",
}


@pytest.mark.parametrize("program", ERRORS, ids=lambda p: p.__name__)
def test_an_error_says_what_to_do(program):
    net, x = program(), inputs()
    before, seen = copy.deepcopy(net.state_dict()), set(vars(net))
    state = torch.get_rng_state()
    with pytest.raises(DFAError, match=ERRORS[program]):
        over_time(net)(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert set(vars(net)) == seen


def test_without_the_check_the_program_runs_as_it_is():
    assert over_time(DrawsNumbers(), check=False)(inputs()).shape == (T, B, C)
    with pytest.raises(AttachError, match="runs its neurons 25 times"):
        over_time(FixedSteps(), check=False)(inputs())


def test_what_is_no_network_of_single_steps_is_named():
    whole = nn.Module()
    whole.lif = snn.LeakyParallel(4, 4)
    with pytest.raises(AttachError, match="'lif' of type LeakyParallel takes a whole sequence"):
        over_time(whole)
    with pytest.raises(AttachError, match="expected a network, got a Leaky"):
        over_time(snn.Leaky(0.9))
    with pytest.raises(InputError, match=r"add the time steps, as with encoding.constant"):
        over_time(Hidden())(torch.rand(B, F))


def sequential():
    return nn.Sequential(linear(F, N), snn.Leaky(0.9, init_hidden=True))


class Named(Hidden):
    def forward(self, spikes, x=1.0):
        return super().forward(spikes * x)


@pytest.mark.parametrize("make", [Hidden, sequential])
def test_what_is_no_tensor_is_named(make):
    x = inputs()
    for given, name in (({"x": x}, "a dict"), ([x], "a list"), (None, "none")):
        with pytest.raises(InputError, match=rf"first argument, got {name}; give the sequence"):
            over_time(make())(given)


def test_the_sequence_may_come_by_the_networks_own_name():
    x = inputs()
    for net, name in ((Named(), "spikes"), (Hidden(), "x"), (sequential(), "input")):
        form = over_time(net)
        wanted = form(x)
        assert torch.equal(form(**{name: x}), wanted)
        assert torch.equal(form(x=x), wanted)


@pytest.mark.parametrize("what", [threading.Lock, lambda: (i for i in range(3))])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_what_cannot_be_copied_is_named(what, inner, check):
    net = Hidden()
    (net.fc if inner else net).kept = what()
    name = "Linear.kept" if inner else "Hidden.kept"
    with pytest.raises(AttachError, match=rf"over_time: cannot copy {name} \(TypeError: "):
        over_time(net, check=check)(inputs())


def test_graphs_of_an_earlier_loop_may_be_kept_in_lists():
    net, x = Hidden(), inputs()
    spikes = [net(step) for step in x]
    net.kept = {"spikes": spikes}
    assert spikes[0].requires_grad
    assert torch.equal(over_time(net)(x), torch.stack(spikes))


@pytest.mark.parametrize("make", [Hidden, sequential])
def test_a_form_whose_network_has_changed(make):
    net = make()
    form, x = over_time(net), inputs()
    form(x)
    name = next(iter(net._modules))
    net._modules[name] = linear(F, N)
    with pytest.raises(AttachError, match="one of its layers replaced"):
        form(x)
    net = make()
    form = over_time(net)
    nn.utils.parametrizations.weight_norm(net._modules[name])
    with pytest.raises(AttachError, match="a Linear of the network has been changed"):
        form(x)
    assert over_time(net)(x).isfinite().all()


class HasParametersOfARange(Hidden):
    """Its probability is close to one, its gain is the square root of a number close to zero."""

    def __init__(self):
        super().__init__()
        self.probability = nn.Parameter(torch.tensor(0.95, dtype=torch.float64))
        self.small = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, x):
        if not 0 <= self.probability.detach() <= 1:
            raise ValueError("a probability")
        gain = (1 + self.small).sqrt() * self.probability
        return self.lif_out(self.out(gain * self.lif(self.fc(x))))


def test_parameters_are_shaken_within_their_range():
    x = inputs()
    net = HasParametersOfARange()
    wanted = torch.stack([copy.deepcopy(net)(step) for step in x[:1]])
    assert torch.equal(over_time(net)(x)[:1], wanted)


# -- hooks of others --------------------------------------------------------------------------------


def hooked_network(kind):
    def lif():
        return snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1, self.fc2, self.lif2 = (
                nn.Linear(4, 6),
                lif(),
                nn.Linear(6, 3),
                lif(),
            )

        def forward(self, x):
            return self.lif2(self.fc2(self.lif1(self.fc1(x))))

    torch.manual_seed(0)
    return Own() if kind == "own" else nn.Sequential(nn.Linear(4, 6), lif(), nn.Linear(6, 3), lif())


def scaled(module, args, output):
    return output * 0.5


@pytest.mark.parametrize("kind", ["sequential", "own"])
@pytest.mark.parametrize("before", [False, True])
def test_a_hook_on_a_neuron_that_the_form_does_not_call_is_an_error(kind, before):
    net = hooked_network(kind)
    neuron = next(m for m in net.modules() if isinstance(m, snn.Leaky))
    form = None if before else over_time(net)
    handle = neuron.register_forward_hook(scaled)
    x = torch.rand(3, 2, 4)
    with pytest.raises(AttachError, match="a Leaky has a forward hook"):
        (form or over_time(net))(x)
    handle.remove()
    assert (form or over_time(net))(x).shape == (3, 2, 3)


@pytest.mark.parametrize("kind", ["sequential", "own"])
def test_hooks_on_what_the_form_calls_are_those_of_the_loop(kind):
    net = hooked_network(kind)
    layer = next(m for m in net.modules() if isinstance(m, nn.Linear))
    layer.register_forward_hook(scaled)
    x = 4 * torch.rand(5, 2, 4)
    wanted = torch.stack([net(step) for step in x])
    reset(net)
    assert wanted.any()
    torch.testing.assert_close(over_time(net)(x), wanted)
    if kind == "sequential":
        net.register_forward_hook(scaled)
        with pytest.raises(AttachError, match="a Sequential has a forward hook"):
            over_time(net)(x)
