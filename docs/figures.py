"""Draw the figures of the README and the site from the files of figures beside them.

    python docs/figures.py

It writes ``docs/rules/errors.svg`` from ``docs/rules/rules.json``; ``docs/rules.md`` has the
command that made the numbers. Text stays text, and nothing in the file depends on the time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = ["errors", "main"]

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


def errors(rows: list[dict[str, Any]]) -> Figure:
    """Draw the test error of each rule as a dot, networks apart, the best first."""
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


def main() -> None:
    """Draw all figures."""
    rows = json.loads((HERE / "rules" / "rules.json").read_text())["rows"]
    with matplotlib.rc_context(STYLE):
        path = HERE / "rules" / "errors.svg"
        errors(rows).savefig(path, metadata={"Date": None})
        # No blanks at the ends of lines.
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


if __name__ == "__main__":
    main()
