"""The oracle gives what is known by hand, or by plain autograd on a program that is cut by hand."""

from types import SimpleNamespace

import programs
import pytest
import snntorch as snn
import torch
from oracle import Oracle, OracleError
from programs import Layer, Spec
from torch import nn

from snn_dfa.surrogate import fast_sigmoid

STEPS, BATCH = 4, 3


def lif(**options):
    return snn.Leaky(beta=0.8, threshold=0.5, spike_grad=fast_sigmoid(2.0), **options)


def grow(net):
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.mul_(2.0) if p.dim() > 1 else p.add_(0.2 * ("fc" in name))
    return net.double()


def equal(found, expected):
    for name, want in expected.items():
        got = found[name]
        if want is None or got is None:
            assert want is None or not want.any(), name
            assert got is None or not got.any(), name
        else:
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=name)


def gradients(loss, net):
    params = {n: p for n, p in net.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True, retain_graph=True)
    return dict(zip(params, found, strict=True))


# -- one layer: back-propagation -------------------------------------------------------------------


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(4, 6), lif(learn_beta=True), nn.Linear(6, 2)

    def forward(self, x):
        mem, out = torch.zeros(BATCH, 6, dtype=x.dtype), []
        for x_t in x:
            spk, mem = self.lif1(self.fc1(x_t), mem)
            out.append(self.fc2(spk))
        return torch.stack(out)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def x():
    return 2 * torch.rand(STEPS, BATCH, 4, dtype=torch.float64)


def test_one_layer_with_its_weight_as_feedback_is_back_propagation(x):
    net = grow(One())
    oracle = Oracle(net, ["lif1"], ["fc2"])
    loss = net(x).pow(2).sum()
    found = oracle.gradients(loss, {"lif1": net.fc2.weight.detach()})
    equal(found, gradients(loss, net))
    assert oracle.feedback_shapes() == {"lif1": (2, 6)}


def test_without_feedback_only_the_output_learns(x):
    net = grow(One())
    loss = (oracle := Oracle(net, ["lif1"], ["fc2"])) and net(x).pow(2).sum()
    found = oracle.gradients(loss, {})
    assert {n for n, g in found.items() if g is not None} == {"fc2.weight", "fc2.bias"}
    equal(
        {n: found[n] for n in ("fc2.weight",)}, {"fc2.weight": gradients(loss, net)["fc2.weight"]}
    )


def test_a_loop_over_time_around_the_network_is_the_loop_inside(x):
    net = grow(One())
    B = {"lif1": torch.randn(2, 6, dtype=torch.float64)}
    oracle = Oracle(net, ["lif1"], ["fc2"])
    inside = oracle.gradients(net(x).pow(2).sum(), B)
    oracle.remove()
    net.lif1.init_hidden = True
    around = nn.Sequential(net.fc1, net.lif1, net.fc2)
    net.lif1.reset_mem()
    oracle = Oracle(around, ["1"], ["2"])
    out = torch.stack([around(x_t) for x_t in x])
    found = oracle.gradients(out.pow(2).sum(), {"1": B["lif1"]})
    names = {"0": "fc1", "1": "lif1", "2": "fc2"}
    equal({f"{names[n[0]]}{n[1:]}": g for n, g in found.items()}, inside)


HALVED = torch.tensor([0.5, 0.5, 1, 1, 1])  # what a program does to spikes in place, by "slice_"


@pytest.mark.parametrize("kind", ["neurons", "blocks"])
@pytest.mark.parametrize("neuron", programs.LAYER_CHOICES["neuron"])
@pytest.mark.parametrize("states", programs.LAYER_CHOICES["states"])
def test_one_layer_of_any_neuron_with_its_weight_as_feedback(kind, neuron, states, float64):
    """Spikes that are changed in place are the neuron's state, too; their path stays."""
    layer = Layer(neuron=neuron, between="slice_", states=states)
    spec = Spec(seed=5, layers=(layer,), hidden_kind=kind, readout="linear", steps=4)
    spec = programs.valid(spec)
    net = programs.build(spec)
    (name,) = net.hidden_names()
    oracle = Oracle(net, [name], ["readout"])
    _, _, (loss,) = programs.run(spec, net, 0)
    B = {name: net.readout.weight.detach() * HALVED}
    equal(oracle.gradients(loss, B), gradients(loss, net))


# -- programs that are cut by hand -----------------------------------------------------------------


