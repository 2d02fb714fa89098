"""The rules against loops, and what they refuse."""

import itertools
from functools import partial

import problems
import pytest
import reference as ref
import snntorch as snn
import torch
from parity import Y, assert_grads, check, loss_weights, pass_back
from problems import problem
from torch import nn

from snn_dfa import DFA, AttachError, FeedbackError, KolenPollack, TargetError, over_time, reset
from snn_dfa.feedback import sparse
from snn_dfa.rules import target
from snn_dfa.surrogate import fast_sigmoid

CREDITS = {"membrane": ref.Neuron, "current": ref.CurrentNeuron, "trace": ref.TraceNeuron}


@pytest.mark.parametrize("rule", ["error", "sign", "target", "local"])
@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("network", ["sequential", "loop-inside"])
def test_broadcast_rules(network, credit, rule):
    check(problem(network, "leaky"), CREDITS[credit], rule=rule, credit=credit)


@pytest.mark.parametrize("credit", CREDITS)
def test_shallow_teaches_the_output_block_alone(credit):
    p = problem("sequential", "leaky")
    blocks = p.blocks(CREDITS[credit])
    ref.run(blocks, p.x)
    with DFA(p.net, rule="shallow", credit=credit, output="4"):
        spk, mem = p.forward(p.net, p.x)
        ws, wm = loss_weights(spk, mem)
        ((spk * ws).sum() + (mem * wm).sum()).backward()
    ref.dfa(blocks, [torch.zeros(problems.C, n).double() for n in (problems.N1, problems.N2)],
            ws, wm)  # fmt: skip
    assert [p.net[0].weight.grad, p.net[2][0].weight.grad] == [None, None]
    torch.testing.assert_close(
        p.net[3].weight.grad, blocks[-1][0].grads["weight"], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("y", [Y, nn.functional.one_hot(Y, problems.C).double()])
def test_targets_may_be_given_around_forward_or_backward(y):
    p = problem("sequential", "leaky")
    dfa = DFA(p.net, rule="target", output="4")
    grads = []
    for around_forward in (True, False):
        reset(p.net)
        p.net.zero_grad()
        if around_forward:
            with dfa.targets(y):
                spk, _ = p.forward(p.net, p.x)
            spk.sum().backward()
        else:
            spk, _ = p.forward(p.net, p.x)
            with dfa.targets(y):
                spk.sum().backward()
        grads.append(p.net[0].weight.grad)
    assert grads[0].abs().sum() > 0
    assert torch.equal(*grads)


def test_targets_of_steps_are_those_of_their_steps():
    def net():
        torch.manual_seed(0)
        layers = (nn.Linear(4, 6), nn.Linear(6, 3))
        lif = partial(snn.Leaky, 0.8, 0.3, fast_sigmoid(5), init_hidden=True)
        return nn.Sequential(layers[0], lif(), layers[1], lif()).double()

    x, y = torch.rand(2, 5, 2, 4, dtype=torch.float64)[:, :, :, :4]
    y = y[..., :3]  # [T, B, C], another one at each step

    def grads(way):
        plain = net()
        form = over_time(plain) if way == "whole" else plain
        dfa = DFA(form, rule="target", output="3")
        if way == "each":
            total = 0.0
            for step, targets in zip(x, y, strict=True):
                with dfa.targets(targets):
                    total = total + plain(step).sum()
            total.backward()
        else:
            with dfa.targets(y):
                spk = form(x) if way == "whole" else torch.stack([form(step) for step in x])
                spk.sum().backward()
        return plain[0].weight.grad

    assert grads("whole").any()
    torch.testing.assert_close(grads("loop"), grads("whole"))
    torch.testing.assert_close(grads("each"), grads("whole"))


def test_targets_that_are_missing_or_do_not_fit_are_refused():
    p = problem("sequential", "leaky")
    dfa = DFA(p.net, rule="target", output="4")
    spk, _ = p.forward(p.net, p.x)
    with pytest.raises(TargetError, match=r"write `with dfa\.targets"):
        spk.sum().backward()
    with pytest.raises(TargetError, match="expected classes from 0 to 2, got 0 to 3"):
        target(spk, torch.tensor([0, 3, 1]))
    with pytest.raises(TargetError, match=r"class indices of shape \[3\] or .*, got \[4\]"):
        target(spk, torch.tensor([0, 1, 1, 2]))
    with dfa.targets(Y):
        pass
    with pytest.raises(TargetError):
        p.forward(p.net, p.x)[0].sum().backward()


# -- layer-local losses ---------------------------------------------------------------------------


@pytest.mark.parametrize("feedback", ["gaussian", "channelwise"])
@pytest.mark.parametrize("form", ["loop", "sequence"])
def test_local_is_a_loss_of_each_layer_on_a_fixed_readout_of_its_spikes(form, feedback):
    """The same gradients by autograd: hidden layers are sent nothing, and a loss reads their spikes."""
    torch.manual_seed(0)
    lif = partial(snn.Leaky, 0.8, threshold=0.3, spike_grad=fast_sigmoid(5), init_hidden=True)
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3), lif(), nn.Flatten(), nn.Linear(16, 6), lif(), nn.Linear(6, 3), lif()
    ).double()
    net = over_time(plain) if form == "sequence" else plain
    x, grads = torch.rand(5, 3, 1, 4, 4, dtype=torch.float64), {}

    def loss_of(spk):
        return nn.functional.cross_entropy(spk.sum(0), Y)

    def run():
        reset(plain)
        net.zero_grad()
        return net(x) if form == "sequence" else torch.stack([net(step) for step in x])

    with DFA(net, rule="local", output="6", feedback=feedback) as dfa:
        for _ in range(2):
            spk = run()
            with dfa.targets(Y):
                loss_of(spk).backward()
        matrices = dict(dfa.feedback)
        grads["local"] = [p.grad.clone() for p in plain.parameters()]
    seen = {name: [] for name in ("1", "4")}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, a, out, s=s: s.append(out))
        for name, s in seen.items()
    ]
    with DFA(net, rule="shallow", output="6"):
        loss = loss_of(run())
        for name, steps in seen.items():
            spikes = steps[0] if form == "sequence" else torch.stack(steps)
            rows = matrices[name].expand(3, *spikes.shape[2:]).flatten(1)
            for step in spikes.flatten(2):
                loss = loss + nn.functional.cross_entropy(step @ rows.T, Y)
        loss.backward()
    grads["by hand"] = [p.grad.clone() for p in plain.parameters()]
    for hook in hooks:
        hook.remove()
    assert all(g.abs().sum() > 0 for g in grads["local"])
    for a, b in zip(*grads.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_local_needs_targets():
    p = problem("sequential", "leaky")
    with (
        DFA(p.net, rule="local", output="4"),
        pytest.raises(TargetError, match=r"rule='local' needs the targets.*with dfa\.targets"),
    ):
        p.forward(p.net, p.x)[0].sum().backward()


# -- feedback alignment ---------------------------------------------------------------------------


def fa_check(p, neuron_class, **options):
    """Compare with the reference, layer by layer through the matrices that were drawn."""
    dfa = DFA(p.net, rule="fa", **options)
    modules = [m for m in problems.in_order(p.net) if isinstance(m, (nn.Linear, nn.Conv2d))]
    names = {m: n for n, m in p.net.named_modules()}
    for _ in range(2):
        _, _, ws, wm = pass_back(p, dfa)
        blocks = p.blocks(neuron_class)
        ref.run(blocks, p.x)
        pieces = [q for block in blocks for q in block if isinstance(q, ref.Linear)]
        matrices = {
            piece: dfa.feedback[names[module]]
            for piece, module in zip(pieces, modules, strict=True)
            if names[module] in dfa.feedback
        }
        assert len(matrices) == len(pieces) - 1, "the first layer sends nothing on"
        ref.fa(blocks, matrices, ws, wm)
        assert_grads(p.net, blocks)
    return dfa


@pytest.mark.parametrize("network", problems.NETWORKS)
@pytest.mark.parametrize("neuron", ["leaky", "synaptic", "refractory-clamp"])
def test_feedback_alignment(network, neuron):
    fa_check(problem(network, neuron), ref.Neuron)


@pytest.mark.parametrize("network", ["sequential", "convolutional"])
def test_feedback_alignment_with_current_credit(network):
    fa_check(problem(network, "leaky"), ref.CurrentNeuron, credit="current")


HALF = partial(sparse, density=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "feedback",
    ["uniform", "orthogonal", "low-rank", HALF, "kolen-pollack", "sign-symmetry"],
    ids=["uniform", "orthogonal", "low-rank", "sparse", "kolen-pollack", "sign-symmetry"],
)
@pytest.mark.parametrize("network", ["sequential", "convolutional"])
def test_feedback_alignment_over_kinds(network, feedback):
    fa_check(problem(network, "leaky"), ref.Neuron, feedback=feedback)


@pytest.mark.parametrize("network", problems.NETWORKS)
def test_transposes_make_feedback_alignment_backpropagation(network):
    p = problem(network, "leaky")

    def grads():
        p.net.zero_grad()
        reset(p.net)
        spk, mem = p.forward(p.net, p.x)
        (spk.square().sum() + mem.sum()).backward()
        return [q.grad.clone() for q in p.net.parameters()]

    wanted = grads()
    with DFA(p.net, rule="fa", feedback="transpose"):
        for got, want in zip(grads(), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(grads(), wanted, strict=True))


@pytest.mark.slow
def test_kolen_pollack_brings_weights_and_feedback_of_every_layer_together():
    """Both follow the same gradient under the same optimiser: only their difference decays."""
    torch.manual_seed(0)
    sizes, lr, decay = (8, 7, 6, 3), 0.02, 0.1
    layers = []
    for n_in, n in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n),
                   snn.Leaky(0.8, 0.3, spike_grad=fast_sigmoid(5), init_hidden=True)]  # fmt: skip
    net = nn.Sequential(*layers)
    with torch.no_grad():
        for linear in layers[::2]:
            linear.weight.mul_(2)
    dfa = DFA(net, rule="fa", feedback=KolenPollack(lr=lr, weight_decay=decay, initial=0.5))
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=decay)
    differences = []
    for seed in range(25):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        reset(net)
        spk = torch.stack([net(step) for step in torch.rand(6, 5, 8)])
        before = {n: net.get_submodule(n).weight.detach().clone() for n in ("2", "4")}
        nn.functional.cross_entropy(spk.sum(0), torch.arange(5) % 3).backward()
        differences.append({n: before[n] - dfa.feedback[n] for n in before})
        optimizer.step()
    for name, first in differences[0].items():
        assert first.abs().max() > 0.1
        wanted = first * (1 - lr * decay) ** 24
        torch.testing.assert_close(differences[-1][name], wanted, rtol=0, atol=1e-3)


