"""What the recipes reach on MNIST and N-MNIST: runs of ``snn-dfa``, and one file of their results.

    python benchmarks/recipes.py --data-root DIR --out runs
    python benchmarks/recipes.py --data-root DIR --out runs --only deep,deep-bptt
    python benchmarks/recipes.py --out runs --collect --json benchmarks/results/recipes.json

Each run has a folder in ``--out`` with the report of ``snn-dfa``. A run that was broken off goes on
from its checkpoint, one that has ended is not run again. ``--collect`` runs nothing and reads the
``metrics.json`` of the runs that have ended. On one core, beside other work, a seed took 7 to 25
minutes, one on N-MNIST 1 to 4.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: The command line, with this Python.
PROGRAM = (sys.executable, "-m", "snn_dfa")
_DEEP = "compare --recipe deep --dataset mnist --seeds 3"
_WIDE = "compare --recipe wide --dataset mnist --seeds 3"
_CONV = "compare --recipe conv --dataset mnist --seeds 3"
_EVENTS = "compare --dataset nmnist --folds 5 --seeds 5"

#: The name of a run to its arguments for ``snn-dfa``.
RUNS: Mapping[str, str] = {
    "deep": f"{_DEEP} --rules dfa",
    "deep-fixed": f"{_DEEP} --rules dfa --feedback gaussian",
    "deep-bptt": f"{_DEEP} --rules bptt",
    "wide": f"{_WIDE} --rules dfa",
    "wide-fixed": f"{_WIDE} --rules dfa --feedback gaussian",
    "wide-bptt": f"{_WIDE} --rules bptt",
    "conv": f"{_CONV} --rules dfa",
    "conv-bptt": f"{_CONV} --rules bptt",
    "events": f"{_EVENTS} --rules dfa",
    "events-fixed": f"{_EVENTS} --rules dfa --feedback gaussian",
    "events-bptt": f"{_EVENTS} --rules bptt",
    "events-shallow": f"{_EVENTS} --rules shallow",
    "events-matrix": f"{_EVENTS} --rules dfa --no-clean-statistics --feedback kolen-pollack",
    "events-online": f"{_EVENTS} --rules dfa --credit trace --feedback kolen-pollack",
}


def command(name: str) -> list[str]:
    """Return the arguments of a run, without the folders of data and results."""
    return shlex.split(RUNS[name])


def run(name: str, data: Path, out: Path) -> None:
    """Carry out one run, or go on with it."""
    where = ["--data-root", str(data), "--out", str(out / name), "--resume"]
    done = subprocess.run([*PROGRAM, *command(name), *where], check=False)
    if done.returncode:
        raise SystemExit(f"{name}: snn-dfa ended with exit status {done.returncode}")


def collected(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each run that has ended, and what it reached."""
    for name in RUNS:
        file, args = out / name / "metrics.json", command(name)
        metrics = json.loads(file.read_text()) if file.is_file() else {"over_seeds": {}}
        seeds = [run for rule in metrics["over_seeds"].values() for run in rule["runs"]]
        if len(seeds) == int(args[args.index("--seeds") + 1]):  # of the one rule of a run
            yield name, summary(name, metrics, seeds)


def summary(name: str, metrics: Any, seeds: Sequence[Any]) -> dict[str, Any]:
    """Return a run's command, and accuracy in percent and seconds of each seed."""
    return {
        "command": shlex.join(["snn-dfa", *command(name)]),
        "epochs": metrics["settings"]["epochs"],
        "accuracy": [round(100 * seed["test_accuracy"], 2) for seed in seeds],
        "best epoch": [seed["best_epoch"] for seed in seeds],
        "seconds": [round(sum(each["epoch"] for each in seed["epoch_seconds"])) for seed in seeds],
        "versions": metrics["versions"],
    }


def main() -> None:
    """Carry out the runs that were asked for, or write what they reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(RUNS), help="runs, by name")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="a folder for each run")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--json", type=Path, help="write what was reached into this file")
    args = parser.parse_args()
    unknown = set(names := args.only.split(",")) - set(RUNS)
    if unknown:
        parser.error(f"--only: no run is called {', '.join(sorted(unknown))}")
    if not args.collect:
        for name in names:
            run(name, args.data_root, args.out)
    found = json.dumps(dict(collected(args.out)), indent=1)
    if args.json:
        args.json.write_text(found + "\n")
    else:
        sys.stdout.write(found + "\n")


if __name__ == "__main__":
    main()
