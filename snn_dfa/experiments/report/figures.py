"""The pictures of a report: curves, confusion matrices, spikes of a sample, diagnostics, dots."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snn_dfa.experiments.report.style import (
    INK,
    SOFT,
    colour,
    label_ends,
    percent_axis,
    styled,
)

__all__ = ["confusion", "curves", "diagnostics", "dots", "spikes"]

_WRITTEN = 20  # classes whose counts are written into the confusion matrix
_WIDE = 60  # signs of a name in a line
_PANELS = {
    "gradient_angles": "angle to BPTT's gradient, degrees",
    "norm_ratios": "norm of the gradient over BPTT's",
    "agreement": "cosine of gradients of two batches",
    "feedback_angles": "angle of feedback to weights, degrees",
    "projected_errors": "error sent, root mean square",
    "rates": "spikes a neuron and step",
    "silent": "share of silent neurons",
    "saturated": "share of saturated neurons",
}


@styled
def curves(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw error and loss over epochs: validation solid, training faint, a dot for the test."""
    figure = Figure(figsize=(8, 3.3), layout="constrained")
    error, loss = figure.subplots(1, 2)
    part = _part(results)
    of = {"val": "validation", "test": "test"}[part]
    for axes, what in ((error, "accuracy"), (loss, "loss")):
        ends = {}
        for number, (rule, runs) in enumerate(results.items()):
            tint = colour(rule, number)
            for run in runs:
                _line(axes, run, f"train_{what}", tint, faint=True)
                _line(axes, run, f"{part}_{what}", tint)
                if what == "accuracy":
                    tested = 100 * (1 - run["test_accuracy"])
                    axes.plot(run["best_epoch"], tested, "o", color=tint, markersize=4)
            ends[rule] = (_values(runs[0], f"{part}_{what}")[-1], tint)
        _epoch_axis(axes)
        if what == "accuracy":
            _error_axis(axes)
        label_ends(axes, {rule: end for rule, end in ends.items() if math.isfinite(end[0])})
    error.set_title(f"error, %: {of} solid, training faint,\ntest error of the kept epoch: dot")
    loss.set_title(f"loss: {of} solid, training faint")
    return figure


