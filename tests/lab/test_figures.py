import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Refused
from fabricated import World, data

from microumup.lab import figures, results_page
from microumup.lab.claims import Claim
from microumup.lab.figures import (
    FIGURES,
    PICTURES,
    Supposed,
    collect,
    dry_run,
    finish,
    main,
    read_data,
    read_rows,
    shared_options,
    text,
    wanted,
    write_rows,
)
from microumup.lab.recipes import LAPTOP, PAPER, QUICK, SCALES, Known, Scale, id_of
from microumup.lab.sweep import Crashed, Job

WITH_RUNS = [name for name, figure in FIGURES.items() if figure.recipe]


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
@pytest.mark.parametrize("name", WITH_RUNS)
def test_every_recipe_names_runs_that_a_config_allows(name: str, scale: Scale) -> None:
    jobs = wanted([FIGURES[name]], scale, Supposed())  # TrainConfig checks every option
    assert len(jobs) > 3
    seeds = {job.config.seed for job in jobs.values()}
    assert seeds == set(range(len(seeds)))


@pytest.mark.parametrize("name", WITH_RUNS)
def test_the_columns_tell_all_runs_apart(name: str) -> None:
    figure = FIGURES[name]
    rows = data(figure, World()).runs
    keys = [tuple(row[column] for column in ("line", *figure.columns)) for row in rows]
    assert len(set(keys)) == len(keys)


def test_the_laptop_takes_two_cores_75_minutes() -> None:
    seconds = {16: 1, 32: 2, 64: 3.5, 128: 7, 256: 16}  # of a run of R0 on one core of a busy machine, by width

    def cost(job: Job) -> float:
        c = job.config
        return seconds[c.width] * c.steps / 512 * (0.2 + 0.8 * c.batch_size / 16) * (0.2 + 0.8 * c.layers / 2)

    everything = wanted(FIGURES.values(), LAPTOP, Supposed())
    assert sum(map(cost, everything.values())) < 2 * 75 * 60
    assert sum(map(cost, wanted([FIGURES["fig1-left"]], LAPTOP, Supposed()).values())) < 2000


def test_quick_runs_are_few_and_tiny() -> None:
    jobs = wanted(FIGURES.values(), QUICK, Supposed()).values()
    assert len(jobs) < 500
    assert {job.config.width for job in jobs} == {16, 32}
    assert max(job.config.steps for job in jobs) <= 4


def test_the_paper_s_scale_is_that_of_table_6() -> None:
    for job in wanted([FIGURES["fig5"]], PAPER, Supposed()).values():
        c = job.config
        assert (c.layers, c.head_dim, c.seq_len, c.batch_size, c.steps) == (4, 64, 256, 64, 8192)
        assert (c.corpus, c.vocab_size, c.warmup * c.steps) == ("wikitext-103", 32_000, 2000)


def test_a_search_goes_on_from_what_it_has_found() -> None:
    """At the best learning rate first, with the best of all values last: not wherever a fixed list would look."""
    known: Known = {}
    figure = FIGURES["fig2-right"]
    phases = []
    while new := {id: job for id, job in wanted([figure], QUICK, known).items() if id not in known}:
        phases.append(new)
        for id, job in new.items():
            c = job.config
            known[id] = {"loss": -c.eta - c.alpha_res - c.alpha_emb - c.alpha_ffn_act / 100}
    assert len(phases) == 3
    umup = [job.config for job in phases[2].values() if job.config.scheme == "umup"]
    assert umup
    assert all(c.alpha_res == c.alpha_ffn_act == 8 for c in umup)
    highest = max(job.config.eta for job in phases[0].values() if job.config.scheme == "umup" and job.config.seed == 0)
    assert all(job.config.eta == highest for job in phases[1].values() if job.config.scheme == "umup")


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"line": "µP, a", "lr": 2**-5.5, "width": 32, "loss": 1.25, "diverged": False},
        {"line": "e5", "lr": 1e-7, "width": 64, "loss": None, "diverged": True},
    ]
    write_rows(tmp_path / "a.csv", rows)
    assert read_rows(tmp_path / "a.csv") == rows
    assert [type(row["width"]) for row in read_rows(tmp_path / "a.csv")] == [int, int]


@pytest.mark.parametrize("content", ["", "a,b\n", "a,b\n1\n", "a,b\n1,2,3\n"])
def test_what_is_no_table_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=r"a\.csv is not a table of a figure"):
        read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize("name", FIGURES)
def test_claims_are_the_same_from_the_tables_and_before(name: str, tmp_path: Path) -> None:
    found = data(FIGURES[name], World())
    write_tables(name, tmp_path)
    assert FIGURES[name].claims(read_data(FIGURES[name], tmp_path)) == FIGURES[name].claims(found)
    assert all(path.stat().st_size < 300_000 for path in tmp_path.iterdir())  # they are committed


def write_tables(name: str, out: Path) -> None:
    """The figure's CSVs, made up."""
    found = data(FIGURES[name], World())
    write_rows(out / f"{name}.csv", found.runs)
    if found.ranges:
        write_rows(out / f"{name}-ranges.csv", found.ranges)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize("name", FIGURES)
def test_redrawing_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    write_tables(name, tmp_path)

    def draw() -> dict[str, bytes]:
        assert main([name, "--redraw", "--out", str(tmp_path), "--quiet"]) == 0
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".png"}

    first = draw()
    assert {f"{name}.csv", f"{name}.json", f"{name}.svg", "results.md"} <= set(first)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert draw() == first


