"""Time a training step against the size of what is trained: T, batch, neurons, layers.

    python benchmarks/cost.py --json cost.json --plot cost.svg

One size is varied at a time, around 64-256-128-64-10 at T=25 and batch 128. The contestants are
back-propagation and DFA, in a loop over time and over whole sequences, interleaved as in
``step.py``. A line on which DFA is the slower one says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from step import Case, Clock, contestants, interleaved, spread, started

BASE = Case(25, 128, (64, 256, 128, 64, 10), "cpu", "poisson")
NAMES = ("snntorch bptt", "snntorch dfa", "bptt", "dfa")
LABELS = ("BPTT, loop", "DFA, loop", "BPTT, sequence", "DFA, sequence")
COLOURS = ("#b5651d", "#3d6fb6", "#e0ab76", "#93b5e1")
SIZES = {
    "T": (1, 5, 25, 100, 400, 1000),
    "batch": (1, 8, 32, 128, 512, 1024),
    "neurons": (64, 256, 1024, 4096),
    "layers": (1, 2, 5, 10, 20),
}


def case_of(axis: str, size: int) -> Case:
    """Return the case with one size changed; of neurons and layers, that of the hidden layers."""
    if axis == "T":
        return replace(BASE, steps=size)
    if axis == "batch":
        return replace(BASE, batch=size)
    hidden = (size, size) if axis == "neurons" else (100,) * size
    return replace(BASE, sizes=(64, *hidden, 10))


def measure(
    axis: str, sizes: tuple[int, ...], repeats: int, clock: Clock = time.perf_counter
) -> Iterator[dict]:
    """Time each size of an axis, and print the ratios."""
    for size in sizes:
        case = case_of(axis, size)
        makers = {name: make for name, make in contestants(case).items() if name in NAMES}
        runs = started(makers, lambda name, error: print(f"{name}: {error}", file=sys.stderr))
        times = interleaved(runs, "cpu", repeats, clock)
        ms = {name: spread(each) for name, each in times.items()}
        loop = ms["snntorch dfa"]["ms"] / ms["snntorch bptt"]["ms"]
        whole = ms["dfa"]["ms"] / ms["bptt"]["ms"]
        loses = [text for ratio, text in ((loop, "loop"), (whole, "sequence")) if ratio > 1]
        print(f"{axis}={size:<5} DFA / BPTT: loop {loop:.2f}, sequence {whole:.2f}, "
              f"sequence DFA / loop BPTT {ms['dfa']['ms'] / ms['snntorch bptt']['ms']:.2f}"
              f"{'; DFA loses: ' if loses else ''}{', '.join(loses)}", flush=True)  # fmt: skip
        yield {"axis": axis, "size": size, "case": asdict(case), "contestants": ms}


def plot(results: list[dict], path: Path) -> None:
    """Draw milliseconds against each size."""
    from matplotlib.figure import Figure

    axes = {result["axis"]: None for result in results}
    figure = Figure(figsize=(3.2 * len(axes), 3), layout="constrained")
    for name, ax in zip(axes, figure.subplots(1, len(axes), squeeze=False)[0], strict=True):
        rows = [result for result in results if result["axis"] == name]
        for key, label, colour in zip(NAMES, LABELS, COLOURS, strict=True):
            ms = [row["contestants"][key]["ms"] for row in rows]
            ax.loglog([row["size"] for row in rows], ms, "o-", ms=3, color=colour, label=label)
        ax.set_xlabel({"T": "steps T", "batch": "batch B"}.get(name, f"{name}"))
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms a training step")
    figure.axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Read the options, measure, print, write."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--axes", default=",".join(SIZES), help="of T, batch, neurons, layers")
    p.add_argument("--most", type=int, default=4096, help="leave larger sizes out")
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--thread-clock", action="store_true", help="one thread, timed by its own clock")
    p.add_argument("--json", type=Path)
    p.add_argument("--plot", type=Path)
    args = p.parse_args()
    clock: Clock = time.perf_counter
    if args.thread_clock:
        torch.set_num_threads(1)
        clock = time.thread_time
    results = []
    for axis in args.axes.split(","):
        sizes = tuple(s for s in SIZES[axis] if s <= args.most)
        for result in measure(axis, sizes, args.repeats, clock):
            results.append(result)
            if args.json:
                about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
                args.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