class Two(nn.Module):
    """Two hidden layers and a spiking output; ``cut`` is applied to what enters another layer."""

    def __init__(self, *features):
        super().__init__()
        self.features = features
        learns = {"learn_beta": True, "learn_threshold": True}
        self.fc1, self.lif1 = nn.Linear(4, 4), lif(**learns)
        self.fc2, self.lif2 = nn.Linear(4, 4), lif(**learns)
        self.fc3, self.lif3 = nn.Linear(4, 4), lif(**learns)
        self.own, self.down = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.head, self.gate = nn.Linear(4, 2), nn.Parameter(torch.tensor(0.7))
        self.spikes_first = torch.zeros(BATCH, 4, dtype=torch.float64)

    def change(self, mem):
        if "changed states" not in self.features:
            return mem
        return torch.where(mem > 0.3, mem * self.gate, 0.5 * mem)

    def forward(self, x, cut=lambda t: t):
        has = self.features.__contains__
        m1 = m2 = m3 = s2 = s3 = self.spikes_first
        rec = SimpleNamespace(spikes={"lif1": [], "lif2": []}, out=[], penalties=[])
        for x_t in x:
            current = self.fc1(x_t)
            if has("top down"):
                current = current + self.down(cut(s3))
            s1, m1 = self.lif1(current, m1)
            rec.spikes["lif1"].append(s1)
            seen, m1 = self.change(cut(m1)), self.change(m1)
            into = cut(s1) + seen if has("membrane") else cut(s1)
            current = self.fc2(into)
            if has("between"):  # one value for the loss and the next layer; cut by hand it is two
                uncut = s1 + m1 if has("membrane") else s1
                rec.penalties.append(current if cut(s1) is s1 else self.fc2(uncut))
            if has("own recurrence"):
                current = current + torch.tanh(self.own(s2))
            s2, m2 = self.lif2(current, m2)
            rec.spikes["lif2"].append(s2)
            if has("in place"):
                m2[:, :2].mul_(0.5)
            into = cut(s2)
            if has("residual"):
                into = into + cut(s1)
            s3, m3 = self.lif3(self.fc3(into), m3)
            rec.out.append((s3, m3))
            if has("penalty"):
                rec.penalties += [s1, m1, m2]
            if has("head"):
                rec.penalties.append(self.head(s2))
        return rec


def main_loss(out):
    return sum((k + 1) * ((s - 0.3).pow(2).sum() + m.pow(2).sum()) for k, (s, m) in enumerate(out))


def penalty(rec):
    return sum(((p - 0.1).pow(2).sum() for p in rec.penalties), torch.zeros(()))


FEATURES = (
    "top down", "changed states", "membrane", "own recurrence", "in place", "residual", "penalty",
    "head", "between",
)  # fmt: skip


@pytest.mark.parametrize("features", [(), *((f,) for f in FEATURES), FEATURES], ids=", ".join)
def test_it_is_autograd_on_the_program_that_is_cut_by_hand(features, x):
    net = grow(Two(*features))
    B = {name: torch.randn(4, 4, dtype=torch.float64) for name in ("lif1", "lif2")}
    oracle = Oracle(net, ["lif1", "lif2"], ["lif3"])
    rec = net(x)
    found = oracle.gradients(main_loss(rec.out) + penalty(rec), B)
    oracle.remove()
    rec = net(x, cut=torch.Tensor.detach)
    leaves = [tuple(v.detach().requires_grad_() for v in values) for values in rec.out]
    main_loss(leaves).backward()
    total = main_loss(rec.out) + penalty(rec)
    for name, spikes in rec.spikes.items():
        for s, (spk, mem) in zip(spikes, leaves, strict=True):
            total = total + (s * ((spk.grad + mem.grad) @ B[name])).sum()
    expected = gradients(total, net)
    equal(found, expected)
    assert expected["fc1.weight"].any()
    assert expected["fc2.weight"].any()


# -- an interpreter of graphs ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("chunk", range(4))
def test_without_layers_it_is_back_propagation(chunk, float64):
    for seed in range(25 * chunk, 25 * (chunk + 1)):
        spec = programs.draw(seed)
        net = programs.build(spec)
        oracle = Oracle(net, [], [])
        _, _, losses = programs.run(spec, net, 0)
        equal(oracle.gradients(sum(losses), {}), gradients(sum(losses), net))


# -- numbers ---------------------------------------------------------------------------------------


class Times(nn.Module):
    """A layer of one weight."""

    def __init__(self, weight):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return self.w * x


