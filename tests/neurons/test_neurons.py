"""RefractoryLeaky: snn.Leaky where there is no refractory period, and the period where there is."""

import copy
import itertools
import pickle

import pytest
import snntorch as snn
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate as snn_surrogate
from snntorch.functional import quant
from spike_trains import intervals

from snn_dfa import RefractoryLeaky
from snn_dfa.surrogate import fast_sigmoid

T, B, N = 12, 3, 6
STRONG = torch.rand(40, B, N, generator=torch.Generator().manual_seed(0)) * 3


# -- no refractory period: Leaky, to the bit -------------------------------------------------------

OPTIONS = [
    dict(zip(("reset_mechanism", "reset_delay", "init_hidden", "output"), values, strict=True))
    for values in itertools.product(
        ("subtract", "zero", "none"), (True, False), (True, False), (True, False)
    )
] + [
    {"spike_grad": snn_surrogate.fast_sigmoid(25)},
    {"surrogate_disable": True},
    {"learn_beta": True, "learn_threshold": True},
    {"learn_graded_spikes_factor": True, "graded_spikes_factor": 2.0, "reset_delay": False},
    {"graded_spikes_factor": torch.linspace(0.5, 2, N)},
    {"state_quant": quant.state_quant(num_bits=4, uniform=True)},
    {"threshold": torch.linspace(0.2, 1, N)},
    {"inhibition": True},
]


def said(options):
    return ", ".join(
        f"{name}={getattr(value, '__qualname__', value)}" for name, value in options.items()
    )


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize("options", OPTIONS, ids=said)
def test_without_refractory_steps_it_is_leaky_to_the_bit(options):
    pair = [cls(0.8, **options) for cls in (snn.Leaky, RefractoryLeaky)]
    results = []
    for neuron in pair:
        x, mem, out = STRONG[:T].clone().requires_grad_(), None, []
        for step in x:
            got = neuron(step) if neuron.init_hidden else neuron(step, mem)
            got = got if isinstance(got, tuple) else (got,)
            mem = got[-1]
            out.append(got)
        if not options.get("surrogate_disable"):
            torch.stack([t for step in out for t in step]).square().sum().backward()
        results.append([t for step in out for t in step])
        results[-1] += [x.grad, *(p.grad for p in neuron.parameters())]
    assert len(results[0]) == len(results[1])
    assert results[0][0].shape == (B, N)
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert pair[0].state_dict().keys() == pair[1].state_dict().keys()


def test_arguments_of_leaky_have_the_same_names_order_and_defaults():
    import inspect

    theirs = list(inspect.signature(snn.Leaky.__init__).parameters.values())
    ours = list(inspect.signature(RefractoryLeaky.__init__).parameters.values())[: len(theirs)]
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


# -- snnTorch's own expectations of Leaky ----------------------------------------------------------


def test_membrane_decays_between_inputs():
    neuron = RefractoryLeaky(beta=0.5)
    mem = neuron.init_leaky()
    _, first = neuron(torch.tensor([0.25]), mem)
    _, second = neuron(torch.tensor([0.0]), first)
    assert second == 0.5 * first


def test_reset_mechanism_can_be_changed_and_is_followed():
    for mechanism, number in (("subtract", 0), ("zero", 1), ("none", 2)):
        neuron = RefractoryLeaky(beta=0.5, reset_mechanism="none")
        neuron.reset_mechanism = mechanism
        assert neuron.reset_mechanism_val == number
        wanted = snn.Leaky(beta=0.5, reset_mechanism=mechanism)
        loaded = RefractoryLeaky(beta=0.5)
        loaded.load_state_dict(wanted.state_dict())
        for other in (neuron, loaded):
            a = b = None
            for step in STRONG[:T]:
                _, a = wanted(step, a)
                _, b = other(step, b)
                assert torch.equal(a, b)
            wanted.reset_mem()


def test_membrane_is_not_an_argument_of_hidden_state():
    neuron = RefractoryLeaky(beta=0.5, init_hidden=True)
    with pytest.raises(TypeError, match="should not be passed"):
        neuron(torch.zeros(2), torch.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
def test_compiles_without_graph_breaks(mechanism):
    neuron = RefractoryLeaky(beta=0.5, surrogate_disable=True, reset_mechanism=mechanism)
    assert torch._dynamo.explain(neuron)(torch.zeros(1)).graph_break_count == 0
    torch._dynamo.reset()


@pytest.mark.parametrize("steps", [0, 2])
def test_survives_copy_and_pickle_in_mid_sequence(steps):
    neuron = RefractoryLeaky(0.8, refractory_steps=steps, init_hidden=True,
                             spike_grad=fast_sigmoid(10))  # fmt: skip
    with torch.no_grad():
        for step in STRONG[:5]:
            neuron(step)
        twins = [copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))]
        for step in STRONG[5:15]:
            wanted = neuron(step)
            assert all(torch.equal(twin(step), wanted) for twin in twins)


