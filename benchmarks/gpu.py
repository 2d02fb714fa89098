"""Show in a short visit to a machine with a GPU what this library does there.

    python benchmarks/gpu.py --out gpu-results --data-root data
    python benchmarks/gpu.py --out gpu-results --small --device cpu

The parts run in order of worth, each in a process of its own and with its own time limit, so that
a crash, a part that hangs or one that takes all memory does not end the others. Each result is a
line of ``results.jsonl`` as soon as it is measured; the visit may be broken off at any moment.
Every part ends with a line that has a ``status``: done, error, time over or left out. ``log.txt``
has what the parts printed. ``--small`` runs all of it with tiny sizes, which a CPU does, too.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from gpu_parts import PARTS, Visit, allow_tf32, in_short

from snn_dfa.experiments.recipes import RECIPES

_TOLD = 3  # the exit status of a part that has written why it failed


def _child(args: argparse.Namespace, part: str) -> None:
    """Run a part in this process, whose output goes to the log."""
    with (args.out / "log.txt").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    faulthandler.enable()  # of a part that hangs, the log then has where
    print(f"== {part}", flush=True)
    visit = Visit(args, part)
    allow_tf32(False)
    torch.set_num_threads(1)  # the CPU is not what is measured
    try:
        PARTS[part][0](visit)
        print(f"== {part}: {time.process_time():.1f} s of the CPU", flush=True)
    except BaseException as error:
        traceback.print_exc()
        visit.say(status="error", reason=in_short(error))
        sys.exit(_TOLD)


def _run(args: argparse.Namespace, part: str, limit: float) -> None:
    """Run a part in a process of its own, and write how it ended."""
    began = time.monotonic()
    start = multiprocessing.get_context(args.start)
    process = start.Process(target=_child, args=(args, part), daemon=True)
    process.start()
    process.join(limit)
    over = process.is_alive()
    if over:
        os.kill(process.pid, signal.SIGABRT)
        process.join(5)
    process.kill()
    process.join()
    result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if over:
        result |= {"status": "time over", "reason": f"it ran past its {round(limit, 1):g} s"}
    elif process.exitcode == 0:
        result["status"] = "done"
    elif process.exitcode == _TOLD:
        return
    else:
        result |= {"status": "error", "reason": f"the process ended with {process.exitcode}"}
    Visit(args, part).say(**result)


def main() -> None:
    """Read the options, run the parts, print what they write."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and log.txt")
    p.add_argument("--device", default="cuda")
    p.add_argument("--small", action="store_true", help="tiny sizes, to try the script itself")
    p.add_argument("--minutes", type=float, default=12, help="of all parts together (%(default)s)")
    p.add_argument("--parts", default=",".join(PARTS), help="which, in this order (%(default)s)")
    p.add_argument("--data-root", type=Path, default=Path("data"), help="folder above MNIST/raw")
    p.add_argument("--images", default="", help="file NAME.npz of the part images")
    p.add_argument("--recipe", choices=RECIPES, default="conv", help="of the part images")
    p.add_argument("--epochs", type=int, default=0, help="of the part images; 0: the recipe's")
    p.add_argument("--amp", action="store_true", help="bfloat16 autocast in the part images")
    p.add_argument("--start", choices=["spawn", "fork"], default="spawn",
                   help="how processes start; fork is quicker, CUDA may not allow it")  # fmt: skip
    args = p.parse_args()
    if unknown := set(args.parts.split(",")) - set(PARTS):
        p.error(f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    args.out, args.data_root = args.out.resolve(), args.data_root.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the part that runs, too
    until, shown = time.monotonic() + 60 * args.minutes, 0
    for part in args.parts.split(","):
        left = until - time.monotonic()
        if left < 5:
            Visit(args, part).say(status="left out", reason=f"no time left of {args.minutes:g} min")
        else:
            _run(args, part, min(left, PARTS[part][1]))
        text = (args.out / "results.jsonl").read_text()
        print(text[shown:], end="", flush=True)
        shown = len(text)


if __name__ == "__main__":
    main()
