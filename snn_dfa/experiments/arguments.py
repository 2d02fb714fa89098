"""From the text of an argument to its value."""

from __future__ import annotations

import argparse
import math

from snn_dfa.experiments.train.feedback import RULES, rule_called

__all__ = ["layers", "numbers", "one_or_more", "rule", "rules", "seconds"]


def layers(text: str) -> tuple[int | str, ...]:
    """Return hidden layers, to be checked by the settings."""
    return tuple(int(part) if part.isdecimal() else part for part in text.split(","))


def numbers(text: str) -> tuple[float, ...]:
    """Return numbers that are separated by commas."""
    return tuple(float(part) for part in text.split(",")) if text else ()


def rule(text: str) -> str:
    """Return a rule, which may be called by a name of the library or of the literature, too."""
    found = rule_called(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected one of {','.join(RULES)}, got {text!r}")
    return found


def rules(text: str) -> list[str]:
    """Return rules that are separated by commas, each once."""
    found = {name: rule_called(name) for name in text.split(",")}
    unknown = [name for name, rule in found.items() if rule is None]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(RULES)}, got {unknown[0]!r}")
    return list(dict.fromkeys(rule for rule in found.values() if rule is not None))


def one_or_more(text: str) -> int:
    """Return a whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected one or more, got {text}")
    return int(text)


def seconds(text: str) -> float:
    """Return a finite number, zero or more."""
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected zero or more, got {text}")
    return seconds


# What argparse calls them.
layers.__name__, numbers.__name__, rules.__name__ = "layers", "list of numbers", "list of rules"
seconds.__name__ = "number"
