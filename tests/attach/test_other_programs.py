"""Programs of the kinds that people write, one by one: the gradient of the same program written plainly."""

import copy
import dataclasses
import subprocess
import sys
from functools import partial

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F

from snn_dfa import DFA, AttachError, BackwardError, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

T, B = 6, 3
X = 2 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(2))


def lif(**options):
    return snn.Leaky(**{"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(10), **options})


def hidden(**options):
    return lif(init_hidden=True, **options)


class Net(nn.Module):
    """Explicit states; ``change`` is what the program does to spikes and membranes of each layer."""

    def __init__(self, change=lambda spk, mem: (spk, mem), call=lambda module: module):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(4, 8), lif(), nn.Linear(8, 2), lif()
        self.change, self.call = change, call

    def forward(self, x):
        mem1, mem2, out = torch.zeros(B, 8), torch.zeros(B, 2), []
        for step in x:
            spk1, mem1 = self.call(self.lif1)(self.fc1(step), mem1)
            spk1, mem1 = self.change(spk1, mem1)
            spk2, mem2 = self.call(self.lif2)(self.fc2(spk1), mem2)
            out.append(spk2 + mem2)
            spk2, mem2 = self.change(spk2, mem2)
        return torch.stack(out)


def gradients(net, batches=2, output="lif2", x=X, **options):
    """Gradients of the last batch; values are those of the plain network."""
    plain = net(x).detach()
    with DFA(net, output=output, **options):
        for _ in range(batches):
            net.zero_grad(set_to_none=True)
            out = net(x)
            assert torch.equal(out, plain)
            (out - 1).square().sum().backward()
    return {n: p.grad for n, p in net.named_parameters()}


def assert_alike(a, b):
    for name, gradient in a.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(b[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def masked_(spk, mem):
    mem[:, :1] = 0
    return spk, mem


def halved_(spk, mem):
    spk *= 0.5
    return spk, mem.mul_(0.5)


ONES = torch.ones(B, 1)


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        (lambda s, m: (s, m * ONES), lambda s, m: (s, m)),
        (lambda s, m: (s, m.clone()), lambda s, m: (s, m)),
        (lambda s, m: (s, torch.where(ONES.bool(), m, 0.0)), lambda s, m: (s, m)),
        (lambda s, m: (s.view(-1).view(s.shape), m.view(-1).view(m.shape)), lambda s, m: (s, m)),
        (masked_, lambda s, m: (s, torch.cat([0 * m[:, :1], m[:, 1:]], 1))),
        (halved_, lambda s, m: (0.5 * s, 0.5 * m)),
        (lambda s, m: (s.relu_(), m), lambda s, m: (s.relu(), m)),
        (lambda s, m: (s, m.detach_()), lambda s, m: (s, m.detach())),
    ],
    ids=["ones", "clone", "where", "view", "mask in place", "in place", "relu_", "detach_"],
)  # fmt: skip
def test_states_and_spikes_that_the_program_changes(change, plain):
    class Recorded(Net):
        """Records the membrane before it is changed: in place it would be another value."""

        def forward(self, x):
            mem1, mem2, out = torch.zeros(B, 8), torch.zeros(B, 2), []
            for step in x:
                spk1, mem1 = self.lif1(self.fc1(step), mem1)
                spk1, mem1 = self.change(spk1, mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                out.append(mem2.clone())
                _, mem2 = self.change(spk2, mem2)
            return torch.stack(out)

    assert_alike(gradients(Recorded(plain)), gradients(Recorded(change)))


@pytest.mark.parametrize("rule", ["error", "shallow"])
@pytest.mark.parametrize("called", [("lif1",), ("lif2",), ("lif1", "lif2")])
def test_forward_called_directly_is_a_call(called, rule):
    net = Net()
    layers = [net.get_submodule(name) for name in called]
    direct = Net(call=lambda module: module.forward if module in direct_layers else module)
    direct_layers = [direct.get_submodule(name) for name in called]
    assert len(layers) == len(direct_layers)
    wanted, got = gradients(net, rule=rule), gradients(direct, rule=rule)
    if rule == "shallow":
        assert wanted.pop("fc1.weight") is got.pop("fc1.weight") is None
        assert wanted.pop("fc1.bias") is got.pop("fc1.bias") is None
    assert_alike(wanted, got)


class Hidden(nn.Module):
    """Hidden states; where the prediction is read is a choice."""

    def __init__(self, attribute):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2 = nn.Linear(4, 8), hidden(), nn.Linear(8, 2)
        self.lif2 = hidden(output=not attribute, reset_mechanism="none")
        self.attribute = attribute

    def forward(self, x):
        reset(self)
        for step in x:
            out = self.lif2(self.fc2(self.lif1(self.fc1(step))))
        return self.lif2.mem if self.attribute else out[1]


@pytest.mark.parametrize("kept", [False, True])
def test_a_membrane_that_is_an_attribute_is_the_prediction(kept):
    wanted = gradients(Hidden(attribute=False))
    net = Hidden(attribute=True)
    if not kept:
        assert_alike(wanted, gradients(net))
        return
    with DFA(net, output="lif2"):
        for _ in range(2):
            net.zero_grad()
            net(X)
            (net.lif2.mem - 1).square().sum().backward()  # read off the network, not returned
    assert_alike(wanted, {n: p.grad for n, p in net.named_parameters()})


class Between(nn.Module):
    """A membrane drives the next layer, and another is what the readout sees."""

    def __init__(self, attribute):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.lif2, self.out = (
            nn.Linear(4, 8),
            hidden(),
            hidden(),
            nn.Linear(8, 2),
        )
        self.attribute = attribute

    def forward(self, x):
        reset(self)
        out = []
        for step in x:
            self.lif1(self.fc1(step))
            self.lif2(self.lif1.mem)
            out.append(self.out(self.lif2.mem))
        return torch.stack(out)


def test_a_membrane_that_is_an_attribute_leads_into_no_other_layer():
    got = gradients(Between(True), output="out", rule="shallow")
    assert got["fc1.weight"] is None
    assert got["out.weight"].abs().sum() > 0


@dataclasses.dataclass(frozen=True)
class Data:
    x: torch.Tensor


class FromData(nn.Linear):
    def forward(self, data):
        return super().forward(data.x)


def test_spikes_inside_an_object_lead_into_no_other_layer():
    class Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.lif1, self.lif2 = nn.Linear(4, 8), hidden(), hidden()
            self.fc2 = FromData(8, 2) if wrap else nn.Linear(8, 2)
            self.wrap = Data if wrap else lambda x: x

        def forward(self, x):
            reset(self)
            return torch.stack([self.lif2(self.fc2(self.wrap(self.lif1(self.fc1(s))))) for s in x])

    assert_alike(gradients(Wrapped(False)), gradients(Wrapped(True)))


def test_a_layer_that_returns_an_object():
    class Boxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 8), hidden()

        def forward(self, x):
            return Data(self.lif(self.fc(x)))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.fc, self.lif = Boxed(), nn.Linear(8, 2), hidden()

        def forward(self, x):
            reset(self)
            return torch.stack([self.lif(self.fc(self.one(step).x)) for step in x])

    net = Whole()
    got = gradients(net, output="lif", hidden=["one"], rule="shallow")
    assert got["one.fc.weight"] is None
    assert gradients(Whole(), output="lif", hidden=["one"])["one.fc.weight"].abs().sum() > 0


class Residual(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = (
            nn.Linear(4, 8),
            hidden(),
            nn.Linear(8, 8),
            hidden(),
        )
        self.short, self.fc3, self.lif3 = nn.Linear(4, 8), nn.Linear(8, 2), hidden()
        self.in_place = in_place

    def forward(self, x):
        reset(self)
        out = []
        for step in x:
            spk = self.lif2(self.fc2(self.lif1(self.fc1(step))))
            if self.in_place:
                spk += self.short(step)
            else:
                spk = spk + self.short(step)
            out.append(self.lif3(self.fc3(spk)))
        return torch.stack(out)


def test_a_residual_that_is_added_in_place():
    assert_alike(
        gradients(Residual(False), output="lif3"), gradients(Residual(True), output="lif3")
    )


class TopDown(nn.Module):
    def __init__(self, detached):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(4, 8), lif(threshold=0.1)
        self.fc2, self.lif2 = nn.Linear(8, 2), lif(threshold=0.1)
        self.back, self.detached = nn.Linear(2, 8), detached
        nn.init.constant_(self.fc2.bias, 0.5)

    def forward(self, x):
        mem1, mem2, spk2, out = torch.zeros(B, 8), torch.zeros(B, 2), torch.zeros(B, 2), []
        for step in x:
            top = spk2.detach() if self.detached else spk2
            spk1, mem1 = self.lif1(self.fc1(step) + self.back(top), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(mem2)
        return torch.stack(out)


def test_what_an_output_hands_back_is_cut():
    assert_alike(gradients(TopDown(True)), gradients(TopDown(False)))


# -- outputs of any shape, and several -------------------------------------------------------------


@pytest.mark.parametrize("channels", [8, 2])
def test_a_convolutional_readout(channels):
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), hidden(), nn.Conv2d(8, 8, 3, padding=1), hidden(),
        nn.Conv2d(8, channels, 1),
    )  # fmt: skip
    with DFA(net, output="4") as dfa:
        torch.stack([net(x) for x in torch.rand(4, 2, 1, 6, 6)]).square().mean().backward()
        assert {n: tuple(b.shape) for n, b in dfa.feedback.items()} == {
            "1": (channels * 36, 8, 6, 6), "3": (channels * 36, 8, 6, 6),
        }  # fmt: skip


@pytest.mark.parametrize("batches", [(5, 3), (2, 8)])
def test_one_output_without_a_dimension_of_its_own(batches):
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1, self.fc2, self.lif2 = (
                nn.Linear(4, 8),
                hidden(),
                nn.Linear(8, 1),
                hidden(),
            )

        def forward(self, x):
            reset(self)
            return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(s))).squeeze(-1)) for s in x])

    net = Squeezed()
    with DFA(net) as dfa:
        for batch in batches:
            net(torch.rand(6, batch, 4)).sum().backward()
            assert dfa.feedback["lif1"].shape == (1, 8)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = (
            nn.Linear(4, 8),
            hidden(),
            nn.Linear(8, 8),
            hidden(),
        )
        self.policy, self.value = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        h = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return self.policy(h), self.value(h)


