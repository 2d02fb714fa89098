"""Draw the figures of the README and the site from the files of numbers beside them.

    python docs/figures.py

It draws ``docs/rules/errors.svg`` from ``docs/rules/rules.json``, ``docs/ladder/errors.svg`` from
``docs/ladder/ladder.json``, ``docs/recipes.svg`` from the tables of ``docs/learning.md``, and
``docs/cost.svg`` from ``benchmarks/results/cost.json``. ``docs/rules.md``, ``docs/learning.md`` and
``benchmarks/README.md`` have the commands that made the numbers. Text stays text, and nothing in
the files depends on the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from snn_dfa.experiments.report.figures import dots
from snn_dfa.experiments.report.style import COLOURS, drawn, styled
from snn_dfa.experiments.studies.comparison import rules_figure
from snn_dfa.experiments.studies.ladder import ladder_figure

__all__ = ["FIGURES", "main", "recipes"]

HERE = Path(__file__).resolve().parent
#: Of a card around its picture, in points.
_EDGE = 6
#: Rows of the first table of ``learning.md``, by their place: panel, name, rule.
_ROWS = (
    ("784-1000-250-100-10", "DFA, learned (product)", "dfa"),
    ("784-1000-250-100-10", "DFA, learned (matrices)", "dfa"),
    ("784-1000-250-100-10", "DFA, fixed", "dfa"),
    ("784-1000-250-100-10", "BPTT", "bptt"),
    ("784-1000-10", "DFA, learned (product)", "dfa"),
    ("12C5-MP2-64C5-MP2-10", "DFA, learned (matrices)", "dfa"),
)


def recipes(page: str) -> Figure:
    """Draw the mean test errors of the first table of ``learning.md``."""
    table = re.findall(r"^\| .*? \| .*? \| (\d) \| ([\d.]+) \| ", page, re.M)[: len(_ROWS)]
    parts: dict[str, list[tuple[str, float, str]]] = {}
    for (seeds, mean), (panel, name, rule) in zip(table, _ROWS, strict=True):
        assert seeds == "3", "the rows of three seeds come first"
        parts.setdefault(panel, []).append((name, 100 - float(mean), COLOURS[rule]))
    return dots(parts, "test error on MNIST, %, mean of 3 seeds", width=4.4)


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


#: Figure to what it is drawn from, and by what.
FIGURES: dict[str, tuple[str, Callable[[Any], Figure]]] = {
    "rules/errors.svg": ("rules/rules.json", lambda table: rules_figure(table["rows"])),
    "ladder/errors.svg": ("ladder/ladder.json", lambda table: ladder_figure(table["rungs"])),
    "recipes.svg": ("learning.md", recipes),
    "cost.svg": ("../benchmarks/results/cost.json", lambda table: cost(table["results"])),
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
    for name, (source, draw) in FIGURES.items():
        text = (HERE / source).read_text()
        read = json.loads(text) if source.endswith(".json") else text
        (HERE / name).write_text(on_card(drawn(draw(read), "svg").decode()))


if __name__ == "__main__":
    main()
