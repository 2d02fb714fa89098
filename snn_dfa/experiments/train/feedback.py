"""From settings to direct feedback on a network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from snn_dfa.dfa import DFA
from snn_dfa.errors import AttachError, FeedbackError
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.feedback import LEARNED, Feedback
from snn_dfa.rules import canonical

__all__ = ["RULES", "attach", "feedback_of", "last_of", "rule_called"]

#: Name on the command line to the rule of :class:`DFA`; back-propagation attaches nothing.
RULES: dict[str, str | None] = {
    "bptt": None,
    "dfa": "error",
    "sign": "sign",
    "target": "target",
    "local": "local",
    "fa": "fa",
    "shallow": "shallow",
}


def rule_called(name: str) -> str | None:
    """Return the key of :data:`RULES` of that name or synonym; ``None`` if there is none."""
    if name in RULES:
        return name
    named = canonical(name)
    return next((key for key, rule in RULES.items() if rule == named), None)


def attach(settings: Settings, rule: str, net: nn.Module) -> DFA | None:
    """Attach a rule of :data:`RULES` to one of the experiments' networks.

    Raises:
        UsageError: if the rule cannot be had with the feedback or the credit.
    """
    broadcast = RULES[rule]
    if broadcast is None:
        return None
    last = last_of(net)
    hidden = [n for n in net._modules if n.startswith("neuron") and n != last]
    at_current = settings.error_at == "current"
    try:
        return DFA(
            net,
            output=last.replace("neuron", "linear") if at_current else last,
            hidden=hidden,
            rule=broadcast,
            feedback=feedback_of(settings),
            scale=settings.feedback_scale,
            credit=settings.credit,
            seed=settings.seed,
        )
    except (AttachError, FeedbackError) as error:  # a rule that the feedback or credit is not for
        raise UsageError(f"rule {rule}: {error}") from error


def last_of(net: nn.Module) -> str:
    """Return the name of what the network's output is of: neurons, or weights without neurons."""
    *_, last = (n for n in net._modules if n.startswith(("linear", "neuron")))
    return last


def feedback_of(settings: Settings) -> Feedback:
    """Return a name, options of feedback that learns, or a function with a given deviation."""
    if settings.feedback in LEARNED:
        return LEARNED[settings.feedback](settings.feedback_lr, settings.feedback_decay)
    if settings.feedback_std:
        return partial(_normal, settings.feedback_std)
    return settings.feedback


def _normal(std: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return std * torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
