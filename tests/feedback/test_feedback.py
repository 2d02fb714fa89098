"""How matrices are drawn, kept and applied, each kind against loops."""

import copy
import io
import itertools
import math
from functools import partial

import pytest
import reference as ref
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import check
from problems import N1, N2, C, problem
from torch import nn

from snn_dfa import DFA, FeedbackError, KolenPollack, WeightMirror, feedback, over_time, reset
from snn_dfa._attach.between.paths import Paths
from snn_dfa._attach.layers import Layers
from snn_dfa.feedback import KINDS, NAMES, channelwise, generator_for, orthogonal, project, sparse
from snn_dfa.feedback.make import make
from snn_dfa.zhang import zhang_feedback

CREDITS = {"membrane": ref.Neuron, "current": ref.CurrentNeuron, "trace": ref.TraceNeuron}
LEARNED = KolenPollack(initial=1.0)
# Each kind; sparse with enough entries for the few neurons here.
KINDS_HERE = {name: name for name in NAMES} | {
    "sparse": partial(sparse, density=0.5),
    "kolen-pollack": LEARNED,
    "weight-mirror": WeightMirror(initial=1.0, by_sample=0),
    "function": lambda shape, generator: torch.rand(shape, generator=generator) - 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("kind", KINDS_HERE)
def test_every_kind_with_every_credit(kind, credit):
    dfa = check(problem("sequential", "leaky"), CREDITS[credit], feedback=KINDS_HERE[kind],
                credit=credit)  # fmt: skip
    assert {name: b.shape for name, b in dfa.feedback.items()} == {"1": (C, N1), "2.1": (C, N2)}


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "orthogonal", "channelwise", "shared"])
def test_convolutional_layers(kind):
    p = problem("convolutional", "leaky")
    dfa = DFA(p.net, feedback=kind)
    for _ in range(2):
        p.net.zero_grad()
        reset(p.net)
        spk, mem = p.forward(p.net, p.x)
        (spk.sum() + mem.square().sum()).backward()
    blocks = p.blocks(ref.Neuron)
    spikes, mems = ref.run(blocks, p.x)
    shapes = [block[-1].mem.shape[1:] for block in blocks[:-1]]
    matrices = [m.expand(C, *s) for m, s in zip(dfa.feedback.values(), shapes, strict=True)]
    ref.dfa(blocks, matrices, [torch.ones_like(s) for s in spikes], [2 * m for m in mems])
    for module, block in zip((p.net[0], p.net[4]), blocks, strict=False):
        (synapse,) = (piece for piece in block if isinstance(piece, ref.Linear))
        torch.testing.assert_close(
            module.weight.grad, synapse.grads["weight"], rtol=1e-10, atol=1e-10
        )
        assert module.weight.grad.abs().sum() > 0


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(sorted(KINDS)), outputs=st.integers(1, 12), neurons=st.integers(1, 300))
def test_drawn_matrices_keep_the_norm_of_an_error(kind, outputs, neurons):
    """In the mean over all errors: the squared entries of a row sum to one."""
    if kind == "sparse" and neurons < 100:
        neurons += 100
    squares = [
        KINDS[kind]((outputs, neurons), generator_for(seed, "a", (outputs, neurons)))
        .square().sum() / outputs for seed in range(200)
    ]  # fmt: skip
    variance = 3 / (0.1 * neurons * outputs)
    if kind == "low-rank":  # a product: the norms of both factors vary, whatever the other's size
        variance = 2 / outputs + 2 / neurons + 5 / (outputs * neurons)
    spread = 6 * math.sqrt(variance / 200)
    assert abs(torch.stack(squares).mean() - 1) < max(spread, 1e-4)


def test_orthogonal_rows_keep_the_norm_of_every_error():
    b = orthogonal((6, 40), generator_for(0, "a", (6, 40)))
    torch.testing.assert_close(b @ b.T, torch.eye(6), atol=1e-6, rtol=0)
    wide = orthogonal((40, 6), generator_for(0, "a", (40, 6)))
    torch.testing.assert_close(wide.T @ wide, torch.eye(6) * 40 / 6, atol=1e-5, rtol=0)


def test_sparse_keeps_a_share_and_refuses_none():
    b = sparse((10, 5000), generator_for(0, "a", (1,)), density=0.02)
    assert 0.018 < (b != 0).double().mean() < 0.022
    assert abs(b.square().sum() / 10 - 1) < 0.1
    for density in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=r"density: expected a share in \(0, 1\]"):
            sparse((2, 2), torch.Generator(), density=density)


def test_channelwise_is_one_number_a_channel_whatever_the_place():
    shape = (C, 4, 5, 6)
    b = channelwise(shape, generator_for(0, "a", shape))
    assert b.shape == (C, 4, 1, 1)
    assert b.numel() == C * 4
    e = torch.rand(2, C)
    sent = project(e, b).expand(2, 4, 5, 6)
    for s in range(2):
        for channel in range(4):
            for i in range(5):
                for j in range(6):
                    wanted = sum(e[s, c] * b[c, channel, 0, 0] for c in range(C))
                    torch.testing.assert_close(sent[s, channel, i, j], wanted)


def run(net, seed=0):
    reset(net)
    x = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(seed))
    spk = torch.stack([net(step) for step in x])
    spk.sum().backward()


def dense(sizes=(6, 9, 5, 4, 3)):
    torch.manual_seed(0)
    layers = []
    for n_in, n in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n), snn.Leaky(0.9, 0.2, init_hidden=True)]
    return nn.Sequential(*layers)


