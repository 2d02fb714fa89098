"""One step of a neuron that spikes where its membrane has changed by a threshold, compiled.

The arithmetic is that of snnTorch's ``DeltaLeaky``, operation by operation and in its order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn_dfa.sequence.numba_tools import compile_for_addresses, for_kernels
from snn_dfa.sequence.one_step import ordered, slope_at

__all__ = ["Change", "change_step", "change_step_back"]


class Change(NamedTuple):
    """What all neurons of a layer have in common; ``slope`` names the surrogate's form."""

    beta: float
    threshold: float  # of the change's size
    slope: tuple[str, float]


def change_step(current: Tensor, mem: Tensor, of: Change) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return spikes, the membrane, its change's size minus the threshold, and the change's sign.

    Args:
        current: Any shape, float32 or float64.
        mem: The last membrane, of the same shape.
        of: Of the neuron.
    """
    spk, new, margin, sign = [torch.empty_like(mem) for _ in range(4)]
    current, mem = ordered(current, spk), ordered(mem, spk)
    _forward(current.dtype == torch.float32)(
        current.numel(), current.data_ptr(), mem.data_ptr(), of.beta, of.threshold,
        spk.data_ptr(), new.data_ptr(), margin.data_ptr(), sign.data_ptr(),
    )  # fmt: skip
    return spk, new, margin, sign


def change_step_back(
    margin: Tensor,
    sign: Tensor,
    at_spikes: Tensor | None,
    at_mem: Tensor | None,
    of: Change,
) -> tuple[Tensor, Tensor]:
    """Return the gradients at the current and at the last membrane.

    Args:
        margin: The change's size minus the threshold.
        sign: The change's sign.
        at_spikes: The gradient at the spikes, if any.
        at_mem: That at the membrane, if any.
        of: Of the neuron.
    """
    given = at_spikes, at_mem
    at_spikes, at_mem = (None if t is None else ordered(t, margin) for t in given)
    total, before = torch.empty_like(margin), torch.empty_like(margin)
    name, steepness = of.slope
    width = 1 / steepness  # of an arc tangent
    _backward(margin.dtype == torch.float32)(
        margin.numel(), margin.data_ptr(), sign.data_ptr(),
        0 if at_spikes is None else at_spikes.data_ptr(), at_spikes is not None,
        0 if at_mem is None else at_mem.data_ptr(), at_mem is not None, of.beta,
        math.pi / width if name == "atan" else steepness, width, name == "atan",
        total.data_ptr(), before.data_ptr(),
    )  # fmt: skip
    return total, before


@functools.cache
def _forward(single: bool) -> Callable[..., Any]:
    real = np.float32 if single else np.float64

    def kernel(size, current, mem, beta, threshold, spk, new, margin, sign):
        zero, one = real(0), real(1)
        for i in range(size):
            u = beta * mem[i]
            u = u + current[i]
            change = u - mem[i]
            x = abs(change) - threshold
            spk[i] = one * (x > zero)
            new[i] = u
            margin[i] = x
            sign[i] = one * (change > zero) - one * (change < zero)

    return compile_for_addresses(kernel, "iaaffaaaa", single)


@functools.cache
def _backward(single: bool) -> Callable[..., Any]:
    real = np.float32 if single else np.float64
    slope = for_kernels(slope_at)

    def kernel(
        size, margin, sign, at_spikes, has_spikes, at_mem, has_mem, beta, steepness, width,
        is_atan, total, before,
    ):  # fmt: skip
        zero, one = real(0), real(1)
        for i in range(size):
            x = margin[i]
            rise = slope(x, steepness, width, is_atan, one)
            at_change = rise * at_spikes[i] * sign[i] if has_spikes else zero
            at = at_change + at_mem[i] if has_mem else at_change
            total[i] = at
            before[i] = beta * at - at_change

    return compile_for_addresses(kernel, "iaaaiaifffiaa", single)
