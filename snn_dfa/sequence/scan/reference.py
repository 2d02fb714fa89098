"""The scan in torch: a loop over steps, on any device and in any dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_dfa.sequence.scan.dynamics import REST, Dynamics, States, margin_dtype

__all__ = ["backward", "forward"]


def forward(
    current: Tensor,
    dyn: Dynamics,
    num_steps: int,
    spikes_dtype: torch.dtype,
    want_mem: bool,
    want_margin: bool,
    states: States = REST,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return spikes and, where wanted, margins and membranes, each [T, B, N].

    Args:
        current: [T, B, N], or [1, B, N] for a current that is the same at every step.
        dyn: The neuron.
        num_steps: T.
        spikes_dtype: Of the spikes; the membrane is in the dtype of ``dyn.beta``.
        want_mem: Whether to return membranes.
        want_margin: Whether to return margins, which :func:`backward` needs.
        states: The states to begin with, and where the last ones are to be written.

    Margins are in :func:`margin_dtype`, minus infinity in refractory steps: no spike,
    and a slope of zero.
    """
    shape = (num_steps, *current.shape[1:])
    dtype = dyn.beta.dtype
    spikes = current.new_empty(shape, dtype=spikes_dtype)
    kept = margin_dtype(current.dtype, dtype)
    margin = current.new_empty(shape, dtype=kept) if want_margin else None
    mems = current.new_empty(shape, dtype=dtype) if want_mem else None
    mem, wait = _start(current, dyn, states)
    fired = wait == dyn.refractory_steps if dyn.refractory_steps else mem - dyn.threshold > 0
    spike = fired.to(dtype)
    for t in range(num_steps):
        drive = current[t if len(current) > 1 else 0].to(dtype)
        if dyn.gain != 1.0:
            drive = dyn.gain * drive
        u = _membrane(mem, drive, spike, dyn)
        x = u - dyn.threshold
        if dyn.refractory_steps:
            blocked = wait > 0
            if dyn.clamp:
                u = u.masked_fill(blocked, 0.0)
            x = x.masked_fill(blocked, -torch.inf)
        spike = (x > 0).to(dtype)
        if dyn.refractory_steps:
            wait = torch.where(spike > 0, dyn.refractory_steps, (wait - 1).clamp(min=0))
        mem = _reset(u, spike, dyn) if dyn.immediate_reset else u
        spikes[t] = spike
        if margin is not None:
            margin[t] = x
        if mems is not None:
            mems[t] = mem
    for place, last in ((states.last_mem, mem), (states.last_wait, wait)):
        if place is not None:
            place.copy_(last)
    return spikes, margin, mems


def _start(current: Tensor, dyn: Dynamics, states: States) -> tuple[Tensor, Tensor]:
    """Return the membranes and the silent steps that are left before the first step."""
    rest = current.new_zeros(current.shape[1:], dtype=dyn.beta.dtype)
    mem = rest if states.mem is None else states.mem
    return mem, rest.int() if states.wait is None else states.wait


def _membrane(mem: Tensor, drive: Tensor, spike: Tensor, dyn: Dynamics) -> Tensor:
    """Return the membrane a step on; ``spike`` is of the step before."""
    late = spike if not dyn.immediate_reset else torch.zeros_like(spike)
    left = mem * (1 - late) if dyn.reset == "zero" else mem
    u = dyn.beta * left + drive
    return u - late * dyn.threshold if dyn.reset == "subtract" else u


def _reset(u: Tensor, spike: Tensor, dyn: Dynamics) -> Tensor:
    if dyn.reset == "zero":
        return u - spike * u
    if dyn.reset == "subtract":
        return u - spike * dyn.threshold
    return u


def backward(
    at_spikes: Tensor | None,
    at_mems: Tensor | None,
    margin: Tensor,
    dyn: Dynamics,
    current_dtype: torch.dtype,
    constant: bool,
) -> Tensor:
    """Return the gradient at the current, [T, B, N], or [1, B, N] for a constant one.

    Args:
        at_spikes: dL/ds, [T, B, N].
        at_mems: dL/dm, [T, B, N].
        margin: From :func:`forward`.
        dyn: The neuron.
        current_dtype: Of the result.
        constant: Whether the current was the same at every step.
    """
    num_steps = len(margin)
    steps = 1 if constant else num_steps
    result = margin.new_zeros((steps, *margin.shape[1:]), dtype=current_dtype)
    dtype = dyn.beta.dtype
    zero = margin.new_zeros((), dtype=dtype)
    total = margin.new_zeros(margin.shape[1:], dtype=dtype)
    later = torch.zeros_like(total)  # what reaches m_t from step t + 1
    for t in reversed(range(num_steps)):
        x = margin[t].to(dtype)
        spike = (x > 0).to(x.dtype)
        slope = dyn.surrogate.derivative(x)
        s = zero if at_spikes is None else at_spikes[t].to(x.dtype)
        m = later if at_mems is None else later + at_mems[t]
        at_u = m
        if dyn.immediate_reset and dyn.reset == "zero":
            u = torch.where(x == -torch.inf, 0.0, x + dyn.threshold)
            at_u = m * (1 - spike) - m * u * slope
        elif dyn.immediate_reset and dyn.reset == "subtract":
            at_u = m - m * dyn.threshold * slope
        delta = s * slope + at_u
        if dyn.clamp:
            delta = delta.masked_fill(x == -torch.inf, 0.0)
        if constant:
            total = total + delta
        else:
            result[t] = dyn.gain * delta
        later = dyn.beta * delta
        if dyn.reset == "zero" and not dyn.immediate_reset and t:
            later = later * (margin[t - 1] <= 0)
    if constant:
        result[0] = dyn.gain * total
    return result
