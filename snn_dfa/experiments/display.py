"""What is said while training goes on: a bar on a terminal, elsewhere a line an epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from snn_dfa.experiments.ranks import is_rank_zero
from snn_dfa.experiments.train.training import Training

__all__ = ["Shown", "say", "watched"]


def say(text: str, to: TextIO | None = None) -> None:
    """Print once, however many processes there are, and above a progress bar."""
    if is_rank_zero():
        tqdm.write(text, file=to or sys.stdout)


class Shown:
    """What is shown of one training."""

    def __init__(self, training: Training, name: str, bar: tqdm[None]) -> None:
        self._training, self._name, self._bar = training, name, bar
        self._warned = set[str]()

    def batch(self) -> None:
        """Count a batch."""
        self._bar.update()

    def epoch(self, line: Mapping[str, float]) -> None:
        """Show the epoch's accuracy, and which layers cannot learn, each once."""
        training, epoch = self._training, int(line["epoch"])
        parts = {"val": "validation", "test": "test"}
        part = training.parts[0]
        text = (
            f"epoch {epoch}/{training.epochs}, {parts[part]} {100 * line[f'{part}_accuracy']:.1f} %"
        )
        if self._bar.disable:
            seconds = training.epoch_seconds[-1]["epoch"]
            train = f"train {100 * line['train_accuracy']:.1f} %"
            say(f"{self._name}: {text}, {train}, {seconds:.1f} s", sys.stderr)
        else:
            self._bar.set_postfix_str(text)
        for layer, warning in training.warnings.items():
            if layer not in self._warned:
                say(f"snn-dfa: warning: {self._name}, epoch {epoch}: {warning}", sys.stderr)
                self._warned.add(layer)


class Silent(Shown):
    """Shows nothing."""

    def __init__(self) -> None:
        """Know nothing."""

    def batch(self) -> None:
        """Pass it over."""

    def epoch(self, line: Mapping[str, float]) -> None:
        """Pass it over."""


@contextmanager
def watched(training: Training, name: str, silent: bool = False) -> Iterator[Shown]:
    """Show a training: bar, epochs, warnings."""
    if silent:
        yield Silent()
        return
    total = training.epochs * training.batches or None
    hidden = not (is_rank_zero() and sys.stderr.isatty())
    with tqdm(total=total, initial=training.behind, desc=name, unit="step", disable=hidden) as bar:
        yield Shown(training, name, bar)
