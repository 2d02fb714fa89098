"""What a training step costs: computed, beside what is measured and what loops count."""

from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import InputError, over_time
from snn_dfa.diagnostics import EnergyConstants, training_cost
from snn_dfa.experiments.data import Part, Splits
from snn_dfa.experiments.recipes import RECIPES
from snn_dfa.experiments.studies.comparison import kept_megabytes
from snn_dfa.experiments.train.trainer import Trainer


def trainer(recipe, rule, batch, **changed):
    settings = replace(RECIPES[recipe].settings, batch_size=batch, **changed)
    generator = torch.Generator().manual_seed(0)
    part = Part(torch.rand(batch, 1, 28, 28, generator=generator), torch.arange(batch) % 10)
    return Trainer(settings, rule, Splits(part, part, part))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "rule", "changed"),
    [
        *(
            ("deep", rule, {})
            for rule in ("bptt", "fa", "dfa", "sign", "target", "local", "shallow")
        ),
        ("deep", "dfa", {"credit": "current"}),
        ("deep", "dfa", {"credit": "trace", "feedback": "gaussian"}),
        *(("conv", rule, {}) for rule in ("bptt", "fa", "dfa", "target", "local", "shallow")),
        ("conv", "dfa", {"feedback": "weight-mirror"}),
        ("conv", "dfa", {"credit": "current"}),
    ],
)
def test_what_is_kept_is_what_is_measured(recipe, rule, changed):
    batch = 64 if recipe == "deep" else 8
    measured = kept_megabytes(trainer(recipe, rule, batch, **changed))
    computed = trainer(recipe, rule, batch, **changed).cost(batch).kept_bytes / 1e6
    assert computed == pytest.approx(measured, rel=0.1)


def network():
    return nn.Sequential(
        nn.Linear(5, 7), snn.Leaky(0.9, threshold=0.1, init_hidden=True),
        nn.Linear(7, 6), snn.Leaky(0.9, threshold=0.1, init_hidden=True),
        nn.Linear(6, 3), snn.Leaky(0.9, threshold=0.1, init_hidden=True),
    )  # fmt: skip


X = torch.rand(4, 2, 5, generator=torch.Generator().manual_seed(1)) + 0.1  # T=4, B=2
RULES = ("bptt", "fa", "dfa", "sdfa", "drtp", "local", "shallow")


def costs(**options):
    return training_cost(over_time(network()), lambda net: net(X), RULES, **options)


def test_operations_are_those_that_loops_count():
    net, found = network(), {}
    form = over_time(net)
    costs_ = training_cost(form, lambda net: net(X), RULES)
    spikes, x = [], X
    for layer in list(form)[:4]:
        x = layer(x)
        spikes.append(x)
    fired = int(spikes[1].sum()) * 6 + int(spikes[3].sum()) * 3
    values = 4 * 2 * (7 + 6 + 3)
    for rule, cost in costs_.items():
        found[rule] = cost
        assert cost.forward.acs == fired
        assert cost.forward.macs == 4 * 2 * 5 * 7 + values
    assert found["bptt"].backward.macs == values + 4 * 2 * (7 * 6 + 6 * 3)
    assert found["fa"].backward == found["bptt"].backward
    assert found["dfa"].backward.macs == values + 4 * 2 * (7 + 6) * 3
    assert found["local"].backward.macs == found["dfa"].backward.macs
    assert found["local"].backward.acs == int(spikes[1].sum() + spikes[3].sum()) * 3  # readouts
    assert found["shallow"].backward.macs == 4 * 2 * 3
    assert found["dfa"].update.macs == 4 * 2 * 5 * 7
    assert found["dfa"].update.acs == fired
    assert found["shallow"].update.acs == int(spikes[3].sum()) * 3


class Readout(nn.Module):
    """A readout that is called at each step, or once for all steps."""

    def __init__(self, at_once, dim=0):
        super().__init__()
        self.fc1, self.norm, self.lif1 = nn.Linear(5, 7), nn.BatchNorm1d(7), snn.Leaky(0.9, 0.1)
        self.fc2, self.at_once, self.dim = nn.Linear(7, 3), at_once, dim

    def forward(self, x):
        mem, spikes = self.lif1.init_leaky(), []
        for step in x:
            spk, mem = self.lif1(self.norm(self.fc1(step)), mem)
            spikes.append(spk)
        if self.at_once:
            return self.fc2(torch.stack(spikes, self.dim))
        return torch.stack([self.fc2(spk) for spk in spikes])


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("steps", [1, 2, 4])  # with as many steps as samples, too
def test_a_readout_of_all_steps_costs_what_it_costs_step_by_step(dim, steps):
    torch.manual_seed(0)
    net, rules = Readout(at_once=False), ("bptt", "dfa", "local")
    wanted = training_cost(net, lambda net: net(X[:steps]), rules)
    net.at_once, net.dim = True, dim
    for rule, cost in training_cost(net, lambda net: net(X[:steps]), rules).items():
        for name in ("forward", "backward", "update", "feedback_bytes", "chain"):
            assert getattr(cost, name) == getattr(wanted[rule], name)
    assert wanted["dfa"].backward.macs == steps * 2 * 7 * (1 + 3)


