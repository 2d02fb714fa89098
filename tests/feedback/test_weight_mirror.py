"""``DFA(net, optimizer=...)``: where the error is taken, what stands in, and how factors learn."""

import copy

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import (
    DFA,
    AttachError,
    BackwardError,
    FeedbackError,
    KolenPollackProduct,
    WeightMirror,
    over_time,
    reset,
)
from snn_dfa.feedback.learning import Twin
from snn_dfa.surrogate import fast_sigmoid

T, B = 4, 3


def leaky(**options):
    return snn.Leaky(0.7, 0.4, spike_grad=fast_sigmoid(5), init_hidden=True, **options)


def loop(net, x):
    reset(net)
    out = [net(step) for step in x]
    return [torch.stack(each) for each in zip(*out, strict=True)]


def loss_of(spk, mem):
    return spk.sum(0).square().sum() + (mem * torch.arange(1.0, 1 + len(mem)).view(-1, 1, 1)).sum()


def grads_of(net, x):
    net.zero_grad()
    loss_of(*loop(net, x)).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


# -- where the error is taken ----------------------------------------------------------------------

OUTPUTS = {
    "leaky": lambda: leaky(output=True),
    "recurrent": lambda: snn.RLeaky(
        0.7, linear_features=3, threshold=0.4, spike_grad=fast_sigmoid(5), init_hidden=True,
        output=True),
    "reset to zero": lambda: leaky(output=True, reset_mechanism="zero"),
    "with a resistance": lambda: snn.Lapicque(
        R=2.0, C=3.0, time_step=1.5, threshold=0.4, spike_grad=fast_sigmoid(5), init_hidden=True,
        output=True),
    "with a decay that learns": lambda: leaky(output=True, learn_beta=True),
}  # fmt: skip


class Explicit(nn.Sequential):
    """The same with states that the program holds, and the current of the output by its name."""

    def forward(self, x):
        if x is self.steps[0]:
            self.mems = [torch.zeros(B, n, dtype=x.dtype) for n in (6, 3)]
        for i, (layer, neuron) in enumerate([(self[0], self[1]), (self[2], self[3])]):
            x, self.mems[i] = neuron(input_=layer(x), mem=self.mems[i])
        return x, self.mems[1]


def test_states_that_the_program_holds():
    torch.manual_seed(0)
    neurons = [snn.Leaky(0.7, 0.4, spike_grad=fast_sigmoid(5)) for _ in range(2)]
    net = Explicit(nn.Linear(5, 6), neurons[0], nn.Linear(6, 3), neurons[1]).double()
    net.steps = list(torch.rand(T, B, 5, dtype=torch.float64))
    wanted = grads_of(net, net.steps)
    with DFA(net, feedback={"1": net[2].weight.detach()}, error_at="current"):
        for _ in range(2):
            found = grads_of(net, net.steps)
            for name, grad in wanted.items():
                torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_with_one_hidden_layer_and_its_weights_it_is_back_propagation(output, frozen):
    """The error at the current, through the last weights, is what back-propagation sends."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), leaky(), nn.Linear(6, 3), OUTPUTS[output]()).double()
    net[2].requires_grad_(not frozen)
    x = torch.rand(T, B, 5, dtype=torch.float64)
    wanted = grads_of(net, x)
    with DFA(net, feedback={"1": net[2].weight.detach()}, error_at="current"):
        for _ in range(2):  # the first batch does not know its output yet
            found = grads_of(net, x)
            for name, grad in wanted.items():
                torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-10)


class LastOnly(nn.Sequential):
    """Returns what the output returned last."""

    def forward(self, x):
        for step in x:
            out = super().forward(step)
        return out


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_loss_on_the_last_step_alone_has_errors_at_the_currents_before(output, inside):
    """The output's membrane carries them there, whether or not the loss is given these steps."""
    torch.manual_seed(0)
    net = LastOnly(nn.Linear(5, 6), leaky(), nn.Linear(6, 3), OUTPUTS[output]()).double()
    x = 2 * torch.rand(T, B, 5, dtype=torch.float64)

    def last_grads():
        reset(net)
        net.zero_grad()
        for steps in [x] if inside else x[:, None]:
            out = net(steps)
        (out[-1] * torch.arange(1.0, 4)).sin().sum().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    wanted = last_grads()
    with DFA(net, feedback={"1": net[2].weight.detach()}, error_at="current"):
        for _ in range(2):
            found = last_grads()
            assert found["0.weight"].any()
            for name, grad in wanted.items():
                torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-10)


