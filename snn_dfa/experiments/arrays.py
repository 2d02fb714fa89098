"""A data set of one's own: a file of NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from snn_dfa.experiments.files import DAMAGE
from snn_dfa.experiments.settings import UsageError

__all__ = ["SUFFIX", "Samples", "arrays"]

#: What a data set's name ends in that is a file.
SUFFIX = ".npz"

#: Images [S, channels, height, width] in [0, 1], and class indices [S].
Samples = tuple[torch.Tensor, torch.Tensor]


def arrays(path: Path) -> tuple[Samples, Samples]:
    """Read the training and the test samples of a file that ``numpy.savez`` wrote.

    Args:
        path: Of the file. ``x_train`` and ``x_test`` are bytes from 0 to 255 or numbers from 0 to
            1, of shape [S, height, width], [S, channels, height, width] or, for samples that are
            no images, [S, features]; ``y_train`` and ``y_test`` are whole numbers from 0 on.

    Raises:
        UsageError: if the file is not there, or an array is missing or not so.
    """
    try:
        with path.open("rb") as raw, _opened(raw) as file:
            found = list(file)
            train, test = (_part(file, part) for part in ("train", "test"))
    except FileNotFoundError as error:
        raise UsageError(f"--dataset: expected a file at {path.resolve()}, found none") from error
    except KeyError as error:
        raise UsageError(
            f"--dataset: expected x_train, y_train, x_test and y_test in {path}, found "
            f"{', '.join(found) or 'nothing'}"
        ) from error
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:100]
        raise UsageError(f"--dataset: no readable arrays in {path} ({reason})") from error
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = [tuple(part[0].shape[1:]) for part in (train, test)]
        raise UsageError(
            f"--dataset: expected samples of one shape in {path}, got channels, height and width "
            f"{shapes[0]} in x_train and {shapes[1]} in x_test"
        )
    return train, test


def _opened(raw: BinaryIO) -> np.lib.npyio.NpzFile:
    file = np.load(raw)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("a single array; numpy.savez writes several")
    return file


def _part(file: np.lib.npyio.NpzFile, part: str) -> Samples:
    x, y = _values(file[f"x_{part}"], f"x_{part}"), file[f"y_{part}"]
    if y.ndim == 2 and y.shape[1] == 1:  # as some publish them
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or (len(y) and y.min() < 0):
        raise UsageError(
            f"--dataset: expected whole numbers from 0 on as y_{part} [S], got {y.dtype} of shape "
            f"{y.shape}"
        )
    if len(x) != len(y) or len(y) < 2:
        raise UsageError(
            f"--dataset: expected as many samples as classes, two or more, got {len(x)} in "
            f"x_{part} and {len(y)} in y_{part}"
        )
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def _values(x: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.float32]:
    """Return samples in [0, 1] as [S, channels, height, width]."""
    if x.ndim not in (2, 3, 4):
        raise UsageError(
            f"--dataset: expected {name} of shape [S, features], [S, height, width] or "
            f"[S, channels, height, width], got {x.shape}"
        )
    if x.dtype == np.uint8:
        values = x.astype(np.float32) / np.float32(255)
    elif x.dtype.kind in "fiub":
        values = x.astype(np.float32)
    else:
        raise UsageError(f"--dataset: expected numbers in {name}, got {x.dtype}")
    if not (values >= 0).all() or not (values <= 1).all():  # NaN is neither
        raise UsageError(
            f"--dataset: expected bytes from 0 to 255 or numbers from 0 to 1 in {name}, got "
            f"{x.dtype} from {x.min()} to {x.max()}"
        )
    missing = 4 - x.ndim
    return values.reshape(len(x), *[1] * missing, *x.shape[1:])
