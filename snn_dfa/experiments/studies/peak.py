"""What a training step adds to the memory of a process, measured in a process of its own."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import torch

from snn_dfa.experiments.data import Part, Splits
from snn_dfa.experiments.memory import resident_megabytes
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.train.trainer import Trainer

__all__ = ["peak_megabytes"]

_FEW = 4  # samples of a step before, which takes what is needed but once


def peak_megabytes(settings: Settings, rule: str, image: tuple[int, ...], classes: int) -> float:
    """Return how far the peak of the resident memory rises in a pass forward and backward.

    Of a batch of noise, after a step of a few samples. Online it holds a pass for each time step.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(_risen, settings, rule, image, classes).result()


def _risen(settings: Settings, rule: str, image: tuple[int, ...], classes: int) -> float:
    torch.manual_seed(settings.seed)
    size = settings.batch_size
    part = Part(torch.rand(size, *image), torch.arange(size) % classes)
    trainer = Trainer(settings, rule, Splits(part, part, part))
    _step(trainer, _FEW)
    with suppress(OSError):  # on Linux the peak is counted anew from here
        Path("/proc/self/clear_refs").write_text("5")
    before = resident_megabytes()
    _step(trainer, size)
    return resident_megabytes() - before


def _step(trainer: Trainer, size: int) -> None:
    for loss in trainer.passes(size):
        torch.autograd.backward(loss)
