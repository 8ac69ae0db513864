"""The command `sweep`: what it says, what it refuses, and that it can be stopped at any time."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Refused

from microumup.backend import install_hint
from microumup.lab import sweep as module
from microumup.lab.sweep import Job, Record, load_results, main, run
from microumup.lab.tables import read_table
from microumup.lab.workers import InThisProcess

TINY: dict[str, Any] = {"width": 16, "head_dim": 8, "layers": 1, "seq_len": 8, "batch_size": 2, "steps": 3}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


@pytest.fixture
def argv(people: str, tmp_path: Path) -> list[str]:
    return ["--grid", "lr=0.5:2:2", "--seeds", "2", *OPTIONS, "--text", people, "--out", str(tmp_path / "out")]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes."""
    monkeypatch.setattr(module, "new_seats", lambda workers, runs=1: [InThisProcess()])


@pytest.mark.usefixtures("here")
def test_the_command_says_what_is_best(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    rows = read_table(tmp_path / "out" / "table.csv")
    means = {lr: sum(r["loss"] for r in rows if r["lr"] == lr) / 2 for lr in (0.5, 1.0, 2.0)}
    assert [p["values"]["lr"] for p in found["points"]] == sorted(means, key=lambda lr: means[lr])
    assert found["points"][0]["loss"] == pytest.approx(min(means.values()))
    assert found["crashed"] == {}
    assert text[0] == "3 points, best first:"
    assert f"every run: {tmp_path / 'out' / 'table.csv'}" in text
    assert [model["seeds"] for model in found["optima"]] == [2]
    assert text[-1] == f"go on with: microumup transfer {tmp_path / 'out'} --width 32"


@pytest.mark.usefixtures("here")
def test_a_dry_run_counts_and_writes_nothing(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("6 runs, 0 of them done; the rest takes about ")
    assert list(tmp_path.iterdir()) == []
    assert main([*argv[:1], "lr=0.5", *argv[2:], "--quiet"]) == 0
    before = sorted(tmp_path.rglob("*"))
    assert main([*argv, "--dry-run", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["done"]) == (6, 2)
    assert found["cpu_seconds"] >= 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("here")
def test_independent_and_random_searches_run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--grid", "alpha-res=0.5,1", "--independent", "--json", "--retries", "0"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    stages = [row["stage"] for row in json.loads(last)["search"]]
    assert stages == ["lr", "alpha_res", "combined", "combined, lr again"]
    assert [line.rsplit("  ", 2)[0].strip() for line in text[1:5]] == stages
    assert main([*argv, "--random", "3", "--json", "--quiet"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert len(points) == 3
    assert all(0.5 <= p["values"]["lr"] <= 2 for p in points)


@pytest.mark.usefixtures("here")
def test_a_crash_is_a_line_and_status_1(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(job: Job, device: str) -> Record:
        if (job.config.lr, job.config.seed) == (1.0, 1):
            raise OSError("disk full")
        return run(job, device)

    monkeypatch.setattr(module, "run", fails)
    assert main(argv) == 1
    out, error = capsys.readouterr()
    rows = read_table(tmp_path / "out" / "table.csv")
    assert len(rows) == 5
    assert error.startswith("microumup sweep: run ")
    assert error.endswith(" crashed: OSError: disk full\n")
    assert error.count("\n") == 1
    assert out.startswith("3 points, best first")


@pytest.mark.usefixtures("here")
def test_ctrl_c_keeps_what_is_done(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def interrupted(job: Job, device: str) -> Record:
        made.append(job)
        if len(made) == 3:
            raise KeyboardInterrupt
        return run(job, device)

    monkeypatch.setattr(module, "run", interrupted)
    assert main(argv) == 130
    assert capsys.readouterr().err == "microumup sweep: interrupted; 2 more runs are done, the same command goes on\n"
    assert len(load_results(tmp_path / "out")) == 2
    assert main(argv) == 0
    assert len(made) == 3 + 4


BAD = [
    (["--grid", "lrr=1"], "--grid lrr=1: 'lrr' is no option of train"),
    (["--grid", "warmup=0.5,2"], "--warmup: 2.0 is no share"),
    (["--grid", "lr=1", "--grid", "lr=2"], "--lr: is there twice"),
    (["--grid", "lr=1", "--lr", "2"], "--lr: is there twice"),
    (["--grid", "lr=1", "--seeds", "0"], "--seeds: 0 is too small"),
    (["--grid", "lr=1", "--workers", "0"], "--workers: 0 is too small"),
    (["--grid", "lr=1", "--random", "0"], "--random: 0 is too small"),
    (["--grid", "lr=1", "--random", "1", "--independent"], "--independent: not allowed with argument --random"),
    (["--grid", "seed=1", "--independent"], "--independent: needs --grid lr="),
    (["--grid", "lr=1", "--device", "tpu"], "--device: 'tpu'"),
    (["--grid", "text=/no/such/file"], "--text /no/such/file: cannot be read"),
    ([], "--grid: name an option to sweep"),
]


@pytest.mark.parametrize(("options", "complaint"), BAD)
def test_bad_options_end_in_one_line_and_write_nothing(
    options: list[str], complaint: str, tmp_path: Path, refused: Refused
) -> None:
    assert complaint in refused(main, [*options, *OPTIONS, "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_left_alone(argv: list[str], tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    assert "out holds something else than a sweep" in refused(main, argv)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_no_dask_is_said_in_one_line(
    argv: list[str], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    error = refused(main, [*argv, "--cluster", "tcp://127.0.0.1:1"])
    assert f"--cluster: needs dask, {install_hint('cluster')}" in error
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Stopped from outside


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_and_leaves_no_process_behind(
    stop: signal.Signals, people: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "microumup", "sweep", "--grid", "lr=2^-2:2^1:2^0.5", *OPTIONS, "--steps", "400"]
    argv += ["--text", people, "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(out.glob("results/*.json"))) >= 2)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)  # until the last process that could print has ended
    kept = {path: path.stat().st_mtime_ns for path in out.glob("results/*.json")}
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert error == f"microumup sweep: interrupted; {len(kept)} more runs are done, the same command goes on\n"
    assert 2 <= len(kept) < 7
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "7 points, best first" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(load_results(out)) == len(read_table(out / "table.csv")) == 7
