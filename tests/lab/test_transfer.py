"""What `transfer` predicts, held against the committed runs; what it refuses, each from a made-up sweep."""

import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from conftest import Refused

from microumup import cli, files
from microumup.config import TrainConfig
from microumup.lab import drifts as module
from microumup.lab.drifts import DRIFTS, SHRINK, Drifts, per_octave
from microumup.lab.figures.rows import Rows, curve, over_seeds, place, values, where
from microumup.lab.figures.settings import LAPTOP, MUP, MUP_SMALL, SP, UMUP
from microumup.lab.search import Record
from microumup.lab.statistics import Estimate, loss_at, optimum
from microumup.lab.sweep import plain
from microumup.lab.tables import read_table
from microumup.lab.transfer import AXES, Transfer, command, draw, main, predict, read_run, read_sweep, report, total

CLONE = Path(__file__).parents[2]
README, DOCS = (CLONE / "README.md").read_text(), CLONE / "docs" / "figures"
OVER_WIDTH, HORIZONS = (  # of the seeds that all widths and sizes have; some have more, for the verdicts on losses
    [row for row in read_table(DOCS / f"{name}.csv") if row["seed"] < LAPTOP.seeds] for name in ("fig1-left", "fig6")
)
LINES = (SP, MUP, MUP_SMALL, UMUP)


def predicted(records: list[Record], target: dict[str, int], **known: Any) -> Transfer:
    return predict([read_run(each) for each in records], target, **known)


# ---- From committed runs ----
def measured_drifts(rows: Rows) -> Drifts:
    """DRIFTS from the tables of fig1-left, of which these are the rows, and fig6."""
    found = {}
    for line in LINES:
        here = where(rows, line=line)
        rates = {width: len(values(where(here, width=width), "lr")) for width in values(here, "width")}
        widths = [width for width, count in rates.items() if count == max(rates.values())]
        ends = (where(here, width=width) for width in (widths[0], widths[-1]))
        found[line, "width"] = per_octave(*ends, "width")._replace(tested=max(rates))
    for axis in ("layers", "steps", "batch_size"):
        for line in (MUP_SMALL, UMUP):
            here = where(HORIZONS, line=line, axis=axis)
            ends = (where(here, **{axis: size}) for size in (min(values(here, axis)), max(values(here, axis))))
            found[line, axis] = per_octave(*ends, axis)
    return found


def lowest(line: str, width: int) -> float:
    """The mean over seeds of the lowest loss."""
    return over_seeds(lambda rows: optimum(curve(rows)).loss, where(OVER_WIDTH, line=line, width=width)).value


def measured_shrink(lines: Iterable[str]) -> float:
    """The mean over lines of the gain from width 64 to 128 over that from 32 to 64."""
    gains = [(lowest(line, 32) - lowest(line, 64), lowest(line, 64) - lowest(line, 128)) for line in lines]
    return sum(later / earlier for earlier, later in gains) / len(gains)


def test_the_drifts_are_those_of_the_committed_runs() -> None:
    found = measured_drifts(OVER_WIDTH)
    lines = "\n".join(f"    ({line!r}, {axis!r}): Drift{tuple(drift)}," for (line, axis), drift in found.items())
    assert found == DRIFTS, f"write into DRIFTS of {module.__file__}:\n{lines}"
    assert round(measured_shrink(LINES), 3) == SHRINK


def committed(line: str, *widths: int) -> list[Record]:
    """The committed runs of a line at some widths, as the records of a sweep."""
    rows = [row for row in where(OVER_WIDTH, line=line) if row["width"] in widths]
    return [record(row["loss"], LAPTOP.options(line) | {k: row[k] for k in ("width", "lr", "seed")}) for row in rows]


def record(loss: float | None, options: dict[str, Any]) -> Record:
    """A result of a sweep; its id is a hash in name only."""
    config = plain(TrainConfig(**options))
    id = f"{crc32(json.dumps(config, sort_keys=True).encode()):012x}"
    measured = {"loss": loss, "loss_valid": loss, "diverged": loss is None, "seconds": 1.0, "version": "0"}
    return {"id": id, "config": config, "ranges_every": 0, **measured}


