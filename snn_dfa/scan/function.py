"""The scan as one autograd function, on the implementation that fits."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from snn_dfa.scan import compiled, gpu, plain
from snn_dfa.scan.dynamics import Dynamics, one_step_if_constant

__all__ = ["Dynamics", "leaky_scan"]


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
    shape = current.shape
    features = shape[2:]
    dtype = torch.promote_types(current.dtype, torch.float32)

    def row(value: Tensor) -> Tensor:
        value = value.detach().to(dtype)
        return value if value.numel() == 1 and not value.dim() else value.expand(features).flatten()

    flat = Dynamics(**{**dyn.__dict__, "beta": row(dyn.beta), "threshold": row(dyn.threshold)})
    outputs = _LeakyScan.apply(
        current.reshape(*shape[:2], math.prod(features)) if len(features) != 1 else current,
        flat,
        want_mem,
        current.dtype if spikes_dtype is None else spikes_dtype,
    )
    return tuple(t.view(shape) for t in outputs[: 1 + want_mem])


def _implementation(current: Tensor, dyn: Dynamics) -> ModuleType:
    return next((m for m in (gpu, compiled) if m.available(current, dyn)), plain)


class _LeakyScan(torch.autograd.Function):
    """Spikes and membranes of a scan; keeps the distances to the threshold and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, dyn: Dynamics, want_mem: bool, spikes_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        once = one_step_if_constant(current)
        constant = len(once) < len(current)
        kernels = _implementation(current, dyn)
        spikes, distance, mems = kernels.forward(once, dyn, len(current), spikes_dtype, want_mem)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(distance)
        ctx.dyn, ctx.kernels, ctx.constant = dyn, kernels, constant
        ctx.dtype, ctx.shape = current.dtype, current.shape
        ctx.set_materialize_grads(False)
        return spikes, mems

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if all(g is None for g in grads):
            return None, None, None, None
        (distance,) = ctx.saved_tensors
        result = ctx.kernels.backward(*grads, distance, ctx.dyn, ctx.dtype, ctx.constant)
        if ctx.constant:
            # Each step's share of the sum: expanding it costs nothing, and the sum over steps
            # that follows gives the whole back.
            result = (result / ctx.shape[0]).expand(ctx.shape)
        return result, None, None, None
