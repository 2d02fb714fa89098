"""One step of a neuron on the CPU, compiled by numba: one pass where torch takes eight or more.

A step is too small for several threads. The kernels are called with addresses, since the arrays of
NumPy that numba would take cost more than a small layer's step.

The arithmetic is that of snnTorch's ``Leaky``, ``Synaptic`` and ``Alpha`` and of the surrogates
here, operation by operation and in its order: values are those of torch to the bit.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn_dfa.sequence.numba_tools import compile_for_addresses, for_kernels, is_installed

__all__ = ["Constants", "ordered", "slope_at", "step", "step_back", "suits"]

_is_installed = functools.cache(is_installed)  # it is asked for at each step
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
    alpha: float | None = None  # decay of the synaptic current, where that is a state
    tau: float | None = None  # what both currents of ``Alpha`` are multiplied by; beta is of one


def suits(current: Tensor) -> bool:
    """Return whether the kernels can compute with such a current."""
    if current.device.type != "cpu" or current.dtype not in (torch.float32, torch.float64):
        return False
    return 0 < current.numel() * torch.get_num_threads() < _SHARED and _is_installed()


def step(
    current: Tensor,
    recurrent: Tensor | None,
    states: Sequence[Tensor],
    counter: Tensor | None,
    of: Constants,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor | None]:
    """Return spikes, states, membrane minus threshold, resets and counter of one step.

    Args:
        current: Any shape.
        recurrent: Another current, of the same shape.
        states: The last ones, of the same shape: synaptic currents, if any, and the membrane.
        counter: Of the silent steps that are left, int32, where there are any.
        of: Of the neuron.
    """
    # In memory results lie as torch's do: as the last membrane, to which the current is added.
    spk, margin, late, *new = [torch.empty_like(states[-1]) for _ in range(3 + len(states))]
    current, states = ordered(current, spk), [ordered(state, spk) for state in states]
    recurrent = None if recurrent is None else ordered(recurrent, spk)
    counter = None if counter is None else ordered(counter, spk)
    counted = None if counter is None else torch.empty_like(counter)
    at, at_new = [each.data_ptr() for each in states], [each.data_ptr() for each in new]
    kernel, constants = _forward_of(of, current.dtype == torch.float32)
    kernel(
        current.numel(), current.data_ptr(), *_optional(recurrent), *_three(at),
        _optional(counter)[0], *constants.at, spk.data_ptr(), margin.data_ptr(), late.data_ptr(),
        *_three(at_new), _optional(counted)[0],
    )  # fmt: skip
    return spk, new, margin, late, counted


def step_back(
    margin: Tensor,
    late: Tensor | None,
    counter: Tensor | None,
    at_spikes: Tensor | None,
    at_states: Sequence[Tensor | None],
    of: Constants,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients at the current and at the last states.

    Args:
        margin: Membrane minus threshold.
        late: The resets; needed for a reset to zero, for one without delay, and by ``Alpha``.
        counter: As it was before the step, where there is one.
        at_spikes: The gradient at the spikes, if any.
        at_states: Those at the states, if any.
        of: Of the neuron.
    """
    counter = None if counter is None else ordered(counter, margin)
    at_spikes = None if at_spikes is None else ordered(at_spikes, margin)
    at_states = [None if t is None else ordered(t, margin) for t in at_states]
    total, *before = out = [torch.empty_like(margin) for _ in range(1 + len(at_states))]
    at = [t.data_ptr() for t in out]
    kernel, constants = _backward_of(of, margin.dtype == torch.float32)
    kernel(
        margin.numel(), margin.data_ptr(), _optional(late)[0], _optional(counter)[0],
        *_optional(at_spikes), *[part for t in _three(at_states) for part in _optional(t)],
        *constants.at, at[0], *_three(at[1:]),
    )  # fmt: skip
    return total, before


def ordered(t: Tensor, like: Tensor) -> Tensor:
    """Return a tensor whose numbers lie in memory as those of another, which has no gaps.

    Args:
        t: The tensor.
        like: The other one, of its shape.

    Example:
        >>> ordered(torch.rand(2, 3), torch.rand(3, 2).t()).stride()
        (1, 2)
    """
    if like.is_contiguous():  # which costs less to ask than strides
        return t.contiguous()
    return t if t.stride() == like.stride() else torch.empty_like(like, dtype=t.dtype).copy_(t)