class Watched(nn.Sequential):
    """An output whose spikes go back into it, with a hook on them."""

    def forward(self, x):
        spk, mem, out = torch.zeros(B, 3), torch.zeros(B, 3), []
        for step in x:
            spk, mem = self[3](self[2](self[1](self[0](step))), spk, mem)
            if spk.requires_grad:
                spk.register_hook(self.hook)
            out.append(spk)
        return torch.stack(out)


def test_a_hook_on_an_outputs_spikes_may_look_and_not_change_what_goes_back():
    torch.manual_seed(0)
    output = snn.RLeaky(0.7, linear_features=3, threshold=0.4, spike_grad=fast_sigmoid(5))
    net, x = Watched(nn.Linear(5, 6), leaky(), nn.Linear(6, 3), output), torch.rand(T, B, 5)
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1), []
    DFA(net, optimizer=optimizer)
    net.hook = lambda grad: seen.append(grad)  # returns None
    for _ in range(2):
        reset(net)
        net(x).sum().backward()
    assert len(seen) == 2 * T
    reset(net)
    net.hook = lambda grad: 2 * grad
    with pytest.raises(BackwardError, match="a hook"):
        net(x).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error_at": "outputs"}, "error_at: expected 'spikes' or 'current', got 'outputs'"),
        ({"error_at": "current", "credit": "trace"}, "expected credit='membrane', got 'trace'"),
    ],
)
def test_where_an_error_cannot_be_taken(options, message):
    net = nn.Sequential(nn.Linear(5, 6), leaky(), nn.Linear(6, 3), leaky(output=True))
    with pytest.raises(AttachError, match=message):
        DFA(net, **options)
    DFA(net).remove()


# -- what stands in for the layers above -----------------------------------------------------------


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), leaky(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(4), leaky(),
        nn.AvgPool2d(2), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Dropout(0.2), leaky(),
        nn.Flatten(), nn.Linear(4, 3), leaky(output=True),
    )  # fmt: skip


def stand_in(z, v):
    """The linear network of `convolutional`, by hand."""
    a = z[0]
    b = functional.conv2d(a, v["2"], stride=2, padding=1) + z[1]
    c = functional.avg_pool2d(functional.conv2d(functional.avg_pool2d(b, 2), v["6"]), 2) + z[2]
    return c.flatten(1) @ v["11"].t()


class Branching(nn.Module):
    """Two ways from the first layer: over a neuron and round it; joined, and scaled."""

    def __init__(self):
        super().__init__()
        self.l1, self.n1 = nn.Linear(5, 6), leaky()
        self.l2, self.n2 = nn.Linear(6, 6), leaky()
        self.l3, self.n3 = nn.Linear(12, 4), leaky()
        self.last = nn.Linear(4, 3)
        self.out = leaky(output=True)

    def forward(self, x):
        a = self.n1(self.l1(x))
        b = self.n2(self.l2(a) - 0.5 * a)
        c = self.n3(self.l3(torch.cat([b, a], -1)))
        return self.out(self.last(c))


def branching(z, v):
    a = z[0]
    b = a @ v["l2"].t() - 0.5 * a + z[1]
    c = torch.cat([b, a], -1) @ v["l3"].t() + z[2]
    return c @ v["last"].t()


@pytest.mark.parametrize(
    ("make", "by_hand", "shape"),
    [(convolutional, stand_in, (1, 8, 8)), (Branching, branching, (5,))],
)
def test_feedback_is_the_derivative_of_a_linear_network_of_factors(make, by_hand, shape):
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, feedback=KolenPollackProduct())
    loss_of(*loop(net, torch.rand(T, B, *shape))).backward()
    factors = dfa.state_dict()["matrices"]
    zeros = tuple(torch.zeros(1, *each[1:]) for each in dfa.sites.values())
    wanted = torch.autograd.functional.jacobian(lambda *z: by_hand(z, factors)[0], zeros)
    for found, each in zip(dfa.feedback.values(), wanted, strict=True):
        torch.testing.assert_close(found, each[:, 0])


