"""Credit by eligibility traces: where it is exact, how far it is elsewhere, what it keeps."""

import gc
import itertools
import math
import weakref

import problems
import pytest
import reference as ref
import snntorch as snn
import torch
from parity import check
from problems import SG, exact, problem
from torch import nn

from snn_dfa import DFA, AttachError, BackwardError, RefractoryLeaky, reset
from snn_dfa._attach.credits.trace import Traces
from snn_dfa.eligibility import advance

T, B = 7, 4
X = torch.rand(T, B, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LEARNS = "leaky-learns"


@pytest.mark.slow
@pytest.mark.parametrize("neuron", [n for n in problems.NEURONS if n != LEARNS])
@pytest.mark.parametrize("network", ["sequential", "loop-inside", "layer-by-layer"])
def test_against_loops_over_neurons(network, neuron):
    check(problem(network, neuron), ref.TraceNeuron, credit="trace")


@pytest.mark.slow
@pytest.mark.parametrize("neuron", ["leaky", "synaptic", "refractory"])
@pytest.mark.parametrize("network", ["convolutional", "normalised", "wrong-order"])
def test_against_loops_over_networks(network, neuron):
    check(problem(network, neuron), ref.TraceNeuron, credit="trace")


def test_a_trace_is_the_sum_of_what_has_leaked():
    x = torch.rand(5, 3, dtype=torch.float64)
    trace = None
    for t in range(5):
        trace = advance(trace, x[t], (0.6, 0.8))
        syn = [sum(0.6 ** (s - r) * x[r] for r in range(s + 1)) for s in range(t + 1)]
        torch.testing.assert_close(trace[0], syn[-1])
        torch.testing.assert_close(trace[1], sum(0.8 ** (t - s) * syn[s] for s in range(t + 1)))


def test_a_membrane_of_zeros_goes_on_where_its_neuron_is_refractory():
    def spikes(attach):
        torch.manual_seed(0)
        neuron = RefractoryLeaky(
            0.9, 0.5, refractory_steps=2, refractory="clamp", reset_mechanism="zero",
            reset_delay=False, init_hidden=True,
        )  # fmt: skip
        net = nn.Sequential(
            nn.Linear(3, 4), neuron, nn.Linear(4, 2), snn.Leaky(0.9, init_hidden=True)
        )
        nn.init.constant_(net[0].weight, 1.0)  # all neurons spike at once, and are reset to zero
        if attach:
            DFA(net, credit="trace")
        seen = []
        neuron.register_forward_hook(lambda *args: seen.append(args[-1].detach().clone()))
        for _ in range(7):
            loss = net(torch.ones(2, 3)).sum()
            if attach:
                loss.backward()
        return torch.stack(seen)

    plain = spikes(False)
    assert plain.mean((1, 2)).tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert torch.equal(spikes(True), plain)


# -- against membrane credit ----------------------------------------------------------------------

NEURONS = {
    "leaky": lambda: snn.Leaky(exact(0.8), 0.3, SG, init_hidden=True),
    "leaky-none": lambda: snn.Leaky(exact(0.7), 0.3, SG, init_hidden=True, reset_mechanism="none"),
    "synaptic": lambda: snn.Synaptic(exact(0.6), exact(0.8), 0.3, SG, init_hidden=True),
    "refractory": lambda: RefractoryLeaky(
        exact(0.8), 0.2, SG, init_hidden=True, refractory_steps=2
    ),
    "leaky-zero": lambda: snn.Leaky(exact(0.7), 0.3, SG, init_hidden=True, reset_mechanism="zero"),
    "clamp": lambda: RefractoryLeaky(
        exact(0.8), 0.2, SG, init_hidden=True, refractory_steps=1, refractory="clamp"
    ),
}
EXACT = ("leaky", "leaky-none", "synaptic", "refractory")


def network(neuron, sizes=(5, 7, 6, 3)):
    torch.manual_seed(0)
    layers = []
    for n_in, n in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n), neuron(n) if neuron is RLEAKY else neuron()]
    net = nn.Sequential(*layers).double()
    with torch.no_grad():
        for linear in layers[::2]:
            linear.weight.mul_(2)
            linear.bias.add_(0.2)
    return net


def RLEAKY(n):
    return snn.RLeaky(exact(0.8), linear_features=n, spike_grad=SG, init_hidden=True)


def gradients(net, credit, online=False, x=X):
    """Of the sum over steps of a loss of each step."""
    net.zero_grad()
    weights = torch.tensor([-1.0, 0.7, 2.0], dtype=x.dtype)
    with DFA(net, credit=credit, output=str(len(net) - 1)):
        for round_ in range(2):  # the second sequence must not see the first
            net.zero_grad() if round_ == 0 else None
            reset(net)
            losses = []
            for step in x:
                losses.append((net(step) * weights).sum().square())
                if online:
                    losses.pop().backward()
            if losses:
                sum(losses).backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("neuron", EXACT)
