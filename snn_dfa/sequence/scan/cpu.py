"""The scan on the CPU, compiled by numba: one pass forward, one pass backward.

The kernels are in ``cpu_forward.py`` and ``cpu_backward.py``; here tensors become what they take.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_dfa.sequence.numba_tools import as_array, has_numba
from snn_dfa.sequence.scan.cpu_backward import backward_kernel, jobs
from snn_dfa.sequence.scan.cpu_forward import forward_kernel
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
    return all(c is None or c.numel() == 1 for c in _constants(dyn))


def _constants(dyn: Dynamics) -> tuple[Tensor | None, ...]:
    return dyn.beta, dyn.threshold, dyn.alpha, dyn.tau


def _rows(dyn: Dynamics, neurons: int) -> list[Any]:
    """Return beta, threshold, alpha and tau of each neuron; those that are not there are empty."""
    of_each = (c if c is None else c.expand(neurons) for c in _constants(dyn))
    return _arrays(list(of_each), 1, dyn.beta.dtype)


def _arrays(tensors: Sequence[Tensor | None], dims: int, dtype: torch.dtype) -> list[Any]:
    """Return tensors as kernels read them and write into them; one that is not there is empty."""
    return [_nothing(dims, dtype) if t is None else as_array(t.contiguous()) for t in tensors]


@functools.cache
def _nothing(dims: int, dtype: torch.dtype) -> Any:
    return as_array(torch.empty((0,) * dims, dtype=dtype))


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
    kernel = forward_kernel(
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
    kernel = backward_kernel(
        dyn.reset, dyn.immediate_reset, dyn.resets_late, dyn.clamp, dyn.currents, kind, constant,
        _alike(dyn), at_spikes is not None, at_mems is not None, learns,
        beside.at_alpha is not None, current_dtype == torch.bfloat16,
        margin.dtype == torch.bfloat16, beside.sizes is not None,
    )  # fmt: skip
    one = np.ones((), dtype=as_array(slope).dtype)
    behind = margin if beside.mems is None else (beside.mems - dyn.threshold).to(margin.dtype)
    given = at_spikes, at_mems, beside.at_syns, beside.at_inhs
    grads = [None if grad is None else _steps(grad, dtype) for grad in given]
    each_job = (0, 0) if beside.sizes is None else (num_steps, jobs(batch, neurons))
    sizes = torch.empty(each_job, dtype=dtype)
    kernel(
        *_arrays(grads, 3, dtype), as_array(margin), as_array(behind), as_array(slope),
        one * steepness, one * dyn.gain, *_rows(dyn, neurons), as_array(result), as_array(sums),
        *_arrays((beside.syns,), 3, dtype), *_arrays((beside.mem, beside.syn), 2, dtype),
        *_arrays(beside.sums, 2, dtype), *_arrays((beside.factors,), 1, dtype), as_array(sizes),
    )  # fmt: skip
    if beside.sizes is not None:
        torch.sum(sizes, 1, out=beside.sizes)
    return sums.unsqueeze(0).to(current_dtype) if constant else result


def _steps(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient as the kernel reads it: of one step, if it is the same at every step."""
    return one_step_if_constant(grad).to(dtype).contiguous()
