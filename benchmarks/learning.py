"""How well small networks learn, as people bring them, under back-propagation and under one line.

    python benchmarks/learning.py
    python benchmarks/learning.py --networks tutorial5,recurrent --rules dfa --rates 1e-3 --seeds 3
    python benchmarks/learning.py --networks depth --rules bptt,dfa,fa --out depth.json
    python benchmarks/learning.py --networks events --data-root DIR

Each run trains one network on scikit-learn's digits (three fifths of them; a fifth chooses, a
fifth is tested) with Adam, and takes 3 to 30 seconds on one core. ``events`` are networks on
N-MNIST, of which ``DIR`` has the extract of 1,100 recordings; ``depth`` and ``conv-depth`` are
networks of 1 to 20 layers. Networks are trained in the form
``over_time(net)``, whose gradients are those of the loop over time; normalisation is over time and
batch. Rules: ``bptt`` attaches nothing; ``dfa`` is ``DFA(net, optimizer=optimizer)``; ``fixed`` is
``DFA(net)``; ``linear``, ``half`` and ``by-sample`` are ``dfa`` with 0, 0.5 and 1 as the share of
each neuron's own gate, which is 0.8 in ``dfa``; ``kolen-pollack`` learns a matrix for each layer;
``fa`` goes from layer to layer by factors that mirror the weights; ``shallow`` trains the output
layer alone. Results are kept in a JSON file, run by run; a run that is there is not done again. The
table at the end has, for each network and rule, the rate that is best on validation, and the test
accuracy with it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from snntorch import functional as SF
from snntorch import surrogate
from torch import Tensor, nn

from snn_dfa import DFA, WeightMirror, over_time, reset
from snn_dfa.experiments.data.recordings import nmnist

HERE = Path(__file__).parent
BATCH, EPOCHS, STEPS = 64, 15, 10


# -- networks: each takes one time step [B, 1, 8, 8] or [B, 8], and returns spikes and membrane ----


class Stack(nn.Sequential):
    """Layers in a row; the last one returns its spikes and its membrane."""


def _neuron(beta: float = 0.9, **options: Any) -> dict[str, Any]:
    return {"beta": beta, "init_hidden": True, "spike_grad": surrogate.fast_sigmoid(25), **options}


def _norm(size: int, norm: bool, dims: int = 1) -> list[nn.Module]:
    kind = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
    return [kind(size)] if norm else []


def dense(*hidden: int, norm: bool = False, beta: float = 0.95, slope: float = 25) -> nn.Module:
    """Return dense layers, as in snnTorch's fifth tutorial."""
    options = {"spike_grad": surrogate.fast_sigmoid(slope)}
    layers: list[nn.Module] = [nn.Flatten()]
    for before, size in itertools.pairwise((64, *hidden)):
        neuron = snn.Leaky(**_neuron(beta, **options))
        layers += [nn.Linear(before, size), *_norm(size, norm), neuron]
    last = snn.Leaky(**_neuron(beta, output=True, **options))
    return Stack(*layers, nn.Linear((64, *hidden)[-1], 10), last)


def convolutional(norm: bool = False) -> nn.Module:
    """Return two convolutions, as in snnTorch's sixth tutorial, for images of 8x8 pixels."""
    return Stack(
        nn.Conv2d(1, 12, 3, padding=1), *_norm(12, norm, 2), nn.MaxPool2d(2),
        snn.Leaky(**_neuron(0.5)),
        nn.Conv2d(12, 32, 3, padding=1), *_norm(32, norm, 2), nn.MaxPool2d(2),
        snn.Leaky(**_neuron(0.5)),
        nn.Flatten(), nn.Linear(32 * 2 * 2, 10), snn.Leaky(**_neuron(0.5, output=True)),
    )  # fmt: skip


