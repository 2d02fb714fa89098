"""How fast, and how well, it learns on this device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu_parts.visit import Visit
from snn_dfa.experiments.data import Part, Splits, load
from snn_dfa.experiments.recipes import RECIPES, fitted
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.train.trainer import Trainer


def _images(visit: Visit, settings: Settings, image: tuple[int, ...]) -> tuple[str, Splits]:
    """Return the data set, or noisy prototypes in its place if no file is at hand."""
    at_hand = (Path(settings.data_root) / "MNIST").is_dir() or settings.dataset.endswith(".npz")
    if settings.dataset and at_hand:
        return settings.dataset, load(settings)
    g, count = torch.Generator().manual_seed(0), visit.sizes.images

    def part(size: int) -> Part:
        y = torch.arange(size) % 10
        return Part((prototypes[y] + torch.rand(size, *image, generator=g)) / 2, y)

    prototypes = torch.rand(10, *image, generator=g)
    held = max(count // 20, 10)
    return "synthetic", Splits(part(count - held), part(held), part(max(count // 6, 10)))


def _train(visit: Visit, settings: Settings, data: Splits, rule: str, **about: Any) -> None:
    """Train, with a line for each epoch."""
    trainer = Trainer(settings, rule, data)
    for line in trainer.fit():
        steps = 1e3 * sorted(trainer.step_seconds)[len(trainer.step_seconds) // 2]
        visit.say(contestant=rule, **about, seed=settings.seed, epochs=settings.epochs, **line,
                  ms_per_step=steps, seconds=trainer.epoch_seconds[-1]["epoch"],
                  seconds_in_steps=trainer.epoch_seconds[-1]["steps"])  # fmt: skip


def epoch(visit: Visit) -> None:
    """An epoch of MNIST with the recipe deep, its evaluations included."""
    settings = replace(
        RECIPES["deep"].settings, dataset="mnist", data_root=str(visit.args.data_root), epochs=1,
        device=visit.device, hidden=visit.sizes.deep,
    )  # fmt: skip
    name, data = _images(visit, settings, (1, 28, 28))
    for amp in (False, True):
        for rule in ("dfa", "bptt"):
            _train(visit, replace(settings, amp=amp), data, rule, images=name, amp=amp)


def images(visit: Visit) -> None:
    """CIFAR-10, or other images, with a recipe: DFA and BPTT, as many seeds as the time gives."""
    args, recipe = visit.args, RECIPES[visit.args.recipe].settings
    settings = replace(recipe, dataset=args.images, device=visit.device, amp=args.amp)
    if args.small:
        settings = replace(settings, hidden=("4c3", "mp2"), steps=2, batch_size=16)
    for seed in range(1 if args.small else 100):
        name, data = _images(visit, replace(settings, seed=seed), (3, 32, 32))
        fit = fitted(args.recipe, replace(settings, seed=seed), len(data.train), data.image)
        fit = replace(fit, epochs=1 if args.small else args.epochs or fit.epochs)
        for rule in ("dfa", "bptt"):
            _train(visit, fit, data, rule, recipe=args.recipe, images=name)