def _part(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return which part chooses the epoch: validation, or the test part where there is none."""
    lines = (line for runs in results.values() for run in runs for line in run["history"])
    return "val" if all(line.get("val_accuracy") is not None for line in lines) else "test"


def _values(run: Mapping[str, Any], name: str) -> list[float]:
    values = [line[name] for line in run["history"]]
    if name.endswith("accuracy"):
        # No error at all has no place on a logarithmic axis.
        return [100 * (1 - v) if v < 1 else math.nan for v in values]
    return values


def _line(axes: Axes, run: Mapping[str, Any], name: str, tint: str, faint: bool = False) -> None:
    epochs = [line["epoch"] for line in run["history"]]
    width, alpha = (0.9, 0.4) if faint else (1.5, 1.0)
    marker = "." if len(epochs) == 1 else ""
    axes.plot(epochs, _values(run, name), marker=marker, color=tint, linewidth=width, alpha=alpha)


def _epoch_axis(axes: Axes) -> None:
    first, last = axes.get_xlim()
    if last - first < 1:  # a single epoch
        axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _error_axis(axes: Axes) -> None:
    shown = [y for line in axes.lines for y in np.ravel(line.get_ydata()) if y > 0]
    if not shown:
        return
    axes.set_ylim(min(shown) / 1.25, min(max(shown) * 1.25, 100))
    percent_axis(axes)


@styled
def confusion(rule: str, run: Mapping[str, Any]) -> Figure:
    """Draw true classes against predicted ones: shares as shades, counts as numbers."""
    from sklearn.metrics import ConfusionMatrixDisplay  # costs two seconds

    counts = np.array(run["confusion"])
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.grid(False)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    few = len(counts) <= _WRITTEN
    shown = ConfusionMatrixDisplay(shares).plot(
        ax=axes, cmap="Blues", include_values=few, im_kw={"vmin": 0, "vmax": 1}
    )
    if few:
        for text, count in zip(shown.text_.flat, counts.flat, strict=True):
            text.set_text(str(count) if count else "")
            text.set_fontsize(8)
    else:
        every = range(0, len(counts), 1 + len(counts) // _WRITTEN)
        axes.set(xticks=every, yticks=every, xticklabels=every, yticklabels=every)
    bar = shown.im_.colorbar
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{rule}: {100 * run['test_accuracy']:.2f} % of the test set")
    return figure


@styled
def spikes(rule: str, raster: Mapping[str, Any]) -> Figure:
    """Draw the spikes of one sample, layer by layer.

    Args:
        rule: For the title.
        raster: ``class`` of the sample, ``steps`` T, and ``layers``: name to ``neurons``, how many
            there are, ``shown``, how many of these are drawn, and ``fired``, a text for each step
            with the numbers of those that fired.
    """
    layers = raster["layers"]
    heights = [0.5 + math.sqrt(each["shown"]) for each in layers.values()]
    figure = Figure(figsize=(4.6, 1.0 + 0.75 * len(layers)), layout="constrained")
    rows = figure.subplots(len(layers), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (name, layer) in zip(rows[:, 0], layers.items(), strict=True):
        steps = enumerate(layer["fired"], 1)
        events = [(t, int(n)) for t, fired in steps for n in fired.split()]
        if events:
            axes.plot(*zip(*events, strict=True), "s", color=INK, markersize=1.5)
        some = "" if layer["shown"] == layer["neurons"] else f", {layer['shown']} of them"
        axes.set_title(f"{name}: {layer['neurons']} neurons{some}", fontsize=8)
        axes.set(xlim=(0.5, raster["steps"] + 0.5), ylim=(-0.5, layer["shown"] - 0.5), yticks=[])
        axes.grid(False)
    axes.set_xlabel("time step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{rule}: spikes for the first test sample, class {raster['class']}")
    return figure


@styled
def diagnostics(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each quantity over epochs, a line for each layer."""
    panels = {name: title for name, title in _PANELS.items() if entries[-1].get(name)}
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(8, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, title) in zip(grid.flat, panels.items(), strict=False):
        ends = {}
        for number, layer in enumerate(entries[-1][name]):
            points = [(e["epoch"], e[name][layer]) for e in entries if layer in e[name]]
            tint = colour("", number)
            axes.plot(*zip(*points, strict=True), ".-", color=tint, linewidth=1.2)
            ends[layer] = (points[-1][1], tint)
        if name.endswith("angles"):
            axes.axhline(90, color=SOFT, linestyle=":")
        if name in ("silent", "saturated"):
            axes.set_ylim(-0.02, max(0.1, axes.get_ylim()[1]))
        axes.set_title(title)
        _epoch_axis(axes)
        label_ends(axes, {k: e for k, e in ends.items() if math.isfinite(e[0])}, gap=0.13)
    return figure


@styled
def dots(
    parts: Mapping[str, Sequence[tuple[str, float, str]]],
    xlabel: str,
    sort: bool = True,
    width: float = 7.2,
) -> Figure:
    """Draw errors as dots on a logarithmic axis, with their names and numbers.

    Args:
        parts: Title of a panel to its rows: name, error in percent, colour.
        xlabel: Of the axis.
        sort: Whether the smallest error comes first.
        width: In inches.
    """
    count = sum(map(len, parts.values()))
    figure = Figure(figsize=(width, 0.7 + 0.21 * count + 0.25 * len(parts)), layout="constrained")
    heights = [len(part) + 0.4 for part in parts.values()]
    every = [error for part in parts.values() for _, error, _ in part]
    low, high = min(every) / 1.25, max(every) * 1.6
    panels = figure.subplots(len(parts), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (title, part) in zip(panels[:, 0], parts.items(), strict=True):
        rows = sorted(part, key=lambda row: row[1]) if sort else part
        for place, (_, error, tint) in enumerate(rows):
            axes.plot(error, place, "o", color=tint, markersize=5)
            axes.annotate(f"{error:.2f}", (error, place), (6, -3), textcoords="offset points")
        axes.set_yticks(range(len(rows)), [textwrap.fill(name, _WIDE) for name, *_ in rows])
        axes.set(xlim=(low, high), ylim=(len(rows) - 0.3, -0.7), title=title)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        percent_axis(axes, "x")
    axes.set_xlabel(xlabel)
    return figure