def test_what_is_not_linear():
    class Gated(Branching):
        def forward(self, x):
            a = self.n1(self.l1(x))
            b = self.n2((self.own @ self.l2(a).t()).t() if hasattr(self, "own") else self.l2(a) * a)
            return self.out(self.last(self.n3(self.l3(torch.cat([b, a], -1)))))

    net = Gated()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with (
        DFA(net, optimizer=optimizer, feedback=KolenPollackProduct()),
        pytest.raises(FeedbackError, match="layer 'n2' passes 'MulBackward0'"),
    ):
        loop(net, torch.rand(T, B, 5))
    net.own = nn.Parameter(torch.rand(6, 6))  # weights from the left have no way back
    dfa = DFA(net, optimizer=optimizer)  # the layer before it has another way, past that matrix
    factors, own = learnt(net, dfa, optimizer)
    assert (list(factors), own) == (["l3", "last"], {})
    above = factors["last"] @ factors["l3"]  # n1 is joined to n2's spikes
    torch.testing.assert_close(dfa.feedback["n1"], above[:, 6:])
    torch.testing.assert_close(dfa.feedback["n2"], above[:, :6])
    assert repr(dfa).endswith("no_way={'n2': 'TBackward0'})")


def learnt(net, dfa, optimizer):
    """Return the factors after three steps, and the layers' own matrices."""
    for _ in range(3):
        loss_of(*loop(net, torch.rand(T, B, 5))).backward()
        optimizer.step()
    state = dfa.state_dict()
    return state["matrices"], state["learner"]["own"]


def test_of_a_sum_the_parts_that_are_linear_pass_errors():
    class Sum(Branching):
        def __init__(self):
            super().__init__()
            self.l0, self.n0 = nn.Linear(5, 6), leaky()
            self.own = nn.Parameter(torch.rand(6, 6))

        def forward(self, x):
            a, other = self.n1(self.l1(x)), self.n0(self.l0(x))
            b = self.n2(self.l2(a) + (self.own @ (a - other).t()).t())
            return self.out(self.last(self.n3(self.l3(torch.cat([b, a], -1)))))

    net = Sum()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    factors, own = learnt(net, dfa, optimizer)
    assert (list(factors), list(own)) == (["l2", "l3", "last"], ["n0"])
    above = factors["last"] @ factors["l3"]
    torch.testing.assert_close(dfa.feedback["n1"], above[:, 6:] + above[:, :6] @ factors["l2"])
    torch.testing.assert_close(dfa.feedback["n0"], own["n0"])
    assert own["n0"].any()
    assert repr(dfa).endswith("no_way={'n2': 'TBackward0'}, own_matrix=('n0',))")
    dfa.remove()
    with (
        DFA(net, optimizer=optimizer, feedback=KolenPollackProduct()),
        pytest.raises(FeedbackError, match="layer 'n2' passes 'TBackward0'"),
    ):
        loop(net, torch.rand(T, B, 5))