def test_feedback_alignment_of_a_whole_sequence_is_that_of_the_loop():
    p = problem("normalised", "leaky")
    p.net.eval()  # batch statistics are over time in one form and of a step in the other
    p.net[-1].output = False
    grads = []
    for form in ("loop", "sequence"):
        net = over_time(p.net) if form == "sequence" else p.net
        p.net.zero_grad()
        reset(p.net)
        with DFA(net, rule="fa") as dfa:
            spk = net(p.x) if form == "sequence" else torch.stack([net(x) for x in p.x])
            spk.square().sum().backward()
            assert list(dfa.feedback) == ["3", "6"]
        grads.append([q.grad.clone() for q in p.net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_what_feedback_alignment_refuses():
    neuron = snn.Leaky(0.9, init_hidden=True)
    net = nn.Sequential(nn.Bilinear(2, 2, 3), neuron, nn.Linear(3, 2), snn.Leaky(0.9))
    with pytest.raises(
        AttachError, match=r"rule='fa': expected weights in nn.Linear .* '0' of type"
    ):
        DFA(net, rule="fa")
    net = problem("sequential", "leaky").net
    with pytest.raises(FeedbackError, match="rule='fa' a kind that has the shape of weights"):
        DFA(net, rule="fa", feedback="shared")
    with pytest.raises(FeedbackError, match=r"layers among \['0', '2.0', '3'\], got one for '1'"):
        DFA(net, rule="fa", feedback={"1": torch.ones(3, 4)})
    with pytest.raises(AttachError, match="rule='fa', which needs the errors of later steps"):
        DFA(net, rule="fa", credit="trace")


class Embedded(nn.Module):
    """Spikes of embedded words, with positions that are ``joined`` to them."""

    def __init__(self, joined):
        super().__init__()
        torch.manual_seed(0)
        neuron = {"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(5)}
        self.embedding, self.lif1 = nn.Embedding(6, 4), snn.Leaky(**neuron)
        self.fc1, self.lif2, self.fc2 = nn.Linear(4, 4), snn.Leaky(**neuron), nn.Linear(4, 3)
        self.positions, self.joined = nn.Parameter(torch.rand(4, 4)), joined

    def forward(self, words):
        mem1 = mem2 = torch.zeros(*words.shape[1:], 4)
        out = 0.0
        for step in words:
            spk, mem1 = self.lif1(2 * self.embedding(step), mem1)
            spk = self.joined(spk, self.positions)
            spk, mem2 = self.lif2(self.fc1(spk), mem2)
            out = out + self.fc2(self.joined(spk, self.positions))
        return out


WORDS = torch.arange(24).view(3, 2, 4) % 6


class FixedWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, matrix):
        ctx.save_for_backward(x, matrix)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, error):
        x, matrix = ctx.saved_tensors
        return error @ matrix, torch.einsum("...i,...j->ij", error, x), None


@pytest.mark.parametrize(
    "joined",
    [lambda x, p: x + p, lambda x, p: p.relu() - x, lambda x, p: torch.cat([p[:1].expand(2, 1, 4), x], 1)[:, :4]],
    ids=["sum", "difference", "cat"],
)  # fmt: skip
def test_feedback_alignment_of_embeddings_and_of_parameters_that_are_added(joined):
    net = Embedded(joined)
    with DFA(net, rule="fa", output="fc2") as dfa:
        net(WORDS).square().sum().backward()
        matrices = dict(dfa.feedback)
    assert sorted(matrices) == ["fc1", "fc2"]
    by_hand = Embedded(joined)
    for name, matrix in matrices.items():
        layer = by_hand.get_submodule(name)
        layer.forward = lambda x, m=layer, b=matrix: FixedWayBack.apply(x, m.weight, b) + m.bias
    by_hand(WORDS).square().sum().backward()
    for (name, p), wanted in zip(net.named_parameters(), by_hand.parameters(), strict=True):
        assert wanted.grad.any(), name
        torch.testing.assert_close(p.grad, wanted.grad, msg=name)


@pytest.mark.parametrize(
    "joined",
    [lambda x, p: x @ p, lambda x, p: x * p, lambda x, p: x + x @ p.t().relu(), lambda x, p: x],
    ids=["product", "elementwise", "sum and product", "not used"],
)
def test_a_parameter_that_an_error_would_go_through(joined):
    with DFA(net := Embedded(joined), rule="fa", output="fc2"):
        with pytest.raises(AttachError, match="'positions' to be added to values"):
            net(WORDS)
        with pytest.raises(AttachError, match="call the network"):
            net.fc1(torch.ones(2, 4))


def test_what_weights_give_may_be_changed_in_place():
    def grads(inplace):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(inplace), snn.Leaky(0.9, threshold=0.1, init_hidden=True),
            nn.Linear(8, 6), nn.ReLU(inplace), snn.Leaky(0.9, threshold=0.1, init_hidden=True),
            nn.Linear(6, 2), snn.Leaky(0.9, threshold=0.1, init_hidden=True),
        )  # fmt: skip
        with DFA(net, rule="fa"):
            sum(net(torch.ones(3, 4)).sum() for _ in range(2)).backward()
        return [p.grad for p in net.parameters()]

    wanted = grads(inplace=False)
    assert all(grad.any() for grad in wanted)
    for found, want in zip(grads(inplace=True), wanted, strict=True):
        assert torch.equal(found, want)


@pytest.mark.parametrize(
    "scores",
    [lambda h, weight: h @ weight.t(), torch.nn.functional.linear],
    ids=["product", "linear"],
)
def test_an_embedding_that_an_error_would_go_through(scores):
    class Tied(Embedded):
        def forward(self, words):
            return scores(super().forward(words)[..., [0, 1, 2, 0]], self.embedding.weight)

    net, expected = Tied(lambda x, p: x + p), "'embedding.weight' to be added to values"
    with DFA(net, rule="fa", output="fc2"), pytest.raises(AttachError, match=expected):
        net(WORDS)
