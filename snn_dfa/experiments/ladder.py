"""From the recipe ``notebook`` to ``deep``, one change at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from snn_dfa.experiments.recipes import DEFAULT, RECIPES
from snn_dfa.experiments.report import entry, write_rows
from snn_dfa.experiments.settings import Settings

__all__ = ["Rung", "rungs", "write_ladder"]


#: Epochs of a rung, so that all are trained alike; only the last is trained to its recipe's end.
EPOCHS = 5

#: A change in words, and the settings that are set to those of ``deep`` in it.
CHANGES: Sequence[tuple[str, tuple[str, ...]]] = (
    ("pixels as a constant current, 10 steps", ("encoding", "max_rate", "steps")),
    ("PyTorch's first weights and biases", ("weights", "biases")),
    (
        "snn.Leaky, threshold 1, a memory shorter than the sequence",
        ("neuron", "threshold", "beta"),
    ),
    ("batch normalisation of the current", ("normalize",)),
    ("cross entropy of spike counts", ("loss", "temperature")),
    ("Adam", ("optimizer", "lr")),
    ("feedback scaled by the layer's size", ("feedback_std",)),
    ("credit through the membrane", ("credit", "slope")),
    ("learning rate up and down in one cycle", ("schedule", "lr_decay", "decay_every")),
    (
        "feedback that learns, with the weights' rate; the error at the outputs' current",
        ("feedback", "feedback_decay", "error_at"),
    ),
    ("dropout of pixels, weight decay", ("input_dropout", "weight_decay")),
    ("trained to the end, on more of the training set", ("epochs", "validation")),
)


@dataclass(frozen=True)
class Rung:
    """A change, and the settings with it and with all changes before it."""

    name: str
    settings: Settings


def rungs(epochs: int = EPOCHS, **given: Any) -> Iterator[Rung]:
    """Yield the recipe ``notebook``, then each change on top of all before, up to ``deep``.

    Args:
        epochs: Of every rung before the change that says how long ``deep`` is trained.
        given: Settings that are the same on all rungs, such as the data set.
    """
    settings, goal = RECIPES["notebook"].settings, RECIPES[DEFAULT].settings
    settings = replace(settings, epochs=epochs, **given)
    yield Rung("the recipe notebook", settings)
    for name, changed in CHANGES:
        settings = replace(settings, **{field: getattr(goal, field) for field in changed})
        yield Rung(name, settings)


def write_ladder(folder: Path, results: Sequence[tuple[Rung, dict[str, Any]]]) -> str:
    """Write ``ladder.json``, ``ladder.md`` and ``ladder.png``; return the table."""
    lines = ["| change | test accuracy |", "| --- | ---: |"]
    lines += [f"| {r.name} | {100 * got['test_accuracy']:.2f} % |" for r, got in results]
    table = "\n".join(lines) + "\n"
    entries = [entry(rung.settings, got, name=rung.name) for rung, got in results]
    write_rows(folder, "ladder", "rungs", entries, table, _figure(results))
    return table


def _figure(results: Sequence[tuple[Rung, dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(9, 0.6 + 0.42 * len(results)), layout="constrained")
    axes = figure.subplots()
    names = [rung.name for rung, _ in results]
    accuracies = [100 * got["test_accuracy"] for _, got in results]
    bars = axes.barh(names, accuracies, color="#d1495b")
    axes.bar_label(bars, [f"{a:.2f}" for a in accuracies], padding=3)
    axes.axvline(10, color="#555555", linestyle=":")  # chance
    axes.invert_yaxis()
    axes.set(xlim=(0, 120), xlabel="test accuracy, %", title="Each change on top of those above it")
    return figure
