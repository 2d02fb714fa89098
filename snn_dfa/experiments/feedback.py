"""From settings to what ``DFA(feedback=)`` takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snn_dfa.experiments.settings import Settings
from snn_dfa.feedback import Feedback, generator_for
from snn_dfa.kolen_pollack import KolenPollack
from snn_dfa.zhang import zhang_feedback

__all__ = ["feedback_of"]


def feedback_of(settings: Settings, net: nn.Sequential) -> Feedback:
    """Return a kind, the options of a learned kind, or the matrices for the network's layers."""
    if settings.feedback == "kolen-pollack":
        return KolenPollack(settings.feedback_lr, settings.feedback_decay)
    if settings.feedback == "gaussian" and not settings.feedback_std:
        return "gaussian"
    return dict(_matrices(settings, net))


def _matrices(settings: Settings, net: nn.Sequential) -> list[tuple[str, Tensor]]:
    sizes: list[int] = []
    names: list[str] = []
    for name, module in net.named_children():
        if isinstance(module, nn.Linear):
            sizes.append(module.out_features)
        elif len(names) < len(sizes) and hasattr(module, "threshold"):
            names.append(name)
    found = []
    for i, name in enumerate(names[:-1]):
        shape = (sizes[-1], sizes[i])
        generator = generator_for(settings.seed, name, shape)
        if settings.feedback == "zhang":
            matrix = zhang_feedback(sizes[i:], generator)
        else:
            matrix = torch.randn(shape, generator=generator) * settings.feedback_std
        found.append((name, settings.feedback_scale * matrix))
    return found
