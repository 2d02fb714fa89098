"""Time and memory of traces over chunks of a sequence, beside membrane credit over all of it.

    python benchmarks/chunks.py

784-1000-250-100-10 of snnTorch's Leaky over time, batch 128, Poisson spikes. ``trace`` has a
backward pass after each chunk of 25 steps. Times are medians of steps in turn; each memory is of a
process of its own, which is shown the same chunk again and again.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from memory import network
from step import Case
from torch import Tensor
from torch.nn import functional

from snn_dfa import DFA, over_time, reset
from snn_dfa.experiments.memory import resident_megabytes

CHUNK = 25


def _chunks() -> Callable[[list[Tensor], Tensor], None]:
    net = network()
    form = over_time(net, stateful=True)
    DFA(form, credit="trace", output=str(len(net) - 1))

    def run(chunks: list[Tensor], y: Tensor) -> None:
        net.zero_grad()
        reset(net)
        for x in chunks:
            (functional.cross_entropy(form(x).sum(0), y) / len(chunks)).backward()

    return run


def _whole() -> Callable[[list[Tensor], Tensor], None]:
    net = network()
    form = over_time(net)
    DFA(form, output=str(len(net) - 1))

    def run(chunks: list[Tensor], y: Tensor) -> None:
        net.zero_grad()
        functional.cross_entropy(form(torch.cat(chunks)).sum(0), y).backward()

    return run


def _times(steps: int, repeats: int) -> None:
    """Print the milliseconds of both, and their ratio."""
    x, y = Case(steps, 128, (784, 1000, 250, 100, 10), "cpu", "poisson").inputs()
    ms: dict[str, list[float]] = {"membrane": [], "trace": []}
    runs = {"membrane": _whole(), "trace": _chunks()}
    for i in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run(list(x.split(CHUNK)), y)
            if i > 1:
                ms[name].append(1e3 * (time.perf_counter() - start))
    found = {name: statistics.median(each) for name, each in ms.items()}
    print(f"T={steps}: membrane over all steps {found['membrane']:.1f} ms, trace over chunks "
          f"{found['trace']:.1f} ms, {found['trace'] / found['membrane']:.2f}")  # fmt: skip


def _peak(steps: int) -> None:
    """Print the peak of this process in MB."""
    x, y = Case(CHUNK, 128, (784, 1000, 250, 100, 10), "cpu", "poisson").inputs()
    _chunks()([x] * (steps // CHUNK), y)
    print(f"{resident_megabytes():.0f}")


def main() -> None:
    """Print times, then memory."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peak_of:
        _peak(args.peak_of)
        return
    _times(args.steps, args.repeats)
    for steps in (50, 1000):
        command = [sys.executable, __file__, "--peak-of", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"T={steps}: peak {done.stdout.strip()} MB")


if __name__ == "__main__":
    main()
