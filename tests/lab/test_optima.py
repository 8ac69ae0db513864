"""The optimum of a sweep, and what is said where there is none."""

from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from microumup.lab.optima import describe, ending, power, tuned

Rows = list[dict[str, Any]]


def rows(loss: Callable[[float, int], float | None], low: float = -1.0, high: float = 2.0, seeds: int = 2) -> Rows:
    xs = [low + i / 2 for i in range(round(2 * (high - low)) + 1)]
    return [{"lr": 2.0**x, "seed": seed, "loss": loss(x, seed)} for x in xs for seed in range(seeds)]


def parabola(x: float, seed: int) -> float:
    return 2 + 0.1 * (x - 0.6 - 0.2 * seed) ** 2


def test_it_is_the_mean_of_the_seeds_optima_with_their_interval() -> None:
    found = tuned(rows(parabola))
    assert found.eta.value == pytest.approx(0.7)
    assert found.eta.low == pytest.approx(0.7 - 12.7062 * 0.1)  # t of one degree of freedom times 0.2/√2/√2
    assert found.loss.value == pytest.approx(2.0)
    assert (found.seeds, found.problem) == (2, "")


def test_the_basin_is_that_of_the_mean_loss() -> None:
    left, right = tuned(rows(parabola)).basin
    for x in (left, right):  # to what lines between points half an octave apart are above a parabola
        assert (parabola(x, 0) + parabola(x, 1)) / 2 == pytest.approx(2.001 + 0.02, abs=0.1 / 16)


def test_one_seed_has_no_interval_and_says_so() -> None:
    assert describe(tuned(rows(parabola, seeds=1))).startswith("best η 2^0.6 (one seed, no interval), loss 2.000 (one")


@pytest.mark.parametrize(
    ("low", "high", "more"), [(-1.0, 0.5, "largest swept: add --grid lr=2^1,2^1.5"), (1.0, 2.0, "lr=2^0,2^0.5")]
)
def test_an_optimum_at_the_edge_is_none_and_names_what_to_add(low: float, high: float, more: str) -> None:
    found = tuned(rows(parabola, low, high))
    assert isnan(found.eta.value)
    assert more in found.problem
    assert describe(found, "width 64").startswith("width 64: no optimum; but the best of seed 0")


def test_a_diverged_seed_is_named() -> None:
    found = tuned(rows(lambda x, seed: None if seed == 1 else parabola(x, seed)))
    assert found.problem == "no run of seed 1 trained; take another seed"


@pytest.mark.parametrize(
    ("x", "text"), [(0.0, "2^0"), (-0.0, "2^0"), (-0.001, "2^0"), (-7.5, "2^-7.5"), (1 / 3, "2^0.33")]
)
def test_a_learning_rate_is_written_as_a_power(x: float, text: str) -> None:
    assert power(x) == text


def records(**option: list[Any]) -> Rows:
    [(name, several)] = option.items()
    return [{"config": row | {"width": 64} | {name: v}, "loss": row["loss"]} for v in several for row in rows(parabola)]


def test_a_sweep_over_widths_ends_with_the_way_on() -> None:
    lines, models = ending(records(width=[32, 64]), ["lr", "width"], Path("runs/lr"))
    assert [line[:9] for line in lines[:2]] == ["width 32:", "width 64:"]
    assert lines[2:] == ["go on with: microumup transfer runs/lr --width 128"]
    assert [model["model"] for model in models] == ["width 32", "width 64"]


def test_where_more_was_swept_there_are_optima_but_no_way_on() -> None:
    lines, _ = ending(records(scheme=["sp", "umup"]), ["scheme", "lr"], Path("out"))
    assert [line.partition(":")[0] for line in lines] == ["scheme sp", "scheme umup"]


def test_a_single_seed_is_told_what_it_lacks() -> None:
    one = [record for record in records(width=[64]) if record["config"]["seed"] == 0]
    assert ending(one, ["lr"], Path("out"))[0][-1].endswith("--width 128; it needs two seeds or more, as --seeds 3")


def test_two_learning_rates_are_no_grid() -> None:
    two = [record for record in records(width=[64]) if record["config"]["lr"] in (1.0, 2.0)]
    assert ending(two, ["lr"], Path("out")) == ([], [])
