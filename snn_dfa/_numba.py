"""What the kernels compiled by numba share. An extra: nothing imports numba before its use."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_array", "bfloat16_bits", "compile_parallel", "has_numba"]


def has_numba() -> bool:
    """Whether it is installed."""
    return importlib.util.find_spec("numba") is not None


def as_array(t: Tensor) -> Any:
    """Return a NumPy view of a tensor; of bfloat16, which NumPy lacks, a view of its 16 bits.

    They are the upper half of a float32's.
    """
    t = t.detach()
    return t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()


def compile_parallel(kernel: Callable[..., Any]) -> Callable[..., None]:
    """Compile a function with ``numba.prange`` at its first call, and keep it on the disk."""
    import numba

    compiled: Callable[..., None] = numba.njit(
        parallel=True, nogil=True, error_model="numpy", cache=True
    )(kernel)
    return compiled


@functools.cache
def bfloat16_bits() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return two functions for kernels: bfloat16's 16 bits to float32, and float32 to the bits."""
    import numba

    @numba.njit(nogil=True, inline="always")
    def read(bits: Any) -> Any:
        return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)

    @numba.njit(nogil=True, inline="always")
    def write(value: Any) -> Any:
        """Round to nearest, ties to even."""
        bits = np.float32(value).view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return read, write