@pytest.mark.parametrize("read", ["policy", "value", "both"])
def test_several_outputs_have_rows_of_their_own(read):
    net = ActorCritic()
    with torch.no_grad():
        net.fc1.weight.mul_(3)
    with DFA(net, output=["policy", "value"]) as dfa:
        for _ in range(2):
            net.zero_grad()
            reset(net)
            p, v = net(X[0])
            loss = p.square().sum() * (read != "value") + (v - 1).square().sum() * (
                read != "policy"
            )
            loss.backward()
        e = torch.cat([2 * p * (read != "value"), 2 * (v - 1) * (read != "policy")], 1).detach()
        sent = {name: e @ b for name, b in dfa.feedback.items()}
        assert {n: tuple(b.shape) for n, b in dfa.feedback.items()} == {
            "lif1": (4, 8),
            "lif2": (4, 8),
        }
        assert dfa.output == ("policy", "value")
    reset(net)
    spk = net.lif1(net.fc1(X[0]))
    (wanted,) = torch.autograd.grad(spk, net.fc1.weight, sent["lif1"])
    torch.testing.assert_close(net.fc1.weight.grad, wanted)
    assert wanted.abs().sum() > 0


def test_a_plain_head_that_is_not_named_is_a_penalty_with_a_warning():
    net = ActorCritic()
    with DFA(net, output="policy"):
        p, v = net(X[0])
        with pytest.warns(UserWarning, match=r"through 'value', .* output=\['policy', 'value'\]"):
            (p.sum() + v.sum()).backward()
        net.zero_grad(set_to_none=True)
        reset(net)
        net(X[0])[1].sum().backward()  # once
        assert net.fc1.weight.grad is None  # no further
        got = net.fc2.weight.grad
    reset(net)
    below = net.lif1(net.fc1(X[0])).detach()
    spk = net.lif2(net.fc2(below))
    (wanted,) = torch.autograd.grad(spk, net.fc2.weight, net.value.weight.expand(B, 8))
    assert wanted.abs().sum() > 0
    torch.testing.assert_close(got, wanted)