class Chain(nn.Module):
    """y = c (b (a x)), each factor a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Times(2.0), Times(3.0), Times(5.0)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


def numbers(found):
    return {n.split(".")[0]: None if g is None else float(g) for n, g in found.items()}


def test_three_factors():
    net = Chain()
    oracle = Oracle(net, ["a", "b"], ["c"])
    y = net(torch.ones(1, 1))  # 30, so that e = 1
    found = oracle.gradients(y.sum(), {"a": torch.tensor([[7.0]]), "b": torch.tensor([[11.0]])})
    # dy/dc = 6; b: 11 times its input 2; a: 7 times its input 1.
    assert numbers(found) == {"a": 7.0, "b": 22.0, "c": 6.0}


def test_a_penalty_does_not_reach_the_layer_below():
    net = Chain()
    oracle = Oracle(net, ["a", "b"], ["c"])
    middle = net.b(net.a(torch.ones(1, 1)))
    net.c(middle)
    assert numbers(oracle.gradients(10 * middle.sum(), {})) == {"a": None, "b": 20.0, "c": None}


def test_the_sum_of_two_outputs_errors_in_the_order_given():
    net = Chain()
    net.d = Times(1.0)
    net.forward = lambda x: (lambda h: (net.c(h), net.d(h)))(net.a(x))
    oracle = Oracle(net, ["a"], ["d", "c"])
    c, d = net(torch.ones(1, 1))
    B = {"a": torch.tensor([[100.0], [1.0]])}
    assert numbers(oracle.gradients(2 * c.sum() + 3 * d.sum(), B))["a"] == 302.0
    assert numbers(oracle.gradients(2 * c.sum(), B))["a"] == 2.0


def test_a_layer_that_returns_its_input_is_a_layer():
    net = Chain()
    net.b = nn.Identity()
    oracle = Oracle(net, ["a", "b"], ["c"])
    y = net(torch.ones(1, 1))
    found = oracle.gradients(y.sum(), {"a": torch.tensor([[7.0]]), "b": torch.tensor([[11.0]])})
    assert numbers(found) == {"a": 7.0, "c": 2.0}
    oracle.clear()
    y = net.c(net.b(net.a(torch.ones(1, 1))))
    assert numbers(oracle.gradients(y.sum(), {})) == {"a": None, "c": 2.0}


def test_an_output_that_returns_its_input_has_an_error():
    net = Chain()
    net.c = nn.Identity()
    oracle = Oracle(net, ["a"], ["c"])
    y = net(torch.ones(1, 1))
    # b lies between the layers, and belongs to the output's block.
    assert numbers(oracle.gradients(y.sum(), {"a": torch.tensor([[7.0]])})) == {"a": 7.0, "b": 2.0}


def test_values_without_a_graph():
    net = Chain()
    net.a.w.requires_grad_(False)
    oracle = Oracle(net, ["a", "b"], ["c"])
    y = net(torch.ones(1, 1))
    found = oracle.gradients(y.sum(), {"a": torch.tensor([[7.0]]), "b": torch.tensor([[11.0]])})
    assert numbers(found) == {"a": None, "b": 22.0, "c": 6.0}
    assert all(g is None for g in oracle.gradients(torch.zeros(()), {}).values())


def test_a_view_that_is_changed_in_place_between_layers():
    class Net(Chain):
        def forward(self, x):
            h = self.a(x)
            h[:, :1].mul_(4.0)
            other = h.view(-1)
            h.mul_(1.0)  # the view's node is made anew inside the next layer
            return self.b(other.view(1, 2)), self.c(other.view(1, 2))

    net = Net()
    oracle = Oracle(net, ["a", "b"], ["c"])
    b, c = net(torch.ones(1, 2))
    found = oracle.gradients(c.sum() + b.sum(), {"a": torch.tensor([[1.0, 10.0]] * 2)})
    # a gets e B for its own two values, 1 + 1 and 10 + 10, and nothing through b or c.
    assert numbers(found) == {"a": 22.0, "b": 10.0, "c": 10.0}


class Half(torch.autograd.Function):
    """A function with arguments that are no tensors, and one that needs no gradient."""

    @staticmethod
    def forward(ctx, factor, x, constant, again):
        ctx.factor = factor
        return factor * x, constant + again

    @staticmethod
    def backward(ctx, g, g_again):
        return None, ctx.factor * g, None, g_again


def test_a_function_of_the_users_own():
    class Net(Chain):
        def forward(self, x):
            h = self.a(x)
            first, second = Half.apply(0.5, self.b.w * h, torch.ones(1, 1), h)
            return self.c(first + second)

    net = Net()
    oracle = Oracle(net, ["a"], ["c"])
    y = net(torch.ones(1, 1))
    # y = c (b a / 2 + 1 + a) with b outside of layers: dy/db = c a / 2.
    found = numbers(oracle.gradients(y.sum(), {"a": torch.tensor([[7.0]])}))
    assert found == {"a": 7.0, "b": 5.0, "c": 6.0}
    equal(
        oracle.gradients(y.sum(), {"a": (net.c.w * (net.b.w / 2 + 1)).detach().view(1, 1)}),
        gradients(y.sum(), net),
    )


def test_an_output_out_of_step_with_a_hidden_layer_is_an_error():
    net = Chain()
    net.forward = lambda x: net.c(net.a(x)) + net.c(net.a(net.a(x)))
    oracle = Oracle(net, ["a"], ["c"])
    loss = net(torch.ones(1, 1)).sum()
    with pytest.raises(OracleError, match="out of step"):
        oracle.gradients(loss, {"a": torch.ones(1, 1)})


def test_an_output_that_is_called_once_belongs_with_the_last_calls():
    net = Chain()
    net.forward = lambda x: net.c(net.a(net.a(x)))
    oracle = Oracle(net, ["a"], ["c"])
    a = net.a.w.item()
    found = numbers(oracle.gradients(net(torch.ones(1, 1)).sum(), {"a": torch.tensor([[7.0]])}))
    assert (found["a"], found["c"]) == (7 * 2 * a, a * a)


def test_a_layer_inside_another_is_an_error():
    net = nn.Sequential(nn.Sequential(Times(1.0)), Times(1.0))
    Oracle(net, ["0", "0.0"], ["1"])
    with pytest.raises(OracleError, match="inside"):
        net(torch.ones(1, 1))


def test_removed_it_leaves_nothing():
    net = Chain()
    Oracle(net, ["a"], ["c"]).remove()
    assert not any("forward" in vars(m) for m in net.modules())
