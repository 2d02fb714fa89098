"""The scan on CUDA, as Triton kernels: one pass forward, one pass backward.

A program holds a block of cells (sample and neuron) in registers over all steps. Without a GPU the
kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), slowly: that is how they are tested.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from snn_dfa.sequence.scan.dynamics import (
    REST,
    Dynamics,
    States,
    margin_dtype,
    one_step_if_constant,
)
from snn_dfa.surrogate import inline_form

__all__ = ["available", "backward", "forward"]

#: Cells of a program, its warps, and steps of the sequence that are on their way from memory.
_BLOCK, _WARPS, _STAGES = 512, 4, 3
_RESETS = {"subtract": 0, "zero": 1, "none": 2}
_FORMS = {"": 0, "fast_sigmoid": 1, "atan": 2}
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

if importlib.util.find_spec("triton") is not None:  # it comes with torch on Linux
    import triton
    import triton.language as tl

    @triton.jit
    def _forward_kernel(
        current, beta, threshold, spikes, margin, mems,
        first_mem, first_wait, last_mem, last_wait,
        cells, neurons, num_steps, gain, stride_current, stride_beta, stride_threshold,
        RESET: tl.constexpr, IMMEDIATE: tl.constexpr, STEPS: tl.constexpr, CLAMP: tl.constexpr,
        WANT_MEM: tl.constexpr, WANT_MARGIN: tl.constexpr, BLOCK: tl.constexpr,
        HAS_MEM: tl.constexpr, HAS_WAIT: tl.constexpr,
        WANT_LAST: tl.constexpr, WANT_WAIT: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = cell < cells
        neuron = cell % neurons
        decay = tl.load(beta + neuron * stride_beta, mask=inside, other=0.0)
        theta = tl.load(threshold + neuron * stride_threshold, mask=inside, other=1.0)
        mem = decay * 0
        spike = mem
        wait = tl.zeros([BLOCK], tl.int32)
        if HAS_MEM:
            mem = tl.load(first_mem + cell, mask=inside, other=0.0)
        if HAS_WAIT:
            wait = tl.load(first_wait + cell, mask=inside, other=0)
        if STEPS > 0:
            spike = tl.where(wait == STEPS, 1.0, 0.0).to(mem.dtype)
        else:
            spike = tl.where(mem - theta > 0, 1.0, 0.0).to(mem.dtype)
        for t in tl.range(0, num_steps, num_stages=STAGES):
            drive = tl.load(current + t * stride_current + cell, mask=inside, other=0.0)
            kept = mem
            if RESET == 1 and not IMMEDIATE:
                kept = mem * (1 - spike)
            u = decay * kept + (gain * drive.to(mem.dtype)).to(mem.dtype)
            if RESET == 0 and not IMMEDIATE:
                u = u - spike * theta
            x = u - theta
            if STEPS > 0:
                if CLAMP:
                    u = tl.where(wait > 0, 0.0, u)
                x = tl.where(wait > 0, float("-inf"), x)
            fired = x > 0
            spike = tl.where(fired, 1.0, 0.0).to(mem.dtype)
            if STEPS > 0:
                wait = tl.where(fired, STEPS, tl.maximum(wait - 1, 0))
            mem = u
            if IMMEDIATE and RESET == 1:
                mem = u - spike * u
            if IMMEDIATE and RESET == 0:
                mem = u - spike * theta
            at = t * cells + cell
            tl.store(spikes + at, spike.to(spikes.dtype.element_ty), mask=inside)
            if WANT_MARGIN:
                tl.store(margin + at, x.to(margin.dtype.element_ty), mask=inside)
            if WANT_MEM:
                tl.store(mems + at, mem, mask=inside)
        if WANT_LAST:
            tl.store(last_mem + cell, mem, mask=inside)
        if WANT_WAIT:
            tl.store(last_wait + cell, wait, mask=inside)

    @triton.jit
    def _backward_kernel(
        at_spikes, at_mems, margin, slopes, beta, threshold, result,
        cells, neurons, num_steps, gain, constant_of_slope,
        stride_spikes, stride_mems, stride_beta, stride_threshold,
        RESET: tl.constexpr, IMMEDIATE: tl.constexpr, CLAMP: tl.constexpr, FORM: tl.constexpr,
        CONSTANT: tl.constexpr, HAS_SPIKES: tl.constexpr, HAS_MEMS: tl.constexpr,
        BLOCK: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = cell < cells
        neuron = cell % neurons
        decay = tl.load(beta + neuron * stride_beta, mask=inside, other=0.0)
        theta = tl.load(threshold + neuron * stride_threshold, mask=inside, other=1.0)
        later = decay * 0
        total = later
        for back in tl.range(0, num_steps, num_stages=STAGES):
            t = num_steps - 1 - back
            at = t * cells + cell
            x = tl.load(margin + at, mask=inside, other=-1.0).to(decay.dtype)
            if FORM == 1:
                root = (1 / (1 + constant_of_slope * tl.abs(x))).to(decay.dtype)
                slope = root * root
            elif FORM == 2:
                scaled = 3.141592653589793 * constant_of_slope * x
                slope = (constant_of_slope / (1 + scaled * scaled)).to(decay.dtype)
            else:
                slope = tl.load(slopes + at, mask=inside, other=0.0)
            m = later
            if HAS_MEMS:
                m = m + tl.load(at_mems + t * stride_mems + cell, mask=inside, other=0.0)
            delta = m
            if IMMEDIATE and RESET == 1:
                u = tl.where(x == float("-inf"), 0.0, x + theta)
                delta = tl.where(x > 0, 0.0, m) - m * u * slope
            if IMMEDIATE and RESET == 0:
                delta = m - m * theta * slope
            if HAS_SPIKES:
                s = tl.load(at_spikes + t * stride_spikes + cell, mask=inside, other=0.0)
                delta = delta + s.to(slope.dtype) * slope
            if CLAMP:
                delta = tl.where(x == float("-inf"), 0.0, delta)
            later = decay * delta
            if RESET == 1 and not IMMEDIATE:
                before = tl.load(margin + at - cells, mask=inside & (at >= cells), other=-1.0)
                later = tl.where(before > 0, 0.0, later)
            if CONSTANT:
                total = total + delta
            else:
                tl.store(result + at, (gain * delta).to(result.dtype.element_ty), mask=inside)
        if CONSTANT:
            tl.store(result + cell, (gain * total).to(result.dtype.element_ty), mask=inside)


def available(current: Tensor, dyn: Dynamics) -> bool:
    """Whether these kernels can do it: Triton is there, on CUDA or in the interpreter."""
    on = current.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    known = current.dtype in _DTYPES and dyn.beta.dtype in (torch.float32, torch.float64)
    return on and known and importlib.util.find_spec("triton") is not None


def _grid(cells: int) -> tuple[int]:
    return (triton.cdiv(cells, _BLOCK),)


def _stride(row: Tensor) -> int:
    return 1 if row.numel() > 1 else 0


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
    once, batch, neurons = current.shape
    shape, dtype = (num_steps, batch, neurons), dyn.beta.dtype
    spikes = current.new_empty(shape, dtype=spikes_dtype)
    kept = margin_dtype(current.dtype, dtype)
    margin = current.new_empty(shape if want_margin else (1,), dtype=kept)
    mems = current.new_empty(shape if want_mem else (1,), dtype=dtype)
    cells = batch * neurons
    first = [s if s is None else s.contiguous() for s in states[:2]]
    places = [spikes if s is None else s for s in (*first, *states[2:4])]
    _forward_kernel[_grid(cells)](
        current.contiguous(), dyn.beta, dyn.threshold, spikes, margin, mems, *places,
        cells, neurons, num_steps, dyn.gain,
        0 if once == 1 else cells, _stride(dyn.beta), _stride(dyn.threshold),
        RESET=_RESETS[dyn.reset], IMMEDIATE=dyn.immediate_reset, CLAMP=dyn.clamp,
        STEPS=dyn.refractory_steps, WANT_MEM=want_mem, WANT_MARGIN=want_margin, BLOCK=_BLOCK,
        HAS_MEM=states.mem is not None, HAS_WAIT=states.wait is not None,
        WANT_LAST=states.last_mem is not None, WANT_WAIT=states.last_wait is not None,
        STAGES=_STAGES, num_warps=_WARPS,
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
    cells = batch * neurons
    form, steepness = inline_form(dyn.surrogate)
    slopes = margin if form else dyn.surrogate.derivative(margin.to(dyn.beta.dtype))
    result = margin.new_empty((1 if constant else num_steps, batch, neurons), dtype=current_dtype)
    grads = [None if g is None else _steps(g) for g in (at_spikes, at_mems)]
    strides = [0 if g is None or g.shape[0] == 1 else cells for g in grads]
    _backward_kernel[_grid(cells)](
        *(margin if g is None else g for g in grads), margin, slopes, dyn.beta, dyn.threshold,
        result, cells, neurons, num_steps, dyn.gain, steepness,
        *strides, _stride(dyn.beta), _stride(dyn.threshold),
        RESET=_RESETS[dyn.reset], IMMEDIATE=dyn.immediate_reset, CLAMP=dyn.clamp, FORM=_FORMS[form],
        CONSTANT=constant, HAS_SPIKES=at_spikes is not None, HAS_MEMS=at_mems is not None,
        BLOCK=_BLOCK, STAGES=_STAGES, num_warps=_WARPS,
    )  # fmt: skip
    return result


def _steps(grad: Tensor) -> Tensor:
    """A gradient as the kernel reads it: of one step, if it is the same at every step."""
    return one_step_if_constant(grad).contiguous()
