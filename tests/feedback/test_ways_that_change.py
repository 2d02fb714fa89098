"""A weight mirror in programs that make a layer's current in another way than in the first batch.

With one step, each neuron's own gate and the weights as factors the gradient is back-propagation's.
"""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, KolenPollackProduct, WeightMirror, reset
from snn_dfa.surrogate import fast_sigmoid

X = 2 * torch.rand(1, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def leaky():
    surrogate = fast_sigmoid(5)
    return snn.Leaky(beta=0.7, threshold=0.2, spike_grad=surrogate, init_hidden=True)


class Between(nn.Module):
    """Two populations, a function of both, and neurons that get it."""

    def __init__(self, function):
        super().__init__()
        self.l1, self.n1, self.l2, self.n2 = nn.Linear(8, 24), leaky(), nn.Linear(8, 24), leaky()
        self.one, self.two, self.square = nn.Linear(24, 5), nn.Linear(24, 5), nn.Linear(24, 24)
        self.wide = nn.Linear(48, 5)
        self.n3, self.last, self.out = leaky(), nn.Linear(5, 3), leaky()
        self.function, self.switch = function, None

    def forward(self, x):
        a, q = self.n1(self.l1(x)), self.n2(self.l2(x))
        return self.out(self.last(self.n3(self.function(self, a, q))))


def grads_of(net, x=X):
    reset(net)
    net.zero_grad()
    spk = torch.stack([net(step) for step in x])
    (spk.sum(0) * torch.arange(1.0, 4)).sin().sum().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def with_weights(dfa, net):
    """Let the factors be the weights."""
    state = dfa.state_dict()
    for name in state["matrices"]:
        state["matrices"][name] = net.get_submodule(name).weight.detach().clone()
    dfa.load_state_dict(state)


def attached(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, output="out", feedback=WeightMirror(by_sample=1))
    return dfa, optimizer


def assert_back_propagation(net, switches):
    """Compare batches with each switch in turn, twice, and see that each one counts."""
    wanted = []
    for switch in switches:
        net.switch = switch
        wanted.append(grads_of(net))
    dfa, _optimizer = attached(net)
    for turn in range(2):
        for switch, want in zip(switches, wanted, strict=True):
            net.switch = switch
            if not turn:
                grads_of(net)
                with_weights(dfa, net)
            found = grads_of(net)
            for name, grad in want.items():
                got = found.get(name, torch.zeros_like(grad))
                torch.testing.assert_close(got, grad, rtol=1e-9, atol=1e-12)
    assert not dfa.state_dict()["learner"]["own"]  # no layer has a matrix of its own
    return wanted


WAYS = {
    "a branch is faded in": (
        lambda n, a, q: n.switch * n.one(a) + (1 - n.switch) * n.two(q), (0.0, 0.7, 1.0)),
    "by a tensor": (
        lambda n, a, q: n.one(a * n.switch) + n.two(q), (torch.tensor(2.0), torch.tensor(0.1))),
    "a sum with a factor": (
        lambda n, a, q: torch.add(n.one(a), n.two(q), alpha=n.switch), (1.0, 3.0)),
    "by lerp": (lambda n, a, q: torch.lerp(n.one(a), n.two(q), n.switch), (0.3, 0.9)),
    "by lerp with gains": (
        lambda n, a, q: n.one(a).lerp(n.two(q), torch.linspace(0, n.switch, 5).double()), (0.3, 0.9)),
    "by lerp with a gate": (
        lambda n, a, q: n.one(a).lerp(n.two(q), torch.sigmoid(n.switch * n.two(a))), (0.5, 2.0)),
    "by lerp of one": (
        lambda n, a, q: n.one(a.detach()).lerp(n.two(q), n.l1.bias[:5].sigmoid() * n.switch), (0.5,)),
    "a layer for each task": (lambda n, a, q: (n.two if n.switch else n.one)(a), (False, True)),
    "a source for each task": (lambda n, a, q: n.one(q if n.switch else a), (False, True)),
    "a branch that comes in": (
        lambda n, a, q: n.one(a) + n.two(q) if n.switch else n.one(a), (False, True)),
    "layers left out": (
        lambda n, a, q: n.one(a + n.square(a) if n.switch else a) + n.two(q), (True, False, True)),
    "other places": (
        lambda n, a, q: n.one(functional.pad(a[:, n.switch : n.switch + 12], (0, 12))), (0, 12)),
    "another order": (lambda n, a, q: n.one(a.roll(n.switch, 1)) + n.two(q), (0, 5)),
    "another slope": (
        lambda n, a, q: (torch.tanh if n.switch else torch.relu)(n.one(a)), (False, True)),
    "a path that was cut": (
        lambda n, a, q: n.one(a.detach() if n.switch else a) + n.two(a + q), (True, False)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_way_that_changes_from_batch_to_batch(way):
    function, switches = WAYS[way]
    torch.manual_seed(0)
    wanted = assert_back_propagation(Between(function).double(), switches)
    assert all(w["l1.weight"].any() or w["l2.weight"].any() for w in map(with_zeros, wanted))


def with_zeros(grads):
    return {"l1.weight": torch.zeros(()), "l2.weight": torch.zeros(())} | grads


class Steps(nn.Module):
    """What the second population gets differs from step to step."""

    def __init__(self, current):
        super().__init__()
        self.l1, self.n1 = nn.Linear(8, 24), leaky()
        self.even, self.odd = nn.Linear(24, 5), nn.Linear(24, 5)
        self.n2, self.last = leaky(), nn.Linear(5, 3)
        self.current, self.before = current, None

    def forward(self, x):
        found, self.before = [], torch.zeros(x.shape[1], 24, dtype=x.dtype)
        for t, step in enumerate(x):
            spk = self.n1(self.l1(step))
            found.append(self.last(self.n2(self.current(self, t, spk))))
            self.before = spk
        return torch.stack(found)


SEVERAL = 2 * torch.rand(4, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ZERO = torch.zeros(4, 24, dtype=torch.float64)
BY_STEP = {
    "a layer for each": (
        lambda n, t, spk: (n.odd if t % 2 else n.even)(spk),
        lambda n: (n.odd.weight + n.even.weight) / 2),
    "a factor that grows": (lambda n, t, spk: n.even(spk * (t / 4)), lambda n: 0.375 * n.even.weight),
    "a first step without": (
        lambda n, t, spk: n.even(spk * (1.0 if t else 0.0)), lambda n: 0.75 * n.even.weight),
    "every other step": (
        lambda n, t, spk: n.even(spk if t % 2 else ZERO), lambda n: 0.5 * n.even.weight),
    "the spikes of the last step": (
        lambda n, t, spk: n.even(n.before), lambda n: 0.75 * n.even.weight),
    "more than at the first step": (
        lambda n, t, spk: n.even(spk) + (n.odd(n.before) if t else 0),
        lambda n: n.even.weight + 0.75 * n.odd.weight),
    "side by side with zeros at first": (
        lambda n, t, spk: n.even(torch.cat([n.before[:, :12], spk[:, 12:]], 1)),
        lambda n: n.even.weight * torch.tensor([0.75] * 12 + [1.0] * 12)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BY_STEP)
def test_of_steps_that_differ_the_mean_counts(kind):
    """B of the layer before is that of the mean, and gates are those of steps in which it flows."""
    current, mean = BY_STEP[kind]
    torch.manual_seed(0)
    net = Steps(current).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, output="last", feedback=WeightMirror(by_sample=1))
    factors = torch.arange(1.0, 4, dtype=torch.float64)  # the same error at all steps

    def grad_of():
        reset(net)
        net.zero_grad()
        (net(SEVERAL).sum(0) * factors).sum().backward()
        return net.l1.weight.grad

    grad_of()
    with_weights(dfa, net)
    found = grad_of()
    torch.testing.assert_close(dfa.feedback["n1"], net.last.weight @ mean(net))
    dfa.remove()

    taken = []
    net.current = lambda n, t, spk: taken.append(current(n, t, spk)) or taken[-1]
    reset(net)
    spikes1, spikes2 = [], []
    for layer, to in ((net.n1, spikes1), (net.n2, spikes2)):
        layer.register_forward_hook(lambda m, args, out, to=to: to.append(out) or None)
    net(SEVERAL)
    flows = [t for t in taken if t.requires_grad and torch.autograd.grad(
        t.sum(), spikes1, retain_graph=True, allow_unused=True) != (None,) * 4]  # fmt: skip
    gates = torch.stack(
        torch.autograd.grad(sum(s.sum() for s in spikes2), flows, retain_graph=True)
    )
    sent = (factors @ net.last.weight * gates.mean(0)) @ mean(net)
    # Of what size the errors of a step are is known if others flow in at every step.
    sizes = gates.abs().sum((1, 2), keepdim=True) if len(flows) == 4 else torch.ones(4, 1, 1)
    sent = sent * sizes / sizes.mean()
    spikes1 = torch.stack(spikes1)
    reset(net)
    alone = torch.stack([net.n1(net.l1(step)) for step in SEVERAL])
    assert torch.equal(alone, spikes1)
    wanted = torch.autograd.grad(alone, net.l1.weight, sent)[0]
    assert wanted.any()
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("feedback", [WeightMirror(by_sample=0), KolenPollackProduct()])
@pytest.mark.parametrize("kind", BY_STEP)
def test_so_it_is_without_ways_of_samples(kind, feedback):
    current, mean = BY_STEP[kind]
    torch.manual_seed(0)
    net = Steps(current).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"error_at": "current", "feedback": feedback}
    dfa = DFA(net, optimizer=optimizer, output="last", **options)
    for _ in range(2):
        reset(net)
        net(SEVERAL).sum().backward()
        with_weights(dfa, net)
    reset(net)
    net(SEVERAL).sum().backward()
    torch.testing.assert_close(dfa.feedback["n1"], net.last.weight @ mean(net))


STACKS = {
    "one of several layers": lambda n, a, q: (
        n.one(torch.stack([a, q])[0]) + n.two(torch.stack([a, q], 1)[:, -1])),
    "halves of one layer": lambda n, a, q: torch.stack([a[:, :5], a[:, 5:10], q[:, :5]])[1],
    "with factors": lambda n, a, q: n.one((torch.stack([a, 2 * a, q]) * 0.5)[1]),
    "as one row": lambda n, a, q: n.wide(torch.stack([a, q], 1).flatten(1)),
    "last": lambda n, a, q: n.wide(torch.stack([a, q], -1).flatten(1)),
    "through a layer": lambda n, a, q: n.one(torch.stack([a, q], 1)).mean(1),
    "through slopes": lambda n, a, q: n.wide(torch.relu(torch.stack([a - 0.5, q], 1)).flatten(1)),
    "mean and sum": lambda n, a, q: n.one(torch.stack([a, q]).mean(0) - torch.stack([q, a]).sum(0)),
}  # fmt: skip


@pytest.mark.parametrize("stack", STACKS)
def test_layers_that_are_set_side_by_side_are_no_steps(stack):
    torch.manual_seed(0)
    wanted = assert_back_propagation(Between(STACKS[stack]).double(), [None])
    assert wanted[0]["l1.weight"].any()


def test_layers_that_are_put_into_a_tensor_are_no_steps():
    def function(net, a, q):
        both = torch.empty(len(a), 2, 24, dtype=a.dtype)
        both[:, 0], both[:, 1] = a, q
        return net.one(both).mean(1)

    torch.manual_seed(0)
    net = Between(function).double()
    dfa, _optimizer = attached(net)
    grads_of(net)
    assert set(dfa.state_dict()["learner"]["own"]) == {"n1", "n2"}


def test_one_of_several_layers_steps_gives_matrices_of_their_own():
    """Of values of two layers and two steps the one that is taken is not known."""

    class Net(Between):
        before = None

        def forward(self, x):
            a, q = self.n1(self.l1(x)), self.n2(self.l2(x))
            both = [a, q] if self.before is None else [a, q, self.before]
            self.before = a
            return self.out(self.last(self.n3(self.one(torch.stack(both)[1]))))

    torch.manual_seed(0)
    net = Net(None).double()
    dfa, _optimizer = attached(net)
    reset(net)
    torch.stack([net(step) for step in X.repeat(3, 1, 1)]).sum().backward()
    assert set(dfa.state_dict()["learner"]["own"]) == {"n1", "n2"}


@pytest.mark.parametrize("move", [
    lambda x: x.movedim(1, -1), lambda x: x.reshape(-1, 12, 2)[:, :, :1].expand(-1, -1, 2).flatten(1),
    lambda x: x[:, ::2].repeat_interleave(2, 1),
])  # fmt: skip
def test_a_normalisation_behind_what_moves_numbers_has_its_gains(move):
    """Also where the move leaves each number in its place, or takes each one twice."""
    torch.manual_seed(0)
    net = Between(lambda n, a, q: n.one(n.norm(move(a)))).double()
    net.norm = nn.BatchNorm1d(24).double()
    net.norm.running_var.uniform_(0.1, 0.5)
    assert assert_back_propagation(net.eval(), [None])[0]["l1.weight"].any()


TRANSPOSED = {
    "product": lambda n, a, q: n.one(a @ n.square.weight),
    "einsum": lambda n, a, q: n.one(torch.einsum("bi,io->bo", a, n.square.weight)),
    "of matrices": lambda n, a, q: n.one((a[:, None] @ n.square.weight)[:, 0]),
    "tied": lambda n, a, q: n.one(functional.linear(n.square(a), n.square.weight.t())),
}  # fmt: skip


@pytest.mark.parametrize("product", TRANSPOSED)
def test_a_square_weight_that_is_transposed_has_a_factor_of_its_own(product):
    """The layer's factor would send errors through the weight as it stands in its module."""
    torch.manual_seed(0)
    net = Between(TRANSPOSED[product]).double()
    wanted = grads_of(net)["l1.weight"]
    dfa, _optimizer = attached(net)
    grads_of(net)
    state, modules = dfa.state_dict(), dict(net.named_modules())
    assert not state["learner"]["own"]
    assert ("square" in state["matrices"]) == (product == "tied")
    for name in state["matrices"]:
        made = name.startswith("into ")
        weight = net.square.weight.t() if made else modules[name].weight
        state["matrices"][name] = weight.detach().clone()
    dfa.load_state_dict(state)
    torch.testing.assert_close(grads_of(net)["l1.weight"], wanted)


def test_a_weight_that_is_turned_into_a_convolution_has_a_factor_of_its_own():
    torch.manual_seed(0)
    net = Between(
        lambda n, a, q: functional.conv1d(a[:, :, None], n.one.weight[:, :, None])[..., 0]
    ).double()
    wanted = grads_of(net)["l1.weight"]
    dfa, _optimizer = attached(net)
    grads_of(net)
    state = dfa.state_dict()
    assert (list(state["matrices"]), state["learner"]["own"]) == (["into n3 1", "last"], {})
    state["matrices"]["into n3 1"] = net.one.weight.detach()[:, :, None].clone()
    state["matrices"]["last"] = net.last.weight.detach().clone()
    dfa.load_state_dict(state)
    torch.testing.assert_close(grads_of(net)["l1.weight"], wanted)


def test_a_square_weight_as_its_module_uses_it_is_a_factor():
    torch.manual_seed(0)
    net = Between(lambda n, a, q: n.one((a @ n.square.weight.t()) + n.square(q))).double()
    assert assert_back_propagation(net, [None])[0]["l1.weight"].any()


#: Products that are those of expanded matrices in autograd's graph.
FROZEN = {
    "of a layer": lambda n, a, q: n.one(n.still(a.reshape(-1, 6, 4).mT).flatten(1)),
    "without a bias": lambda n, a, q: n.one(
        functional.linear(a.reshape(-1, 6, 4).mT, n.still.weight).flatten(1) * q),
    "of heads": lambda n, a, q: n.one(n.still(a.reshape(-1, 2, 6, 2).mT).mT.flatten(1)),
}  # fmt: skip
OF_NO_LAYER = {
    "a function of a parameter": lambda n, a, q: functional.linear(
        a.reshape(-1, 6, 4).mT, n.kept * 2
    ),
    "of each head": lambda n, a, q: a.reshape(-1, 4, 2, 3).transpose(1, 2) @ n.heads,
    "to the left": lambda n, a, q: n.kept @ a.reshape(-1, 6, 4),
    "to the left, as a layer": lambda n, a, q: n.still.weight @ a.reshape(-1, 6, 4),
}


def with_frozen(function):
    torch.manual_seed(0)
    net = Between(function)
    net.still, net.kept = nn.Linear(6, 6), nn.Parameter(torch.randn(6, 6) / 3)
    net.heads = nn.Parameter(torch.randn(2, 3, 3))
    for parameter in (*net.still.parameters(), net.kept, net.heads):
        parameter.requires_grad_(False)
    return net.double()


@pytest.mark.parametrize("product", FROZEN)
def test_a_frozen_weight_that_is_expanded_is_a_factor(product):
    """Errors go back through the factor, and not through the weight itself."""
    net = with_frozen(FROZEN[product])
    assert assert_back_propagation(net, [None])[0]["l1.weight"].any()
    net = with_frozen(FROZEN[product])
    dfa, _optimizer = attached(net)
    grads_of(net)
    state = dfa.state_dict()
    state["matrices"]["still"].zero_()
    dfa.load_state_dict(state)
    assert not grads_of(net)["l1.weight"].any()


def test_a_frozen_layer_between_sequences_sends_back_what_it_did_when_it_learnt():
    def gradients(*, learns):
        torch.manual_seed(0)
        options = {"beta": 0.7, "threshold": 0.2, "spike_grad": fast_sigmoid(5)}
        n1, n2 = (snn.StateLeaky(channels=k, **options) for k in (24, 24))

        class Sequence(nn.Module):
            def __init__(self):
                super().__init__()
                self.l1, self.n1, self.still = nn.Linear(8, 24), n1, nn.Linear(6, 6)
                self.n2, self.last = n2, nn.Linear(24, 3)

            def forward(self, x):
                z = self.n1(self.l1(x))[0].unflatten(-1, (6, 4)).mT
                return self.last(self.n2(self.still(z).flatten(-2))[0])

        net = Sequence().double()
        net.still.requires_grad_(requires_grad=learns)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        dfa = DFA(net, output="last", optimizer=optimizer)
        for _ in range(2):
            net.zero_grad()
            net(SEVERAL).sin().sum().backward()
            with_weights(dfa, net)
        assert not dfa.state_dict()["learner"]["own"]
        return {n: p.grad for n, p in net.named_parameters() if not n.startswith("still")}

    wanted, found = gradients(learns=True), gradients(learns=False)
    for name, grad in wanted.items():
        assert grad.any()
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("samples", [4, 1])
@pytest.mark.parametrize("product", OF_NO_LAYER)
def test_a_frozen_weight_of_no_layer_sends_no_error_back(product, samples):
    function = OF_NO_LAYER[product]
    net = with_frozen(lambda n, a, q: n.one(function(n, a, q).flatten(1)))
    dfa, _optimizer = attached(net)
    grads_of(net, X[:, :samples])
    assert set(dfa.state_dict()["learner"]["own"]) == {"n1"}


def test_a_fixed_matrix_that_joins_parts_of_a_sample_sends_errors_back():
    """As the neighbours in a graph, which are no weights."""
    net = with_frozen(lambda n, a, q: n.one((n.graph @ a.reshape(-1, 6, 4)).flatten(1)))
    net.register_buffer("graph", torch.rand(6, 6, dtype=torch.float64))
    assert assert_back_propagation(net, [None])[0]["l1.weight"].any()


@pytest.mark.parametrize("order", [[True, True, False, False], [False, False, True, True]])
def test_a_way_that_is_not_known_in_some_batches(order):
    """A matrix of a layer's own rests while there is a way, and goes on after it."""

    def function(net, a, q):
        return net.one((a * 0.5 + 1).cumprod(1)) if net.switch else net.one(a) + net.two(q)

    torch.manual_seed(0)
    net = Between(function).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, output="out")
    for net.switch in order * 2:
        grads = grads_of(net)
        optimizer.step()
    assert grads["l1.weight"].any()
    state = dfa.state_dict()
    assert set(state["learner"]["own"]) == {"n1"}
    assert set(state["matrices"]) == {"one", "two", "last"}
    dfa.load_state_dict(state)
    for net.switch in order:
        again = grads_of(net)
        assert again["l1.weight"].any()
