"""Runs shared out to several GPUs: on the double of CuPy, which has as many as a test says, and in real processes."""

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cupy_double
import pytest
from conftest import Refused

from microumup.lab import sweep as module
from microumup.lab import workers
from microumup.lab.figures import command as figures
from microumup.lab.sweep import Job, Record, load_results, main
from microumup.lab.workers import InThisProcess, Seat, new_seats, work_off

TINY: dict[str, Any] = {
    "width": 16,
    "head_dim": 8,
    "layers": 1,
    "seq_len": 8,
    "batch_size": 2,
    "steps": 3,
    "kernels": "plain",
}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


@pytest.fixture
def argv(text: Path, tmp_path: Path) -> list[str]:
    return ["--grid", "lr=0.5:2:2", *OPTIONS, "--text", str(text), "--out", str(tmp_path / "out"), "--quiet"]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs."""
    cupy_double.install(monkeypatch, devices=2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


WRONG = {
    "2": "--devices: there is no GPU 2; CuPy finds 2 of them, 0 to 1",
    "0,0": "--devices: 0,0: numbers from 0 on, each of them once; write 0,1,2",
    "-1,0": "--devices: -1,0: numbers from 0 on, each of them once; write 0,1,2",
    "one": "--devices: 'one' is not a whole number; write it in digits, as 1000",
    "0 --cluster=tcp://nowhere:1": "--devices: is for this machine; start each worker of --cluster with its "
    "CUDA_VISIBLE_DEVICES",
}


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("given", WRONG)
def test_devices_that_cannot_be_are_named_in_one_line(given: str, argv: list[str], refused: Refused) -> None:
    devices, *more = given.split()
    assert refused(main, [*argv, f"--devices={devices}", *more]) == f"microumup sweep: {WRONG[given]}\n"
    assert not Path(argv[-2]).exists()


def test_a_single_gpu_has_the_number_0(monkeypatch: pytest.MonkeyPatch, argv: list[str], refused: Refused) -> None:
    cupy_double.install(monkeypatch)
    assert "there is no GPU 1; CuPy finds one alone, 0" in refused(main, [*argv, "--devices=0,1"])


def test_without_a_gpu_there_is_nothing_to_share_out_to(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], refused: Refused
) -> None:
    cupy_double.install(monkeypatch, devices=0)
    assert "--device gpu: CuPy finds no GPU" in refused(main, [*argv, "--devices=0"])
    assert "--device gpu: CuPy finds no GPU" in refused(figures.main, ["fig1-left", "--quick", "--devices=0"])


# ---- The commands ----


@pytest.fixture
def seated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `new_seats` is asked for; there is one in this process, where the double is."""
    asked: list[Any] = []

    def new_seats(workers: Any, runs: int = 1) -> list[InThisProcess]:
        asked.append(workers)
        return [InThisProcess()]

    monkeypatch.setattr(module, "new_seats", new_seats)
    return asked


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("options", "workers", "device"),
    [(["--devices=1,0"], ["1", "0"], "gpu"), (["--device=gpu", "--workers=3"], 3, "gpu"), (["--workers=2"], 2, "cpu")],
)
def test_a_sweep_has_a_seat_for_each_device(
    argv: list[str], seated: list[Any], options: list[str], workers: Any, device: str
) -> None:
    assert main([*argv, *options]) == 0
    assert seated == [workers]
    records = load_results(Path(argv[-2])).values()
    assert [record["device"] for record in records] == [device] * 3
    assert not any(record["diverged"] for record in records)


@pytest.mark.usefixtures("two")
def test_tf32_is_refused_before_a_sweep_begins(argv: list[str], seated: list[Any], refused: Refused) -> None:
    assert "microumup sweep: --tf32: is for a GPU" in refused(main, [*argv, "--tf32"])
    assert not Path(argv[-2]).exists()
    assert main([*argv, "--tf32", "--devices=0"]) == 0
    assert cupy_double.compute_types == {"f": 7}
    assert main([*argv, "--devices=0"]) == 0  # another sweep of the same process
    assert cupy_double.compute_types == {"f": 1}


def test_a_worker_of_a_cluster_finds_its_own_device(monkeypatch: pytest.MonkeyPatch, text: Path) -> None:
    """`auto` was taken for a CPU there, whatever the worker had."""
    cupy_double.install(monkeypatch)
    job = Job(module.TrainConfig(**TINY, text=(str(text),)))
    made: Callable[..., Record] = module.task
    assert made(module.run_id(job), job, "auto")["device"] == "gpu"


@pytest.mark.usefixtures("two")
def test_figures_share_out_their_runs_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def collect(*_: Any, **how: Any) -> Any:
        asked.update(how)
        raise ValueError("far enough")

    monkeypatch.setattr(figures, "collect", collect)
    with pytest.raises(SystemExit):
        figures.main(["fig1-left", "--quick", "--quiet", "--devices=1,0", "--runs", str(tmp_path)])
    assert (asked["workers"], asked["device"]) == (["1", "0"], "gpu")


# ---- Processes ----


def report(seconds: float) -> tuple[str, int, float, float]:
    """What a run sees of GPUs, its process, and from when to when it is at work."""
    began = time.time()
    time.sleep(seconds)
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all"), os.getpid(), began, time.time()


def die_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def made(run: Callable[..., Any], tasks: dict[str, tuple[Any, ...]], seats: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    errors = work_off(run, tasks, seats, keep=found.__setitem__, tick=lambda: None, retries=1)
    assert errors == {}
    return found


def test_each_device_has_one_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")  # this process's own choice
    runs = made(report, {str(i): (0.1,) for i in range(6)}, new_seats(["7", "GPU-3c"], 6))
    assert {device for device, *_ in runs.values()} == {"7", "GPU-3c"}
    for device in ("7", "GPU-3c"):
        of_device = sorted((began, ended, pid) for seen, pid, began, ended in runs.values() if seen == device)
        assert len({pid for *_, pid in of_device}) == 1
        assert all(first[1] <= second[0] for first, second in pairwise(of_device))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"


def test_a_device_stays_when_a_run_takes_its_process_with_it(tmp_path: Path) -> None:
    assert made(die_once, {"a": (tmp_path / "mark",)}, new_seats(["5"])) == {"a": "5"}


def test_without_devices_a_process_sees_what_this_one_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    assert made(report, {"a": (0.0,)}, new_seats(1))["a"][0] == "6,7"


def test_there_are_no_more_seats_than_runs() -> None:
    assert [seat.device for seat in new_seats(["0", "1", "2"], 2) if isinstance(seat, Seat)] == ["0", "1"]
    assert len(new_seats(3, 2)) == 2
    assert type(new_seats(0)[0]) is InThisProcess
    assert workers.Seat().device == ""
