"""The scan as one autograd function, on the implementation that fits."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from snn_dfa.sequence.scan import cpu, cuda, reference
from snn_dfa.sequence.scan.dynamics import Dynamics, one_step_if_constant
from snn_dfa.surrogate import Surrogate

__all__ = ["Dynamics", "credit_at_current", "leaky_scan"]


def leaky_scan(
    current: Tensor, dyn: Dynamics, want_mem: bool = False, spikes_dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Run a leaky neuron over a sequence, from rest.

    Args:
        current: [T, B, ...]; one that is expanded over time (stride zero) is read once. In half
            precision the membrane is in float32, and the spikes, which are exact, stay half.
        dyn: The neuron; ``beta`` and ``threshold`` broadcast to the feature dimensions.
        want_mem: Whether to return the membranes.
        spikes_dtype: Of the spikes, ``None`` for that of ``current``.

    Returns:
        Spikes [T, B, ...], and membranes [T, B, ...] if wanted.

    Example:
        >>> from snn_dfa.surrogate import fast_sigmoid
        >>> dyn = Dynamics(torch.tensor(0.5), torch.tensor(1.0), fast_sigmoid(10))
        >>> leaky_scan(torch.full((4, 1, 1), 0.9), dyn)[0].flatten()
        tensor([0., 1., 0., 1.])
    """
    outputs = _LeakyScan.apply(
        _flat(current),
        _of_flat(dyn, current),
        want_mem,
        current.dtype if spikes_dtype is None else spikes_dtype,
    )
    return tuple(t.view(current.shape) for t in outputs[: 1 + want_mem])


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
    shape, errors, once = current.shape, _flat(at_spikes), one_step_if_constant(_flat(current))
    if len(once) < len(current):
        errors = one_step_if_constant(errors).mean(0, keepdim=True)
    memoryless = Dynamics(torch.zeros(()), threshold, surrogate, reset="none")
    dyn = _of_flat(memoryless, current)
    margin = once - dyn.threshold
    kernels = _implementation(once, dyn)
    result = kernels.backward(errors, None, margin, dyn, current.dtype, False)
    return result.view(-1, *shape[1:]).expand(shape)


def _flat(sequence: Tensor) -> Tensor:
    """[T, B, ...] as [T, B, N]; a sequence that is expanded over time stays so."""
    return sequence if sequence.dim() == 3 else sequence.flatten(2)


def _of_flat(dyn: Dynamics, current: Tensor) -> Dynamics:
    """Return the neuron with constants [] or [N], in the dtype and on the device of membranes."""
    dtype = torch.promote_types(current.dtype, torch.float32)

    def row(value: Tensor) -> Tensor:
        value = value.detach().to(current.device, dtype)
        return value if not value.dim() else value.expand(current.shape[2:]).flatten()

    return dataclasses.replace(dyn, beta=row(dyn.beta), threshold=row(dyn.threshold))


def _implementation(current: Tensor, dyn: Dynamics) -> ModuleType:
    return next((m for m in (cuda, cpu) if m.available(current, dyn)), reference)


class _LeakyScan(torch.autograd.Function):
    """Spikes and membranes of a scan; keeps the margins (membrane minus threshold) only."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, dyn: Dynamics, want_mem: bool, spikes_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        once = one_step_if_constant(current)
        constant = len(once) < len(current)
        kernels = _implementation(current, dyn)
        wanted = ctx.needs_input_grad[0]
        spikes, margin, mems = kernels.forward(
            once, dyn, len(current), spikes_dtype, want_mem, wanted
        )
        if wanted:
            ctx.save_for_backward(margin)
        ctx.dyn, ctx.kernels, ctx.constant = dyn, kernels, constant
        ctx.dtype, ctx.shape = current.dtype, current.shape
        ctx.set_materialize_grads(False)
        return spikes, mems

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if all(g is None for g in grads):
            return None, None, None, None
        (margin,) = ctx.saved_tensors
        result = ctx.kernels.backward(*grads, margin, ctx.dyn, ctx.dtype, ctx.constant)
        if ctx.constant:
            # Each step's share of the sum: expanding it costs nothing, and the sum over steps
            # that follows gives the whole back.
            result = (result / ctx.shape[0]).expand(ctx.shape)
        return result, None, None, None
