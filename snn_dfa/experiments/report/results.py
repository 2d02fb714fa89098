"""What an experiment leaves behind: a table, ``metrics.json``, figures and ``report.html``."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import snntorch
import torch
from matplotlib.figure import Figure

from snn_dfa import __version__
from snn_dfa.diagnostics import TrainingCost
from snn_dfa.experiments.files import atomic_write, file_name
from snn_dfa.experiments.report import figures as draw
from snn_dfa.experiments.report.description import Description
from snn_dfa.experiments.report.html import render
from snn_dfa.experiments.report.style import drawn
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.train.metrics import interval

__all__ = [
    "Results", "aligned", "entry", "frozen_name", "frozen_rows", "summary", "table", "versions",
    "write", "write_figure", "write_rows", "write_text",
]  # fmt: skip

#: Rule to the results of its runs, one for each seed.
Results = dict[str, list[dict[str, Any]]]
#: Rule to what a training step costs.
Costs = Mapping[str, TrainingCost]

_FORMATS = ("png", "pdf", "svg")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, standard deviation and worst of the test accuracy over seeds, and the rest.

    The interval is that of the mean for the number of test samples of one run.
    """
    accuracies = [run["test_accuracy"] for run in runs]
    times, epochs = ([run[f"{what}_to_97"] for run in runs] for what in ("seconds", "epochs"))
    return {
        "seeds": [run["seed"] for run in runs],
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "worst": min(accuracies),
        "interval": interval(statistics.fmean(accuracies), runs[0]["test_samples"]),
        "top5": statistics.fmean(run["test_top5"] for run in runs),
        "samples_per_second": statistics.fmean(run["samples_per_second"] for run in runs),
        "seconds_to_97": None if None in times else statistics.fmean(times),
        "epochs_to_97": None if None in epochs else statistics.fmean(epochs),
    }


def table(results: Results) -> str:
    """Return a line for each rule, aligned, and which of them cannot be told from the best.

    Spikes and operations are those of a sample.
    """
    lines = [aligned(_rows(results)), *_alike(results)]
    frozen = frozen_rows(results)
    if frozen:
        lines += ["what a block's learning is worth, one frozen at a time:", aligned(frozen)]
    return "\n".join(lines)


def frozen_name(rule: str, block: str) -> str:
    """Return what a rule is called whose block is frozen."""
    return f"{rule} ({block} frozen)"


def frozen_rows(results: Results) -> list[list[str]]:
    """Return the table of rules beside the same with a block frozen, its head first."""
    rows = []
    for rule, runs in results.items():
        full = summary(runs)["mean"]
        for name, others in results.items():
            block = name.removeprefix(f"{rule} (").removesuffix(" frozen)")
            if name == frozen_name(rule, block):
                without = summary(others)["mean"]
                gain = f"{100 * (full - without):+.2f}"
                rows.append([rule, block, _percent(full), _percent(without), gain])
    head = ["rule", "block", "all learn", "block frozen", "points that its learning adds"]
    return [head, *rows] if rows else []


def _rows(results: Results) -> list[list[str]]:
    """Return the table's cells, its head first."""
    pairs = zip(_accuracies(results), _speeds(results), strict=True)
    return [[*accuracy, *speed[1:]] for accuracy, speed in pairs]


def _accuracies(results: Results) -> list[list[str]]:
    """Return how good each rule is, the head first."""
    several = any(len(runs) > 1 for runs in results.values())
    ranked = any(len(run["confusion"]) > 5 for runs in results.values() for run in runs)
    samples = next(iter(results.values()))[0]["test_samples"]
    head = ["rule", "test accuracy", "error", f"95 % of n={samples}", "gap to BPTT"]
    if ranked:
        head.insert(4, "top-5")
    if several:
        head[1:2] = ["mean", "std", "worst", "seeds"]
    return [head, *(_accuracy(results, rule, several, ranked) for rule in results)]


def _accuracy(results: Results, rule: str, several: bool, ranked: bool) -> list[str]:
    runs, bptt = results[rule], results.get("bptt")
    of = summary(runs)
    low, high = of["interval"]
    row = [
        rule,
        _percent(of["mean"]),
        _percent(1 - of["mean"]),
        f"{100 * low:.1f} - {100 * high:.1f}",
        "-" if bptt is None else f"{100 * (summary(bptt)['mean'] - of['mean']):+.2f}",
    ]
    if ranked:
        row.insert(4, _percent(of["top5"]))
    if several:
        row[2:2] = [_percent(of["std"]), _percent(of["worst"]), str(len(runs))]
    return row


