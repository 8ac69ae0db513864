"""What a run that goes on asks: the same text, options and files that fit, or one line that says what does not."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused
from small_runs import edit, killed, options, refuses

from microumup import checkpoint, files
from microumup.generate import main as generate
from microumup.lab.curve import main as curve
from microumup.run_dir import read_metrics
from microumup.train import main

# ---- It knows what it is ----


def test_it_records_the_texts_the_options_and_the_version(half: Path, text: Path) -> None:
    record = json.loads((half / "config.json").read_text())["run"]
    assert record["texts"][0]["name"] == str(text)
    assert record["texts"][0]["size"] == text.stat().st_size
    assert len(record["texts"][0]["sha256"]) == 64
    assert (record["save_every"], record["save_minutes"], record["log_scales"]) == (4, 5.0, 3)
    assert record["version"]
    assert checkpoint.load(half / "checkpoint.safetensors")[1]["step"] == 8


def test_a_changed_text_is_refused(half: Path, text: Path, refused: Refused) -> None:
    was = text.read_text()
    text.write_text(was.replace("people", "peoplf"))  # of the same length
    refuses(refused, half, str(text), "has changed since")
    text.write_text(was)
    assert main(["--resume", str(half), "--quiet"]) == 0


def test_a_changed_held_out_text_is_refused(tmp_path: Path, text: Path, refused: Refused) -> None:
    held_out = tmp_path / "held out.txt"
    held_out.write_text("the states of the people. " * 20)
    killed(options(tmp_path / "run", text, "--valid", str(held_out)))
    held_out.write_text("the states of the peoples." * 20)
    refuses(refused, tmp_path / "run", str(held_out), "has changed since")


def test_it_says_where_it_goes_on(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (half / "checkpoint.safetensors").rename(half / "away")
    with pytest.raises(SystemExit):
        main(["--resume", str(half), "--lr", "1"])
    shutil.copytree(half, half.with_name("other"))
    (half / "away").rename(half / "checkpoint.safetensors")
    capsys.readouterr()
    assert main(["--resume", str(half)]) == 0
    assert "continuing at step 8 of 12\n" in capsys.readouterr().out
    assert main(["--resume", str(half.with_name("other"))]) == 0
    assert "continuing at step 0 of 12\n" in capsys.readouterr().out


def test_texts_mean_the_same_from_another_directory(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    killed(options(Path("run"), Path("text.txt")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--resume", "../run", "--quiet"]) == 0


@pytest.mark.parametrize(
    "more",
    [["--preset", "tiny"], ["--save-every", "3"], ["--save-minutes", "1"], ["--log-scales", "1"], ["--out", "x"],
     ["--text", "x"], ["--seed", "0"], ["--no-embedding-lr-rule"]],
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(more: list[str], half: Path, refused: Refused) -> None:
    refuses(
        refused, half, "--resume", f"leave out {more[0].replace('--no-', '--')}", argv=["--resume", str(half), *more]
    )


def test_intervals_are_kept_when_resumed(half: Path) -> None:
    assert main(["--resume", str(half), "--quiet"]) == 0
    lines = [json.loads(line)["step"] for line in (half / "scales.jsonl").read_text().splitlines()]
    assert lines == [0, 3, 6, 9, 11]


# ---- What does not fit ----


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    arrays, info = checkpoint.load(path)
    change(arrays, info)
    checkpoint.save(path, arrays, info)


MISFITS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "has 99 updates of 12": lambda arrays, info: info.update(step=99),
    "has 8.0 updates": lambda arrays, info: info.update(step=8.0),
    "has None updates": lambda arrays, info: info.__delitem__("step"),
    "has 8 updates": lambda arrays, info: info.update(seconds=-1.0),
    "is of another run than": lambda arrays, info: info.update(model={"width": 9}),
    "is of another run than config": lambda arrays, info: info.update(model=[8]),
    "is of another run": lambda arrays, info: info.update(config="12345678"),
    "params/head is nothing": lambda arrays, info: arrays.__delitem__("params/head"),
    "extra is (3,)": lambda arrays, info: arrays.update(extra=np.zeros(3, np.float32)),
    "params/head is (8, 256)": lambda arrays, info: arrays.update({"params/head": arrays["params/head"].T}),
    "of F64": lambda arrays, info: arrays.update({"params/head": arrays["params/head"].astype(np.float64)}),
}


@pytest.mark.parametrize(("message", "change"), list(MISFITS.items()))
def test_a_checkpoint_that_does_not_fit_is_refused(
    message: str, change: Callable[..., None], half: Path, refused: Refused
) -> None:
    rewrite(half / "checkpoint.safetensors", change)
    refuses(refused, half, "checkpoint.safetensors", message)
    assert message in refused(generate, [str(half)])


def test_a_flipped_bit_in_a_weight_is_found(half: Path, refused: Refused) -> None:
    path = half / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    refuses(refused, half, str(path), "checksum", "delete it to begin at step 0")
    assert "checksum" in refused(generate, [str(half)])


@pytest.mark.parametrize("change", [{"lr": 2.0}, {"seed": 1}, {"steps": 13}, {"batch_size": 4}, {"text": []}])
def test_a_config_that_was_edited_is_refused(change: dict[str, Any], half: Path, refused: Refused) -> None:
    edit(half / "config.json", **change)
    refuses(refused, half, "config.json", "checksum")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": "8"}, "--width: '8' is not a whole number"), ({"width": 8.0}, "--width: '8.0' is not a whole number"),
     ({"layers": True}, "--layers: 'True' is not a whole number"), ({"lr": "1"}, "--lr: '1' is not a number"),
     ({"embedding_lr_rule": 1}, "--embedding-lr-rule: '1' is not a switch"),
     ({"scheme": 3}, "--scheme: '3' is not a text"),
     ({"text": [1]}, "--text"), ({"colour": "red"}, "unknown: colour"), ({"lr": None, "optimizer": "sgd"}, "--lr")],
)  # fmt: skip
def test_a_mistyped_or_unknown_key_is_named(change: dict[str, Any], message: str, half: Path, refused: Refused) -> None:
    record = json.loads((half / "config.json").read_text())
    del record["crc32"]
    files.write_json(half / "config.json", files.sealed(record | change))
    refuses(refused, half, "config.json", message)


@pytest.mark.parametrize("run", [[1], "x", {"texts": 1}, {"texts": [1]}, {"texts": [{}]}, {"save_every": "4"}])
def test_a_record_that_is_none_is_named(run: Any, half: Path, refused: Refused) -> None:
    """It ended in a traceback."""
    record = json.loads((half / "config.json").read_text())
    del record["crc32"]
    (half / "config.json").write_text(json.dumps(record | {"run": run}))
    refuses(refused, half, "config.json is not a config of microumup")
    assert "config.json is not a config of microumup" in refused(generate, [str(half)])


def older(half: Path, *missing: str, **changes: Any) -> None:
    """Make it a run of the first version: a config and a checkpoint without checksums, or record."""
    record = json.loads((half / "config.json").read_text()) | changes
    (half / "config.json").write_text(
        json.dumps({key: value for key, value in record.items() if key not in ("run", "crc32", *missing)})
    )
    (half / "scales.jsonl").unlink(missing_ok=True)
    lines = [json.loads(line) for line in (half / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["crc32"]
    (half / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = half / "checkpoint.safetensors"
    arrays, info = checkpoint.load(path)
    del info["config"]
    checkpoint.save_file(arrays, path, metadata={"info": json.dumps(info)})


def test_a_run_of_an_older_version_goes_on_and_what_is_assumed_is_said(
    half: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older(half, "decay", "loss_scale", "threads", tied_embeddings=False)
    assert main(["--resume", str(half), "--quiet"]) == 0
    error = capsys.readouterr().err
    assert "is of an older version; assumed: decay independent, loss_scale 1.0, threads 1, texts as they were" in error
    assert error.count("\n") == 1
    assert main(options(tmp_path / "whole", text)) == 0
    results = [json.loads((path / "result.json").read_text()) for path in (half, tmp_path / "whole")]
    assert results[0]["loss_valid"] == results[1]["loss_valid"]


@pytest.mark.parametrize("missing", ["lr", "seed", "weight_decay", "steps"])
def test_a_missing_option_is_never_its_default(missing: str, half: Path, refused: Refused) -> None:
    older(half, missing)
    refuses(refused, half, f"missing: {missing}")


def test_a_new_config_lacks_nothing(half: Path, refused: Refused) -> None:
    """What the first version lacked is not missing from a config of today."""
    record = json.loads((half / "config.json").read_text())
    del record["crc32"], record["threads"]
    files.write_json(half / "config.json", files.sealed(record))
    refuses(refused, half, "missing: threads")


# ---- Metrics ----


def test_fewer_metrics_than_updates_are_refused(half: Path, refused: Refused) -> None:
    lines = (half / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (half / "metrics.jsonl").write_bytes(b"".join(lines[:7]))
    refuses(refused, half, "has 7 lines and the checkpoint 8 updates")


@pytest.mark.parametrize(
    "damage",
    [lambda lines: lines.pop(3), lambda lines: lines.insert(3, lines[3]), lambda lines: lines.insert(0, lines.pop(5)),
     lambda lines: lines.insert(3, b"\n"), lambda lines: lines.insert(3, b"{}\n"),
     lambda lines: lines.insert(3, b"[1]\n"),
     lambda lines: lines.__setitem__(4, re.sub(rb'"loss": (\d)', lambda m: b'"loss": 1' + m[1], lines[4])),
     lambda lines: lines.__setitem__(4, b"\xff" + lines[4])],
)  # fmt: skip
def test_a_damaged_line_of_metrics_is_named(damage: Callable[..., Any], half: Path, refused: Refused) -> None:
    lines = (half / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    damage(lines)
    (half / "metrics.jsonl").write_bytes(b"".join(lines))
    refuses(refused, half, "metrics.jsonl", "line ", "restore it")
    assert "metrics.jsonl" in refused(curve, [str(half)])


@pytest.mark.parametrize("change", [{"loss": 1.5}, {"clipped": None}])
def test_a_line_without_its_checksum_is_damaged(change: dict[str, Any], half: Path, refused: Refused) -> None:
    """One that was edited, or whose checksum's name was hit, was taken as it is."""
    lines = (half / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[3]) | change
    del record["crc32"]
    (half / "metrics.jsonl").write_text("\n".join([*lines[:3], json.dumps(record), *lines[4:]]) + "\n")
    refuses(refused, half, "metrics.jsonl: line 4 is damaged (it has no checksum)")


