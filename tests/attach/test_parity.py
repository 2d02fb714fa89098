"""The gradients of an attached network against loops without hooks and without autograd."""

import problems
import pytest
import reference as ref
import snntorch as snn
import torch
from parity import check, run, two_layers
from problems import C, problem
from torch import nn

from snn_dfa import DFA
from snn_dfa.surrogate import fast_sigmoid


@pytest.mark.slow
@pytest.mark.parametrize("neuron", problems.NEURONS)
@pytest.mark.parametrize("network", ["sequential", "loop-inside", "layer-by-layer"])
def test_membrane_credit_over_neurons(network, neuron):
    check(problem(network, neuron), ref.Neuron)


@pytest.mark.parametrize("neuron", ["leaky", "synaptic", "refractory"])
@pytest.mark.parametrize("network", ["convolutional", "normalised", "wrong-order"])
def test_membrane_credit_over_networks(network, neuron):
    check(problem(network, neuron), ref.Neuron)


@pytest.mark.slow
@pytest.mark.parametrize("neuron", ["leaky", "leaky-zero", "synaptic", "refractory-clamp", "time-constants"])  # fmt: skip
@pytest.mark.parametrize("network", problems.NETWORKS)
def test_current_credit(network, neuron):
    check(problem(network, neuron), ref.CurrentNeuron, credit="current")


def test_any_derivative_is_augmented_dfa():
    def g(x):
        return torch.cos(x) + 2

    class Augmented(ref.CurrentNeuron):
        def __init__(self, **options):
            super().__init__(**options, slope=g)

    check(problem("loop-inside", "leaky"), Augmented, credit="current", derivative=g)


# -- answers that are known -----------------------------------------------------------------------


def test_transposed_weights_as_feedback_are_backpropagation_of_the_direct_path():
    """One hidden layer, one step: the only path from output spikes to hidden ones is W transposed.

    The output's own surrogate lies on it; an output of rate one half under a straight-through
    spike has slope one, so that B = W is exactly back-propagation.
    """
    net = two_layers(spike_grad=fast_sigmoid(10))
    net[3].spike_grad = StraightThrough()
    x = torch.rand(1, 4, 5, dtype=torch.float64)
    loss = lambda spk: (spk * torch.arange(1.0, C + 1, dtype=torch.float64)).sum()  # noqa: E731

    loss(run(net, x)).backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    assert wanted[0].abs().sum() > 0
    with DFA(net, feedback={"1": net[2].weight}):
        loss(run(net, x)).backward()
        for parameter, grad in zip(net.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=1e-12)
        loss(run(net, x)).backward()
        for parameter, grad in zip(net.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=1e-12)


class Box(torch.autograd.Function):
    """A surrogate as a function of autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0].abs() < 2.0)


def test_a_function_of_autograd_is_a_surrogate_by_its_apply():
    x, grads = torch.rand(6, 4, 5, dtype=torch.float64), []
    for surrogate in (Box.apply, lambda x: Box.apply(x)):
        torch.manual_seed(0)
        net = two_layers(spike_grad=surrogate)
        with DFA(net):
            (run(net, x) - 1).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert grads[0][0].any()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


class StraightThrough:
    def __call__(self, x):
        return x + ((x > 0).to(x.dtype) - x).detach()


def test_transposed_weights_with_a_readout_are_backpropagation_over_a_sequence():
    """A linear readout has no memory: with B = W the hidden layer's gradient is the full BPTT."""
    net = nn.Sequential(
        nn.Linear(5, 7), snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True, spike_grad=fast_sigmoid(10)),
        nn.Linear(7, C),
    ).double()  # fmt: skip
    x = torch.rand(6, 4, 5, dtype=torch.float64)
    run(net, x).square().sum().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    assert wanted[0].abs().sum() > 0
    with DFA(net, output="2", feedback={"1": net[2].weight}) as dfa:
        assert dfa.hidden == ("1",)
        run(net, x).square().sum().backward()
        for parameter, grad in zip(net.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["error", "shallow"])
def test_the_output_block_has_its_true_gradient(rule):
    net = two_layers(spike_grad=fast_sigmoid(10))
    x = torch.rand(6, 4, 5, dtype=torch.float64)
    run(net, x).mean().backward()
    wanted = net[2].weight.grad.clone()
    with DFA(net, rule=rule):
        for _ in range(2):
            run(net, x).mean().backward()
            torch.testing.assert_close(net[2].weight.grad, wanted, rtol=1e-13, atol=1e-15)


def test_shallow_leaves_hidden_parameters_without_gradient():
    net = two_layers()
    with DFA(net, rule="shallow"):
        run(net.float(), torch.rand(6, 4, 5))  # the first pass finds the output
        run(net, torch.rand(6, 4, 5)).sum().backward()
    assert net[0].weight.grad is None
    assert net[2].weight.grad.abs().sum() > 0


def test_twice_the_feedback_is_twice_the_hidden_gradient_and_the_same_output_gradient():
    net, x = two_layers(spike_grad=fast_sigmoid(10)), torch.rand(6, 4, 5, dtype=torch.float64)
    grads = []
    for scale in (1.0, 2.0):
        with DFA(net, scale=scale):
            run(net, x).sum().backward()
            grads.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(grads[1][0], 2 * grads[0][0], rtol=1e-12, atol=0)
    torch.testing.assert_close(grads[1][2], grads[0][2], rtol=0, atol=0)


def test_no_transposed_product_is_computed():
    """A hidden layer's weights may even be NaN in the backward pass: nothing is multiplied by them."""
    net, x = two_layers(spike_grad=fast_sigmoid(10)), torch.rand(6, 4, 5, dtype=torch.float64)
    products = []
    with DFA(net, output="3"):
        net[1].register_forward_hook(lambda m, i, spk: spk.register_hook(products.append) and None)
        loss = run(net, x).sum()
        with torch.no_grad():
            net[2].weight.data.fill_(torch.nan)  # .data: unseen by autograd's version check
        loss.backward()
    assert products == []  # else a product would have come to the spikes
    assert net[0].weight.grad.isfinite().all()
    assert net[0].weight.grad.abs().sum() > 0
