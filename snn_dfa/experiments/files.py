"""Writing files whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from snn_dfa.experiments.settings import UsageError

__all__ = ["load_checkpoint", "make_folder", "save_checkpoint", "write_whole"]


def make_folder(path: Path) -> Path:
    """Make the folder for results, with a clear word where it cannot be.

    Raises:
        UsageError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out: expected a folder that can be made, got {path} ({error.strerror})"
        ) from error
    return path


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside ``path`` and put it in its place once it is whole and on the disk.

    Raises:
        UsageError: if it cannot be written; what stood at ``path`` is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise UsageError(
            f"{path}: could not be written ({error}); free some space or name another --out"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a state; see :func:`write_whole`."""
    write_whole(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load what :func:`save_checkpoint` wrote, tensors and plain values only.

    Raises:
        UsageError: if there is none, or the file is damaged or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(
            f"--resume: expected a checkpoint at {path}, found none; train without --resume first"
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:100]
        raise UsageError(
            f"--resume: {path} is not a checkpoint, or damaged ({reason}); train anew without "
            f"--resume"
        ) from error
    if not isinstance(state, dict) or "settings" not in state:
        raise UsageError(
            f"--resume: {path} holds no training state; expected a file that snn-dfa train wrote"
        )
    return state
