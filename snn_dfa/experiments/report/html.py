"""``report.html``: an experiment to read, in one file that asks nothing of the web.

Figures lie in it as vector data, there is no script, and wide tables scroll inside their box, with
a shadow where they go on. In the dark the page and its figures are dark.
"""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from snn_dfa.experiments.files import file_name
from snn_dfa.experiments.report.description import MEANINGS, Description

__all__ = ["Tables", "render"]

#: ``accuracy``, ``speed``, ``costs`` and ``frozen``: rows of cells, the head first. The last two
#: may be left out.
Tables = Mapping[str, Sequence[Sequence[str]]]


def render(
    described: Description,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    tables: Tables,
    figures: Mapping[str, bytes],
    versions: Mapping[str, str],
) -> str:
    """Return the whole page.

    Args:
        described: What was trained on what.
        results: Rule to the results of its runs, one for each seed.
        tables: Of accuracies, of speeds and of what training costs.
        figures: Name to picture, as SVG: ``curves``, and with a rule's name behind it
            ``confusion_``, ``spikes_`` and ``diagnostics_``.
        versions: Name to version of what made the numbers.
    """
    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    firsts = {rule: runs[0] for rule, runs in results.items()}
    differing = [s for s in described.listed if s.value != s.usual]
    return environment.get_template("report.html.jinja").render(
        described=described,
        facts=_facts(described, results),
        tables={"costs": (), "frozen": (), **tables},
        figures={name: base64.b64encode(svg).decode() for name, svg in figures.items()},
        meanings=[(rule, MEANINGS[rule]) for rule in results if rule in MEANINGS],
        warnings=[(rule, text) for rule, r in firsts.items() for text in r["warnings"].values()],
        seeds=_seeds(results),
        differing=[(s.name, s.value, s.usual, s.help) for s in differing],
        others=[(s.name, s.value, s.help) for s in described.listed if s not in differing],
        rules=[_of_rule(rule, run) for rule, run in firsts.items()],
        versions=list(versions.items()),
    ) + "\n"  # fmt: skip


def _facts(
    described: Description, results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[tuple[str, str]]:
    """Yield how the results came about."""
    runs = [run for of_rule in results.values() for run in of_rule]
    first = runs[0]
    if described.command:
        yield "command", described.command
    yield "date", datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    trained = first["epoch_seconds"][0]["samples"] if first["epoch_seconds"] else 0
    yield "data", f"{trained:,} samples to train on, {first['test_samples']:,} to test"
    layers = ", ".join(f"{name} {count:,}" for name, count in first["neurons"].items())
    yield "network", f"{first['parameters']:,} parameters; neurons: {layers}"
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    yield "seeds" if "," in seeds else "seed", seeds
    seconds = sum(epoch["epoch"] for run in runs for epoch in run["epoch_seconds"])
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    yield "training time", f"{_duration(seconds)} for {count}, on {described.device}"


def _duration(seconds: float) -> str:
    """Return a time to read.

    Example:
        >>> _duration(45.2), _duration(754), _duration(7_400)
        ('45 s', '12 min 34 s', '2 h 03 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _seeds(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Return the table of seeds, its head first; empty where there is one seed alone."""
    if all(len(runs) == 1 for runs in results.values()):
        return []
    seeds = sorted({run["seed"] for runs in results.values() for run in runs})
    rows = [["rule", *(f"seed {seed}" for seed in seeds)]]
    for rule, runs in results.items():
        of = {run["seed"]: _percent(run["test_accuracy"]) for run in runs}
        rows.append([rule, *(of.get(seed, "-") for seed in seeds)])
    return rows


def _of_rule(rule: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one rule did: its classes and its layers."""
    return {
        "name": rule,
        "file": file_name(rule),
        "accuracy": _percent(run["test_accuracy"]),
        "best_epoch": run["best_epoch"],
        "epochs": len(run["history"]),
        "validation": _percent(run["val_accuracy"]),
        "classes": list(_classes(run["confusion"])),
        "layers": [
            [layer, f"{run['neurons'][layer]:,}", f"{rate:.3f}", _percent(run["silent"][layer]),
             _percent(run["saturated"][layer])]
            for layer, rate in run["firing_rates"].items()
        ],
    }  # fmt: skip


def _classes(confusion: Sequence[Sequence[int]]) -> Iterator[list[str]]:
    """Yield for each class how many there are, how many are right, and the commonest error."""
    for true, counts in enumerate(confusion):
        wrong = [0 if true == taken else count for taken, count in enumerate(counts)]
        most = max(wrong)
        total = sum(counts)
        yield [
            str(true),
            str(total),
            _percent(counts[true] / total) if total else "-",
            f"{wrong.index(most)} ({most})" if most else "-",
        ]


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.2f} %"
