"""Surrogates: values, limits, dtypes. Encodings: the law, the seed, the shape."""

import math
import pickle

import pytest
import snntorch as snn
import torch
from snntorch import spikegen
from snntorch import surrogate as snn_surrogate

from snn_dfa import encoding
from snn_dfa.errors import AttachError
from snn_dfa.surrogate import derivative_of, exact, exact_derivative, fast_sigmoid

X = torch.linspace(-2, 2, 401, dtype=torch.float64)


@pytest.mark.parametrize("surrogate", [fast_sigmoid(10), exact(0.5, 20.0, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_forward_is_a_strict_step_that_keeps_the_dtype(surrogate, dtype):
    x = torch.tensor([-1.0, 0.0, 1e-3, 2.0], dtype=dtype, requires_grad=True)
    spk = surrogate(x)
    assert spk.dtype == dtype
    assert spk.tolist() == [0, 0, 1, 1]
    spk.sum().backward()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad, surrogate.derivative(x.detach()))


@pytest.mark.parametrize("surrogate", [fast_sigmoid(25), exact(0.1, 20.0, 1.0)])
def test_pickle_print_compare(surrogate):
    again = pickle.loads(pickle.dumps(surrogate))
    assert again == surrogate
    assert repr(again) == repr(surrogate)
    assert hash(again) == hash(surrogate)


def test_fast_sigmoid_has_snntorchs_gradient():
    ours, theirs = X.clone().float().requires_grad_(), X.clone().float().requires_grad_()
    fast_sigmoid(25)(ours).sum().backward()
    snn_surrogate.fast_sigmoid(25)(theirs).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_fast_sigmoid_peaks_at_one_and_falls_on_both_sides():
    slope = fast_sigmoid(10).derivative(X)
    assert slope.max() == slope[200]
    assert slope[200].item() == pytest.approx(1)
    assert (slope[:200].diff() > 0).all()
    assert (slope[200:].diff() < 0).all()


def rate(a, threshold, tau, t_ref):
    return 1 / (t_ref + tau * math.log(a / (a - threshold)))


@pytest.mark.parametrize("a", [0.1001, 0.11, 0.2, 1.0, 50.0])
def test_exact_is_the_slope_of_the_rate(a):
    threshold, tau, t_ref = 0.1, 20.0, 1.0
    h = 1e-6 * (a - threshold)
    wanted = (
        t_ref * (rate(a + h, threshold, tau, t_ref) - rate(a - h, threshold, tau, t_ref)) / 2 / h
    )
    got = exact(threshold, tau, t_ref).derivative(torch.tensor(a - threshold, dtype=torch.float64))
    assert got.item() == pytest.approx(wanted, rel=1e-6)


def test_exact_is_bounded_at_the_threshold_and_zero_below():
    f = exact(0.1, 20.0, 1.0)
    near = f.derivative(torch.tensor([1e-30, 1e-12, 1e-7], dtype=torch.float64))
    assert near.isfinite().all()
    assert near[0] == near[1] == near[2]
    assert f.derivative(torch.tensor([-1.0, 0.0])).tolist() == [0, 0]
    lost = 1.0 / (1.0 + 20 * math.log1p(1e6))  # the rate up to there, of a greatest rate of one
    assert lost < 0.004


def test_exact_keeps_its_digits_far_from_the_threshold_in_single_precision():
    x = torch.tensor([1e3, 1e5, 1e7])
    single = exact_derivative(x, 0.1, 20.0, 1.0)
    double = exact_derivative(x.double(), 0.1, 20.0, 1.0)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)
    assert (double > 0).all()


def test_exact_without_refractory_period_is_zero():
    assert not exact(0.1, 20.0, 0.0).derivative(X).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fast_sigmoid(0), "slope: .* got 0"),
        (lambda: exact(0.0, 1.0, 1.0), "threshold: .* got 0.0"),
        (lambda: exact(1.0, -1.0, 1.0), "tau: .* got -1.0"),
        (lambda: exact(1.0, 1.0, -1.0), "t_ref: .* got -1.0"),
    ],
)
def test_bad_constants(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_derivative_of_any_surrogate_of_snntorch():
    x = X.float()
    for stock in (snn_surrogate.atan(), snn_surrogate.sigmoid(), snn_surrogate.SFS()):
        at = x.clone().requires_grad_()
        stock(at).sum().backward()
        with torch.no_grad():
            assert torch.equal(derivative_of(stock)(x), at.grad)
    with pytest.raises(AttachError, match="no derivative"):
        derivative_of(snn.Leaky(0.5, surrogate_disable=True).spike_grad)(x)


# -- encodings -------------------------------------------------------------------------------------


def test_poisson_has_its_rates_and_snntorchs_law(generator):
    x = torch.linspace(0, 1, 11).expand(50, 11)
    ours = encoding.poisson(x, 400, max_rate=0.8, generator=generator)
    theirs = spikegen.rate(x, num_steps=400, gain=0.8)
    assert ours.shape == theirs.shape == (400, 50, 11)
    assert set(ours.unique().tolist()) == {0.0, 1.0}
    # 20,000 draws a value: a standard error of at most 0.0036
    torch.testing.assert_close(ours.mean((0, 1)), 0.8 * x[0], atol=0.015, rtol=0)
    torch.testing.assert_close(ours.mean((0, 1)), theirs.mean((0, 1)), atol=0.02, rtol=0)


def test_poisson_is_seeded_and_independent_over_steps():
    x = torch.full((4, 100), 0.5)
    draw = lambda seed: encoding.poisson(x, 50, 1.0, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    a = draw(1)
    assert abs((a[1:] * a[:-1]).mean().item() - 0.25) < 0.02
    before = torch.get_rng_state()
    draw(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_certain_pixels():
    spikes = encoding.poisson(torch.tensor([[0.0, 1.0]]), 100, max_rate=1.0)
    assert not spikes[..., 0].any()
    assert spikes[..., 1].all()


def test_constant_is_expanded_and_not_copied():
    x = torch.rand(2, 3, dtype=torch.float64)
    current = encoding.constant(x, 25)
    assert current.shape == (25, 2, 3)
    assert current.stride(0) == 0
    assert current.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: encoding.poisson(torch.tensor([1.5]), 5), ValueError, r"\[0, 1\], got \[1.5, 1.5\]"),
        (lambda: encoding.poisson(torch.tensor([torch.nan]), 5), ValueError, "got .nan, nan"),
        (lambda: encoding.poisson(torch.tensor([1]), 5), TypeError, r"got torch.int64; call x.float"),
        (lambda: encoding.poisson(torch.rand(1), 0), ValueError, "num_steps: .* got 0"),
        (lambda: encoding.poisson(torch.rand(1), 5, 1.5), ValueError, "max_rate: .* got 1.5"),
        (lambda: encoding.constant(torch.rand(1), -1), ValueError, "num_steps: .* got -1"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
