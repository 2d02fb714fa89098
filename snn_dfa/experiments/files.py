"""Writing files whole or not at all."""

from __future__ import annotations

import os
import pickle
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from snn_dfa.experiments.ranks import is_rank_zero
from snn_dfa.experiments.settings import UsageError

__all__ = [
    "READ_ERRORS",
    "Checkpoint",
    "atomic_write",
    "clear",
    "file_name",
    "load_checkpoint",
    "make_folder",
    "on_one_line",
    "refuse_finished",
    "refuse_overwrite",
]  # fmt: skip

#: What reading a file raises that is not whole, or not what it should be.
READ_ERRORS = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


#: What a run leaves in its folder, and ``--overwrite`` takes out.
_LEFT = (
    "report.html", "metrics.json", "experiment.yaml", "log.csv", "costs.md", "checkpoint*.pt",
    "curves.*", "confusion_*.*", "spikes_*.*", "diagnostics_*.*", "ladder.*", "rules.*",
)  # fmt: skip
#: Of these, what shows that there are results.
_RESULTS = ("metrics.json", "ladder.json", "rules.json")


def file_name(text: str) -> str:
    """Return a text as a part of a file's name.

    Example:
        >>> file_name("dfa, lr 1/2")
        'dfa-lr-1-2'
    """
    return re.sub(r"[^\w.+]+", "-", text).strip("-.") or "-"


def refuse_finished(path: Path) -> None:
    """Refuse to write over results.

    Raises:
        UsageError: if there are some in the folder.
    """
    found = next((name for name in _RESULTS if (path / name).exists()), None)
    if found:
        raise UsageError(
            f"--out: {path} holds the results of another run ({found}); choose another --out, or "
            f"replace them with --overwrite"
        )


def clear(path: Path) -> None:
    """Take out of a folder what an earlier run left in it, and nothing else."""
    if is_rank_zero():
        for pattern in _LEFT:
            for file in path.glob(pattern):
                file.unlink()


def on_one_line(error: Exception, length: int = 100) -> str:
    """Return the beginning of what an error says, without its line breaks."""
    return " ".join(str(error).split())[:length]


def make_folder(path: Path) -> Path:
    """Make the folder for results; take out what a killed run left in it half written.

    Raises:
        UsageError: if it cannot be made.
    """
    if not is_rank_zero():
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
        for part in path.glob(".*.part"):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out: expected a folder that can be made and written to, got {path} "
            f"({error.strerror})"
        ) from error
    return path


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside ``path`` and put it in its place once it is whole and on the disk.

    Of several processes only the first one writes.

    Raises:
        UsageError: if it cannot be written; what stood at ``path`` is still there.
        KeyboardInterrupt: if the user interrupts it; with the same.
    """
    if not is_rank_zero():
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        if isinstance(error.__context__, KeyboardInterrupt):  # and an interrupted write, too
            raise error.__context__ from None
        raise UsageError(
            f"{path}: could not be written ({error}); free some space or name another --out"
        ) from error
    finally:
        part.unlink(missing_ok=True)


class Checkpoint:
    """The file from which a run can go on, written anew whenever it is saved.

    Args:
        path: Of the file.
        every: Seconds from one save to when the next one is due.
    """

    def __init__(self, path: Path, every: float) -> None:
        self.path, self.every = path, every
        self.saved = False
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last save, or the start, is long enough ago."""
        return time.monotonic() - self._last >= self.every

    def save(self, state: dict[str, Any]) -> None:
        """Save a state; see :func:`atomic_write`."""
        atomic_write(self.path, lambda file: torch.save(state, file))
        self.saved, self._last = True, time.monotonic()


def refuse_overwrite(path: Path) -> None:
    """Refuse to write over a checkpoint of a run that has not ended.

    Raises:
        UsageError: if there is one.
    """
    try:
        state = load_checkpoint(path)
        behind, epochs = len(state["history"]), state["settings"]["epochs"]
    except (UsageError, KeyError, TypeError):  # there is none from which a run could go on
        return
    if behind < epochs:
        raise UsageError(
            f"--out: {path} is of a run that was cut off after {behind} of {epochs} epochs; go on "
            f"with --resume, choose another --out, or delete it"
        )


def load_checkpoint(path: Path, option: str = "--resume") -> dict[str, Any]:
    """Load what :class:`Checkpoint` wrote, tensors and plain values only.

    Args:
        path: Of the file.
        option: For whose sake it is read.

    Raises:
        UsageError: if there is none, or the file is damaged or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load passes over checksums
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {broken}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(
            f"{option}: expected a checkpoint at {path}, found none; train without {option} first"
        ) from error
    except READ_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:100]
        raise UsageError(
            f"{option}: {path} is not a checkpoint, or damaged ({reason}); train anew without "
            f"{option}"
        ) from error
    if not isinstance(state, dict) or "settings" not in state:
        raise UsageError(
            f"{option}: {path} holds no training state; expected a file that snn-dfa train wrote"
        )
    return state
