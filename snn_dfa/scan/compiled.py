"""The scan on the CPU, compiled by numba: one pass forward, one pass backward.

Each kernel is compiled for one kind of neuron, in some seconds, at its first use, and kept on the
disk by numba for later processes. A job is a
sample and a run of its neurons, so that the membranes stay in the nearest cache over all steps.
bfloat16, which numba lacks, is read and written as its 16 bits, the upper half of a float32.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_dfa.scan.dynamics import Dynamics, one_step_if_constant
from snn_dfa.surrogate import inline_form

__all__ = ["available", "backward", "forward"]

_RUN = 1024  # neurons in a job: some arrays of them fit the nearest cache
_DTYPES = (torch.float32, torch.float64)


def available(current: Tensor, dyn: Dynamics) -> bool:
    """Whether these kernels can do it: numba is there, on the CPU, in single or double."""
    return (
        importlib.util.find_spec("numba") is not None
        and current.device.type == "cpu"
        and dyn.beta.dtype in _DTYPES
        and current.dtype in (*_DTYPES, torch.bfloat16)
    )


def _array(t: Tensor) -> Any:
    """A NumPy view of a tensor; of bfloat16, a view of its bits."""
    t = t.detach()
    return t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()


def _alike(dyn: Dynamics) -> bool:
    """Whether all neurons have the same constants."""
    return dyn.beta.numel() == dyn.threshold.numel() == 1


def _row(value: Tensor, neurons: int) -> Any:
    return value.detach().expand(neurons).contiguous().numpy()


def forward(
    current: Tensor, dyn: Dynamics, num_steps: int, spikes_dtype: torch.dtype, want_mem: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As :func:`snn_dfa.scan.plain.forward`."""
    _, batch, neurons = current.shape
    shape = (num_steps, batch, neurons)
    spikes = torch.empty(shape, dtype=spikes_dtype)
    distance = torch.empty(shape, dtype=dyn.beta.dtype)
    mems = torch.empty(shape if want_mem else (0, 0, 0), dtype=dyn.beta.dtype)
    kernel = _forward_kernel(
        dyn.reset, dyn.prompt, dyn.refractory_steps, dyn.clamp, _alike(dyn),
        current.dtype == torch.bfloat16, spikes_dtype == torch.bfloat16, want_mem,
    )  # fmt: skip
    gain = np.asarray(dyn.gain, dtype=_array(distance).dtype)[()]
    kernel(
        _array(current.contiguous()), _row(dyn.beta, neurons), _row(dyn.threshold, neurons), gain,
        _array(spikes), _array(distance), _array(mems),
    )  # fmt: skip
    return spikes, distance, mems if want_mem else None


