"""The scan on the CPU, compiled by numba: one pass forward, one pass backward.

Each kernel is compiled for one kind of neuron, in some seconds, at its first use, and kept on the
disk by numba for later processes. A job is a
sample and a run of its neurons, so that the membranes stay in the nearest cache over all steps.
bfloat16, which numba lacks, is read and written as its 16 bits, the upper half of a float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    REST,
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
    return dyn.beta.numel() == dyn.threshold.numel() == 1


def _row(value: Tensor, neurons: int) -> Any:
    return value.detach().expand(neurons).contiguous().numpy()


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
    shape = (num_steps, batch, neurons)
    spikes = torch.empty(shape, dtype=spikes_dtype)
    kept = margin_dtype(current.dtype, dyn.beta.dtype)
    margin = torch.empty(shape if want_margin else (0, 0, 0), dtype=kept)
    mems = torch.empty(shape if want_mem else (0, 0, 0), dtype=dyn.beta.dtype)
    kernel = _forward_kernel(
        dyn.reset, dyn.immediate_reset, dyn.refractory_steps, dyn.clamp, _alike(dyn),
        current.dtype == torch.bfloat16, spikes_dtype == torch.bfloat16, want_mem,
        kept == torch.bfloat16,
    )  # fmt: skip
    gain = np.asarray(dyn.gain, dtype=as_array(mems).dtype)[()]
    nothing = torch.empty((0, 0), dtype=dyn.beta.dtype)
    no_wait = torch.empty((0, 0), dtype=torch.int32)
    kernel(
        as_array(current.contiguous()), _row(dyn.beta, neurons), _row(dyn.threshold, neurons), gain,
        as_array(spikes), as_array(margin), as_array(mems),
        as_array(nothing if states.mem is None else states.mem.contiguous()),
        as_array(no_wait if states.wait is None else states.wait.contiguous()),
        as_array(nothing if states.last_mem is None else states.last_mem),
        as_array(no_wait if states.last_wait is None else states.last_wait),
    )  # fmt: skip
    return spikes, margin if want_margin else None, mems if want_mem else None


def backward(
    at_spikes: Tensor | None,
    at_mems: Tensor | None,
    margin: Tensor,
    dyn: Dynamics,
    current_dtype: torch.dtype,
    constant: bool,
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
    kernel = _backward_kernel(
        dyn.reset, dyn.immediate_reset, dyn.clamp, kind, constant, _alike(dyn),
        at_spikes is not None, at_mems is not None, current_dtype == torch.bfloat16,
        margin.dtype == torch.bfloat16,
    )  # fmt: skip
    one = np.ones((), dtype=as_array(slope).dtype)
    none = dyn.beta.new_empty((0, 0, 0))
    kernel(
        as_array(_steps(at_spikes, dtype) if at_spikes is not None else none),
        as_array(_steps(at_mems, dtype) if at_mems is not None else none),
        as_array(margin), as_array(slope), one * steepness, one * dyn.gain,
        _row(dyn.beta, neurons), _row(dyn.threshold, neurons), as_array(result), as_array(sums),
    )  # fmt: skip
    return sums.unsqueeze(0).to(current_dtype) if constant else result


def _steps(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient as the kernel reads it: of one step, if it is the same at every step."""
    return one_step_if_constant(grad).to(dtype).contiguous()


# The kernels below are written so that LLVM turns their inner loop into vector instructions: slices
# indexed from zero, constants of the membrane's own type (numba makes a double of an int and a
# float32), choices without side effects, and as few arrays as possible.


