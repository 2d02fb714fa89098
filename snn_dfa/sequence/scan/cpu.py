"""The scan on the CPU, compiled by numba: one pass forward, one pass backward.

Each kernel is compiled for one kind of neuron, in some seconds, at its first use, and kept on the
disk by numba for later processes. A job is a
sample and a run of its neurons, so that the membranes stay in the nearest cache over all steps.
bfloat16, which numba lacks, is read and written as its 16 bits, the upper half of a float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_dfa.sequence.numba_tools import (
    as_array,
    compile_parallel,
    for_kernels,
    has_numba,
    read_bfloat16,
    write_bfloat16,
)
from snn_dfa.sequence.scan.dynamics import (
    NOTHING,
    REST,
    Beside,
    Dynamics,
    States,
    margin_dtype,
    one_step_if_constant,
)
from snn_dfa.surrogate import inline_form

__all__ = ["available", "backward", "forward"]

_RUN = 1024  # neurons in a job: some arrays of them fit the nearest cache
_DTYPES = (torch.float32, torch.float64)


def available(current: Tensor, dyn: Dynamics) -> bool:
    """Whether these kernels can do it: numba is there, on the CPU, in single or double."""
    return (
        has_numba()
        and current.device.type == "cpu"
        and dyn.beta.dtype in _DTYPES
        and current.dtype in (*_DTYPES, torch.bfloat16)
    )


def _alike(dyn: Dynamics) -> bool:
    """Whether all neurons have the same constants."""
    return all(c is None or c.numel() == 1 for c in (dyn.beta, dyn.threshold, dyn.alpha, dyn.tau))


def _rows(dyn: Dynamics, neurons: int) -> list[Any]:
    """Return beta, threshold, alpha and tau of each neuron; those that are not there are empty."""
    return [
        as_array(dyn.beta.new_empty(0) if c is None else c.detach().expand(neurons).contiguous())
        for c in (dyn.beta, dyn.threshold, dyn.alpha, dyn.tau)
    ]


def _arrays(tensors: Sequence[Tensor | None], dims: int, dtype: torch.dtype) -> list[Any]:
    """Return tensors as kernels read them and write into them; one that is not there is empty."""
    nothing = torch.empty((0,) * dims, dtype=dtype)
    return [as_array(nothing if t is None else t.contiguous()) for t in tensors]


def forward(
    current: Tensor,
    dyn: Dynamics,
    num_steps: int,
    spikes_dtype: torch.dtype,
    want_mem: bool,
    want_margin: bool,
    states: States = REST,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As :func:`snn_dfa.sequence.scan.reference.forward`."""
    _, batch, neurons = current.shape
    shape, dtype = (num_steps, batch, neurons), dyn.beta.dtype
    spikes = torch.empty(shape, dtype=spikes_dtype)
    kept = margin_dtype(current.dtype, dtype)
    margin = torch.empty(shape if want_margin else (0, 0, 0), dtype=kept)
    mems = torch.empty(shape if want_mem else (0, 0, 0), dtype=dtype)
    kernel = _forward_kernel(
        dyn.reset, dyn.immediate_reset, dyn.resets_late, dyn.refractory_steps, dyn.clamp,
        dyn.currents, _alike(dyn), current.dtype == torch.bfloat16, spikes_dtype == torch.bfloat16,
        want_mem, kept == torch.bfloat16,
    )  # fmt: skip
    gain = np.asarray(dyn.gain, dtype=as_array(mems).dtype)[()]
    of_membranes = states.mem, states.syn, states.inh, states.last_mem, states.last_syn
    kernel(
        as_array(current.contiguous()), *_rows(dyn, neurons), gain,
        as_array(spikes), as_array(margin), as_array(mems),
        *_arrays((states.syns, states.inhs), 3, dtype),
        *_arrays((*of_membranes, states.last_inh), 2, dtype),
        *_arrays((states.wait, states.last_wait), 2, torch.int32),
    )  # fmt: skip
    return spikes, margin if want_margin else None, mems if want_mem else None


