"""What an experiment is: plain data, written whole into its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Settings", "UsageError"]


class UsageError(Exception):
    """Something that the person at the keyboard can mend; its text is one line."""


@dataclass(frozen=True)
class Settings:
    """One experiment but for its rule.

    ``steps`` is T; ``lr`` the learning rate of Adam, which is multiplied by ``lr_decay`` after
    every ``decay_every`` epochs; ``max_rate`` the spikes a step of a white pixel; ``beta``,
    ``threshold`` and ``slope`` belong to the neurons; the loss is the cross entropy of output
    spike counts divided by ``temperature``; ``amp`` is bfloat16 autocast, the membranes in float32.
    """

    dataset: str = "digits"
    data_root: str = "data"
    hidden: tuple[int, ...] = (256, 128, 64)
    steps: int = 25
    epochs: int = 30
    batch_size: int = 32
    lr: float = 3e-3
    lr_decay: float = 0.93
    decay_every: int = 1
    seed: int = 0
    device: str = "cpu"
    max_rate: float = 1.0
    beta: float = 0.4
    threshold: float = 1.0
    slope: float = 10.0
    temperature: float = 2.0
    amp: bool = False

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise UsageError(
                f"--hidden: expected layer sizes such as 256,128,64, got {_list(self.hidden)!r}"
            )
        for name in ("steps", "epochs", "batch_size", "decay_every"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{_option(name)}: expected one or more, got {getattr(self, name)}"
                )
        for name in ("lr", "lr_decay", "threshold", "slope", "temperature"):
            if not getattr(self, name) > 0:
                raise UsageError(
                    f"{_option(name)}: expected a number above zero, got {getattr(self, name)}"
                )
        for name in ("max_rate", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    f"{_option(name)}: expected a number in [0, 1], got {getattr(self, name)}"
                )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {**asdict(self), "hidden": list(self.hidden)}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _list(sizes: tuple[int, ...]) -> str:
    return ",".join(map(str, sizes))
