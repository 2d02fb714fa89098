"""The way back of errors through linear functions, beside autograd on the same functions."""

import random
from functools import partial

import pytest
import torch

from snn_dfa.feedback.way_back import Value, added, errors_at, joined, linear, through

LIKE = torch.zeros((), dtype=torch.float64)


def random_network(seed):
    """Return wanted values and an end made of them, and the same in tensors."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    wanted = [Value(LIKE, (4, 3), wanted=True) for _ in range(3)]
    leaves = [torch.zeros(4, 3, dtype=torch.float64, requires_grad=True) for _ in wanted]
    made = list(zip(wanted, leaves, strict=True))
    for _ in range(8):
        (one, x), (other, y) = rng.choice(made), rng.choice(made)
        kind = rng.choice(["matrix", "sum", "join", "function", "reshape"])
        if kind == "matrix":
            w = draw(x.shape[1], 3)
            made.append((linear(partial(torch.matmul, other=w.t()), (4, 3), one), x @ w))
        elif kind == "sum" and x.shape == y.shape:
            made.append((added(one, other), x + y))
        elif kind == "join":
            made.append((joined(one, other), torch.cat([x, y], 1)))
        elif kind == "function":
            made.append((through(lambda t: t.flip(1).cumsum(1), one), x.flip(1).cumsum(1)))
        else:
            made.append((one.reshape(4, -1, 1).reshape(4, -1), x.reshape(4, -1, 1).reshape(4, -1)))
    return wanted, leaves, joined(*(v for v, _ in made)), torch.cat([x for _, x in made], 1), draw


@pytest.mark.parametrize("seed", range(40))
def test_errors_are_those_of_autograd(seed):
    wanted, leaves, end, out, draw = random_network(seed)
    error = draw(*out.shape)
    assert end.shape == out.shape
    expected = torch.autograd.grad(out, leaves, error)
    for got, right in zip(errors_at(end, error, wanted), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-12, atol=1e-12)


def test_what_leads_to_nothing_wanted_is_not_passed():
    def fail(_):
        raise AssertionError

    apart = linear(fail, (2, 3), Value(LIKE, (2, 3)))
    wanted, other = (Value(LIKE, (2, 3), wanted=True) for _ in "12")
    found = errors_at(added(apart, wanted), torch.ones(2, 3), [wanted, other])
    assert torch.equal(found[0], torch.ones(2, 3, dtype=torch.float64))  # of the values' type
    assert found[1] is None


def test_shapes_that_do_not_fit_raise_an_error():
    value = Value(LIKE, (2, 3), wanted=True)
    with pytest.raises(RuntimeError, match="shape"):
        value.reshape(2, 4)
    wrong = linear(lambda e: e.new_zeros(2, 4), (2, 3), value)
    with pytest.raises(RuntimeError):
        errors_at(wrong, torch.ones(2, 3), [value])
