"""How all pictures look: size, letters, colours, and a dark form for browsers that ask for it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

__all__ = ["COLOURS", "INK", "SOFT", "colour", "drawn", "label_ends", "percent_axis", "styled"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

INK, SOFT, LINE = "#1d2126", "#59636e", "#d8dee4"
#: Of the palette of Okabe and Ito, which people tell apart who do not see all colours.
COLOURS: Mapping[str, str] = {
    "bptt": "#0072b2",
    "dfa": "#d55e00",
    "sign": "#e69f00",
    "target": "#cc79a7",
    "local": "#56b4e9",
    "fa": "#009e73",
    "shallow": SOFT,
}
_CYCLE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
#: What a colour becomes on a dark ground.
_DARK = {
    INK: "#e4e8ec", SOFT: "#9ba6b2", LINE: "#343c45",
    "#0072b2": "#56b4e9", "#d55e00": "#ff8a3d", "#009e73": "#2fc79a",
}  # fmt: skip
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=_CYCLE),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "snn_dfa",
    "savefig.dpi": 160,
}
#: Ticks of a logarithmic axis, by how many times the greatest value is the least.
_TICKS = {
    4: (0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.5, 2, 3, 4, 6, 8, 10, 12, 15, 20, 30, 40, 60, 80, 100),
    30: (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 40, 60, 100),
    math.inf: (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
}


def styled(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function draw in this style."""

    @wraps(draw)
    def inside(*args: _P.args, **named: _P.kwargs) -> _T:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **named)

    return inside


def colour(rule: str, number: int) -> str:
    """Return a rule's colour; one without is told by its number."""
    return COLOURS.get(rule, _CYCLE[number % len(_CYCLE)])


@styled
def drawn(figure: Figure, kind: str) -> bytes:
    """Return a picture as a file of ``png``, ``pdf`` or ``svg``, the same one each time.

    Text of an SVG stays text. Its ground is clear, and where a page is dark its lines are light.
    """
    file = io.BytesIO()
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    figure.savefig(file, format=kind, metadata=dated, transparent=kind == "svg")
    # The next format has the same layout, and needs no time for it.
    figure.set_layout_engine("none")
    return _with_dark(file.getvalue().decode()).encode() if kind == "svg" else file.getvalue()


def _with_dark(svg: str) -> str:
    """Add rules for a dark ground, which go before the colours that stand at each element."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in _DARK.items()
        for what in ("fill", "stroke")
    )
    head, defs, rest = svg.partition("<defs>")
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    lines = f"{head}{style}\n {defs}{rest}".splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"  # no blanks at the ends of lines


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Give an axis of errors in percent a logarithmic scale, with plain numbers at it."""
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    ticks = next(ticks for most, ticks in _TICKS.items() if high / low <= most)
    axis.set_ticks([t for t in ticks if low <= t <= high])
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]], gap: float = 0.075) -> None:
    """Write each line's name behind its end, in its colour; names keep apart.

    Args:
        axes: With its limits set.
        ends: Name to the line's last value and its colour.
        gap: Least distance of two names, as a share of the axis.
    """
    to_axes = axes.transScale + axes.transLimits
    x = axes.get_xlim()[1]
    places = sorted((to_axes.transform((x, y))[1], name) for name, (y, _) in ends.items())
    heights: list[float] = []
    for place, _ in places:
        heights.append(max(place, heights[-1] + gap) if heights else place)
    above = max(heights[-1] - 1.0, 0.0) if heights else 0.0
    for height, (_, name) in zip(heights, places, strict=True):
        at = (1.02, height - above)
        axes.text(*at, name, color=ends[name][1], transform=axes.transAxes, va="center")
