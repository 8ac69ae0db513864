import json
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused

from microumup import ops
from microumup import train as train_module
from microumup.config import PRESETS, TrainConfig
from microumup.data import Corpus
from microumup.engine import Tensor
from microumup.ranges import linear_ranges, read_scales
from microumup.run_dir import load_config
from microumup.train import main, suitable_threads
from microumup.trainer import Diverged, Trainer, train

SMALL = TrainConfig(width=16, head_dim=8, layers=1, seq_len=16, batch_size=4, steps=40)
OPTIONS = ["--width", "16", "--head-dim", "8", "--layers", "1", "--seq-len", "16", "--batch-size", "4", "--steps", "8"]


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    """The command trains on the test corpus instead of the shipped one."""
    monkeypatch.setattr(train_module, "load_corpus", lambda *_, **__: corpus)


@pytest.mark.parametrize("options", [{}, {"scheme": "sp"}, {"scheme": "mup", "base_width": 16}, {"fp8": "fp8"}])
def test_a_model_learns(corpus: Corpus, options: dict[str, Any]) -> None:
    options = options if "scheme" not in options else options | {"lr": 2**-5}
    small = {"width": 16, "head_dim": 8, "seq_len": 16, "batch_size": 4, "steps": 60}
    _, result = train(TrainConfig(**small | options), corpus)
    assert abs(result["loss_first"] - log(256)) < 1.5  # nothing known yet: uniform but for the logits' std of up to 1
    assert result["loss_final"] < 2.2  # the letters alone have an entropy of 2.5 nats
    assert result["loss_valid"] < 2.2


def test_sgd_learns(corpus: Corpus) -> None:
    _, result = train(replace(SMALL, optimizer="sgd", lr=4.0, steps=60), corpus)
    assert result["loss_final"] < result["loss_first"] - 1


def test_the_result_has_what_the_readme_promises(corpus: Corpus, tmp_path: Path) -> None:
    _, result = train(SMALL, corpus, tmp_path)
    assert set(result) == {
        "scheme", "width", "steps", "tokens", "loss_first", "loss_final", "loss_valid", "seconds", "tokens_per_second",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))
    assert set(lines[0]) == {"step", "loss", "lr", "tokens_per_second", "grad_norm"}
    assert result["tokens"] == 40 * 4 * 16
    assert result["loss_first"] == lines[0]["loss"]
    assert result["loss_final"] == (lines[-2]["loss"] + lines[-1]["loss"]) / 2  # 5 % of 40
    assert max(line["lr"] for line in lines) == 1.5


