"""Recordings of event cameras as spikes over time: N-MNIST."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from snn_dfa.experiments.files import READ_ERRORS, on_one_line
from snn_dfa.experiments.settings import UsageError

__all__ = ["SMALL", "Events", "Recordings", "nmnist", "put", "read_bin"]

#: 1,000 and 100 recordings of N-MNIST in one file, for where the full set is too much.
SMALL = "nmnist-small.npz"

_SENSOR = (2, 34, 34)  # polarity, y, x
_MICROSECONDS = 340_000  # no recording of N-MNIST is longer
_OVERFLOW_Y, _OVERFLOW = 240, 2**13  # the sensor's mark that its clock has begun again
_EVENT_BYTES = 5

#: Column, row, polarity and microseconds of each event.
Events: TypeAlias = tuple[
    npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]
]
#: Spikes [S, T, polarity, y, x] of 0 or 1 as bytes, and class indices [S].
Recordings = tuple[torch.Tensor, torch.Tensor]


def nmnist(root: Path, steps: int, downsample: int = 1) -> tuple[Recordings, Recordings]:
    """Read the training and the test recordings, in ``steps`` time steps of equal length.

    Args:
        root: Folder with :data:`SMALL`, or with ``Train/0/*.bin`` to ``Test/9/*.bin`` as they are
            published, straight or in a folder ``NMNIST``. A recording becomes steps * 2,312 bytes.
        steps: T. A pixel that sees an event or more in a step gives one spike.
        downsample: So many pixels by as many become one.

    Raises:
        UsageError: if there is neither, or a file is not what it should be.

    Source: Orchard et al. 2015, Front. Neurosci. 9, 437.
    """
    for folder in (root, root / "NMNIST", root / "N-MNIST"):
        if (folder / "Train").is_dir():
            train, test = (
                _published(folder / part, steps, downsample) for part in ("Train", "Test")
            )
            return train, test
        if (folder / SMALL).is_file():
            return _small(folder / SMALL, steps, downsample)
    raise UsageError(
        f"--data-root: expected {SMALL} or the folders Train and Test of N-MNIST in "
        f"{root.resolve()}, found neither; unpack Train.zip and Test.zip there"
    )


def _published(folder: Path, steps: int, downsample: int) -> Recordings:
    files = [
        (digit, file) for digit in range(10) for file in sorted((folder / str(digit)).glob("*.bin"))
    ]
    if not files:
        raise UsageError(f"--data-root: expected {folder}/0/*.bin to {folder}/9/*.bin, found none")
    spikes = _nothing(len(files), steps, downsample)
    for i, (_, file) in enumerate(files):
        put(spikes[i], *read_bin(file, _SENSOR[1:]), _MICROSECONDS, downsample)
    return spikes, torch.tensor([digit for digit, _ in files])


def _nothing(samples: int, steps: int, downsample: int) -> torch.Tensor:
    polarities, height, width = _SENSOR
    shape = (polarities, -(-height // downsample), -(-width // downsample))
    return torch.zeros((samples, steps, *shape), dtype=torch.uint8)


def read_bin(file: Path, sensor: tuple[int, int]) -> Events:
    """Return x, y, polarity and microseconds of each event of a file.

    An event has 40 bits: 8 of x, 8 of y, 1 of polarity, 23 of time.

    Args:
        file: Of N-MNIST or N-Caltech101.
        sensor: Its height and width in pixels.

    Raises:
        UsageError: if the file is truncated, or has events of other pixels.
    """
    raw = np.fromfile(file, dtype=np.uint8)
    if len(raw) % _EVENT_BYTES:
        raise UsageError(
            f"--data-root: expected a whole number of events of {_EVENT_BYTES} bytes in {file}, "
            f"got {len(raw)} bytes; unpack it again"
        )
    x, y, high, middle, low = raw.reshape(-1, _EVENT_BYTES).astype(np.int64).T
    overflows = y == _OVERFLOW_Y
    time = ((high & 127) << 16 | middle << 8 | low) + _OVERFLOW * np.cumsum(overflows)
    events = (x, y, high >> 7, time)
    if (x[~overflows] >= sensor[1]).any() or (y[~overflows] >= sensor[0]).any():
        size = f"{sensor[1]}x{sensor[0]}"
        raise UsageError(f"--data-root: expected events of {size} pixels in {file}, got others")
    x, y, polarity, time = (each[~overflows] for each in events)
    return x, y, polarity, time


def _small(path: Path, steps: int, downsample: int) -> tuple[Recordings, Recordings]:
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            train, test = (_part(file, part, steps, downsample) for part in ("train", "test"))
            return train, test
    except READ_ERRORS as error:
        raise UsageError(
            f"--data-root: no readable recordings in {path} ({on_one_line(error)})"
        ) from error


def _part(file: np.lib.npyio.NpzFile, part: str, steps: int, downsample: int) -> Recordings:
    x, y, p, t = (file[f"{part}_{name}"].astype(np.int64) for name in ("x", "y", "p", "t_us"))
    offsets, labels = file[f"{part}_offsets"], file[f"{part}_labels"]
    spikes = _nothing(len(labels), steps, downsample)
    for i in range(len(labels)):
        of = slice(offsets[i], offsets[i + 1])
        put(spikes[i], x[of], y[of], p[of], t[of], _MICROSECONDS, downsample)
    return spikes, torch.as_tensor(labels.astype(np.int64))


def put(
    spikes: torch.Tensor,
    x: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    polarity: npt.NDArray[np.int64],
    time: npt.NDArray[np.int64],
    duration: int,
    downsample: int = 1,
) -> None:
    """Set the places of the events in spikes [T, polarities, height, width].

    Args:
        spikes: To be changed.
        x: Column of each event.
        y: Row of each event.
        polarity: 0 or 1.
        time: Microseconds from the beginning of the recording; later events fall into the last
            step.
        duration: Microseconds of all T steps.
        downsample: So many pixels by as many become one.
    """
    step = (time * len(spikes) // max(duration, 1)).clip(0, len(spikes) - 1)
    spikes.numpy()[step, polarity, y // downsample, x // downsample] = 1
