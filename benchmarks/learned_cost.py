"""The time of a training step with learned feedback, beside fixed feedback and back-propagation.

    python benchmarks/learned_cost.py --json benchmarks/results/learned_cost.json
    python benchmarks/learned_cost.py --networks dense --repeats 30

Three networks with batch normalisation before each hidden neuron, in the form ``over_time(net)``:
784-1000-250-100-10 (10 steps, batches of 128), 12C5-MP2-64C5-MP2-10 (8 steps, batches of 64), and
five convolutions of 16 and 32 channels on 16 x 16 pixels (4 steps, batches of 64). Inputs are
constant and random, the loss is that of spike counts, the optimiser AdamW. The rules are those of
``learning.py``. Each repeat does one step of each rule, one after the other, by the clock of
the process on one thread; figures are medians over repeats. All takes two minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import snntorch as snn
import torch
from deep_convolutions import network
from learning import attach
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import over_time
from snn_dfa.surrogate import fast_sigmoid

RULES = ("fixed", "kolen-pollack", "linear", "dfa", "bptt")


def _neuron() -> nn.Module:
    return snn.Leaky(beta=0.6, init_hidden=True, spike_grad=fast_sigmoid(5))


def dense() -> nn.Module:
    """Return 784-1000-250-100-10."""
    layers: list[nn.Module] = []
    for before, size in ((784, 1000), (1000, 250), (250, 100)):
        layers += [nn.Linear(before, size), nn.BatchNorm1d(size), _neuron()]
    return over_time(nn.Sequential(*layers, nn.Linear(100, 10), _neuron()))


def convolutional() -> nn.Module:
    """Return 12C5-MP2-64C5-MP2-10."""
    layers: list[nn.Module] = []
    for before, size in ((1, 12), (12, 64)):
        layers += [nn.Conv2d(before, size, 5), nn.BatchNorm2d(size), nn.MaxPool2d(2), _neuron()]
    return over_time(nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10), _neuron()))


#: Network, size of a batch of its input, steps.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "784-1000-250-100-10": (dense, (128, 784), 10),
    "12C5-MP2-64C5-MP2-10": (convolutional, (64, 1, 28, 28), 8),
    "five convolutions": (lambda: network(16, 16), (64, 3, 16, 16), 4),
}


def stepper(rule: str, make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return what does one training step."""
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    attach(rule, net, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(net(x).sum(0), y).backward()
        optimizer.step()

    return step


def medians(name: str, rules: list[str], repeats: int, first: int = 3) -> dict[str, float]:
    """Return milliseconds of a step for each rule; the first steps do not count."""
    make, size, steps = NETWORKS[name]
    x = torch.rand(size).expand(steps, *size)
    y = torch.arange(size[0]) % 10
    run = {rule: stepper(rule, make, x, y) for rule in rules}
    taken: dict[str, list[float]] = {rule: [] for rule in rules}
    for _ in range(first + repeats):
        for rule, step in run.items():
            started = time.process_time()
            step()
            taken[rule].append(1000 * (time.process_time() - started))
    return {rule: round(median(each[first:]), 2) for rule, each in taken.items()}


def main() -> None:
    """Print milliseconds and ratios to fixed feedback; write them where ``--json`` says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="", help="part of a name; all otherwise")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rules = args.rules.split(",")
    found = {}
    for name in NETWORKS:
        if args.networks not in name:
            continue
        found[name] = medians(name, rules, args.repeats)
        for rule, ms in found[name].items():
            print(f"{name}, {rule}: {ms:.1f} ms, {ms / found[name][rules[0]]:.2f}", flush=True)
    if args.json is not None:
        about = {"torch": torch.__version__, "processor": platform.processor(), "clock": "process"}
        args.json.write_text(json.dumps({**about, "ms": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