def deep_convolutional(depth: int = 4, norm: bool = True) -> nn.Module:
    """Return convolutions of 12 channels, then of 24, with a pooling after each half."""
    layers: list[nn.Module] = []
    half = (depth + 1) // 2
    sizes = [12] * half + [24] * (depth - half)
    for i, (before, size) in enumerate(itertools.pairwise((1, *sizes)), 1):
        layers += [nn.Conv2d(before, size, 3, padding=1), *_norm(size, norm, 2)]
        layers += [nn.MaxPool2d(2)] * (i in (half, depth)) + [snn.Leaky(**_neuron(0.5))]
    last = snn.Leaky(**_neuron(0.5, output=True))
    return Stack(*layers, nn.Flatten(), nn.Linear(24 * 2 * 2, 10), last)


def events_dense() -> nn.Module:
    """Return dense layers on the events of 34x34 pixels."""
    return Stack(
        nn.Flatten(), nn.Linear(2 * 34 * 34, 200), snn.Leaky(**_neuron(0.8)),
        nn.Linear(200, 200), snn.Leaky(**_neuron(0.8)),
        nn.Linear(200, 10), snn.Leaky(**_neuron(0.8, output=True)),
    )  # fmt: skip


def events_convolutional() -> nn.Module:
    """Return two convolutions, as in snnTorch's seventh tutorial."""
    options = {"spike_grad": surrogate.atan()}
    return Stack(
        nn.Conv2d(2, 12, 5), nn.MaxPool2d(2), snn.Leaky(**_neuron(0.5, **options)),
        nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), snn.Leaky(**_neuron(0.5, **options)),
        nn.Flatten(), nn.Linear(32 * 5 * 5, 10), snn.Leaky(**_neuron(0.5, output=True, **options)),
    )  # fmt: skip


def recurrent() -> nn.Module:
    """Return a recurrent layer that reads an image row by row."""
    return Stack(
        nn.Linear(8, 100), snn.RLeaky(linear_features=100, **_neuron(0.9)),
        nn.Linear(100, 10), snn.Leaky(**_neuron(0.9, output=True)),
    )  # fmt: skip


def synaptic() -> nn.Module:
    """Return neurons with a synaptic current."""
    options = {"alpha": 0.8, **_neuron(0.9)}
    return Stack(
        nn.Flatten(), nn.Linear(64, 200), snn.Synaptic(**options),
        nn.Linear(200, 10), snn.Synaptic(**options, output=True),
    )  # fmt: skip


