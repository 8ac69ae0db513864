"""Which runs the figures ask for."""

import pytest
from fabricated import World, data

from microumup.lab.figures.command import FIGURES
from microumup.lab.figures.settings import LAPTOP, PAPER, QUICK, SETTINGS, Setting
from microumup.lab.figures.store import Supposed, wanted
from microumup.lab.sweep import Job

WITH_RUNS = [name for name, figure in FIGURES.items() if figure.recipe]


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
@pytest.mark.parametrize("name", WITH_RUNS)
def test_every_recipe_names_runs_that_a_config_allows(name: str, setting: Setting) -> None:
    jobs = wanted([FIGURES[name]], setting, Supposed())  # TrainConfig checks every option
    assert len(jobs) > 3
    seeds = {job.config.seed for job in jobs.values()}
    assert seeds == set(range(len(seeds)))


@pytest.mark.parametrize("name", WITH_RUNS)
def test_the_columns_tell_all_runs_apart(name: str) -> None:
    figure = FIGURES[name]
    rows = data(figure, World()).runs
    roles = [figure.role] if figure.role else []
    keys = [tuple(row[column] for column in ("line", *roles, *figure.columns)) for row in rows]
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


def test_a_run_of_several_axes_has_a_row_for_each() -> None:
    """The default is on every axis: guessed back from the rows it would be on none, or on all."""
    for name, axes in (("fig6", ("steps", "batch_size", "layers")), ("fig9", ("lr", "width", "layers", "steps"))):
        runs = data(FIGURES[name], World()).runs
        for axis in axes:
            here = [row for row in runs if row["axis"] == axis and row["line"] == "umup"]
            assert len({row[axis] for row in here}) > 2
            assert all(len({row[other] for row in here}) == 1 for other in axes if other not in (axis, "lr"))


def test_a_pair_s_grid_is_whole() -> None:
    runs = data(FIGURES["fig11"], World()).runs
    for pair in {row["pair"] for row in runs}:
        one, other = pair.split(" and ")
        here = [row for row in runs if row["pair"] == pair]
        assert len({(row[one], row[other], row["seed"]) for row in here}) == len(here) == 50