@pytest.mark.parametrize("line", LINES)
def test_widths_32_and_64_predict_width_128(line: str) -> None:
    """Nothing of width 128 is used of the scheme itself: its drift is that from 32 to 64, and how the gain in loss
    shrinks is taken from the other schemes."""
    narrow = [row for row in OVER_WIDTH if row["width"] <= 64]
    others = [other for other in LINES if other.partition("-")[0] != line.partition("-")[0]]
    known = {key: drift._replace(tested=128) for key, drift in measured_drifts(narrow).items()}
    found = predicted(committed(line, 32, 64), {"width": 128}, drifts=known, shrink=measured_shrink(others))
    best = over_seeds(place, where(OVER_WIDTH, line=line, width=128)).value
    assert within(found.eta, best)
    assert abs(found.eta.value - best) < 0.2  # octaves; a basin is 1 to 1.25 wide, and the intervals of 3 seeds may be
    assert found.loss
    assert abs(found.loss.value - lowest(line, 128)) < 0.03
    assert found.loss.low is None


@pytest.mark.parametrize("line", LINES)
def test_with_the_drifts_that_are_shipped_too(line: str) -> None:
    found = predicted(committed(line, 32, 64), {"width": 128})
    best = over_seeds(place, where(OVER_WIDTH, line=line, width=128)).value
    assert within(found.eta, best)
    assert abs(found.eta.value - best) < 0.2
    assert found.loss
    assert abs(found.loss.value - lowest(line, 128)) < 0.03
    assert any("sp does not transfer" in note for note in found.notes) == (line == SP)


@pytest.mark.parametrize("line", [SP, MUP, UMUP])
def test_three_widths_predict_the_loss_at_256_within_their_interval(line: str) -> None:
    found = predicted(committed(line, 32, 64, 128), {"width": 256})
    assert found.loss
    assert within(found.loss, lowest(line, 256))


def test_without_its_drift_sp_would_be_predicted_wrongly() -> None:
    stays = {key: drift._replace(value=0.0) for key, drift in DRIFTS.items()}
    best = over_seeds(place, where(OVER_WIDTH, line=SP, width=128)).value
    moved = predicted(committed(SP, 32, 64), {"width": 128}).eta
    still = predicted(committed(SP, 32, 64), {"width": 128}, drifts=stays).eta
    assert abs(moved.value - best) < 0.1 < 0.8 < abs(still.value - best)


