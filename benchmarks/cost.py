"""Time a training step against the size of what is trained: T, batch, neurons, layers.

    python benchmarks/cost.py --thread-clock --json cost.json

One size is varied at a time, around 64-256-128-64-10 at T=25 and batch 128. The contestants are
back-propagation and DFA, in a loop over time and over whole sequences, interleaved as in
``step.py``. A line on which DFA is the slower one says so. ``docs/figures.py`` draws the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from step import Case, Clock, contestants, interleaved, spread, started

BASE = Case(25, 128, (64, 256, 128, 64, 10), "cpu", "poisson")
NAMES = ("snntorch bptt", "snntorch dfa", "bptt", "dfa")
SIZES = {
    "T": (1, 5, 25, 100, 400, 1000),
    "batch": (1, 8, 32, 128, 512, 1024),
    "neurons": (64, 256, 1024, 4096),
    "layers": (1, 2, 5, 10, 20),
}
_FEWEST, _MOST = 3, 15  # repeats


def case_of(axis: str, size: int) -> Case:
    """Return the case with one size changed; of neurons and layers, that of the hidden layers."""
    if axis == "T":
        return replace(BASE, steps=size)
    if axis == "batch":
        return replace(BASE, batch=size)
    hidden = (size, size) if axis == "neurons" else (100,) * size
    return replace(BASE, sizes=(64, *hidden, 10))


def _timed(
    runs: Mapping[str, Callable[[], object]], seconds: float, clock: Clock
) -> dict[str, list[float]]:
    """Return the milliseconds of each contestant in turn, until the time is over."""
    ms: dict[str, list[float]] = {name: [] for name in runs}
    until, done = time.monotonic() + seconds, 0
    while done < _FEWEST or (done < _MOST and time.monotonic() < until):
        for name, new in interleaved(runs, "cpu", 1, clock).items():
            ms[name] += new
        done += 1
    return ms


def measure(axis: str, sizes: tuple[int, ...], seconds: float, clock: Clock) -> Iterator[dict]:
    """Time each size of an axis, and print the ratios."""
    for size in sizes:
        makers = {name: make for name, make in contestants(case_of(axis, size)).items()}
        makers = {name: makers[name] for name in NAMES}
        runs = started(makers, lambda name, error: print(f"{name}: {error}", file=sys.stderr))
        times = _timed(runs, seconds, clock)
        ms = {name: spread(each) for name, each in times.items()}
        loop = ms["snntorch dfa"]["ms"] / ms["snntorch bptt"]["ms"]
        whole = ms["dfa"]["ms"] / ms["bptt"]["ms"]
        loses = [text for ratio, text in ((loop, "loop"), (whole, "sequence")) if ratio > 1]
        print(f"{axis}={size:<5} DFA / BPTT: loop {loop:.2f}, sequence {whole:.2f}, "
              f"sequence DFA / loop BPTT {ms['dfa']['ms'] / ms['snntorch bptt']['ms']:.2f}, "
              f"{len(times['dfa'])} repeats"
              f"{'; DFA loses: ' if loses else ''}{', '.join(loses)}", flush=True)  # fmt: skip
        yield {"axis": axis, "size": size, "repeats": len(times["dfa"]), "contestants": ms}


def _added(results: list[dict], new: dict) -> list[dict]:
    """Return the results with a new one in its place, in the order of sizes."""
    others = [r for r in results if (r["axis"], r["size"]) != (new["axis"], new["size"])]
    axes = list(SIZES)
    return sorted([*others, new], key=lambda r: (axes.index(r["axis"]), r["size"]))


def main() -> None:
    """Read the options, measure, print, write."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--axes", default=",".join(SIZES), help="of T, batch, neurons, layers")
    p.add_argument("--least", type=int, default=1, help="leave smaller sizes out")
    p.add_argument("--most", type=int, default=4096, help="leave larger sizes out")
    p.add_argument("--seconds", type=float, default=8, help="for each size, but three repeats")
    p.add_argument("--thread-clock", action="store_true", help="one thread, timed by its own clock")
    p.add_argument("--json", type=Path, help="where results go; others in it stay")
    args = p.parse_args()
    clock: Clock = time.perf_counter
    if args.thread_clock:
        torch.set_num_threads(1)
        clock = time.thread_time
    known = args.json is not None and args.json.exists()
    results = json.loads(args.json.read_text())["results"] if known else []
    for axis in args.axes.split(","):
        sizes = tuple(s for s in SIZES[axis] if args.least <= s <= args.most)
        for result in measure(axis, sizes, args.seconds, clock):
            results = _added(results, result)
            if args.json:
                about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
                args.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
