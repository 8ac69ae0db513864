import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from multiprocessing import active_children, parent_process
from pathlib import Path
from typing import Any

import pytest

from microumup import __version__, files
from microumup.config import PRESETS, TrainConfig
from microumup.lab import sweep as module
from microumup.lab.sweep import (
    Crashed,
    Job,
    Record,
    estimate_seconds,
    flops,
    load_results,
    plain,
    run,
    run_id,
    show_time,
    sweep,
    varying,
)
from microumup.lab.tables import read_table, write_table
from microumup.older import NEWER
from microumup.parametrization import Scheme
from microumup.trainer import train

TINY: dict[str, Any] = {"width": 16, "head_dim": 8, "layers": 1, "seq_len": 8, "batch_size": 2, "steps": 3}


@pytest.fixture
def jobs(people: str) -> list[Job]:
    return [Job(TrainConfig(**TINY, text=(people,), lr=lr)) for lr in (0.5, 1.0, 2.0)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of the runs that were made, in order."""
    made: list[float] = []

    def counted(job: Job, device: str) -> Record:
        made.append(job.config.eta)
        return run(job, device)

    monkeypatch.setattr(module, "run", counted)
    return made


def strict_json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{path}: {constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


# ---------------------------------------------------------------------------------------------------------------------
# One run


def test_a_record_is_what_train_says(jobs: list[Job]) -> None:
    config = jobs[1].config
    record = run(jobs[1])
    result = train(config, module.corpus_of(config))[1]
    assert record["id"] == run_id(jobs[1])
    assert (record["loss"], record["loss_valid"]) == (result["loss_final"], result["loss_valid"])
    assert (record["diverged"], record["diverged_at"]) == (False, None)
    assert record["config"] == asdict(config) | {"text": list(config.text), "valid": []}
    assert record["version"] == __version__
    assert record["seconds"] > 0
    assert record["tokens_per_second"] > 0
    assert "ranges" not in record
    assert json.loads(json.dumps(record)) == record


def test_ranges_are_kept_when_asked_for(jobs: list[Job]) -> None:
    ranges = run(Job(jobs[0].config, ranges_every=2))["ranges"]
    assert list(ranges) == ["0", "2"]
    assert {"layer0.q.x", "layer0.down.w", "head.dy"} <= set(ranges["0"])
    assert set(ranges["0"]["head.dy"]) == {"format", "size", "rms", "absmax", "underflow", "saturated"}


def test_a_run_that_diverges_is_a_result(people: str, tmp_path: Path) -> None:
    job = Job(TrainConfig(**TINY, text=(people,), scheme="sp", lr=1e30), ranges_every=1)
    [record] = sweep([job], tmp_path, workers=0)
    assert (record["loss"], record["loss_valid"], record["diverged"]) == (None, None, True)
    assert record["diverged_at"] >= 1
    assert strict_json(tmp_path / "results" / f"{run_id(job)}.json") == files.sealed(record)
    [row] = read_table(tmp_path / "table.csv")
    assert (row["loss"], row["diverged"]) == (None, True)


@pytest.mark.parametrize("losses", [(9.0, float("nan")), (float("inf"), 9.0)])
def test_a_run_whose_end_is_no_number_diverged(
    losses: tuple[float, float], monkeypatch: pytest.MonkeyPatch, jobs: list[Job]
) -> None:
    """It counted as one that ended, where only the last update or the validation broke."""
    result = dict(zip(("loss_final", "loss_valid"), losses, strict=True)) | {"seconds": 0}
    monkeypatch.setattr(module, "train", lambda *a, **k: (None, result))
    record = run(jobs[0])
    assert (record["loss"], record["loss_valid"], record["diverged"]) == (None, None, True)
    assert record["diverged_at"] == jobs[0].config.steps


def test_an_id_depends_on_the_config_and_on_nothing_else(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    config = jobs[1].config
    before = run_id(jobs[1])
    with monkeypatch.context() as other_order:
        other_order.setattr(module, "plain", lambda config: dict(reversed(plain(config).items())))
        assert run_id(jobs[1]) == before
    assert run_id(Job(replace(config, lr=1))) == run_id(jobs[1])  # 1 == 1.0
    assert run_id(Job(replace(config, threads=2))) == run_id(jobs[1])  # a sweep always takes one
    others = [Job(replace(config, seed=1)), Job(replace(config, warmup=0.5)), Job(config, 1), jobs[0]]
    assert len({run_id(job) for job in [jobs[1], *others]}) == 5
    text = config.text[0]
    code = f"from test_sweep import *; print(run_id(Job(TrainConfig(**TINY, lr=0.7, text=({text!r}, {text!r})))))"
    other_process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert other_process.stdout.strip() == run_id(Job(TrainConfig(**TINY, lr=0.7, text=(text, text))))


def test_a_run_made_before_an_option_was_retired_keeps_its_id() -> None:
    job = Job(TrainConfig(**TINY))
    config = {name: value for name, value in plain(job.config).items() if name not in NEWER}
    content = {"config": config | {"tied_embeddings": False}, "ranges_every": 0}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert run_id(job) == sha256(canonical.encode()).hexdigest()[:12]


@pytest.mark.parametrize("option", [{"clip": 1.0}, {"beta2": 0.99}, {"kernels": "plain"}, {"micro_batch": 2}])
def test_a_newer_option_that_says_something_is_part_of_the_id(option: dict[str, Any]) -> None:
    assert run_id(Job(TrainConfig(**TINY, **option))) != run_id(Job(TrainConfig(**TINY)))


def test_an_id_depends_on_what_is_in_a_text_not_on_where_it_lies(tmp_path: Path) -> None:
    """A changed text got the results of the text before it."""

    def id(path: Path) -> str:
        return run_id(Job(TrainConfig(**TINY, text=(str(path),))))

    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("the people " * 100)
    second.write_text("the people " * 100)
    assert id(first) == id(second)
    second.write_text("the peoplf " * 100)
    os.utime(second, ns=(1, 1))  # whatever the clock says
    assert id(first) != id(second)
    with pytest.raises(ValueError, match=r"--text .*c.txt: cannot be read"):
        id(tmp_path / "c.txt")


def test_a_text_that_changes_while_a_sweep_is_on_is_found(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the people " * 100)
    job = Job(replace(jobs[0].config, text=(str(text),)))

    def changed(job: Job, device: str) -> Record:
        text.write_text("the peoplf " * 100)
        return run(job, device)

    monkeypatch.setattr(module, "run", changed)
    with pytest.raises(Crashed, match="--text or --valid: changed while the sweep was on"):
        sweep([job], tmp_path / "out", workers=0, retries=0)
    assert load_results(tmp_path / "out") == {}


def test_a_second_sweep_in_a_directory_is_refused(jobs: list[Job], tmp_path: Path) -> None:
    """Two of them doubled rows."""
    held = files.lock(tmp_path)
    with pytest.raises(ValueError, match="another process is writing here; wait for it, or name another"):
        sweep(jobs, tmp_path, workers=0)
    held.release()
    sweep(jobs, tmp_path, workers=0)
    assert len(read_table(tmp_path / "table.csv")) == 3


def test_sizes_nobody_has_memory_for_are_refused_before_anything_is_written(jobs: list[Job], tmp_path: Path) -> None:
    huge = Job(replace(jobs[0].config, width=2**20, head_dim=2**18, layers=100))
    with pytest.raises(ValueError, match=r"^--width: 1,048,576 needs .* GB of memory or more"):
        sweep([*jobs, huge], tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# All runs


def test_records_come_in_the_order_of_the_jobs_and_duplicates_run_once(
    jobs: list[Job], tmp_path: Path, made: list[float]
) -> None:
    asked = [jobs[2], jobs[0], jobs[2], jobs[1]]
    records = sweep(asked, tmp_path, workers=0)
    assert [r["config"]["lr"] for r in records] == [2.0, 0.5, 2.0, 1.0]
    assert sorted(made) == [0.5, 1.0, 2.0]
    assert load_results(tmp_path) == {r["id"]: r for r in records}
    assert len(read_table(tmp_path / "table.csv")) == 3


def test_what_is_done_is_not_run_again(jobs: list[Job], tmp_path: Path, made: list[float]) -> None:
    first = sweep(jobs[:2], tmp_path, workers=0)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    made.clear()
    assert sweep(jobs, tmp_path, workers=0)[:2] == first
    assert made == [2.0]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(read_table(tmp_path / "table.csv")) == 3


def test_processes_say_the_same_as_this_one(jobs: list[Job], tmp_path: Path) -> None:
    here, there = (sweep(jobs, tmp_path / str(workers), workers=workers) for workers in (0, 2))
    measured = {"seconds": 0, "tokens_per_second": 0}
    assert [r | measured for r in there] == [r | measured for r in here]
    assert not active_children()


def test_the_longest_run_starts_first(
    jobs: list[Job], tmp_path: Path, made: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "estimate_seconds", lambda job: {0.5: 2.0, 1.0: 3.0, 2.0: 1.0}[job.config.eta])
    sweep(jobs, tmp_path, workers=0)
    assert made == [1.0, 0.5, 2.0]


class DiesOnce(TrainConfig):
    """A run whose process dies in the first training step, the first time that it is tried."""

    @property
    def rules(self) -> Scheme:
        tried = Path(self.text[0]).parent / f"tried-{self.lr}"
        if parent_process() and not tried.exists():
            tried.touch()
            os._exit(9)
        return super().rules


class DiesAlways(TrainConfig):
    """A run whose process dies in the first training step."""

    @property
    def rules(self) -> Scheme:
        if parent_process():
            os._exit(9)
        return super().rules


def as_kind(kind: type[TrainConfig], job: Job) -> Job:
    return Job(kind(**asdict(job.config)))


def test_a_killed_process_costs_no_result(people: str, jobs: list[Job], tmp_path: Path) -> None:
    mortal = [as_kind(DiesOnce, jobs[0]), jobs[1], as_kind(DiesOnce, jobs[2])]
    records = sweep(mortal, tmp_path, workers=2, retries=1)
    assert (Path(people).parent / "tried-0.5").exists()
    assert (Path(people).parent / "tried-2.0").exists()
    assert [r["config"]["lr"] for r in records] == [0.5, 1.0, 2.0]
    assert sorted(r["id"] for r in read_table(tmp_path / "table.csv")) == sorted(run_id(job) for job in jobs)


def test_a_run_that_always_kills_its_process_is_reported_and_takes_no_other_with_it(
    jobs: list[Job], tmp_path: Path
) -> None:
    bad = as_kind(DiesAlways, jobs[0])
    others = [Job(replace(jobs[1].config, seed=seed)) for seed in range(6)]
    with pytest.raises(Crashed) as crash:
        sweep([bad, *others], tmp_path, workers=2, retries=1)
    assert list(crash.value.errors) == [run_id(bad)]
    assert "terminated abruptly" in str(crash.value)
    assert set(load_results(tmp_path)) == {run_id(job) for job in others}


def test_a_run_that_fails_is_tried_again_and_then_reported(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fails(job: Job, device: str) -> Record:
        tries.append(job.config.eta)
        if job.config.eta == 1.0 or (job.config.eta == 0.5 and tries.count(0.5) < 3):
            raise MemoryError("no\nroom")
        return run(job, device)

    monkeypatch.setattr(module, "run", fails)
    with pytest.raises(Crashed) as crash:
        sweep(jobs, tmp_path, workers=0, retries=2)
    assert crash.value.errors == {run_id(jobs[1]): "MemoryError: no room"}
    assert sorted(tries) == [0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0]
    assert set(load_results(tmp_path)) == {run_id(jobs[0]), run_id(jobs[2])}
    monkeypatch.undo()
    assert len(sweep(jobs, tmp_path, workers=0)) == 3


def test_only_whole_results_count(jobs: list[Job], tmp_path: Path, made: list[float]) -> None:
    sweep(jobs[:1], tmp_path, workers=0)
    whole = tmp_path / "results" / f"{run_id(jobs[0])}.json"
    (tmp_path / "results" / f".{run_id(jobs[1])}.json.7.tmp").write_text(whole.read_text()[:20])  # was being written
    (tmp_path / "table.csv").write_text((tmp_path / "table.csv").read_text()[:-9])  # so was this
    sweep(jobs, tmp_path, workers=0)
    assert sorted(made) == [0.5, 1.0, 2.0]
    assert {row["id"] for row in read_table(tmp_path / "table.csv")} == {run_id(job) for job in jobs}


def test_a_text_that_an_older_version_kept_as_it_was_typed_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[float]
) -> None:
    """The runs of a sweep that went on differed in --text, which transfer refuses."""
    (tmp_path / "text.txt").write_text("the people " * 100)
    monkeypatch.chdir(tmp_path)
    texts = ("text.txt",), (str(tmp_path / "text.txt"),)
    older, newer = ([Job(TrainConfig(**TINY, text=text, lr=lr)) for lr in (0.5, 1.0)] for text in texts)
    sweep(older[:1], tmp_path / "out", workers=0)
    sweep(newer, tmp_path / "out", workers=0)
    assert made == [0.5, 1.0]
    assert varying([record["config"] for record in load_results(tmp_path / "out").values()]) == ["lr"]
    assert list(read_table(tmp_path / "out" / "table.csv")[0])[:2] == ["id", "lr"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": "other"}'])
def test_a_damaged_result_is_named(content: str, jobs: list[Job], tmp_path: Path) -> None:
    sweep(jobs[:1], tmp_path, workers=0)
    damaged = tmp_path / "results" / f"{run_id(jobs[0])}.json"
    damaged.write_text(content)
    with pytest.raises(ValueError, match=rf"{damaged} is no result of a sweep .*; delete it"):
        sweep(jobs, tmp_path, workers=0)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def fake(id: str, loss: float | None = 1.5, **config: Any) -> Record:
    values = asdict(TrainConfig(**config)) | {"text": list(config.get("text", ()))}
    return {
        "id": id, "config": values, "ranges_every": 0, "version": "0.1.0", "loss": loss, "loss_valid": loss,
        "diverged": loss is None, "diverged_at": None if loss else 3, "seconds": 0.25, "tokens_per_second": 7,
    }  # fmt: skip


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    records = [
        fake("123456789012", lr=2**0.5, scheme="umup", embedding_lr_rule=False, text=("a, b.txt", "1")),
        fake("12345e678901", None, lr=2**-7.5, scheme="sp", text=()),
    ]
    names = varying([record["config"] for record in records])
    assert names == ["scheme", "embedding_lr_rule", "text", "lr"]
    columns = ["id", "width", "diverged_at", *names]
    measured = ["loss", "loss_valid", "diverged", "seconds", "version"]
    write_table(tmp_path / "t.csv", [*columns, *measured], [module.row(record, columns) for record in records])
    rows = read_table(tmp_path / "t.csv")
    assert list(rows[0]) == [*columns, *measured]
    for record, row in zip(records, rows, strict=True):
        expected = {**record, **record["config"]}
        assert row == {name: expected[name] for name in row}
        assert [type(v) for v in row.values()] == [type(expected[name]) for name in row]


def test_the_table_has_a_row_for_every_run_there_is(jobs: list[Job], tmp_path: Path) -> None:
    """Of this sweep and of earlier ones, with a column for whatever varies over all of them."""
    sweep(jobs, tmp_path, workers=0)
    sweep([Job(replace(jobs[0].config, seed=1))], tmp_path, workers=0)
    rows = read_table(tmp_path / "table.csv")
    assert sorted((row["lr"], row["seed"]) for row in rows) == [(0.5, 0), (0.5, 1), (1.0, 0), (2.0, 0)]
    assert {row["id"] for row in rows} == set(load_results(tmp_path))


# ---------------------------------------------------------------------------------------------------------------------
# Costs


def test_flops_are_six_a_weight_and_token_and_attention(jobs: list[Job]) -> None:
    matmuls = 4 * 16 * 16 + 3 * 16 * 44 + 16 * 256  # q, k, v, o; gate, up, down; head
    assert flops(jobs[0].config) == 6 * matmuls * 16 + 3 * 2 * 2 * (2 * 8 * 8 * 16)  # two products, each 2 T T D flops


def test_an_estimate_is_of_the_right_size(people: str) -> None:
    job = Job(TrainConfig(**TINY | {"steps": 400}, text=(people,)))
    estimates = [estimate_seconds(Job(replace(job.config, steps=steps))) for steps in (400, 800)]
    assert estimates[0] < estimates[1] < 2 * estimates[0]
    assert 0.1 < run(job)["seconds"] / estimates[0] < 10  # a busy machine may be several times slower at one of them


def test_the_estimate_of_a_large_run_times_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[TrainConfig] = []

    class Watched(module.Trainer):
        def __init__(self, config: TrainConfig, *args: Any) -> None:
            timed.append(config)
            super().__init__(replace(config, width=64), *args)

    monkeypatch.setattr(module, "Trainer", Watched)
    large = Job(TrainConfig(**PRESETS["paper"] | {"width": 4096, "layers": 32}))
    estimate = estimate_seconds(large)
    assert flops(large.config) > 100 * module.SAMPLE > 100 * flops(timed[0])
    assert estimate > 3600


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (60, "60 s"), (600, "10.0 min"), (9000, "2.5 h")])
def test_times_are_said_in_a_fitting_unit(seconds: float, said: str) -> None:
    assert show_time(seconds) == said
