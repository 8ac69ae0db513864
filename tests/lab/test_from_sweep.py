"""`train --from-sweep`: η from a made-up sweep of the smallest models, and where it comes from in config.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Refused
from test_transfer import record, write

from microumup import train
from microumup.lab.drifts import DRIFTS
from microumup.lab.from_sweep import main
from microumup.lab.search import Record
from microumup.run_dir import load_config

OPTIONS: dict[str, Any] = {"head_dim": 4, "layers": 1, "seq_len": 8, "batch_size": 4, "steps": 128}
WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]


def records(text: Path, centre: float = 0.5) -> list[Record]:
    points = [(x / 2, seed) for x in range(-2, 5) for seed in range(2)]
    config = OPTIONS | {"width": 32, "text": (str(text),)}
    return [record(2 + 0.1 * (x - centre - 0.1 * s) ** 2, config | {"lr": 2.0**x, "seed": s}) for x, s in points]


@pytest.fixture
def argv(tmp_path: Path, text: Path) -> list[str]:
    sweep = write(tmp_path / "sweep", records(text))
    return ["--from-sweep", str(sweep), "--text", str(text), *WORDS, "--out", str(tmp_path / "run"), "--quiet"]


def test_eta_and_its_origin_stand_in_the_config(argv: list[str], tmp_path: Path) -> None:
    assert main([*argv, "--layers=2", "--threads=1"]) == 0
    drift = DRIFTS["umup", "layers"].value
    assert load_config(tmp_path / "run").eta == pytest.approx(2 ** (0.55 + drift))
    origin = json.loads((tmp_path / "run" / "config.json").read_text())["run"]["from_sweep"]
    assert origin["path"] == str(tmp_path / "sweep")
    assert origin["width"] == 32
    assert origin["log2_optimum"] == pytest.approx(0.55)
    assert origin["log2_lr"]["low"] < origin["log2_lr"]["value"] == pytest.approx(0.55 + drift)
    assert origin["moves"]["layers"]["drift"]["value"] == drift


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--lr=1"], "--lr: --from-sweep finds it; leave out the one or the other"),
        (["--width=1024"], "--from-sweep: --width 1024: the drift of umup over --width is measured from 32 to 256"),
        (["--seq-len=16"], "--from-sweep: --seq-len is 16, in the sweep 8; give the sweep's options: microumup train "),
        (["--resume=run"], "--resume: takes its options from the run; leave out"),
    ],
)
def test_what_does_not_fit_the_sweep_is_refused(
    argv: list[str], tmp_path: Path, refused: Refused, more: list[str], reason: str
) -> None:
    (tmp_path / "run").mkdir()
    error = refused(main, [*argv, *more] if "--resume=run" not in more else [*argv[:2], f"--resume={tmp_path / 'run'}"])
    assert reason in error
    assert list((tmp_path / "run").iterdir()) == []


def test_a_text_beyond_a_link_is_not_that_of_the_sweep(argv: list[str], tmp_path: Path, refused: Refused) -> None:
    """By its name `link/..` is the directory with the link in it: another text passed for the sweep's."""
    (tmp_path / "there" / "deeper").mkdir(parents=True)
    (tmp_path / "there" / "text.txt").write_text("another text " * 200)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "deeper")
    at = argv.index("--text") + 1
    assert Path(argv[at]) == tmp_path / "text.txt"
    error = refused(main, [*argv[:at], str(tmp_path / "link" / ".." / "text.txt"), *argv[at + 1 :]])
    assert "--from-sweep: --text is " in error


def test_the_module_alone_says_what_to_run(argv: list[str], refused: Refused) -> None:
    assert "--from-sweep: is read by microumup train" in refused(train.main, argv)
