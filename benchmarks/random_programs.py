"""Run random user programs with DFA, and compare each gradient with the definition's.

    python benchmarks/random_programs.py --programs 20000 --seed 0 --jobs 2 --shrink

The programs and the oracle are those of the tests. A table says how many came out equal, how many
were refused with an error of the library, and how many were wrong, or crashed, for each choice that
a program makes. With ``--shrink`` it prints, for each distinct failure, the smallest program that
fails alike, in a form that ``tests/support/programs/`` evaluates.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "attach"), str(ROOT / "tests" / "support")]

import programs  # noqa: E402
import torch  # noqa: E402
from program_check import (  # noqa: E402
    CRASHED,
    EQUAL,
    FAILURES,
    INVALID,
    REFUSED,
    WRONG,
    Outcome,
    check,
    shrink,
)

KINDS = (EQUAL, REFUSED, WRONG, CRASHED, INVALID)
CHOICES = {**programs.CHOICES, **programs.LAYER_CHOICES}
Result = tuple[int, Outcome]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others count up")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--features",
        default="",
        help=f"choices that may differ from plain, of {', '.join(CHOICES)}; all by default",
    )
    parser.add_argument(
        "--plain", type=float, default=0.6, help="how often a choice stays plain, 0 to 1"
    )
    parser.add_argument("--device", default="cpu", help="where the programs run")
    parser.add_argument("--shrink", action="store_true", help="print the smallest failures")
    parser.add_argument(
        "--core",
        default=os.environ.get("SNN_DFA_CORE", "snn_dfa:DFA"),
        help="what is attached, as module:Class; also read from SNN_DFA_CORE",
    )
    given = parser.parse_args()
    given.features = frozenset(filter(None, given.features.split(",")))
    if unknown := given.features - CHOICES.keys():
        parser.error(f"--features: no such choice: {', '.join(sorted(unknown))}")
    return given


def core(name: str) -> Callable[..., Any]:
    """Import what is attached."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def run_one(seed: int, given: argparse.Namespace) -> Result:
    """Return the outcome of a seed's program."""
    torch.set_default_device(given.device)
    return seed, check(programs.draw(seed, given.plain, given.features), core(given.core))


def run_all(given: argparse.Namespace) -> Iterator[Result]:
    """Run all programs, in this process or several, and say how far it is."""
    seeds = range(given.seed, given.seed + given.programs)
    one = partial(run_one, given=given)
    if given.jobs == 1:
        yield from _counted(map(one, seeds), len(seeds))
        return
    start = multiprocessing.get_context("fork" if given.device == "cpu" else "spawn")
    with ProcessPoolExecutor(given.jobs, start, torch.set_num_threads, (1,)) as pool:
        yield from _counted(pool.map(one, seeds, chunksize=20), len(seeds))


def _counted(results: Iterable[Result], n: int) -> Iterator[Result]:
    start, last = time.monotonic(), 0.0
    for i, result in enumerate(results, 1):
        if time.monotonic() - last > 5 and sys.stderr.isatty():
            last = time.monotonic()
            print(f"\r{i} of {n}, {last - start:.0f} s", end="", file=sys.stderr)
        yield result


def message_kind(message: str) -> str:
    """Return a message without names and numbers, so that like ones count as one."""
    short = re.sub(r"'[^']*'", "'..'", message)
    short = re.sub(r"\[[^\]]*\]|\([^)]*\)|\d+(\.\d+)?(e-?\d+)?", "..", short)
    # Of a wrong gradient it matters that it is wrong, not which parameters' it is.
    return re.sub(r"(gradient of) .*", r"\1 ..", short)[:110]


def print_counts(results: list[Result]) -> None:
    """Print how many programs came to what, and what was said."""
    counts = Counter(outcome.kind for _, outcome in results)
    spike = sum(outcome.spikes for _, outcome in results)
    print(f"{len(results)} programs, all hidden layers spike in {spike}")
    print("  ".join(f"{kind}: {counts[kind]}" for kind in KINDS))
    for kind in KINDS[1:]:
        said = Counter(message_kind(o.message) for _, o in results if o.kind == kind)
        if said:
            print(f"\n{kind}")
        for message, n in said.most_common(20):
            print(f"{n:7d}  {message}")


def print_features(results: list[Result], given: argparse.Namespace) -> None:
    """Print the outcomes by choice; those with most failures first."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for seed, outcome in results:
        for feature in programs.draw(seed, given.plain, given.features).features():
            table[feature][outcome.kind] += 1

    def failures(row: Counter[str]) -> float:
        return sum(row[k] for k in FAILURES) / row.total()

    print(f"\n{'choice':32}" + "".join(f"{kind:>9}" for kind in KINDS) + f"{'failures':>10}")
    for feature, row in sorted(table.items(), key=lambda item: (-failures(item[1]), item[0])):
        counts = "".join(f"{row[kind]:9d}" for kind in KINDS)
        print(f"{feature:32}{counts}{100 * failures(row):9.1f}%")


def print_smallest(results: list[Result], given: argparse.Namespace, most: int = 30) -> None:
    """Print the smallest program of each distinct failure."""
    seen: dict[str, str] = {}
    tried: Counter[str] = Counter()
    for seed, outcome in results:
        said = message_kind(outcome.message)
        if outcome.kind not in FAILURES or len(seen) >= most or tried[said] >= most:
            continue
        tried[said] += 1
        begins = outcome.message[:12] if outcome.kind != WRONG else None
        spec = programs.draw(seed, given.plain, given.features)
        small = shrink(spec, outcome.kind, core(given.core), begins)
        seen.setdefault(
            re.sub(r"seed=\d+, ", "", repr(small)), f"{outcome.kind}: {said}\n  {small}"
        )
    print("\nsmallest")
    for text in seen.values():
        print(text)


def main() -> int:
    """Run, print, and return 1 if a program failed."""
    given = arguments()
    torch.set_num_threads(1)
    results = list(run_all(given))
    print_counts(results)
    print_features(results, given)
    failed = any(outcome.kind in FAILURES for _, outcome in results)
    if given.shrink and failed:
        print_smallest(results, given)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
