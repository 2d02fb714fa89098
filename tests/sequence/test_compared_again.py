"""A form is compared with its loop again where a later call may take another way."""

from enum import Enum

import pytest
import snntorch as snn
import torch
from sequences import B, C, F, N, T
from torch import nn

from snn_dfa import AttachError, over_time
from snn_dfa.surrogate import fast_sigmoid

pytestmark = pytest.mark.usefixtures("in_torch")
X = torch.rand(2 * T, B, F, dtype=torch.float64)


class Loop(nn.Module):
    """What a call gives at its first steps, or from some step on, may depend on a switch."""

    def __init__(self):
        super().__init__()
        self.lif = snn.Leaky(beta=0.8, threshold=0.2, spike_grad=fast_sigmoid(5))
        self.fc, self.out = nn.Linear(F, N), nn.Linear(N, C)
        self.silent = False
        self.double()

    def forward(self, x, added=None, silent=False):
        mem, results = self.lif.reset_mem(), []
        for t in range(len(x)):
            step = x[t] if added is None else x[t] + added[t]
            spk, mem = self.lif(self.fc(step), self.between(mem, t))
            silenced = (silent or self.silent or self.is_silent()) and t < 2
            results.append(self.out(spk) * (0.0 if silenced else 1.0))
        return torch.stack(results)

    def between(self, mem, t):
        return mem

    def is_silent(self):
        return False


class InEvaluation(Loop):
    def is_silent(self):
        return not self.training


class Truncated(Loop):
    def between(self, mem, t):
        return mem.detach() if t == T + 1 else mem


class ByNumber(Loop):
    """From the third epoch on the first steps are silent; calls are counted."""

    epoch = calls = 0

    def __init__(self):
        super().__init__()
        self.epoch, self.calls, self.mode = 0, 0, Mode.PLAIN

    def is_silent(self):
        self.calls += 1
        return self.epoch > 2 or self.mode is Mode.SILENT


class Mode(Enum):
    PLAIN = 0
    SILENT = 1


CALLS = {
    "epoch": (ByNumber, lambda form: setattr(form._source[0], "epoch", 3) or form(X[:T])),
    "enum": (ByNumber, lambda form: setattr(form._source[0], "mode", Mode.SILENT) or form(X[:T])),
    "longer": (Truncated, lambda form: form(X)),
    "argument": (Loop, lambda form: form(X[:T], silent=True)),
    "attribute": (Loop, lambda form: setattr(form._source[0], "silent", True) or form(X[:T])),
    "evaluation": (InEvaluation, lambda form: form.eval()(X[:T])),
    "inference": (InEvaluation, lambda form: torch.inference_mode()(form.eval())(X[:T])),
}


@pytest.mark.parametrize(("kind", "call"), CALLS.values(), ids=CALLS)
def test_a_call_that_takes_another_way_raises_an_error(kind, call):
    form = over_time(kind())
    assert form(X[:T]).any()
    with pytest.raises(AttachError, match="values"):
        call(form)


def test_a_second_sequence_of_equal_steps_raises_an_error_at_the_first_call():
    zeros = torch.zeros(T, 1, F, dtype=torch.float64)
    with pytest.raises(AttachError, match="other values"):
        over_time(Loop())(X[:T, :1], zeros)


def test_a_call_of_the_same_kind_is_not_compared_again(monkeypatch):
    form, calls = over_time(Loop()), []
    examine = form._examine
    monkeypatch.setattr(form, "_examine", lambda *a: calls.append(len(a[0])) or examine(*a))
    for steps, training in ((T, True), (T, True), (3, True), (T, False), (2 * T, True), (T, False)):
        form.train(training)(X[:steps])
    assert calls == [T, T, 2 * T]


# -- what the network keeps on itself --------------------------------------------------------------


def test_a_counter_is_not_compared_for_ever(monkeypatch):
    form, compared = over_time(ByNumber()), []
    examine = form._examine
    monkeypatch.setattr(form, "_examine", lambda *given: compared.append(1) or examine(*given))
    for _ in range(40):
        form(X[:T])
    assert 1 < len(compared) < 20


class Keeps(Loop):
    """A step, which keeps something on the network."""

    def __init__(self, keep):
        super().__init__()
        self.lif.init_hidden, self.keep = True, keep

    def forward(self, x):
        spk = self.lif(self.fc(x))
        self.keep(self, spk)
        return self.out(spk)


def in_a_list(net, spk):
    net.kept = [*getattr(net, "kept", []), spk]


def in_a_sum(net, spk):
    net.kept = getattr(net, "kept", 0) + spk.mean()


def as_a_number(net, spk):
    net.kept = spk.mean()


def as_a_step(net, spk):
    net.kept = spk


def in_a_running_mean(net, spk):
    net.kept = spk.new_zeros(N) if not hasattr(net, "kept") else net.kept
    net.kept.mul_(0.5).add_(0.5 * spk.detach().mean(0))


@pytest.mark.parametrize("keep", [in_a_list, in_a_sum, as_a_number, in_a_running_mean])
def test_what_is_kept_in_another_form_than_that_of_a_step_raises_an_error(keep):
    with pytest.raises(AttachError, match="keeps 'kept' on its Keeps, which differs"):
        over_time(Keeps(keep))(X)


def test_a_step_that_is_kept_is_the_sequence():
    net = Keeps(as_a_step)
    over_time(net)(X)
    assert net.kept.shape == (2 * T, B, N)
    assert net.kept.any()


class InABuffer(Keeps):
    def __init__(self, keep, first):
        super().__init__(keep)
        self.register_buffer("kept", first)


@pytest.mark.parametrize("keep", [in_a_sum, as_a_number, in_a_running_mean])
def test_a_buffer_is_what_an_attribute_is(keep):
    first = torch.zeros(N if keep is in_a_running_mean else (), dtype=torch.float64)
    net = InABuffer(keep, first.clone())
    with pytest.raises(AttachError, match="keeps 'kept' on its InABuffer, which differs"):
        over_time(net)(X)
    assert torch.equal(net.kept, first)
    over_time(net, check=False)(X)
    assert not torch.equal(net.kept, first)


def test_a_buffer_of_a_module_in_a_sequential_is_one_too():
    net = nn.Sequential(nn.Linear(F, N), MeanOfInputs(), snn.Leaky(0.8, init_hidden=True)).double()
    with pytest.raises(AttachError, match="keeps 'mean' on its MeanOfInputs"):
        over_time(net)(X)


class MeanOfInputs(nn.Module):
    """Changes its buffer in place and gives what it gets."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(N))

    def forward(self, x):
        self.mean.mul_(0.5).add_(x.detach().mean(0))
        return x


def test_buffers_that_may_change_or_that_do_not():
    class Own(InABuffer):
        """A step in a buffer, statistics of a normalisation, states, and unusual constants."""

        def __init__(self):
            super().__init__(as_a_step, torch.zeros(B, N))
            self.norm = nn.BatchNorm1d(F).double()
            self.register_buffer("waves", torch.randn(2, 2, dtype=torch.complex64))
            self.register_buffer("sparse", torch.eye(3).to_sparse())
            self.register_buffer("same", torch.ones(2 * T * B))

        def forward(self, x):
            self.same = self.same.clone()
            return super().forward(self.norm(x))

    net = Own()
    over_time(net)(X)
    assert net.kept.shape == (2 * T, B, N)
    assert net.kept.any()
    assert net.norm.running_mean.any()
    assert net.same.shape == (2 * T * B,)
