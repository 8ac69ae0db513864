"""The published account, and that the README says the same."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fabricated import World, data

from microumup.lab import fp8_gap
from microumup.lab.figures import page
from microumup.lab.figures.command import FIGURES
from microumup.lab.figures.figure import finish, write_data
from microumup.lab.figures.judging import FAILS, HOLDS, PARTLY, REPORTED, UNDECIDED, measured
from microumup.lab.figures.rows import curve, where
from microumup.lab.statistics import flat_minimum, optimum
from microumup.lab.tables import read_table

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def write(out: Path, name: str, world: World | None = None) -> None:
    """The files of a figure, made up."""
    write_data(FIGURES[name], data(FIGURES[name], world or World()), out)
    finish(FIGURES[name], out)


def page_of(out: Path, path: Path) -> str:
    page.write(path, out, list(FIGURES.values()))
    return path.read_text()


def test_the_page_has_words_for_every_figure() -> None:
    assert all(len(figure.prose.split()) > 20 for figure in FIGURES.values())


def test_the_page_shows_each_figure_with_its_claims(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "figures"
    out.mkdir(parents=True)
    for name in ("fig2-left", "eq22"):
        write(out, name)
    content = page_of(out, tmp_path / "docs" / "results.md")
    assert "![µP's embedding learning rate over width](figures/fig2-left.png)" in content
    assert "| µP: the best η̂_emb moves from width 32 to 128 by | -1.60 octaves | exact |" in content
    assert "| 0 | exact |" in content
    assert "Of 3 claims 3 hold, 0 hold partly, 0 are undecided and 0 do not hold" in content
    assert "Everything that is claimed above holds." in content
    assert "fig1-left.png" not in content  # it was not made


def test_the_page_says_what_does_not_hold(tmp_path: Path) -> None:
    write(tmp_path, "fig2-left", World(emb_drift=dict.fromkeys(World().emb_drift, 0.0)))
    content = page_of(tmp_path, tmp_path / "results.md")
    assert "* fig2-left, does not hold at this scale: µP: the best η̂_emb moves from width 32 to 128 by" in content


# ---------------------------------------------------------------------------------------------------------------------
# What is published

CLAIMS = {name: json.loads((ROOT / "docs" / "figures" / f"{name}.json").read_text())["claims"] for name in FIGURES}


def test_the_readme_s_table_of_claims_is_the_committed_results() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \| `microumup figures ([a-z0-9-]+)` \|$", README, re.MULTILINE)
    assert len(rows) >= 8
    for text, value, verdict, name in rows:
        [claim] = [claim for claim in CLAIMS[name] if claim["claim"] == text]
        assert value == measured(claim)
        assert verdict == claim["verdict"]


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_all_verdicts_are_counted(document: str) -> None:
    count = Counter(claim["verdict"] for claims in CLAIMS.values() for claim in claims)
    judged = sum(count[verdict] for verdict in (HOLDS, PARTLY, UNDECIDED, FAILS))
    assert judged + count[REPORTED] == sum(count.values())
    sentence = (
        f"Of {judged} claims {count[HOLDS]} hold, {count[PARTLY]} hold partly, {count[UNDECIDED]} are undecided and "
        f"{count[FAILS]} do not hold at this scale; {count[REPORTED]} more numbers are reported without a criterion."
    )
    assert sentence in " ".join((ROOT / document).read_text().split())


def test_nine_of_ten_claims_are_decided_and_none_is_gone() -> None:
    verdicts = [claim["verdict"] for claims in CLAIMS.values() for claim in claims if claim["criterion"]]
    assert len(verdicts) >= 91
    assert sum(verdict in (HOLDS, FAILS) for verdict in verdicts) >= 9 / 10 * len(verdicts)


def test_five_points_find_optima_with_half_the_spread() -> None:
    """On the three seeds that every sweep has; as the page says of its change of estimate."""
    width = ("width", 32, 128)
    sweeps = [("fig1-left", line, "lr", *width) for line in ("sp", "mup", "mup-small", "umup")]
    sweeps += [("fig5", "umup-fixed-emb", "lr", *width), ("fig2-left", "mup-small", "eta_emb", *width)]
    sweeps += [("fig4", line, "eta_emb", *width) for line in ("umup", "umup-fixed-emb")]
    for axis, *ends in (("steps", 128, 2048), ("batch_size", 4, 64), ("layers", 1, 8)):
        sweeps += [("fig6", line, "lr", axis, *ends) for line in ("mup-small", "umup")]
    shares = []
    for name, line, x, column, *ends in sweeps:
        rows = where(read_table(ROOT / "docs" / "figures" / f"{name}.csv"), line=line)
        rows = where(rows, axis=column) if name == "fig6" else rows
        curves = [[curve(where(rows, seed=seed, **{column: end}), x) for seed in range(3)] for end in ends]
        optima = [[(optimum(c).x, flat_minimum(c)) for c in seeds] for seeds in curves]
        three, five = np.std(np.subtract(optima[1], optima[0]), axis=0)
        shares.append(five / three)
    assert len(shares) == 14
    assert sum(share < 1 for share in shares) == 12
    assert np.median(shares) == pytest.approx(0.5, abs=0.05)


def test_that_u_mup_is_lower_is_judged_at_every_width_that_was_run() -> None:
    runs = (ROOT / "docs" / "figures" / "fig1-left.csv").read_text().splitlines()
    widths = {line.split(",")[2] for line in runs if line.startswith("mup,")}
    for width in widths:
        text = f"µP, base width 256: its lowest loss is above u-µP's at width {width} by"
        [claim] = [claim for claim in CLAIMS["fig1-left"] if claim["claim"] == text]
        assert claim["criterion"] == "at least 0"
        fails = f"* fig1-left, {claim['verdict']}: {text} {measured(claim)}, asked at least 0"
        assert (fails in (ROOT / "docs" / "results.md").read_text()) == (claim["verdict"] != HOLDS)
        assert f"| {text} | {measured(claim)} | {claim['verdict']} |" in README


def test_the_readme_s_fp8_table_is_the_committed_result() -> None:
    result = json.loads((ROOT / "docs" / "fp8_gap.json").read_text())
    assert result["passed"]
    runs = {scheme: [run for run in result["runs"] if run["scheme"] == scheme] for scheme in ("umup", "mup")}
    pairs = {scheme: list(zip(own[::2], own[1::2], strict=True)) for scheme, own in runs.items()}  # float32, FP8
    assert fp8_gap.table(pairs, result["gaps"], result["flushed"]) in README


def test_the_committed_gap_is_that_of_the_committed_figure() -> None:
    runs = read_table(ROOT / "docs" / "figures" / "fig1-right.csv")
    losses = {(row["line"].removesuffix("-small"), row["fp8"], row["seed"]): row["loss"] for row in runs}
    result = json.loads((ROOT / "docs" / "fp8_gap.json").read_text())
    assert {(run["scheme"], run["fp8"], run["seed"]): run["loss"] for run in result["runs"]}.items() <= losses.items()
