"""What a rule did in training: angles, rates, what was sent, kept for each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from snn_dfa.dfa import DFA
from snn_dfa.diagnostics import Activity, feedback_angles, gradient_report

__all__ = ["diagnose"]


def diagnose(
    dfa: DFA,
    losses: Sequence[Callable[[nn.Module], Tensor]],
    targets: Sequence[Tensor],
    layers: Mapping[str, Activity],
    sent: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Return, by layer, what can be said of a network now; gradients in float64 where they can be.

    Args:
        dfa: Attached to the network.
        losses: From a network to the loss of each batch.
        targets: Classes of each batch [B].
        layers: What the layers were seen to do.
        sent: Root mean square of the errors that were sent to each.
    """
    try:
        found = gradient_report(dfa, losses, targets, dtype=torch.float64)
    except RuntimeError:  # of a network that makes values of another dtype between its modules
        found = gradient_report(dfa, losses, targets)
    return {
        "gradient_angles": {name: of.angle for name, of in found.items()},
        "norm_ratios": {name: of.norm_ratio for name, of in found.items()},
        "bptt_norms": {name: of.bptt_norm for name, of in found.items()},
        "agreement": {name: of.agreement for name, of in found.items()},
        "bptt_agreement": {name: of.bptt_agreement for name, of in found.items()},
        "feedback_angles": feedback_angles(dfa),
        "projected_errors": dict(sent),
        "rates": {name: seen.rate for name, seen in layers.items()},
        "silent": {name: seen.silent for name, seen in layers.items()},
        "saturated": {name: seen.saturated for name, seen in layers.items()},
    }
