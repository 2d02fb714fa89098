"""Draw the figures of the README and the site from the files of figures beside them.

    python docs/figures.py

It writes ``docs/rules/errors.svg`` from ``docs/rules/rules.json`` and ``docs/depth.svg`` from
``benchmarks/results/learning-depth.json``; ``docs/rules.md`` and ``docs/learning.md`` have the
commands that made the numbers. Text stays text, and nothing in a file depends on the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = ["FIGURES", "depth", "errors", "main"]

HERE = Path(__file__).resolve().parent
# Of the palette of Okabe and Ito, which people tell apart who do not see all colours.
GREY, ORANGE, BLUE = "#555555", "#d55e00", "#0072b2"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "snn_dfa",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def depth(runs: list[dict[str, Any]]) -> Figure:
    """Draw the test accuracy of each rule over the number of hidden layers."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    names = {
        "bptt": "back-propagation", "dfa": "DFA, one line", "fa": "layer by layer, learned",
        "kolen-pollack": "DFA, a learned matrix a layer", "fixed": "DFA, fixed feedback",
        "shallow": "the output layer alone",
    }  # fmt: skip
    colours = [BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", GREY]
    for (rule, name), colour in zip(names.items(), colours, strict=True):
        of = [(int(r["network"].split("-")[1]), r["test"]) for r in runs if r["rule"] == rule]
        axes.plot(*zip(*sorted(of), strict=True), ".-", color=colour, label=name, linewidth=1.2)
    layers = sorted({int(r["network"].split("-")[1]) for r in runs})
    axes.set(xscale="log", xlabel="hidden layers", ylabel="test accuracy, %", ylim=(0, 102))
    axes.set_xticks(layers, layers, minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def errors(table: dict[str, Any]) -> Figure:
    """Draw the test error of each rule as a dot, networks apart, the best first."""
    rows = table["rows"]
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    parts = {
        "784-1000-250-100-10": [r for r in rows if not r["name"].startswith("conv")],
        "12C5-MP2-64C5-MP2-10": [r for r in rows if r["name"].startswith("conv")],
    }
    ratios = [len(part) for part in parts.values()]
    for axes, (title, part) in zip(
        figure.subplots(2, 1, sharex=True, height_ratios=ratios), parts.items(), strict=True
    ):
        for row in sorted(part, key=lambda row: -row["test_accuracy"]):
            name, error = row["name"].removeprefix("conv: "), 100 * (1 - row["test_accuracy"])
            colour = BLUE if name == "bptt" else GREY if name == "shallow" else ORANGE
            axes.plot(error, name, "o", color=colour, markersize=5)
            axes.annotate(f"{error:.2f}", (error, name), (6, -3), textcoords="offset points")
        axes.set(xscale="log", xlim=(1, 45), title=title)
        axes.set_xticks([1, 2, 3, 5, 10, 20, 40], [1, 2, 3, 5, 10, 20, 40], minor=False)
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.3)
        axes.invert_yaxis()
        axes.margins(y=0.12 if len(part) < 6 else 0.04)
        axes.title.set_fontsize(9)
    axes.set_xlabel("test error after two epochs of MNIST, %")
    return figure


#: Figure to what it is drawn from, and by what.
FIGURES: dict[str, tuple[str, Callable[[Any], Figure]]] = {
    "rules/errors.svg": ("rules/rules.json", errors),
    "depth.svg": ("../benchmarks/results/learning-depth.json", depth),
}


def main() -> None:
    """Draw all figures."""
    with matplotlib.rc_context(STYLE):
        for name, (source, draw) in FIGURES.items():
            path = HERE / name
            draw(json.loads((HERE / source).read_text())).savefig(path, metadata={"Date": None})
            # No blanks at the ends of lines.
            lines = path.read_text().splitlines()
            path.write_text("\n".join(line.rstrip() for line in lines) + "\n")


if __name__ == "__main__":
    main()
