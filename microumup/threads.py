"""One run on several cores: each Python thread takes a share of the batch, and then a share of the weights.

NumPy lets go of the interpreter inside its loops, so threads do run side by side. Each uses one BLAS thread. Who adds
what up in which order depends on the number of threads alone, so the same number gives the same bits.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """`run(work)` calls work(0) … work(n - 1), all at once, and returns what they return, in this order."""

    def __init__(self, n: int = 1) -> None:
        self.n = n
        self._others = ThreadPoolExecutor(n - 1) if n > 1 else None

    def run(self, work: Callable[[int], T]) -> list[T]:
        """The first share is worked off in the calling thread. An exception of any share is raised here.

        np.errstate, and whatever else is in the caller's context, holds in all of them.
        """
        others = [self._others.submit(copy_context().run, work, i) for i in range(1, self.n)] if self._others else []
        return [work(0), *(other.result() for other in others)]

    def deal(self, things: Iterable[T], i: int) -> Iterator[T]:
        """Every n-th of `things` from the i-th on. Each call has to be given an iterable of its own."""
        return islice(things, i, None, self.n)

    def share(self, size: int, i: int) -> slice:
        """The i-th of n shares of `size` things, as equal as whole things allow."""
        return slice(size * i // self.n, size * (i + 1) // self.n)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