def test_without_a_reset_in_the_path_it_is_membrane_credit(neuron, online):
    net = network(NEURONS[neuron])
    wanted = gradients(net, "membrane")
    for got, want in zip(gradients(net, "trace", online), wanted, strict=True):
        assert want.abs().sum() > 0
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("neuron", "least", "most"),
    [("leaky-zero", 1, 20), ("clamp", 1, 20), ("rleaky", 1, 20)],
)
def test_how_far_it_is_elsewhere(neuron, least, most):
    """The angle in degrees between the gradients of all weights: not zero, and far below 90."""
    net = network(NEURONS.get(neuron, RLEAKY))
    a, b = (torch.cat([g.flatten() for g in gradients(net, credit, online=credit == "trace")])
            for credit in ("membrane", "trace"))  # fmt: skip
    angle = math.degrees(math.acos(float(a @ b / a.norm() / b.norm())))
    assert least < angle < most


def test_online_through_explicit_states():
    net = problem("loop-inside", "leaky").net
    with DFA(net, credit="trace", output="lif3"):
        states = [lif.reset_mem() for lif in (net.lif1, net.lif2, net.lif3)]
        for step in torch.rand(5, 3, problems.F, dtype=torch.float64):
            spk1, states[0] = net.lif1(net.fc1(step), states[0])
            spk2, states[1] = net.lif2(net.fc2(spk1), states[1])
            spk3, states[2] = net.lif3(net.fc3(spk2), states[2])
            spk3.sum().backward()  # a graph that reached back would have been freed
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("online", [True, False])
def test_a_plain_readout_joins_the_layers_below(online):
    net = network(NEURONS["leaky"])[:-1]
    wanted = gradients(net, "membrane")
    for got, want in zip(gradients(net, "trace", online), wanted, strict=True):
        assert want.abs().sum() > 0
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_a_neuron_behind_the_readout_is_cut_and_its_weights_are_traced():
    """The output layer's own gradient is whole; hidden ones get the error of the step."""
    net = network(NEURONS["leaky"])
    wanted = gradients(net, "trace", online=True)
    reset(net)
    net.zero_grad()
    weights = torch.tensor([-1.0, 0.7, 2.0], dtype=X.dtype)
    with DFA(net, credit="trace", output="4", hidden=["1", "3"]):
        for _ in range(2):  # as in gradients(): both sequences add up
            reset(net)
            for step in X:
                (net(step) * weights).sum().square().backward()
    torch.testing.assert_close(net[4].weight.grad, wanted[-2], rtol=1e-10, atol=1e-10)
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_frozen_normalisation_is_exact():
    net = nn.Sequential(
        nn.Linear(5, 7), nn.BatchNorm1d(7), NEURONS["leaky"](), nn.Linear(7, 3), NEURONS["leaky"]()
    ).double()  # fmt: skip
    net[1].running_var.fill_(0.1)
    net.eval()
    net[1].requires_grad_(False)
    with torch.no_grad():
        net[3].weight.mul_(4)
    grads = []
    for credit in ("membrane", "trace"):
        net.zero_grad()
        with DFA(net, credit=credit, output="4"):
            reset(net)
            sum(net(step).sum() for step in X).backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.requires_grad])
    assert grads[0][0].abs().sum() > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


FROZEN = {"weight": ["0.weight"], "both": ["0.weight", "0.bias"], "recurrent": ["1.recurrent.bias"]}