# -- errors, before a gradient is written ----------------------------------------------------------


class Kept(Net):
    """Keeps the current of its second layer on itself, and goes on with what was made of it."""

    def __init__(self, changed=lambda current: current):
        super().__init__()
        self.changed = changed

    def forward(self, x):
        self.currents = []
        handle = self.fc2.register_forward_hook(
            lambda m, i, o: self.currents.append(o) or self.changed(o)
        )
        out = super().forward(x)
        handle.remove()
        return out


@pytest.mark.parametrize("changed", [torch.clone, lambda current: current])
def test_a_loss_on_a_value_between_two_layers_is_an_error_or_right(changed):
    net = Kept(changed)
    with DFA(net, output="lif2"):
        if changed is torch.clone:
            loss = net(X).square().sum() + torch.stack(net.currents).square().sum()
            with pytest.raises(BackwardError, match="does not return: return the value"):
                loss.backward()
            assert all(p.grad is None for p in net.parameters())
        loss = net(X).square().sum() + torch.stack(net.currents).square().sum()
        loss.backward(retain_graph=changed is torch.clone)
        got = {n: p.grad for n, p in net.named_parameters()}

    class Returned(Kept):
        def forward(self, x):
            return super().forward(x), torch.stack(self.currents)

    net = Returned()
    with DFA(net, output="lif2"):
        out, currents = net(X)
        with pytest.warns(UserWarning, match="reads layer 'lif1' through 'fc2'"):
            (out.square().sum() + currents.square().sum()).backward()
    assert_alike({n: p.grad for n, p in net.named_parameters()}, got)


