"""Slopes, their intervals, and when one is wrong."""

from math import inf, isnan, nan

import numpy as np
import pytest

from microumup.lab.slopes import Row, furthest_off, powers, row_of, slope_and_interval

WIDTHS = (32, 64, 128, 256)


def test_the_slope_of_a_power_law_is_its_exponent():
    sizes = (64, 128, 256, 1024)
    rms = np.array([[c * size**-0.5 for size in sizes] for c in (0.1, 1.0, 7.0)])
    assert slope_and_interval(sizes, rms) == pytest.approx((-0.5, 0), abs=1e-12)
    slope, interval = slope_and_interval(sizes, rms[:1])
    assert slope == pytest.approx(-0.5)
    assert isnan(interval)


def test_the_slope_is_that_of_least_squares_and_the_interval_that_of_student():
    sizes, noise = (32, 64, 256), np.random.default_rng(0).normal(0, 0.1, (3, 3))
    slope, interval = slope_and_interval(sizes, np.exp(noise))
    slopes = [np.polyfit(np.log(sizes), row, 1)[0] for row in noise]
    assert slope == pytest.approx(np.mean(slopes))
    assert interval == pytest.approx(4.30265 * np.std(slopes, ddof=1) / 3**0.5)


@pytest.mark.parametrize("seeds", [2, 3, 5, 9, 12])
def test_19_of_20_intervals_hold_the_true_slope(seeds):
    sizes, rng = (64, 128, 256), np.random.default_rng(seeds)
    held = 0
    for _ in range(2000):
        rms = np.exp(0.3 * np.log(sizes) + rng.normal(0, 0.2, (seeds, 3)))
        slope, interval = slope_and_interval(sizes, rms)
        held += abs(slope - 0.3) <= interval
    assert held / 2000 == pytest.approx(0.95, abs=0.02)  # four standard errors of a share of 2000


@pytest.mark.parametrize(("bad", "slope"), [(np.nan, inf), (np.inf, inf), (0.0, -inf)])
def test_what_is_no_positive_number_has_an_infinite_slope(bad, slope):
    assert slope_and_interval((2, 4), np.array([[1.0, 1.0], [1.0, bad]]))[0] == slope


@pytest.mark.parametrize(
    ("slope", "expected", "verdict"),
    [
        (0.26, (0.0, 0.0), "too large"),
        (0.24, (0.0, 0.0), "ok"),
        (-0.26, (0.0, 0.0), "too small"),
        (-0.26, (-0.5, -0.5), "ok"),
        (-0.24, (-0.5, -0.5), "too large"),
        (-0.74, (-0.5, 0.0), "ok"),
        (0.24, (-0.5, 0.0), "ok"),
        (-0.76, (-0.5, 0.0), "too small"),
    ],
)
def test_a_slope_may_be_a_quarter_off(slope, expected, verdict):
    rms = np.array([[float(size) ** slope for size in WIDTHS]])
    assert row_of("effect", "q", 1, WIDTHS, rms, expected).verdict == verdict


def test_chance_excuses_a_slope_whose_interval_reaches_what_is_right():
    """That of three seeds is 2.5 times their spread, of two seeds 9 times."""
    for slopes, verdict in (
        ((-0.4, -0.35, -0.3), "too small"),
        ((-0.75, -0.35, 0.05), "ok"),  # ± 1
        ((-0.9, -0.5, -0.1), "too small"),  # further than chance may
        ((-0.2, -0.2, -0.2), "ok"),  # sure, and small
        ((-0.45, -0.25), "ok"),
        ((-0.6, -0.4), "too small"),
        ((-0.35,), "ok"),  # of one seed the interval is not known
        ((-0.45,), "too small"),
    ):
        rms = np.array([[float(size) ** slope for size in WIDTHS] for slope in slopes])
        assert row_of("update", "q", 0, WIDTHS, rms, (0.0, 0.0), by_chance=True).verdict == verdict, slopes


def test_what_is_wrong_comes_before_what_is_further_off_by_chance():
    rows = [Row("share", "q", step, (), slope, nan, (0.0, 0.0), verdict)
            for step, slope, verdict in ((0, 0.3, "too large"), (10, -0.6, "ok"), (50, 0.4, "too large"))]  # fmt: skip
    assert [row.step for row in furthest_off(rows)] == [50]


def test_powers_in_words():
    assert powers([0.5, -0.001], "width") == "width^0 to width^0.5"
    assert powers([inf], "depth") == "overflow"
    assert powers([-inf, -inf], "depth") == "zero"