def backward(
    at_spikes: Tensor | None,
    at_mems: Tensor | None,
    margin: Tensor,
    dyn: Dynamics,
    current_dtype: torch.dtype,
    constant: bool,
    beside: Beside = NOTHING,
) -> Tensor:
    """As :func:`snn_dfa.sequence.scan.reference.backward`."""
    num_steps, batch, neurons = margin.shape
    kind, steepness = inline_form(dyn.surrogate)
    dtype = dyn.beta.dtype
    slope = dyn.beta.new_empty((0, 0, 0))
    if not kind:
        slope = dyn.surrogate.derivative(margin.to(dtype))
    each = 0 if constant else num_steps
    result = torch.empty((each, batch, neurons), dtype=current_dtype)
    sums = torch.empty((batch, neurons) if constant else (0, 0), dtype=dtype)
    learns = any(t is not None for t in (beside.at_beta, beside.at_threshold, beside.at_alpha))
    kernel = _backward_kernel(
        dyn.reset, dyn.immediate_reset, dyn.resets_late, dyn.clamp, dyn.currents, kind, constant,
        _alike(dyn), at_spikes is not None, at_mems is not None, learns,
        beside.at_alpha is not None, current_dtype == torch.bfloat16,
        margin.dtype == torch.bfloat16,
    )  # fmt: skip
    one = np.ones((), dtype=as_array(slope).dtype)
    behind = margin if beside.mems is None else (beside.mems - dyn.threshold).to(margin.dtype)
    given = at_spikes, at_mems, beside.at_syns, beside.at_inhs
    grads = [None if grad is None else _steps(grad, dtype) for grad in given]
    kernel(
        *_arrays(grads, 3, dtype), as_array(margin), as_array(behind), as_array(slope),
        one * steepness, one * dyn.gain, *_rows(dyn, neurons), as_array(result), as_array(sums),
        *_arrays((beside.syns,), 3, dtype), *_arrays((beside.mem, beside.syn), 2, dtype),
        *_arrays(beside[-6:], 2, dtype),
    )  # fmt: skip
    return sums.unsqueeze(0).to(current_dtype) if constant else result