# -- how factors learn -----------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_twin_takes_the_steps_of_the_weights(name):
    """From equal values on they stay equal, with a schedule and in two groups."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 2)) for _ in range(3)]
    optimizer = OPTIMIZERS[name]([{"params": weights[:1], "lr": 0.05}, {"params": weights[1:]}])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    matrices = {str(i): w.detach().clone() for i, w in enumerate(weights[:2])}
    twin = Twin()
    for step in range(4):
        for w in weights:
            w.grad = torch.randn_like(w)
        optimizer.step()
        if step == 2:
            twin, old = Twin(), twin
            twin.load_state_dict(copy.deepcopy(old.state_dict()))
        pairs = zip(matrices, weights, strict=False)
        twin.step(optimizer, matrices, {n: (w, w.grad.clone()) for n, w in pairs})
        schedule.step()
    for matrix, weight in zip(matrices.values(), weights, strict=False):
        torch.testing.assert_close(matrix, weight.detach(), rtol=1e-6, atol=1e-7)


def trained(net, dfa, optimizer, steps, seed=0):
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(*loop(net, torch.rand(T, B, 1, 8, 8))).backward()
        optimizer.step()
    return dfa.state_dict()


@pytest.mark.slow
def test_factors_become_the_weights_and_start_at_zero():
    torch.manual_seed(0)
    net = convolutional()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, optimizer=optimizer)
    loss_of(*loop(net, torch.rand(T, B, 1, 8, 8))).backward()
    assert all((b == 0).all() for b in dfa.feedback.values())
    assert (net[0].weight.grad == 0).all()
    assert (net[11].bias.grad != 0).any()
    factors = trained(net, dfa, optimizer, 1)["matrices"]
    assert list(factors) == ["2", "6", "11"]
    for name, factor in factors.items():
        weight = net[int(name)].weight.detach()
        assert (factor - weight).norm() < 0.05 * weight.norm()
    factors = trained(net, dfa, optimizer, 20)["matrices"]
    for name, factor in factors.items():
        weight = net[int(name)].weight.detach()
        assert (factor - weight).norm() < 0.01 * weight.norm()


def test_a_saved_state_goes_on_with_the_same_numbers():
    def attached():
        torch.manual_seed(0)
        net = convolutional()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        return net, DFA(net, optimizer=optimizer), optimizer

    net, dfa, optimizer = attached()
    trained(net, dfa, optimizer, 2)
    saved = copy.deepcopy([net.state_dict(), dfa.state_dict(), optimizer.state_dict()])
    wanted = trained(net, dfa, optimizer, 2, seed=1)["matrices"]
    for part, state in zip(attached_again := attached(), saved, strict=True):
        part.load_state_dict(state)
    found = trained(*attached_again, 2, seed=1)["matrices"]
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


class Counting(torch.optim.SGD):
    """Counts in a tensor and in a list, and divides its rate by the count."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.count, self.log = torch.zeros(()), []

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        self.log.append(1)
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] / self.count * p.grad


