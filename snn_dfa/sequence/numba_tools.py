"""What the kernels compiled by numba share. An extra: nothing imports numba before its use."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "as_array",
    "compile_for_addresses",
    "compile_parallel",
    "for_kernels",
    "has_numba",
    "is_installed",
    "read_bfloat16",
    "write_bfloat16",
]


# The processes in which kernels have run. A child by fork inherits its parent's entry, and no
# threads: there GNU OpenMP, which numba and torch share, ends the process at the first kernel.
_STARTED_IN: set[int] = set()


def has_numba() -> bool:
    """Return whether numba is installed, and this process is no child of one that ran kernels."""
    if _STARTED_IN and os.getpid() not in _STARTED_IN:
        return False
    return is_installed()


def is_installed() -> bool:
    """Return whether numba is there, for kernels without threads."""
    return importlib.util.find_spec("numba") is not None


def as_array(t: Tensor) -> Any:
    """Return a NumPy view of a tensor; of bfloat16, which NumPy lacks, a view of its 16 bits.

    They are the upper half of a float32's.
    """
    with torch._C.DisableTorchFunction():  # where conversions are watched, these are not meant
        t = t.detach()
        half = t.dtype == torch.bfloat16
        return t.view(torch.int16).numpy().view(np.uint16) if half else t.numpy()


def compile_parallel(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with ``numba.prange`` at its first call, and keep it on the disk.

    It runs on as many threads as torch does now, and leaves both numbers of threads as they were:
    when numba starts its threads it sets OpenMP's number, which is torch's, to that of all cores.
    """
    import numba

    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    compiled = numba.njit(parallel=True, nogil=True, error_model="numpy", cache=True)(kernel)

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        _STARTED_IN.add(os.getpid())
        threads = torch.get_num_threads()
        before = numba.get_num_threads()  # the first time this starts them
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        numba.set_num_threads(min(threads, most))
        try:
            return compiled(*args)
        finally:
            numba.set_num_threads(before)

    call.compiled = compiled  # type: ignore[attr-defined]
    return call


def compile_for_addresses(
    kernel: Callable[..., Any], kinds: str, single: bool
) -> Callable[..., Any]:
    """Compile a function for one thread, which is called with addresses; keep it on the disk.

    Args:
        kernel: The function.
        kinds: A letter for each argument: ``a``, the address of numbers; ``f``, such a number;
            ``c``, the address of whole numbers of 32 bits; ``i``, a whole number.
        single: Whether numbers are of float32, and not of float64.
    """
    import numba

    number = numba.float32 if single else numba.float64
    plain = ctypes.c_float if single else ctypes.c_double
    at: Callable[[Any], Any] = numba.types.CPointer
    inside = {"a": at(number), "c": at(numba.int32), "i": numba.intp, "f": number}
    outside = {"a": ctypes.c_void_p, "c": ctypes.c_void_p, "i": ctypes.c_ssize_t, "f": plain}
    signature = numba.void(*[inside[kind] for kind in kinds])
    compiled: Any = numba.cfunc(signature, error_model="numpy", cache=True)(kernel)
    call = ctypes.CFUNCTYPE(None, *[outside[kind] for kind in kinds])(compiled.address)
    call.compiled = compiled  # type: ignore[attr-defined]  # whose code it is
    return call


def read_bfloat16(bits: Any) -> Any:
    """Return the float32 that bfloat16's 16 bits stand for; for kernels."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def write_bfloat16(value: Any) -> Any:
    """Return a float32's bits as bfloat16, rounded to nearest, ties to even; for kernels."""
    bits = np.float32(value).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@functools.cache
def for_kernels(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels call a function of a module, which becomes part of them.

    It stays a plain function. A kernel is found again on the disk by what it closes over, and a
    compiled function, which has a name of its own in each process, would never be found.
    """
    from numba.extending import register_jitable

    inlined: Callable[..., Any] = register_jitable(inline="always")(function)
    return inlined
