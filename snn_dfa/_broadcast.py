"""From the error at the output to what all hidden layers are sent, with what is refused there."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_dfa.errors import NonFiniteError, TargetError
from snn_dfa.rules import Rule, target

__all__ = ["broadcast_signal", "check_finite"]


def broadcast_signal(rule: Rule, e: Tensor, targets: Tensor | None) -> Tensor:
    """Return what a rule makes of the error [..., C] and, where it takes them, the targets."""
    if rule is not target:
        return rule(e)
    if targets is None:
        raise TargetError(
            "rule='target' projects the targets, and there are none; write `with "
            "dfa.targets(y):` around the forward or the backward pass"
        )
    return target(e, targets)


def check_finite(e: Tensor, output: str) -> None:
    """Refuse an error that would make every hidden weight useless.

    In float16 an infinite one is left to the gradient scaler, which skips the step. On an
    accelerator looking would make it wait, so that it is done in PyTorch's anomaly mode only.
    """
    if e.device.type != "cpu" and not torch.is_anomaly_enabled():
        return
    wrong = e.isnan() if e.dtype == torch.float16 else ~e.isfinite()
    if wrong.any():
        raise NonFiniteError(
            f"layer {output!r}: expected a finite error at the output, got {int(wrong.sum())} of "
            f"{e.numel()} numbers that are infinite or not a number; do not take this step, and "
            f"look at the loss, the input and the learning rate"
        )