def test_a_state_of_the_last_batch_is_an_error():
    net = nn.Sequential(nn.Linear(4, 8), hidden(), nn.Linear(8, 2), hidden())
    with DFA(net):
        net(X[0]).sum().backward()
        before = [p.grad.clone() for p in net.parameters()]
        out = net(X[0])  # as a value it may be used
        with pytest.raises(BackwardError, match=r"reset\(net\) before each batch, or detach"):
            out.sum().backward()
        assert all(torch.equal(p.grad, b) for p, b in zip(net.parameters(), before, strict=True))


def test_feedback_alignment_of_a_weight_that_a_function_uses_is_an_error():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.lif1, self.lif2 = nn.Linear(4, 8), hidden(), hidden()

        def forward(self, x):
            return self.lif2(F.linear(self.lif1(self.enc(x)), self.enc.weight.t()))

    with (
        DFA(Tied(), rule="fa") as dfa,
        pytest.raises(AttachError, match="uses the weight of layer 'enc'"),
    ):
        dfa.net(X[0])


def test_a_value_from_inside_a_layer_that_enters_another_is_an_error():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 8), hidden()

        def forward(self, x):
            current = self.fc(x)
            object.__setattr__(self, "seen", [current])
            return self.lif(current)

    class Leaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc, self.lif = Block(), nn.Linear(8, 2), hidden()

        def forward(self, x):
            self.block(x)
            return self.lif(self.fc(self.block.seen[0]))

    with (
        DFA(Leaks(), output="lif", hidden=["block"]) as dfa,
        pytest.raises(AttachError, match="a value from inside layer 'block'"),
    ):
        dfa.net(X[0]).sum().backward()


# -- PyTorch's machinery ---------------------------------------------------------------------------


