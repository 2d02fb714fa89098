"""Losses, called as those of ``snntorch.functional``: ``loss_fn(spk_out, targets)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ce_normalized_rate_loss"]


class _NormalizedRate(torch.autograd.Function):
    """Cross entropy of normalised counts, with softmax - one-hot as its error at every step."""

    @staticmethod
    def forward(ctx: Any, spk_out: Tensor, targets: Tensor, temperature: float) -> Tensor:
        counts = spk_out.sum(0)
        # A silent sample has rates of zero, not 0 / 0; one spike is the least count otherwise.
        rates = counts / counts.sum(1, keepdim=True).clamp(min=1e-9)
        log_p = functional.log_softmax(rates / temperature, dim=1)
        one_hot = functional.one_hot(targets, log_p.shape[1]).to(log_p.dtype)
        ctx.save_for_backward((log_p.exp() - one_hot) / targets.shape[0])
        ctx.num_steps = spk_out.shape[0]
        return functional.nll_loss(log_p, targets)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (error,) = ctx.saved_tensors
        steps = ctx.num_steps
        return (grad * error / steps).expand(steps, *error.shape), None, None


class ce_normalized_rate_loss:
    r"""Cross entropy of softmax(n / (temperature * sum of n)), n the spike counts of the outputs.

    The error at the output is not the derivative of this formula. The backward pass leaves out the
    derivatives of softmax and normalisation, as the first implementation of this rule did. At every
    step the output's error is :math:`(p - y) / (B T)`, p the softmax, y the one-hot target.

    Args:
        temperature: Divides the normalised counts, above zero.

    Calling it: ``loss_fn(spk_out, targets)`` with spk_out [T, B, C] and targets [B], class
    indices; returns the loss averaged over B, a scalar.

    Raises:
        ValueError: if the temperature is not above zero or the shapes do not fit.

    Example:
        >>> spk = torch.ones(4, 1, 2, requires_grad=True)
        >>> ce_normalized_rate_loss(temperature=0.5)(spk, torch.tensor([0])).backward()
        >>> spk.grad[0]
        tensor([[-0.1250,  0.1250]])
    """

    def __init__(self, temperature: float = 0.5) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number above zero, got {temperature!r}")
        self.temperature = temperature

    def __call__(self, spk_out: Tensor, targets: Tensor) -> Tensor:
        """Return the loss; see the class."""
        if spk_out.dim() != 3 or targets.shape != spk_out.shape[1:2]:
            raise ValueError(
                f"spk_out, targets: expected shapes [T, B, C] and [B], got {list(spk_out.shape)} "
                f"and {list(targets.shape)}"
            )
        return _NormalizedRate.apply(spk_out, targets, self.temperature)
