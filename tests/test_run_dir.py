"""Run directories: nothing is overwritten, and what was written is read again, by later versions too."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import Refused
from test_corpora import SENTENCES, write

from microumup import checkpoint, corpora, train
from microumup.config import ModelConfig, TrainConfig
from microumup.data import ByteTokenizer
from microumup.run_dir import RunDir, load_config, load_tokenizer, new_run_dir, without_retired

# ---- Tokenizers ----


def test_a_run_directory_without_tokenizer_is_bytes(tmp_path):
    ByteTokenizer().save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


def test_a_saved_bpe_is_the_same(tmp_path):
    pytest.importorskip("tokenizers", reason="BPE needs the extra `data`")
    tokenizer = corpora.train_bpe(SENTENCES.encode(), 300)
    tokenizer.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded = load_tokenizer(tmp_path)
    text = SENTENCES[:200] + "日本 🙂"
    assert loaded.vocab_size == 300
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded.decode(loaded.encode(text).astype(np.int64)) == text
    assert loaded.encode("").dtype == np.uint16
    assert len(loaded.encode("")) == 0


def test_a_damaged_tokenizer_is_named(tmp_path):
    pytest.importorskip("tokenizers", reason="BPE needs the extra `data`")
    write(tmp_path / "tokenizer.json", "{}")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/tokenizer.json: not a tokenizer \("):
        load_tokenizer(tmp_path)


# ---- config.json ----


def test_a_config_comes_back_as_it_went(tmp_path: Path) -> None:
    config = TrainConfig(width=32, text=("a.txt", "b.txt"), lr=2**0.3, threads=2)
    assert load_config(new_run_dir(tmp_path / "run", config)) == config


def test_options_that_are_no_more_are_dropped_where_they_said_nothing() -> None:
    assert without_retired({"width": 8, "tied_embeddings": False}) == {"width": 8}
    assert without_retired({"width": 8}) == {"width": 8}
    with pytest.raises(ValueError, match=r"^--tied-embeddings: True cannot be loaded; the option was only ever False"):
        without_retired({"width": 8, "tied_embeddings": True})


def test_a_config_of_an_older_version_is_loaded(tmp_path: Path, refused: Refused) -> None:
    options = asdict(TrainConfig(width=32)) | {"tied_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(options))
    assert load_config(tmp_path) == TrainConfig(width=32)
    (tmp_path / "config.json").write_text(json.dumps(options | {"tied_embeddings": True}))
    assert "--tied-embeddings: True cannot be loaded" in refused(train.main, ["--resume", str(tmp_path)])


@pytest.mark.parametrize("content", ["3", "[]", '"text"', "{}", "{"])
def test_a_config_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json is not a config of microumup"):
        load_config(tmp_path)


def test_a_directory_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run, there is no config.json in it"):
        load_config(tmp_path)


# ---- a new directory ----


def test_a_run_that_names_no_directory_gets_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [new_run_dir(None, TrainConfig(width=32)) for _ in range(3)]
    assert len(set(found)) == 3
    assert all(path.parent == Path("runs") and "-umup-w32" in path.name for path in found)
    assert all(load_config(path) == TrainConfig(width=32) for path in found)


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    assert new_run_dir(tmp_path, TrainConfig()) == tmp_path
    assert load_config(tmp_path) == TrainConfig()


@pytest.mark.parametrize(
    ("files", "mend"),
    [
        (["config.json"], "continue it with --resume {out}, or name another"),
        (["config.json", "result.json"], "name another"),
        (["letter.txt"], "name another"),
    ],
)
def test_what_is_there_is_never_overwritten(tmp_path: Path, files: list[str], mend: str) -> None:
    for name in files:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"^--out: {tmp_path} exists and is not an empty directory; ") as error:
        new_run_dir(tmp_path, TrainConfig())
    assert str(error.value).endswith(f"; {mend.format(out=tmp_path)}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(files, "mine")


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"^--out: .*/file exists and is not an empty directory; name another$"):
        new_run_dir(tmp_path / "file", TrainConfig())


# ---- what a run leaves in it ----


def test_a_run_goes_on_from_its_checkpoint_and_forgets_what_came_after(tmp_path: Path) -> None:
    config, state = TrainConfig(width=32, seed=7), {"params/a": np.arange(6.0), "m/a": np.ones(3, np.float32)}
    run = RunDir(tmp_path)
    assert run.resume() is None
    for step in range(5):
        if step == 3:
            run.save(state, config, step, 1.5)
        run.log({"step": step, "loss": 5.0 - step})
    found = RunDir(tmp_path).resume()
    assert found is not None
    kept, step, seconds, losses = found
    assert (step, seconds, losses) == (3, 1.5, [5.0, 4.0, 3.0])
    assert kept.keys() == state.keys()
    assert all(np.array_equal(kept[name], array) for name, array in state.items())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_a_run_without_a_checkpoint_starts_its_metrics_anew(tmp_path: Path) -> None:
    RunDir(tmp_path).log({"step": 0, "loss": 1.0})
    run = RunDir(tmp_path)
    assert run.resume() is None
    run.log({"step": 0, "loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "loss": 2.0}\n'


def test_a_checkpoint_names_the_model_alone(tmp_path: Path) -> None:
    config = TrainConfig(width=32, alpha_res=0.5, seed=7)
    RunDir(tmp_path).save({}, config, 0, 0.0)
    _, info = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert ModelConfig(**info["model"]) == ModelConfig(width=32, alpha_res=0.5)
