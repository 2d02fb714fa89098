"""What an experiment leaves behind: a table, ``metrics.json``, curves and confusion matrices."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import sklearn
import snntorch
import torch
from matplotlib.figure import Figure

from snn_dfa._version import __version__
from snn_dfa.experiments.files import write_whole
from snn_dfa.experiments.settings import Settings

__all__ = ["table", "write"]

Results = dict[str, dict[str, Any]]

_COLOURS = {"bptt": "#555555", "dfa": "#d1495b", "shallow": "#3d6fb6"}
_STYLES = {"train": ":", "val": "--", "test": "-"}


def table(results: Results) -> str:
    """Return a line for each rule, aligned."""
    rows = [("rule", "test accuracy", "seconds a step", "gap to BPTT", "spikes/neuron/step")]
    bptt = results.get("bptt")
    for rule, r in results.items():
        gap = "-" if bptt is None else f"{100 * (bptt['test_accuracy'] - r['test_accuracy']):+.2f}"
        rows.append(
            (
                rule,
                f"{100 * r['test_accuracy']:.2f} %",
                f"{r['seconds_per_step']:.4f}",
                gap,
                f"{r['spikes_per_neuron_and_step']:.3f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                  for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def write(folder: Path, settings: Settings, results: Results) -> list[Path]:
    """Write all files of a finished experiment and return their paths."""
    figures = {"curves.png": _curves(results)}
    figures |= {f"confusion_{rule}.png": _confusion(rule, r) for rule, r in results.items()}
    metrics = {**results, "settings": settings.as_dict(), "versions": _versions()}
    text = json.dumps(metrics, indent=1).encode()
    write_whole(folder / "metrics.json", lambda file: file.write(text))
    for name, figure in figures.items():
        write_whole(folder / name, lambda file, f=figure: f.savefig(file, format="png", dpi=120))  # type: ignore[misc]
    return [folder / name for name in ("metrics.json", *figures)]


def _versions() -> dict[str, str]:
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
        for rule, r in results.items():
            epochs = [line["epoch"] for line in r["history"]]
            for part, style in _STYLES.items():
                axes.plot(
                    epochs,
                    [line[f"{part}_{what}"] for line in r["history"]],
                    style,
                    color=_COLOURS.get(rule),
                    label=f"{rule}, {part}",
                )
            if what == "accuracy":
                axes.plot(r["best_epoch"], r["test_accuracy"], "o", color=_COLOURS.get(rule))
        axes.set(xlabel="epoch", ylabel=what, title=f"{what}; dot: best epoch by validation"
                 if what == "accuracy" else what)  # fmt: skip
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


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
