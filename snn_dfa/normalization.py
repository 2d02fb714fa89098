"""Normalisation for networks that see one time step at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SteadyNorm"]


class SteadyNorm(nn.BatchNorm1d):
    """Batch normalisation by the running statistics, in training too.

    ``nn.BatchNorm1d`` that is called once a time step normalises each step by itself in training,
    and all steps alike in evaluation, which are two networks where steps differ, as those of a
    recording do. Here a call moves the running statistics on, and it normalises with them: they are
    over batch and time, and the network that is evaluated is the one that was trained.
    For ``credit="trace"`` it is all but a constant factor and shift, which a trace passes through.

    Args:
        num_features: C.
        eps: Added to the variance.
        momentum: Share of a call in the running statistics; ``None``: all calls have the same.
        affine: Whether there are a weight and a bias to learn.
        track_running_stats: As of the base class; only ``True`` makes sense.

    Shape: [B, C, ...] in and out.

    Example:
        >>> norm = SteadyNorm(3)
        >>> for _ in range(500):
        ...     out = norm(2 + 5 * torch.randn(64, 3))
        >>> bool(out.mean().abs() < 0.3), bool((out.std() - 1).abs() < 0.3)
        (True, True)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        if self.running_mean is None:
            raise ValueError("track_running_stats: expected True, got False")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a step [B, C, ...]."""
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if self.training and len(x):
            over = [d for d in range(x.dim()) if d != 1]
            now, share = x.detach().to(mean.dtype), self._share(mean.dtype)
            shape = (1, -1, *(1,) * (x.dim() - 2))
            # New tensors: those of earlier steps may be waiting for their backward pass.
            mean = torch.lerp(mean, now.mean(over), share)
            var = torch.lerp(var, (now - mean.view(shape)).square().mean(over), share)
            self.running_mean, self.running_var = mean, var
        return functional.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def _share(self, dtype: torch.dtype) -> Any:
        """Return the share of this call in the statistics."""
        if self.momentum is not None:
            return self.momentum
        self.num_batches_tracked = self.get_buffer("num_batches_tracked") + 1
        return 1 / self.num_batches_tracked.to(dtype)
