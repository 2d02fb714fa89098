"""One step of a leaky neuron on the CPU, compiled by numba: one pass where torch takes eight.

A step is too small for several threads.

The arithmetic is that of snnTorch's ``Leaky``, operation by operation and in its order, so that
values are the same to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn_dfa.sequence.numba_tools import compile_serial, has_numba

__all__ = ["Constants", "leaky_step", "leaky_step_back", "suits"]

_LARGE = 1 << 12  # numbers from which the kernel is faster than torch
_SHARED = 1 << 22  # numbers times threads from which torch, which shares them, does the work


class Constants(NamedTuple):
    """Numbers that all neurons of a layer have in common; ``slope`` names the surrogate's form."""

    beta: float
    threshold: float
    graded: float
    reset: str
    slope: tuple[str, float]


def suits(*tensors: Tensor) -> bool:
    """Return whether the kernels can compute with these: dense, on the CPU, and not too few."""
    first = tensors[0]
    large = first.numel() >= _LARGE and first.device.type == "cpu"
    if not large or first.dtype not in (torch.float32, torch.float64):
        return False
    if first.numel() * torch.get_num_threads() >= _SHARED:
        return False
    alike = all([t.dtype == first.dtype and t.is_contiguous() for t in tensors])
    return alike and has_numba()


def leaky_step(
    current: Tensor, mem: Tensor, constants: Constants
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return spikes, membrane, membrane minus threshold, and resets of one step.

    Args:
        current: Any shape.
        mem: The last membrane, of the same shape.
        constants: Of the neuron.
    """
    out = tuple(torch.empty_like(current) for _ in range(4))
    beta, threshold, graded = (_like(current, number) for number in constants[:3])
    kernel = _forward(constants.reset, current.dtype == torch.float32)
    kernel(_flat(current), _flat(mem), beta, threshold, graded, *map(_flat, out))
    return out  # type: ignore[return-value]


def leaky_step_back(
    margin: Tensor,
    late: Tensor | None,
    at_spikes: Tensor | None,
    at_mem: Tensor | None,
    constants: Constants,
) -> tuple[Tensor, Tensor]:
    """Return the gradients at the current and at the last membrane.

    Args:
        margin: Membrane minus threshold.
        late: The resets; needed for a reset to zero.
        at_spikes: The gradient at the spikes, if any.
        at_mem: That at the membrane, if any.
        constants: Of the neuron.
    """
    total, before = torch.empty_like(margin), torch.empty_like(margin)
    slope, steepness = constants.slope
    parts = [_flat(margin if t is None else t) for t in (late, at_spikes, at_mem)]
    numbers = [_like(margin, n) for n in (constants.beta, constants.graded, steepness)]
    kernel = _backward(slope, margin.dtype == torch.float32, constants.reset == "zero")
    given = at_spikes is not None, at_mem is not None
    kernel(_flat(margin), *parts, *given, *numbers, _flat(total), _flat(before))
    return total, before


def _flat(t: Tensor) -> Any:
    return (t.detach() if t.requires_grad else t).view(-1).numpy()


def _like(t: Tensor, number: float) -> Any:
    return np.float32(number) if t.dtype == torch.float32 else np.float64(number)


@functools.cache
def _forward(reset: str, single: bool) -> Callable[..., Any]:
    kind = np.float32 if single else np.float64
    to_zero, subtracts = reset == "zero", reset == "subtract"

    def kernel(current, mem, beta, threshold, graded, spk, new, margin, late):
        size, one = len(current), kind(1)
        for i in range(size):
            fired = one * (mem[i] > threshold)
            before = (one - fired) * mem[i] if to_zero else mem[i]
            u = beta * before
            u = u + current[i]
            if subtracts:
                u = u - fired * threshold
            x = u - threshold
            new[i] = u
            margin[i] = x
            late[i] = fired
            spk[i] = (one * (x > 0)) * graded

    return compile_serial(kernel)


@functools.cache
def _backward(slope: str, single: bool, to_zero: bool) -> Callable[..., Any]:
    kind = np.float32 if single else np.float64
    is_atan = slope == "atan"

    def kernel(
        margin, late, at_spikes, at_mem, has_spikes, has_mem, beta, graded, steepness, total, before
    ):
        size, zero, one, pi = len(margin), kind(0), kind(1), kind(np.pi)
        for i in range(size):
            delta = zero
            if has_spikes:
                if is_atan:
                    scaled = pi * steepness * margin[i]
                    rise = steepness / (one + scaled * scaled)
                else:
                    root = one / (one + steepness * abs(margin[i]))
                    rise = root * root
                delta = rise * (at_spikes[i] * graded)
            if has_mem:
                delta = delta + at_mem[i]
            total[i] = delta
            back = beta * delta
            before[i] = back * (one - late[i]) if to_zero else back

    return compile_serial(kernel)
