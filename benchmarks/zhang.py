"""Does an arbitrary slope beat the exact one? Zhang et al.'s claim, on a smaller scale.

    python benchmarks/zhang.py --data-root DIR --json FILE
    python benchmarks/zhang.py --data-root DIR --json FILE --runs exact:1:1:150 --seeds 6 --test

The network is that of the recipe `zhang2024`, 784-1000-10. There are 2,500 updates in place of
10,800: 5 epochs of 10,000 images in batches of 20, and 2,000 images to choose by; 25 ms in 50 steps
in place of 100 ms in 400. A run is SLOPE:TEMPERATURE:FEEDBACK:RATE. The temperature is given as
that of 400 steps and is a quarter of it here, which leaves the gradient's scale; the feedback is a
factor on equation A.5; the rate is divided by a layer's inputs. A slope HIDDEN/OUTPUT has two
functions. Runs that are in the file are not run again. A run takes half a minute to a minute.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa import DFA, over_time
from snn_dfa.diagnostics import angle
from snn_dfa.experiments.data import Splits, load
from snn_dfa.experiments.recipes import RECIPES
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.train.network import build
from snn_dfa.experiments.train.optimization import make_loss, make_optimizer
from snn_dfa.surrogate import Surrogate, exact, fast_sigmoid

SMALL: dict[str, Any] = {"epochs": 5, "batch_size": 20, "steps": 50, "dt": 0.5, "run_in": 10,
                         "spike_size": 2.0}  # fmt: skip
IMAGES, HELD, LOOKED_AT = 10_000, 2_000, 500
SETTINGS = "1:1:150 10:1:300 10:1:1000 10:1:3000 10:10:100 10:10:300 10:10:1000"
RUNS = [f"{slope}:{setting}" for setting in SETTINGS.split() for slope in ("exact", "broad")]


@dataclass(frozen=True)
class Arbitrary(Surrogate):
    """Any function of the current minus the threshold."""

    derivative: Callable[[Tensor], Tensor]


#: Name of a slope to it. ``broad`` is the exact one far from the threshold, and as much below it.
SLOPES: dict[str, Surrogate] = {
    "exact": exact(0.4, 20.0, 1.0),
    "broad": Arbitrary(lambda x: 0.125 / (1 + x.abs() / 8).square()),
    "narrow": fast_sigmoid(1.0),
    "none": Arbitrary(lambda x: torch.full_like(x, 0.05)),
    "cosine": Arbitrary(lambda x: 0.1 * torch.cos(x / 8)),
    "sine": Arbitrary(lambda x: 0.1 * torch.sin(x / 8)),
}


class Experiment:
    """A network with its slope, and its data."""

    def __init__(self, run: str, seed: int, settings: Settings, data: Splits) -> None:
        self.slope, temperature, scale, rate = run.split(":")
        temperature = float(temperature) / 4
        self.settings = replace(settings, seed=seed, lr=float(rate), temperature=temperature)
        parts = ((data.train, IMAGES), (data.val, HELD), (data.test, None))
        self.train, self.held, self.test = ((p.x[:n].flatten(1), p.y[:n]) for p, n in parts)
        self.net = build(self.settings, data.image, data.classes)
        self.form = self.attached(self.net, self.slope, "zhang", float(scale))

    def attached(self, net: nn.Module, slope: str, feedback: str, scale: float) -> nn.Module:
        """Return the form over time of the network, under DFA with this slope."""
        hidden, _, output = slope.partition("/")
        net.neuron1.spike_grad, net.neuron2.spike_grad = SLOPES[hidden], SLOPES[output or hidden]
        form = over_time(net)
        DFA(form, output="neuron2", hidden=["neuron1"], feedback=feedback, scale=scale,
            credit="current", seed=self.settings.seed)  # fmt: skip
        return form

    def backward(self, form: nn.Module, x: Tensor, y: Tensor) -> None:
        """Write the gradients of a batch."""
        make_loss(self.settings)(self.spikes(form, x), y).backward()

    def spikes(self, form: nn.Module, x: Tensor) -> Tensor:
        """Return the output's spikes after the run-in, [T, B, 10]."""
        return form(x.expand(self.settings.steps, -1, -1))[self.settings.run_in :]

    def counts(self, x: Tensor) -> Tensor:
        """Return the output's spikes of each image, [S, 10]."""
        with torch.no_grad():
            return torch.cat([self.spikes(self.form, part).sum(0) for part in x.split(500)])

    def accuracy(self, part: tuple[Tensor, Tensor]) -> float:
        """Return the percentage of images whose class has most spikes."""
        return round(100 * (self.counts(part[0]).argmax(1) == part[1]).float().mean().item(), 2)

    def fit(self, test: bool) -> dict[str, Any]:
        """Return accuracies, on test images of the best epoch, and a look at the last epoch."""
        order = torch.Generator().manual_seed(self.settings.seed)
        optimizer = make_optimizer(self.settings, self.net)
        (x, y), held, best = self.train, [], {}
        for _ in range(self.settings.epochs):
            for rows in torch.randperm(len(x), generator=order).split(self.settings.batch_size):
                optimizer.zero_grad()
                self.backward(self.form, x[rows], y[rows])
                optimizer.step()
            held.append(self.accuracy(self.held))
            if held[-1] == max(held):
                best = copy.deepcopy(self.net.state_dict())
        looked = self.look()
        self.net.load_state_dict(best)
        return {
            "validation": held,
            **({"test": self.accuracy(self.test)} if test else {}),
            **looked,
        }

    def look(self) -> dict[str, float]:
        """Return where the exact slope is zero, in percent, and the angle to back-propagation."""
        x, y = (part[:LOOKED_AT] for part in self.held)
        silent = self.counts(x) == 0
        gradients = []
        for slope, feedback in ((self.slope, "zhang"), ("exact", "transpose")):
            twin = copy.deepcopy(self.net)
            self.backward(self.attached(twin, slope, feedback, 1.0), x, y)
            gradients.append(twin.linear1.weight.grad)
        with torch.no_grad():
            below = self.net.linear1(x) <= self.settings.threshold[0]
        shares = {"hidden below": below, "right output silent": silent[range(len(y)), y],
                  "outputs always silent": silent.all(0)}  # fmt: skip
        looked = {name: round(100 * part.float().mean().item(), 1) for name, part in shares.items()}
        return {**looked, "angle": round(angle(*gradients), 1)}


def main() -> None:
    """Carry out the runs that are not in the file yet, and add them to it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--runs", default=",".join(RUNS), help="between commas")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="test the epoch that is best")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(
        RECIPES["zhang2024"].settings, dataset="mnist", data_root=args.data_root, **SMALL
    )
    found = json.loads(args.json.read_text()) if args.json.exists() else {}
    for seed in range(args.seeds):
        data = load(replace(settings, seed=seed))
        for run in args.runs.split(","):
            seeds = found.setdefault(run, {})
            if str(seed) in seeds and ("test" in seeds[str(seed)] or not args.test):
                continue
            seeds[str(seed)] = Experiment(run, seed, settings, data).fit(args.test)
            print(f"{run}, seed {seed}: {seeds[str(seed)]}", flush=True)
            args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