@pytest.mark.parametrize("names", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("first", [True, False])
def test_a_parameter_that_is_frozen_or_thawed_within_a_sequence_raises_an_error(names, first):
    net = network(RLEAKY)
    with DFA(net, credit="trace", output="5"):
        for learns in (first, not first):
            for name in names:
                net.get_parameter(name).requires_grad_(learns)
            reset(net)
            net(X[0]).sum().backward()  # between sequences it may change
        for name in names:
            net.get_parameter(name).requires_grad_(first)
        before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        with pytest.raises(AttachError, match=r"layer '1': .* frozen or thawed in between"):
            net(X[1])
        for p, grad in zip(net.parameters(), before, strict=True):
            assert p.grad is grad or torch.equal(p.grad, grad)


def test_another_synapse_within_a_sequence_raises_an_error():
    """Its neuron's trace would lack the steps of the first one."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.lif = nn.Linear(5, 6), nn.Linear(5, 6), NEURONS["leaky"]()
            self.fc, self.out = nn.Linear(6, 3), NEURONS["leaky"]()
            self.double()

        def forward(self, x, first):
            return self.out(self.fc(self.lif((self.a if first else self.b)(x))))

    net = Two()
    with DFA(net, credit="trace", output="out"):
        reset(net)
        net(X[0], True).sum().backward()
        with pytest.raises(AttachError, match="layer 'lif': expected the same synapse"):
            net(X[1], False)


def test_a_new_sequence_starts_anew_and_a_batch_may_change():
    net = network(NEURONS["leaky"])
    alone = gradients(net, "trace", online=True)
    with DFA(net, credit="trace", output="5"):
        reset(net)
        net(torch.rand(2, 5, dtype=torch.float64)).sum().backward()
    for a, b in zip(gradients(net, "trace", online=True), alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_nothing_of_the_past_is_kept():
    """After a step's backward pass only numbers of the size of a step are alive."""
    net = network(NEURONS["leaky"])
    kept = []
    with DFA(net, credit="trace", output="5") as dfa:
        reset(net)
        for step in X:
            out = net(step)
            out.sum().backward()
            kept.append(weakref.ref(out))
            del out
        gc.collect()
        assert sum(ref() is not None for ref in kept) <= 1
        (traces,) = (part for part in dfa._parts if isinstance(part, Traces))
        sizes = [t.numel() for pair in traces._traces.values() for kind in pair for t in kind]
        assert sorted(sizes) == sorted([B * 5, B * 7, B * 6, 1, 1, 1])
        assert len(traces._calls) <= 3
    assert not traces._traces


def test_learning_goes_on_after_an_evaluation_in_between():
    net = network(NEURONS["leaky"])
    with DFA(net, credit="trace", output="5"):
        for _ in range(2):
            reset(net)
            for step in X:
                net(step).sum().backward()
            with torch.no_grad():
                reset(net)
                for step in X:
                    net(step)


# -- refusals -------------------------------------------------------------------------------------


def leaky(**options):
    return snn.Leaky(**{"beta": 0.9, "init_hidden": True, **options})


class Own(snn.Leaky):
    pass


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (
            snn.Alpha(0.9, 0.8, init_hidden=True),
            r"layer '1' is of type Alpha, expected one of Leaky, R",
        ),
        (Own(0.9, init_hidden=True), "layer '1' is of type Own"),
        (leaky(beta=torch.full((7,), 0.9)), "has a beta for each neuron, expected one for all"),
        (leaky(learn_beta=True), "gives no gradient to its own parameter 'beta'"),
        (leaky(learn_threshold=True), "gives no gradient to its own parameter 'threshold'"),
        (snn.RLeaky(0.9, all_to_all=False, init_hidden=True), "to its own parameter"),
    ],
)
def test_neurons_whose_past_no_trace_holds(hidden, message):
    net = nn.Sequential(nn.Linear(5, 7), hidden, nn.Linear(7, 3), leaky())
    with pytest.raises(AttachError, match=message):
        DFA(net, credit="trace")


def test_a_weight_that_each_reading_changes():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 7))
    net = nn.Sequential(layer, leaky(), nn.Linear(7, 3), leaky())
    with pytest.raises(AttachError, match="the weight of layer '0' may change each time"):
        DFA(net, credit="trace")


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ([nn.Linear(5, 7), nn.Linear(7, 7)], "one layer with weights between it"),
        ([nn.Linear(5, 7), nn.Dropout(0.5)], "the output of one nn.Linear or convolution"),
        ([nn.Linear(5, 7), nn.ReLU()], "use credit='membrane'"),
    ],
)
def test_currents_of_another_make(between, message):
    net = nn.Sequential(*between, leaky(), nn.Linear(7, 3), leaky()).double()
    DFA(net, credit="trace", output=str(len(net) - 1))
    with pytest.raises(AttachError, match=message):
        net(X[0])


class WithHead(nn.Module):
    def __init__(self, head):
        super().__init__()
        torch.manual_seed(0)
        options = {"beta": 0.8, "threshold": 0.3, "init_hidden": True, "spike_grad": SG}
        self.fc1, self.lif1 = nn.Linear(5, 6), snn.Leaky(**options)
        self.fc2, self.lif2, self.head = nn.Linear(6, 3), snn.Leaky(**options), head()

    def forward(self, x):
        spk = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(spk)), self.head(spk)


def mlp():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.filterwarnings("ignore:the loss reads layer")
@pytest.mark.parametrize("output", ["lif2", ["lif2", "head"]])
@pytest.mark.parametrize("head", [lambda: nn.Linear(6, 3), mlp], ids=["linear", "mlp"])
def test_a_head_that_no_neuron_gets_keeps_its_own_gradient(head, output):
    found = []
    for credit in ("membrane", "trace"):
        net = WithHead(head).double()
        with DFA(net, output=output, credit=credit):
            losses = [out.square().sum() + seen.square().sum() for out, seen in map(net, X)]
            sum(losses).backward()
        found.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_a_loss_on_a_current_raises_an_error():
    net = WithHead(nn.Identity).double()
    currents = []
    with DFA(net, output="lif2", credit="trace"):
        net.fc2.register_forward_hook(lambda *args: currents.append(args[2]))
        out, _ = net(X[0])
        with pytest.raises(BackwardError, match="the loss reads what a Linear returns"):
            (out.sum() + currents[0].sum()).backward()
    assert all(p.grad is None for p in net.parameters())


def test_a_neuron_inside_the_output_raises_an_error():
    net = WithHead(lambda: nn.Sequential(nn.Linear(6, 4), snn.Leaky(0.9)))
    with pytest.raises(AttachError, match="has a spiking neuron '1' in it"):
        DFA(net, output="head", hidden=["lif1", "lif2"], credit="trace")