def within(estimate: Estimate, value: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= value <= estimate.high


# ---- From made-up ones ----
def made(
    widths: Iterable[int] = (32, 64), seeds: int = 3, low: float = -1.0, high: float = 2.0,
    loss: Callable[[int, float, int], float | None] | None = None, **options: Any,
) -> list[Record]:  # fmt: skip
    """A sweep of learning rates by half octaves, with the best near 2^0.5 at every width."""

    def usual(width: int, x: float, seed: int) -> float:
        return 1.5 + 2 / width**0.5 + 0.03 * (x - 0.5 - 0.05 * seed) ** 2 + 0.01 * seed

    points = [(w, low + i / 2, s) for w in widths for i in range(round(2 * (high - low)) + 1) for s in range(seeds)]
    given = LAPTOP.usual | {"scheme": "umup"} | options
    return [record((loss or usual)(w, x, s), given | {"width": w, "lr": 2.0**x, "seed": s}) for w, x, s in points]


def write(out: Path, records: Iterable[Record]) -> Path:
    (out / "results").mkdir(parents=True)
    for each in records:
        files.write_json(out / "results" / f"{each['id']}.json", files.sealed(each))
    return out


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write(tmp_path / "sweep", made())


def test_the_parabola_is_found_and_carried(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep), "--width", "128", "--batch-size", "64", "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    drift = DRIFTS[UMUP, "batch_size"]
    assert found["optimum"]["eta"]["value"] == pytest.approx(0.55)
    assert found["log2_lr"]["value"] == pytest.approx(0.55 + 2 * drift.value)
    assert found["lr"] == pytest.approx(2 ** found["log2_lr"]["value"])
    assert [move["axis"] for move in found["moves"]] == ["width", "batch_size"]
    assert found["loss"] is None
    assert text[0].startswith("umup, width 64: best η 2^0.55 [")
    assert text[1].startswith("width 64 -> 128: η stays, for its drift may be 0: +0.04 [")
    assert text[2].startswith(f"batch_size 16 -> 64: η moves by {2 * drift.value:+.2f} octaves")
    assert text[-1] == found["command"]


def test_the_command_makes_the_run(tmp_path: Path) -> None:
    """With every option of the sweep that is no default, in a form that train reads back."""
    options = {"alpha_res": 2.0, "fp8": "fp8", "text": ("/a novel.txt", "/b"), "warmup": 0.25, "decay": "independent"}
    found = predicted(made(**options, seed=5), {"width": 128})
    words = shlex.split(command(found.target))
    assert words[:6] == ["microumup", "train", "--width", "128", "--lr", f"{found.target.eta:.3g}"]
    parser = cli.Parser("train", "")
    cli.add_options(parser, TrainConfig)
    read = TrainConfig(**cli.given(parser.parse_args(words[2:]), TrainConfig))
    assert replace(read, lr=found.target.lr) == replace(found.target, seed=0)


def test_a_switch_that_is_off_stays_off() -> None:
    assert "--no-embedding-lr-rule" in command(TrainConfig(embedding_lr_rule=False))


def test_eta_comes_from_the_width_next_to_the_targets() -> None:
    records = made((32, 64, 128))
    nearest = {target: predicted(records, {"width": target}).source.width for target in (32, 48, 64, 96, 128, 256)}
    assert nearest == {32: 32, 48: 64, 64: 64, 96: 128, 128: 128, 256: 128}


def test_an_interval_of_the_loss_needs_three_widths(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three = (predicted(made(w), {"width": 128}) for w in ((64,), (32, 64), (32, 48, 64)))
    assert one.loss is None
    assert "sweep three" in one.how
    assert two.loss
    assert two.loss.low is None
    assert three.loss
    assert three.loss.low is not None
    assert three.loss.value == pytest.approx(1.5 + 2 / 128**0.5 + 0.01, abs=1e-3)
    assert main([str(sweep), "--width", "128"]) == 0
    assert "an interval needs three widths" in capsys.readouterr().out


def test_a_loss_that_does_not_fall_with_the_width_is_not_carried_on() -> None:
    found = predicted(made(loss=lambda w, x, s: 2 + w / 1000 + 0.03 * (x - 0.5 - 0.1 * s) ** 2), {"width": 128})
    assert (found.loss, found.how) == (None, "the lowest loss does not fall with the width")


def test_a_loss_needs_seeds_that_all_widths_have() -> None:
    other = [each for each in made((32,), seeds=5) if each["config"]["seed"] > 1]
    found = predicted([*made((64,), seeds=3), *other], {"width": 128})
    assert (found.loss, found.how) == (None, "its widths have not two seeds in common")


@pytest.mark.parametrize(("base", "line"), [(16, MUP_SMALL), (64, MUP_SMALL), (128, MUP), (512, MUP)])
def test_mup_drifts_like_the_measured_line_of_the_nearer_base_width(base: int, line: str) -> None:
    found = predicted(made(scheme="mup", base_width=base), {"width": 128, "steps": 1024})
    assert [move.drift for move in found.moves] == [DRIFTS[line, "width"], DRIFTS[MUP_SMALL, "steps"]]


def test_downwards_a_drift_turns_round() -> None:
    [move] = predicted(made((64,), scheme="sp"), {"width": 32}).moves
    drift = DRIFTS[SP, "width"]
    assert move.moved == (-drift.value, -drift.high, -drift.low)


def test_a_run_that_was_made_twice_counts_once() -> None:
    again = [each | {"id": f"{each['id'][:-1]}x", "ranges_every": 5} for each in made()]
    assert predicted([*made(), *again], {"width": 128}).eta == predicted(made(), {"width": 128}).eta


def test_at_a_width_that_was_swept_all_is_as_measured() -> None:
    found = predicted(made(), {})
    assert found.moves == []
    assert found.eta.value == pytest.approx(0.55)
    assert found.loss
    assert found.loss.value == pytest.approx(1.5 + 2 / 8 + 0.01)


def test_intervals_of_independent_parts_add_up_by_squares() -> None:
    assert total([Estimate(1.0, -2.0, 4.0), Estimate(0.0, -4.0, 4.0)]) == (1.0, -4.0, 6.0)


def test_beyond_what_was_measured_by_an_octave_of_width_there_is_a_warning() -> None:
    assert predicted(made(), {"width": 256}).notes == []
    [note] = predicted(made(), {"width": 512}).notes
    assert note == "width 512 is beyond 256, the largest at which an optimum was measured"


def test_a_sweep_unlike_the_measured_ones_is_told_so() -> None:
    [note] = predicted(made(seq_len=64, fp8="fp8"), {"width": 128}).notes
    assert "measured with seq_len 32, fp8 none; this sweep has seq_len 64, fp8 fp8" in note


def test_a_sweep_whose_own_drift_contradicts_is_told_so() -> None:
    records = made(loss=lambda w, x, s: 2 + 0.03 * (x - 1.1 + 0.9 * (w == 64) + 0.01 * s) ** 2 - w / 1000)
    [note] = predicted(records, {"width": 128}).notes
    assert note.startswith("the sweep's own drift over width, -0.90 [-0.90, -0.90] octaves a doubling, contradicts")


def test_a_width_that_says_nothing_is_left_out() -> None:
    found = predicted([*made((64,)), *made((32,), seeds=1)], {"width": 128})
    assert found.notes == ["width 32 is left out: it has one seed"]
    assert found.loss is None


@pytest.mark.parametrize("options", ["--width=128", "--width=128 --steps=1024", ""])
def test_the_picture_shows_eta_and_the_loss_where_it_is_known(sweep: Path, tmp_path: Path, options: str) -> None:
    picture = tmp_path / "transfer.svg"
    assert main([str(sweep), *options.split(), "--plot", str(picture), "--quiet"]) == 0
    assert picture.stat().st_size > 10_000
    runs = read_sweep(sweep)
    found = predict(runs, {"width": 128} | ({"steps": 1024} if "steps" in options else {}))
    [ax] = draw(found, [row for _, row in runs]).axes
    stars = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines if line.get_marker() == "*"]
    assert stars == ([pytest.approx((found.target.eta, found.loss.value))] if found.loss else [])


# ---- Refusals ----
def missing(records: list[Record]) -> list[Record]:
    return [r for r in records if (r["config"]["width"], r["config"]["lr"], r["config"]["seed"]) != (64, 1.0, 2)]


def parabola(centre: float, diverged: Callable[[float, int], bool]) -> Callable[[int, float, int], float | None]:
    return lambda width, x, seed: None if diverged(x, seed) else 2 + 0.03 * (x - centre) ** 2


NO_EVIDENCE: list[tuple[list[Record], str, str]] = [
    ([], "--width 128", "no run is done yet"),
    (made(), "--width 1024",
     "--width 1024: the drift of umup over --width is measured from 32 to 256, and carried to 512; stay there"),
    (made(scheme="sp", low=-9, high=-5, loss=parabola(-7, lambda x, s: False)), "--width 512",
     "--width 512: the drift of sp over --width is measured from 32 to 256; stay there, or sweep --width 512"),
    (made((16,)), "--width 64", "the sweep's width 16: the drift of umup over --width is measured from 32"),
    (made(), "--steps 4096",
     "--steps 4096: the drift of umup over --steps is measured from 128 to 2048; stay there, or sweep --steps 4096"),
    (made(), "--batch-size 2", "--batch-size 2: the drift of umup over --batch-size is measured from 4 to 64"),
    (made(), "--layers 12", "--layers 12: the drift of umup over --layers is measured from 1 to 8"),
    (made(scheme="sp"), "--layers 4", "--layers: no drift of --scheme sp over layers is measured"),
    (made(scheme="umup-iclr"), "--width 128", "--scheme umup-iclr: its drift is not measured"),
    (made(decay="coupled"), "--width 128", "--decay coupled: drifts are measured with independent"),
    (made(optimizer="sgd"), "--width 128", "--optimizer sgd: drifts are measured with adamw"),
    (made(embedding_lr_rule=False), "--width 128", "--embedding-lr-rule off: drifts are measured with on"),
    (made(seeds=1), "--width 128", "width 64: one seed gives no interval; sweep again with --seeds 3"),
    (made(high=0.5), "--width 128", "the best of seed 0, 2^0.5, is the largest swept: add --grid lr=2^1,2^1.5"),
    (made(low=1), "--width 128", "the best of seed 0, 2^1, is the smallest swept: add --grid lr=2^0,2^0.5"),
    (missing(made()), "--width 128", "unfinished (lr 2^0, seed 2, is the first of 1 missing among 21)"),
    (made(loss=parabola(0.5, lambda x, s: True)), "--width 128", "no run trained; add lower learning rates"),
    (made(loss=parabola(0.5, lambda x, s: x > 0.5)), "--width 128",
     "the best of seed 0, 2^0.5, lies beside a run that diverged: add --grid lr=2^0.25,2^0.75"),
    (made(seeds=2, loss=parabola(0.5, lambda x, s: (x, s) == (1.0, 1))), "--width 128",
     "the best of seed 1, 2^0.5, lies beside a run that diverged"),
    (made(seeds=2, loss=lambda w, x, s: None if (x, s) == (1.5, 1) else 2 + 0.001 * (x - 0.5) ** 2), "--width 128",
     "a run within the basin diverged (lr 2^1.5, seed 1)"),
]  # fmt: skip


@pytest.mark.parametrize(("records", "options", "reason"), NO_EVIDENCE, ids=[case[2][:40] for case in NO_EVIDENCE])
def test_it_refuses_what_has_no_evidence(
    records: list[Record], options: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write(tmp_path / "sweep", records)
    picture = tmp_path / "transfer.png"
    assert main([str(sweep), *options.split(), "--json", "--plot", str(picture)]) == 1
    out, error = capsys.readouterr()
    assert reason in error
    assert error.startswith("microumup transfer: ")
    assert (out, error.count("\n"), picture.exists()) == ("", 1, False)


def test_what_is_no_sweep_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "holds no sweep" in refused(main, [str(tmp_path), "--width", "128"])


def test_a_sweep_over_more_is_refused(tmp_path: Path, refused: Refused) -> None:
    out = write(tmp_path / "sweep", [*made(), *made(alpha_res=2.0)])
    assert "its runs differ in --alpha-res too (1, 2); sweep lr and width alone" in refused(main, [str(out)])


def test_a_damaged_sweep_is_refused(sweep: Path, refused: Refused) -> None:
    path = max((sweep / "results").iterdir())
    path.write_text(path.read_text().replace('"steps": 512', '"steps": 513'))
    assert "is no result of a sweep" in refused(main, [str(sweep)])


@pytest.mark.parametrize("change", [{"loss": "low"}, {"config": plain(TrainConfig()) | {"foo": 1}}, {"config": {}}])
def test_a_sweep_of_another_version_is_refused(tmp_path: Path, refused: Refused, change: dict[str, Any]) -> None:
    first, *rest = made((64,))
    assert "is of another version" in refused(main, [str(write(tmp_path / "sweep", [first | change, *rest]))])


def test_a_sweep_that_lacks_newer_options_is_taken_for_what_it_was() -> None:
    records = made()
    for each in records[:5]:
        del each["config"]["clip"]
    assert predicted(records, {"width": 128}).eta == predicted(made(), {"width": 128}).eta


@pytest.mark.parametrize(("option", "word"), [("--width=100", "--width: 100"), ("--steps=0", "--steps: 0")])
def test_a_run_that_cannot_be_is_refused(sweep: Path, refused: Refused, option: str, word: str) -> None:
    assert word in refused(main, [str(sweep), option])


# ---- The README ----
def cell(line: str, axis: str) -> str:
    if not (found := DRIFTS.get((line, axis))):
        return "–"
    text = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"**{text}**" if found.low * found.high > 0 else text


def test_the_readme_says_when_eta_moves() -> None:
    rows = [[axis.replace("_", " "), *(cell(line, axis) for line in (UMUP, MUP_SMALL, MUP, SP))] for axis in AXES]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    assert table in README, f"write into README.md:\n{table}"


def test_the_readme_shows_what_transfer_says() -> None:
    three = [each for each in committed(UMUP, 32, 64) if each["config"]["seed"] < 3]  # as its sweep
    text = report(predicted(three, {"width": 512}))
    assert f"```\n{text}\n```" in README, f"write into README.md:\n{text}"


def test_the_readme_says_how_the_large_run_went() -> None:
    """At the η to use, between two that were tried, it ends as it was expected to, to 0.03 nats."""
    large = curve(read_table(CLONE / "docs" / "transfer-512.csv"))
    losses = [f"{loss:.3f}" for _, loss in large]
    assert f"an η of 2^0, 2^0.5 and 2^1 ends at {losses[0]}, {losses[1]} and {losses[2]} nats" in README
    found = predicted(committed(UMUP, 32, 64), {"width": 512})
    assert found.loss
    assert abs(found.loss.value - loss_at(large, found.eta.value)) < 0.03
