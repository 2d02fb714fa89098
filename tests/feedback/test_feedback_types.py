"""The base class of feedback types: what a draw depends on, its memory, and saved states."""

import itertools

import pytest
import snntorch as snn
import torch
from kp_network import backward, loop, network
from torch import nn

from snn_dfa import DFA, FeedbackError, feedback, reset
from snn_dfa.feedback import base, fixed, generator_for, make
from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.feedback.stand_in import source, weigh
from snn_dfa.zhang import zhang_feedback, zhang_weights

SHAPES = {"1": (3, 9), "3": (3, 5), "5": (3, 4)}
PRODUCTS = ("kolen-pollack-product", "product-feedback-alignment")
OF_WEIGHTS = ("transpose", "sign-symmetry")
DRAWN = [n for n in feedback.NAMES if n not in (*OF_WEIGHTS, *PRODUCTS, "weight-mirror")]


class Weights:
    """Dense layers named after the hidden layers before them."""

    sizes = (9, 5, 4, 3)

    def names(self, name, path):
        return list(path)[list(path).index(name) :]

    outputs = ("out",)

    def unknown(self):
        return {}

    def inflows(self):
        (first, *others), last = list(SHAPES), "out"
        after = zip([first, *others], [*others, last], strict=True)
        return {layer: weigh(source(name), name) for name, layer in after}

    def weight(self, layer):
        n_in, n_out = dict(zip(SHAPES, itertools.pairwise(self.sizes), strict=True))[layer]
        return nn.Parameter(torch.ones(n_out, n_in, dtype=torch.float32, device="cpu"))


def drawn(kind, shapes=SHAPES):
    weights = make.make(kind, 1.0, 0, Weights())
    weights.require(shapes)
    return weights.matrices


@pytest.fixture(params=[torch.float64, torch.bfloat16, "meta"], ids=str)
def defaults(request):
    """Torch's default dtype, or default device, is another one."""
    if request.param == "meta":
        torch.set_default_device("meta")  # in place of "cuda", which not every machine has
    else:
        torch.set_default_dtype(request.param)
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def usual():
    return {kind: drawn(kind) for kind in (*DRAWN, *PRODUCTS)}


def normal(shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float32)


@pytest.mark.parametrize("kind", [*DRAWN, *PRODUCTS])
def test_a_draw_depends_on_no_default_of_torch(usual, defaults, kind):
    for name, matrix in drawn(kind).items():
        assert matrix.dtype == torch.float32
        assert matrix.device.type == "cpu"
        assert matrix.tolist() == usual[kind][name].tolist()


def test_a_function_draws_on_the_cpu_whatever_the_default_is(defaults):
    got = drawn(normal)["1"]
    with torch.device("cpu"):
        assert torch.equal(got, normal((3, 9), generator_for(0, "1", (3, 9))))


def test_first_weights_and_feedback_of_zhang_depend_on_no_default(defaults):
    for made in (zhang_weights((5, 4)), zhang_feedback((5, 4, 3)), zhang_feedback((3,))):
        assert made.dtype == torch.float32
        assert made.device.type == "cpu"


def test_an_attached_network_runs_with_another_default_device():
    net = network()
    with DFA(net, output="5") as dfa:
        backward(loop, net, 0)
        wanted = dfa.feedback["1"].clone()
    with DFA(net, output="5") as dfa:
        x = torch.rand(4, 5, 8)
        out = loop(net, x)
        torch.set_default_device("meta")
        try:
            out.sum().backward()
        finally:
            torch.set_default_device(None)
        assert torch.equal(dfa.feedback["1"], wanted)


# -- memory ----------------------------------------------------------------------------------------

HUGE = {"1": (16384, 16, 128, 128)}


def test_a_matrix_of_17_gb_is_not_drawn(monkeypatch):
    monkeypatch.setattr(fixed.Fixed, "draw", lambda *_: pytest.fail("drawn"))
    weights = make.make("gaussian", 1.0, 0, Weights())
    with pytest.raises(FeedbackError) as caught:
        weights.require(HUGE)
    said = str(caught.value)
    for part in ("layer '1'", "[16384, 16, 128, 128]", "'gaussian' needs 17.2 GB", "4.0 GB",
                 "feedback='channelwise', which needs 1.0 MB", "output=", "mapping"):  # fmt: skip
        assert part in said
    assert not weights.matrices


