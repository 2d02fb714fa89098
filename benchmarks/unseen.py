"""How well one line learns networks and data on which nothing of it was chosen.

    python benchmarks/unseen.py --mnist DIR --events DIR --cifar FILE
    python benchmarks/unseen.py --tasks waves,series --rules bptt,dfa --seeds 1

The networks are those of ``unseen_networks.py``. Each has the data, loss, optimiser, batch and
schedule that its `Task` names, two rates to choose from, and a few hundred updates. Parts are drawn
by the seed. A score is the share of right answers in percent, or of the variance that is explained.
``--mnist`` is torchvision's folder, ``--events`` has the extract of N-MNIST, and ``--cifar`` is a
file of arrays (``x_train`` [S, 3, 32, 32], ``y_train``, ``x_test``, ``y_test``; here 3,000 and
2,000 images of CIFAR-10). Tasks whose data are not named are left out. Rules, and how results are
kept, are those of ``learning.py``. A run takes 2 to 60 seconds of one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
import unseen_networks as networks
from learning import attach
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_moons
from snntorch import functional as SF
from snntorch import spikegen, surrogate
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa.experiments.data.recordings import nmnist

HERE = Path(__file__).parent
#: Samples and targets.
Part = tuple[Tensor, Tensor]


# -- data: all samples there are -------------------------------------------------------------------


@cache
def digits(root: None = None) -> Part:
    """Return scikit-learn's digits [S, 1, 8, 8]."""
    found = load_digits()
    return torch.tensor(found.images / 16).float()[:, None], torch.tensor(found.target)


def table(load: Callable[..., Any], root: None = None) -> Part:
    """Return measurements [S, features] of mean 0 and variance 1."""
    x, y = map(torch.tensor, load(return_X_y=True))
    return ((x - x.mean(0)) / x.std(0)).float(), y


def moons(root: None = None) -> Part:
    """Return points of two half circles, with noise."""
    x, y = make_moons(3000, noise=0.15, random_state=0)
    return torch.tensor(x).float(), torch.tensor(y)


@cache
def mnist(root: Path) -> Part:
    """Return MNIST's images [S, 1, 28, 28], those to learn from first."""
    sets = [torchvision.datasets.MNIST(str(root), train=train) for train in (True, False)]
    x, y = (torch.cat([getattr(s, name) for s in sets]) for name in ("data", "targets"))
    return x[:, None].float() / 255, y


@cache
def cifar(root: Path) -> Part:
    """Return images [S, 3, 16, 16], and whether each has an animal."""
    found = np.load(root)
    x, y = (np.concatenate([found[f"{n}_{part}"] for part in ("train", "test")]) for n in "xy")
    return functional.avg_pool2d(torch.tensor(x).float() / 127.5 - 1, 2), torch.tensor(
        (y > 1) & (y < 8)
    ).long()


@cache
def events(root: Path) -> Part:
    """Return recordings [S, 10, 2, 17, 17]."""
    found = nmnist(root, steps=10, downsample=2)
    x, y = map(torch.cat, zip(*found, strict=True))
    return x.float(), y


@cache
def signals(root: None = None) -> Part:
    """Return signals [S, 1, 64] of five forms, each with a pitch, a phase and noise."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(5, (4000,), generator=g)
    pitch, phase = 2 + 4 * torch.rand(4000, 1, generator=g), torch.rand(4000, 1, generator=g)
    turn = (torch.linspace(0, 1, 64) * pitch + phase) % 1
    sine = (2 * math.pi * turn).sin()
    forms = torch.stack(
        [sine, sine.sign(), 2 * turn - 1, 4 * (turn - 0.5).abs() - 1,
         sine * (2 * math.pi * 3 * torch.linspace(0, 1, 64)).sin()]
    )  # fmt: skip
    x = forms[y, torch.arange(4000)] + 0.4 * torch.randn(4000, 64, generator=g)
    return x[:, None], y


@cache
def series(root: None = None) -> Part:
    """Return pieces [S, 10, 4] of Mackey and Glass's series, and what follows each four."""
    x = [1.2] * 18
    for _ in range(10 * 4000):
        x.append(x[-1] + 0.2 * x[-18] / (1 + x[-18] ** 10) - 0.1 * x[-1])
    found = torch.tensor(x)[500::3]
    pieces = ((found - found.mean()) / found.std()).unfold(0, 46, 4)
    return pieces[:, :40].unflatten(1, (10, 4)), pieces[:, 9::4][:, :10, None]


