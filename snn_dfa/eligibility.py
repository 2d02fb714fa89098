"""Eligibility traces: what of the past a weight's gradient needs, carried forward. Tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["advance", "advance_chunk"]


def advance(
    trace: Sequence[Tensor] | None, x: Tensor, decays: Sequence[float | Tensor]
) -> tuple[Tensor, ...]:
    r"""Return the trace one step on: leaky integrators in a row, as a neuron's states are.

    Without its reset, a membrane :math:`u_t = \beta u_{t-1} + w x_t` is :math:`w \hat x_t` with
    :math:`\hat x_t = \beta \hat x_{t-1} + x_t`, so that :math:`\partial u_t / \partial w = \hat
    x_t`: one number for an input, whatever the number of neurons and of steps.

    Args:
        trace: What this function returned a step before; ``None`` at rest.
        x: Input of the step, any shape.
        decays: Of each integrator a step: (beta,) for a membrane, (alpha, beta) for a synaptic
            current and a membrane.

    Returns:
        The integrators' states, the last one :math:`\hat x_t`, each in the shape of x.

    Source: Xiao et al. 2022, arXiv 2210.04195 (OTTT), eq. 9.

    Example:
        >>> import torch
        >>> trace = advance(None, torch.tensor([1.0, 0.0]), [0.5])
        >>> advance(trace, torch.tensor([1.0, 1.0]), [0.5])
        (tensor([1.5000, 1.0000]),)
    """
    states = []
    for i, decay in enumerate(decays):
        x = x if trace is None else decay * trace[i] + x
        states.append(x)
    return tuple(states)


def advance_chunk(trace: Tensor | None, xs: Tensor, decay: float | Tensor) -> Tensor:
    r"""Return the trace of a membrane T steps on, as T calls of :func:`advance` do.

    :math:`\hat x_T = \beta^T \hat x_0 + \sum_t \beta^{T-t} x_t`, in one sum.

    Args:
        trace: Before the chunk; ``None`` at rest.
        xs: Inputs of the steps [T, ...].
        decay: beta.

    Returns:
        The trace [...].

    Example:
        >>> import torch
        >>> advance_chunk(torch.tensor([4.0]), torch.tensor([[1.0], [1.0]]), 0.5)
        tensor([2.5000])
    """
    back = torch.arange(len(xs), device=xs.device).flip(0)
    powers = torch.as_tensor(decay, dtype=xs.dtype, device=xs.device) ** back
    total = torch.tensordot(powers, xs, 1)
    return total if trace is None else decay ** len(xs) * trace + total
