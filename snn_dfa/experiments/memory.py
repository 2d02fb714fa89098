"""Keeping freed memory in the process, where the C library can be told to."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
_LARGEST_REST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks instead of giving them back.

    A training step frees and asks again for the same large tensors; by default each of them is
    mapped anew, page by page, which costs more than the arithmetic of a neuron. It holds for the
    whole process, so only a program may do it, never a library.

    Returns:
        Whether it took effect; ``False`` on systems without glibc.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_REST))