@functools.cache
def _forward_kernel(
    reset: str, immediate_reset: bool, steps: int, clamp: bool,
    alike: bool, bits_in: bool, bits_out: bool, mem_out: bool, margin_bits: bool,
) -> Callable[..., None]:  # fmt: skip
    from numba import prange

    read, write = for_kernels(read_bfloat16), for_kernels(write_bfloat16)
    late_zero = reset == "zero" and not immediate_reset
    late_subtract = reset == "subtract" and not immediate_reset
    silent = np.int32(steps)

    def kernel(
        current, beta, threshold, gain, spikes, margin, mems,
        first_mem, first_wait, last_mem, last_wait,
    ):  # fmt: skip
        num_steps, batch, neurons = spikes.shape
        zero, one = mems.dtype.type(0), mems.dtype.type(1)
        minus_infinity = mems.dtype.type(-np.inf)
        on, off = np.uint16(0x3F80), np.uint16(0)
        nil, unit = np.int32(0), np.int32(1)
        runs = (neurons + _RUN - 1) // _RUN
        last = current.shape[0] - 1
        beta_of_all, threshold_of_all = beta[0], threshold[0]
        for job in prange(batch * runs):
            b, lo = job // runs, (job % runs) * _RUN
            hi = min(neurons, lo + _RUN)
            betas, thresholds = beta[lo:hi], threshold[lo:hi]
            mem = np.zeros(hi - lo, mems.dtype)
            wait = np.zeros(hi - lo if steps else 0, np.int32)
            if len(first_mem):
                mem[:] = first_mem[b, lo:hi]
            if steps and len(first_wait):
                wait[:] = first_wait[b, lo:hi]
            unwanted = np.empty(hi - lo, margin.dtype)
            for t in range(num_steps):
                currents = current[min(t, last), b, lo:hi]
                out = spikes[t, b, lo:hi]
                margins = margin[t, b, lo:hi] if len(margin) else unwanted
                if mem_out:
                    mem_row = mems[t, b, lo:hi]
                for i in range(hi - lo):
                    decay = beta_of_all if alike else betas[i]
                    theta = threshold_of_all if alike else thresholds[i]
                    drive = read(currents[i]) if bits_in else currents[i]
                    m = mem[i]
                    fired_before = wait[i] == silent if steps else m - theta > zero
                    if late_zero:
                        m = zero if fired_before else m
                    u = decay * m + gain * drive
                    if late_subtract:
                        u = u - (theta if fired_before else zero)
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
                    if immediate_reset and reset == "zero":
                        u = zero if x > zero else u
                    if immediate_reset and reset == "subtract":
                        u = u - (theta if x > zero else zero)
                    mem[i] = u
                    if mem_out:
                        mem_row[i] = u
            if len(last_mem):
                last_mem[b, lo:hi] = mem
            if steps and len(last_wait):
                last_wait[b, lo:hi] = wait

    return compile_parallel(kernel)


@functools.cache
def _backward_kernel(
    reset: str, immediate_reset: bool, clamp: bool, kind: str, constant: bool,
    alike: bool, has_spikes: bool, has_mems: bool, bits_out: bool,
    margin_bits: bool,
) -> Callable[..., None]:  # fmt: skip
    from numba import prange

    read, write = for_kernels(read_bfloat16), for_kernels(write_bfloat16)
    late_zero = reset == "zero" and not immediate_reset

    def kernel(at_spikes, at_mems, margin, slopes, steepness, gain, beta, threshold, result, sums):
        num_steps, batch, neurons = margin.shape
        zero, one = beta.dtype.type(0), beta.dtype.type(1)
        minus_infinity = beta.dtype.type(-np.inf)
        pi = beta.dtype.type(np.pi)
        runs = (neurons + _RUN - 1) // _RUN
        last_s, last_m = at_spikes.shape[0] - 1, at_mems.shape[0] - 1
        beta_of_all, threshold_of_all = beta[0], threshold[0]
        for job in prange(batch * runs):
            b, lo = job // runs, (job % runs) * _RUN
            hi = min(neurons, lo + _RUN)
            betas, thresholds = beta[lo:hi], threshold[lo:hi]
            later = np.zeros(hi - lo, beta.dtype)
            total = np.zeros(hi - lo if constant else 0, beta.dtype)
            for back in range(num_steps):
                t = num_steps - 1 - back
                margins = margin[t, b, lo:hi]
                before = margin[max(t - 1, 0), b, lo:hi]
                if not kind:
                    given = slopes[t, b, lo:hi]
                if has_spikes:
                    spike_row = at_spikes[min(t, last_s), b, lo:hi]
                if has_mems:
                    mem_row = at_mems[min(t, last_m), b, lo:hi]
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
                    m = later[i]
                    if has_mems:
                        m = m + mem_row[i]
                    delta = m
                    if immediate_reset and reset == "zero":
                        u = zero if x == minus_infinity else x + theta
                        delta = (zero if x > zero else m) - m * u * slope
                    if immediate_reset and reset == "subtract":
                        delta = m - m * theta * slope
                    if has_spikes:
                        delta = delta + spike_row[i] * slope
                    if clamp:
                        delta = zero if x == minus_infinity else delta
                    m = decay * delta
                    if late_zero:
                        earlier = read(before[i]) if margin_bits else before[i]
                        m = zero if earlier > zero else m
                    later[i] = m
                    if constant:
                        total[i] += delta
                    elif bits_out:
                        out[i] = write(gain * delta)
                    else:
                        out[i] = gain * delta
            if constant:
                total *= gain
                sums[b, lo:hi] = total

    return compile_parallel(kernel)
