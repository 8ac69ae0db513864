"""The command, from its options to its files."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from conftest import Refused

from microumup.backend import install_hint
from microumup.lab.figures import command, store
from microumup.lab.figures.command import DOCS, FIGURES, dry_run, main, text
from microumup.lab.figures.judging import Claim
from microumup.lab.figures.settings import LAPTOP, PAPER, QUICK, Setting, id_of
from microumup.lab.figures.store import collect, wanted
from microumup.lab.sweep import Crashed, Job


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each sweep made."""
    counts: list[int] = []
    real = store.sweep

    def sweep(jobs: list[Job], out: Path, **how: Any) -> Any:
        counts.append(len(jobs))
        return real(jobs, out, **how | {"workers": 0})

    monkeypatch.setattr(store, "sweep", sweep)
    return counts


def test_a_figure_from_end_to_end_and_again_from_the_store(
    tmp_path: Path, trained: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "store", tmp_path / "out"
    options = ["fig2-left", "fig3", "--quick", "--quiet", "--json", "--runs", str(runs), "--out", str(out)]
    assert main(options) == 0
    assert sum(trained) == 16
    [line] = capsys.readouterr().out.splitlines()
    [left, third] = json.loads(line)["figures"]
    assert left["name"] == "fig2-left"
    assert {"claim", "effect", "low", "high", "paper", "criterion", "verdict"} <= set(left["claims"][0])
    assert {claim["verdict"] for claim in left["claims"] + third["claims"]} == {"not judged"}
    assert all((out / file).exists() for figure in (left, third) for file in figure["files"])
    made = json.loads((out / "fig2-left.json").read_text())["made"]
    assert made["options"]["steps"] == 4
    assert made["sessions"][0]["microumup"]

    tables = {path: path.read_bytes() for path in out.iterdir() if path.suffix in (".csv", ".json", ".svg")}
    assert main(options) == 0
    assert sum(trained) == 16  # nothing is run twice
    assert {path: path.read_bytes() for path in tables} == tables


def test_figures_share_their_runs(tmp_path: Path, trained: list[int]) -> None:
    both = [FIGURES["fig3"], FIGURES["fig8"]]
    known, errors = collect(both, QUICK, tmp_path / "store", workers=0, progress=False)
    assert trained == [len(known)] == [4]
    assert not errors


def test_runs_that_fail_are_named_and_the_rest_is_drawn(
    tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = store.sweep
    lost = next(id for id, job in wanted([FIGURES["fig2-left"]], QUICK, {}).items() if job.config.seed == 1)

    def sweep(jobs: list[Job], out: Path, **how: Any) -> Any:
        real([job for job in jobs if id_of(job) != lost], out, **how)
        raise Crashed({lost: "OSError: no luck"})

    monkeypatch.setattr(store, "sweep", sweep)
    options = ["fig2-left", "fig3", "--quick", "--quiet", "--json", "--runs", str(tmp_path / "store")]
    assert main(options) == 1
    out, error = capsys.readouterr()
    assert [figure["name"] for figure in json.loads(out)["figures"]] == ["fig3"]
    assert error.splitlines() == [
        f"microumup figures: run {lost} failed: OSError: no luck",
        "microumup figures: not drawn, for want of runs: fig2-left",
    ]


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "sweep", interrupted)
    assert main(["fig3", "--quick", "--runs", str(tmp_path / "store")]) == 130
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "go on with the same command" in error


@pytest.mark.parametrize("setting", [LAPTOP, PAPER], ids=["laptop", "paper"])
def test_a_dry_run_writes_nothing_and_counts_shared_runs_once(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "estimate_seconds", lambda job: 2.0)
    shared = [FIGURES["fig3"], FIGURES["fig8"]]
    assert dry_run(shared, setting, tmp_path / "store", Namespace(quiet=False, json=True)) == 0
    *table, line = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    runs = {"laptop": 28, "paper": 6}[setting.name]  # Fig. 3's; Fig. 8's are among them
    assert [figure["runs"] for figure in result["figures"]] == [runs, 0]
    total = result["total"]
    assert total["runs"] == runs
    assert total["flops"] > 0
    if setting is PAPER:
        assert total["gpu_hours"] == pytest.approx(total["flops"] / 67e12 / 0.3 / 3600)
        assert table[-1].startswith("hours of an H100 in float32 (6.7e+13 FLOP/s")
    else:
        assert total["cpu_seconds"] == 56
    assert list(tmp_path.iterdir()) == []


def test_the_list_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FIGURES)
    assert main(["list", "--json", "--quiet"]) == 0
    assert [f["name"] for f in json.loads(capsys.readouterr().out)["figures"]] == list(FIGURES)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["fig99"], "there is no figure 'fig99'; choose from all, fig1-left"),
        (["fig3", "--redraw", "--out", "nowhere"], "nowhere/fig3.csv is not there to be redrawn"),
        (["fig3", "--workers", "-1"], "--workers: -1 is too small"),
        (["fig3", "--quick", "--scale", "paper"], "leave out --scale paper"),
        (["fig3", "--quick", "--out", str(DOCS)], "name another directory"),
        (["fig3", "--out", str(DOCS)], "renew it by --docs"),
        (["fig3", "--quick", "--docs"], "--docs: is for the laptop's figures"),
        (["fig3", "--docs", "--out", "here"], "--docs: is for the laptop's figures"),
        (["fig3", "--runs", str(Path(__file__).parent)], "holds something else than a sweep"),
    ],
)
def test_bad_input_ends_in_one_line(options: list[str], complaint: str, refused: Refused) -> None:
    assert complaint in refused(main, options)


