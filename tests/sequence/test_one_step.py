"""The compiled step of a leaky neuron: values of torch's operations to the bit, and their slopes."""

import pytest
import torch

from snn_dfa.sequence.one_step import Constants, step, step_back, suits
from snn_dfa.surrogate import ATan, FastSigmoid, inline_form

pytest.importorskip("numba")
SHAPE = 64, 70


@pytest.mark.slow  # kernels are compiled
@pytest.mark.parametrize(("reset", "dtype"), [("subtract", torch.float32), ("zero", torch.float64)])
def test_a_step_forward_and_back(reset, dtype):
    torch.manual_seed(0)
    surrogate = ATan(3.0) if reset == "zero" else FastSigmoid(7.0)
    constants = Constants(0.9, 0.7, 1.5, reset, inline_form(surrogate))
    current, mem = (torch.randn(SHAPE, dtype=dtype) for _ in range(2))
    assert suits(current)
    spk, (new,), margin, late, _ = step(current, None, [mem], None, constants)
    reset_now = (mem > 0.7).to(dtype)
    wanted = 0.9 * ((1 - reset_now) * mem if reset == "zero" else mem) + current
    wanted = wanted - reset_now * 0.7 if reset == "subtract" else wanted
    for got, expected in ((late, reset_now), (new, wanted), (margin, wanted - 0.7)):
        assert torch.equal(got, expected)
    assert torch.equal(spk, (wanted > 0.7).to(dtype) * 1.5)
    at_spk, at_mem = (torch.randn(SHAPE, dtype=dtype) for _ in range(2))
    for given in ((at_spk, at_mem), (at_spk, None), (None, at_mem)):
        total, (before,) = step_back(margin, late, None, given[0], given[1:], constants)
        expected = torch.zeros(SHAPE, dtype=dtype) if given[1] is None else at_mem
        if given[0] is not None:
            expected = expected + surrogate.derivative(margin) * at_spk * 1.5
        torch.testing.assert_close(total, expected)
        kept = 1 - reset_now if reset == "zero" else 1
        torch.testing.assert_close(before, 0.9 * expected * kept)


def test_what_the_kernels_leave_to_torch():
    assert suits(torch.rand(SHAPE))
    assert not suits(torch.rand(SHAPE).bfloat16())
    assert not suits(torch.rand(0, 3))
    assert not suits(torch.empty(1).expand(1 << 23))