def test_the_network_is_left_as_it_was():
    net = network().insert(1, nn.BatchNorm1d(7))
    net(X[0])  # the neurons have states
    before = {name: (b, b.clone()) for name, b in net.named_buffers()}
    training_cost(net, lambda net: [net(x) for x in X])
    for name, buffer in net.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1])


def test_bytes_of_feedback_and_of_transported_weights():
    found = costs()
    of = {rule: (c.feedback_bytes // 4, c.transport_bytes // 4) for rule, c in found.items()}
    assert of == {
        "bptt": (0, 7 * 6 + 6 * 3), "fa": (7 * 6 + 6 * 3, 0), "dfa": (3 * 13, 0),
        "sdfa": (3 * 13, 0), "drtp": (3 * 13, 0), "local": (3 * 13, 0), "shallow": (0, 0),
    }  # fmt: skip
    assert costs(feedback="shared")["dfa"].feedback_bytes == 4 * 3 * 7
    weights = 4 * (7 * 6 + 6 * 3)
    for feedback in ("kolen-pollack-product", "weight-mirror"):
        assert costs(feedback=feedback)["dfa"].feedback_bytes == weights
    pfa = costs(feedback="product-feedback-alignment")["fa"].feedback_bytes
    assert pfa == 4 * (weights + 4 * (6 * 6 + 3 * 3))
    for rule in ("fa", "dfa"):
        of = costs(feedback="transpose")[rule], costs(feedback="sign-symmetry")[rule]
        assert [c.feedback_bytes for c in of] == [0, 0]
        assert [c.transport_bytes for c in of] == [weights, weights // 32]


def test_each_samples_own_way_back():
    """One product of each weight above for a sample, and not one of outputs for each step."""
    fixed, mirror = costs()["dfa"], costs(feedback="weight-mirror")["dfa"]
    through, gates = 4 * 2 * (7 + 6 + 3), 4 * 2 * 6
    differences = 4 * 2 * 6 * 3
    assert mirror.backward.macs == through + gates + 2 * (7 * 6 + 6 * 3) + differences
    assert mirror.update.macs == fixed.update.macs + 3 * 64 * (7 * 6 + 6 * 3) / 8
    assert mirror.kept_bytes == fixed.kept_bytes
    assert mirror.chain == 4 + 2 + 4


def test_the_chain_of_dependent_steps():
    """Through T=4 steps and three layers, or through one layer after a projection."""
    chains = {rule: (c.chain, c.waits) for rule, c in costs().items()}
    assert chains == {
        "bptt": (7, True), "fa": (7, True), "dfa": (5, True), "sdfa": (5, True),
        "drtp": (5, False), "local": (6, False), "shallow": (4, False),
    }  # fmt: skip
    assert costs(credit="current")["dfa"].chain == 2
    assert costs(credit="online")["dfa"].chain == 2
    assert costs(credit="current")["bptt"].chain == 7


def test_online_keeps_a_step_and_traces():
    def run(net):
        for x in X:
            net(x.clone())  # a view would count as all that it is a view of

    found = training_cost(network(), run, ["dfa"], "trace")["dfa"]
    assert found.kept_bytes == 4 * 2 * (5 + 7 + 7 + 6 + 6 + 3)
    assert found.trace_bytes == 4 * 2 * (5 + 7 + 6)
    assert found.feedback_bytes == 4 * 3 * 13


def test_energy_is_operations_and_traffic_times_constants():
    cost = costs()["dfa"]
    total = cost.forward + cost.backward + cost.update
    free = cost.energy(EnergyConstants(mac=2.0, ac=0.5, byte=0.0))
    assert free == pytest.approx((2 * total.macs + 0.5 * total.acs) * 1e-12)
    assert cost.energy(EnergyConstants(0, 0, 1.0)) == pytest.approx(cost.memory_traffic * 1e-12)


def test_what_cannot_be_watched_is_told():
    with pytest.raises(InputError, match=r"rules: expected some of bptt, .*, got 'hebb'"):
        training_cost(network(), lambda net: None, ["hebb"])
    with pytest.raises(InputError, match="run: expected a function that runs a spiking layer"):
        training_cost(network(), lambda net: None)
