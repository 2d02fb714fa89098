"""Time a training step of networks with a forward of their own: the loop, and once over time.

    python benchmarks/own_network.py --json own_network.json

Two networks: a class with explicit states and a loop over its input, as snnTorch's tutorials have
it, dense; and a residual convolutional step. Every repeat runs each contestant once, one after the
other; figures are medians over the repeats, to be read as ratios to the class's own
back-propagation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import DFA, encoding, over_time, reset
from snn_dfa.experiments.memory import keep_freed_memory
from snn_dfa.surrogate import fast_sigmoid

SLOPE = fast_sigmoid(25)


class Dense(nn.Module):
    """Dense layers, explicit states, a loop over the input's first dimension."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
        self.neurons = nn.ModuleList(snn.Leaky(0.9, spike_grad=SLOPE) for _ in sizes[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes [T, B, C]."""
        mems, spk_rec = [lif.reset_mem() for lif in self.neurons], []
        for t in range(x.size(0)):
            spk = x[t]
            for i, (fc, lif) in enumerate(zip(self.linears, self.neurons, strict=True)):
                spk, mems[i] = lif(fc(spk), mems[i])
            spk_rec.append(spk)
        return torch.stack(spk_rec)


class Residual(nn.Module):
    """One step of a residual convolutional network, with functions in between."""

    def __init__(self) -> None:
        super().__init__()
        options = {"spike_grad": SLOPE, "threshold": 0.5, "init_hidden": True}
        self.conv1, self.lif1 = nn.Conv2d(1, 16, 3, padding=1), snn.Leaky(0.9, **options)
        self.conv2, self.lif2 = nn.Conv2d(16, 16, 3, padding=1), snn.Leaky(0.9, **options)
        self.fc, self.lif3 = nn.Linear(16 * 49, 10), snn.Leaky(0.9, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spikes of a step [B, C]."""
        a = self.lif1(functional.max_pool2d(self.conv1(x), 2))
        b = functional.avg_pool2d(self.lif2(self.conv2(a) + a), 2)
        return self.lif3(self.fc(b.flatten(1)))


def _inputs(shape: tuple[int, ...], steps: int, batch: int) -> tuple[Tensor, Tensor]:
    """Return pixels of which a fifth is on, in Poisson code [T, B, ...], and targets [B]."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *shape, generator=g)
    x = torch.where(torch.rand(x.shape, generator=g) < 0.2, x, 0.0)
    return encoding.poisson(x, steps), torch.randint(10, (batch,), generator=g)


def _contestants(
    make: Callable[[], nn.Module], loop: Callable[[nn.Module, Tensor], Tensor], x: Tensor, y: Tensor
) -> dict[str, Callable[[], None]]:
    def contestant(dfa: bool, at_once: bool) -> Callable[[], None]:
        torch.manual_seed(0)
        net = make()
        form = over_time(net) if at_once else net
        if dfa:
            DFA(form)

        def run() -> None:
            net.zero_grad()
            spk = form(x) if at_once else loop(net, x)
            functional.cross_entropy(spk.sum(0), y).backward()

        return run

    return {
        "loop, BPTT": contestant(dfa=False, at_once=False),
        "loop, DFA": contestant(dfa=True, at_once=False),
        "over_time, BPTT": contestant(dfa=False, at_once=True),
        "over_time, DFA": contestant(dfa=True, at_once=True),
    }


def _around(net: nn.Module, x: Tensor) -> Tensor:
    reset(net)
    return torch.stack([net(step) for step in x])


def _time(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each contestant, and those of each first step."""
    first = {}
    for name, run in runs.items():
        started = time.perf_counter()
        run()
        first[name] = 1e3 * (time.perf_counter() - started)
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    ms = {name: 1e3 * statistics.median(s) for name, s in seconds.items()}
    for name, value in ms.items():
        print(
            f"{name:<18} {value:8.1f} ms {value / ms['loop, BPTT']:7.3f}  first {first[name]:8.0f}"
        )
    return ms


def main() -> None:
    """Read the options, measure, print, write."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--repeats", type=int, default=11)
    p.add_argument(
        "--networks", nargs="*", choices=["dense", "residual"], default=["dense", "residual"]
    )
    p.add_argument("--given-back", action="store_true", help="leave glibc's memory as it is")
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    if not args.given_back:
        keep_freed_memory()
    sizes, found = (784, 1000, 250, 100, 10), {}
    if "dense" in args.networks:
        print("dense, 784-1000-250-100-10", flush=True)
        runs = _contestants(
            lambda: Dense(sizes), lambda net, x: net(x), *_inputs((784,), args.steps, args.batch)
        )
        found["dense"] = _time(runs, args.repeats)
    if "residual" in args.networks:
        print("residual, 16C3-MP2-(16C3)-AP2-10", flush=True)
        runs = _contestants(Residual, _around, *_inputs((1, 28, 28), args.steps // 3, args.batch))
        found["residual"] = _time(runs, args.repeats)
    if args.json:
        result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "ms": found}
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
