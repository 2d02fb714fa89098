"""The scan as one autograd function, on the implementation that fits."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from snn_dfa.sequence.scan import cpu, cuda, reference
from snn_dfa.sequence.scan.dynamics import Dynamics, States, one_step_if_constant
from snn_dfa.surrogate import Surrogate

__all__ = ["Dynamics", "credit_at_current", "gate_of", "leaky_scan"]


_VIEWS = {"PermuteBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0", "ViewBackward0"}


def leaky_scan(
    current: Tensor,
    dyn: Dynamics,
    want_mem: bool = False,
    spikes_dtype: torch.dtype | None = None,
    start: tuple[Tensor, Tensor | None] | None = None,
    want_last: bool = False,
    over_resets: bool = False,
) -> tuple[Tensor, ...]:
    """Run a leaky neuron over a sequence.

    Args:
        current: [T, B, ...]; one that is expanded over time (stride zero) is read once. In half
            precision the membrane is in float32, and the spikes, which are exact, stay half.
        dyn: The neuron; ``beta`` and ``threshold`` broadcast to the feature dimensions.
        want_mem: Whether to return the membranes.
        spikes_dtype: Of the spikes, ``None`` for that of ``current``.
        start: Membranes [B, ...] to begin with, which get a gradient, and for a refractory neuron
            the silent steps that are left, in int32; ``None`` for rest.
        want_last: Whether to return the last states.
        over_resets: Whether the gradient through time is that of the decay alone, which passes
            over resets and held membranes, as eligibility traces do.

    Returns:
        Spikes [T, B, ...]; membranes [T, B, ...] if wanted; the last membranes and, of a
        refractory neuron, the silent steps that are left, [B, ...] without a gradient, if wanted.

    Example:
        >>> from snn_dfa.surrogate import fast_sigmoid
        >>> dyn = Dynamics(torch.tensor(0.5), torch.tensor(1.0), fast_sigmoid(10))
        >>> leaky_scan(torch.full((4, 1, 1), 0.9), dyn)[0].flatten()
        tensor([0., 1., 0., 1.])
    """
    mem, wait = (None, None) if start is None else start
    order = _order(current)
    current = current.permute(order)
    flat = _flat(current)
    if mem is not None and mem.requires_grad and flat.stride(0) == 0:
        flat = flat.contiguous()  # the gradient of the first step alone is asked for
    dtype = torch.promote_types(current.dtype, torch.float32)
    spikes, mems, last_mem, last_wait = _LeakyScan.apply(
        flat,
        None if mem is None else _of_step(mem.to(dtype), order),
        None if wait is None else _of_step(wait, order),
        _of_flat(dyn, current, order),
        want_mem,
        want_last,
        over_resets,
        current.dtype if spikes_dtype is None else spikes_dtype,
    )
    back = [order.index(i) for i in range(len(order))]
    found = [t.view(current.shape).permute(back) for t in (spikes, mems) if t is not None]
    lasts = [t.unsqueeze(0) for t in (last_mem, last_wait) if t is not None]
    found += [t.view(1, *current.shape[1:]).permute(back)[0] for t in lasts]
    return tuple(found)


def credit_at_current(
    at_spikes: Tensor, current: Tensor, threshold: Tensor, surrogate: Surrogate
) -> Tensor:
    """Return the error at the spikes times the surrogate's slope at current - threshold.

    It is the backward pass of a neuron without memory or reset, and done by the same kernels.

    Args:
        at_spikes: [T, B, ...].
        current: [T, B, ...]. For one that is expanded over time the result is each step's share
            of the sum over steps.
        threshold: Broadcasts to the feature dimensions.
        surrogate: Gives the slope.

    Returns:
        [T, B, ...] in the dtype of ``current``.

    Example:
        >>> from snn_dfa.surrogate import fast_sigmoid
        >>> current = torch.tensor([0.9, 1.0, 1.1]).view(3, 1, 1)
        >>> one = torch.tensor(1.0)
        >>> credit_at_current(torch.ones(3, 1, 1), current, one, fast_sigmoid(10)).flatten()
        tensor([0.2500, 1.0000, 0.2500])
    """
    order = _order(current)
    current, at_spikes = current.permute(order), at_spikes.permute(order)
    shape, errors, once = current.shape, _flat(at_spikes), one_step_if_constant(_flat(current))
    if len(once) < len(current):
        errors = one_step_if_constant(errors).mean(0, keepdim=True)
    memoryless = Dynamics(torch.zeros(()), threshold, surrogate, reset="none")
    dyn = _of_flat(memoryless, current, order)
    margin = once - dyn.threshold
    kernels = _implementation(once, dyn)
    result = kernels.backward(errors, None, margin, dyn, current.dtype, False)
    back = [order.index(i) for i in range(len(order))]
    return result.view(-1, *shape[1:]).expand(shape).permute(back)


def gate_of(spikes: Tensor, current: Any, dims: int) -> Tensor | None:
    """Return what the summed spikes of a scan gain by a change of its current, a mean over steps.

    It is the scan's backward pass, of which no step is written down.

    Args:
        spikes: As the scan returned them, or a view: [T, B, ...] or [T * B, ...].
        current: The node of the graph that made the current.
        dims: 2 for [T, B, ...], 1 for [T * B, ...].

    Returns:
        [B, ...]; ``None`` where the spikes were not made by a scan of that current alone.
    """
    node: Any = _through_views(spikes.grad_fn)
    if type(node) is not _SCAN or node.over_resets:
        return None
    if _through_views(node.next_functions[0][0], current) is not current:
        return None
    margin, dyn = node.saved_tensors[0], node.dyn
    steps, batch, neurons = margin.shape
    ones = dyn.beta.new_ones(()).expand(margin.shape)
    found = node.kernels.backward(ones, None, margin, dyn, dyn.beta.dtype, True)
    strides = neurons, *spikes.stride()[dims:]
    return found.div_(steps).as_strided((batch, *spikes.shape[dims:]), strides)  # as spikes lie


def _through_views(node: Any, end: Any = None) -> Any:
    """Return the first node that is no view, or the end."""
    while node is not None and node is not end and type(node).__name__ in _VIEWS:
        node = node.next_functions[0][0]
    return node


def _order(sequence: Tensor) -> list[int]:
    """Return the dimensions of [T, B, ...], those of a sample as they lie in memory.

    A neuron knows no place, so that a scan runs over any dense sample, such as one with its
    channels last, and a copy is spared.
    """
    strides = sequence.stride()
    return [0, 1, *sorted(range(2, sequence.dim()), key=lambda i: (-strides[i], i))]


def _of_step(state: Tensor, order: list[int]) -> Tensor:
    """Return a state [B, ...] as [B, N], in the order of the sequence."""
    return state.unsqueeze(0).permute(order)[0].flatten(1)


def _flat(sequence: Tensor) -> Tensor:
    """[T, B, ...] as [T, B, N]; a sequence that is expanded over time stays so."""
    return sequence if sequence.dim() == 3 else sequence.flatten(2)


def _of_flat(dyn: Dynamics, current: Tensor, order: list[int]) -> Dynamics:
    """Return the neuron with constants [] or [N], in the dtype and on the device of membranes.

    Args:
        dyn: The neuron, its constants in the order of its features.
        current: [T, B, ...], its dimensions in ``order``.
        order: Of the dimensions.
    """
    dtype = torch.promote_types(current.dtype, torch.float32)

    def row(value: Tensor) -> Tensor:
        value = value.detach().to(current.device, dtype)
        if not value.dim():
            return value
        value = value[(None,) * (current.dim() - value.dim())]
        return value.permute(order)[0, 0].expand(current.shape[2:]).flatten()

    return dataclasses.replace(dyn, beta=row(dyn.beta), threshold=row(dyn.threshold))


def _implementation(current: Tensor, dyn: Dynamics) -> ModuleType:
    return next((m for m in (cuda, cpu) if m.available(current, dyn)), reference)


class _LeakyScan(torch.autograd.Function):
    """Spikes, membranes and last states of a scan; keeps the margins (membrane minus threshold)."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, mem: Tensor | None, wait: Tensor | None, dyn: Dynamics,
        want_mem: bool, want_last: bool, over_resets: bool, spikes_dtype: torch.dtype,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        once = one_step_if_constant(current)
        constant = len(once) < len(current)
        kernels = _implementation(current, dyn)
        wanted = any(ctx.needs_input_grad[:2])
        last_mem = dyn.beta.new_empty(current.shape[1:]) if want_last else None
        last_wait = None
        if want_last and dyn.refractory_steps:
            last_wait = current.new_empty(current.shape[1:], dtype=torch.int32)
        states = States(None if mem is None else mem.detach(), wait, last_mem, last_wait)
        spikes, margin, mems = kernels.forward(
            once, dyn, len(current), spikes_dtype, want_mem, wanted, states
        )
        if wanted:
            first = (mem, wait) if ctx.needs_input_grad[1] else (None, None)
            ctx.save_for_backward(margin, *first)
        ctx.dyn, ctx.kernels, ctx.constant = dyn, kernels, constant
        ctx.dtype, ctx.shape, ctx.over_resets = current.dtype, current.shape, over_resets
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t in (last_mem, last_wait) if t is not None))
        return spikes, mems, last_mem, last_wait

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, at_spikes: Tensor | None, at_mems: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        if at_spikes is None and at_mems is None:
            return (None,) * 8
        margin, mem, wait = ctx.saved_tensors
        dtype, dyn = ctx.dtype if mem is None else ctx.dyn.beta.dtype, ctx.dyn
        if ctx.over_resets:
            if at_mems is not None and (dyn.immediate_reset or dyn.clamp):
                # What a reset or a held membrane does in its own step, and then the decay.
                step = dataclasses.replace(dyn, beta=torch.zeros_like(dyn.beta), gain=1.0)
                args = at_spikes, at_mems, margin, step, dyn.beta.dtype, False
                at_spikes, at_mems = None, ctx.kernels.backward(*args)
            dyn = dataclasses.replace(dyn, reset="none", immediate_reset=False, clamp=False)
        result = ctx.kernels.backward(at_spikes, at_mems, margin, dyn, dtype, ctx.constant)
        at_mem = None
        if mem is not None:
            at_mem = _at_start(result[0], mem, wait, dyn)
            result = result.to(ctx.dtype)
        if ctx.constant:
            # Each step's share of the sum: expanding it costs nothing, and the sum over steps
            # that follows gives the whole back.
            result = (result / ctx.shape[0]).expand(ctx.shape)
        return result, at_mem, *(None,) * 6


_SCAN: Any = _LeakyScan._backward_cls


def _at_start(at_current: Tensor, mem: Tensor, wait: Tensor | None, dyn: Dynamics) -> Tensor:
    """Return the gradient at the membrane before the first step, from that at its current."""
    result = dyn.beta * at_current / dyn.gain
    if dyn.reset == "zero" and not dyn.immediate_reset:
        if not dyn.refractory_steps:
            return result * (mem <= dyn.threshold)
        return result if wait is None else result * (wait != dyn.refractory_steps)
    return result
