"""Every rule, feedback and credit on one recipe, side by side."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from snn_dfa.experiments.recipes import DEFAULT, RECIPES, fitted
from snn_dfa.experiments.report.figures import dots
from snn_dfa.experiments.report.results import entry, write_rows
from snn_dfa.experiments.report.style import COLOURS
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.train.trainer import Trainer

__all__ = ["Run", "kept_megabytes", "rules_figure", "runs", "write_comparison"]

#: Rule on the command line, and what differs from the recipe.
ROWS: Sequence[tuple[str, dict[str, Any]]] = (
    ("bptt", {}),
    ("dfa", {}),
    *(("dfa", {"feedback": kind}) for kind in
      ("uniform", "orthogonal", "sparse", "low-rank", "shared", "zhang", "kolen-pollack",
       "transpose", "sign-symmetry")),
    ("dfa", {"error_at": "current"}),
    ("dfa", {"error_at": "current", "feedback": "kolen-pollack"}),
    ("dfa", {"error_at": "current", "feedback": "kolen-pollack-product"}),
    ("dfa", {"error_at": "current", "feedback": "product-feedback-alignment"}),
    ("dfa", {"error_at": "current", "feedback": "weight-mirror"}),
    ("dfa", {"credit": "current"}),
    ("dfa", {"credit": "trace"}),
    ("sign", {}),
    ("target", {}),
    ("local", {}),
    ("fa", {}),
    ("fa", {"feedback": "sign-symmetry"}),
    ("fa", {"feedback": "kolen-pollack"}),
    ("fa", {"feedback": "product-feedback-alignment"}),
    ("shallow", {}),
)  # fmt: skip
#: The same on a convolutional network, where a matrix may have a number for each channel only.
CONVOLUTIONAL: Sequence[tuple[str, dict[str, Any]]] = (
    ("bptt", {}),
    ("dfa", {}),
    ("dfa", {"feedback": "channelwise"}),
    ("dfa", {"error_at": "current", "feedback": "kolen-pollack"}),
    ("dfa", {"error_at": "current", "feedback": "weight-mirror"}),
)


@dataclass(frozen=True)
class Run:
    """A rule with what differs from the recipe, and the settings that this makes."""

    recipe: str
    rule: str
    changed: dict[str, Any]
    settings: Settings

    @property
    def name(self) -> str:
        """The rule and what is unusual about it."""
        said = {"feedback": "{}", "credit": "credit {}", "error_at": "error at the {}"}
        rule = self.rule if self.recipe == DEFAULT else f"{self.recipe}: {self.rule}"
        return ", ".join([rule, *(said[k].format(v) for k, v in self.changed.items())])

    def fitted(self, samples: int, image: tuple[int, ...], given: Container[str]) -> Run:
        """Return it with what its recipe has for such data, where nothing else is given."""
        settings = fitted(self.recipe, self.settings, samples, image, given)
        return replace(self, settings=settings)


def runs(**given: Any) -> Iterator[Run]:
    """Yield all rows with some settings of the recipes exchanged, such as data set and epochs.

    What a row does not name is fixed Gaussian feedback for the error at the outputs' spikes.
    """
    given = {"feedback": "gaussian", "error_at": "spikes", **given}
    for recipe, rows in ((DEFAULT, ROWS), ("conv", CONVOLUTIONAL)):
        settings = replace(RECIPES[recipe].settings, **given)
        for rule, changed in rows:
            yield Run(recipe, rule, changed, replace(settings, **changed))


def kept_megabytes(trainer: Trainer) -> float:
    """Return what autograd keeps for the backward pass of a batch, or online for that of a step.

    Counted once for each piece of memory, without parameters. Give it a trainer of its own.
    """
    for each in trainer.passes(2):  # in the first batch, which shows what leads where, it is more
        torch.autograd.backward(each)
    parameters = {p.untyped_storage().data_ptr() for p in trainer.net.parameters()}
    most, passes, kept = 0, trainer.passes(trainer.settings.batch_size), dict[int, int]()

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    while True:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = next(passes, None)
        if loss is None:
            break
        most = max(most, sum(kept.values()))
        torch.autograd.backward(loss)
    return most / 1e6


def write_comparison(folder: Path, results: Sequence[tuple[Run, dict[str, Any]]]) -> str:
    """Write ``rules.json``, ``rules.md`` and ``rules.png``; return the table."""
    lines = [
        "| rule | test accuracy | ms a step | kept, MB | peak, MB "
        "| angle to back-propagation, degrees |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for run, got in results:
        angles = ", ".join(f"{a:.0f}" for a in _hidden_angles(got)) or "-"
        lines.append(
            f"| {run.name} | {100 * got['test_accuracy']:.2f} % | "
            f"{1000 * got['seconds_per_step']:.0f} | {got['kept_megabytes']:.1f} | "
            f"{got['peak_megabytes']:.0f} | {angles} |"
        )
    table = "\n".join(lines) + "\n"
    entries = [entry(m.settings, got, name=m.name, rule=m.rule) for m, got in results]
    write_rows(folder, "rules", "rows", entries, table, rules_figure(entries))
    return table


def _hidden_angles(got: dict[str, Any]) -> list[float]:
    """Return the hidden layers' angles after the last epoch, from the first layer on."""
    if not got["diagnostics"]:
        return []
    angles = list(got["diagnostics"][-1]["gradient_angles"].values())[:-1]
    return [angle for angle in angles if math.isfinite(angle)]  # none where nothing is sent


def rules_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the test error of each rule, networks apart, the best first.

    Args:
        rows: Of ``rules.json``: ``name``, ``settings``, ``history`` and ``test_accuracy``.
    """
    parts: dict[str, list[tuple[str, float, str]]] = {}
    for row in rows:
        recipe, _, name = row["name"].rpartition(": ")
        error = 100 * (1 - row["test_accuracy"])
        tint = COLOURS.get(name.split(",")[0], COLOURS["dfa"])
        layers = "-".join(map(str, row["settings"]["hidden"]))
        title = f"recipe {recipe or DEFAULT}, hidden layers {layers}"
        parts.setdefault(title, []).append((name, error, tint))
    epochs = len(rows[0]["history"])
    return dots(parts, f"test error after {epochs} epochs, %")
