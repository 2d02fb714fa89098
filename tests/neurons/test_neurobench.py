"""NeuroBench's own harness on a network in all its forms, and the three traps on the way."""

import copy

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_dfa import DFA, ExportError, InputError, fold_normalization, over_time, reset
from snn_dfa.diagnostics import activity, cost
from snn_dfa.neurobench import neurobench_model

neurobench = pytest.importorskip("neurobench.benchmarks")

T, S, F, C = 5, 24, 6, 3


def network(output=False):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(F, 10), nn.BatchNorm1d(10), snn.Leaky(0.9, threshold=0.4, init_hidden=True),
        nn.Linear(10, C), snn.Leaky(0.9, threshold=0.2, init_hidden=True, output=output),
    )  # fmt: skip


def trained():
    """With statistics of its own, and targets of which it gets some right."""
    net = network()
    for _ in range(20):
        net(torch.rand(S, F))
    reset(net)
    return net.eval()


X = (torch.rand(S, T, F, generator=torch.Generator().manual_seed(4)) > 0.5).float()


def counts(net):
    reset(net)
    with torch.no_grad():
        return torch.stack([net(X[:, t]) for t in range(T)]).sum(0)


NET = trained()
Y = counts(NET).argmax(1)
Y[::4] = (Y[::4] + 1) % C  # a quarter is wrong


def measured(model):
    from neurobench.metrics.workload import (
        ActivationSparsity,
        ClassificationAccuracy,
        SynapticOperations,
    )
    from neurobench.processors.postprocessors import ChooseMaxCount

    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    metrics = [ClassificationAccuracy, ActivationSparsity, SynapticOperations]
    found = neurobench.Benchmark(model, loader, [], [ChooseMaxCount()], [[], metrics]).run(
        quiet=True
    )
    operations = found["SynapticOperations"]
    return found["ClassificationAccuracy"], found["ActivationSparsity"], operations["Effective_ACs"]


def ours():
    net = copy.deepcopy(NET)
    with activity(net) as layers, cost(net) as spent:
        counts(net)
    neurons = sum(seen.neurons for seen in layers.values())
    rate = sum(seen.rate * seen.neurons for seen in layers.values()) / neurons
    return 0.75, 1 - rate, spent.synaptic_operations / S


def forms():
    attached = copy.deepcopy(NET)
    DFA(attached)
    removed = copy.deepcopy(NET)
    DFA(removed).remove()
    sequence = over_time(copy.deepcopy(NET))
    DFA(sequence)
    return {"attached": attached, "removed": removed, "folded": fold_normalization(NET),
            "over_time": over_time(copy.deepcopy(NET)), "over_time, attached": sequence}  # fmt: skip


@pytest.mark.parametrize(
    "form", ["attached", "removed", "folded", "over_time", "over_time, attached"]
)
def test_the_harness_gives_our_numbers(form):
    assert measured(neurobench_model(forms()[form])) == pytest.approx(ours(), abs=1e-6)


def test_first_trap_a_folded_copy_is_reset_by_snntorch_too():
    folded = fold_normalization(NET)
    folded(X[:, 0])
    utils.reset(folded)
    assert not folded.get_submodule("2").mem.any()
    from neurobench.models import SNNTorchModel

    net = network(output=True)
    net.load_state_dict(NET.state_dict())
    folded = fold_normalization(net.eval())
    assert measured(SNNTorchModel(folded))[0] == pytest.approx(0.75)


def test_second_trap_a_network_with_states_in_its_output_or_without():
    net = network(output=True)
    net.load_state_dict(NET.state_dict())
    assert measured(neurobench_model(net)) == pytest.approx(ours(), abs=1e-6)
    from neurobench.models import SNNTorchModel

    with pytest.raises(ValueError, match="too many values to unpack"):
        measured(SNNTorchModel(copy.deepcopy(NET)))  # NeuroBench's own does not know it


def test_third_trap_a_sparsity_of_nothing_is_an_error():
    class Whole(nn.Module):
        """Runs its neurons in a way that hooks do not see."""

        def __init__(self):
            super().__init__()
            self.lif = snn.Leaky(0.9, init_hidden=True)

        def forward(self, x):
            return torch.stack([self.lif.forward(step) for step in x.transpose(0, 1)])

    with pytest.raises(InputError, match="would report a sparsity of 0"):
        measured(neurobench_model(Whole(), forward=lambda net, x: net(x)))


class Step(nn.Module):
    """The same network with a forward of its own."""

    def __init__(self):
        super().__init__()
        self.layers = copy.deepcopy(NET)

    def forward(self, x):
        return self.layers(x) + 0


class Loop(Step):
    """And with explicit states and the loop inside."""

    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.lif1, self.fc2, self.lif2 = self.layers
        del self.layers
        self.lif1.init_hidden = self.lif2.init_hidden = False

    def forward(self, x):
        mem1, mem2, spikes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for t in range(x.size(0)):
            spk, mem1 = self.lif1(self.norm(self.fc1(x[t])), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
        return torch.stack(spikes)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("kind", [Step, Loop])
def test_the_form_of_a_network_with_a_forward_of_its_own(kind, attached):
    form = over_time(kind())
    if attached:
        DFA(form)
    model = neurobench_model(form)
    assert measured(model) == pytest.approx(ours(), abs=1e-6)
    assert torch.equal(model(X).sum(1), counts(copy.deepcopy(NET)))


def test_a_loop_inside_the_network():
    model = neurobench_model(
        copy.deepcopy(NET),
        forward=lambda net, batch: torch.stack([net(x) for x in batch.transpose(0, 1)]),
    )
    assert measured(model) == pytest.approx(ours(), abs=1e-6)


def test_mistakes(monkeypatch):
    with pytest.raises(InputError, match=r"expected a batch \[B, T, ...\], got \[3, 6\]"):
        neurobench_model(copy.deepcopy(NET))(torch.rand(3, F))
    monkeypatch.setitem(__import__("sys").modules, "neurobench.models", None)
    with pytest.raises(ExportError, match="pip install neurobench --no-deps"):
        neurobench_model(NET)