class Residual(nn.Module):
    """Dense blocks that add their input's spikes to their current."""

    def __init__(self, norm: bool = False, blocks: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), *_norm(100, norm))
        self.lif = snn.Leaky(**_neuron())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(100, 100), *_norm(100, norm)) for _ in range(blocks)
        )
        self.lifs = nn.ModuleList(snn.Leaky(**_neuron()) for _ in range(blocks))
        self.last = nn.Linear(100, 10)
        self.out = snn.Leaky(**_neuron(output=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return spikes and membrane of one step."""
        spk = self.lif(self.first(x))
        for block, lif in zip(self.blocks, self.lifs, strict=True):
            spk = lif(block(spk) + spk)
        return self.out(self.last(spk))


class Readout(nn.Module):
    """A network whose output is a plain linear layer, with no neuron behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 100), snn.Leaky(**_neuron())
        self.fc2, self.lif2 = nn.Linear(100, 100), snn.Leaky(**_neuron())
        self.fc3 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the readout twice, as it has no spikes."""
        out = self.fc3(self.lif2(self.fc2(self.lif1(self.fc1(x.flatten(1))))))
        return out, out


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "tutorial5": lambda: dense(200),
    "three-layers": lambda: dense(200, 200, 200),
    "three-layers-norm": lambda: dense(200, 200, 200, norm=True),
    "tutorial6": convolutional,
    "tutorial6-norm": lambda: convolutional(norm=True),
    "four-convolutions-norm": deep_convolutional,
    "four-convolutions": partial(deep_convolutional, norm=False),
    "recurrent": recurrent,
    "synaptic": synaptic,
    "residual": Residual,
    "residual-norm": lambda: Residual(norm=True),
    "ten-layers-norm": lambda: dense(*[100] * 10, norm=True),
    "readout": Readout,
}
#: More networks: of different depths, and on events.
MORE: Mapping[str, Mapping[str, Callable[[], nn.Module]]] = {
    # So many normalised hidden layers of 100, and a surrogate at which back-propagation learns.
    "depth": {
        f"depth-{n}": partial(dense, *[100] * n, norm=True, slope=5) for n in (1, 2, 3, 5, 10, 20)
    },
    "conv-depth": {f"conv-depth-{n}": partial(deep_convolutional, n) for n in (2, 4, 6, 10, 20)},
    "events": {"events-dense": events_dense, "events-convolutional": events_convolutional},
}
_ALL = {**NETWORKS, **{name: make for each in MORE.values() for name, make in each.items()}}
LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "membrane": lambda spk, mem, y: sum(nn.functional.cross_entropy(m, y) for m in mem),
    "rate": lambda spk, mem, y: SF.ce_rate_loss()(spk, y),
    "count": lambda spk, mem, y: SF.ce_count_loss()(spk, y),
}
RULES = ("bptt", "dfa", "linear", "half", "by-sample", "fixed", "kolen-pollack", "fa", "shallow")


# -- data ------------------------------------------------------------------------------------------


def parts(name: str = "", root: Path | None = None) -> list[tuple[Tensor, Tensor]]:
    """Return samples and classes: to learn from, to choose by, to test.

    Samples are digits [S, 1, 8, 8] in [0, 1] or, for a network on events, spikes [S, T, 2, 34, 34].
    """
    if name in MORE["events"]:
        if root is None:
            raise SystemExit("learning.py: expected --data-root for networks on events")
        x, y = map(torch.cat, zip(*nmnist(root, steps=2 * STEPS), strict=True))
    else:
        digits = load_digits()
        x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
        y = torch.tensor(digits.target)
    order = torch.tensor(np.random.default_rng(0).permutation(len(y)))
    at = len(y) * 3 // 5, len(y) * 4 // 5
    return list(zip(x[order].tensor_split(at), y[order].tensor_split(at), strict=True))


def steps_of(name: str, x: Tensor) -> Tensor:
    """Return what a network is given [T, B, ...]: the image, its rows in turn, or spikes."""
    if name in MORE["events"]:
        return x.transpose(0, 1).float()
    return x[:, 0].transpose(0, 1) if name == "recurrent" else x.expand(STEPS, *x.shape)


# -- one run ---------------------------------------------------------------------------------------


def forward_pass(name: str, net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return spikes and membranes [T, B, 10] of a network in the form over time."""
    reset(net)
    spk, *_, mem = net(steps_of(name, x))
    return spk, mem


def accuracy_on(name: str, loss: str, net: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Return the share of images whose class has most spikes or, on membranes, the largest sum."""
    net.eval()
    with torch.no_grad():
        spk, mem = forward_pass(name, net, part[0])
    votes = mem if loss == "membrane" or name == "readout" else spk
    return 100 * (votes.sum(0).argmax(1) == part[1]).float().mean().item()


def attach(rule: str, net: nn.Module, optimizer: torch.optim.Optimizer) -> DFA | None:
    """Attach a rule as its name says; ``bptt`` attaches nothing."""
    output = {"output": "fc3"} if hasattr(net, "fc3") else {}
    options: Mapping[str, Any] = {
        "dfa": {"optimizer": optimizer}, "fixed": {}, "shallow": {"rule": "shallow"},
        "kolen-pollack": {"optimizer": optimizer, "feedback": "kolen-pollack"},
        "linear": {"optimizer": optimizer, "feedback": WeightMirror(by_sample=0)},
        "half": {"optimizer": optimizer, "feedback": WeightMirror(by_sample=0.5)},
        "by-sample": {"optimizer": optimizer, "feedback": WeightMirror(by_sample=1)},
        "fa": {"optimizer": optimizer, "feedback": "weight-mirror", "rule": "fa"},
    }  # fmt: skip
    return None if rule == "bptt" else DFA(net, **options[rule], **output)


def run(
    name: str, loss: str, rule: str, rate: float, seed: int, attach: Callable[..., Any] = attach,
    epochs: int = EPOCHS, root: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train; return accuracy on the part that chooses and on that which is tested."""
    train, choose, test = parts(name, root)
    torch.manual_seed(seed)
    net = over_time(_ALL[name]())
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    attach(rule, net, optimizer)
    started, course = time.perf_counter(), []
    for _ in range(epochs):
        net.train()
        for rows in torch.randperm(len(train[1])).split(BATCH):
            spk, mem = forward_pass(name, net, train[0][rows])
            optimizer.zero_grad()
            LOSSES[loss](spk, mem, train[1][rows]).backward()
            optimizer.step()
        course.append(round(accuracy_on(name, loss, net, choose), 2))
    return {
        "network": name, "loss": loss, "rule": rule, "rate": rate, "seed": seed,
        "validation": fmean(course[-3:]), "course": course,
        "test": accuracy_on(name, loss, net, test),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


# -- all of them -----------------------------------------------------------------------------------


def losses_of(name: str) -> list[str]:
    """Return the losses that a network is trained with."""
    return ["membrane"] if name == "readout" else ["membrane", "rate"]


def networks_of(names: str) -> list[str]:
    """Return the names of networks; that of a group stands for all in it."""
    return [n for name in names.split(",") for n in MORE.get(name, [name])]


def table(results: list[dict[str, Any]], rules: list[str]) -> str:
    """Return test accuracy by network and rule, with the rate that is best on validation."""
    rows = [f"| network | loss |{'|'.join(f' {r} ' for r in rules)}|"]
    rows.append("| --- | --- |" + " ---: |" * len(rules))
    for name in _ALL:
        for loss in LOSSES:
            cells = [_cell(results, name, loss, rule) for rule in rules]
            if any(cells):
                rows.append(f"| {name} | {loss} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(results: list[dict[str, Any]], name: str, loss: str, rule: str) -> str:
    """Return mean and worst test accuracy over seeds, the rate and the number of seeds."""
    its = [r for r in results if (r["network"], r["loss"], r["rule"]) == (name, loss, rule)]
    rates = {r["rate"]: [q for q in its if q["rate"] == r["rate"]] for r in its}
    if not rates:
        return ""
    best = max(rates, key=lambda rate: fmean(r["validation"] for r in rates[rate]))
    tests = [r["test"] for r in rates[best]]
    return f"{fmean(tests):.1f} ({min(tests):.1f}; {best:g}; {len(tests)})"


def missing(args: argparse.Namespace, done: set[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return network, loss, rule, rate and seed of the runs that are not done, seed by seed."""
    rates = [float(r) for r in args.rates.split(",")]
    runs = itertools.product(
        range(args.seeds), rates, networks_of(args.networks), args.rules.split(",")
    )
    each = (
        (name, loss, rule, rate, seed)
        for seed, rate, name, rule in runs
        for loss in losses_of(name)
        if loss in args.losses.split(",")
    )
    return [one for one in each if one not in done]


def main() -> None:
    """Do the runs that are not there yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--rules", default="bptt,dfa,shallow")
    parser.add_argument("--rates", default="3e-4,1e-3,3e-3,1e-2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-root", type=Path, help="folder of N-MNIST, for ``events``")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "learning.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    keys = ("network", "loss", "rule", "rate", "seed")
    left = missing(args, {tuple(r[k] for k in keys) for r in results})
    with ProcessPoolExecutor(args.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in as_completed([pool.submit(run, *one, root=args.data_root) for one in left]):
            results.append(last := done.result())
            print(*(last[k] for k in (*keys, "validation", "test", "seconds")), flush=True)
            part = args.out.with_suffix(".part")
            part.write_text("[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
            part.replace(args.out)
    print(table(results, args.rules.split(",")))


if __name__ == "__main__":
    main()