def test_the_same_run_ends_in_the_same_bits_and_another_seed_in_others(corpus: Corpus) -> None:
    losses = [train(replace(SMALL, seed=seed), corpus)[1]["loss_final"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


class KilledError(Exception):
    pass


def test_a_run_that_was_killed_and_resumed_ends_in_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    expected, result = train(SMALL, corpus, whole, save_every=10)

    def kill(step: int, _: Tensor) -> None:
        if step == 25:
            raise KilledError

    with pytest.raises(KilledError):
        train(SMALL, corpus, resumed, save_every=10, watch=kill, watch_every=1)
    assert len((resumed / "metrics.jsonl").read_text().splitlines()) == 25
    trainer, again = train(SMALL, corpus, resumed, save_every=10)
    assert all(np.array_equal(trainer.params[name], w) for name, w in expected.params.items())
    for key in ("loss_first", "loss_final", "loss_valid"):
        assert again[key] == result[key]
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("scheme", ["umup", "sp"])
@pytest.mark.parametrize("threads", [2, 3])  # 3: shares of 1, 1 and 2 sequences
def test_threads_change_nothing_but_rounding(corpus: Corpus, scheme: str, threads: int) -> None:
    config = replace(SMALL, scheme=scheme, lr=2**-6)
    one, many = Trainer(config, corpus), Trainer(replace(config, threads=threads), corpus)
    for step in range(3):  # of which each enlarges what the one before left
        assert many.update(step) == pytest.approx(one.update(step), rel=1e-5)
    for name, w in one.params.items():
        assert np.linalg.norm(many.params[name] - w) <= 1e-5 * np.linalg.norm(w), name


def test_the_same_number_of_threads_gives_the_same_bits(corpus: Corpus) -> None:
    config = replace(SMALL, threads=2)
    first, second = (train(config, corpus) for _ in range(2))
    assert first[1]["loss_final"] == second[1]["loss_final"]
    assert all(np.array_equal(w, second[0].params[name]) for name, w in first[0].params.items())


def test_ranges_are_of_the_whole_batch_whatever_the_threads(corpus: Corpus) -> None:
    seen: list[Any] = []
    for threads in (1, 3):
        config = replace(SMALL, threads=threads)
        Trainer(config, corpus).update(0, watch=lambda _, losses: seen.append(linear_ranges(losses)))
    assert seen[0].keys() == seen[1].keys()
    for name, r in seen[0].items():
        assert seen[1][name] == (*r[:2], pytest.approx(r.rms, rel=1e-6), pytest.approx(r.absmax, rel=1e-6), *r[4:])


@pytest.mark.parametrize(
    ("cores", "width", "batch_size", "seq_len", "threads"),
    [
        (2, 64, 16, 64, 2),
        (64, 64, 16, 64, 2),
        (64, 64, 16, 128, 4),
        (64, 128, 16, 64, 4),
        (2, 32, 16, 64, 1),
        (1, 64, 16, 64, 1),
        (8, 64, 2, 4096, 2),
        (8, 64, 4, 16, 1),
    ],
)
def test_a_thread_has_a_core_enough_work_and_a_sequence(
    monkeypatch: pytest.MonkeyPatch, cores: int, width: int, batch_size: int, seq_len: int, threads: int
) -> None:
    monkeypatch.setattr(train_module, "cores", lambda: cores)
    assert suitable_threads(TrainConfig(width=width, batch_size=batch_size, seq_len=seq_len)) == threads


def test_the_command_notes_how_many_threads_it_took(
    shipped: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "cores", lambda: 3)
    monkeypatch.setattr(train_module, "WORK_PER_THREAD", 1)
    assert main([*OPTIONS, "--quiet", "--out", str(tmp_path / "all")]) == 0
    assert main([*OPTIONS, "--quiet", "--out", str(tmp_path / "one"), "--threads", "1"]) == 0
    assert [load_config(tmp_path / name).threads for name in ("all", "one")] == [3, 1]


def test_a_summed_loss_has_the_gradients_of_the_mean_one_times_its_tokens(corpus: Corpus) -> None:
    tokens = SMALL.batch_size * SMALL.seq_len
    norms = [Trainer(replace(SMALL, loss_scale=scale), corpus).update(0) for scale in (1.0, float(tokens))]
    assert norms[1][0] == norms[0][0]  # the loss itself is the mean
    assert norms[1][1] == pytest.approx(tokens * norms[0][1], rel=1e-6)


def test_sgd_divides_by_the_scale_of_the_loss(corpus: Corpus) -> None:
    config = replace(SMALL, optimizer="sgd", lr=1.0)
    plain, scaled = Trainer(config, corpus), Trainer(replace(config, loss_scale=64.0), corpus)
    for step in range(3):
        plain.update(step)
        scaled.update(step)
    assert all(np.array_equal(w, scaled.params[name]) for name, w in plain.params.items())  # 64 is a power of two


def test_watching_a_step_does_not_change_it(corpus: Corpus) -> None:
    plain, watched, seen = Trainer(SMALL, corpus), Trainer(SMALL, corpus), []
    for step in range(3):
        assert plain.update(step) == watched.update(
            step, watch=lambda step, losses: seen.append((step, losses[0].grad))
        )
    assert [step for step, grad in seen if grad is not None] == [0, 1, 2]
    assert all(np.array_equal(plain.params[name], w) for name, w in watched.params.items())


def test_divergence_names_the_step_and_what_to_try(corpus: Corpus) -> None:
    message = r"the loss is (nan|inf) at step \d+; try a lower --lr"
    with pytest.raises(Diverged, match=message):
        train(replace(SMALL, scheme="sp", lr=1e39), corpus)


# ---- the command ----


@pytest.mark.usefixtures("shipped")
def test_the_command_writes_a_run_and_prints_json_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--json", "--out", str(tmp_path / "run")]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["run_dir"] == str(tmp_path / "run")
    assert any("a sample" in line for line in text)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"config.json", "metrics.jsonl", "checkpoint.safetensors", "result.json"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 8


@pytest.mark.usefixtures("shipped")
def test_quiet_prints_the_json_line_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--json", "--quiet", "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1
    assert output.err == ""


@pytest.mark.usefixtures("shipped")
def test_scales_are_logged_on_the_steps_asked_for_and_at_the_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*OPTIONS, "--quiet", "--log-scales", "3", "--fp8", "fp8-iclr", "--out", str(run)]) == 0
    logged = read_scales(run)
    assert list(logged) == [0, 3, 6, 7]
    assert {name: r.format for name, r in logged[0].items() if name.startswith("head") or name == "layer0.q.dy"} == {
        "layer0.q.dy": "e5m2", "head.x": "none", "head.w": "none", "head.dy": "none",
    }  # fmt: skip


