"""Where an ε begins to hurt, and the constants that foretell it."""

from math import isnan

import pytest

from microumup.lab.figures.adam import constant, hurts_from
from microumup.lab.figures.settings import LAPTOP, MUP_SMALL, UMUP
from microumup.lab.sweep import plain


def rows(*losses: float | None) -> list[dict[str, float | None]]:
    return [{"adam_eps": 10.0**i, "loss": loss} for i, loss in enumerate(losses, start=-8)]


def test_it_hurts_where_the_line_between_two_points_is_0_02_above_the_lowest() -> None:
    assert hurts_from(rows(2.0, 2.01, 2.0, 2.0, 2.08)) == pytest.approx(-5 + 0.25)
    assert hurts_from(rows(2.0, 2.03, 2.0, 2.04)) == pytest.approx(-6 + 0.5)  # a bump before is chance
    assert hurts_from(rows(2.0, 2.0, None)) == -7  # beside a run that diverged: the last that is well


def test_where_it_hurts_is_unknown_beyond_the_grid() -> None:
    assert isnan(hurts_from(rows(2.0, 2.0, 2.01)))
    assert isnan(hurts_from(rows(None, None)))


def test_the_constants_of_u_mup_are_thousands_of_times_those_of_mup() -> None:
    found = {line: constant({"config": plain(LAPTOP.run(line).job.config)})["constant"] for line in (UMUP, MUP_SMALL)}
    assert 1e3 < found[UMUP] / found[MUP_SMALL] < 1e5