def _three(of: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return what belongs to a first and a second current, if any, and to the membrane."""
    return of[0], of[len(of) // 2], of[-1]


def _optional(t: Tensor | None) -> tuple[int, bool]:
    """Return the address of a tensor, and whether there is one."""
    return (0, False) if t is None else (t.data_ptr(), True)


def _kind(of: Constants) -> str:
    """Return which kernel computes a step; ``special`` knows more, and takes longer."""
    if of.alpha is not None:
        return "synaptic" if of.tau is None else "alpha"
    return "special" if of.refractory > 0 or not of.delayed else "leaky"


def _flags(of: Constants) -> tuple[bool, ...]:
    return of.reset == "zero", of.reset == "subtract", of.delayed, of.refractory > 0, of.clamps


class _InMemory(NamedTuple):
    """Constants where a kernel reads them: an argument for each would take longer to pass."""

    at: tuple[int, int]
    held: tuple[Any, Any]

    @classmethod
    def of(cls, numbers: Sequence[float], whole: Sequence[int], single: bool) -> _InMemory:
        plain: Any = ctypes.c_float if single else ctypes.c_double
        held = (plain * len(numbers))(*numbers), (ctypes.c_int32 * len(whole))(*whole)
        return cls((ctypes.addressof(held[0]), ctypes.addressof(held[1])), held)


# A neuron's constants are mostly those of its last step.
@functools.lru_cache(256)
def _forward_of(of: Constants, single: bool) -> tuple[Callable[..., Any], _InMemory]:
    numbers = of.gain, of.tau or 0.0, of.alpha or 0.0, of.beta, of.threshold, of.graded
    constants = _InMemory.of(numbers, (of.refractory, *_flags(of)), single)
    return _forward(_kind(of), single), constants


@functools.lru_cache(256)
def _backward_of(of: Constants, single: bool) -> tuple[Callable[..., Any], _InMemory]:
    slope, steepness = of.slope
    width = 1 / steepness  # of an arc tangent
    steepness = math.pi / width if slope == "atan" else steepness
    numbers = of.gain, of.tau or 0.0, of.alpha or 0.0, of.beta, of.threshold, of.graded
    whole = slope == "atan", *_flags(of)
    return _backward(_kind(of), single), _InMemory.of((*numbers, steepness, width), whole, single)


@functools.cache
def _forward(kind: str, single: bool) -> Callable[..., Any]:
    real = np.float32 if single else np.float64
    special, synaptic, dual = kind == "special", kind == "synaptic", kind == "alpha"

    def kernel(
        size, current, recurrent, has_recurrent, syn, inh, mem, counter, numbers, whole, spk,
        margin, late, new_syn, new_inh, new, counted,
    ):  # fmt: skip
        zero, one = real(0), real(1)
        gain, tau, alpha = numbers[0], numbers[1], numbers[2]
        beta, threshold, graded = numbers[3], numbers[4], numbers[5]
        silent, to_zero, subtracts = whole[0], whole[1] != 0, whole[2] != 0
        delayed, counts, clamps = whole[3] != 0, whole[4] != 0, whole[5] != 0
        for i in range(size):
            fired = one * (mem[i] > threshold)
            if special and counts:
                fired = one * (fired > zero and counter[i] == silent) if delayed else zero
            if synaptic or dual:
                u = alpha * syn[i]
            else:
                u = beta * ((one - fired) * mem[i] if to_zero else mem[i])
            u = u + gain * current[i]
            if has_recurrent:
                u = u + recurrent[i]
            if synaptic:
                new_syn[i] = u
                u = beta * mem[i] + u
                if to_zero:
                    u = u - u * fired
            if dual:
                low = beta * inh[i] - current[i]
                both = tau * (u + low)
                if to_zero:
                    u, both = u - u * fired, both - both * fired
                if subtracts:
                    u, both = u - threshold * fired, both + inh[i] * fired
                new_syn[i] = u
                new_inh[i] = low - low * fired if to_zero or subtracts else low
                u = both
            elif subtracts:
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

    return compile_for_addresses(kernel, "iaaiaaacacaaaaaac", single)


def slope_at(x: Any, steepness: Any, width: Any, is_atan: Any, one: Any) -> Any:
    """Return the surrogate's derivative at a membrane minus the threshold; for kernels."""
    if is_atan:
        scaled = steepness * x
        return one / (scaled * scaled * width + width)
    root = steepness * abs(x) + one
    return one / (root * root)


@functools.cache
def _backward(kind: str, single: bool) -> Callable[..., Any]:
    real = np.float32 if single else np.float64
    special, synaptic, dual = kind == "special", kind == "synaptic", kind == "alpha"
    slope = for_kernels(slope_at)

    def kernel(
        size, margin, late, counter, at_spikes, has_spikes, at_syn, has_syn, at_inh, has_inh,
        at_mem, has_mem, numbers, whole, total, before_syn, before_inh, before,
    ):  # fmt: skip
        zero, one = real(0), real(1)
        gain, tau, alpha, beta = numbers[0], numbers[1], numbers[2], numbers[3]
        threshold, graded, steepness, width = numbers[4], numbers[5], numbers[6], numbers[7]
        is_atan, to_zero, subtracts = whole[0] != 0, whole[1] != 0, whole[2] != 0
        delayed, counts, clamps = whole[3] != 0, whole[4] != 0, whole[5] != 0
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
            rise = slope(x, steepness, width, is_atan, one)
            delta = rise * (at_spike * graded) * free + delta
            if special and clamps and counts and counter[i] > 0:
                delta = zero
            freed = delta * (one - late[i]) if to_zero else delta
            before[i] = zero if dual else beta * freed
            if dual:
                kept = one - late[i]
                both = tau * freed
                high = at_syn[i] if has_syn else zero
                low = at_inh[i] if has_inh else zero
                high = both + (high * kept if to_zero else high)
                low = both + (low * kept if to_zero or subtracts else low)
                before_syn[i] = alpha * high
                before_inh[i] = beta * low + (delta * late[i] if subtracts else zero)
                delta = high - low
            if synaptic:
                delta = freed + at_syn[i] if has_syn else freed
                before_syn[i] = alpha * delta
            total[i] = gain * delta

    return compile_for_addresses(kernel, "iaacaiaiaiaiacaaaa", single)
