"""A sweep on a real dask scheduler, in processes of its own, over loopback."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from microumup.config import TrainConfig
from microumup.lab.sweep import Job, load_results, run_id, sweep
from microumup.lab.tables import read_table
from microumup.lab.workers import connect

pytest.importorskip("distributed", reason="needs the extra cluster")

TINY: dict[str, Any] = {"width": 16, "head_dim": 8, "layers": 1, "seq_len": 8, "batch_size": 2}
Processes = list["subprocess.Popen[bytes]"]


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, Processes]]:
    """The address of a scheduler, and two workers; the scheduler is the last process."""
    log = (tmp_path / "dask.log").open("wb")
    processes: Processes = []

    def start(*argv: str) -> None:
        command = [sys.executable, "-m", *argv, "--no-dashboard", "--host", "127.0.0.1"]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path))

    def address() -> str:
        words = (tmp_path / "dask.log").read_text().split()
        return next((word for word in words if word.startswith("tcp://127.0.0.1:")), "")

    try:
        start("distributed.cli.dask_scheduler", "--port", "0")
        wait_until(address)
        at = address()
        for _ in range(2):
            start("distributed.cli.dask_worker", at, "--nthreads", "1", "--no-nanny")
        with connect(at) as client:
            wait_until(lambda: len(client.scheduler_info()["workers"]) == 2)
        yield at, [*processes[1:], processes[0]]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "people.txt").write_text("the people of the united states. " * 100)
    return str(tmp_path / "people.txt")


def test_every_result_is_there_once_though_a_worker_is_killed(
    cluster: tuple[str, Processes], text: str, tmp_path: Path
) -> None:
    address, (victim, *_) = cluster
    out = tmp_path / "out"
    jobs = [Job(TrainConfig(**TINY, steps=300, seed=seed, text=(text,))) for seed in range(10)]

    def kill() -> None:
        wait_until(lambda: len(list(out.glob("results/*.json"))) >= 3)
        victim.send_signal(signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    records = sweep([*jobs, *jobs[:2]], out, workers=1, cluster=address)
    killer.join()
    assert victim.wait() == -signal.SIGKILL
    assert [r["id"] for r in records] == [run_id(job) for job in [*jobs, *jobs[:2]]]
    assert sorted(load_results(out)) == sorted(run_id(job) for job in jobs)
    assert sorted(row["id"] for row in read_table(out / "table.csv")) == sorted(run_id(job) for job in jobs)
    here = sweep(jobs[:1], tmp_path / "here", workers=0)[0]
    assert records[0]["loss"] == here["loss"]


def test_a_scheduler_that_is_gone_ends_the_sweep_and_keeps_what_is_done(
    cluster: tuple[str, Processes], text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And that without dask's tracebacks, which its client logs while it looks for the scheduler."""
    address, (*_, scheduler) = cluster
    out = tmp_path / "out"
    jobs = [Job(TrainConfig(**TINY, steps=300, seed=seed, text=(text,))) for seed in range(20)]

    def kill() -> None:
        wait_until(lambda: len(list(out.glob("results/*.json"))) >= 2)
        scheduler.send_signal(signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    with pytest.raises(ConnectionError, match="is gone; what is done is kept"):
        sweep(jobs, out, workers=1, cluster=address)
    killer.join()
    assert 2 <= len(load_results(out)) < 20
    assert not logging.getLogger("distributed.utils").isEnabledFor(logging.ERROR)  # seldom is there time for one
    assert "Traceback" not in capfd.readouterr().err
