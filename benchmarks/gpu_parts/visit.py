"""What every part is given: options, sizes, and where results go."""

from __future__ import annotations

import argparse
import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["ROOT", "Visit", "allow_tf32", "in_short"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    steps: tuple[int, ...] = (25, 100, 400)
    batch: int = 128
    dense: tuple[int, ...] = (784, 1000, 250, 100, 10)
    repeats: int = 15
    neuron: tuple[int, ...] = (32, 64, 65_536)  # T, B, N
    copied: int = 2**30  # bytes
    wide: tuple[int, ...] = (500, 16, 16_384)  # T, B, N
    images: int = 60_000
    deep: tuple[int, ...] = (1000, 250, 100)
    deep_steps: int = 25
    programs: int = 800
    jobs: int = 12  # processes


SMALL = Sizes(
    steps=(2,), batch=2, dense=(784, 16, 10), repeats=2, neuron=(4, 2, 64), copied=2**16,
    wide=(3, 2, 32), images=64, deep=(16, 12), deep_steps=3, programs=5, jobs=1,
)  # fmt: skip


class Visit:
    """What a part needs: the options, the sizes, and where its results go."""

    def __init__(self, args: argparse.Namespace, part: str) -> None:
        self.args, self.part = args, part
        self.device: str = args.device
        self.on_gpu = self.device.startswith("cuda")
        self.sizes = SMALL if args.small else Sizes()

    def say(self, **result: Any) -> None:
        """Write a result, at once."""
        with (self.args.out / "results.jsonl").open("a") as file:
            file.write(json.dumps({"part": self.part, **result}) + "\n")

    def failed(self, name: str, error: Exception, **more: Any) -> None:
        """Write that a contestant raised an error; the others go on."""
        traceback.print_exception(error)
        self.say(contestant=name, **more, error=in_short(error))
        if self.on_gpu:
            torch.cuda.empty_cache()


def in_short(error: BaseException) -> str:
    """Return an error on a line."""
    return f"{type(error).__name__}: {error}"[:600]


def allow_tf32(on: bool) -> None:
    """Let matrix products and convolutions of float32 be rounded to TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
