"""Blocks that fit a processor's cache, threads, freed memory, fast matrix products: all that exists for its sake.

None of it changes a result but by rounding. On a GPU a block is the whole array, and there is one thread.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from math import prod
from typing import Any, TypeVar

import numpy as np

from microumup.backend import Array, xp_of

T = TypeVar("T")
Arrays = dict[str, Array]

BLOCK = 1 << 16  # elements of an array worked on at a time; half a dozen of such pieces fit into a core's own cache


# ---- Blocks ----


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Flat views of all arrays, which are cut alike, BLOCK elements at a time; on a GPU all at once.

    Raises ValueError for an array that is not C-contiguous: what is written to a flat copy of it would be lost.
    """
    if not all(x.flags.c_contiguous for x in arrays):
        raise ValueError("blocks: an array is not C-contiguous; pass np.ascontiguousarray of it")
    flat = [x.reshape(-1) for x in arrays]
    step = BLOCK if xp_of(arrays[0]) is np else max(1, flat[0].size)
    return (tuple(x[i : i + step] for x in flat) for i in range(0, flat[0].size, step))


def pieces(*arrays: Array, size: int = 0) -> Iterator[tuple[Array, ...]]:
    """Views (n, last axis) of all arrays, which are cut alike, into pieces of about `size` elements of the first; of
    BLOCK elements if no size is given."""
    views = [x.reshape(-1, x.shape[-1]) for x in arrays]
    rows = max(1, (size or BLOCK) // arrays[0].shape[-1])
    return (tuple(x[i : i + rows] for x in views) for i in range(0, len(views[0]), rows))


# ---- Threads ----


class Threads:
    """Some Python threads, each of which takes a share of the batch, and then a share of the weights.

    NumPy lets go of the interpreter inside its loops, so threads do run side by side. Each uses one BLAS thread. Who
    adds what up in which order depends on the number of threads alone, so the same number gives the same bits.
    """

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self._others = ThreadPoolExecutor(n - 1) if n > 1 else None

    def run(self, work: Callable[[int], T]) -> list[T]:
        """work(0) … work(n - 1), all at once; what they return, in this order. The first is the calling thread's.

        np.errstate, and whatever else is in the caller's context, holds in all of them. Raises what any of them raises.
        """
        others = [self._others.submit(copy_context().run, work, i) for i in range(1, self.n)] if self._others else []
        return [work(0), *(other.result() for other in others)]

    def over(self, work: Callable[..., T], *arrays: Arrays) -> list[list[T]]:
        """work(name, *blocks) for every block of the arrays, which have the same names; what it returns, by thread.

        Blocks are dealt out one by one, so that each thread gets as many of a large weight.
        """

        def every_block() -> Iterator[tuple[str, tuple[Array, ...]]]:
            for name in arrays[0]:
                yield from ((name, views) for views in blocks(*(of[name] for of in arrays)))

        return self.run(lambda i: [work(name, *views) for name, views in islice(every_block(), i, None, self.n)])

    def share(self, size: int, i: int) -> slice:
        """The i-th of n shares of `size` things, as equal as whole things allow."""
        return slice(size * i // self.n, size * (i + 1) // self.n)


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- Memory ----


def keep_freed_memory() -> None:
    """Let this process keep the memory of arrays it has freed, for the next ones.

    Every step makes and frees the same arrays. By default glibc gives large ones back to the system and gets them
    again, page by page, each of which is cleared: a sixth of the time of a step. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's names
    mallopt(M_TRIM_THRESHOLD, 1 << 30)
    mallopt(M_MMAP_THRESHOLD, 1 << 25)  # 32 MiB, the most it takes


def available_memory() -> int:
    """Bytes of memory that this machine has, whoever uses it; where it does not say, more than any has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 60


# ---- Products ----

ROWS = 128  # of a matrix at a time where products are kept SMALL, at most


def small_product() -> int:
    """The m·n·k up to which the BLAS behind NumPy multiplies (m, k) by (k, n) without packing the matrices first.

    OpenBLAS has kernels for that on x86 with AVX-512 alone. They reach the speed of large products, while a product
    that is a little too large for them spends up to a third of its time on packing.
    """
    found = np.show_config(mode="dicts")  # leaves out what it knows nothing of
    vectors = found.get("SIMD Extensions", {}).get("found", ())
    library = found.get("Build Dependencies", {}).get("blas", {}).get("name", "")
    return 10**6 if "openblas" in library and {"X86_V4", "AVX512_SKX"} & set(vectors) else 0


SMALL = small_product()


def times(x: Array, factor: float) -> Array:
    """factor · x; without a pass over x where there is nothing to do."""
    return x if factor == 1 else x * factor


def product(a: Array, b: Array, factor: float) -> Array:
    """factor · (a b), a (N, K) and b (K, M), by one pass over the smallest of a, b and their product."""
    y = np.empty((len(a), b.shape[1]), a.dtype)
    if (rows := min(ROWS, SMALL // b.size)) >= 16:  # with fewer rows a call costs more than packing
        rows = 1 << rows.bit_length() - 1
        whole = len(a) // rows * rows
        b = np.multiply(b, factor, out=_from_a_cache_line(b.shape, b.dtype))
        np.matmul(a[:whole].reshape(-1, rows, len(b)), b, out=y[:whole].reshape(-1, rows, b.shape[1]))
        np.matmul(a[whole:], b, out=y[whole:])
    elif a.size <= b.size and a.size < y.size:
        np.matmul(times(a, factor), b, out=y)
    elif b.size < y.size:
        np.matmul(a, times(b, factor), out=y)
    else:
        np.matmul(a, b, out=y)
        if factor != 1:
            y *= factor
    return y


def product_over_rows(a: Array, b: Array) -> Array:
    """aᵀ b, a (N, M) and b (N, K): one product, or the sum of SMALL ones."""
    if ROWS * a.shape[1] * b.shape[1] > SMALL or len(a) % ROWS:
        return a.T @ b
    a, b = (x.reshape(-1, ROWS, x.shape[1]) for x in (a, b))
    return np.add.reduce(a.swapaxes(1, 2) @ b)  # over the first axis


def _from_a_cache_line(shape: tuple[int, ...], dtype: Any) -> Array:
    """An empty array that starts at a multiple of 64 bytes. NumPy's own start at any of 16: a vector of 64 bytes then
    lies across two lines of the cache, and the kernels for small products read it at half the speed."""
    size = prod(shape)
    x = np.empty(size + 64 // dtype.itemsize, dtype)
    start = -x.__array_interface__["data"][0] % 64 // dtype.itemsize
    return x[start : start + size].reshape(shape)