def titles(name: str, world: World, out: Path) -> str:
    found = data(FIGURES[name], world)
    write_rows(out / f"{name}.csv", found.runs)
    finish(FIGURES[name], out, judged=True, sessions=None, common=None)
    return (out / f"{name}.svg").read_text()


def test_a_picture_s_title_does_not_say_what_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(figures.drawings, "entitle", lambda figure, text: seen.append(text))
    titles("fig2-left", World(), tmp_path)
    titles("fig2-left", World(emb_drift=dict.fromkeys(World().emb_drift, 0.0)), tmp_path)
    assert seen == [FIGURES["fig2-left"].shows, FIGURES["fig2-left"].title]


def test_redrawing_keeps_what_is_known_of_how_the_runs_were_made(tmp_path: Path) -> None:
    write_tables("fig2-left", tmp_path)
    figure, sessions = FIGURES["fig2-left"], [{"commit": "abc"}]
    finish(figure, tmp_path, judged=True, sessions=sessions, common={"steps": 512})
    made = json.loads((tmp_path / "fig2-left.json").read_text())["made"]
    assert made == {"runs": 48, "cpu_seconds": 48, "options": {"steps": 512}, "sessions": sessions}
    finish(figure, tmp_path, judged=True, sessions=None, common=None)
    assert json.loads((tmp_path / "fig2-left.json").read_text())["made"] == made


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each sweep made."""
    counts: list[int] = []
    real = figures.sweep

    def sweep(jobs: list[Job], store: Path, **how: Any) -> Any:
        counts.append(len(jobs))
        return real(jobs, store, **how | {"workers": 0})

    monkeypatch.setattr(figures, "sweep", sweep)
    return counts


def test_a_figure_from_end_to_end_and_again_from_the_store(
    tmp_path: Path, trained: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    options = ["fig2-left", "fig3", "--quick", "--quiet", "--json", "--runs", str(store), "--out", str(out)]
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
    real = figures.sweep
    lost = next(id for id, job in wanted([FIGURES["fig2-left"]], QUICK, {}).items() if job.config.seed == 1)

    def sweep(jobs: list[Job], store: Path, **how: Any) -> Any:
        real([job for job in jobs if id_of(job) != lost], store, **how)
        raise Crashed({lost: "OSError: no luck"})

    monkeypatch.setattr(figures, "sweep", sweep)
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

    monkeypatch.setattr(figures, "sweep", interrupted)
    assert main(["fig3", "--quick", "--runs", str(tmp_path / "store")]) == 130
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "go on with the same command" in error


@pytest.mark.parametrize("scale", [LAPTOP, PAPER], ids=["laptop", "paper"])
def test_a_dry_run_writes_nothing_and_counts_shared_runs_once(
    scale: Scale, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "estimate_seconds", lambda job: 2.0)
    shared = [FIGURES["fig3"], FIGURES["fig8"]]
    assert dry_run(shared, scale, tmp_path / "store", print, as_line=True) == 0
    *table, line = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert [figure["runs"] for figure in result["figures"]] == [6, 0]
    total = result["total"]
    assert total["runs"] == 6
    assert total["flops"] > 0
    if scale is PAPER:
        assert total["gpu_hours"] == pytest.approx(total["flops"] / 67e12 / 0.3 / 3600)
        assert table[-1].startswith("hours of an H100 in float32 (6.7e+13 FLOP/s")
    else:
        assert total["cpu_seconds"] == 12
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
        (["fig3", "--quick", "--out", str(PICTURES)], "name another directory"),
        (["fig3", "--runs", str(Path(__file__).parent)], "holds something else than a sweep"),
    ],
)
def test_bad_input_ends_in_one_line(options: list[str], complaint: str, refused: Refused) -> None:
    assert complaint in refused(main, options)


def test_without_matplotlib_nothing_is_begun(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    assert "pip install 'microumup[plot]'" in refused(main, ["fig3", "--quick", "--runs", str(tmp_path / "store")])
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


def test_options_that_all_runs_share() -> None:
    records = [{"config": {"width": 32, "lr": 1.0}}, {"config": {"width": 32, "lr": 2.0}}]
    assert shared_options(records) == {"width": 32}


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_the_page_has_words_for_every_figure() -> None:
    assert list(results_page.PROSE) == list(FIGURES)


def test_the_page_shows_each_figure_with_its_claims(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "figures"
    out.mkdir(parents=True)
    for name in ("fig2-left", "eq22"):
        write_tables(name, out)
        finish(FIGURES[name], out, judged=True, sessions=None, common=None)
    page = results_page.write(out, list(FIGURES))
    assert page == tmp_path / "docs" / "results.md"
    content = page.read_text()
    assert "![µP's embedding learning rate over width](figures/fig2-left.png)" in content
    assert "| µP: the best η̂_emb moves from width 32 to 128 by | -1.60 octaves | exact |" in content
    assert "| 0 | exact |" in content
    assert "Everything that is claimed above holds." in content
    assert "fig1-left.png" not in content  # it was not made


def test_the_page_says_what_does_not_hold(tmp_path: Path) -> None:
    found = data(FIGURES["fig2-left"], World(emb_drift=dict.fromkeys(World().emb_drift, 0.0)))
    write_rows(tmp_path / "fig2-left.csv", found.runs)
    finish(FIGURES["fig2-left"], tmp_path, judged=True, sessions=None, common=None)
    content = results_page.write(tmp_path, ["fig2-left"]).read_text()
    assert "* fig2-left, does not hold at this scale: µP: the best η̂_emb moves from width 32 to 128 by" in content
