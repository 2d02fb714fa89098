"""From the recipe ``notebook`` to ``deep``, one change at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from snn_dfa.experiments.recipes import DEFAULT, RECIPES, fitted
from snn_dfa.experiments.report.figures import dots
from snn_dfa.experiments.report.results import entry, write_rows
from snn_dfa.experiments.report.style import COLOURS
from snn_dfa.experiments.settings import Settings

__all__ = ["Rung", "ladder_figure", "rungs", "write_ladder"]


#: Epochs of a rung, so that all are trained alike; only the last is trained to its recipe's end.
EPOCHS = 5


@dataclass(frozen=True)
class Change:
    """A change in words: settings that become those of ``deep`` in it, and others by value."""

    name: str
    to_deep: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def made(self, settings: Settings) -> Settings:
        """Return the settings with it."""
        goal = RECIPES[DEFAULT].settings
        values = {name: getattr(goal, name) for name in self.to_deep}
        return replace(settings, **values, **self.values)


#: In their order. The first changes the learning rate alone; later, where loss or optimiser
#: change, their rate changes with them.
CHANGES: Sequence[Change] = (
    Change("a learning rate of 10 in place of 0.1", values={"lr": 10.0}),
    Change("pixels as a constant current", ("encoding", "max_rate")),
    Change("PyTorch's first weights and biases", ("weights", "biases")),
    Change(
        "snn.Leaky, threshold 1, a memory shorter than the sequence",
        ("neuron", "threshold", "beta"),
    ),
    Change("batch normalisation of the current", ("normalize",)),
    Change("10 steps", ("steps",)),
    Change(
        "cross entropy of spike counts, a learning rate of 0.1",
        ("loss", "temperature"),
        {"lr": 0.1},
    ),
    Change("Adam, a learning rate of 0.003", ("optimizer", "lr")),
    Change("feedback scaled by the layer's size", ("feedback_std",)),
    Change("credit through the membrane, a surrogate of slope 5", ("credit", "slope")),
    Change("learning rate up and down in one cycle", ("schedule", "lr_decay", "decay_every")),
    Change(
        "feedback that learns, with the weights' rate; the error at the outputs' current",
        ("feedback", "feedback_decay", "error_at"),
    ),
    Change("dropout of pixels, weight decay", ("input_dropout", "weight_decay")),
    Change("trained to the end, on more of the training set", ("epochs", "validation")),
)


@dataclass(frozen=True)
class Rung:
    """A change, and the settings with it and with all changes before it."""

    name: str
    settings: Settings

    #: Whether it is trained as long as the recipe ``deep`` is.
    to_the_end: bool = False

    def fitted(self, samples: int, image: tuple[int, ...]) -> Rung:
        """Return it with the epochs and the dropout that it has for such data."""
        given = () if self.to_the_end else ("epochs",)
        return replace(self, settings=fitted(DEFAULT, self.settings, samples, image, given))


def rungs(epochs: int = EPOCHS, **given: Any) -> Iterator[Rung]:
    """Yield the recipe ``notebook``, then each change on top of all before, up to ``deep``.

    Args:
        epochs: Of every rung before the change that says how long ``deep`` is trained.
        given: Settings to begin with, such as the data set; a change sets its own over them.
    """
    settings = replace(RECIPES["notebook"].settings, epochs=epochs, **given)
    yield Rung("the recipe notebook", settings)
    for change in CHANGES:
        settings = change.made(settings)
        yield Rung(change.name, settings, to_the_end="epochs" in change.to_deep)


def write_ladder(folder: Path, results: Sequence[tuple[Rung, dict[str, Any]]]) -> str:
    """Write ``ladder.json``, ``ladder.md`` and ``ladder.png``; return the table."""
    lines = ["| change | test accuracy |", "| --- | ---: |"]
    lines += [f"| {r.name} | {100 * got['test_accuracy']:.2f} % |" for r, got in results]
    table = "\n".join(lines) + "\n"
    entries = [entry(rung.settings, got, name=rung.name) for rung, got in results]
    write_rows(folder, "ladder", "rungs", entries, table, _figure(results))
    return table


def _figure(results: Sequence[tuple[Rung, dict[str, Any]]]) -> Figure:
    return ladder_figure([{"name": rung.name, **got} for rung, got in results])


def ladder_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the test error of each rung, from the rows of ``ladder.json``."""
    errors = [(r["name"], 100 * (1 - r["test_accuracy"]), COLOURS["dfa"]) for r in rows]
    chance = 100 * (1 - 1 / len(rows[0]["confusion"]))
    title = f"each change is added to those above (chance: {chance:.0f} %)"
    return dots({title: errors}, "test error, %", sort=False)
