"""The scan's backward kernel on the CPU, made as the forward one in ``cpu_forward.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from snn_dfa.sequence.numba_tools import (
    compile_parallel,
    for_kernels,
    read_bfloat16,
    write_bfloat16,
)
from snn_dfa.sequence.scan.cpu_forward import RUN

__all__ = ["backward_kernel", "jobs"]

#: So many numbers are added side by side: one sum after the other would wait for each.
_LANES = 16


def jobs(batch: int, neurons: int) -> int:
    """Return how many jobs the kernel has: each does all steps of some neurons of one sample."""
    return batch * ((neurons + RUN - 1) // RUN)


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
def backward_kernel(
    reset: str, immediate_reset: bool, resets_late: bool, clamp: bool, currents: int, kind: str,
    constant: bool, alike: bool, has_spikes: bool, has_mems: bool, learns: bool,
    learns_alpha: bool, bits_out: bool, margin_bits: bool, sized: bool,
) -> Callable[..., None]:  # fmt: skip
    """Return the kernel of one kind of neuron, which writes into the arrays that it is given."""
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
        at_mem, at_syn, at_inh, at_beta, at_threshold, at_alpha, factors, sizes,
    ):  # fmt: skip
        num_steps, batch, neurons = margin.shape
        zero, one = beta.dtype.type(0), beta.dtype.type(1)
        minus_infinity = beta.dtype.type(-np.inf)
        pi = beta.dtype.type(np.pi)
        runs = (neurons + RUN - 1) // RUN
        last_s, last_m = at_spikes.shape[0] - 1, at_mems.shape[0] - 1
        last_syns, last_inhs = at_syns.shape[0] - 1, at_inhs.shape[0] - 1
        beta_of_all, threshold_of_all = beta[0], threshold[0]
        alpha_of_all = alpha[0] if synaptic else zero
        tau_of_all = tau[0] if both else zero
        for job in prange(batch * runs):
            b, lo = job // runs, (job % runs) * RUN
            hi = min(neurons, lo + RUN)
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
            of_step = np.zeros(hi - lo + _LANES if sized else 0, beta.dtype)
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
                factor = factors[t] if len(factors) else one
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
                    at_spike = factor * spike_row[i] if has_spikes else zero
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
                    if sized:
                        of_step[i] = abs(delta)
                    if constant:
                        total[i] += delta
                    elif bits_out:
                        out[i] = write(gain * delta)
                    else:
                        out[i] = gain * delta
                if sized:
                    lanes = np.zeros(_LANES, beta.dtype)
                    for i in range(0, hi - lo, _LANES):
                        for lane in range(_LANES):
                            lanes[lane] += of_step[i + lane]
                    sizes[t, job] = gain * lanes.sum()
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