# -- tasks -----------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What is trained, and how.

    Args:
        network: Makes it.
        data: Returns all samples, from the root of those that are not at hand.
        loss: Of spikes, membranes [T, B, C] and targets.
        steps: From samples to a sequence [T, B, ...].
        rates: To choose from.
        optimizer: From parameters and ``lr``.
        read: ``"membrane"``, ``"spikes"``, ``"first spikes"``, ``"population"``: what answers are
            read from; ``"last membrane"``, ``"all membranes"``: no answers, but numbers.
        root: Name of the option that says where the data are.
        samples: To learn from.
        batch: So many.
        epochs: So many.
        cycle: Whether the rate goes up and down once.
        clip: Norm of the gradient, at most.
    """

    network: Callable[[], nn.Module]
    data: Callable[[Any], Part]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    steps: Callable[[Tensor], Tensor]
    rates: Sequence[float] = (1e-3, 5e-3)
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    read: str = "membrane"
    root: str = ""
    samples: int = 1000
    batch: int = 64
    epochs: int = 12
    cycle: bool = False
    clip: float = math.inf


def repeated(steps: int) -> Callable[[Tensor], Tensor]:
    """Return a function that gives the same at all steps."""
    return lambda x: x.expand(steps, *x.shape)


def first_spikes(x: Tensor) -> Tensor:
    """Return one spike of each number, the sooner the larger it is."""
    return spikegen.latency(x.sigmoid(), num_steps=8, normalize=True, linear=True)


def half_size(x: Tensor) -> Tensor:
    """Return images of 14x14 pixels at four steps."""
    return functional.avg_pool2d(x, 2).expand(4, -1, -1, -1, -1)


def on_spikes(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return one of snnTorch's losses on spikes."""
    return lambda spk, mem, y: loss(spk, y)


