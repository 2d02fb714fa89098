"""Loggers: ``log.csv``, TensorBoard, and whatever takes a dict an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from snn_dfa.experiments.files import atomic_write, file_name
from snn_dfa.experiments.settings import UsageError

__all__ = ["OnEpoch", "TensorBoard", "lines", "write_log"]

#: Called after each epoch of each rule with what is known of it; see :func:`lines`.
OnEpoch: TypeAlias = Callable[[Mapping[str, Any]], object]

_FIRST = ("rule", "seed", "epoch")  # columns


def lines(
    rule: str,
    seed: int,
    history: Iterable[Mapping[str, float]],
    seconds: Iterable[Mapping[str, float]],
    diagnostics: Iterable[Mapping[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """Yield what is known of each epoch, as one flat dict.

    Args:
        rule: That trained.
        seed: Of the run.
        history: A line an epoch, with accuracies and losses.
        seconds: Of each epoch.
        diagnostics: By epoch, with values by layer; they become ``gradient_angles/LAYER`` and so
            on.

    Example:
        >>> list(lines("dfa", 0, [{"epoch": 1.0, "train_loss": 2.0}], [{"epoch": 0.5}]))
        [{'rule': 'dfa', 'seed': 0, 'epoch': 1, 'train_loss': 2.0, 'seconds': 0.5}]
    """
    noted = {entry["epoch"]: entry for entry in diagnostics}
    for line, spent in zip(history, seconds, strict=True):
        epoch = int(line["epoch"])
        flat = {
            f"{what}/{layer}": value
            for what, layers in noted.get(epoch, {}).items()
            if isinstance(layers, Mapping)
            for layer, value in layers.items()
        }
        values = {**line, "epoch": epoch, "seconds": spent["epoch"], **flat}
        yield {"rule": rule, "seed": seed, **values}


def write_log(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a line for each epoch of each rule, whole or not at all."""
    rows = list(rows)
    names = dict.fromkeys([*_FIRST, *(name for row in rows for name in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


class TensorBoard:
    """Writes each epoch for TensorBoard, a run of its own for each rule and seed.

    Args:
        folder: Into which the runs go.

    Raises:
        UsageError: if the package tensorboard is not there, or the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "--tensorboard: expected the package tensorboard, found none; "
                "pip install 'snn-dfa[tensorboard]'"
            ) from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--tensorboard: expected a folder that can be made, got {folder} "
                f"({error.strerror})"
            ) from error
        self._folder, self._make, self._writers = folder, SummaryWriter, dict[str, Any]()

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Write all numbers of an epoch."""
        run = f"{file_name(metrics['rule'])}-seed{metrics['seed']}"
        if run not in self._writers:
            self._writers[run] = self._make(str(self._folder / run))
        for name, value in metrics.items():
            if name not in _FIRST:
                self._writers[run].add_scalar(name, value, metrics["epoch"])
        self._writers[run].flush()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for writer in self._writers.values():
            writer.close()
