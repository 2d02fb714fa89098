"""What an experiment leaves behind: a table, ``metrics.json``, figures and ``report.html``."""

from __future__ import annotations

import io
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import sklearn
import snntorch
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snn_dfa import __version__
from snn_dfa.experiments.files import atomic_write
from snn_dfa.experiments.report.html import render
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.train import diagnose

__all__ = [
    "Results", "entry", "summary", "table", "versions",
    "write", "write_figure", "write_rows", "write_text",
]  # fmt: skip

#: Rule to the results of its runs, one for each seed.
Results = dict[str, list[dict[str, Any]]]

_COLOURS = {
    "bptt": "#555555",
    "dfa": "#d1495b",
    "sign": "#e08e45",
    "target": "#8a6fb0",
    "fa": "#3f9b6d",
    "shallow": "#3d6fb6",
}
_STYLES = {"train": ":", "val": "--", "test": "-"}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, standard deviation and worst of the test accuracy over seeds, and the time."""
    accuracies = [run["test_accuracy"] for run in runs]
    times = [run["seconds_to_97"] for run in runs]
    return {
        "seeds": [run["seed"] for run in runs],
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "worst": min(accuracies),
        "seconds_to_97": None if None in times else statistics.fmean(times),
    }


def table(results: Results) -> str:
    """Return a line for each rule, aligned; spikes and operations are those of a sample."""
    return _aligned(_rows(results))


def _rows(results: Results) -> list[list[str]]:
    """Return the table's cells, its head first."""
    several = any(len(runs) > 1 for runs in results.values())
    head = ["rule", "test accuracy", "gap to BPTT", "seconds a step", "seconds to 97 %",
            "spikes", "synaptic operations"]  # fmt: skip
    if several:
        head[1:2] = ["mean", "std", "worst", "seeds"]
    rows = [head]
    bptt = results.get("bptt")
    for rule, runs in results.items():
        of = summary(runs)
        gap = "-" if bptt is None else f"{100 * (summary(bptt)['mean'] - of['mean']):+.2f}"
        to_97 = "-" if of["seconds_to_97"] is None else f"{of['seconds_to_97']:.0f}"
        step = statistics.fmean(run["seconds_per_step"] for run in runs)
        spent = (
            statistics.fmean(run[f"{what}_per_sample"] for run in runs)
            for what in ("spikes", "synaptic_operations")
        )
        costs = [f"{each:,.0f}" for each in spent]
        row = [rule, _percent(of["mean"]), gap, f"{step:.4f}", to_97, *costs]
        if several:
            row[2:2] = [_percent(of["std"]), _percent(of["worst"]), str(len(runs))]
        rows.append(row)
    return rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _aligned(rows: list[list[str]]) -> str:
    """Return rows of cells as columns of text, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width)
                  for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def write(folder: Path, recipe: str, settings: Settings, results: Results) -> list[Path]:
    """Write all files of an experiment and return their paths.

    ``metrics.json`` has the result of the first seed under the rule's name, and with several seeds
    a summary and the other seeds' results under ``over_seeds``.
    """
    firsts = {rule: runs[0] for rule, runs in results.items()}
    figures = {"curves.png": _curves(results)}
    figures |= {f"confusion_{rule}.png": _confusion(rule, r) for rule, r in firsts.items()}
    figures |= {
        f"diagnostics_{rule}.png": diagnose.figure(r["diagnostics"])
        for rule, r in firsts.items()
        if r["diagnostics"]
    }
    over_seeds = {r: {**summary(runs), "runs": runs} for r, runs in results.items()}
    metrics = {
        **firsts,
        "over_seeds": {} if all(len(runs) == 1 for runs in results.values()) else over_seeds,
        "recipe": recipe,
        "settings": settings.as_dict(),
        "versions": versions(),
    }
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1))
    pictures = {name: _png(drawn) for name, drawn in figures.items()}
    for name, png in pictures.items():
        _write_bytes(folder / name, png)
    stems = {Path(name).stem: png for name, png in pictures.items()}
    html = render(recipe, settings, results, _rows(results), stems, versions())
    write_text(folder / "report.html", html)
    return [folder / name for name in ("report.html", "metrics.json", *figures)]


def write_rows(
    folder: Path, stem: str, rows: str, entries: list[dict[str, Any]], table: str, figure: Figure
) -> None:
    """Write a table as ``stem.md``, what it was made of as ``.json``, its picture as ``.png``."""
    found = {rows: entries, "versions": versions()}
    write_text(folder / f"{stem}.json", json.dumps(found, indent=1))
    write_text(folder / f"{stem}.md", table)
    write_figure(folder / f"{stem}.png", figure)


def entry(settings: Settings, got: dict[str, Any], **said: str) -> dict[str, Any]:
    """Return a row's result with its settings and what is said of it."""
    of = settings.as_dict()
    del of["data_root"]  # where the data lay is no part of the result
    return {**said, "settings": of, **got}


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    _write_bytes(path, text.encode())


def write_figure(path: Path, figure: Figure) -> None:
    """Write a picture whole or not at all."""
    _write_bytes(path, _png(figure))


def _write_bytes(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()


def versions() -> dict[str, str]:
    """Return what the numbers were made with."""
    return {
        "snn_dfa": __version__,
        "snntorch": snntorch.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def _curves(results: Results) -> Figure:
    """Accuracy and loss over epochs; a rule has a colour, a part of the data a line style."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        for rule, runs in results.items():
            for run in runs:
                _plot_run(axes, what, run, rule, label=run is runs[0])
        axes.set(xlabel="epoch", ylabel=what, title=f"{what}; dot: the epoch that is tested"
                 if what == "accuracy" else what)  # fmt: skip
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


def _plot_run(axes: Axes, what: str, run: dict[str, Any], rule: str, label: bool) -> None:
    colour, epochs = _COLOURS.get(rule), [line["epoch"] for line in run["history"]]
    for part, style in _STYLES.items():
        values = [line[f"{part}_{what}"] for line in run["history"]]
        text = f"{rule}, {part}" if label else None
        axes.plot(epochs, values, style, color=colour, label=text, linewidth=1.2)
    if what == "accuracy":
        axes.plot(run["best_epoch"], run["test_accuracy"], "o", color=colour)


def _confusion(rule: str, result: dict[str, Any]) -> Figure:
    counts = np.array(result["confusion"])
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set(
        xlabel="predicted",
        ylabel="true",
        xticks=range(len(counts)),
        yticks=range(len(counts)),
        title=f"{rule}: {100 * result['test_accuracy']:.2f} % of the test set",
    )
    return figure
