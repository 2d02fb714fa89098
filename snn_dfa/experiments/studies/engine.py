"""Training a network by several rules, and writing down what came of it.

The command line and :func:`snn_dfa.compare` both come here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snn_dfa.diagnostics import TrainingCost
from snn_dfa.experiments.display import watched
from snn_dfa.experiments.files import (
    Checkpoint,
    clear,
    file_name,
    load_checkpoint,
    make_folder,
    refuse_finished,
    refuse_overwrite,
)
from snn_dfa.experiments.logs import OnEpoch, lines, write_log
from snn_dfa.experiments.report import results as report
from snn_dfa.experiments.report.description import Description
from snn_dfa.experiments.train.metrics import metrics
from snn_dfa.experiments.train.training import Training

__all__ = ["Folder", "Plan", "carry_out", "fit", "with_frozen_blocks"]

_WARM = 500  # samples at most of the step before the clock starts


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Args:
        rules: Their names.
        seeds: Of each rule's runs.
        make: From rule and seed to a training.
        described: For the report.
        warm: Samples of the step that is taken before the clock starts.
    """

    rules: Sequence[str]
    seeds: Sequence[int]
    make: Callable[[str, int], Training]
    described: Description
    warm: int = _WARM


def with_frozen_blocks(
    rules: Iterable[str], blocks_of: Callable[[str], Mapping[str, tuple[str, ...]]]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return each rule, and it once more for each block that is frozen, by what they are called.

    Args:
        rules: Their names.
        blocks_of: From a rule to its hidden layers and the parameters of their blocks.

    Returns:
        Name to rule and frozen parameters.

    Example:
        >>> list(with_frozen_blocks(["dfa"], lambda rule: {"lif1": ("fc1.weight",)}))
        ['dfa', 'dfa (lif1 frozen)']
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for rule in rules:
        found[rule] = rule, ()
        for layer, names in blocks_of(rule).items():
            found[report.frozen_name(rule, layer)] = rule, names
    return found


@dataclass
class Folder:
    """Where results go, and how.

    Args:
        path: Of the folder; ``None``: nothing is written.
        resume: Whether to go on from the checkpoints in it.
        overwrite: Whether the results of another run may be replaced.
        save_every: Seconds between checkpoints within an epoch; infinite: after epochs only.
        checkpoint_name: Of the checkpoint's file, with the places ``{rule}`` and ``{seed}``.
        texts: What else is written into it once it is there: name to text.
    """

    path: Path | None
    resume: bool = False
    overwrite: bool = False
    save_every: float = math.inf
    checkpoint_name: str = "checkpoint_{rule}_seed{seed}.pt"
    texts: Mapping[str, str] = field(default_factory=dict)
    _checkpoints: list[Checkpoint] = field(default_factory=list)

    def check(self) -> None:
        """Refuse to write over results, or over a checkpoint of a run that has not ended.

        Raises:
            UsageError: if there is some, and neither ``resume`` nor ``overwrite`` is asked for.
        """
        if self.path is None or self.resume or self.overwrite:
            return
        for path in sorted(self.path.glob("checkpoint*.pt")):
            refuse_overwrite(path)
        refuse_finished(self.path)

    def open(self) -> None:
        """Make it, and take out what is to be replaced."""
        if self.path is None:
            return
        make_folder(self.path)
        if self.overwrite and not self.resume:
            clear(self.path)
        for name, text in self.texts.items():
            report.write_text(self.path / name, text)

    def checkpoint_path(self, rule: str, seed: int) -> Path | None:
        """Return where the checkpoint of a run is; ``None``: nothing is written."""
        name = self.checkpoint_name.format(rule=file_name(rule), seed=seed)
        return None if self.path is None else self.path / name

    def checkpoint(self, rule: str, seed: int) -> Checkpoint | None:
        """Return the checkpoint of a run, to be saved."""
        path = self.checkpoint_path(rule, seed)
        if path is None:
            return None
        self._checkpoints.append(Checkpoint(path, self.save_every))
        return self._checkpoints[-1]

    @property
    def saved(self) -> Path | None:
        """The checkpoint that was saved last; ``None``: none yet."""
        return next((c.path for c in reversed(self._checkpoints) if c.saved), None)


def fit(
    training: Training,
    name: str,
    checkpoint: Checkpoint | None = None,
    *,
    diagnosed: bool = False,
    silent: bool = False,
    on_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Train to the end, shown as it goes on, saving after epochs and when it is due."""
    with watched(training, name, silent) as shown:

        def after_batch() -> None:
            shown.batch()
            if checkpoint is not None and checkpoint.is_due:
                checkpoint.save(training.state_dict())

        for line in training.fit(after_batch, diagnosed=diagnosed):
            shown.epoch(line)
            if checkpoint is not None:
                checkpoint.save(training.state_dict())
            on_epoch()


def carry_out(
    plan: Plan,
    folder: Folder,
    *,
    diagnosed: bool = False,
    silent: bool = False,
    loggers: Iterable[OnEpoch] = (),
) -> tuple[report.Results, report.Costs, list[Path]]:
    """Train every rule with every seed; return results, costs, and the files that were written.

    Nothing is trained or written before all rules could be made and have taken a step, which is
    thrown away: what is compiled then is no part of any rule's time. ``metrics.json`` and
    ``log.csv`` are written after each run, the report at the end or where the comparison is broken
    off.
    """
    folder.check()
    _check_checkpoints(plan, folder)
    costs = dict[str, TrainingCost]()
    for rule in plan.rules:
        thrown_away = plan.make(rule, plan.seeds[0])
        thrown_away.warm_up(plan.warm)
        cost = thrown_away.cost(plan.warm)
        if cost is not None:
            costs[rule] = cost
    folder.open()
    results: report.Results = {}
    rows: list[dict[str, Any]] = []
    try:
        for seed in plan.seeds:
            for rule in plan.rules:
                training = plan.make(rule, seed)
                name = rule if len(plan.seeds) == 1 else f"{rule}, seed {seed}"
                log = _Log(training, rule, folder.path, rows, loggers)
                checkpoint = folder.checkpoint(rule, seed)
                if folder.resume and checkpoint is not None and checkpoint.path.exists():
                    training.load_state_dict(load_checkpoint(checkpoint.path))
                fit(training, name, checkpoint, diagnosed=diagnosed, silent=silent, on_epoch=log)
                rows += log.rows()
                results.setdefault(rule, []).append(metrics(training))
                if folder.path is not None:
                    write_log(folder.path / "log.csv", rows)
                    report.write_metrics(folder.path, plan.described, results, costs)
    finally:
        paths = list[Path]()
        if folder.path is not None and results:
            paths = report.write(folder.path, plan.described, results, costs)
    return results, costs, paths


def _check_checkpoints(plan: Plan, folder: Folder) -> None:
    """See that runs can go on from their checkpoints, before anything is written.

    Raises:
        UsageError: if a checkpoint is damaged, or of other settings or data.
    """
    for seed in plan.seeds if folder.resume else ():
        for rule in plan.rules:
            path = folder.checkpoint_path(rule, seed)
            if path is not None and path.exists():
                plan.make(rule, seed).load_state_dict(load_checkpoint(path))


class _Log:
    """Tells loggers of each epoch, and keeps ``log.csv``."""

    def __init__(
        self,
        training: Training,
        rule: str,
        folder: Path | None,
        before: Sequence[dict[str, Any]],
        loggers: Iterable[OnEpoch],
    ) -> None:
        self._training, self._rule, self._folder = training, rule, folder
        self._before, self._loggers = before, tuple(loggers)

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each epoch that is behind."""
        of = self._training
        return list(lines(self._rule, of.seed, of.history, of.epoch_seconds, of.diagnostics))

    def __call__(self) -> None:
        rows = self.rows()
        if self._folder is not None:
            write_log(self._folder / "log.csv", [*self._before, *rows])
        for logger in self._loggers:
            logger(rows[-1])