def backward(
    at_spikes: Tensor | None,
    at_mems: Tensor | None,
    distance: Tensor,
    dyn: Dynamics,
    current_dtype: torch.dtype,
    constant: bool,
) -> Tensor:
    """As :func:`snn_dfa.scan.plain.backward`."""
    num_steps, batch, neurons = distance.shape
    kind, steepness = inline_form(dyn.surrogate)
    slope = distance if kind else dyn.surrogate.derivative(distance)
    each = 0 if constant else num_steps
    result = torch.empty((each, batch, neurons), dtype=current_dtype)
    sums = torch.empty((batch, neurons) if constant else (0, 0), dtype=distance.dtype)
    kernel = _backward_kernel(
        dyn.reset, dyn.prompt, dyn.clamp, kind, constant, _alike(dyn),
        at_spikes is not None, at_mems is not None, current_dtype == torch.bfloat16,
    )  # fmt: skip
    one = np.ones((), dtype=_array(distance).dtype)
    none = distance.new_empty((0, 0, 0))
    kernel(
        _array(_steps(at_spikes, distance.dtype) if at_spikes is not None else none),
        _array(_steps(at_mems, distance.dtype) if at_mems is not None else none),
        _array(distance), _array(slope), one * steepness, one * dyn.gain,
        _row(dyn.beta, neurons), _row(dyn.threshold, neurons), _array(result), _array(sums),
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
    reset: str, prompt: bool, steps: int, clamp: bool,
    alike: bool, bits_in: bool, bits_out: bool, mem_out: bool,
) -> Callable[..., None]:  # fmt: skip
    import numba

    late_zero = reset == "zero" and not prompt
    late_subtract = reset == "subtract" and not prompt
    silent = np.int32(steps)

    @numba.njit(parallel=True, nogil=True, error_model="numpy", cache=True)
    def kernel(current, beta, threshold, gain, spikes, distance, mems):
        num_steps, batch, neurons = distance.shape
        zero, one = distance.dtype.type(0), distance.dtype.type(1)
        minus_infinity = distance.dtype.type(-np.inf)
        on, off = np.uint16(0x3F80), np.uint16(0)
        nil, unit = np.int32(0), np.int32(1)
        runs = (neurons + _RUN - 1) // _RUN
        last = current.shape[0] - 1
        beta_of_all, threshold_of_all = beta[0], threshold[0]
        for job in numba.prange(batch * runs):
            b, lo = job // runs, (job % runs) * _RUN
            hi = min(neurons, lo + _RUN)
            betas, thresholds = beta[lo:hi], threshold[lo:hi]
            mem = np.zeros(hi - lo, distance.dtype)
            wait = np.zeros(hi - lo if steps else 0, np.int32)
            for t in range(num_steps):
                currents = current[min(t, last), b, lo:hi]
                distances, out = distance[t, b, lo:hi], spikes[t, b, lo:hi]
                if mem_out:
                    mem_row = mems[t, b, lo:hi]
                for i in range(hi - lo):
                    decay = beta_of_all if alike else betas[i]
                    theta = threshold_of_all if alike else thresholds[i]
                    if bits_in:
                        bits = np.uint32(np.uint32(currents[i]) << np.uint32(16))
                        drive = bits.view(np.float32)
                    else:
                        drive = currents[i]
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
                    distances[i] = x
                    if bits_out:
                        out[i] = on if x > zero else off
                    else:
                        out[i] = one if x > zero else zero
                    if prompt and reset == "zero":
                        u = zero if x > zero else u
                    if prompt and reset == "subtract":
                        u = u - (theta if x > zero else zero)
                    mem[i] = u
                    if mem_out:
                        mem_row[i] = u

    return kernel


@functools.cache
def _backward_kernel(
    reset: str, prompt: bool, clamp: bool, kind: str, constant: bool,
    alike: bool, has_spikes: bool, has_mems: bool, bits_out: bool,
) -> Callable[..., None]:  # fmt: skip
    import numba

    late_zero = reset == "zero" and not prompt

    @numba.njit(parallel=True, nogil=True, error_model="numpy", cache=True)
    def kernel(
        at_spikes, at_mems, distance, slopes, steepness, gain, beta, threshold, result, sums
    ):
        num_steps, batch, neurons = distance.shape
        zero, one = distance.dtype.type(0), distance.dtype.type(1)
        minus_infinity = distance.dtype.type(-np.inf)
        pi = distance.dtype.type(np.pi)
        runs = (neurons + _RUN - 1) // _RUN
        last_s, last_m = at_spikes.shape[0] - 1, at_mems.shape[0] - 1
        beta_of_all, threshold_of_all = beta[0], threshold[0]
        for job in numba.prange(batch * runs):
            b, lo = job // runs, (job % runs) * _RUN
            hi = min(neurons, lo + _RUN)
            betas, thresholds = beta[lo:hi], threshold[lo:hi]
            later = np.zeros(hi - lo, distance.dtype)
            total = np.zeros(hi - lo if constant else 0, distance.dtype)
            for back in range(num_steps):
                t = num_steps - 1 - back
                distances = distance[t, b, lo:hi]
                before = distance[max(t - 1, 0), b, lo:hi]
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
                    x = distances[i]
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
                    if prompt and reset == "zero":
                        u = zero if x == minus_infinity else x + theta
                        delta = (zero if x > zero else m) - m * u * slope
                    if prompt and reset == "subtract":
                        delta = m - m * theta * slope
                    if has_spikes:
                        delta = delta + spike_row[i] * slope
                    if clamp:
                        delta = zero if x == minus_infinity else delta
                    m = decay * delta
                    if late_zero:
                        m = zero if before[i] > zero else m
                    later[i] = m
                    if constant:
                        total[i] += delta
                    elif bits_out:  # round to nearest, ties to even
                        bits = np.float32(gain * delta).view(np.uint32)
                        odd = (bits >> np.uint32(16)) & np.uint32(1)
                        out[i] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
                    else:
                        out[i] = gain * delta
            if constant:
                total *= gain
                sums[b, lo:hi] = total

    return kernel
