"""Images as tensors in [0, 1], split into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from snn_dfa.experiments.settings import UsageError

__all__ = ["DATASETS", "Part", "Splits", "load"]

#: Name on the command line to class in torchvision; the digits come with scikit-learn.
DATASETS = {
    "digits": None,
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
}
_DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Part:
    """Images x [S, channels, height, width] in [0, 1] and class indices y [S]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Part:
        """Return the part on a device."""
        return Part(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set; ``val`` is held out of what the data set gives to train on."""

    train: Part
    val: Part
    test: Part

    @property
    def image(self) -> tuple[int, ...]:
        """Channels, height and width of an image."""
        return tuple(self.train.x.shape[1:])

    @property
    def classes(self) -> int:
        """C, how many classes there are."""
        return int(self.train.y.max()) + 1


def load(dataset: str, root: str | Path, seed: int, validation: float = 0.1) -> Splits:
    """Return a data set's splits; the test part does not depend on the seed.

    Args:
        dataset: One of :data:`DATASETS`.
        root: Folder of what torchvision downloads.
        seed: Of the draw of the validation part.
        validation: Share of the training set that is held out.

    Raises:
        UsageError: if the data set is unknown, or neither in ``root`` nor to be downloaded.
    """
    if dataset not in DATASETS:
        raise UsageError(f"--dataset: expected one of {', '.join(DATASETS)}, got {dataset!r}")
    kind = DATASETS[dataset]
    full, test = _digits() if kind is None else _torchvision(kind, Path(root))
    order = torch.randperm(len(full), generator=torch.Generator().manual_seed(seed))
    held = max(round(len(full) * validation), 1)
    val, train = order[:held], order[held:]
    return Splits(Part(full.x[train], full.y[train]), Part(full.x[val], full.y[val]), test)


def _digits() -> tuple[Part, Part]:
    """1,797 digits of 8x8 pixels; a fifth of each class, fixed, is the test part."""
    digits = load_digits()
    x, y = digits.images[:, None].astype(np.float32) / 16, digits.target
    parts = train_test_split(x, y, test_size=_DIGITS_TEST_SHARE, stratify=y, random_state=0)
    train_x, test_x, train_y, test_y = map(torch.as_tensor, parts)
    return Part(train_x, train_y), Part(test_x, test_y)


def _torchvision(kind: str, root: Path) -> tuple[Part, Part]:
    from torchvision import datasets  # costs a second, and the digits do without

    def part(train: bool) -> Part:
        try:
            data = getattr(datasets, kind)(root, train=train, download=False)
        except RuntimeError:  # not there
            data = getattr(datasets, kind)(root, train=train, download=True)
        return Part(data.data.unsqueeze(1).float() / 255, data.targets.long())

    folder = root / kind / "raw"
    try:
        return part(True), part(False)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(
            f"--data-root: no readable {kind} in {folder.resolve()} and no download ({reason}); "
            f"put its IDX files there or name the folder above {kind}/raw with --data-root"
        ) from error
