"""How large the errors of each step are: as large as the gates that they pass."""

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from snn_dfa import DFA, WeightMirror, over_time, reset
from snn_dfa.feedback.jacobians import courses
from snn_dfa.feedback.stand_in import source, total, weigh

T, B = 6, 4
# With a slope of 1 and no reset a gate depends on the step alone, by the decays, and by what a
# recurrent neuron gives back to itself.
LINEAR = {
    "spike_grad": surrogate.straight_through_estimator(), "reset_mechanism": "none",
    "init_hidden": True,
}  # fmt: skip
NEURONS = {
    "leaky": lambda: snn.Leaky(beta=0.8, **LINEAR),
    "synaptic": lambda: snn.Synaptic(alpha=0.5, beta=0.8, **LINEAR),
    "recurrent": lambda: snn.RLeaky(beta=0.8, V=0.5, all_to_all=False, **LINEAR),
    "recurrent and synaptic": lambda: snn.RSynaptic(
        alpha=0.5, beta=0.8, V=0.5, all_to_all=False, **LINEAR
    ),
}


def grads_of(net, run):
    """Return the gradients of each weight; the loss gives the same error at all steps."""
    reset(net)
    net.zero_grad()
    out = run()
    (out.sum(0) * torch.arange(1.0, 4)).sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.dim() == 2}


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("kind", NEURONS)
def test_where_gates_depend_on_the_step_alone_it_is_back_propagation(kind, form):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 8), snn.Leaky(beta=0.8, init_hidden=True), nn.Linear(8, 6), NEURONS[kind](),
        nn.Linear(6, 3),
    )  # fmt: skip
    x = 3 * torch.rand(T, B, 5)

    def loop():
        return torch.stack([net(step) for step in x])

    wanted, attached = grads_of(net, loop), over_time(net) if form else net
    run = (lambda: attached(x)) if form else loop
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(attached, output="4", optimizer=optimizer, feedback=WeightMirror(by_sample=1))
    grads_of(net, run)
    state = dfa.state_dict()
    for name in state["matrices"]:
        state["matrices"][name] = net.get_parameter(f"{name}.weight").detach().clone()
    dfa.load_state_dict(state)
    found = grads_of(net, run)
    for name, grad in wanted.items():
        assert grad.any()
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-4)


def test_a_layer_that_flows_into_several_has_their_mean():
    inflows = {
        "lif2": weigh(source("lif1"), "fc2"),
        "out": weigh(total([source("lif1"), source("lif2")]), "fc3"),
    }
    at = {"lif2": torch.tensor([1.6, 0.4]), "out": torch.tensor([1.2, 0.8])}
    found = courses(inflows, ["out"], ["lif1", "lif2"], at)
    torch.testing.assert_close(found["lif1"], torch.tensor([1.4, 0.6]))
    torch.testing.assert_close(found["lif2"], torch.tensor([1.2, 0.8]))


def test_a_layer_without_gates_passes_errors_as_it_gets_them():
    inflows = {"lif2": weigh(source("lif1"), "fc2"), "out": weigh(source("lif2"), "fc3")}
    at = {"out": torch.tensor([1.2, 0.8])}
    found = courses(inflows, ["out"], ["lif1", "lif2"], at)
    torch.testing.assert_close(found["lif1"], at["out"])
    assert courses(inflows, ["out"], ["lif1", "lif2"], {}) == {"lif1": None, "lif2": None}


def test_a_layer_that_passes_nothing_does_not_count():
    inflows = {
        "lif2": weigh(source("lif1"), "fc2"),
        "out": weigh(total([source("lif1"), source("lif2")]), "fc3"),
    }
    at = {"lif2": torch.zeros(2), "out": torch.tensor([1.2, 0.8])}
    torch.testing.assert_close(courses(inflows, ["out"], ["lif1", "lif2"], at)["lif1"], at["out"])


class Box(torch.autograd.Function):
    """A spike whose slope is zero away from the threshold."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0].abs() < 0.3)


class Branch(nn.Module):
    """A layer flows into the output, and by a second layer that passes no error at any step."""

    def __init__(self, cut):
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.fc1, self.fc2, self.last = (
            cut,
            *(nn.Linear(*n) for n in ((5, 8), (8, 6), (14, 3))),
        )
        self.lif1, self.out = (snn.Leaky(0.8, 0.3, init_hidden=True, output=True) for _ in range(2))
        self.lif2 = snn.Leaky(0.8, 50.0, spike_grad=Box.apply, init_hidden=True)

    def forward(self, x):
        reset(self)
        mems = []
        for step in x:
            spk = self.lif1(self.fc1(step))[0]
            second = self.lif2(self.fc2(spk))
            second = torch.zeros_like(second) if self.cut else second
            mems.append(self.out(self.last(torch.cat([spk, second], 1)))[1])
        return torch.stack(mems)


def test_a_layer_that_passes_nothing_does_not_change_the_errors_of_others():
    found = []
    for cut in (False, True):
        net = Branch(cut)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        DFA(net, output="out", optimizer=optimizer, feedback=WeightMirror(by_sample=1))
        for _ in range(2):
            net.zero_grad()
            net(3 * torch.rand(T, B, 5)).square().sum().backward()
            optimizer.step()
        found.append(net.fc1.weight.grad)
    assert found[0].any()
    torch.testing.assert_close(*found)


# -- an error that is the same at all steps but for a number ---------------------------------------


class Halved(torch.autograd.Function):
    """A user's own function, which hands its gradient to NumPy."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(grad.numpy() / 2)


def hooked(spk):
    """A hook that changes the gradient in place."""
    if spk.requires_grad:
        spk.register_hook(lambda grad: grad.mul_(0.5))
    return spk


class Block(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.fc, self.lif, self.end = nn.Linear(5, 8), leaky(), end

    def forward(self, x):
        return self.end(self.lif(self.fc(x)))


class Pair(nn.Sequential):
    """The same as a block that is no layer."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(5, 8), leaky()


def leaky():
    return snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True)


def first_gradient(block, form, **options):
    """Return the gradient of the first of three layers, with the weights as factors."""
    torch.manual_seed(0)
    net = nn.Sequential(block(), nn.Linear(8, 6), leaky(), nn.Linear(6, 3), leaky())
    x = 3 * torch.rand(T, B, 5)
    run = over_time(net) if form else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(run, output="4", optimizer=optimizer, **options)
    weights = {"1": net[1].weight, "3": net[3].weight}
    for _ in range(2):
        reset(net)
        net.zero_grad()
        out = run(x) if form else torch.stack([net(step) for step in x])
        (out.sum(0) - 2).square().sum().backward()
        state = dfa.state_dict()
        state["matrices"] |= {name: weights[name].detach().clone() for name in state["matrices"]}
        dfa.load_state_dict(state)
    return net[0].get_submodule("fc").weight.grad


@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("end", [Halved.apply, hooked])
def test_functions_and_hooks_in_a_block_get_a_plain_gradient(end, form):
    wanted = first_gradient(lambda: Block(nn.Identity()), form, hidden=["0", "2"])
    assert wanted.any()
    found = first_gradient(lambda: Block(end), form, hidden=["0", "2"])
    torch.testing.assert_close(found, wanted / 2)


def test_the_credit_current_takes_it():
    loop, form = (first_gradient(Pair, form, credit="current") for form in (False, True))
    assert loop.any()
    torch.testing.assert_close(form, loop)
