"""The kernels of :mod:`snn_dfa.sequence.spike_linear`, compiled by numba at their first use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from snn_dfa.sequence.numba_tools import (
    compile_parallel,
    for_kernels,
    read_bfloat16,
    write_bfloat16,
)

__all__ = ["add_rows", "by_column", "count", "fill"]

WIDTH = 128  # columns of a job: its rows of the source stay in the second cache


@functools.cache
def count() -> Callable[..., Any]:
    """Return the kernel that counts the ones of each row."""
    from numba import prange

    def kernel(x, one, counts):
        """Count the ones of each row; return how many values are neither zero nor one."""
        rows, features = x.shape
        others = 0
        for r in prange(rows):
            row = x[r]
            ones, nonzero = np.int32(0), np.int32(0)
            for i in range(features):
                ones += np.int32(row[i] == one)
                nonzero += np.int32(row[i] != 0)
            counts[r] = ones
            others += int(nonzero - ones)
        return others

    return compile_parallel(kernel)


@functools.cache
def fill() -> Callable[..., Any]:
    """Return the kernel that writes down in which columns the ones are."""
    from numba import prange

    def kernel(x, starts, columns):
        """Write down the columns of the ones, row by row."""
        rows, features = x.shape
        for r in prange(rows):
            row = x[r]
            at, end = starts[r], starts[r + 1]
            for i in range(features):
                if at == end:
                    break
                columns[at] = i
                at += row[i] != 0

    return compile_parallel(kernel)


@functools.cache
def by_column() -> Callable[..., Any]:
    """Return the kernel that sorts the ones by column."""
    from numba import prange

    def kernel(starts, columns, features, chunk):
        """Sort the events of each chunk of rows by column; give rows from the chunk's first one."""
        rows = len(starts) - 1
        chunks = (rows + chunk - 1) // chunk
        begins = np.zeros((chunks, features + 1), np.int64)
        result = np.empty(len(columns), np.int32)
        for c in prange(chunks):
            lo, hi = c * chunk, min(rows, (c + 1) * chunk)
            begin = begins[c]
            for e in range(starts[lo], starts[hi]):
                begin[columns[e] + 1] += 1
            begin[0] = starts[lo]
            for f in range(features):
                begin[f + 1] += begin[f]
            at = begin[:features].copy()
            for r in range(lo, hi):
                for e in range(starts[r], starts[r + 1]):
                    f = columns[e]
                    result[at[f]] = r - lo
                    at[f] += 1
        return begins, result

    return compile_parallel(kernel)


def _add(total: Any, source: Any, chosen: Any, lo: int, hi: int) -> None:
    """Add the chosen rows, eight at a time: a sum is fetched and stored once for eight."""
    e = lo
    while e + 8 <= hi:
        a, b, c, d = (source[chosen[e]], source[chosen[e + 1]], source[chosen[e + 2]],
                      source[chosen[e + 3]])  # fmt: skip
        p, q, r, s = (source[chosen[e + 4]], source[chosen[e + 5]], source[chosen[e + 6]],
                      source[chosen[e + 7]])  # fmt: skip
        for j in range(WIDTH):
            four, more = (a[j] + b[j]) + (c[j] + d[j]), (p[j] + q[j]) + (r[j] + s[j])
            total[j] += four + more
        e += 8
    while e < hi:
        a = source[chosen[e]]
        for j in range(WIDTH):
            total[j] += a[j]
        e += 1


@functools.cache
def add_rows(bits_in: bool, bits_out: bool) -> Callable[..., Any]:
    """Return the kernel that adds up chosen rows.

    Args:
        bits_in: Whether the rows are the 16 bits of bfloat16.
        bits_out: Whether the sums are to be.
    """
    from numba import prange

    read, write = for_kernels(read_bfloat16), for_kernels(write_bfloat16)
    add = for_kernels(_add)

    def kernel(source, starts, chosen, bias, out, chunk, threads):
        """out[i] = bias + the sum of the source's rows that are chosen for i, in every chunk."""
        rows, columns = source.shape
        chunks, results = len(starts), len(out)
        blocks = (columns + WIDTH - 1) // WIDTH
        shares = 1 if blocks % threads == 0 or blocks > 4 * threads else threads
        size = (results + shares - 1) // shares
        for job in prange(blocks * shares):
            left = (job // shares) * WIDTH
            width = min(WIDTH, columns - left)
            first = (job % shares) * size
            packed = np.zeros((min(chunk, rows), WIDTH), bias.dtype)
            total = np.zeros(WIDTH, bias.dtype)
            zero = np.zeros(WIDTH, bias.dtype)
            for c in range(chunks):
                top = c * chunk
                for s in range(min(chunk, rows - top)):
                    row, into = source[top + s], packed[s]
                    for j in range(width):
                        into[j] = read(row[left + j]) if bits_in else row[left + j]
                initial = zero
                if c == 0:
                    initial = zero.copy()
                    initial[:width] = bias[left : left + width]
                for i in range(first, min(results, first + size)):
                    total[:] = initial
                    add(total, packed, chosen, starts[c, i], starts[c, i + 1])
                    into = out[i]
                    for j in range(width):
                        if bits_out:
                            into[left + j] = write(total[j])
                        elif c == 0:
                            into[left + j] = total[j]
                        else:
                            into[left + j] += total[j]

    return compile_parallel(kernel)
