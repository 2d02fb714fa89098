"""Time DFA in snnTorch's loop against back-propagation in the same loop, interleaved in one run.

    python benchmarks/loop.py --json loop.json

Dense networks at batch 128, then every network of the tests' zoo, which have four neurons a layer:
there the time is that of Python and of autograd's nodes.

    python benchmarks/loop.py --floor

What a program without the library takes for the zoo's neurons: DFA by hand, which detaches what
comes into each layer and sends the error once, at all spikes; then the same with an autograd
function before and behind each call, which is the least that sees what comes in and goes out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import Case, contestants
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from kinds import STEPS, B, F, N, Net, first  # noqa: E402
from matrix import forward, loss_of  # noqa: E402
from zoo import NETWORKS  # noqa: E402

from snn_dfa import DFA, reset  # noqa: E402

DENSE = ((16, 32, 32, 4), (64, 256, 128, 64, 10), (784, 1000, 10), (784, 1000, 250, 100, 10))
Pair = tuple[Callable[[], object], Callable[[], object]]


def dense(sizes: tuple[int, ...]) -> Pair:
    """Return a step of back-propagation and one of DFA."""
    ready = contestants(Case(25, 128, sizes, "cpu", "poisson"))
    return ready["snntorch bptt"](), ready["snntorch dfa"]()


def zoo(name: str) -> Pair:
    """Return the same for a network of the zoo, of which DFA gets one with the same weights."""
    net, x = NETWORKS[name]()
    twin, _ = NETWORKS[name]()  # no copy: states that have a graph cannot be copied
    DFA(twin)

    def step(net: nn.Module) -> None:
        net.zero_grad()
        loss_of(forward(net, x)).backward()

    return lambda: step(net), lambda: step(twin)


class Seen(torch.autograd.Function):
    """Returns a value as it is; the least that a library can put between two layers."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Return the value."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the gradient."""
        return grad


def floor(name: str, *, seen: bool) -> Pair:
    """Return a step of back-propagation and one of DFA by hand, for neurons with hidden states."""
    net = Net(STEPS[name], True, False)
    feedback = [torch.randn(N, N) for _ in net.blocks[1:]]
    x = torch.rand(8, B, F).gt(0.5).float()
    see = Seen.apply if seen else lambda value: value

    def dfa() -> None:
        net.zero_grad()
        reset(net)
        kept: list[list[Tensor]] = [[] for _ in net.blocks]
        for value in x:
            for block, spikes in zip(net.blocks, kept, strict=True):
                value = see(first(block(see(value).detach())))
                spikes.append(value)
        *hidden, out = map(torch.stack, kept)
        leaf = out.detach().requires_grad_()
        loss_of(leaf).backward()
        torch.autograd.backward([out, *hidden], [leaf.grad, *[leaf.grad @ b for b in feedback]])

    def bptt() -> None:
        net.zero_grad()
        loss_of(net(x)).backward()

    return bptt, dfa


def measure(pair: Pair, seconds: float) -> dict[str, float]:
    """Return the median times of both and their ratio, by the clock of the thread."""
    ms: tuple[list[float], list[float]] = ([], [])
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(ms[0]) < 10:
        for run, own in zip(pair, ms, strict=True):
            start = time.thread_time()
            run()
            own.append(1e3 * (time.thread_time() - start))
    bptt, dfa = (statistics.median(each[3:]) for each in ms)
    return {"bptt ms": bptt, "dfa ms": dfa, "ratio": dfa / bptt}


def main() -> None:
    """Measure, print, write."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seconds", type=float, default=6, help="for each network")
    p.add_argument("--only", default="", help="networks whose names begin so")
    p.add_argument("--floor", action="store_true", help="time DFA by hand, without the library")
    p.add_argument("--json", type=Path, help="a file that the results are added to")
    args = p.parse_args()
    torch.set_num_threads(1)
    makers = {"-".join(map(str, sizes)): lambda s=sizes: dense(s) for sizes in DENSE}
    makers |= {name: lambda n=name: zoo(n) for name in NETWORKS}
    kinds = [name for name in STEPS if name != "SConv2dLSTM"]  # which takes images
    floors = {f"{name}, by hand": lambda n=name: floor(n, seen=False) for name in kinds}
    floors |= {f"{name}, with two functions": lambda n=name: floor(n, seen=True) for name in kinds}
    results = {}
    for name, make in (floors if args.floor else makers).items():
        if not name.startswith(args.only):
            continue
        try:
            pair = make()
            for run in pair:
                run()
        except Exception as error:  # whatever it is, the others are measured
            print(f"{name:45s} {str(error)[:60]}", flush=True)
            continue
        results[name] = row = measure(pair, args.seconds)
        print(f"{name:45s}", *(f"{number:8.2f}" for number in row.values()), flush=True)
    if args.json:
        found = json.loads(args.json.read_text()) if args.json.exists() else {}
        found |= {"torch": torch.__version__, **results}
        known = {name: found[name] for name in ("torch", *makers, *floors) if name in found}
        args.json.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
