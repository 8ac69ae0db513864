"""Slopes of sizes over width or depth, and the verdict on each: what both coordinate checks share.

A slope may be off by 1/4. The rules are powers of the width in steps of 1/2, so a wrong one moves some slope by 1/2,
and 1/4 is half way. Where seeds differ much, chance excuses a little more.
"""

from collections.abc import Iterable, Sequence
from math import inf, isfinite, nan
from typing import NamedTuple

import numpy as np

from microumup.backend import Array
from microumup.lab.statistics import mean_interval

TOLERANCE = 0.25
MOST_CHANCE = 0.4  # still less than what a wrong rule does


class Row(NamedTuple):
    """Growth of a tensor's size with width or depth, and what it should be."""

    measure: str
    tensor: str
    step: int  # updates so far
    rms: tuple[float, ...]  # at every width or depth; the geometric mean over seeds
    slope: float  # of log RMS over log width; the mean over seeds
    interval: float  # 95 % confidence: slope ± interval; nan with one seed
    expected: tuple[float, float]  # the least and the greatest right slope
    verdict: str  # ok, too large, too small: the slope, and so the tensor in wide or deep models

    @property
    def off(self) -> float:
        """Distance of the slope from what is expected; negative or 0 within."""
        return max(self.expected[0] - self.slope, self.slope - self.expected[1])


def row_of(
    measure: str, tensor: str, step: int, sizes: Sequence[int], rms: Array, expected: tuple[float, float],
    *, by_chance: bool = False,
) -> Row:  # fmt: skip
    """The row of a tensor, judged, from its RMS (seeds, sizes).

    A slope that is off `by_chance` is excused: one whose interval reaches a right one, up to MOST_CHANCE.
    """
    slope, interval = slope_and_interval(sizes, rms)
    chance = min(interval, MOST_CHANCE) if isfinite(interval) else MOST_CHANCE  # that of one seed is not known
    room = max(TOLERANCE, chance) if by_chance else TOLERANCE
    too_far = "too large" if slope > expected[1] + room else "too small" if slope < expected[0] - room else ""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.exp(np.log(rms).mean(axis=0))
    return Row(measure, tensor, step, tuple(mean.tolist()), slope, interval, expected, too_far or "ok")


def furthest_off(rows: Iterable[Row]) -> list[Row]:
    """Row of every tensor and measure that is furthest off what is expected, of all steps; a wrong one if any is."""
    by_tensor: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_tensor.setdefault((row.measure, row.tensor), []).append(row)
    return [max(rows, key=lambda row: (row.verdict != "ok", row.off)) for rows in by_tensor.values()]


def slope_and_interval(sizes: Sequence[int], rms: Array) -> tuple[float, float]:
    """The slope of log RMS over log size by least squares, mean over seeds, and the ± of its 95 % confidence interval.

    rms (seeds, sizes). The interval is nan with a single seed. The slope is inf where an RMS is not finite, and -inf
    where one is 0.
    """
    if not np.isfinite(rms).all():
        return inf, nan
    if (rms == 0).any():
        return -inf, nan
    x = np.log(sizes)
    x -= x.mean()
    slope, _, high = mean_interval(np.log(rms) @ x / (x @ x))  # (seeds,)
    return slope, nan if high is None else high - slope


def powers(slopes: Sequence[float], axis: str) -> str:
    """The least and the greatest of some slopes in words: `width^-0.5 to width^0`."""

    def power(slope: float) -> str:
        return f"{axis}^{round(slope, 2) + 0:g}" if isfinite(slope) else "overflow" if slope > 0 else "zero"

    return " to ".join(dict.fromkeys((power(min(slopes)), power(max(slopes)))))


def slope_cells(row: Row) -> tuple[str, str]:
    """The slope with its interval, and what is expected, as the tables have them."""
    interval = f"± {row.interval:.2f}" if isfinite(row.interval) else ""
    return f"{row.slope:8.2f} {interval}", " … ".join(dict.fromkeys(f"{slope:g}" for slope in row.expected))
