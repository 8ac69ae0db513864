from itertools import pairwise
from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microumup.lab.statistics import (
    T_QUANTILES,
    Estimate,
    Optimum,
    basin_width,
    coupling,
    loss_at,
    mean_interval,
    optimum,
    power_law,
    transfer_regret,
)

HALF_OCTAVES = [-2 + i / 2 for i in range(9)]


def parabola(x: float, curvature: float = 0.1, floor: float = 2.0) -> list[tuple[float, float]]:
    return [(at, floor + curvature * (at - x) ** 2) for at in HALF_OCTAVES]


@given(st.floats(-1.4, 1.4), st.floats(0.001, 10))
def test_the_optimum_of_a_parabola_is_found_between_the_points(x: float, curvature: float) -> None:
    found = optimum(parabola(x, curvature))
    assert found.x == pytest.approx(x, abs=1e-6)
    assert found.loss == pytest.approx(2.0, abs=1e-6)
    assert found.inside


@given(st.permutations(parabola(0.3)))
def test_the_order_of_the_points_does_not_matter(points: list[tuple[float, float]]) -> None:
    assert optimum(points).x == pytest.approx(0.3)


def test_at_the_edge_of_the_grid_the_optimum_is_the_best_point_and_says_so() -> None:
    assert optimum(parabola(7.0)) == Optimum(2.0, 2.0 + 0.1 * 25, inside=False)


def test_beside_a_diverged_run_the_optimum_is_the_best_point_and_says_so() -> None:
    curve = [(x, inf if x > 0 else loss) for x, loss in parabola(0.2)]
    assert optimum(curve) == Optimum(0.0, pytest.approx(2.004), inside=False)


def test_diverged_runs_elsewhere_do_not_matter() -> None:
    curve = [(x, inf if x > 1 else loss) for x, loss in parabola(0.2)]
    assert optimum(curve).x == pytest.approx(0.2)


def test_three_equal_losses_have_their_optimum_in_the_middle() -> None:
    assert optimum([(0, 2.0), (1, 2.0), (2, 2.0)]).loss == 2.0


@pytest.mark.parametrize("curve", [[], [(0.0, inf)], [(0.0, inf), (1.0, inf)]])
def test_without_a_finite_loss_there_is_no_optimum(curve: list[tuple[float, float]]) -> None:
    assert isnan(optimum(curve).x)
    assert isnan(basin_width(curve))


@given(st.floats(-2, 2))
def test_the_loss_between_points_lies_on_the_parabola(x: float) -> None:
    assert loss_at(parabola(0.3), x) == pytest.approx(2.0 + 0.1 * (x - 0.3) ** 2, abs=1e-9)


@pytest.mark.parametrize("x", [-2.1, 2.1, nan])
def test_beyond_the_grid_the_loss_is_not_known(x: float) -> None:
    assert isnan(loss_at(parabola(0), x))


def test_the_loss_beside_a_diverged_run_is_infinite() -> None:
    curve = [(0.0, 2.0), (1.0, 2.1), (2.0, inf)]
    assert loss_at(curve, 1.5) == inf
    assert loss_at(curve, 0.5) == pytest.approx(2.05)
    assert loss_at(curve, 1.0) == 2.1


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_regret_is_what_the_others_optimum_costs(here: float, there: float) -> None:
    assert transfer_regret(parabola(here), parabola(there)) == pytest.approx(0.1 * (here - there) ** 2, abs=1e-9)


def test_a_basin_is_as_wide_as_its_walls_are_apart() -> None:
    fine = [(x / 100, 2.0 + 0.1 * (x / 100 - 0.3) ** 2) for x in range(-200, 201)]
    assert basin_width(fine) == pytest.approx(2 * sqrt(0.02 / 0.1), abs=1e-3)


def test_a_basin_that_reaches_the_edge_is_at_least_that_wide() -> None:
    assert basin_width(parabola(0.0, curvature=0.001)) == 4.0


def test_a_basin_ends_before_a_diverged_run() -> None:
    assert basin_width([(-1.0, 2.1), (0.0, 2.0), (1.0, inf)]) == pytest.approx(0.2)


def test_the_interval_of_three_values() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == (2.0, pytest.approx(2 - 4.30265 / sqrt(3)), pytest.approx(2 + 4.30265 / sqrt(3)))


def test_one_value_has_no_interval() -> None:
    assert mean_interval([1.5]) == Estimate(1.5, None, None)


@pytest.mark.parametrize("values", [[], [1.0, nan], [1.0, inf]])
def test_what_is_not_finite_has_no_mean(values: list[float]) -> None:
    value, low, high = mean_interval(values)
    assert isnan(value)
    assert low is None
    assert high is None


def test_beyond_the_table_intervals_are_wider_not_narrower() -> None:
    steps = sorted(T_QUANTILES.items())
    assert all(a > b for (_, a), (_, b) in pairwise(steps))
    values = list(np.random.default_rng(0).standard_normal(29))  # 28 degrees of freedom: the table has 24 and 30
    _, low, high = mean_interval(values)
    assert low is not None
    assert high is not None
    assert (high - low) / 2 == pytest.approx(T_QUANTILES[24] * np.std(values, ddof=1) / sqrt(29))


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_95_of_100_intervals_hold_the_true_mean(count: int) -> None:
    rng, inside, trials = np.random.default_rng(0), 0, 4000
    for draw in rng.standard_normal((trials, count)):
        _, low, high = mean_interval(draw.tolist())
        assert low is not None
        assert high is not None
        inside += low <= 0 <= high
    assert inside / trials == pytest.approx(0.95, abs=3 * sqrt(0.95 * 0.05 / trials))  # three standard errors


def test_independent_hyperparameters_are_not_coupled() -> None:
    x, y = np.arange(5.0), np.arange(5.0)
    assert coupling((x[:, None] - 2) ** 2 + 3 * (y - 1) ** 2) == 0


def test_a_diagonal_valley_is_coupling() -> None:
    x = np.arange(3.0)
    losses = (x[:, None] - x) ** 2  # the best column is the row's own; taking another's costs the distance squared
    assert coupling(losses) == pytest.approx((4 * 1 + 2 * 4) / 6)


def test_a_grid_of_one_row_and_column_says_nothing_of_coupling() -> None:
    assert isnan(coupling(np.ones((1, 1))))


@pytest.mark.parametrize("shrink", [None, 0.5])
def test_the_law_is_found_where_there_is_one(shrink: float | None) -> None:
    points = [(x, 1.0 + 3.0 / x) for x in ((32, 64, 128) if shrink is None else (32, 64))]
    assert power_law(points, 512, shrink) == pytest.approx(1.0 + 3.0 / 512, abs=1e-6)
