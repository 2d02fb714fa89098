"""The contract of attaching: nothing changes but the gradients, and nothing stays behind."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import snntorch as snn
import torch
from problems import NETWORKS, T, problem
from torch import nn

from snn_dfa import DFA, AttachError, FeedbackError, OutOfStepError, reset
from snn_dfa._hooks import is_attached
from snn_dfa.surrogate import fast_sigmoid

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
         "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
         "_forward_hooks_always_called")  # fmt: skip


def small(**options):
    neuron = {"beta": 0.8, "threshold": 0.3, "init_hidden": True, "spike_grad": fast_sigmoid(10)}
    neuron.update(options)
    return nn.Sequential(
        nn.Linear(5, 7), snn.Leaky(**neuron), nn.Linear(7, 6), snn.Leaky(**neuron),
        nn.Linear(6, 3), snn.Leaky(**neuron),
    )  # fmt: skip


X = torch.rand(T, 4, 5, generator=torch.Generator().manual_seed(3))


def run(net, x=X):
    reset(net)
    return torch.stack([net(step) for step in x])


def gradients(net, x=X):
    net.zero_grad()
    run(net, x).square().mean().backward()
    return [p.grad.clone() for p in net.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def hooks_left(net):
    return [hook for m in net.modules() for name in HOOKS for hook in getattr(m, name).values()]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("neuron", ["leaky", "synaptic", "rleaky", "refractory-clamp"])
@pytest.mark.parametrize("credit", ["membrane", "current"])
def test_forward_values_never_change(network, neuron, credit):
    if (network, neuron) == ("convolutional", "rleaky"):
        pytest.skip("RLeaky's recurrence here is dense")
    p = problem(network, neuron)
    if credit == "current":
        for module in p.net.modules():
            if isinstance(module, snn.RLeaky):
                module.requires_grad_(False)

    def forward():
        reset(p.net)
        return p.forward(p.net, p.x)

    before = forward()
    with DFA(p.net, credit=credit):
        for _ in range(2):
            assert equal(forward(), before)
            with torch.no_grad():
                assert equal(forward(), before)


def test_state_dict_of_the_network_is_untouched():
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with DFA(net):
        gradients(net)
        after = net.state_dict()
        assert list(after) == list(before)
        assert equal(after.values(), before.values())


def test_remove_restores_backpropagation_to_the_bit():
    net = small()
    before = gradients(net)
    dfa = DFA(net)
    during = gradients(net)
    assert not torch.equal(during[0], before[0])
    assert torch.equal(during[4], before[4])
    dfa.remove()
    assert hooks_left(net) == []
    assert equal(gradients(net), before)
    dfa.remove()  # once more does no harm
    assert equal(gradients(net), before)


def test_paused_is_backpropagation_for_a_while():
    net = small()
    before = gradients(net)
    dfa = DFA(net)
    during = gradients(net)
    with dfa.paused():
        assert equal(gradients(net), before)
    assert equal(gradients(net), during)
    with pytest.raises(ZeroDivisionError), dfa.paused():
        raise ZeroDivisionError
    assert equal(gradients(net), during)


def test_with_removes_at_the_end_exceptions_included():
    net = small()
    with pytest.raises(ZeroDivisionError), DFA(net) as dfa:
        assert is_attached(net)
        raise ZeroDivisionError
    assert hooks_left(net) == []
    assert "removed" in repr(dfa)


def test_a_graph_built_before_remove_keeps_its_gradients():
    net = small()
    dfa = DFA(net, output="5")
    wanted = gradients(net)
    net.zero_grad()
    loss = run(net).square().mean()
    dfa.remove()
    loss.backward()
    assert equal([p.grad for p in net.parameters()], wanted)


def test_attaching_twice_is_refused():
    net = small()
    with DFA(net):
        before = len(hooks_left(net))
        for target in (net, nn.Sequential(net)):
            with pytest.raises(AttachError, match=r"call remove\(\) on the DFA that is attached"):
                DFA(target)
        assert len(hooks_left(net)) == before
    DFA(net).remove()


# -- copies ---------------------------------------------------------------------------------------


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_a_copy_of_the_network_alone_is_a_plain_network(copied):
    net = small()
    before = gradients(net)
    dfa = DFA(net)
    during = gradients(net)
    reset(net)
    twin = copied(net)
    assert not is_attached(twin)
    assert equal(gradients(twin), before)
    assert equal(gradients(net), during)  # the original is not disturbed
    dfa_of_twin = DFA(twin)
    assert equal(gradients(twin), during)
    dfa_of_twin.remove()
    assert hooks_left(twin) == []
    dfa.remove()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_a_copy_of_both_is_attached_to_the_copied_network(copied):
    net = small()
    dfa = DFA(net, seed=7, scale=0.5)
    during = gradients(net)
    reset(net)
    twin = copied({"net": net, "dfa": dfa})
    assert is_attached(twin["net"])
    assert equal(gradients(twin["net"]), during)
    twin["dfa"].remove()
    assert hooks_left(twin["net"]) == []
    assert is_attached(net)
    dfa.remove()
    assert "removed" in repr(copied(dfa))


# -- nothing is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", ["membrane", "current"])
def test_nothing_is_kept_after_backward(credit):
    net = small()
    dfa = DFA(net, credit=credit)
    seen = []

    def watch(module, args, out):
        seen.extend(weakref.ref(t) for t in (out, *args))

    for name in ("0", "2", "4"):
        net.get_submodule(name).register_forward_hook(watch)
    for _ in range(3):
        gradients(net)
        reset(net)
        gc.collect()
        assert seen
        assert all(ref() is None for ref in seen)
        seen.clear()
    dfa.remove()


def test_evaluation_keeps_nothing():
    net = small()
    dfa = DFA(net)
    with torch.no_grad():
        for _ in range(3):
            run(net)
    wiring = dfa._wiring
    assert dfa.output == "5"  # a pass without gradients shows it, too
    assert not any(wiring._kept.values())
    assert not any(len(own) for own in wiring._own.values())
    assert gradients(net)[0].abs().sum() > 0


def test_an_exception_in_the_middle_leaves_nothing_behind():
    net = small()
    dfa = DFA(net)
    wanted = gradients(net)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        net(torch.rand(4, 99))
    handle = net[4].register_forward_pre_hook(lambda m, a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(net)
    handle.remove()
    assert not any(dfa._wiring._kept.values())
    assert equal(gradients(net), wanted)


def test_frozen_layers_keep_no_gradient_and_do_not_shift_the_others():
    net = small()
    with DFA(net):
        wanted = gradients(net)
    net[0].requires_grad_(False)
    with DFA(net, output="5"):
        net.zero_grad(set_to_none=True)
        run(net).square().mean().backward()
    assert net[0].weight.grad is None
    assert torch.equal(net[2].weight.grad, wanted[2])


def test_gradients_accumulate():
    net = small()
    with DFA(net):
        once = gradients(net)
        run(net).square().mean().backward()
        assert equal([p.grad for p in net.parameters()], [2 * g for g in once])
        net.zero_grad()
        first, second = run(net), run(net)  # two passes before one backward
        (first.square().mean() + second.square().mean()).backward()
        for p, g in zip(net.parameters(), once, strict=True):
            torch.testing.assert_close(p.grad, 2 * g)


# -- who is who -----------------------------------------------------------------------------------


def test_layers_by_name_and_by_module():
    net = small()
    with DFA(net, output="5", hidden=["1", net[3]]) as dfa:
        assert (dfa.hidden, dfa.output) == (("1", "3"), "5")
        by_name = gradients(net)
    with DFA(net, output=net[5]) as dfa:
        assert (dfa.hidden, dfa.output) == (("1", "3"), "5")
        assert equal(gradients(net), by_name)
    with DFA(net, hidden=["1", "3"]) as dfa:
        assert dfa.output == "5"
    with DFA(net) as dfa:
        assert (dfa.hidden, dfa.output) == ((), None)
        assert equal(gradients(net), by_name)
        assert (dfa.hidden, dfa.output) == (("1", "3"), "5")
        assert equal(gradients(net), by_name)


@pytest.mark.parametrize("credit", ["membrane", "current"])
def test_arguments_by_name(credit):
    """A neuron may be called as ``lif(input_=current, mem=mem)``."""

    class ByName(nn.Module):
        def __init__(self, by_name):
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.lif1 = nn.Linear(5, 7), snn.Leaky(0.8, 0.3)
            self.fc2, self.lif2 = nn.Linear(7, 3), snn.Leaky(0.8, 0.3)
            self.by_name = by_name

        def step(self, lif, current, mem):
            return lif(input_=current, mem=mem) if self.by_name else lif(current, mem)

        def forward(self, x):
            mem1, mem2, out = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for step in x:
                spk, mem1 = self.step(self.lif1, self.fc1(step), mem1)
                spk, mem2 = self.step(self.lif2, self.fc2(spk), mem2)
                out.append(spk + 0.1 * mem2)
            return torch.stack(out)

    grads = []
    for by_name in (False, True):
        net = ByName(by_name)
        with DFA(net, credit=credit):
            net(X).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].abs().sum() > 0
    assert equal(*grads)


def test_an_unnamed_hidden_layer_is_left_to_back_propagation():
    net = small()
    bptt = gradients(net)
    with DFA(net, output="5", hidden="3"):
        got = gradients(net)
    assert not torch.equal(got[2], bptt[2])
    assert got[0].abs().sum() > 0  # through the second layer's own graph


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "nope"}, r"output: expected the name of a module .* got 'nope'"),
        ({"output": ""}, "output: expected the name of a module"),
        ({"output": nn.Linear(1, 1)}, "output: expected a module of the network, got a Linear"),
        ({"hidden": ["1"]}, r"expected one spiking neuron to be left as the output, found \['3', '5'\]"),
        ({"hidden": ["1", "5"], "output": "5"}, "'5' is the output too"),
        ({"hidden": [], "output": "5"}, "at least one hidden spiking layer, found only '5'"),
        ({"rule": "hebb"}, r"rule: expected one of \['error', 'fa', 'shallow', 'sign', 'target'\], got 'hebb'"),
        ({"credit": "x"}, r"credit: expected one of \['current', 'membrane', 'trace'\], got 'x'"),
        ({"derivative": torch.cos}, "derivative: expected credit='current' with it"),
        ({"credit": "current", "hidden": ["2"], "output": "5"}, "hidden layer '2' is a Linear"),
        ({"feedback": "banana"}, r"feedback: expected one of \['channelwise', .*'zhang'\], a KolenPollack, a function"),
        ({"feedback": 3}, "got int"),
        ({"feedback": {"9": torch.zeros(3, 7)}}, r"among \['1', '3', '5'\], got one for '9'"),
        ({"feedback": {"1": [1.0]}}, r"feedback\['1'\]: expected a floating point tensor"),
    ],
)  # fmt: skip
def test_bad_arguments_change_nothing(options, message):
    net = small()
    with pytest.raises((AttachError, FeedbackError), match=message):
        DFA(net, **options)
    assert hooks_left(net) == []


def test_networks_that_cannot_be_used():
    with pytest.raises(AttachError, match=r"at least one snntorch.SpikingNeuron, found none"):
        DFA(nn.Linear(2, 2))
    with pytest.raises(AttachError, match="at least one hidden spiking layer"):
        DFA(nn.Sequential(nn.Linear(2, 2), snn.Leaky(beta=0.5)))
    with pytest.raises(AttachError, match=r"expected a torch.nn.Module, got list"):
        DFA([])
    learns = small(learn_beta=True, beta=0.5)
    with pytest.raises(AttachError, match=r"no gradient to parameters .* '1.beta' wants one"):
        DFA(learns, credit="current")


@pytest.mark.parametrize("known", [True, False])
def test_feedback_of_the_wrong_shape_names_the_layer(known):
    net = small()
    matrices = {"1": torch.zeros(3, 7), "3": torch.zeros(3, 5)}
    with (
        DFA(net, output="5" if known else None, feedback=matrices),
        pytest.raises(
            FeedbackError, match=r"feedback\['3'\]: expected shape \[3, 6\] .* got \[3, 5\]"
        ),
    ):
        gradients(net)  # fmt: skip
    with (
        DFA(net, output="5", feedback={"1": torch.zeros(3, 7)}),
        pytest.raises(FeedbackError, match=r"no matrix for hidden layer '3'; expected .* \[3, 6\]"),
    ):
        gradients(net)


class TwiceAStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = small(), nn.Linear(3, 2)

    def forward(self, x):
        self.body(x)
        return self.last(self.body(x))


def test_layers_out_of_step_are_refused_by_name():
    net = TwiceAStep()
    with (
        DFA(net, output="last"),
        pytest.raises(OutOfStepError, match=r"'body.1' was called 2 times and the output 'last' 1"),
    ):
        net(X[0])
    net = small()
    with DFA(net, output="1"), pytest.raises(OutOfStepError, match="'3' was called 1 times"):
        net(X[0])


# -- feedback -------------------------------------------------------------------------------------


def test_feedback_depends_on_seed_name_and_shape_alone():
    net = small()
    drawn = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        with DFA(net, seed=seed) as dfa:
            gradients(net)
            drawn.append(dict(dfa.feedback))
    assert equal(drawn[0].values(), drawn[1].values())
    assert not torch.equal(drawn[0]["1"], drawn[2]["1"])
    deeper = nn.Sequential(*small(), nn.Linear(3, 3), snn.Leaky(beta=0.8, init_hidden=True))
    with DFA(deeper) as dfa:
        gradients(deeper)
        assert torch.equal(dfa.feedback["1"], drawn[0]["1"])
        assert list(dfa.feedback) == ["1", "3", "5"]


def test_attaching_and_running_leave_the_global_generator_alone():
    net = small()
    before = torch.get_rng_state()
    with DFA(net):
        gradients(net)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_dict_round_trip():
    net = small()
    with DFA(net, seed=3) as dfa:
        wanted = gradients(net)
        buffer = io.BytesIO()
        torch.save(dfa.state_dict(), buffer)
    for before_first_pass in (True, False):
        buffer.seek(0)
        with DFA(net, seed=99) as dfa:
            if not before_first_pass:
                assert not torch.equal(gradients(net)[0], wanted[0])
            dfa.load_state_dict(torch.load(buffer, weights_only=True))
            assert equal(gradients(net), wanted)


def test_state_dict_of_another_network_is_refused_and_changes_nothing():
    net = small()
    with DFA(net) as dfa:
        wanted = gradients(net)
        state = dfa.state_dict()
        for bad, message in (
            ({**state, "matrices": {"1": torch.zeros(3, 8)}}, r"of shape \[3, 7\], got \[3, 8\]"),
            ({**state, "matrices": {"9": torch.zeros(3, 8)}}, "got one for '9'"),
            ({"matrices": {}}, r"without \['kind', 'learner', 'scale', 'seed'\]"),
        ):
            with pytest.raises(FeedbackError, match=message):
                dfa.load_state_dict(bad)
            assert equal(gradients(net), wanted)


def test_feedback_follows_the_dtype_of_the_network():
    net = small()
    with DFA(net) as dfa:
        gradients(net)
        single = dict(dfa.feedback)
        reset(net.double())
        gradients(net, X.double())
        assert dfa.feedback["1"].dtype == torch.float64
        assert net[0].weight.grad.dtype == torch.float64
        reset(net.bfloat16())
        gradients(net, X.bfloat16())
        assert dfa.feedback["1"].dtype == torch.bfloat16
        net.float()
        assert equal(dfa.feedback.values(), single.values())


def test_feedback_follows_the_device_of_the_network():
    """The meta device stands in for a GPU: no values, but every device must fit."""
    net = small().to("meta")
    with DFA(net, output="5") as dfa:
        torch.stack([net(step) for step in X.to("meta")]).sum().backward()
        assert dfa.feedback["1"].device.type == "meta"
        assert net[0].weight.grad.device.type == "meta"


def test_a_stock_surrogate_in_mixed_precision():
    net = small(spike_grad=None)
    with DFA(net), torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(net)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in got)
