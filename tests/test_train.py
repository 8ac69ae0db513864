import json
import re
from pathlib import Path

import pytest
import small_runs
from conftest import Refused

from microumup import train as train_module
from microumup.config import TrainConfig
from microumup.data import Corpus
from microumup.ranges import read_scales
from microumup.run_dir import load_config
from microumup.train import main, suitable_threads

OPTIONS = ["--width", "16", "--head-dim", "8", "--layers", "1", "--seq-len", "16", "--batch-size", "4", "--steps", "8"]


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    """The command trains on the test corpus instead of the shipped one."""
    monkeypatch.setattr(train_module, "load_corpus", lambda *_, **__: corpus)


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


@pytest.mark.usefixtures("shipped")
def test_the_command_writes_a_run_and_prints_json_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--json", "--out", str(tmp_path / "run")]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["run_dir"] == str(tmp_path / "run")
    assert any("a sample" in line for line in text)
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files - {".lock"} == {"config.json", "metrics.jsonl", "checkpoint.safetensors", "result.json"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 8


@pytest.mark.usefixtures("shipped")
def test_quiet_prints_the_to_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["--save-every=-1", "--text", "/no/such/file"], "--save-every: -1 is too small"),  # before texts are learned
        (["--save-minutes", "nan"], "--save-minutes: nan is not"),
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
        main(["--help-all"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for name in TrainConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert "--alpha-attn " in text  # the paper's other name


# ---- TF32 ----


def test_tf32_on_a_cpu_is_refused_before_anything_is_written(shipped: None, tmp_path: Path, refused: Refused) -> None:
    error = refused(main, [*OPTIONS, "--tf32", "--device", "cpu", "--out", str(tmp_path / "run")])
    assert error == "microumup train: --tf32: is for a GPU of compute capability 8.0 or more; leave it out\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("double")
def test_a_run_in_tf32_does_not_go_on_on_a_cpu(tmp_path: Path, text: Path, refused: Refused) -> None:
    small_runs.killed(small_runs.options(tmp_path / "run", text, "--tf32", "--device", "gpu", "--kernels", "plain"))
    argv = ["--resume", str(tmp_path / "run"), "--device", "cpu"]
    small_runs.refuses(refused, tmp_path / "run", "--tf32: is for a GPU", argv=argv)


def test_tf32_is_off_and_the_help_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--tf32, --no-tf32 on a GPU: matrix products in TF32, [^(]*\(default: off\)", text)