@pytest.mark.parametrize("change", [{"loss": float("nan")}, {"loss": "1"}, {"loss_valid": "1"}, {"grad_norm": [1]}])
def test_what_is_no_number_in_an_older_version_s_metrics_is_named(
    change: dict[str, Any], half: Path, refused: Refused
) -> None:
    older(half)
    lines = (half / "metrics.jsonl").read_text().splitlines()
    lines[7] = json.dumps(json.loads(lines[7]) | change)
    (half / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "metrics.jsonl: line 8 is not of step 7" in refused(curve, [str(half)])


def test_half_a_line_is_left_out_and_said(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = half / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert curve([str(half), "--quiet"]) == 0
    assert f"{path} ends in half a line" in capsys.readouterr().err
    assert main(["--resume", str(half), "--quiet"]) == 0
    assert f"{path} ends in half a line" in capsys.readouterr().err
    assert [record["step"] for record in read_metrics(half)] == list(range(12))


def test_metrics_of_another_run_are_refused(half: Path, text: Path, tmp_path: Path, refused: Refused) -> None:
    assert main(options(tmp_path / "other", text, "--seed", "1")) == 0
    shutil.copy(tmp_path / "other" / "metrics.jsonl", half)
    refuses(refused, half, "metrics.jsonl", "checksum")


def test_metrics_are_cut_by_a_rename(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were truncated in place: a kill in between cost the whole history."""
    before = (half / "metrics.jsonl").read_bytes()

    def killed(self: Path, target: Path) -> Path:
        if target.name == "metrics.jsonl":
            assert target.read_bytes() == before
            raise KeyboardInterrupt
        return rename(self, target)

    rename = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        assert main(["--resume", str(half), "--quiet"]) == 130
    assert (half / "metrics.jsonl").read_bytes() == before
    assert main(["--resume", str(half), "--quiet"]) == 0


def test_a_bpe_run_killed_between_config_and_tokenizer_gets_its_tokenizer(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("MICROUMUP_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    bpe = ["--vocab-size", "262"]
    assert main(options(run, text, *bpe)) == 0
    tokenizer = (run / "tokenizer.json").read_bytes()
    for name in ("tokenizer.json", "result.json", "checkpoint.safetensors", "metrics.jsonl"):
        (run / name).unlink()
    assert main(["--resume", str(run), "--quiet"]) == 0
    assert (run / "tokenizer.json").read_bytes() == tokenizer
    (run / "tokenizer.json").write_bytes(tokenizer.replace(b'"', b"'", 1))
    assert "tokenizer.json" in refused(generate, [str(run)])
    (run / "tokenizer.json").unlink()  # it went on as if it were bytes
    assert "tokenizer.json" in refused(generate, [str(run)])
