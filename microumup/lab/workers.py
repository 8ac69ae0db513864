"""Many runs at once: in other processes, one BLAS thread each, or in this one."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_all(
    run: Callable[[Job], Result], jobs: Sequence[Job], workers: int, *, progress: bool, unit: str
) -> list[Result]:
    """`run` of every job, in order; under a bar on a terminal if `progress`.

    In as many processes as there are `workers`, where `run` and the jobs have to be picklable; in this process, with
    whatever has been replaced in it, if that is 0.
    """
    with ExitStack() as stack:
        results: Iterable[Result] = map(run, jobs)
        if workers:
            pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"))
            results = stack.enter_context(pool).map(run, jobs)
        bar = tqdm(results, total=len(jobs), unit=unit, leave=False, disable=None if progress else True)
        return list(stack.enter_context(bar))
