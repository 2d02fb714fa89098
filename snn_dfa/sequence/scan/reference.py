"""The scan in torch: a loop over steps, on any device and in any dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snn_dfa.sequence.scan.dynamics import (
    NOTHING,
    REST,
    Beside,
    Dynamics,
    States,
    margin_dtype,
)

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
    mem, wait, currents = _start(current, dyn, states)
    fired = wait == dyn.refractory_steps if dyn.refractory_steps else mem - dyn.threshold > 0
    for t in range(num_steps):
        drive = current[t if len(current) > 1 else 0].to(dtype)
        if dyn.gain != 1.0:
            drive = dyn.gain * drive
        late = fired.to(dtype) if dyn.resets_late else torch.zeros_like(mem)
        currents, u = _advance(currents, mem, drive, late, dyn)
        x = u - dyn.threshold
        if dyn.refractory_steps:
            blocked = wait > 0
            if dyn.clamp:
                u = u.masked_fill(blocked, 0.0)
            x = x.masked_fill(blocked, -torch.inf)
        spike = (x > 0).to(dtype)
        if dyn.refractory_steps:
            wait = torch.where(spike > 0, dyn.refractory_steps, (wait - 1).clamp(min=0))
        mem = _reset(u, spike - late, dyn) if dyn.immediate_reset else u
        fired = spike > 0 if dyn.refractory_steps else mem - dyn.threshold > 0
        spikes[t] = spike
        for series, state in zip((margin, mems, states.syns, states.inhs),
                                 (x, mem, *currents), strict=False):  # fmt: skip
            if series is not None:
                series[t] = state
    lasts = states.last_mem, states.last_wait, states.last_syn, states.last_inh
    for place, last in zip(lasts, (mem, wait, *currents), strict=False):
        if place is not None:
            place.copy_(last)
    return spikes, margin, mems


def _start(
    current: Tensor, dyn: Dynamics, states: States
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return membranes, silent steps that are left, and synaptic currents before the first step."""
    rest = current.new_zeros(current.shape[1:], dtype=dyn.beta.dtype)
    given = (states.mem, states.syn, states.inh)[: 1 + dyn.currents]
    mem, *currents = (rest if state is None else state for state in given)
    return mem, rest.int() if states.wait is None else states.wait, tuple(currents)


