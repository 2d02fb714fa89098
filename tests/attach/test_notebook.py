"""The update that the first implementation by hand makes, from its equations, in float64."""

import pytest
import torch
from torch import nn

from snn_dfa import DFA, RefractoryLeaky
from snn_dfa.functional import ce_normalized_rate_loss
from snn_dfa.surrogate import exact, fast_sigmoid

TAU, DT, T_REF = 20.0, 0.25, 1.0
THRESHOLDS, BIASES = (0.05, 0.02, 0.01, 0.15), (0.5, 0.5, 0.5, 1.0)
SIZES = (20, 16, 12, 9, 4)
T, B = 25, 8


def simulate(currents_of, threshold, steps):
    """v <- (1 - dt/tau) v + (dt/tau) I; spike, reset to zero and a count of t_ref/dt steps."""
    v = wait = None
    spikes, currents = [], []
    for t in range(steps):
        current = currents_of(t)
        v = torch.zeros_like(current) if v is None else v
        wait = torch.zeros_like(current) if wait is None else wait
        v = (1 - DT / TAU) * v + (DT / TAU) * current
        s = ((v >= threshold) & (wait <= 0)).to(v.dtype)
        v = v * (1 - s)
        wait = torch.where(s > 0.5, torch.full_like(v, round(T_REF / DT)), wait)
        wait = (wait - 1).clamp(min=0)
        spikes.append(s)
        currents.append(current)
    return torch.stack(spikes), torch.stack(currents)


def slope_fast(a, threshold):
    return 1 / (1 + (10 * (a - threshold)).abs()) ** 2


def slope_exact(a, threshold):
    ratio = torch.log(a / (a - threshold).clamp(min=1e-300))
    slope = threshold * T_REF * TAU / (a * (a - threshold)) / (T_REF + TAU * ratio) ** 2
    return torch.where(a > threshold, slope, torch.zeros_like(a))


def closed_form(weights, biases, feedback, x, targets, slope):
    """The eight gradients: e_l = (e B_l) f'(a_l), summed over time and batch, over B T."""
    inputs, currents = [x], []
    for w, b, threshold in zip(weights, biases, THRESHOLDS, strict=True):
        s, a = simulate(lambda t, w=w, b=b, i=inputs[-1]: i[t] @ w.T + b, threshold, T)
        inputs.append(s)
        currents.append(a)
    counts = inputs[-1].sum(0)
    p = torch.softmax(counts / (counts.sum(1, keepdim=True) + 1e-9) / 0.5, dim=1)
    e = p - torch.nn.functional.one_hot(targets, SIZES[-1])
    grads = []
    for layer, (a, threshold) in enumerate(zip(currents, THRESHOLDS, strict=True)):
        sent = e if layer == 3 else e @ feedback[layer]
        local = sent.unsqueeze(0) * slope(a, threshold)
        grads.append(torch.einsum("tbi,tbj->ji", inputs[layer], local) / (B * T))
        grads.append(local.sum((0, 1)) / (B * T))
    rates = [s.mean().item() for s in inputs[1:]]
    return grads, -torch.log(p[torch.arange(B), targets]).mean(), rates


def network(surrogate):
    layers = []
    for n_in, n, threshold, bias in zip(SIZES, SIZES[1:], THRESHOLDS, BIASES, strict=False):
        linear = nn.Linear(n_in, n)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.constant_(linear.bias, bias)
        neuron = RefractoryLeaky.from_time_constants(
            TAU, DT, T_REF, torch.tensor(threshold, dtype=torch.float64),
            spike_grad=surrogate(threshold), init_hidden=True,
        )  # fmt: skip
        neuron.beta = torch.tensor(1 - DT / TAU, dtype=torch.float64)
        layers += [linear, neuron]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("surrogate", "slope"),
    [(lambda h: fast_sigmoid(10), slope_fast), (lambda h: exact(h, TAU, T_REF), slope_exact)],
    ids=["fast_sigmoid", "exact"],
)
def test_all_eight_gradients(surrogate, slope, seed):
    torch.manual_seed(seed)
    net = network(surrogate)
    x = (torch.rand(T, B, SIZES[0]) < 0.4).double()
    targets = torch.randint(SIZES[-1], (B,))
    feedback = [0.0338 * torch.randn(SIZES[-1], n, dtype=torch.float64) for n in SIZES[1:4]]
    dfa = DFA(net, credit="current", feedback=dict(zip("135", feedback, strict=True)))
    loss = ce_normalized_rate_loss(temperature=0.5)(torch.stack([net(s) for s in x]), targets)
    loss.backward()

    weights = [net[i].weight.detach() for i in (0, 2, 4, 6)]
    biases = [net[i].bias.detach() for i in (0, 2, 4, 6)]
    wanted, wanted_loss, rates = closed_form(weights, biases, feedback, x, targets, slope)
    assert all(0.01 < rate <= 0.25 for rate in rates), rates  # they fire, and are held back
    torch.testing.assert_close(loss.detach(), wanted_loss, rtol=1e-7, atol=0)
    got = [p.grad for i in (0, 2, 4, 6) for p in (net[i].weight, net[i].bias)]
    for g, w in zip(got, wanted, strict=True):
        assert w.abs().sum() > 0
        # a / (a - threshold) loses digits near the threshold, in the reference alone
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-11)
    dfa.remove()


@pytest.mark.parametrize("threshold", [*THRESHOLDS, 0.1])
def test_spikes_of_the_neuron(threshold, generator):
    currents = torch.rand(200, 4, 30, generator=generator) * 2 * threshold / 0.3
    wanted, _ = simulate(lambda t: currents[t], threshold, 200)
    neuron = RefractoryLeaky.from_time_constants(threshold=threshold, init_hidden=True)
    got = torch.stack([neuron(current) for current in currents])
    assert wanted.mean() > 0.02
    assert (got == wanted).all()


def test_silent_samples_give_the_loss_of_a_guess():
    spk = torch.zeros(5, 2, 4, requires_grad=True)
    loss = ce_normalized_rate_loss()(spk, torch.tensor([0, 3]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(4.0).log())
    torch.testing.assert_close(spk.grad[2, 0], (torch.full((4,), 0.25) - torch.eye(4)[0]) / 10)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"expected shapes \[T, B, C\] and \[B\], got \[5, 2, 4\]"):
        ce_normalized_rate_loss()(torch.zeros(5, 2, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature: expected a number above zero, got 0"):
        ce_normalized_rate_loss(temperature=0)
