"""Eligibility traces: what of the past a weight's gradient needs, carried forward. Tensors only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["advance"]


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
