"""Which runs the figures ask for."""

import pytest
from fabricated import World, data

from microumup.lab.figures.command import FIGURES
from microumup.lab.figures.settings import LAPTOP, OVERNIGHT, PAPER, QUICK, SETTINGS, Setting
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


@pytest.mark.parametrize(("setting", "minutes"), [(LAPTOP, 75), (OVERNIGHT, 12 * 60)], ids=["laptop", "overnight"])
def test_how_long_two_cores_take(setting: Setting, minutes: float) -> None:
    seconds = {16: 1, 32: 2, 64: 3.5, 128: 7, 256: 16}  # of a run of R0 on one core of a busy machine, by width

    def cost(job: Job) -> float:
        c = job.config
        return seconds[c.width] * c.steps / 512 * (0.2 + 0.8 * c.batch_size / 16) * (0.2 + 0.8 * c.layers / 2)

    assert sum(map(cost, wanted(FIGURES.values(), setting, Supposed()).values())) < 2 * 60 * minutes


def test_more_seeds_are_those_there_were_and_others() -> None:
    """So that rows that were published stay, and a store of fewer seeds goes on."""
    fewer = LAPTOP._replace(seeds_of={})
    for name in ("fig1-left", "fig1-right", "fig3", "fig5", "fig6", "fig7", "fig8", "fig9"):
        few, many = (wanted([FIGURES[name]], setting, Supposed()) for setting in (fewer, LAPTOP))
        assert few.keys() < many.keys()
        assert all(many[id].config.seed >= 1 for id in many.keys() - few.keys())


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