def on_membranes(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return one of snnTorch's losses on membranes."""
    return lambda spk, mem, y: loss(mem, y)


def entropy(spk: Tensor, mem: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of the mean membrane."""
    return functional.cross_entropy(mem.mean(0), y)


_SGD = partial(torch.optim.SGD, momentum=0.9)
_DECAY = partial(torch.optim.AdamW, weight_decay=0.1)
_COUNTS: Mapping[str, Any] = {"population_code": True, "num_classes": 3}
TASKS: Mapping[str, Task] = {
    "autoencoder": Task(
        networks.Autoencoder, lambda _: (x := digits()[0], x.flatten(1)),
        lambda spk, mem, y: functional.mse_loss(mem[-1], y), lambda x: repeated(8)(x.flatten(1)),
        read="last membrane", epochs=15,
    ),
    "averages": Task(
        networks.averages, mnist, entropy, repeated(5), (0.02, 0.1), _SGD, root="mnist",
        samples=3000, epochs=4, cycle=True,
    ),
    "inverted": Task(
        networks.inverted, cifar, entropy, repeated(4), (2e-3, 1e-2), _DECAY, root="cifar",
        samples=2500, epochs=5, cycle=True,
    ),
    "waves": Task(
        networks.waves, signals, on_spikes(SF.ce_rate_loss()), repeated(6), read="spikes", epochs=8
    ),
    "spoken": Task(
        networks.Spoken, signals, on_membranes(SF.ce_max_membrane_loss()),
        lambda x: x.unflatten(2, (8, 8))[:, 0].transpose(0, 1), samples=2000, epochs=8, clip=1,
    ),
    "learnt": Task(
        networks.learnt, moons, entropy, repeated(10), samples=400, batch=16,
    ),
    "rows": Task(
        networks.Rows, digits, entropy, lambda x: x[:, 0].transpose(0, 1), (2e-3, 1e-2),
        epochs=15,
    ),
    "zero": Task(
        networks.zero, mnist, on_spikes(SF.ce_count_loss()), repeated(8), read="spikes",
        root="mnist", samples=3000, epochs=4, clip=1,
    ),
    "before": Task(
        networks.before, partial(table, load_breast_cancer),
        on_membranes(SF.ce_max_membrane_loss()), repeated(6), samples=300, batch=16,
    ),
    "places": Task(
        networks.Places, mnist, entropy, half_size, (3e-3, 1e-2), root="mnist", samples=3000,
        epochs=5, cycle=True,
    ),
    "series": Task(
        networks.Series, series, lambda spk, mem, y: functional.mse_loss(mem, y.transpose(0, 1)),
        lambda x: x.transpose(0, 1), read="all membranes", epochs=15, clip=1,
    ),
    "groups": Task(
        networks.groups, events, entropy, lambda x: x.transpose(0, 1), (2e-3, 1e-2), _DECAY,
        root="events", samples=700, epochs=10, cycle=True,
    ),
    "large-beta": Task(
        partial(networks.dense, 64, 100, 100, 100, 10, beta=0.99), digits, entropy, repeated(10),
        optimizer=_DECAY, samples=200, batch=16, epochs=15,
    ),
    "population": Task(
        partial(networks.dense, 13, 80, 60), partial(table, load_wine),
        on_spikes(SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.1, **_COUNTS)),
        first_spikes, read="population", samples=100, batch=16, epochs=30,
    ),
    "first": Task(
        partial(networks.dense, 784, 128, 10), mnist, on_spikes(SF.ce_temporal_loss()),
        repeated(8), read="first spikes", root="mnist", samples=3000, epochs=4,
    ),
    "large-batch": Task(
        partial(networks.dense, 784, 256, 128, 64, 10, spike_grad=surrogate.sigmoid(slope=2)),
        mnist, on_membranes(SF.ce_rate_loss()), repeated(6), (5e-4, 2e-3), root="mnist",
        samples=3000, batch=512, epochs=16,
    ),
}  # fmt: skip


# -- one run ---------------------------------------------------------------------------------------


def parts_of(task: Task, root: Path | None, seed: int) -> tuple[Part, Part, Part]:
    """Return samples to learn from, to choose by, and up to 2,000 to test, drawn by the seed."""
    x, y = task.data(root)
    order = torch.tensor(np.random.default_rng(seed).permutation(len(y)))
    n = task.samples
    choose = min(1000, (len(y) - n) // 3)
    learn, choice, test = order[:n], order[n : n + choose], order[n + choose :][:2000]
    return (x[learn], y[learn]), (x[choice], y[choice]), (x[test], y[test])


def score(task: Task, net: nn.Module, part: Part) -> float:
    """Return right answers in percent, or the percentage of the variance that is explained."""
    net.eval()
    x, y = part
    with torch.no_grad():
        found = [net(task.steps(rows)) for rows in x.split(500)]
    spk, mem = (torch.cat(each, 1) for each in zip(*found, strict=True))
    if task.read in ("last membrane", "all membranes"):
        out = mem[-1] if task.read == "last membrane" else mem.transpose(0, 1)
        return 100 - 100 * functional.mse_loss(out, y).item() / y.var(0).mean().item()
    if task.read == "population":
        return 100 * float(SF.accuracy_rate(spk, y, **_COUNTS))
    if task.read == "first spikes":
        return 100 * float(SF.accuracy_temporal(spk, y))
    votes = (spk if task.read == "spikes" else mem).sum(0)
    return 100 * (votes.argmax(1) == y).float().mean().item()


def run(name: str, rule: str, rate: float, seed: int, root: Path | None = None) -> dict[str, Any]:
    """Train; return the score on the part that chooses and on that which is tested."""
    task = TASKS[name]
    learn, choose, test = parts_of(task, root, seed)
    torch.manual_seed(seed)
    net = task.network()
    optimizer = task.optimizer(net.parameters(), lr=rate)
    updates = task.epochs * -(-len(learn[1]) // task.batch)
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=updates)
        if task.cycle else None
    )  # fmt: skip
    attach(rule, net.net if isinstance(net, networks.Loop) else net, optimizer)
    started, course = time.perf_counter(), []
    for _ in range(task.epochs):
        net.train()
        for rows in torch.randperm(len(learn[1])).split(task.batch):
            optimizer.zero_grad()
            task.loss(*net(task.steps(learn[0][rows])), learn[1][rows]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), task.clip)
            optimizer.step()
            if schedule is not None:
                schedule.step()
        course.append(round(score(task, net, choose), 2))
    return {
        "network": name, "loss": task.read, "rule": rule, "rate": rate, "seed": seed,
        "course": course, "validation": round(fmean(course[-3:]), 2),
        "test": round(score(task, net, test), 2),
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


# -- all of them -----------------------------------------------------------------------------------


def best(results: Sequence[Any], name: str, rule: str) -> list[Any]:
    """Return the runs with the rate that is best on validation."""
    its = [r for r in results if (r["network"], r["rule"]) == (name, rule)]
    rates: dict[float, list[Any]] = {}
    for run in its:
        rates.setdefault(run["rate"], []).append(run)
    return max(rates.values(), key=lambda each: fmean(r["validation"] for r in each), default=[])


def main() -> None:
    """Do the runs that are not there yet; print mean and worst of each task and rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rules", default="bptt,dfa,shallow")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "unseen.json")
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--events", type=Path)
    parser.add_argument("--cifar", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    keys = ("network", "rule", "rate", "seed")
    done = {tuple(r[k] for k in keys) for r in results}
    rules, names = args.rules.split(","), args.tasks.split(",")
    for seed, name, rule in itertools.product(range(args.seeds), names, rules):
        root = getattr(args, TASKS[name].root or "mnist")
        for rate in TASKS[name].rates:
            if (name, rule, rate, seed) in done or (TASKS[name].root and root is None):
                continue
            results.append(last := run(name, rule, rate, seed, root))
            print(*(last[k] for k in (*keys, "validation", "test", "seconds")), flush=True)
            args.out.write_text("[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
    for name in names:
        for rule in rules:
            if tests := [r["test"] for r in best(results, name, rule)]:
                print(f"{name}, {rule}: {fmean(tests):.1f} ({min(tests):.1f})")


if __name__ == "__main__":
    main()