def storages(tensors):
    return {t.untyped_storage().data_ptr() for t in tensors}


def test_shared_keeps_one_matrix_of_the_largest_layer():
    net = dense()
    dfa = DFA(net, feedback="shared")
    run(net)
    bank = dfa._feedback
    assert {n: m.numel() for n, m in bank.matrices.items()} == {"1": 27, "3": 15, "5": 12}
    assert len(storages(bank.matrices.values())) == 1
    base = bank.matrices["1"].flatten()
    for matrix in bank.matrices.values():
        assert torch.equal(matrix.flatten(), base[: matrix.numel()])
    net.double()
    moved = [bank.matrix(name, torch.zeros((), dtype=torch.float64)) for name in bank.matrices]
    assert len(storages(moved)) == 1

    saved = io.BytesIO()
    torch.save(dfa.state_dict(), saved)
    saved.seek(0)
    other = DFA(dense(), feedback="shared", seed=7)
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert len(storages(other._feedback.matrices.values())) == 1
    for name, matrix in bank.matrices.items():
        assert torch.equal(other._feedback.matrices[name], matrix)


def test_shared_feedback_for_no_layer_at_all():
    net = dense()
    dfa = DFA(net, rule="shallow", feedback="shared")
    run(net)
    assert not dfa.feedback
    assert net[-2].weight.grad.abs().sum() > 0


def test_zhang_is_a_product_over_the_layers_after_it():
    net = dense()
    dfa = DFA(net, feedback="zhang", scale=2.0, seed=3)
    run(net)
    for name, sizes in {"1": (9, 5, 4, 3), "3": (5, 4, 3), "5": (4, 3)}.items():
        wanted = zhang_feedback(sizes, generator_for(3, name, (3, sizes[0])))
        torch.testing.assert_close(dfa.feedback[name], 2 * wanted)


def test_transpose_is_the_product_of_the_weights_of_the_moment():
    net = dense((6, 5, 5, 5, 3))
    dfa = DFA(net, feedback="transpose")
    for _ in range(2):
        run(net)
        w2, w3, w4 = (net[i].weight.detach() for i in (2, 4, 6))
        for name, wanted in {"1": w4 @ w3 @ w2, "3": w4 @ w3, "5": w4}.items():
            torch.testing.assert_close(dfa.feedback[name], wanted)
        with torch.no_grad():
            net[4].weight.add_(1.0)
    assert dfa.state_dict()["matrices"] == {}


def test_a_matrix_depends_on_seed_name_and_shape_alone():
    ours = {n: m.clone() for n, m in _drawn(dense(), seed=1).items()}
    torch.manual_seed(99)
    sequence = over_time(dense())
    with DFA(sequence, seed=1) as dfa:
        sequence(torch.rand(4, 3, 6)).sum().backward()
        assert all(torch.equal(ours[n], m) for n, m in dfa.feedback.items())
    assert not torch.equal(_drawn(dense(), seed=2)["1"], ours["1"])


def _drawn(net, **options):
    dfa = DFA(net, **options)
    run(net)
    return dfa.feedback


@pytest.mark.slow
@pytest.mark.parametrize("kind", [n for n in NAMES if n != "zhang"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype):
    net = over_time(dense()).to(dtype)
    dfa = DFA(net, feedback=KINDS_HERE[kind], output="7")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if kind in ("kolen-pollack-product", "product-feedback-alignment", "weight-mirror"):
        dfa.follow(optimizer)
    for _ in range(2):
        net(torch.rand(4, 3, 6, dtype=dtype)).float().sum().backward()
    assert {b.dtype for b in dfa.feedback.values()} == {dtype}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_copies_keep_a_function_and_what_it_drew():
    dfa = DFA(dense(), feedback=partial(sparse, density=0.5))
    run(dfa._net)
    reset(dfa._net)
    twin = copy.deepcopy(dfa)
    for name, matrix in dfa.feedback.items():
        assert torch.equal(twin.feedback[name], matrix)


@pytest.mark.parametrize(
    ("given_feedback", "message"),
    [
        ("hebbian", r"feedback: expected one of \['channelwise', 'gaussian'.*got 'hebbian'"),
        (3, "got int"),
        (lambda shape, generator: torch.zeros(2), r"feedback\['1'\]: expected shape \[3, 9\]"),
        (lambda shape, generator: None, "expected a function that returns a tensor .* NoneType"),
        ({"1": torch.zeros(3, 9)}, r"no matrix for hidden layer '3'; expected a tensor"),
    ],
)
def test_what_is_refused(given_feedback, message):
    net = dense()
    with pytest.raises(FeedbackError, match=message):
        DFA(net, feedback=given_feedback)
        run(net)


NEEDS_DENSE = "a product of weights or factors needs one nn.Linear from the 32 neurons of layer"


def test_kinds_that_need_dense_layers_say_so():
    for kind, message in (("zhang", "'zhang' is for dense layers"), ("transpose", NEEDS_DENSE)):
        p = problem("convolutional", "leaky")
        DFA(p.net, feedback=kind)
        with pytest.raises(FeedbackError, match=message):
            p.forward(p.net, p.x)[0].sum().backward()


def test_the_public_module_names_what_it_has():
    assert set(feedback.KINDS) <= set(NAMES)
    net = nn.Linear(1, 1)
    forward = Paths(net, Layers([], set(), set()))
    assert make("gaussian", 1.0, 0, forward).known() == []
