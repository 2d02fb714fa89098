"""Time a training step of each kind of neuron: the loop and ``over_time``, interleaved in one run.

    python benchmarks/neurons.py --only Synaptic --only "Leaky, learns"

Figures are medians over the repeats, as a share of back-propagation in snnTorch's loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import snntorch as snn
import torch
from snntorch import surrogate
from step import interleaved, started
from torch import nn
from torch.nn import functional

from snn_dfa import DFA, encoding, over_time, reset
from snn_dfa.experiments.memory import keep_freed_memory
from snn_dfa.surrogate import fast_sigmoid

_OWN = {"spike_grad": fast_sigmoid(25), "init_hidden": True}
_LEARNS = {"learn_beta": True, "learn_threshold": True}
NEURONS: dict[str, Callable[[int], nn.Module]] = {
    "Leaky": lambda n: snn.Leaky(0.9, **_OWN),
    "Leaky, learn_beta": lambda n: snn.Leaky(0.9, learn_beta=True, **_OWN),
    "Leaky, learns": lambda n: snn.Leaky(0.9, **_LEARNS, **_OWN),
    "Leaky, learns, each neuron": lambda n: snn.Leaky(
        torch.full((n,), 0.9), torch.ones(n), **_LEARNS, **_OWN
    ),
    "Leaky, no delay": lambda n: snn.Leaky(0.9, reset_delay=False, **_OWN),
    "Leaky, snnTorch's sigmoid": lambda n: snn.Leaky(
        0.9, spike_grad=surrogate.sigmoid(), init_hidden=True
    ),
    "Leaky, a surrogate of one's own": lambda n: snn.Leaky(
        0.9, spike_grad=surrogate.custom_surrogate(_window), init_hidden=True
    ),
    "Lapicque": lambda n: snn.Lapicque(0.9, **_OWN),
    "Lapicque, zero": lambda n: snn.Lapicque(0.9, reset_mechanism="zero", **_OWN),
    "Synaptic": lambda n: snn.Synaptic(0.5, 0.9, **_OWN),
    "Synaptic, learns": lambda n: snn.Synaptic(0.5, 0.9, learn_alpha=True, **_LEARNS, **_OWN),
    "Alpha": lambda n: snn.Alpha(0.9, 0.5, threshold=0.1, **_OWN),
}  # fmt: skip


def _window(input_: torch.Tensor, grad_input: torch.Tensor, spikes: torch.Tensor) -> torch.Tensor:
    return grad_input * (input_.abs() < 0.5)


def contestant(kind: str, dfa: bool, whole: bool, args: argparse.Namespace) -> Callable[[], None]:
    """Return a training step."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(args.sizes):
        layers += [nn.Linear(n_in, n_out), NEURONS[kind](n_out)]
    net = nn.Sequential(*layers)
    x = encoding.poisson(torch.rand(args.batch, args.sizes[0]) * 0.4, args.steps)
    y = torch.randint(args.sizes[-1], (args.batch,))
    form = over_time(net) if whole else net
    if dfa:
        DFA(form, output=str(len(net) - 1))

    def step() -> None:
        net.zero_grad()
        if whole:
            spk = form(x)
        else:
            reset(net)
            spk = torch.stack([net(each) for each in x])
        functional.cross_entropy(spk.sum(0), y).backward()

    return step


def main() -> None:
    """Read the options, measure, print."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--sizes", type=lambda s: tuple(map(int, s.split(","))),
                   default=(256, 512, 256, 10))  # fmt: skip
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--only", action="append", choices=NEURONS)
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    keep_freed_memory()
    forms = {
        "loop": (False, False), "loop, DFA": (True, False),
        "over_time": (False, True), "over_time, DFA": (True, True),
    }  # fmt: skip
    rows = {}
    print(f"{'':<32} {'loop ms':>8} {'DFA':>7} {'over_time':>10} {'with DFA':>9}")
    for kind in args.only or NEURONS:
        makers = {n: partial(contestant, kind, *form, args) for n, form in forms.items()}
        runs = started(makers, _raise)
        found = interleaved(runs, "cpu", args.repeats)
        ms = {n: statistics.median(v) for n, v in found.items()}
        first, *others = ms.values()
        rows[kind] = ms
        print(f"{kind:<32} {first:8.1f}", *(f"{v / first:8.2f}" for v in others), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"steps": args.steps, "batch": args.batch,
                                         "sizes": args.sizes, "ms": rows}, indent=1))  # fmt: skip


def _raise(name: str, error: Exception) -> None:
    raise error


if __name__ == "__main__":
    main()
