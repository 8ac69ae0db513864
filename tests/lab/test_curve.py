import json
from math import log
from pathlib import Path

import numpy as np
import pytest
from conftest import Refused

from microumup.lab.curve import conditional_entropies, labels, main, smoothed


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    config = {"scheme": "umup", "width": 64, "lr": 1.5, "corpus": "other", "text": [], "vocab_size": 256}
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "loss": {5 - i / 50}}}\n' for i in range(100)))
    return run


def test_entropies_of_a_known_source() -> None:
    cycle = np.tile(np.array([1, 2, 3, 4], np.uint8), 1000)
    assert conditional_entropies(cycle, 2) == pytest.approx([log(4), 0], abs=1e-3)
    random = np.random.default_rng(0).integers(0, 2, 100_000, dtype=np.uint8)
    assert conditional_entropies(random, 3) == pytest.approx([log(2)] * 3, abs=1e-3)


def test_smoothing_takes_means_over_2_percent() -> None:
    assert np.array_equal(smoothed(np.arange(100.0)), np.arange(99) + 0.5)
    assert np.array_equal(smoothed(np.arange(5.0)), np.arange(5.0))


def test_labels_say_what_differs() -> None:
    one = {"scheme": "umup", "width": 64, "lr": 1.5}
    assert labels([one]) == ["scheme umup, width 64"]
    assert labels([one, one | {"lr": 2.0}]) == ["lr 1.5", "lr 2.0"]


def test_the_command_prints_the_curve(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--json"]) == 0
    text, last = capsys.readouterr().out.splitlines()
    assert text.startswith("scheme umup, width 64: 4.990 ")
    assert text.endswith(" 3.030")
    assert json.loads(last)["curves"]["scheme umup, width 64"][0] == pytest.approx(4.99)


def test_the_command_draws_a_png(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    assert main([str(run_dir), "--plot", str(tmp_path / "loss.png")]) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_shipped_corpus_has_its_entropies_beside(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run_dir / "config.json").read_text()) | {"corpus": "sotu", "seq_len": 64}
    (run_dir / "config.json").write_text(json.dumps(config))
    assert main([str(run_dir)]) == 0
    assert "given the 2 before it: 1.851" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "there is no config.json"),
        (lambda run: (run / "metrics.jsonl").unlink(), "there is no metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "no step is logged yet"),
        (lambda run: (run / "metrics.jsonl").write_text("{"), "damaged"),
    ],
)
def test_what_is_no_run_is_named(run_dir: Path, damage, message: str, refused: Refused) -> None:
    damage(run_dir)
    error = refused(main, [str(run_dir)])
    assert str(run_dir) in error
    assert message in error


def test_a_picture_of_no_known_kind_is_refused(run_dir: Path, refused: Refused) -> None:
    error = refused(main, [str(run_dir), "--plot", "loss.txt"])
    assert "--plot: loss.txt does not end with .png, .svg or .pdf" in error
