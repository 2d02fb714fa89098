"""Draw the figures of the README and the site from the files of numbers beside them.

    python docs/figures.py

`FIGURES` says from which files each figure is drawn. ``docs/rules.md``, ``docs/learning.md`` and
``benchmarks/README.md`` have the commands that made the numbers. Text stays text, and nothing in
the figures depends on the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from snn_dfa.experiments.report.style import COLOURS, drawn, styled
from snn_dfa.experiments.studies.comparison import rules_figure
from snn_dfa.experiments.studies.ladder import ladder_figure

__all__ = ["FIGURES", "main", "results"]

HERE = Path(__file__).resolve().parent
#: Of a card around its picture, in points.
_EDGE = 6
#: Rules of the first figure, from above, and in which colour.
_RULES = {
    "bptt": ("back-propagation", "bptt"),
    "dfa": ("DFA, learned feedback", "dfa"),
    "fixed": ("DFA, fixed feedback", "sign"),
    "shallow": ("output layer alone", "shallow"),
}


@styled
def results(mnist: Any, convolutions: Any, depth: Any) -> Figure:
    """Draw the test accuracy of each seed under four rules in three networks, and the mean."""
    ten = [run for run in depth if run["network"] == "depth-10"]
    panels = {
        "784-1000-10, MNIST, one epoch": mnist["accuracy"],
        "five convolutions, CIFAR-10, 15,000 images": convolutions["accuracy"],
        "ten hidden layers of 100, digits": {
            rule: [run["test"] for run in ten if run["rule"] == rule] for rule in _RULES
        },
    }
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(3, sharex=True), panels.items(), strict=True):
        for place, (rule, (_, tint)) in enumerate(_RULES.items()):
            mean = fmean(found[rule])
            axes.plot(found[rule], [place] * len(found[rule]), "o", color=COLOURS[tint],
                      markersize=3, alpha=0.4)  # fmt: skip
            axes.plot(mean, place, "o", color=COLOURS[tint], markersize=6)
            at = max(*found[rule], mean)
            axes.annotate(f"{mean:.1f}", (at, place), (7, -3), textcoords="offset points")
        axes.set_yticks(range(len(_RULES)), [name for name, _ in _RULES.values()])
        axes.set(xlim=(0, 112), ylim=(len(_RULES) - 0.4, -0.6), title=title)
        axes.set_xticks(range(0, 101, 20))
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
    axes.set_xlabel("test accuracy, %: mean (large dot) and three seeds")
    return figure


#: Contestants of ``cost.py``: whose time, beside whose, in which colour, solid or not.
_COST = (
    ("snntorch dfa", "DFA in the loop", "dfa", "-"),
    ("bptt", "BPTT in over_time", "bptt", "--"),
    ("dfa", "DFA in over_time", "dfa", "--"),
)
_AXES = {"T": "steps T", "batch": "batch B", "neurons": "neurons", "layers": "layers"}


def _apart(sizes: Sequence[int]) -> list[int]:
    """Return those sizes whose names have room side by side on a logarithmic axis."""
    least = (sizes[-1] / sizes[0]) ** 0.14
    kept = [sizes[-1]]
    for size in reversed(sizes):
        if kept[-1] / size > least:
            kept.append(size)
    return kept


@styled
def cost(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the time of a step against each size, in times of back-propagation in the loop."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for axes, (axis, label) in zip(figure.subplots(1, 4, sharey=True), _AXES.items(), strict=True):
        own = [row for row in rows if row["axis"] == axis]
        axes.axhline(1, color=COLOURS["bptt"])
        for name, _, rule, line in _COST:
            ms = [row["contestants"] for row in own]
            ratios = [each[name]["ms"] / each["snntorch bptt"]["ms"] for each in ms]
            sizes = [row["size"] for row in own]
            axes.plot(sizes, ratios, line, marker="o", markersize=3, color=COLOURS[rule])
        axes.set(xscale="log", yscale="log", xlabel=label)
        for lines in (axes.xaxis, axes.yaxis):
            lines.set_major_formatter(lambda value, _: f"{value:g}")
            lines.set_minor_locator(NullLocator())
        axes.set_xticks(_apart([row["size"] for row in own]))
    axes.set_yticks([0.1, 0.2, 0.5, 1, 2])
    figure.axes[0].set_ylabel("time / BPTT in the loop")
    names = ["BPTT in the loop", *(name for _, name, *_ in _COST)]
    figure.legend(figure.axes[0].lines, names, loc="outside upper center", ncols=4)
    return figure


_RESULTS = HERE.parent / "benchmarks" / "results"
#: Figure to the files that it is drawn from, and by what.
FIGURES: dict[str, tuple[tuple[Path, ...], Callable[..., Figure]]] = {
    "rules/errors.svg": ((HERE / "rules/rules.json",), lambda table: rules_figure(table["rows"])),
    "ladder/errors.svg": (
        (HERE / "ladder/ladder.json",),
        lambda table: ladder_figure(table["rungs"]),
    ),
    "results.svg": (
        tuple(_RESULTS / f"{name}.json" for name in ("mnist", "deep_convolutions_whole", "depth")),
        results,
    ),
    "cost.svg": ((_RESULTS / "cost.json",), lambda table: cost(table["results"])),
}


def on_card(svg: str) -> str:
    """Return the picture on a card, since a light page may be shown by a browser that is dark."""
    width, height = (float(n) for n in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    box = (-_EDGE, -_EDGE, width + 2 * _EDGE, height + 2 * _EDGE)
    x, y, w, h = (f"{number:g}" for number in box)
    style = ".card{fill:#fff}@media (prefers-color-scheme: dark){.card{fill:#16191f}}"
    card = f'<rect class="card" x="{x}" y="{y}" width="{w}" height="{h}" rx="6"/>'
    svg = re.sub(r'viewBox="[^"]+"', f'viewBox="{x} {y} {w} {h}"', svg, count=1)
    return svg.replace("<style>", f"<style>{style}", 1).replace("</defs>", f"</defs>\n {card}", 1)


def main() -> None:
    """Draw all figures."""
    for name, (sources, draw) in FIGURES.items():
        figure = draw(*(json.loads(source.read_text()) for source in sources))
        (HERE / name).write_text(on_card(drawn(figure, "svg").decode()))


if __name__ == "__main__":
    main()
