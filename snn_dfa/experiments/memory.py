"""The memory of the process: keeping what is freed, and how much there is."""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path

__all__ = ["keep_freed_memory", "resident_megabytes"]

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


def resident_megabytes(now: bool = False) -> float:
    """Return the greatest resident size of this process so far, or the present one, in MB.

    Away from Linux only the greatest is known, and on Windows it is NaN.

    Example:
        >>> resident_megabytes() > 0
        True
    """
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage counts what the parent had when it forked
        field = "VmRSS:" if now else "VmHWM:"
        (line,) = (each for each in status.read_text().splitlines() if each.startswith(field))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ModuleNotFoundError:
        return math.nan
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
