"""Many runs at once: in other processes, one BLAS thread each, on a dask cluster, or in this one."""

import logging
import os
import signal
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import import_module
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import RLock, Thread
from typing import Any, TypeVar

from tqdm import tqdm

from microumup.backend import choose_device, install_hint
from microumup.devices import visible

Job = TypeVar("Job")
Result = TypeVar("Result")


def bar(things: Iterable[Job] | None = None, *, progress: bool, **look: Any) -> Any:
    """Bar of tqdm over `things`: on a terminal alone and until they are done, or nowhere without `progress`."""
    return tqdm(things, leave=False, disable=None if progress else True, **look)


def run_all(
    run: Callable[[Job], Result], jobs: Sequence[Job], workers: int, *, progress: bool = False, unit: str = "run"
) -> list[Result]:
    """`run` of every job, in order; under a bar if `progress`.

    In as many processes as there are `workers`, where `run` and the jobs have to be picklable; in this process, with
    whatever has been replaced in it, if that is 0.
    """
    with ExitStack() as stack:
        results: Iterable[Result] = map(run, jobs)
        if workers:
            spawn = get_context("spawn")
            pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=spawn, initializer=follow_parent)
            results = stack.enter_context(pool).map(run, jobs)
        return list(stack.enter_context(bar(results, progress=progress, total=len(jobs), unit=unit)))


# ---- Seats: executors of one process each. A process that is killed takes its own run with it, and no one else's ----
def work_off(
    run: Callable[..., Result], tasks: dict[str, tuple[Any, ...]], seats: list[Executor], *,
    keep: Callable[[str, Result], None], tick: Callable[[], None], retries: int,
) -> dict[str, str]:  # fmt: skip
    """`run` of each of `tasks`, one at a time in each seat, and `keep` of its result; `tick` at least every second.

    The errors of those that failed once and `retries` times again. Interrupted, it ends the processes it started.
    """
    waiting = deque((id, retries) for id in tasks)
    flying: dict[Future[Result], tuple[str, int, Executor]] = {}
    errors: dict[str, str] = {}
    others = set(active_children())
    try:
        while waiting or flying:
            tick()
            while waiting and seats:
                (id, left), seat = waiting.popleft(), seats.pop()
                flying[seat.submit(run, *tasks[id])] = id, left, seat
            for future in futures.wait(flying, timeout=1, return_when=futures.FIRST_COMPLETED).done:
                id, left, seat = flying.pop(future)
                try:
                    result = future.result()
                except Exception as error:
                    if left:
                        waiting.append((id, left - 1))
                    else:
                        errors[id] = " ".join(f"{type(error).__name__}: {error}".split())
                    if isinstance(error, futures.BrokenExecutor):
                        seat = Seat(getattr(seat, "device", ""))
                else:
                    keep(id, result)
                seats.append(seat)
    finally:
        if flying:
            mine = set(active_children()) - others
            for end in (BaseProcess.terminate, BaseProcess.join):
                for process in mine:
                    end(process)
        for seat in {*seats, *(seat for *_, seat in flying.values())}:
            seat.shutdown(wait=not flying)
    return errors


def new_seats(workers: int | Sequence[str], runs: int = 1) -> list[Executor]:
    """Seats for `workers`, no more than there are runs; one in this process if there are no `workers`.

    Workers are a number, or the devices of each in CUDA's words.
    """
    if workers == 0:
        return [InThisProcess()]
    devices = [""] * workers if isinstance(workers, int) else workers
    return [Seat(device) for device in devices[:runs]]


class Seat(ProcessPoolExecutor):
    """A seat in a process of its own, which sees no GPU but `device`; whatever this one sees, if that is empty."""

    def __init__(self, device: str = "") -> None:
        self.device = device
        super().__init__(1, mp_context=get_context("spawn"), initializer=follow_parent, initargs=(device,))


def shared_out(args: Namespace) -> tuple[str, int | list[str]]:
    """The device of runs, and who makes them, by the options --device, --devices, --workers and --cluster.

    Raises ValueError for devices that do not exist, or that are others' to choose.
    """
    if not args.devices:
        return args.device if args.cluster else choose_device(args.device), args.workers
    if args.cluster:
        raise ValueError("--devices: is for this machine; start each worker of --cluster with its CUDA_VISIBLE_DEVICES")
    return "gpu", visible(args.devices)


def follow_parent(device: str = "") -> None:
    """Leave Ctrl-C to the parent of this new process, and end with it, even if it is killed; see `device` alone."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # in time: CUDA reads it when CuPy first calls it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(RLock())  # its own is a semaphore of the system, which a process that is killed leaves behind
    parent = parent_process()
    assert parent

    def end() -> None:
        parent.join()
        os._exit(1)

    Thread(target=end, daemon=True).start()


class InThisProcess(Executor):
    """A seat in this process, where what is submitted is run at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """A client of the dask scheduler at `address`. Raises ValueError without `distributed` or a scheduler."""
    try:
        distributed = import_module("distributed")
    except ImportError:
        raise ValueError(f"--cluster: needs dask, {install_hint('cluster')}; or leave it out") from None
    # it and what it is made of log tracebacks of a scheduler that goes, and we say so
    for name in ("distributed", "distributed.client", "asyncio", "concurrent.futures", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--cluster: no dask scheduler answers at {address} ({error})") from None
    with client:
        yield client
