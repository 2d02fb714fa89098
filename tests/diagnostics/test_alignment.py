"""Angles between gradients, what is sent, and what a sample costs."""

import copy
import math

import pytest
import snntorch as snn
import torch
from problems import problem
from torch import nn

from snn_dfa import DFA, InputError, diagnostics, over_time, reset
from snn_dfa.diagnostics import (
    angle,
    cost,
    feedback_angles,
    gradient_angles,
    gradient_report,
    projected_errors,
)
from snn_dfa.surrogate import fast_sigmoid

X = torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0])


def network(*extra):
    torch.manual_seed(0)
    neuron = {"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(5), "init_hidden": True}
    net = nn.Sequential(
        nn.Linear(5, 12), nn.BatchNorm1d(12), *extra, snn.Leaky(**neuron),
        nn.Linear(12, 8), snn.Leaky(**neuron), nn.Linear(8, 3), snn.Leaky(**neuron),
    )  # fmt: skip
    with torch.no_grad():
        net[-2].weight.mul_(3)
    return net


def loss(net):
    reset(net)
    return nn.functional.cross_entropy(torch.stack([net(x) for x in X]).sum(0), Y)


def test_angle():
    a = torch.tensor([1.0, 0.0])
    assert angle(a, torch.tensor([1.0, 1.0])) == pytest.approx(45)
    assert angle(a, -3 * a) == 180
    assert math.isnan(angle(a, torch.zeros(2)))


def test_gradient_angles_by_hand():
    net = network()
    with DFA(net) as dfa:
        loss(net).backward()
        mine = {n: m.weight.grad.clone() for n, m in net.named_children() if n in "0357"}
        mine = {n: torch.cat([net.get_submodule(n).weight.grad.flatten(),
                              net.get_submodule(n).bias.grad]) for n in ("0", "3", "5")}  # fmt: skip
        got = gradient_angles(dfa, loss)
    net.zero_grad()
    loss(net).backward()
    assert list(got) == ["0", "3", "5"]
    for name in mine:
        module = net.get_submodule(name)
        true = torch.cat([module.weight.grad.flatten(), module.bias.grad])
        assert got[name] == pytest.approx(angle(mine[name], true), abs=0.05)
    assert got["5"] == 0.0
    assert 1 < got["0"] < 179


def test_a_dfa_that_was_removed_has_no_angles():
    net = network()
    dfa = DFA(net)
    loss(net).backward()
    dfa.remove()
    with pytest.raises(InputError, match="expected a DFA that is attached"):
        diagnostics.gradient_angles(dfa, loss)


def test_gradient_angles_change_nothing():
    net = network(nn.Dropout(0.2))
    dfa = DFA(net, feedback="kolen-pollack")
    loss(net).backward()  # states with a graph, gathered feedback, moved statistics
    before = {k: v.detach().clone() for k, v in net.state_dict().items()}
    grads = [p.grad.clone() for p in net.parameters()]
    states = [m.mem for m in net if isinstance(m, snn.Leaky)]
    kept = copy.deepcopy(dfa.state_dict())
    rng = torch.get_rng_state()
    gradient_angles(dfa, loss)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert all(m.mem is s for m, s in zip([m for m in net if isinstance(m, snn.Leaky)], states,
                                          strict=True))  # fmt: skip
    after = dfa.state_dict()
    assert all(torch.equal(after["matrices"][n], b) for n, b in kept["matrices"].items())
    assert all(torch.equal(after["learner"]["pending"][n], g)
               for n, g in kept["learner"]["pending"].items())  # fmt: skip


@pytest.mark.parametrize("options", [{"rule": "target"}, {"rule": "fa"}, {"credit": "trace"},
                                     {"rule": "shallow"}, {"credit": "current"}], ids=str)  # fmt: skip
def test_gradient_angles_of_every_rule(options):
    net = network()
    if options.get("credit") == "trace":
        net = nn.Sequential(*(m for m in net if not isinstance(m, nn.BatchNorm1d)))
    got = gradient_angles(DFA(net, output=str(len(net) - 1), **options), loss, targets=Y)
    hidden = list(got.values())[:-1]
    if options.get("rule") == "shallow":
        assert all(math.isnan(a) for a in hidden)
    else:
        assert all(0 < a < 180 for a in hidden)


def test_transposes_have_no_angle():
    net = network()
    assert all(
        a == 0 for a in gradient_angles(DFA(net, rule="fa", feedback="transpose"), loss).values()
    )


def test_feedback_angles():
    net = network()
    w = [net[i].weight.detach() for i in (3, 5)]
    with DFA(net, feedback={"2": w[1] @ w[0], "4": -w[1]}, output="6") as dfa:
        loss(net).backward()
        assert feedback_angles(dfa) == pytest.approx({"2": 0.0, "4": 180.0}, abs=1e-4)
    with DFA(net, rule="fa") as dfa:
        loss(net).backward()
        got = feedback_angles(dfa)
        wanted = {n: angle(dfa.feedback[n], net.get_submodule(n).weight) for n in ("3", "5")}
        assert got == pytest.approx(wanted, abs=1e-4)
    p = problem("convolutional", "leaky")
    dfa = DFA(p.net)
    p.forward(p.net, p.x)[0].sum().backward()
    assert list(feedback_angles(dfa)) == ["5"]  # before the first one lies a convolution


@pytest.mark.parametrize("rule", ["error", "fa"])
def test_projected_errors(rule):
    net = network()
    dfa = DFA(net, rule=rule)
    seen = {}

    def watch(name, sent):
        seen.setdefault(name, []).append(sent.flatten())

    dfa._feedback.observer = watch
    loss(net).backward()
    with projected_errors(dfa) as sent:
        loss(net).backward()
    wanted = {n: torch.cat(parts).square().mean().sqrt().item() for n, parts in seen.items()}
    assert sent == pytest.approx(wanted, rel=1e-5)
    assert len(sent) == 2
    assert all(value > 0 for value in sent.values())
    loss(net).backward()
    assert sent == pytest.approx(wanted, rel=1e-5)


def test_costs_by_hand():
    """Pixels into a convolution; its spikes into one more, then into a dense layer."""
    torch.manual_seed(0)
    neuron = {"beta": 0.5, "threshold": 0.2, "init_hidden": True}
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), snn.Leaky(**neuron), nn.Conv2d(3, 4, 2, stride=2, padding=1),
        snn.Leaky(**neuron), nn.Flatten(), nn.Linear(4 * 9, 5), snn.Leaky(**neuron),
    )  # fmt: skip
    x = torch.rand(2, 1, 6, 6) + 0.1
    spikes = []
    handles = [m.register_forward_hook(lambda m, a, out: spikes.append(out.clone()))
               for m in net if isinstance(m, snn.Leaky)]  # fmt: skip
    with cost(net) as total, torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    assert total.spikes == sum(s.sum().item() for s in spikes)
    assert total.multiplications == 2 * 3 * 4 * 4 * 9
    operations = 0
    first, second = spikes[:2]
    for b, c, i, j in first.nonzero().tolist():
        assert first[b, c, i, j] == 1
        for oi in range(3):
            for oj in range(3):
                inside = 0 <= i + 1 - 2 * oi < 2 and 0 <= j + 1 - 2 * oj < 2
                operations += 4 * inside
    operations += 5 * second.sum().item()
    assert second.sum() > 0
    assert total.synaptic_operations == operations