def test_gradients_that_are_asked_for_are_those_of_backward():
    net = Net()
    with DFA(net, output="lif2"):
        net(X).sum().backward()
        wanted = [p.grad.clone() for p in net.parameters()]
        net.zero_grad()
        got = torch.autograd.grad(net(X).sum(), list(net.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        net.zero_grad()
        net(X).sum().backward(inputs=[net.fc1.weight])
        torch.testing.assert_close(net.fc1.weight.grad, wanted[0])
        assert net.fc2.weight.grad is None


def test_hooks_on_parameters_are_called_once_with_the_whole_gradient():
    net, seen = Net(), []
    net.fc1.weight.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
    net.fc2.bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    with DFA(net, output="lif2"):
        net(X).sum().backward()
        assert len(seen) == 2
        by_size = {g.dim(): g for g in seen}
        torch.testing.assert_close(net.fc1.weight.grad, 2 * by_size[2])
        torch.testing.assert_close(net.fc2.bias.grad, by_size[1])
    with DFA(net, output="lif2", rule="shallow"):
        net.zero_grad(set_to_none=True)
        seen.clear()
        net(X).sum().backward()
        assert [g.dim() for g in seen] == [1]  # no hook of a parameter without a gradient
        assert len(net.fc1.weight._backward_hooks) == 1


def test_the_gradient_of_an_input_is_that_of_the_first_block():
    net, x = Net(), X.clone().requires_grad_()
    with DFA(net, output="lif2") as dfa:
        net(x).sum().backward()
        sent = torch.ones(B, 2) * 2 @ dfa.feedback["lif1"]
    got, mem, spikes = x.grad, torch.zeros(B, 8), []
    x = X.clone().requires_grad_()
    for step in x:
        spk, mem = net.lif1(net.fc1(step), mem)
        spikes.append(spk)
    (wanted,) = torch.autograd.grad(torch.stack(spikes), x, sent.expand(T, B, 8))
    torch.testing.assert_close(got, wanted)


_FORKS = """
import multiprocessing, snntorch, torch
from torch import nn
from snn_dfa import over_time

def run():
    net = over_time(nn.Sequential(nn.Linear(64, 100), snntorch.Leaky(beta=0.9, init_hidden=True)))
    with torch.no_grad():
        assert net(torch.rand(25, 32, 64)).isfinite().all()

torch.set_num_threads(1)  # with more, torch's own products do not end in a forked child
run()
process = multiprocessing.get_context("fork").Process(target=run)
process.start()
process.join(60)
assert process.exitcode == 0, process.exitcode
"""


@pytest.mark.slow
def test_whole_sequences_in_a_forked_child():
    subprocess.run([sys.executable, "-c", _FORKS], check=True, timeout=120)


def test_over_time_does_not_take_a_module_with_a_state_for_one_without():
    class Integrator(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.mem = nn.Linear(8, 2), None

        def forward(self, x):
            self.mem = self.fc(x) if self.mem is None else 0.9 * self.mem + self.fc(x)
            return self.mem

    net = over_time(nn.Sequential(nn.Linear(4, 8), hidden(), Integrator()))
    with pytest.raises(AttachError, match="a state outside its neurons"):
        net(X)


def test_neurons_in_a_plain_list_are_named_as_such():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lifs = nn.Linear(4, 8), [hidden()]

    with pytest.raises(
        AttachError, match=r"plain list .lifs. of a Listed; put neurons in an nn\.M"
    ):
        DFA(Listed())


class EarlyExit(nn.Module):
    """An auxiliary output that is called before a later hidden layer of its step."""

    def __init__(self, early=True):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(4, 8), hidden()
        self.fc2, self.lif2 = nn.Linear(8, 8), hidden()
        self.exit, self.out, self.early = nn.Linear(8, 3), nn.Linear(8, 2), early

    def forward(self, x):
        spk1 = self.lif1(self.fc1(x))
        a = self.exit(spk1) if self.early else None
        spk2 = self.lif2(self.fc2(spk1))
        return (self.exit(spk1) if a is None else a), self.out(spk2)


@pytest.mark.parametrize("inside", [True, False])
def test_an_output_before_a_later_hidden_layer(inside):
    grads = []
    for early in (True, False):
        net = EarlyExit(early)
        with DFA(net, output=["exit", "out"]):
            step = net if inside else partial(EarlyExit.forward, net)
            outs = [step(x) for x in X]
            sum(a.square().sum() + (b - 1).square().sum() for a, b in outs).backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    assert_alike(*grads)


def test_a_surrogate_that_learns():
    slopes = []
    for inside in (True, False):
        slope = nn.Parameter(torch.tensor(3.0))

        def spike(x, slope=slope):
            smooth = torch.sigmoid(slope * x)
            return (x > 0).to(x.dtype).sub(smooth).detach() + smooth

        net = Net()
        net.lif1.spike_grad = spike
        if inside:
            net.slope = slope
        with DFA(net, output="lif2"):
            (net(X) - 1).square().sum().backward()
        slopes.append(slope.grad)
    assert slopes[0] != 0
    assert torch.equal(*slopes)


def test_a_constant_that_is_made_to_learn_after_dfa():
    grads = []
    for late in (False, True):
        net = Net()
        net.fc1.requires_grad_(False)
        attached = [] if not late else [DFA(net, output="lif2")]
        del net.lif1.beta
        net.lif1.beta = nn.Parameter(torch.tensor(0.8))
        attached += [] if late else [DFA(net, output="lif2")]
        (net(X) - 1).square().sum().backward()
        grads.append(net.lif1.beta.grad)
    assert grads[0] != 0
    assert torch.equal(*grads)


def test_gradients_of_some_tensors_do_not_leave_out_what_comes_into_the_network():
    net, before = Net(), nn.Linear(4, 4)
    with DFA(net, output="lif2"):
        loss = net(before(X)).square().sum()
        with pytest.raises(BackwardError, match="do not pass what comes into the network"):
            loss.backward(inputs=[*before.parameters(), *net.parameters()])
        assert all(p.grad is None for p in net.parameters())
        net(before(X)).square().sum().backward()
        assert before.weight.grad.any()


class Counter(snn.SpikingNeuron):
    """A neuron of one's own, which keeps its membrane in a dict."""

    def __init__(self):
        super().__init__(threshold=0.3, spike_grad=fast_sigmoid(10))
        self.states = {}

    def forward(self, x):
        mem = self.states["mem"] = 0.8 * self.states.get("mem", 0.0) + x
        return self.spike_grad(mem - self.threshold)


@pytest.mark.parametrize("returned", [True, False])
@pytest.mark.parametrize("rule", ["error", "shallow"])
def test_a_value_inside_a_layer_carries_no_loss_into_the_layer_before(returned, rule):
    class Dicts(nn.Sequential):
        def forward(self, x):
            return super().forward(x), self[3].states["mem"] if returned else None

    torch.manual_seed(0)
    net = Dicts(nn.Linear(4, 8), Counter(), nn.Linear(8, 8), Counter(), nn.Linear(8, 2), Counter())
    with DFA(net, rule=rule, output="5"):
        out, mem = net(3 * X[0])
        mem = mem if returned else net[3].states["mem"]
        with pytest.raises(
            BackwardError, match="layer '3': the loss reads a value inside the layer"
        ):
            (out.sum() + mem.square().sum()).backward()
        assert all(p.grad is None for p in net.parameters())


def test_a_hook_on_a_state_that_goes_on_may_look():
    seen = []

    def looked_at(spk, mem):
        if mem.requires_grad:
            mem.register_hook(lambda grad: seen.append(grad) or None)
        return spk, mem

    assert_alike(gradients(Net(looked_at), batches=1), gradients(Net(), batches=1))
    assert len(seen) >= T
    assert all(grad is not None for grad in seen)


def test_a_hook_that_changes_a_state_that_goes_on_raises_an_error():
    def changed(spk, mem):
        if mem.requires_grad:
            mem.register_hook(lambda grad: grad.clamp(-1, 1))
        return spk, mem

    net = Net(changed)
    with DFA(net, output="lif2"):
        loss = (net(X) - 1).square().sum()
        with pytest.raises(BackwardError, match=r"'lif\d': a hook .* changes the gradient"):
            loss.backward()
        assert all(p.grad is None for p in net.parameters())

    def made(spk, mem):
        mem = mem * 1.0  # which the next step alone reads
        mem.register_hook(lambda grad: 0 * grad)
        return spk, mem

    assert_alike(gradients(Net(made)), gradients(Net(lambda spk, mem: (spk, mem.detach()))))


@pytest.mark.parametrize(
    "where", ["register_full_backward_hook", "register_full_backward_pre_hook"]
)
@pytest.mark.parametrize("layer", ["lif1", "lif2"])
def test_hooks_of_modules_on_a_spiking_layer(layer, where):
    """A hook would see a gradient in parts; one on a hidden layer not what is sent to the spikes."""
    for changes in (True, False):
        net = Net()
        hook = (
            (lambda m, *g: tuple(None if t is None else 2 * t for t in g[0]))
            if changes
            else lambda *_: None
        )
        getattr(net.get_submodule(layer), where)(hook)
        if not changes and layer == "lif2":
            assert_alike(gradients(Net()), gradients(net))
            continue
        with DFA(net, output="lif2"):
            loss = net(X).sum()
            with pytest.raises((BackwardError, AttachError), match=f"{layer}.*full_backward_hook"):
                loss.backward()
            assert all(p.grad is None for p in net.parameters())


def test_a_hook_that_changes_what_the_loss_and_the_next_step_read():
    class Read(Net):
        def forward(self, x):
            mem, out = torch.zeros(B, 2), []
            for step in x:
                _, mem = self.lif2(self.fc2(self.fc1(step)), mem)
                mem = mem * 1.0
                mem.register_hook(lambda grad: grad.clamp(-1, 1))
                out.append(mem)
            return torch.stack(out)

    net = Read()
    with DFA(net, output="lif2"):
        loss = net(X).sum()
        with pytest.raises(BackwardError, match=r"'lif2': a hook .* changes the gradient"):
            loss.backward()


@pytest.mark.parametrize("width", [8, 100])  # the second has steps of a compiled kernel
def test_constants_that_are_changed_behind_autograds_back(width):
    found = []
    for attach in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, width), hidden(), nn.Linear(width, 2), hidden(output=True))
        dfa = DFA(net) if attach else None
        steps = torch.rand(T, 64, 4, generator=torch.Generator().manual_seed(1))
        for beta, threshold in ((0.8, 0.3), (0.3, 0.2)):
            for neuron in (net[1], net[3]):
                neuron.beta.data.fill_(beta)
                neuron.threshold.data = torch.tensor(threshold)
            reset(net)
            found.append(torch.stack([torch.cat(net(x), 1) for x in steps]))
            found[-1].sum().backward()
        del dfa
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def test_a_current_that_is_looked_at_after_its_layer_was_called():
    net, kept = Net(), []
    net.fc1.register_forward_hook(lambda module, args, current: kept.append(current))
    with DFA(net, output="lif2"):
        loss = net(X).square().sum()
        for current in kept:
            current.retain_grad()
        with pytest.raises(BackwardError, match="placed after its spiking layer was called"):
            loss.backward()
        assert all(p.grad is None for p in net.parameters())


def test_a_parameter_that_is_frozen_before_the_backward_pass():
    net = Net()
    with DFA(net, output="lif2"):
        loss = (net(X) - 1).square().sum()
        net.fc1.weight.requires_grad_(False)
        loss.backward()
    found = {name: p.grad for name, p in net.named_parameters()}
    wanted = gradients(Net(), batches=1)
    assert found.pop("fc1.weight") is None
    assert_alike({name: wanted[name] for name in found}, found)


def test_a_bias_with_a_dimension_of_its_own():
    class Added(Net):
        def __init__(self, rows):
            super().__init__()
            bias = self.fc1.bias.detach()
            self.bias = nn.Parameter(bias.clone().expand(rows, 8).clone() if rows else bias.clone())
            self.fc1 = nn.Linear(4, 8, bias=False)
            with torch.no_grad():
                self.fc1.weight.copy_(Net().fc1.weight)

        def forward(self, x):
            weight, plain = self.fc1.weight, self.fc1.forward
            self.fc1.forward = lambda step: torch.addmm(self.bias, step, weight.t())
            try:
                return super().forward(x)
            finally:
                self.fc1.forward = plain

    flat, rows = (gradients(Added(n), batches=1) for n in (0, 1))
    assert rows["bias"].shape == (1, 8)
    assert flat["bias"].any()
    torch.testing.assert_close(rows["bias"][0], flat["bias"])


def test_feedback_alignment_of_parameters_that_were_made_of_others():
    net = Net()
    given = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    with DFA(net, rule="fa"):
        made = {name: 1.0 * p for name, p in given.items()}
        (torch.func.functional_call(net, made, (X,)) - 1).square().sum().backward()
        (net(X) - 1).square().sum().backward()
    assert_alike(
        {n: p.grad for n, p in net.named_parameters()}, {n: p.grad for n, p in given.items()}
    )


def test_a_sparse_input():
    """A sparse tensor has no address."""
    net = Net()
    with DFA(net, output="lif2", seed=1):
        (net([x.to_sparse() for x in X]) - 1).square().sum().backward()
    got = {n: p.grad for n, p in net.named_parameters()}
    assert_alike(gradients(Net(), batches=1, seed=1), got)


@pytest.mark.parametrize("made", [lambda p: p - 0.01, lambda p: 1.0 * p, lambda p: p.view_as(p)])
def test_parameters_that_were_made_of_others(made):
    """``functional_call``, as in meta-learning: the gradient is that at what was made, once."""
    net = Net()
    given = dict(net.named_parameters())

    def train(parameters):
        out = torch.func.functional_call(net, parameters, (X,))
        return (out - 1).square().sum()

    with DFA(net):
        leaves = {name: made(p).detach().requires_grad_() for name, p in given.items()}
        train(leaves).backward()
        fast = {name: made(p) for name, p in given.items()}
        asked = torch.autograd.grad(train(fast), list(fast.values()), retain_graph=True)
        wanted = [leaf.grad for leaf in leaves.values()]
        torch.testing.assert_close(list(asked), wanted)
        train(fast).backward(retain_graph=True)
        assert all(type(p) is nn.Parameter for p in net.parameters())
        scale = made(torch.ones(1)) - made(torch.zeros(1))
        for p, gradient in zip(given.values(), wanted, strict=True):
            torch.testing.assert_close(p.grad, scale * gradient)
        net.zero_grad()
        (train(fast) + train(given) + train({n: made(p) for n, p in given.items()})).backward()
        plainly = torch.autograd.grad(train(given), list(given.values()))
        for p, one, two in zip(given.values(), wanted, plainly, strict=True):
            torch.testing.assert_close(p.grad, 2 * scale * one + two)


def test_a_parameter_that_was_made_of_another_one_that_learns():
    net = Net()
    net.scores = nn.Parameter(torch.rand(8, 4, generator=torch.Generator().manual_seed(1)))
    weight = net.fc1.weight
    with DFA(net):
        out = torch.func.functional_call(net, {"fc1.weight": weight.detach() * net.scores}, (X,))
        out.square().sum().backward()
        got = net.scores.grad
        with torch.no_grad():
            weight *= net.scores
        net(X).square().sum().backward()
        torch.testing.assert_close(got, weight.grad * (weight / net.scores).detach())


def test_a_weight_that_each_reading_changes():
    """Spectral normalisation takes a step with each use while it trains."""
    net = Net()
    nn.utils.parametrizations.spectral_norm(net.fc2)
    twin = copy.deepcopy(net)
    with DFA(twin, output="lif2"):
        for _ in range(2):
            assert torch.equal(twin(X), net(X))