def test_such_a_network_runs_with_channelwise_feedback():
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True),
        nn.Conv2d(16, 1, 3, padding=1), snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True),
    )  # fmt: skip
    x = torch.rand(1, 1, 128, 128)
    with DFA(net, output="3"), pytest.raises(FeedbackError, match=r"needs 17\.2 GB"):
        net(x).sum().backward()
    reset(net)
    with DFA(net, output="3", feedback="channelwise") as dfa:
        net(x).sum().backward()
        assert dfa.feedback["1"].shape == (16384, 16, 1, 1)


@pytest.mark.parametrize("kind", feedback.NAMES)
def test_the_limit_is_on_what_a_type_stores(monkeypatch, kind):
    """A limit of the largest matrix is enough, and one byte less is too little."""
    shapes = {"1": (3, 9)} if kind == "channelwise" else SHAPES
    others = {"zhang": 45, "kolen-pollack-product": 45, "weight-mirror": 45,
              "product-feedback-alignment": 4 * 5 * (9 + 5), **dict.fromkeys(OF_WEIGHTS, 0)}  # fmt: skip
    largest = others.get(kind, 27)
    monkeypatch.setattr(base, "MAX_MATRIX_BYTES", 4 * largest)
    drawn(kind, shapes)
    monkeypatch.setattr(base, "MAX_MATRIX_BYTES", 4 * largest - 1)
    if kind in OF_WEIGHTS:
        drawn(kind, shapes)
    else:
        with pytest.raises(FeedbackError, match="the matrix of layer '1' has the shape"):
            drawn(kind, shapes)


def test_matrices_of_the_user_have_no_limit(monkeypatch):
    monkeypatch.setattr(base, "MAX_MATRIX_BYTES", 0)
    drawn(normal)
    drawn({name: torch.ones(shape) for name, shape in SHAPES.items()})


# -- types and states ------------------------------------------------------------------------------


def test_a_new_type_needs_a_draw_alone():
    class Ones(FeedbackWeights):
        def draw(self, name, shape):
            return self.scale * torch.ones(shape)

    weights = Ones("ones", 2.0, 0, Weights())
    weights.require(SHAPES)
    assert weights.known() == list(weights.shapes) == list(SHAPES)
    half = weights.matrix("3", torch.zeros((), dtype=torch.float16))
    assert half.dtype == torch.float16
    assert torch.equal(half, torch.full((3, 5), 2.0, dtype=torch.float16))
    assert not weights.accumulates
    weights.learn()
    loaded = Ones.from_state(weights.state_dict(), make.make("gaussian", 1.0, 0, Weights()))
    assert torch.equal(loaded.matrices["1"], weights.matrices["1"])
    assert weights.target_weights("3").tolist() == [[4.0] * 5] * 3


def test_a_state_of_no_known_type_changes_nothing():
    net = network()
    dfa = DFA(net, output="5")
    backward(loop, net, 0)
    before = dict(dfa.feedback)
    with pytest.raises(FeedbackError, match=r"a type among \['channelwise', .* got 'hebbian'"):
        dfa.load_state_dict({**dfa.state_dict(), "kind": "hebbian"})
    assert all(dfa.feedback[name] is matrix for name, matrix in before.items())


def test_a_loaded_type_takes_over_the_observer_and_the_optimiser():
    net = network()
    dfa = DFA(net, output="5", feedback="kolen-pollack")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa.follow(optimizer)
    seen = []
    dfa._feedback.observer = lambda name, error: seen.append(name)
    dfa.load_state_dict(DFA(network(), output="5", feedback="kolen-pollack-product").state_dict())
    backward(loop, net, 0)
    assert set(seen) == {"1", "3"}
    before = {name: matrix.clone() for name, matrix in dfa.feedback.items()}
    optimizer.step()
    assert not any(torch.equal(before[name], matrix) for name, matrix in dfa.feedback.items())