class Begun(torch.optim.Optimizer):
    """Makes its state when it is made."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        for p in self.param_groups[0]["params"]:
            self.state[p]["moment"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p -= self.param_groups[0]["lr"] * self.state[p]["moment"].add_(p.grad)


def test_what_an_optimiser_counts_is_left_to_the_program():
    net = convolutional()
    optimizer = Counting(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    assert trained(net, dfa, optimizer, 3)["matrices"]
    assert len(optimizer.log) == optimizer.count == 3


def test_an_optimiser_whose_steps_cannot_be_taken_is_an_error_before_the_first_gradient():
    net = convolutional()
    optimizer = Begun(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    with pytest.raises(FeedbackError, match=r"a state that is made in step\(\), got Begun"):
        trained(net, dfa, optimizer, 1)
    assert all(p.grad is None for p in net.parameters())


def test_optimizers_that_feedback_cannot_follow():
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(FeedbackError, match="'gaussian', which is fixed"):
        DFA(net, optimizer=optimizer, feedback="gaussian")
    with pytest.raises(FeedbackError, match=r"needs no closure, got LBFGS"):
        DFA(net, optimizer=torch.optim.LBFGS(net.parameters()))
    wrapper = torch.optim.SGD(net.parameters(), lr=0.1)
    wrapper.inner = optimizer
    with pytest.raises(FeedbackError, match=r"got a SGD around another one; give its \.inner"):
        DFA(net, optimizer=wrapper)
    dfa = DFA(net, optimizer=optimizer)
    with pytest.raises(FeedbackError, match="feedback_lr: the feedback has the rates"):
        dfa.feedback_lr = 0.1
    with pytest.raises(FeedbackError, match="feedback_lr: the feedback has the rates"):
        _ = dfa.feedback_lr
    dfa.remove()
    DFA(net, optimizer=optimizer, feedback=WeightMirror()).remove()


@pytest.mark.filterwarnings("error")
def test_learned_feedback_that_follows_nothing_says_so_once():
    net = nn.Sequential(nn.Linear(5, 6), leaky(), nn.Linear(6, 3), leaky(output=True))
    dfa, x = DFA(net, feedback="kolen-pollack"), torch.rand(T, B, 5)
    with pytest.warns(UserWarning, match=r"write DFA\(net, optimizer=optimizer\)"):
        loss_of(*loop(net, x)).backward()
    loss_of(*loop(net, x)).backward()
    dfa.remove()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    DFA(net, optimizer=optimizer, feedback="kolen-pollack")
    loss_of(*loop(net, x)).backward()
    optimizer.step()


@pytest.mark.slow
def test_weights_that_are_computed_are_mirrored():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), leaky(), nn.Linear(6, 3), leaky(output=True))
    nn.utils.parametrizations.weight_norm(net[2])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, optimizer=optimizer)
    for _ in range(30):
        loss_of(*loop(net, torch.rand(T, B, 5))).backward()
        optimizer.step()
    torch.testing.assert_close(dfa.feedback["1"], net[2].weight.detach(), rtol=0, atol=0.02)


def test_the_form_over_time_learns_alike():
    found = []
    for form in (lambda net: net, over_time):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(5, 6), leaky(), nn.Linear(6, 6), leaky(), nn.Linear(6, 3), leaky()
        )
        net = form(net.double())
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        dfa = DFA(net, optimizer=optimizer, feedback=WeightMirror(initial=1.0))
        x = torch.rand(T, B, 5, dtype=torch.float64)
        for _ in range(3):
            reset(net)
            optimizer.zero_grad()
            spk = net(x) if form is over_time else torch.stack([net(step) for step in x])
            spk.sum(0).square().sum().backward()
            optimizer.step()
        found.append([*dfa.feedback.values(), *(p.detach() for p in net.parameters())])
    for step, whole in zip(*found, strict=True):
        torch.testing.assert_close(step, whole, rtol=1e-6, atol=1e-8)


def test_an_output_that_is_found_out_is_one_that_is_named():
    """Until it is known every neuron may be the output; states go on from that pass."""
    found = []
    for named in ({}, {"output": "5"}):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(5, 6), leaky(), nn.Linear(6, 6), leaky(), nn.Linear(6, 3), leaky()
        ).double()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        DFA(net, optimizer=optimizer, **named)
        x = torch.rand(T, B, 5, dtype=torch.float64)
        reset(net)
        for _ in range(3):
            optimizer.zero_grad()
            torch.stack([net(step) for step in x]).sum(0).square().sum().backward()
            optimizer.step()
            for layer in net[1::2]:
                layer.mem = layer.mem.detach()
        found.append([p.grad for p in net.parameters()])
    assert all(grad.any() for grad in found[0])
    torch.testing.assert_close(*found)


def test_neurons_with_weights_of_their_own_have_a_matrix_of_their_own():
    torch.manual_seed(0)
    lstm = snn.SLSTM(6, 6, init_hidden=True, threshold=0.1, reset_mechanism="zero")
    net = nn.Sequential(nn.Linear(5, 6), leaky(), lstm, nn.Linear(6, 3), leaky(output=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    for _ in range(3):
        loss_of(*loop(net, torch.rand(T, B, 5))).backward()
        optimizer.step()
    assert list(dfa.state_dict()["matrices"]) == ["3"]
    assert list(dfa.state_dict()["learner"]["own"]) == ["1"]
    assert all((matrix != 0).any() for matrix in dfa.feedback.values())
    before = dict(dfa.feedback)
    dfa.load_state_dict(dfa.state_dict())
    loss_of(*loop(net, torch.rand(T, B, 5))).backward()
    assert all(torch.equal(B, dfa.feedback[name]) for name, B in before.items())


def test_a_layers_own_matrix_starts_like_a_fixed_one():
    """From zero its columns grew alike, and all neurons of the layer learned the same."""

    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = snn.SLSTM(5, 6, threshold=0.05)
            self.second = snn.SLSTM(6, 6, threshold=0.05, reset_mechanism="zero")
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            states, made = [self.first.reset_mem(), self.second.reset_mem()], []
            for step in x:
                spk, *states[0] = self.first(step, *states[0])
                spk, *states[1] = self.second(spk, *states[1])
                made.append(self.out(spk))
            return torch.stack(made)

    net = Stacked()
    optimizer = torch.optim.Adam(net.parameters())
    fixed = DFA(Stacked(), output="out")
    dfa = DFA(net, output="out", optimizer=optimizer)
    fixed.net(torch.rand(T, B, 5)).sum().backward()
    net(torch.rand(T, B, 5)).sum().backward()
    assert dfa.feedback["first"].std(1).all()
    torch.testing.assert_close(dfa.feedback["first"], fixed.feedback["first"])
    assert net.first.lstm_cell.weight_ih.grad.any()
    assert not net.second.lstm_cell.weight_ih.grad.any()  # its factor is zero in the first step
