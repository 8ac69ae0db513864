"""Run directories: nothing is overwritten, and what was written is read again, by later versions too."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import Refused
from small_runs import made

from microumup import train
from microumup.config import TrainConfig
from microumup.data import Corpus
from microumup.files import read_record, sealed, write_json
from microumup.older import ADDED, NEWER, without_retired
from microumup.records import Command
from microumup.run_dir import RunDir, load_config, read_config, read_metrics

CONFIG = TrainConfig(width=32)


# ---- config.json ----


def test_a_config_comes_back_as_it_went(tmp_path: Path, corpus: Corpus) -> None:
    config = TrainConfig(width=32, text=("a.txt", "b.txt"), lr=2**0.3, threads=2)
    command = Command(save_every=3, save_minutes=1.5, log_scales=7)
    RunDir.create(tmp_path / "run", config, corpus, command).close()
    assert load_config(tmp_path / "run") == config
    assert read_config(tmp_path / "run")[:2] == (config, command)


def test_options_that_are_no_more_are_dropped_where_they_said_nothing() -> None:
    assert without_retired({"width": 8, "tied_embeddings": False}) == {"width": 8}
    assert without_retired({"width": 8}) == {"width": 8}
    with pytest.raises(ValueError, match=r"^--tied-embeddings: True cannot be loaded; the option was only ever False"):
        without_retired({"width": 8, "tied_embeddings": True})


def test_a_config_of_an_older_version_is_loaded(tmp_path: Path, refused: Refused) -> None:
    options = asdict(CONFIG) | {"tied_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(options))
    assert load_config(tmp_path) == CONFIG
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in options.items() if k not in (*ADDED, *NEWER)}))
    assert load_config(tmp_path) == CONFIG
    (tmp_path / "config.json").write_text(json.dumps(options | {"tied_embeddings": True}))
    assert "--tied-embeddings: True cannot be loaded" in refused(train.main, ["--resume", str(tmp_path)])


def test_a_run_made_before_an_option_came_goes_on(tmp_path: Path, corpus: Corpus) -> None:
    made(tmp_path, CONFIG, corpus)
    record = read_record(tmp_path / "config.json")
    older = {name: value for name, value in record.items() if name not in NEWER}
    del older["run"]["eval_every"], older["run"]["log_every"]
    write_json(tmp_path / "config.json", sealed(older))
    with RunDir.resume(tmp_path, corpus) as run:
        assert (run.config, run.command) == (CONFIG, Command())
    write_json(tmp_path / "config.json", sealed({name: older[name] for name in older if name != "threads"}))
    with pytest.raises(ValueError, match="missing: threads"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "content", ["3", "[]", '"text"', "{}", "{", "", "[" * 100_000, "\0", '{"lr": NaN}', "9" * 5000]
)
def test_a_config_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json is not a config of microumup .*; restore it$"):
        load_config(tmp_path)


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run, there is no config.json in it$"):
        load_config(tmp_path)


def test_where_runs_lie_one_of_them_is_named(tmp_path: Path, corpus: Corpus) -> None:
    made(tmp_path / "mine", CONFIG, corpus)
    with pytest.raises(ValueError, match=f"in it; name one of those in it, as {tmp_path / 'mine'}$"):
        load_config(tmp_path)


# ---- A new directory ----


def test_a_run_that_names_no_directory_gets_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus
) -> None:
    monkeypatch.chdir(tmp_path)
    found = [made(None, CONFIG, corpus) for _ in range(3)]
    assert len(set(found)) == 3
    assert all(path.parent == Path("runs") and "-umup-w32" in path.name for path in found)
    assert all(load_config(path) == CONFIG for path in found)


def test_an_empty_directory_is_taken(tmp_path: Path, corpus: Corpus) -> None:
    assert made(tmp_path, CONFIG, corpus) == tmp_path
    assert load_config(tmp_path) == CONFIG


@pytest.mark.parametrize(
    ("files", "mend"),
    [
        (["config.json"], "continue it with --resume {out}, or name another"),
        (["config.json", "result.json"], "name another"),
        (["letter.txt"], "name another"),
    ],
)
def test_what_is_there_is_never_overwritten(tmp_path: Path, files: list[str], mend: str, corpus: Corpus) -> None:
    for name in files:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"^--out: {tmp_path} exists and is not an empty directory; ") as error:
        RunDir.create(tmp_path, CONFIG, corpus)
    assert str(error.value).endswith(f"; {mend.format(out=tmp_path)}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(files, "mine")


def test_a_file_is_no_directory(tmp_path: Path, corpus: Corpus) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"^--out: .*/file exists and is not an empty directory; name another$"):
        RunDir.create(tmp_path / "file", CONFIG, corpus)


# ---- What a run leaves in it ----


def test_a_run_without_a_checkpoint_starts_its_metrics_anew(tmp_path: Path, corpus: Corpus) -> None:
    with RunDir.create(tmp_path, CONFIG, corpus) as run:
        run.log([{"step": 0, "loss": 1.0}, {"step": 1, "loss": 1.5}])
    with RunDir.resume(tmp_path, corpus) as run:
        assert (run.step, run.state, run.records) == (0, None, [])
        run.log([{"step": 0, "loss": 2.0}])
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 2.0}]


def test_leftovers_of_a_kill_are_removed(tmp_path: Path, corpus: Corpus) -> None:
    made(tmp_path, CONFIG, corpus)
    (tmp_path / ".checkpoint.safetensors.7.tmp").write_text("half")
    with RunDir.resume(tmp_path, corpus):
        assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"config.json", "metrics.jsonl"}


def test_what_an_older_version_did_not_record_is_said_to_be_lost(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(asdict(CONFIG)))
    assert "log-scales" not in read_config(tmp_path)[2]["assumed"]
    (tmp_path / "scales.jsonl").touch()
    assert "assumed: no more --log-scales, texts as they were" in read_config(tmp_path)[2]["assumed"]
