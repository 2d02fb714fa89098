"""Kill a training again and again, let it go on, and compare its end with that of an unbroken one.

A life is a process that goes on from the last checkpoint, saves after every step, and gets SIGKILL
at a random moment: after its first save, or, one life in five, at any time from its start. Lives
are forked from a process that has imported everything, which is most of what a start costs. After
each kill the checkpoint must load, checksums included. A run that reaches its end must end at the
numbers, and the bits of weights and feedback, of the unbroken run; then the next one begins, until
there were as many kills as asked for.

    OMP_NUM_THREADS=1 python benchmarks/kill.py --kills 200
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import torch

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.files import load_checkpoint

SETTINGS = [
    "train", "--hidden", "24,16", "--steps", "4", "--epochs", "4", "--batch-size", "128",
    "--dropout", "0.1", "--feedback", "kolen-pollack", "--save-every", "0",
]  # fmt: skip
TIMES = ("seconds_per_step", "epoch_seconds", "seconds_to_97", "samples_per_second")


def live(folder, wait=None):
    """Train in a process of its own; return whether it came to its end before it was killed.

    ``wait(ended)`` returns when it is to be killed, or once ``ended()``.
    """
    resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(folder / "errors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os._exit(main([*SETTINGS, *resume, "--out", str(folder)]))
    if wait is not None:  # what has ended keeps its number until waitpid() has asked for it
        wait(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        errors = (folder / "errors").read_text()
        sys.exit(f"a life ended with status {os.WEXITSTATUS(status)}:\n{errors}")
    return True


def some_time(draw, checkpoint, start, longest):
    """Return a wait for :func:`live`: a random time from the start, or from the first save."""

    def written():
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    before, at_start = written(), draw.random() < 0.2
    seconds = draw.uniform(0, start if at_start else longest)

    def wait(ended):
        while not at_start and written() == before and not ended():
            time.sleep(0.002)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until and not ended():
            time.sleep(0.001)

    return wait


def end(folder):
    """Return what a run ended with, but for times."""
    got = json.loads((folder / "metrics.json").read_text())["dfa"]
    state = load_checkpoint(folder / "checkpoint.pt")
    return {k: v for k, v in got.items() if k not in TIMES}, state["net"], state["feedback"]


def difference(a, b, where=""):
    """Return where two nested ends differ first, in any bit; an empty text: nowhere."""
    if isinstance(a, torch.Tensor):
        return "" if torch.equal(a, b) else where
    if isinstance(a, dict) and a.keys() == b.keys():
        pairs = [(key, a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)) and len(a) == len(b):
        pairs = list(zip(range(len(a)), a, b, strict=True))
    else:
        return "" if a == b else where
    return next(filter(None, (difference(x, y, f"{where}/{key}") for key, x, y in pairs)), "")


def kill(kills, start, longest, seed):
    """Return what was seen in so many kills."""
    draw = random.Random(seed)
    seen = {
        "kills": 0,
        "before the first checkpoint": 0,
        "checkpoints loaded": 0,
        "in the middle of a write": 0,
        "runs ended": 0,
        "runs unlike the unbroken one": 0,
        "half written files left at the end": 0,
    }
    with tempfile.TemporaryDirectory() as root:
        folders = (Path(root, str(i)) for i in count())
        unbroken = next(folders)
        unbroken.mkdir()
        started = time.perf_counter()
        live(unbroken)
        print(f"the unbroken run took {time.perf_counter() - started:.1f} s", flush=True)
        wanted, at_work = end(unbroken), False
        while seen["kills"] < kills or at_work:
            if not at_work:
                folder = next(folders)
                folder.mkdir()
            wait = some_time(draw, folder / "checkpoint.pt", start, longest)
            ended = live(folder, wait if seen["kills"] < kills else None)
            at_work = not ended
            if ended:
                seen["runs ended"] += 1
                print(f"run {seen['runs ended']} ended after {seen['kills']} kills", flush=True)
                if where := difference(end(folder), wanted):
                    seen["runs unlike the unbroken one"] += 1
                    print(f"a run differs at {where}", flush=True)
                seen["half written files left at the end"] += len(list(folder.glob(".*.part")))
                continue
            seen["kills"] += 1
            seen["in the middle of a write"] += any(folder.glob(".*.part"))
            if (folder / "checkpoint.pt").exists():
                load_checkpoint(folder / "checkpoint.pt")
                seen["checkpoints loaded"] += 1
            else:
                seen["before the first checkpoint"] += 1
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--start", type=float, default=3.0, help="seconds, at most, from the start")
    parser.add_argument("--longest", type=float, default=0.3, help="or from the first save")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seen = kill(args.kills, args.start, args.longest, args.seed)
    print("\n".join(f"{what}: {number}" for what, number in seen.items()))
    sys.exit(
        bool(seen["runs unlike the unbroken one"] or seen["half written files left at the end"])
    )
