"""A data set of one's own: a file of NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from snn_dfa.experiments.files import READ_ERRORS, on_one_line
from snn_dfa.experiments.settings import UsageError

__all__ = ["MOST_CLASSES", "SUFFIX", "Samples", "arrays"]

#: What a data set's name ends in that is a file.
SUFFIX = ".npz"
#: A class index beyond is taken for something else, such as a year.
MOST_CLASSES = 10_000

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
    except READ_ERRORS as error:
        guess = "contains pickled" in str(error)  # what numpy takes any other file for
        reason = "not what numpy.savez wrote" if guess else on_one_line(error)
        raise UsageError(f"--dataset: no readable arrays in {path} ({reason})") from error
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = [tuple(part[0].shape[1:]) for part in (train, test)]
        raise UsageError(
            f"--dataset: expected samples of one shape in {path}, got channels, height and width "
            f"{shapes[0]} in x_train and {shapes[1]} in x_test"
        )
    _check_classes(train[1], test[1], path)
    return train, test


def _check_classes(train: torch.Tensor, test: torch.Tensor, path: Path) -> None:
    """Refuse classes that are not numbered from 0 on, or only one."""
    known = set(torch.cat([train, test]).tolist())
    wanted = range(max(*known, 1) + 1)
    missing = next((c for c in wanted if c not in known), None)
    if missing is not None:
        raise UsageError(
            f"--dataset: expected samples of two classes or more, numbered 0, 1, 2, ... without a "
            f"gap, in {path}, got none of class {missing}"
        )


def _opened(raw: BinaryIO) -> np.lib.npyio.NpzFile:
    file = np.load(raw)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("a single array; numpy.savez writes several")
    return file


def _part(file: np.lib.npyio.NpzFile, part: str) -> Samples:
    x, y = file[f"x_{part}"], file[f"y_{part}"]
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):  # then they are raw bytes
        raise ValueError("something else than arrays in it")
    values, classes = _values(x, f"x_{part}"), _classes(y, f"y_{part}")
    if len(values) != len(classes) or len(classes) == 0:
        raise UsageError(
            f"--dataset: expected one entry of y_{part} for each sample of x_{part}, and any, got "
            f"{len(classes)} and {len(values)}"
        )
    return torch.from_numpy(values), torch.from_numpy(classes)


def _classes(y: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.int64]:
    if y.ndim == 2 and y.shape[1] == 1:  # as some publish them
        y = y[:, 0]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise UsageError(
            f"--dataset: expected whole numbers as {name} [S], got {y.dtype} of shape {y.shape}"
        )
    if len(y) and not (y.min() >= 0 and y.max() < MOST_CLASSES):
        raise UsageError(
            f"--dataset: expected classes numbered 0, 1, 2, ... in {name}, got {y.min()} to "
            f"{y.max()}"
        )
    return y.astype(np.int64)


def _values(x: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.float32]:
    """Return samples in [0, 1] as [S, channels, height, width]."""
    if x.ndim not in (2, 3, 4) or 0 in x.shape[1:]:
        raise UsageError(
            f"--dataset: expected {name} of shape [S, features], [S, height, width] or "
            f"[S, channels, height, width], got {x.shape}"
        )
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] == x.shape[2] > 4:
        raise UsageError(
            f"--dataset: expected {name} of shape [S, channels, height, width], got {x.shape}, "
            f"whose channels are last; give {name}.transpose(0, 3, 1, 2)"
        )
    if x.dtype.kind not in "fiub":
        raise UsageError(f"--dataset: expected numbers in {name}, got {x.dtype}")
    values = x.astype(np.float32) / np.float32(255 if x.dtype == np.uint8 else 1)
    if not ((values >= 0) & (values <= 1)).all():  # NaN is neither
        raise UsageError(
            f"--dataset: expected bytes (uint8) from 0 to 255 or numbers from 0 to 1 in {name}, "
            f"got {x.dtype} from {x.min()} to {x.max()}"
        )
    if x.dtype == np.uint8 and x.size and x.max() == 1:
        raise UsageError(
            f"--dataset: expected bytes from 0 to 255 in {name}, got only 0 and 1; give "
            f"{name}.astype(bool), or 0 and 255"
        )
    return values.reshape(len(x), *[1] * (4 - x.ndim), *x.shape[1:])