def test_costs_are_alike_for_both_forms():
    net = network().eval()
    spikes = (torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    totals = []
    for form in (net, over_time(net)):
        reset(net)
        with cost(form) as total, torch.no_grad():
            _ = form(spikes) if form is not net else [net(x) for x in spikes]
        totals.append(total)
    assert totals[0] == totals[1]
    assert totals[0].synaptic_operations > 0
    assert totals[0].multiplications == 0


def test_the_package_has_all_of_them():
    assert {"activity", "cost", "gradient_angles", "feedback_angles"} <= set(diagnostics.__all__)


# -- norms and agreement beside angles -------------------------------------------------------------


def losses(*seeds):
    def of(seed):
        x = torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(seed))

        def loss(net):
            reset(net)
            return nn.functional.cross_entropy(torch.stack([net(step) for step in x]).sum(0), Y)

        return loss

    return [of(seed) for seed in seeds]


@pytest.mark.slow
def test_the_report_of_two_batches_is_that_of_each():
    dfa = DFA(network())
    both = gradient_report(dfa, losses(1, 2))
    alone = [gradient_report(dfa, losses(seed)) for seed in (1, 2)]
    angles = [gradient_angles(dfa, loss) for loss in losses(1, 2)]
    for name, of in both.items():
        assert of.angle == pytest.approx(sum(a[name] for a in angles) / 2, abs=1e-3)
        assert of.norm_ratio == pytest.approx(sum(a[name].norm_ratio for a in alone) / 2)
        assert math.isnan(alone[0][name].agreement)
        assert -1 <= of.agreement <= 1
    *_, last = both.values()
    assert last.norm_ratio == pytest.approx(1)
    assert last.agreement == pytest.approx(last.bptt_agreement)


