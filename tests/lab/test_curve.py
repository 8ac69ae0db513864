import json
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused

from microumup.backend import Array
from microumup.config import TrainConfig
from microumup.lab import curve
from microumup.lab.curve import Curve, columns, conditional_entropies, labels, main, smoothed


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    config = asdict(TrainConfig(corpus="other"))
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


ONE = asdict(TrainConfig())


def test_labels_say_what_differs() -> None:
    assert labels([ONE], [Path("a")]) == ["scheme umup, width 64"]
    assert labels([ONE, ONE | {"lr": 2**-7.5}], [Path("a"), Path("b")]) == ["lr 1.5", "lr 0.00552427"]


def test_a_label_has_the_names_of_files_and_no_brackets() -> None:
    texts = [(), ("/far/away/mine.txt",), ("/far/away/mine.txt", "yours.txt")]
    dirs = list(map(Path, "abc"))
    found = labels([ONE | {"text": text} for text in texts], dirs)
    assert found == ["text none", "text mine.txt", "text mine.txt+yours.txt"]


def test_equal_runs_are_told_apart_by_their_directories() -> None:
    equal = "scheme umup, width 64"
    assert labels([ONE, ONE], [Path("runs/a"), Path("runs/b")]) == [f"{equal} (a)", f"{equal} (b)"]
    assert labels([ONE, ONE], [Path("a/run"), Path("b/run")]) == [f"{equal} (a/run)", f"{equal} (b/run)"]
    lr = ONE | {"lr": 2.0}
    assert labels([ONE, lr, lr], [Path("a"), Path("b"), Path("c")]) == ["lr 1.5", "lr 2 (b)", "lr 2 (c)"]
    # options that differ, and look the same
    texts = [ONE | {"text": (path,)} for path in ("one/mine.txt", "two/mine.txt")]
    assert labels(texts, [Path("a"), Path("b")]) == [f"{equal} (a)", f"{equal} (b)"]
    assert labels([ONE, ONE | {"threads": 2}], [Path("a"), Path("b")]) == [f"{equal} (a)", f"{equal} (b)"]


def new_run(path: Path, losses: Array, **options: Any) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(asdict(TrainConfig(**options))))
    lines = (json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses.tolist()))
    (path / "metrics.jsonl").write_text("".join(lines))
    return str(path)


def test_the_command_prints_the_curve_under_the_steps(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--json"]) == 0
    header, text, _, last = capsys.readouterr().out.splitlines()
    steps, losses = header.partition(";  step")[2].split(), text.removeprefix("scheme umup, width 64").split()
    assert (steps[0], steps[-1], len(steps)) == ("2", "100", 9)
    for step, loss in zip(steps, losses, strict=True):
        assert float(loss) == pytest.approx(5 - (int(step) - 1.5) / 50, abs=6e-4)  # the mean of it and the one before
    found = json.loads(last)
    assert found["curves"]["scheme umup, width 64"][0] == pytest.approx(4.99)
    assert found["first_step"] == {"scheme umup, width 64": 2}


def test_equal_runs_have_a_line_each_and_every_loss_stands_under_its_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, short = new_run(tmp_path / "long", np.arange(40.0)), new_run(tmp_path / "short", np.arange(10.0))
    for order in ([long, short], [short, long]):
        assert main(order) == 0
        lines = capsys.readouterr().out.splitlines()[:3]
        steps = lines[0].partition(";  step")[2].split()
        assert steps == ["1", "5", "10", "15", "20", "25", "30", "35", "40"]
        for line in lines[1:]:
            for step, loss in zip(steps, line.split()[-9:], strict=True):
                there = int(step) <= (40 if "(long)" in line else 10)
                assert loss == (f"{int(step) - 1:.3f}" if there else "-")
    assert main([long, long]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6  # the same run twice is one; four entropies


def test_the_last_step_of_a_shorter_run_is_shown() -> None:
    curves = [Curve("a", np.zeros(100), 100), Curve("b", np.zeros(33), 33)]
    assert 33 in columns(curves)
    assert len(columns(curves)) == 10


def test_a_shorter_twin_is_drawn_over_the_longer_ones_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    drawn: list[Any] = []
    monkeypatch.setattr(curve.pic, "save", lambda figure, _: drawn.append(figure))
    runs = [new_run(tmp_path / "short", np.arange(10.0)), new_run(tmp_path / "long", np.arange(40.0))]
    assert main([*runs, "--quiet", "--plot", str(tmp_path / "x.png")]) == 0
    short, long = drawn[0].axes[0].get_lines()[:2]
    assert short.get_xdata().tolist() == list(range(1, 11))
    assert long.get_xdata().tolist() == list(range(1, 41))
    assert short.get_zorder() > long.get_zorder()
    assert short.get_label().endswith("(short)")


@pytest.mark.parametrize("other", [{"text": ("mine.txt",)}, {"vocab_size": 300}, {"corpus": "wikitext-103"}])
def test_entropies_stand_beside_runs_on_one_corpus_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any]
) -> None:
    runs = [new_run(tmp_path / "a", np.arange(9.0)), new_run(tmp_path / "b", np.arange(9.0), **other)]
    for order in (runs, runs[::-1]):
        assert main([*order, "--json"]) == 0
        text, _, last = capsys.readouterr().out[:-1].rpartition("\n")
        assert json.loads(last)["entropies"] == []
        assert "before it" not in text
        assert "no entropies beside them" in text


def test_a_run_of_an_older_version_beside_a_new_one_differs_in_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = new_run(tmp_path / "new", np.arange(9.0)), new_run(tmp_path / "old", np.arange(9.0))
    config = json.loads((tmp_path / "old" / "config.json").read_text()) | {"tied_embeddings": False}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    assert main([new, old]) == 0
    assert "scheme umup, width 64 (old)" in capsys.readouterr().out


def test_the_command_draws_a_png(run_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    assert main([str(run_dir), "--plot", str(tmp_path / "loss.png")]) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_shipped_corpus_has_its_entropies_beside(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run_dir / "config.json").read_text()) | {"corpus": "sotu", "seq_len": 64}
    (run_dir / "config.json").write_text(json.dumps(config))
    assert main([str(run_dir)]) == 0
    text = capsys.readouterr().out
    for words in ("by itself: 3.011", "given the one before it: 2.364", "given the 2 before it: 1.851"):
        assert f"\nentropy of a byte {words}\n" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "there is no config.json"),
        (lambda run: (run / "metrics.jsonl").unlink(), "there is no metrics.jsonl"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "no step is logged yet"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n"), "damaged"),
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


def test_validations_along_a_run_are_printed_and_drawn(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    lines[49] = '{"step": 49, "loss": 4.0, "loss_valid": 4.25}'
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert main([str(run_dir), "--plot", str(tmp_path / "curve.svg"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "scheme umup, width 64, held out: 4.250 at 50\n" in out
    assert json.loads(out.splitlines()[-1])["held_out"] == {"scheme umup, width 64": [[50, 4.25]]}
    assert "held out" in (tmp_path / "curve.svg").read_text()
