"""Images in [0, 1], or recordings of events, split into training, validation and test."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snn_dfa.experiments.data.arrays import SUFFIX, arrays
from snn_dfa.experiments.data.event_sets import dvs_gesture, ncaltech101, shd, ssc
from snn_dfa.experiments.data.recordings import Recordings, nmnist
from snn_dfa.experiments.files import READ_ERRORS, on_one_line
from snn_dfa.experiments.settings import Settings, UsageError

__all__ = ["DATASETS", "RECORDINGS", "SHOWN", "Part", "Splits", "load"]

#: Name on the command line to class in torchvision, which has neither scikit-learn's digits nor
#: recordings of events.
DATASETS = {
    "digits": None,
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "nmnist": None,
    "shd": None,
    "ssc": None,
    "dvs-gesture": None,
    "ncaltech101": None,
}
#: What ``--dataset`` takes.
SHOWN = f"one of {', '.join(DATASETS)}, or a file of arrays, NAME{SUFFIX}"
#: Name of a data set of recordings to what reads it, from folder, steps and downsampling.
RECORDINGS: dict[str, Callable[[Path, int, int], tuple[Recordings, Recordings]]] = {
    "nmnist": nmnist,
    "shd": shd,
    "ssc": ssc,
    "dvs-gesture": dvs_gesture,
    "ncaltech101": ncaltech101,
}
_DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Part:
    """Images x [S, channels, height, width] in [0, 1], or spikes [S, T, ...], and classes y [S]."""

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
        return tuple(self.train.x.shape[-3:])

    @property
    def classes(self) -> int:
        """C, how many classes there are."""
        return 1 + max(int(part.y.max()) for part in (self.train, self.val, self.test))

    @cached_property
    def checksum(self) -> int:
        """Of shapes and values, so that other data is noticed."""
        parts = (self.train, self.val, self.test)
        arrays = [t.cpu().contiguous().numpy() for part in parts for t in (part.x, part.y)]
        crc = zlib.crc32(repr([a.shape for a in arrays]).encode())
        for array in arrays:
            crc = zlib.crc32(array.data, crc)
        return crc


def load(settings: Settings) -> Splits:
    """Return a data set's splits.

    The validation part is drawn by the seed; the test part does not depend on it, but with
    ``folds``, where it is the fold of the number that remains of the seed.

    Raises:
        UsageError: if the data set is unknown, neither in the folder nor to be downloaded, damaged,
            or too small for what is asked.
    """
    full, test = _read(settings)
    if settings.folds:
        full, test = _fold(full, test, settings.folds, settings.seed % settings.folds)
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(full), generator=generator)
    held = max(round(len(full) * settings.validation), 1)
    if len(full) - held < 2:
        raise UsageError(
            f"--validation: expected two samples or more to be left to train on, got "
            f"{len(full) - held} of {len(full)}"
        )
    val, train = order[:held], order[held:]
    return Splits(Part(full.x[train], full.y[train]), Part(full.x[val], full.y[val]), test)


def _read(settings: Settings) -> tuple[Part, Part]:
    """Return all that the data set gives to train on, and its test part."""
    dataset, root = settings.dataset, Path(settings.data_root)
    if dataset not in DATASETS and not dataset.endswith(SUFFIX):
        raise UsageError(f"--dataset: expected {SHOWN}, got {dataset!r}")
    records = dataset in RECORDINGS
    if records != (settings.encoding == "events"):
        fitting = "events" if records else "poisson or constant"
        raise UsageError(
            f"--encoding: expected {fitting} with --dataset {dataset}, got {settings.encoding}"
        )
    if records or dataset.endswith(SUFFIX):
        train, test = (
            RECORDINGS[dataset](root, settings.steps, settings.downsample)
            if records
            else arrays(Path(dataset))
        )
        return Part(*train), Part(*test)
    kind = DATASETS[dataset]
    return _digits() if kind is None else _torchvision(kind, root)


def _fold(full: Part, test: Part, folds: int, number: int) -> tuple[Part, Part]:
    """Return all samples but those of a fold, and these, with the classes in equal shares."""
    x, y = torch.cat([full.x, test.x]), torch.cat([full.y, test.y])
    most = int(torch.bincount(y).max())
    if folds > most:
        raise UsageError(
            f"--folds: expected at most {most}, the samples of the largest class, got {folds}"
        )
    from sklearn.model_selection import StratifiedKFold  # costs two seconds

    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    rest, fold = list(splitter.split(y, y))[number]
    return Part(x[rest], y[rest]), Part(x[fold], y[fold])


def _digits() -> tuple[Part, Part]:
    """1,797 digits of 8x8 pixels; a fifth of each class, fixed, is the test part."""
    from sklearn.datasets import load_digits  # costs two seconds, as does the next one
    from sklearn.model_selection import train_test_split

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
        x, y = torch.as_tensor(data.data), torch.as_tensor(data.targets)
        x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()  # of colours
        return Part(x.float() / 255, y.long())

    # CIFAR's folder has the name that its authors gave it.
    named = getattr(getattr(datasets, kind), "base_folder", "")
    folder, files = root / (named or f"{kind}/raw"), "files" if named else "IDX files"
    try:
        return part(True), part(False)
    except (*READ_ERRORS, AssertionError, TypeError) as error:  # as torchvision has it
        reason = on_one_line(error, 120) or "a file is damaged"
        raise UsageError(
            f"--data-root: no readable {kind} in {folder.resolve()} and no download ({reason}); "
            f"put its {files} there or name the folder above {folder.relative_to(root)} with "
            f"--data-root"
        ) from error
