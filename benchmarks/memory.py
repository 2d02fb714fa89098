"""How the peak memory of a training step grows with the number of time steps.

    python benchmarks/memory.py

784-1000-250-100-10 of snnTorch's Leaky, batch 128, its loop over time: back-propagation through
time, DFA, and DFA with traces and a backward pass at each step. Each figure is of a process of its
own: its peak resident size, and what a step added to it. A short step before takes what is needed
but once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, reset
from snn_dfa.experiments.memory import resident_megabytes

SIZES, BATCH = (784, 1000, 250, 100, 10), 128
WAYS = {"BPTT": None, "DFA": "membrane", "DFA, traces, online": "trace"}


def network() -> nn.Sequential:
    """Return the network, the same each time."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(SIZES):
        layers += [nn.Linear(n_in, n_out), snn.Leaky(beta=0.9, init_hidden=True)]
    return nn.Sequential(*layers)


def step(net: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, online: bool) -> None:
    """Run a sequence forward and backward, online with a backward pass a step."""
    net.zero_grad()
    reset(net)
    counts: torch.Tensor | float = 0.0
    for _ in range(steps):
        spk = net(x)
        if online:
            (functional.cross_entropy(spk, y) / steps).backward()
        else:
            counts = counts + spk
    if not online:
        functional.cross_entropy(counts, y).backward()


def measure(way: str, steps: int) -> None:
    """Print peak and growth in MB, as JSON."""
    net, credit = network(), WAYS[way]
    if credit is not None:
        DFA(net, credit=credit, output=str(len(net) - 1))
    x, y = torch.rand(BATCH, SIZES[0]), torch.randint(SIZES[-1], (BATCH,))
    step(net, x, y, 3, online=credit == "trace")
    before = resident_megabytes()
    step(net, x, y, steps, online=credit == "trace")
    peak = resident_megabytes()
    print(json.dumps({"steps": steps, "peak": round(peak), "grown": round(peak - before)}))


def main() -> None:
    """Print the figures of each way; write them if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", default="25,100,400", help="numbers of time steps (%(default)s)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args.one[0], int(args.one[1]))
        return
    found: dict[str, list[dict[str, int]]] = {}
    for way in WAYS:
        found[way] = []
        for n in args.steps.split(","):
            command = [sys.executable, __file__, "--one", way, n]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout))
            print(way, found[way][-1], flush=True)
    if args.json:
        result = {"torch": torch.__version__, "megabytes": found}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