def _advance(
    currents: tuple[Tensor, ...], mem: Tensor, drive: Tensor, late: Tensor, dyn: Dynamics
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return synaptic currents and membrane a step on, with the reset that the step begins with."""
    if dyn.tau is not None:
        return _advance_both(currents, drive, late, dyn)
    if dyn.alpha is not None:
        drive = dyn.alpha * currents[0] + drive
        currents = (drive,)
    left = mem * (1 - late) if dyn.reset == "zero" else mem
    u = dyn.beta * left + drive
    if dyn.reset == "clear":
        u = u - u * late
    return currents, u - late * dyn.threshold if dyn.reset == "subtract" else u


def _advance_both(
    currents: tuple[Tensor, ...], drive: Tensor, late: Tensor, dyn: Dynamics
) -> tuple[tuple[Tensor, ...], Tensor]:
    assert dyn.alpha is not None
    assert dyn.tau is not None
    before = currents[1]
    high, low = dyn.alpha * currents[0] + drive, dyn.beta * before - drive
    u = dyn.tau * (high + low)
    if dyn.reset == "subtract":
        return (high - dyn.threshold * late, low - low * late), u + before * late
    if dyn.reset == "zero":
        return (high - high * late, low - low * late), u - u * late
    return (high, low), u


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
    beside: Beside = NOTHING,
) -> Tensor:
    """Return the gradient at the current, [T, B, N], or [1, B, N] for a constant one.

    Args:
        at_spikes: dL/ds, [T, B, N].
        at_mems: dL/dm, [T, B, N].
        margin: From :func:`forward`.
        dyn: The neuron.
        current_dtype: Of the result.
        constant: Whether the current was the same at every step.
        beside: What else is read and written. Of refractory neurons it has factors at most.
    """
    num_steps, dtype = len(margin), dyn.beta.dtype
    zero = margin.new_zeros(margin.shape[1:], dtype=dtype)
    at_start = (zero if beside.mem is None else beside.mem) - dyn.threshold
    gaps = margin if beside.mems is None else beside.mems - dyn.threshold
    later = (zero, zero, zero)  # what reaches membrane and synaptic currents from step t + 1
    at_drives, at_constants = [], torch.stack([zero] * 3)
    for t in reversed(range(num_steps)):
        x = margin[t].to(dtype)
        gap = gaps[t - 1].to(dtype) if t else at_start  # of the membrane that the step begins with
        late = (gap > 0).to(dtype) if dyn.resets_late else zero
        s = zero if at_spikes is None else at_spikes[t].to(dtype)
        s = s if beside.factors is None else beside.factors[t] * s
        grads = at_mems, beside.at_syns, beside.at_inhs
        later = _sum(later, [None if grad is None else grad[t] for grad in grads])
        delta, at_threshold = _at_membrane(s, later[0], x, late, dyn)
        at_drive, later, at_beta = _before(delta, later, gap, late, dyn)
        at_constants += torch.stack([at_beta, at_threshold, zero])
        if beside.syns is not None:
            syn = zero if beside.syn is None else beside.syn
            at_constants[2] += at_drive * (beside.syns[t - 1] if t else syn)
        at_drives.append(dyn.gain * at_drive)
    if beside.sizes is not None:
        beside.sizes.copy_(torch.stack([each.abs().sum() for each in at_drives[::-1]]))
    for place, gradient in zip(beside.sums, (*later, *at_constants), strict=True):
        if place is not None:
            place.copy_(gradient)
    result = torch.stack(at_drives[::-1])
    return (result.sum(0, keepdim=True) if constant else result).to(current_dtype)


_Three = tuple[Tensor, Tensor, Tensor]


def _sum(later: _Three, given: Sequence[Tensor | None]) -> _Three:
    mem, syn, inh = (a if b is None else a + b for a, b in zip(later, given, strict=True))
    return mem, syn, inh


def _at_membrane(
    s: Tensor, m: Tensor, x: Tensor, late: Tensor, dyn: Dynamics
) -> tuple[Tensor, Tensor]:
    """Return the gradients at the membrane before it is reset, and at the threshold.

    Args:
        s: The gradient at the spike.
        m: That at the membrane after the step.
        x: The margin.
        late: 1 where the step begins with a reset.
        dyn: The neuron.
    """
    spike, at_u, at_threshold = (x > 0).to(x.dtype), m, torch.zeros_like(m)
    if dyn.immediate_reset and dyn.reset == "zero":
        s = s - m * torch.where(x == -torch.inf, 0.0, x + dyn.threshold)
        at_u = m * (1 - spike)
    elif dyn.immediate_reset and dyn.reset == "subtract":
        s = s - m * dyn.threshold
        at_threshold = -(spike - late) * m
    at_margin = s * dyn.surrogate.derivative(x)
    delta = at_margin + at_u
    if dyn.clamp:
        delta = delta.masked_fill(x == -torch.inf, 0.0)
    if dyn.reset == "subtract":
        at_threshold = at_threshold - late * delta
    return delta, at_threshold - at_margin


def _before(
    delta: Tensor, later: _Three, gap: Tensor, late: Tensor, dyn: Dynamics
) -> tuple[Tensor, _Three, Tensor]:
    """Return the gradients at the drive, at the states that the step begins with, and at beta.

    Args:
        delta: The gradient at the membrane before it is reset.
        later: Those at the synaptic currents after the step, behind that at the membrane.
        gap: The membrane that the step begins with, minus the threshold.
        late: 1 where the step begins with a reset.
        dyn: The neuron.
    """
    _, syn, inh = later
    if dyn.alpha is not None and dyn.tau is not None:
        high, low = _back_both(delta, syn, inh, late, dyn)
        at_low = dyn.beta * low
        if dyn.reset == "subtract":
            at_low = at_low + delta * late
        return high - low, (torch.zeros_like(delta), dyn.alpha * high, at_low), 0 * delta
    if dyn.reset == "clear":
        delta = delta * (1 - late)
    freed = delta * (1 - late) if dyn.reset == "zero" else delta
    if dyn.alpha is not None:
        delta = delta + syn
        syn = dyn.alpha * delta
    return delta, (dyn.beta * freed, syn, inh), freed * (gap + dyn.threshold)


def _back_both(
    delta: Tensor, at_high: Tensor, at_low: Tensor, late: Tensor, dyn: Dynamics
) -> tuple[Tensor, Tensor]:
    """Return the gradients at both synaptic currents before the reset."""
    assert dyn.tau is not None
    kept = 1 - late
    both = dyn.tau * (delta * kept if dyn.reset == "zero" else delta)
    high = at_high * kept if dyn.reset == "zero" else at_high
    low = at_low if dyn.reset == "none" else at_low * kept
    return both + high, both + low
