"""Batches of a data set that the user brings: tensors, a ``Dataset``, or a ``DataLoader``."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from snn_dfa.errors import InputError

__all__ = ["Batches"]

_NAMES = ("train", "val", "test")


class Batches:
    """The parts of a data set, each to be walked any number of times.

    Args:
        data: ``(train, test)`` or ``(train, val, test)``. A part is a ``DataLoader`` or another
            iterable of pairs (x, y), a ``Dataset`` of such pairs, or a pair of tensors.
        batch_size: Of the batches of a ``Dataset`` and of tensors.
        device: Where the batches go.

    Raises:
        InputError: if there are not two or three parts, or one of them is something else.
    """

    def __init__(self, data: Sequence[Any], batch_size: int, device: str) -> None:
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise InputError(
                f"data: expected (train, test) or (train, val, test), got {_said(data)}"
            )
        names = _NAMES if len(data) == 3 else ("train", "test")
        self.device = device
        self.parts = {
            name: _loader(part, batch_size, name) for name, part in zip(names, data, strict=True)
        }
        #: By number of the epoch: of the classes that were trained on, in their order.
        self._checksums: dict[tuple[int, int], int] = {}

    def walk(self, part: str) -> Iterator[tuple[Any, Tensor]]:
        """Yield input and classes [B] of each batch of a part.

        Raises:
            InputError: if there is none, or one is no such pair.
        """
        empty = True
        for pair in self.parts[part]:
            x, y = _checked(pair, part)
            empty = False
            yield _moved(x, self.device), y.long().to(self.device)
        if empty:
            raise InputError(f"data: expected one batch or more in the {part} part, got none")

    @contextmanager
    def drawn(self, part: str, seed: int) -> Iterator[Iterable[tuple[Any, Tensor]]]:
        """Let what draws the batches draw them from a seed; leave all generators as they were.

        torch's own generator is the caller's to care for. Meant are Python's and NumPy's, which
        transforms use, and that of the loader.
        """
        generator = getattr(self.parts[part], "generator", None)
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        state = None if generator is None else generator.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        if generator is not None:
            generator.manual_seed(seed)
        try:
            yield self.walk(part)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            if generator is not None and state is not None:
                generator.set_state(state)

    def same_for_every_rule(self, seed: int, epoch: int, checksum: int) -> None:
        """Note what an epoch was trained on, or compare it with the first rule's.

        Raises:
            InputError: if they differ.
        """
        first = self._checksums.setdefault((seed, epoch), checksum)
        if first != checksum:
            raise InputError(
                f"data: expected the same batches for every rule, got others in epoch {epoch} of "
                f"seed {seed}; draw them from torch's, NumPy's or Python's global generator, or "
                f"from the DataLoader's own"
            )

    @cached_property
    def checksum(self) -> int:
        """The checksum of the first test batch, so that other data is noticed."""
        with self.drawn("test", 0) as batches:
            x, y = next(iter(batches))
        return add_checksum(add_checksum(0, y), x)


def add_checksum(so_far: int, values: Any) -> int:
    """Return a checksum that has these values, too; what is no tensor is passed over."""
    if not isinstance(values, Tensor):
        return so_far
    plain = values.detach().cpu().contiguous()
    return zlib.crc32(plain.view(-1).view(torch.uint8).numpy().data, so_far)


def _loader(part: Any, batch_size: int, name: str) -> Iterable[Any]:
    """Return a part as something that yields pairs (x, y) of batches whenever it is walked."""
    if isinstance(part, DataLoader):
        return part
    if isinstance(part, (tuple, list)) and len(part) == 2 and all(_is_array(p) for p in part):
        x, y = (torch.as_tensor(p) for p in part)
        if len(x) != len(y) or not len(y):
            raise InputError(
                f"data: expected as many classes as samples in the {name} part, and any, got "
                f"{len(y)} and {len(x)}"
            )
        part = TensorDataset(x, y)
    if isinstance(part, Dataset) and hasattr(part, "__getitem__"):
        return DataLoader(part, batch_size, shuffle=name == "train")
    if not hasattr(part, "__iter__") or iter(part) is part:
        raise InputError(
            f"data: expected a DataLoader, a Dataset, a pair of tensors, or another iterable of "
            f"pairs (x, y) that can be walked again as the {name} part, got {_said(part)}"
        )
    return part


def _is_array(part: Any) -> bool:
    return isinstance(part, (Tensor, np.ndarray))


def _checked(pair: Any, part: str) -> tuple[Any, Tensor]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(
            f"data: expected pairs (x, y) as batches of the {part} part, got {_said(pair)}"
        )
    x, y = pair
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point() or not len(y):
        got = f"{y.dtype} of shape {list(y.shape)}" if isinstance(y, Tensor) else _said(y)
        raise InputError(
            f"data: expected whole numbers [B] as classes y in the {part} part, got {got}"
        )
    return x, y


def _moved(x: Any, device: str) -> Any:
    return x.to(device) if hasattr(x, "to") else x


def _said(got: Any) -> str:
    if isinstance(got, (tuple, list)):
        return f"{type(got).__name__} of {len(got)}: {', '.join(type(g).__name__ for g in got)}"
    return type(got).__name__