# -- the refractory period -------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 6),
    mode=st.sampled_from(["integrate", "clamp"]),
    mechanism=st.sampled_from(["subtract", "zero", "none"]),
    delay=st.booleans(),
    hidden=st.booleans(),
)
def test_at_least_so_many_steps_lie_between_two_spikes(steps, mode, mechanism, delay, hidden):
    neuron = RefractoryLeaky(0.8, reset_mechanism=mechanism, reset_delay=delay, init_hidden=hidden,
                             refractory_steps=steps, refractory=mode)  # fmt: skip
    spikes, mem = [], None
    for step in STRONG:
        if hidden:
            spikes.append(neuron(step))
        else:
            spk, mem = neuron(step, mem)
            spikes.append(spk)
    found = intervals(torch.stack(spikes))
    assert min(found) >= steps + 1
    if mechanism == "none" and mode == "integrate":  # above threshold for good
        assert set(found) == {steps + 1}


def follow(neuron, currents):
    out = [neuron(torch.tensor([[c]])) for c in currents]
    return [int(s) for s, _ in out], [round(float(m), 4) for _, m in out]


def test_integrate_goes_on_and_clamp_holds_at_zero():
    common = {"beta": 0.5, "threshold": 1.0, "reset_mechanism": "zero", "init_hidden": True,
              "output": True, "refractory_steps": 2}  # fmt: skip
    spikes, mem = follow(RefractoryLeaky(**common), [2.0, 2.0, 2.0, 0.0, 0.0])
    assert spikes == [1, 0, 0, 1, 0]
    assert mem == [2.0, 2.0, 3.0, 1.5, 0.0]  # reset by the emitted spikes only, one step later
    spikes, mem = follow(RefractoryLeaky(**common, refractory="clamp"), [2.0, 2.0, 2.0, 0.0, 1.5])
    assert spikes == [1, 0, 0, 0, 1]
    assert mem == [2.0, 0.0, 0.0, 0.0, 1.5]
    spikes, mem = follow(RefractoryLeaky(**common, reset_delay=False), [2.0, 0.5, 0.5, 2.0])
    assert spikes == [1, 0, 0, 1]
    assert mem == [0.0, 0.5, 0.75, 0.0]


def test_subtraction_takes_place_once_a_spike():
    neuron = RefractoryLeaky(1.0, init_hidden=True, output=True, refractory_steps=2)
    spikes, mem = follow(neuron, [3.5, 0.0, 0.0, 0.0, 0.0])
    assert spikes == [1, 0, 0, 1, 0]
    assert mem == [3.5, 2.5, 2.5, 2.5, 1.5]
    neuron = RefractoryLeaky(
        1.0, init_hidden=True, output=True, refractory_steps=2, reset_delay=False
    )
    assert follow(neuron, [3.5, 0.0, 0.0, 0.0, 0.0]) == ([1, 0, 0, 1, 0], [2.5, 2.5, 2.5, 1.5, 1.5])


@pytest.mark.slow
def test_rate_follows_theory():
    """Against 1 / (t_ref + tau log(a / (a - threshold))), to the step's width."""
    tau, dt, t_ref, threshold = 20.0, 0.05, 1.0, 0.1
    neuron = RefractoryLeaky.from_time_constants(tau, dt, t_ref, threshold, refractory="clamp",
                                                 init_hidden=True)  # fmt: skip
    a = torch.tensor([[0.12, 0.2, 0.5, 2.0]])
    spikes = torch.stack([neuron(a) for _ in range(20000)])
    measured = spikes.sum(0)[0] / (20000 * dt)
    theory = 1 / (t_ref + tau * torch.log(a / (a - threshold)))[0]
    torch.testing.assert_close(measured, theory, rtol=0.03, atol=0)


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_inhibition_passes_the_turn_to_a_neuron_that_may_fire():
    neuron = RefractoryLeaky(0.0, inhibition=True, init_hidden=True, refractory_steps=1)
    x = torch.tensor([[3.0, 2.0, 0.5]])
    assert [neuron(x)[0].tolist() for _ in range(3)] == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_blocked_steps_have_no_gradient_through_the_spike():
    neuron = RefractoryLeaky(0.0, spike_grad=fast_sigmoid(10), init_hidden=True, refractory_steps=1,
                             reset_mechanism="none")  # fmt: skip
    x = torch.full((2, 1, 1), 1.5, requires_grad=True)
    torch.stack([neuron(step) for step in x]).sum().backward()
    assert x.grad[0].item() == pytest.approx(1 / 36)
    assert x.grad[1].item() == 0


# -- bad arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RefractoryLeaky(0.5, refractory_steps=-1), "refractory_steps: .* got -1"),
        (lambda: RefractoryLeaky(0.5, refractory_steps=1.5), "refractory_steps: .* got 1.5"),
        (lambda: RefractoryLeaky(0.5, refractory="freeze"), r"\['integrate', 'clamp'\], got 'freeze'"),
        (lambda: RefractoryLeaky.from_time_constants(dt=30.0), r"in \(0, tau=20.0\], got 30.0"),
        (lambda: RefractoryLeaky.from_time_constants(t_ref=-1.0), "t_ref: .* got -1.0"),
    ],
)  # fmt: skip
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rounding_of_the_refractory_period():
    steps = {t: RefractoryLeaky.from_time_constants(t_ref=t).refractory_steps for t in (0, 0.25, 1)}
    assert steps == {0: 0, 0.25: 0, 1: 3}
