"""From settings to what ``DFA(feedback=)`` takes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from snn_dfa.experiments.settings import Settings
from snn_dfa.feedback import Feedback
from snn_dfa.kolen_pollack import KolenPollack

__all__ = ["feedback_of"]


def feedback_of(settings: Settings) -> Feedback:
    """Return a kind, the options of a learned kind, or what draws with a given deviation."""
    if settings.feedback == "kolen-pollack":
        return KolenPollack(settings.feedback_lr, settings.feedback_decay)
    if settings.feedback_std:
        return partial(_normal, settings.feedback_std)
    return settings.feedback


def _normal(std: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return std * torch.randn(shape, generator=generator)
