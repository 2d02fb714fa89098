"""One step of a leaky neuron on the CPU, compiled by numba: one pass where torch takes eight.

A step is too small for several threads. The kernels are called with addresses, since the arrays of
NumPy that numba would take cost more than a small layer's step.

The arithmetic is that of snnTorch's ``Leaky``, operation by operation and in its order, so that
values are the same to the bit.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn_dfa.sequence.numba_tools import compile_for_addresses

__all__ = ["Constants", "leaky_step", "leaky_step_back", "suits"]

_SHARED = 1 << 22  # numbers times threads from which torch, which shares them, does the work


class Constants(NamedTuple):
    """What all neurons of a layer have in common; ``slope`` names the surrogate's form."""

    beta: float
    threshold: float
    graded: float
    reset: str
    slope: tuple[str, float]
    gain: float = 1.0
    delayed: bool = True  # the reset, by a step
    refractory: int = 0  # silent steps after a spike
    clamps: bool = False  # the membrane to zero in these


def suits(current: Tensor) -> bool:
    """Return whether the kernels can compute with such a current."""
    if current.device.type != "cpu" or current.dtype not in (torch.float32, torch.float64):
        return False
    return 0 < current.numel() * torch.get_num_threads() < _SHARED and _has_numba()


@functools.cache  # it is asked for at each step
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def leaky_step(
    current: Tensor, recurrent: Tensor | None, mem: Tensor, counter: Tensor | None, of: Constants
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return spikes, membrane, membrane minus threshold, resets and counter of one step.

    Args:
        current: Any shape.
        recurrent: Another current, of the same shape.
        mem: The last membrane, of the same shape.
        counter: Of the silent steps that are left, int32, where there are any.
        of: Of the neuron.
    """
    current, mem = current.contiguous(), mem.contiguous()
    recurrent = None if recurrent is None else recurrent.contiguous()
    counter = None if counter is None else counter.contiguous()
    counted = None if counter is None else torch.empty_like(counter)
    spk, new, margin, late = out = tuple([torch.empty_like(current) for _ in range(4)])
    _forward(_is_special(of), current.dtype == torch.float32)(
        current.numel(), current.data_ptr(), of.gain, *_optional(recurrent), mem.data_ptr(),
        _optional(counter)[0], of.refractory, of.beta, of.threshold, of.graded, *_flags(of),
        *[t.data_ptr() for t in out], _optional(counted)[0],
    )  # fmt: skip
    return spk, new, margin, late, counted


def leaky_step_back(
    margin: Tensor,
    late: Tensor | None,
    counter: Tensor | None,
    at_spikes: Tensor | None,
    at_mem: Tensor | None,
    of: Constants,
) -> tuple[Tensor, Tensor]:
    """Return the gradients at the current and at the last membrane.

    Args:
        margin: Membrane minus threshold.
        late: The resets; needed for a reset to zero, and for one without delay.
        counter: As it was before the step, where there is one.
        at_spikes: The gradient at the spikes, if any.
        at_mem: That at the membrane, if any.
        of: Of the neuron.
    """
    slope, steepness = of.slope
    at_spikes = None if at_spikes is None else at_spikes.contiguous()
    at_mem = None if at_mem is None else at_mem.contiguous()
    counter = None if counter is None else counter.contiguous()
    total, before = torch.empty_like(margin), torch.empty_like(margin)
    _backward(_is_special(of), margin.dtype == torch.float32)(
        margin.numel(), margin.data_ptr(), _optional(late)[0], _optional(counter)[0],
        *_optional(at_spikes), *_optional(at_mem), of.gain, of.beta, of.threshold, of.graded,
        steepness, slope == "atan", *_flags(of), total.data_ptr(), before.data_ptr(),
    )  # fmt: skip
    return total, before


def _optional(t: Tensor | None) -> tuple[int, bool]:
    """Return the address of a tensor, and whether there is one."""
    return (0, False) if t is None else (t.data_ptr(), True)


def _is_special(of: Constants) -> bool:
    """Return whether a step is one of the kernel that knows all, which takes longer."""
    return of.refractory > 0 or not of.delayed


def _flags(of: Constants) -> tuple[bool, ...]:
    return of.reset == "zero", of.reset == "subtract", of.delayed, of.refractory > 0, of.clamps


@functools.cache
def _forward(special: bool, single: bool) -> Callable[..., Any]:
    kind = np.float32 if single else np.float64

    def kernel(
        size, current, gain, recurrent, has_recurrent, mem, counter, silent, beta, threshold,
        graded, to_zero, subtracts, delayed, counts, clamps, spk, new, margin, late, counted,
    ):  # fmt: skip
        zero, one = kind(0), kind(1)
        for i in range(size):
            fired = one * (mem[i] > threshold)
            if special and counts:
                fired = one * (fired > zero and counter[i] == silent) if delayed else zero
            before = (one - fired) * mem[i] if to_zero else mem[i]
            u = beta * before
            u = u + gain * current[i]
            if has_recurrent:
                u = u + recurrent[i]
            if subtracts:
                u = u - fired * threshold
            if special and clamps and counts and counter[i] > 0:
                u = zero
            x = u - threshold
            spike = one * (x > zero)
            if special and counts:
                spike = spike if counter[i] == 0 else zero
                left = counter[i] - 1 if counter[i] > 0 else 0
                counted[i] = silent if spike * graded > zero else left
            margin[i] = x
            late[i] = fired
            spk[i] = spike * graded
            if special and not delayed:
                if subtracts:
                    u = u - (spike - fired) * threshold
                if to_zero:
                    u = u - (spike - fired) * u
            new[i] = u

    return compile_for_addresses(kernel, "iafaiacifffiiiiiaaaac", single)


@functools.cache
def _backward(special: bool, single: bool) -> Callable[..., Any]:
    kind = np.float32 if single else np.float64

    def kernel(
        size, margin, late, counter, at_spikes, has_spikes, at_mem, has_mem, gain, beta, threshold,
        graded, steepness, is_atan, to_zero, subtracts, delayed, counts, clamps, total, before,
    ):  # fmt: skip
        zero, one, pi = kind(0), kind(1), kind(np.pi)
        for i in range(size):
            x, free = margin[i], one
            if special and counts:
                free = one if counter[i] == 0 else zero
            at_spike = at_spikes[i] if has_spikes else zero
            delta = at_mem[i] if has_mem else zero
            if special and not delayed:
                if subtracts:
                    at_spike = at_spike - threshold / graded * delta
                if to_zero:
                    at_spike = at_spike - (x + threshold) / graded * delta
                    delta = delta * (one - (one * (x > zero) * free - late[i]))
            if is_atan:
                scaled = pi * steepness * x
                rise = steepness / (one + scaled * scaled)
            else:
                root = one / (one + steepness * abs(x))
                rise = root * root
            delta = rise * (at_spike * graded) * free + delta
            if special and clamps and counts and counter[i] > 0:
                delta = zero
            total[i] = gain * delta
            back = beta * delta
            before[i] = back * (one - late[i]) if to_zero else back

    return compile_for_addresses(kernel, "iaacaiaifffffiiiiiiaa", single)