def test_a_direction_that_is_rounding_has_no_angle():
    net = network()
    with torch.no_grad():
        net[-2].weight.mul_(1e-7)  # hidden layers get next to nothing of it
    found = gradient_report(DFA(net, output="6"), losses(1, 2))
    assert math.isnan(found["0"].angle)
    assert found["0"].norm_ratio > 100
    assert found["0"].bptt_norm < 1e-5 * found["5"].bptt_norm
    assert not math.isnan(gradient_report(DFA(network()), losses(1, 2))["0"].angle)


def test_in_float64_a_small_gradient_has_a_direction():
    """Hidden layers get 1e-7 of what the last one gets: rounding in float32, a direction here."""
    net = network()
    with torch.no_grad():
        net[-2].weight.mul_(1e-7)
    dfa = DFA(net, output="6")
    before = {name: p.clone() for name, p in net.named_parameters()}
    found = gradient_report(dfa, losses(1, 2), dtype=torch.float64)
    assert 0 < found["0"].angle < 180
    assert math.isnan(gradient_report(dfa, losses(1, 2))["0"].angle)
    assert math.isnan(
        gradient_report(dfa, losses(1, 2), floor=1e-5, dtype=torch.float64)["0"].angle
    )
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())
    assert not net._forward_pre_hooks


class Keeps(nn.Module):
    """Keeps states, and lists of spikes, on itself."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 8), snn.Leaky(beta=0.8, threshold=0.3)
        self.fc2, self.lif2 = nn.Linear(8, 3), snn.Leaky(beta=0.8, threshold=0.3)
        self.spikes, self.mem = {"hidden": []}, None

    def forward(self, x):
        self.mem, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        self.spikes["hidden"].clear()
        for step in x:
            spk, self.mem = self.lif1(self.fc1(step), self.mem)
            self.spikes["hidden"].append(spk)
            _, mem2 = self.lif2(self.fc2(spk), mem2)
        return mem2


def test_a_network_that_keeps_states_with_a_graph_is_copied():
    net = Keeps()
    dfa = DFA(net)

    def loss(net):
        return nn.functional.cross_entropy(net(X), Y) + torch.stack(net.spikes["hidden"]).mean()

    loss(net).backward()
    kept = [*net.spikes["hidden"], net.mem]
    assert set(gradient_angles(dfa, loss)) == {"fc1", "fc2"}
    assert all(a is b for a, b in zip([*net.spikes["hidden"], net.mem], kept, strict=True))