@pytest.mark.usefixtures("shipped")
def test_a_run_directory_of_its_own_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*OPTIONS, "--quiet"]) == main([*OPTIONS, "--quiet"]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.usefixtures("shipped")
def test_nothing_is_overwritten(tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "run"
    assert main([*OPTIONS, "--quiet", "--out", str(run)]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert f"--out: {run} exists" in refused(main, [*OPTIONS, "--out", str(run)])
    assert "is finished" in refused(main, ["--resume", str(run)])
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.usefixtures("shipped")
def test_resume_takes_its_options_from_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    run = tmp_path / "run"
    assert main([*OPTIONS, "--quiet", "--json", "--out", str(run)]) == 0
    result = json.loads(capsys.readouterr().out)
    (run / "result.json").unlink()  # as if it had been cut off just before the end
    assert "leave out --lr" in refused(main, ["--resume", str(run), "--lr", "1"])
    assert main(["--resume", str(run), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss_final"] == result["loss_final"]


@pytest.mark.usefixtures("shipped")
def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*OPTIONS, "--quiet", "--out", str(run)]) == 0
    for name in ("result.json", "checkpoint.safetensors"):
        (run / name).unlink()
    assert main(["--resume", str(run), "--quiet"]) == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lr", "2^x"], "--lr: '2^x' is not a number; write 1.5, 2^1.5 or 2**-7"),
        (["--steps", "1e3"], "--steps: '1e3' is not a whole number"),
        (["--scheme", "mupp"], "--scheme: 'mupp' is unknown"),
        (["--width", "60"], "--width: 60 is not a multiple of --head-dim 16"),
        (["--widht", "64"], "unrecognized arguments: --widht"),
        (["--text", "/no/such/file"], "--text /no/such/file: cannot be read"),
        (["--resume", "/no/such/run"], "--resume: /no/such/run holds no run"),
        (["--save-every", "0"], "--save-every: 0 is too small"),
        (["--log-scales", "-1"], "--log-scales: -1 is too small"),
        (["--fp8", "fp8,dwon.x=e5m2"], "there is no linear 'dwon'"),
        (["--device", "tpu"], "--device: 'tpu' is not one of auto, cpu, gpu"),
        (["--preset", "huge"], "--preset: invalid choice: 'huge'"),
        (["--corpus", "c4"], "--corpus"),
        (["--vocab-size", "100"], "--vocab-size"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_nothing(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(main, argv)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("shipped")
def test_divergence_ends_with_1_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--scheme", "sp", "--lr", "1e39", "--quiet", "--out", str(tmp_path / "run")]) == 1
    assert "try a lower --lr" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "value"), [("1.5", 1.5), ("2^1.5", 2**1.5), ("2**-7", 2**-7), ("2^-7", 2**-7)])
def test_learning_rates_can_be_written_as_powers(text: str, value: float) -> None:
    assert train_module.cli.number(text) == value


def test_every_option_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert "--alpha-attn " in text  # the paper's other name


@pytest.mark.parametrize("options", [{"loss_scale": 512.0}, {"threads": 2}], ids=["summed", "threads"])
def test_fp8_casts_the_gradients_of_what_is_differentiated(corpus: Corpus, options: dict[str, Any]) -> None:
    """The readable ops cast dy as it arrives; so must the fast ones, whatever stands between the loss and its mean."""
    config = replace(SMALL, scheme="mup", base_width=16, base_layers=1, lr=2**-6, fp8="fp8", **options)
    fast, readable = Trainer(config, corpus), Trainer(config, corpus)
    readable.ops = ops
    norms = [trainer.update(0)[1] for trainer in (fast, readable)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)  # of values between two FP8 numbers a few round the other way
