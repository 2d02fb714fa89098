"""Angles of DFA's gradients to back-propagation's in five convolutions, along a training.

    python benchmarks/angles.py cifar15k.npz
    python benchmarks/angles.py cifar15k.npz --rules linear,dfa --epochs 6 --json angles.json

File, images and network are those of ``deep_convolutions.py``, with 16 and 32 channels: five
convolutions with batch normalisation, trained with each rule on the first 2,000 images (4 steps,
batches of 64, AdamW at 3e-3, decay 0.2). Before the training and after each epoch
`diagnostics.gradient_angles` measures 128 of these images. The rules are those of ``learning.py``:
``fixed`` is ``DFA(net)``; ``kolen-pollack`` learns a matrix for each layer; ``linear``, ``dfa`` and
``by-sample`` are ``WeightMirror`` with ``by_sample`` of 0, of 0.8 (the default) and of 1; ``fa``
goes from layer to layer by factors that mirror the weights. The angles before training are those
after one step with a rate of 0, since learned feedback has no factors before. A seed of all rules
takes two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

import torch
from deep_convolutions import STEPS, images, network
from learning import attach
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import diagnostics

RULES = ("fixed", "kolen-pollack", "linear", "dfa", "by-sample", "fa")
WIDTH, IMAGES, MEASURED, BATCH = 16, 2000, 128, 64


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of spike counts."""
    return functional.cross_entropy(net(x.expand(STEPS, *x.shape)).sum(0) / 0.7, y)


def run(rule: str, seed: int, epochs: int, x: Tensor, y: Tensor) -> list[list[float]]:
    """Train with one rule; return each convolution's angle at the start and after each epoch."""
    torch.manual_seed(seed)
    net = network(WIDTH, x.shape[-1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=0.2)
    dfa = attach(rule, net, optimizer)
    assert dfa is not None, "back-propagation has no angle to itself"
    course = []

    def step(rows: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(net, x[rows], y[rows]).backward()
        optimizer.step()

    def measure() -> None:
        found = diagnostics.gradient_angles(
            dfa, lambda net: loss_of(net, x[:MEASURED], y[:MEASURED])
        )
        course.append([round(angle, 1) for angle in list(found.values())[:-1]])

    step(torch.arange(BATCH))
    measure()
    optimizer.param_groups[0]["lr"] = 3e-3
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            step(rows)
        measure()
        print(f"{rule}, seed {seed}: {course[-1]}", flush=True)
    return course


def main() -> None:
    """Print the angles, and their means over seeds; write all where ``--json`` says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = images(args.file, whole=False)
    x, y = data["x_train"][:IMAGES], data["y_train"][:IMAGES]
    found: dict[str, list[list[list[float]]]] = {}
    for rule in args.rules.split(","):
        found[rule] = [run(rule, seed, args.epochs, x, y) for seed in range(args.seeds)]
        for epoch, each in enumerate(zip(*found[rule], strict=True)):
            print(rule, epoch, ", ".join(f"{fmean(a):.0f}" for a in zip(*each, strict=True)))
        if args.json is not None:
            args.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
