"""The scan's forward kernel on the CPU.

Each kernel is compiled for one kind of neuron, in some seconds, at its first use, and kept on the
disk by numba for later processes. A job is a sample and a run of its neurons, so that the membranes
stay in the nearest cache over all steps. bfloat16, which numba lacks, is read and written as its 16
bits, the upper half of a float32.
"""

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

__all__ = ["RUN", "forward_kernel"]

RUN = 1024  # neurons in a job: some arrays of them fit the nearest cache

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


@functools.cache
def forward_kernel(
    reset: str, immediate_reset: bool, resets_late: bool, steps: int, clamp: bool, currents: int,
    alike: bool, bits_in: bool, bits_out: bool, mem_out: bool, margin_bits: bool,
) -> Callable[..., None]:  # fmt: skip
    """Return the kernel of one kind of neuron, which writes into the arrays that it is given."""
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
        runs = (neurons + RUN - 1) // RUN
        last = current.shape[0] - 1
        beta_of_all, threshold_of_all = beta[0], threshold[0]
        alpha_of_all = alpha[0] if synaptic else zero
        tau_of_all = tau[0] if both else zero
        for job in prange(batch * runs):
            b, lo = job // runs, (job % runs) * RUN
            hi = min(neurons, lo + RUN)
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
