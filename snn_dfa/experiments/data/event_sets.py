"""Recordings in their published layouts: SHD, SSC, DVS-Gesture, N-Caltech101."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from snn_dfa.experiments.data.recordings import Events, Recordings, put, read_bin
from snn_dfa.experiments.files import READ_ERRORS, on_one_line
from snn_dfa.experiments.settings import UsageError

__all__ = ["dvs_gesture", "ncaltech101", "shd", "ssc"]

_UNITS = 700  # of the cochlea model
_SHD_SECONDS, _SSC_SECONDS = 1.4, 1.0
_GESTURE_PIXELS, _GESTURE_CLASSES = 128, 11
_CALTECH_SENSOR, _CALTECH_MICROSECONDS = (180, 240), 300_000
_CALTECH_TEST_SHARE = 0.2
_END_OF_HEADER = b"#!END-HEADER\r\n"
_POLARITY_EVENTS = 1
#: Of a packet of AEDAT 3.1: type, source, size of an event, place of its time, overflow of the
#: clock, capacity, number of events, number of valid ones.
_PACKET = np.dtype("<i2, <i2, <i4, <i4, <i4, <i4, <i4, <i4")


def _folder(root: Path, names: tuple[str, ...], wanted: str) -> Path:
    """Return the folder in which a file or folder lies: the root, or one of these names in it."""
    for folder in (root, *(root / name for name in names)):
        if (folder / wanted).exists():
            return folder
    raise UsageError(
        f"--data-root: expected {wanted} in {root.resolve()} or in its folder {names[0]}, found "
        f"none; put the published files there"
    )


# -- SHD and SSC -----------------------------------------------------------------------------------


def shd(root: Path, steps: int, downsample: int = 1) -> tuple[Recordings, Recordings]:
    """Read the Heidelberg spiking digits: ``shd_train.h5`` and ``shd_test.h5``.

    Args:
        root: Folder with the files, or with a folder ``SHD`` that has them.
        steps: T, over 1.4 seconds. A unit that fires once or more in a step gives one spike.
        downsample: So many neighbouring units become one.

    Raises:
        UsageError: if a file is missing, truncated or another one, or h5py is not there.

    Source: Cramer et al. 2020, IEEE TNNLS, arXiv 1910.07407: groups ``spikes/times`` in seconds,
    ``spikes/units`` from 0 to 699, and ``labels``.
    """
    folder = _folder(root, ("SHD", "shd"), "shd_train.h5")
    train, test = (
        _spoken(folder / f"shd_{part}.h5", steps, _SHD_SECONDS, downsample)
        for part in ("train", "test")
    )
    return train, test


def ssc(root: Path, steps: int, downsample: int = 1) -> tuple[Recordings, Recordings]:
    """Read the spiking speech commands: ``ssc_train.h5``, ``ssc_valid.h5`` and ``ssc_test.h5``.

    The published validation part is part of what is trained on, of which a share is held back.

    Args:
        root: Folder with the files, or with a folder ``SSC`` that has them.
        steps: T, over one second.
        downsample: So many neighbouring units become one.

    Raises:
        UsageError: see :func:`shd`.
    """
    folder = _folder(root, ("SSC", "ssc"), "ssc_train.h5")
    train, valid, test = (
        _spoken(folder / f"ssc_{part}.h5", steps, _SSC_SECONDS, downsample)
        for part in ("train", "valid", "test")
    )
    return (torch.cat([train[0], valid[0]]), torch.cat([train[1], valid[1]])), test


def _spoken(path: Path, steps: int, seconds: float, downsample: int) -> Recordings:
    try:
        import h5py
    except ImportError as error:
        raise UsageError(
            "--dataset: expected the package h5py for files in HDF5, found none; "
            "pip install 'snn-dfa[events]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            return _of_hdf5(file, path, steps, seconds, downsample)
    except READ_ERRORS as error:
        raise UsageError(
            f"--data-root: no readable recordings in {path} ({on_one_line(error)}); expected "
            f"spikes/times, spikes/units and labels in HDF5"
        ) from error


def _of_hdf5(file: Any, path: Path, steps: int, seconds: float, downsample: int) -> Recordings:
    times, units, labels = file["spikes/times"], file["spikes/units"], file["labels"][:]
    if not len(times) == len(units) == len(labels) or not len(labels):
        raise ValueError(f"{len(times)} times, {len(units)} units and {len(labels)} labels")
    shape = (len(labels), steps, 1, 1, -(-_UNITS // downsample))
    spikes = torch.zeros(shape, dtype=torch.uint8)
    for i in range(len(labels)):
        unit = np.asarray(units[i], dtype=np.int64)
        time = np.asarray(times[i], dtype=np.float64)
        if len(unit) != len(time) or not ((unit >= 0) & (unit < _UNITS)).all():
            raise ValueError(f"units of recording {i} are not from 0 to {_UNITS - 1}")
        nought = np.zeros_like(unit)
        microseconds = np.round(1e6 * time).astype(np.int64)
        put(spikes[i], unit, nought, nought, microseconds, round(1e6 * seconds), downsample)
    return spikes, torch.as_tensor(labels.astype(np.int64))


# -- DVS-Gesture -----------------------------------------------------------------------------------


def dvs_gesture(root: Path, steps: int, downsample: int = 1) -> tuple[Recordings, Recordings]:
    """Read the hand gestures: ``trials_to_train.txt``, ``trials_to_test.txt`` and their recordings.

    Args:
        root: Folder with these lists, ``userNN_LIGHT.aedat`` and ``userNN_LIGHT_labels.csv``, or
            with a folder ``DvsGesture`` that has them.
        steps: T, over the length of each gesture.
        downsample: So many of 128 x 128 pixels by as many become one.

    Raises:
        UsageError: if a file is missing, truncated or another one.

    Source: Amir et al. 2017, CVPR. The format is AEDAT 3.1.
    """
    folder = _folder(root, ("DvsGesture", "DVSGesture"), "trials_to_train.txt")
    train, test = (
        _gestures(folder, f"trials_to_{part}.txt", steps, downsample) for part in ("train", "test")
    )
    return train, test


def _gestures(folder: Path, listed: str, steps: int, downsample: int) -> Recordings:
    spikes, labels = list[torch.Tensor](), list[int]()
    side = -(-_GESTURE_PIXELS // downsample)
    try:
        trials = (folder / listed).read_text().split()
        for trial in trials:
            x, y, polarity, time = _aedat(folder / trial)
            for gesture, start, end in _labels(folder / f"{Path(trial).stem}_labels.csv"):
                of = (time >= start) & (time < end)
                one = torch.zeros((steps, 2, side, side), dtype=torch.uint8)
                put(one, x[of], y[of], polarity[of], time[of] - start, end - start, downsample)
                spikes.append(one)
                labels.append(gesture - 1)
    except READ_ERRORS as error:
        raise UsageError(
            f"--data-root: no readable gestures in {folder} ({on_one_line(error, 160)})"
        ) from error
    if not labels:
        raise UsageError(f"--data-root: expected names of recordings in {folder / listed}")
    return torch.stack(spikes), torch.tensor(labels)


def _labels(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield gesture from 1 to 11, start and end in microseconds, of each line but the head."""
    with path.open() as file:
        for line in list(csv.reader(file))[1:]:
            gesture, start, end = map(int, line[:3])
            if not (1 <= gesture <= _GESTURE_CLASSES and start < end):
                raise ValueError(f"{path.name} has gesture {gesture} from {start} to {end}")
            yield gesture, start, end


