"""What benchmarks that train with several rules and seeds have in common."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

import torch


def parser(
    description: str, rules: Sequence[str], seeds: int, epochs: int
) -> argparse.ArgumentParser:
    """Return a parser of the options that all have, with these values where none is given."""
    made = argparse.ArgumentParser(description=description.split("\n")[0])
    made.add_argument("--rules", default=",".join(rules), help="names, between commas")
    made.add_argument("--seeds", type=int, default=seeds, help="number of seeds")
    made.add_argument("--epochs", type=int, default=epochs)
    made.add_argument("--json", type=Path, help="write the accuracies into this file")
    return made


def over_seeds(args: argparse.Namespace, run: Callable[[str, int], float]) -> None:
    """Print the test accuracy of each rule and seed, in percent, and mean and worst of a rule.

    Args:
        args: Parsed by `parser`.
        run: From rule and seed to the test accuracy in percent.
    """
    found: dict[str, list[float]] = {}
    for rule in args.rules.split(","):
        found[rule] = []
        for seed in range(args.seeds):
            started = time.perf_counter()
            found[rule].append(round(run(rule, seed), 2))
            seconds = time.perf_counter() - started
            print(f"{rule}, seed {seed}: {found[rule][-1]:.2f} % in {seconds:.0f} s", flush=True)
        print(
            f"{rule}: mean {fmean(found[rule]):.2f} %, worst {min(found[rule]):.2f} %", flush=True
        )
        if args.json is not None:
            args.json.write_text(json.dumps({"epochs": args.epochs, "accuracy": found}) + "\n")


def over_names(
    description: str,
    option: str,
    names: Iterable[str],
    rules: str,
    run: Callable[[str, str, int], float],
) -> None:
    """Print the scores of each name, rule and seed, and their means; add them to a file if asked.

    Args:
        description: Of the script.
        option: That chooses names, with its dashes.
        names: All that there are.
        rules: Those that are run where none are given, between commas.
        run: From name, rule and seed to the score.
    """
    made = argparse.ArgumentParser(description=description.split("\n")[0])
    made.add_argument(option, dest="names", default=",".join(names))
    made.add_argument("--rules", default=rules)
    made.add_argument("--seeds", type=int, default=1)
    made.add_argument("--json", type=Path, help="add the scores to this file")
    args = made.parse_args()
    torch.set_num_threads(1)
    there = args.json is not None and args.json.exists()
    found: dict[str, dict[str, list[float]]] = json.loads(args.json.read_text()) if there else {}
    for name in args.names.split(","):
        for rule in args.rules.split(","):
            scores = [round(run(name, rule, seed), 2) for seed in range(args.seeds)]
            found.setdefault(name, {})[rule] = scores
            print(f"{name}, {rule}: {scores}, mean {fmean(scores):.2f}", flush=True)
            if args.json is not None:
                args.json.write_text(json.dumps(found, indent=1) + "\n")