def _speeds(results: Results) -> list[list[str]]:
    """Return how fast each rule trains, and what a sample costs, the head first."""
    head = [
        "rule", "samples a second", "seconds a step", "epochs to 97 %", "seconds to 97 %",
        "spikes", "synaptic operations",
    ]  # fmt: skip
    rows = []
    for rule, runs in results.items():
        of = summary(runs)
        rows.append([
            rule,
            f"{of['samples_per_second']:,.0f}",
            f"{statistics.fmean(run['seconds_per_step'] for run in runs):.4f}",
            *("-" if of[f"{what}_to_97"] is None else f"{of[f'{what}_to_97']:.0f}"
              for what in ("epochs", "seconds")),
            *(f"{statistics.fmean(run[f'{what}_per_sample'] for run in runs):,.0f}"
              for what in ("spikes", "synaptic_operations")),
        ])  # fmt: skip
    return [head, *rows]


def _alike(results: Results) -> list[str]:
    """Say which rules lie within the interval of the best: too few samples to tell them apart."""
    summaries = {rule: summary(runs) for rule, runs in results.items()}
    best = max(summaries, key=lambda rule: summaries[rule]["mean"])
    low = summaries[best]["interval"][0]
    alike = [r for r, of in summaries.items() if r != best and of["mean"] >= low]
    if not alike:
        return []
    samples = results[best][0]["test_samples"]
    return [f"within the 95 % interval of {best} on {samples} test samples: {', '.join(alike)}"]


def cost_rows(costs: Costs) -> list[list[str]]:
    """Return the table of what a training step of a batch costs, its head first."""
    if not costs:
        return []
    head = [
        "rule", "kept, MB", "feedback, kB", "weights transported, kB", "chain after the loss",
        "forward, 10^6 MAC + AC", "backward", "update", "energy, mJ",
    ]  # fmt: skip
    rows = [
        [
            rule,
            f"{(of.kept_bytes + of.trace_bytes) / 1e6:.2f}",
            f"{of.feedback_bytes / 1e3:.1f}",
            f"{of.transport_bytes / 1e3:.1f}",
            str(of.chain) if of.waits else f"{of.chain}, unlocked",
            *(f"{part.macs / 1e6:.1f} + {part.acs / 1e6:.1f}"
              for part in (of.forward, of.backward, of.update)),
            f"{1e3 * of.energy():.2f}",
        ]
        for rule, of in costs.items()
    ]  # fmt: skip
    return [head, *rows]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def aligned(rows: list[list[str]]) -> str:
    """Return rows of cells as columns of text, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width)
                  for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def write(
    folder: Path, described: Description, results: Results, costs: Costs | None = None
) -> list[Path]:
    """Write all files of an experiment and return their paths, those to look at first."""
    write_metrics(folder, described, results, costs)
    firsts = {rule: runs[0] for rule, runs in results.items()}
    figures = {"curves": draw.curves(results)}
    for rule, run in firsts.items():
        name = file_name(rule)
        figures[f"confusion_{name}"] = draw.confusion(rule, run)
        if run["raster"]["layers"]:
            figures[f"spikes_{name}"] = draw.spikes(rule, run["raster"])
        if run["diagnostics"]:
            figures[f"diagnostics_{name}"] = draw.diagnostics(run["diagnostics"])
    pictures = {stem: write_figure(folder / f"{stem}.png", f) for stem, f in figures.items()}
    tables = {
        "accuracy": _accuracies(results), "speed": _speeds(results),
        "costs": cost_rows(costs or {}), "frozen": frozen_rows(results),
    }  # fmt: skip
    html = render(described, results, tables, pictures, versions())
    write_text(folder / "report.html", html)
    names = ("report.html", "metrics.json", *(f"{stem}.png" for stem in figures))
    return [folder / name for name in names]


def write_metrics(
    folder: Path, described: Description, results: Results, costs: Costs | None = None
) -> None:
    """Write ``metrics.json``.

    It has the result of the first seed under the rule's name, and with several seeds a summary and
    the other seeds' results under ``over_seeds``.
    """
    over_seeds = {r: {**summary(runs), "runs": runs} for r, runs in results.items()}
    metrics = {
        **{rule: runs[0] for rule, runs in results.items()},
        "over_seeds": {} if all(len(runs) == 1 for runs in results.values()) else over_seeds,
        **described.settings,
        "costs": {r: {**asdict(c), "joules": c.energy()} for r, c in (costs or {}).items()},
        "versions": versions(),
    }
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1))


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


def write_figure(path: Path, figure: Figure) -> bytes:
    """Write a picture as PNG, PDF and SVG, whole or not at all; return the SVG."""
    pictures = {kind: drawn(figure, kind) for kind in _FORMATS}
    for kind, picture in pictures.items():
        _write_bytes(path.with_suffix(f".{kind}"), picture)
    return pictures["svg"]


def _write_bytes(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))


def versions() -> dict[str, str]:
    """Return what the numbers were made with."""
    return {
        "snn_dfa": __version__,
        "snntorch": snntorch.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
        "scikit-learn": metadata.version("scikit-learn"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }
