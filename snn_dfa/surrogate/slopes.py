"""Slopes that stand in for the step's derivative: formulas, tensors only."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exact_derivative", "fast_sigmoid_derivative"]


def fast_sigmoid_derivative(x: Tensor, slope: float = 10.0) -> Tensor:
    r"""Slope of the fast sigmoid, :math:`1 / (1 + k |x|)^2`; its peak, at 0, is 1.

    Args:
        x: Distance to the threshold, any shape.
        slope: The steepness k, per unit of ``x``.

    Returns:
        The derivative, same shape and dtype as ``x``.

    Source: Zenke and Ganguli 2018, SuperSpike, Neural Computation 30(6).

    Example:
        >>> fast_sigmoid_derivative(torch.tensor([0.0, 0.1]), slope=10.0)
        tensor([1.0000, 0.2500])
    """
    return (slope * x.abs()).add_(1).square_().reciprocal()


def exact_derivative(
    x: Tensor, threshold: float, tau: float, t_ref: float, eps: float = 1e-6
) -> Tensor:
    r"""Slope of the stationary rate of a refractory LIF neuron, as a function of its current.

    With the current a and :math:`x = a - \theta > 0` the rate, in units of its maximum
    :math:`1 / t_\mathrm{ref}`, has the slope (Zhang et al. 2024, arXiv 2409.07776, eq. A.9)

    .. math::
        f'(a) = \frac{\theta\, t_\mathrm{ref}\, \tau}{a\, x}
                \left[t_\mathrm{ref} + \tau \ln(1 + \theta / x)\right]^{-2}

    and 0 for a <= threshold. It is written with ``log1p`` of theta / x, which keeps its digits at
    both ends, where the published log(a / (a - theta)) loses them.

    The slope diverges as a falls to the threshold. It is held at the value that it has at
    x = ``eps`` * threshold. What is cut off is small: the slope's integral up to there is the
    rate there, ``t_ref / (t_ref + tau log(1 + 1/eps))``, 0.4 % of the maximal rate for
    tau / t_ref = 20 and the default ``eps``.

    Args:
        x: Current minus threshold, any shape, in units of the threshold.
        threshold: The threshold theta, above zero.
        tau: Membrane time constant, in the same unit of time as ``t_ref``.
        t_ref: Refractory period; with 0 the slope is zero everywhere.
        eps: Distance to the threshold, in thresholds, below which the slope is held.

    Returns:
        The derivative, same shape and dtype as ``x``.

    Example:
        >>> exact_derivative(torch.tensor([-0.1, 0.1]), threshold=0.1, tau=20.0, t_ref=1.0)
        tensor([0.0000, 0.4527])
    """
    near = x.clamp(min=eps * threshold)
    interval = t_ref + tau * torch.log1p(threshold / near)
    slope = threshold * t_ref * tau / (near * (near + threshold) * interval.square())
    return torch.where(x > 0, slope, torch.zeros_like(slope))
