"""From the text of an argument to its value."""

from __future__ import annotations

import argparse
import math

from snn_dfa.experiments.feedback import RULES

__all__ = ["layers", "numbers", "one_or_more", "rules", "seconds"]


def layers(text: str) -> tuple[int | str, ...]:
    """Return hidden layers, to be checked by the settings."""
    return tuple(int(part) if part.isdecimal() else part for part in text.split(","))


def numbers(text: str) -> tuple[float, ...]:
    """Return numbers that are separated by commas."""
    return tuple(float(part) for part in text.split(",")) if text else ()


def rules(text: str) -> list[str]:
    """Return rules that are separated by commas, each once."""
    rules = text.split(",")
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(RULES)}, got {unknown[0]!r}")
    return list(dict.fromkeys(rules))


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