def _steps(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient as the kernel reads it: of one step, if it is the same at every step."""
    return one_step_if_constant(grad).to(dtype).contiguous()


# The kernels below are written so that LLVM turns their inner loop into vector instructions: slices
# indexed from zero, constants of the membrane's own type (numba makes a double of an int and a
# float32), choices without side effects, and as few arrays as possible.


def _advance_both(
    high: Any, low: Any, drive: Any, late: Any, alpha: Any, beta: Any, tau: Any, theta: Any,
    to_zero: bool, subtracts: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Return both synaptic currents and the membrane a step on; ``late`` is 1 for a reset."""
    before = low
    high, low = alpha * high + drive, beta * low - drive
    u = tau * (high + low)
    if subtracts:
        return high - theta * late, low - low * late, u + before * late
    if to_zero:
        return high - high * late, low - low * late, u - u * late
    return high, low, u


def _back_both(
    delta: Any, high: Any, low: Any, late: Any, tau: Any, one: Any, to_zero: bool, subtracts: bool
) -> tuple[Any, Any]:
    """Return the gradients at both currents before the reset, from those at membrane and currents.

    Args:
        delta: At the membrane.
        high: At the first current.
        low: At the second one.
        late: 1 for a reset.
        tau: Of the neuron.
        one: 1 in the dtype of the numbers.
        to_zero: Whether it resets to zero.
        subtracts: Whether it resets by subtraction.
    """
    kept = one - late
    both = tau * (delta * kept if to_zero else delta)
    high = high * kept if to_zero else high
    low = low * kept if to_zero or subtracts else low
    return both + high, both + low


@functools.cache
def _forward_kernel(
    reset: str, immediate_reset: bool, resets_late: bool, steps: int, clamp: bool, currents: int,
    alike: bool, bits_in: bool, bits_out: bool, mem_out: bool, margin_bits: bool,
) -> Callable[..., None]:  # fmt: skip
    from numba import prange

    read, write = for_kernels(read_bfloat16), for_kernels(write_bfloat16)
    advance_both = for_kernels(_advance_both)
    to_zero, subtracts = reset == "zero", reset == "subtract"
    late_zero = to_zero and resets_late
    late_subtract = subtracts and resets_late
    again = immediate_reset and resets_late
    clear = reset == "clear"
    synaptic, both = currents > 0, currents == 2
    silent = np.int32(steps)

    def kernel(
        current, beta, threshold, alpha, tau, gain, spikes, margin, mems, syns, inhs,
        first_mem, first_syn, first_inh, last_mem, last_syn, last_inh, first_wait, last_wait,
    ):  # fmt: skip
        num_steps, batch, neurons = spikes.shape
        zero, one = mems.dtype.type(0), mems.dtype.type(1)
        minus_infinity = mems.dtype.type(-np.inf)
        on, off = np.uint16(0x3F80), np.uint16(0)
        nil, unit = np.int32(0), np.int32(1)
        runs = (neurons + _RUN - 1) // _RUN
        last = current.shape[0] - 1
        beta_of_all, threshold_of_all = beta[0], threshold[0]
        alpha_of_all = alpha[0] if synaptic else zero
        tau_of_all = tau[0] if both else zero
        for job in prange(batch * runs):
            b, lo = job // runs, (job % runs) * _RUN
            hi = min(neurons, lo + _RUN)
            betas, thresholds = beta[lo:hi], threshold[lo:hi]
            alphas, taus = alpha[lo:hi], tau[lo:hi]
            mem = np.zeros(hi - lo, mems.dtype)
            syn = np.zeros(hi - lo if synaptic else 0, mems.dtype)
            inh = np.zeros(hi - lo if both else 0, mems.dtype)
            wait = np.zeros(hi - lo if steps else 0, np.int32)
            if len(first_mem):
                mem[:] = first_mem[b, lo:hi]
            if synaptic:
                if len(first_syn):
                    syn[:] = first_syn[b, lo:hi]
            if both:
                if len(first_inh):
                    inh[:] = first_inh[b, lo:hi]
            if steps:
                if len(first_wait):
                    wait[:] = first_wait[b, lo:hi]
            unwanted = np.empty(hi - lo, margin.dtype)
            for t in range(num_steps):
                row = current[min(t, last), b, lo:hi]
                out = spikes[t, b, lo:hi]
                margins = margin[t, b, lo:hi] if len(margin) else unwanted
                if mem_out:
                    mem_row = mems[t, b, lo:hi]
                for i in range(hi - lo):
                    decay = beta_of_all if alike else betas[i]
                    theta = threshold_of_all if alike else thresholds[i]
                    drive = gain * (read(row[i]) if bits_in else row[i])
                    m = mem[i]
                    fired_before = wait[i] == silent if steps else m - theta > zero
                    if both:
                        syn[i], inh[i], u = advance_both(
                            syn[i], inh[i], drive, one if fired_before else zero,
                            alpha_of_all if alike else alphas[i], decay,
                            tau_of_all if alike else taus[i], theta, to_zero, subtracts,
                        )  # fmt: skip
                    else:
                        if synaptic:
                            drive = (alpha_of_all if alike else alphas[i]) * syn[i] + drive
                            syn[i] = drive
                        if late_zero:
                            m = zero if fired_before else m
                        u = decay * m + drive
                        if late_subtract:
                            u = u - (theta if fired_before else zero)
                        if clear:
                            u = zero if fired_before else u
                    x = u - theta
                    if steps:
                        blocked = wait[i] > nil
                        x = minus_infinity if blocked else x
                        if clamp:
                            u = zero if blocked else u
                        left = wait[i] - unit
                        left = left if left > nil else nil
                        wait[i] = silent if x > zero else left
                    margins[i] = write(x) if margin_bits else x
                    if bits_out:
                        out[i] = on if x > zero else off
                    else:
                        out[i] = one if x > zero else zero
                    if immediate_reset and to_zero:
                        u = zero if x > zero else u
                    if immediate_reset and subtracts:
                        u = u - (theta if x > zero else zero)
                        if again:
                            u = u + (theta if fired_before else zero)
                    mem[i] = u
                    if mem_out:
                        mem_row[i] = u
                if synaptic:
                    if len(syns):
                        syns[t, b, lo:hi] = syn
                if both:
                    if len(inhs):
                        inhs[t, b, lo:hi] = inh
            if len(last_mem):
                last_mem[b, lo:hi] = mem
            if synaptic:
                if len(last_syn):
                    last_syn[b, lo:hi] = syn
            if both:
                if len(last_inh):
                    last_inh[b, lo:hi] = inh
            if steps:
                if len(last_wait):
                    last_wait[b, lo:hi] = wait

    return compile_parallel(kernel)


@functools.cache
def _backward_kernel(
    reset: str, immediate_reset: bool, resets_late: bool, clamp: bool, currents: int, kind: str,
    constant: bool, alike: bool, has_spikes: bool, has_mems: bool, learns: bool,
    learns_alpha: bool, bits_out: bool, margin_bits: bool,
) -> Callable[..., None]:  # fmt: skip
    from numba import prange

    read, write = for_kernels(read_bfloat16), for_kernels(write_bfloat16)
    back_both = for_kernels(_back_both)
    to_zero, subtracts = reset == "zero", reset == "subtract"
    late_zero, clear = to_zero and resets_late, reset == "clear"
    synaptic, one_current, both = currents > 0, currents == 1, currents == 2
    looks_back = late_zero or clear or learns or both

    def kernel(
        at_spikes, at_mems, at_syns, at_inhs, margin, behind, slopes, steepness, gain,
        beta, threshold, alpha, tau, result, sums, syns, first_mem, first_syn,
        at_mem, at_syn, at_inh, at_beta, at_threshold, at_alpha,
    ):  # fmt: skip
        num_steps, batch, neurons = margin.shape
        zero, one = beta.dtype.type(0), beta.dtype.type(1)
        minus_infinity = beta.dtype.type(-np.inf)
        pi = beta.dtype.type(np.pi)
        runs = (neurons + _RUN - 1) // _RUN
        last_s, last_m = at_spikes.shape[0] - 1, at_mems.shape[0] - 1
        last_syns, last_inhs = at_syns.shape[0] - 1, at_inhs.shape[0] - 1
        beta_of_all, threshold_of_all = beta[0], threshold[0]
        alpha_of_all = alpha[0] if synaptic else zero
        tau_of_all = tau[0] if both else zero
        for job in prange(batch * runs):
            b, lo = job // runs, (job % runs) * _RUN
            hi = min(neurons, lo + _RUN)
            betas, thresholds = beta[lo:hi], threshold[lo:hi]
            alphas, taus = alpha[lo:hi], tau[lo:hi]
            later = np.zeros(hi - lo, beta.dtype)
            later_syn = np.zeros(hi - lo if synaptic else 0, beta.dtype)
            later_inh = np.zeros(hi - lo if both else 0, beta.dtype)
            total = np.zeros(hi - lo if constant else 0, beta.dtype)
            sum_beta = np.zeros(hi - lo if learns else 0, beta.dtype)
            sum_threshold = np.zeros(hi - lo if learns else 0, beta.dtype)
            sum_alpha = np.zeros(hi - lo if learns_alpha else 0, beta.dtype)
            syn_at_first = np.zeros(hi - lo if learns_alpha else 0, beta.dtype)
            if learns_alpha:
                if len(first_syn):
                    syn_at_first[:] = first_syn[b, lo:hi]
            if looks_back:
                at_first = np.empty(hi - lo, margin.dtype)  # first membranes minus thresholds
                for i in range(hi - lo):
                    x = (first_mem[b, lo + i] if len(first_mem) else zero) - thresholds[i]
                    at_first[i] = write(x) if margin_bits else x
            for back in range(num_steps):
                t = num_steps - 1 - back
                margins = margin[t, b, lo:hi]
                if looks_back:
                    before = behind[t - 1, b, lo:hi] if t else at_first
                if not kind:
                    given = slopes[t, b, lo:hi]
                if has_spikes:
                    spike_row = at_spikes[min(t, last_s), b, lo:hi]
                if has_mems:
                    mem_row = at_mems[min(t, last_m), b, lo:hi]
                if synaptic:
                    if len(at_syns):
                        later_syn += at_syns[min(t, last_syns), b, lo:hi]
                if both:
                    if len(at_inhs):
                        later_inh += at_inhs[min(t, last_inhs), b, lo:hi]
                if learns_alpha:
                    syn_before = syns[t - 1, b, lo:hi] if t else syn_at_first
                if not constant:
                    out = result[t, b, lo:hi]
                for i in range(hi - lo):
                    decay = beta_of_all if alike else betas[i]
                    theta = threshold_of_all if alike else thresholds[i]
                    x = read(margins[i]) if margin_bits else margins[i]
                    if kind == "fast_sigmoid":
                        root = one / (one + steepness * abs(x))
                        slope = root * root
                    elif kind == "atan":
                        scaled = pi * steepness * x
                        slope = steepness / (one + scaled * scaled)
                    else:
                        slope = given[i]
                    if looks_back:
                        gap = read(before[i]) if margin_bits else before[i]
                        fired_before = resets_late and gap > zero
                    m = later[i]
                    if has_mems:
                        m = m + mem_row[i]
                    at_spike = spike_row[i] if has_spikes else zero
                    delta = m
                    if immediate_reset and to_zero:
                        u = zero if x == minus_infinity else x + theta
                        at_spike = at_spike - m * u
                        delta = zero if x > zero else m
                    if immediate_reset and subtracts:
                        at_spike = at_spike - m * theta
                        if learns:
                            sum_threshold[i] -= m if x > zero else zero
                            sum_threshold[i] += m if fired_before else zero
                    delta = delta + at_spike * slope
                    if clamp:
                        delta = zero if x == minus_infinity else delta
                    if learns:
                        sum_threshold[i] -= at_spike * slope
                        if subtracts:
                            sum_threshold[i] -= delta if fired_before else zero
                    if both:
                        late = one if fired_before else zero
                        high, low = back_both(
                            delta, later_syn[i], later_inh[i], late,
                            tau_of_all if alike else taus[i], one, to_zero, subtracts,
                        )  # fmt: skip
                        later_syn[i] = (alpha_of_all if alike else alphas[i]) * high
                        later_inh[i] = decay * low
                        if subtracts:
                            later_inh[i] += delta * late
                        delta = high - low
                    else:
                        if clear:
                            delta = zero if fired_before else delta
                        freed = delta
                        if late_zero:
                            freed = zero if fired_before else delta
                        later[i] = decay * freed
                        if learns:
                            sum_beta[i] += freed * (gap + theta)
                    if one_current:
                        delta = delta + later_syn[i]
                        later_syn[i] = (alpha_of_all if alike else alphas[i]) * delta
                        if learns_alpha:
                            sum_alpha[i] += delta * syn_before[i]
                    if constant:
                        total[i] += delta
                    elif bits_out:
                        out[i] = write(gain * delta)
                    else:
                        out[i] = gain * delta
            if constant:
                total *= gain
                sums[b, lo:hi] = total
            if len(at_mem):
                at_mem[b, lo:hi] = later
            if synaptic:
                if len(at_syn):
                    at_syn[b, lo:hi] = later_syn
            if both:
                if len(at_inh):
                    at_inh[b, lo:hi] = later_inh
            if learns:
                if len(at_beta):
                    at_beta[b, lo:hi] = sum_beta
                if len(at_threshold):
                    at_threshold[b, lo:hi] = sum_threshold
            if learns_alpha:
                at_alpha[b, lo:hi] = sum_alpha

    return compile_parallel(kernel)