def _aedat(path: Path) -> Events:
    """Return x, y, polarity and microseconds of each event of a file in AEDAT 3.1."""
    raw = path.read_bytes()
    begin = raw.find(_END_OF_HEADER)
    if not raw.startswith(b"#!AER-DAT3.1") or begin < 0:
        raise ValueError(f"{path.name} is not in AEDAT 3.1")
    at, parts = begin + len(_END_OF_HEADER), list[npt.NDArray[np.int64]]()
    while at < len(raw):
        if at + _PACKET.itemsize > len(raw):
            raise ValueError(f"{path.name} is truncated")
        kind, _, size, _, overflow, _, count, _ = np.frombuffer(raw, _PACKET, 1, at)[0]
        at += _PACKET.itemsize
        if size < 1 or count < 0 or at + int(size) * int(count) > len(raw):
            raise ValueError(f"{path.name} is truncated")
        if kind == _POLARITY_EVENTS:
            words = np.frombuffer(raw, "<u4", 2 * int(count), at).reshape(-1, 2).astype(np.int64)
            data, time = words.T
            part = np.stack([data >> 17, data >> 2 & 0x7FFF, data >> 1 & 1,
                             time + (int(overflow) << 31)])  # fmt: skip
            parts.append(part[:, (data & 1) == 1])  # the others are marked as not valid
        at += int(size) * int(count)
    x, y, polarity, time = np.concatenate([np.zeros((4, 0), np.int64), *parts], axis=1)
    if (x >= _GESTURE_PIXELS).any() or (y >= _GESTURE_PIXELS).any():
        raise ValueError(f"{path.name} has events of other than 128x128 pixels")
    return x, y, polarity, time


# -- N-Caltech101 ----------------------------------------------------------------------------------


def ncaltech101(root: Path, steps: int, downsample: int = 1) -> tuple[Recordings, Recordings]:
    """Read the objects: ``Caltech101/CLASS/*.bin``; a fixed fifth of each class is the test part.

    There is no published test part; ``folds`` tests on other ones.

    Args:
        root: Folder with ``Caltech101``, or with a folder ``N-Caltech101`` that has it.
        steps: T, over 0.3 seconds.
        downsample: So many of 240 x 180 pixels by as many become one.

    Raises:
        UsageError: if there are no two recordings of a class, or a file is not what it should be.

    Source: Orchard et al. 2015, Front. Neurosci. 9, 437.
    """
    from sklearn.model_selection import train_test_split  # costs two seconds

    folder = _folder(root, ("N-Caltech101", "NCaltech101"), "Caltech101") / "Caltech101"
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(i, f) for i, each in enumerate(classes) for f in sorted(each.glob("*.bin"))]
    labels = [label for label, _ in files]
    few = next((each.name for i, each in enumerate(classes) if labels.count(i) < 2), None)
    if not files or few is not None:
        raise UsageError(
            f"--data-root: expected two files *.bin or more in each folder of {folder}, got fewer"
            f"{'' if few is None else f' in {few}'}"
        )
    height, width = (-(-side // downsample) for side in _CALTECH_SENSOR)
    spikes = torch.zeros((len(files), steps, 2, height, width), dtype=torch.uint8)
    for i, (_, file) in enumerate(files):
        events = read_bin(file, _CALTECH_SENSOR)
        put(spikes[i], *events, _CALTECH_MICROSECONDS, downsample)
    test_size = max(round(_CALTECH_TEST_SHARE * len(files)), len(classes))
    train, test = train_test_split(
        range(len(files)), test_size=test_size, stratify=labels, random_state=0
    )
    y = torch.tensor(labels)
    return (spikes[train], y[train]), (spikes[test], y[test])