def test_without_matplotlib_nothing_is_begun(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert install_hint("plot") in refused(main, ["fig3", "--quick", "--runs", str(tmp_path / "store")])
    assert list(tmp_path.iterdir()) == []


def test_the_text_has_a_line_for_every_claim() -> None:
    claims = [
        Claim("it moves by", -0.4999, -0.6, -0.4, "octaves", "stays", "within ±0.5", "holds partly"),
        Claim("it costs", None, None, None, "nats", "", "", "reported"),
    ]
    result = {"name": "x", "shows": "it stays", "verdict": "holds partly"}
    lines = text(result | {"claims": [claim._asdict() for claim in claims]}).splitlines()
    assert lines[0] == "x, it stays: holds partly"
    assert lines[1].split("  ")[-1].strip() == "it moves by: -0.50 [-0.60, -0.40] octaves, asked: within ±0.5"
    assert lines[2].endswith("it costs: – nats")


# ---------------------------------------------------------------------------------------------------------------------
# Where it writes


def test_nothing_that_the_repository_tracks_is_written_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in DOCS.iterdir()}
    assert main(["eq22", "--quiet"]) == 0
    assert {path.name for path in (tmp_path / "runs/figures/pictures").iterdir()} == {
        "eq22.csv", "eq22.json", "eq22.png", "eq22.svg", "results.md"
    }  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in DOCS.iterdir()} == before


def test_redrawing_without_runs_of_your_own_takes_the_committed_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fig2-left", "--redraw", "--quiet"]) == 0
    mine = tmp_path / "runs/figures/pictures"
    for name in ("fig2-left.csv", "fig2-left.json"):
        assert (mine / name).read_text() == (DOCS / name).read_text()


def test_docs_are_renewed_by_a_flag_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "docs" / "figures"
    docs.mkdir(parents=True)
    monkeypatch.setattr(command, "DOCS", docs)
    assert main(["eq22", "--docs", "--quiet"]) == 0
    assert (docs / "eq22.json").exists()
    assert "![Eq. (22) as printed](figures/eq22.png)" in (tmp_path / "docs" / "results.md").read_text()
