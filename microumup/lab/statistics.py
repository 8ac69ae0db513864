"""All the statistics of the lab: optima, how far they move, and how sure one can be after a few seeds.

A curve is a list of (x, loss) points, x usually log2 of a learning rate; a run that diverged has the loss infinity.
Nothing here raises for data that say nothing: what cannot be known is NaN.
"""

from collections.abc import Iterable, Sequence
from itertools import permutations
from math import inf, isfinite, isnan, log2, nan, sqrt
from typing import NamedTuple

import numpy as np

Curve = Sequence[tuple[float, float]]

# 0.975 quantiles of Student's t by degrees of freedom; beyond the table the next smaller one: wider, not narrower
T_QUANTILES = {
    1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 6: 2.44691, 7: 2.36462, 8: 2.30600, 9: 2.26216,
    10: 2.22814, 11: 2.20099, 12: 2.17881, 13: 2.16037, 14: 2.14479, 15: 2.13145, 16: 2.11991, 17: 2.10982, 18: 2.10092,
    19: 2.09302, 20: 2.08596, 24: 2.06390, 30: 2.04227, 40: 2.02108, 60: 2.00030, 120: 1.97993,
}  # fmt: skip


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval; low and high are None where one seed gives none."""

    value: float
    low: float | None = None
    high: float | None = None


def exactly(value: float) -> Estimate:
    """A value that does not depend on chance."""
    return Estimate(value, value, value)


def mean_interval(values: Iterable[float]) -> Estimate:
    """The mean of independent values and its 95 % t-interval. NaN, without an interval, where any is not finite."""
    values = list(values)
    if not values or not all(map(isfinite, values)):
        return Estimate(nan)
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Estimate(mean)
    t = T_QUANTILES[max(freedom for freedom in T_QUANTILES if freedom <= count - 1)]
    half = t * float(np.std(values, ddof=1)) / sqrt(count)
    return Estimate(mean, mean - half, mean + half)


class Optimum(NamedTuple):
    """The lowest point of a curve."""

    x: float
    loss: float
    inside: bool  # whether a parabola could be laid through it; if not, it is the best point of the grid


def optimum(curve: Curve) -> Optimum:
    """The minimum by a parabola through the best point and its neighbours.

    At the edge of the grid, or beside a run that diverged, it is the best point itself: the true one may lie beyond.
    """
    points = sorted(curve)
    finite = [(loss, i) for i, (_, loss) in enumerate(points) if isfinite(loss)]
    if not finite:
        return Optimum(nan, nan, inside=False)
    best, i = min(finite)
    three = points[max(i - 1, 0) : i + 2]
    if len(three) < 3 or i == 0 or not all(isfinite(loss) for _, loss in three):
        return Optimum(points[i][0], best, inside=False)
    # Newton's form: loss = y0 + d01 (x - x0) + curvature (x - x0)(x - x1)
    (x0, y0), (x1, y1), (x2, y2) = three
    d01, d12 = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (d12 - d01) / (x2 - x0)
    if curvature <= 0:  # three equal losses
        return Optimum(x1, y1, inside=True)
    x = (x0 + x1) / 2 - d01 / (2 * curvature)
    return Optimum(x, y0 + d01 * (x - x0) + curvature * (x - x0) * (x - x1), inside=True)


def loss_at(curve: Curve, x: float) -> float:
    """The loss at `x` on the parabola through the three nearest points; NaN beyond the grid.

    Infinite where one of the points that x lies between diverged. Through two points it is a line.
    """
    points = sorted(curve)
    if isnan(x) or not points or not points[0][0] <= x <= points[-1][0]:
        return nan
    around = {max(p for p in points if p[0] <= x), min(p for p in points if p[0] >= x)}
    if any(not isfinite(loss) for _, loss in around):
        return inf
    three = sorted((p for p in points if isfinite(p[1])), key=lambda p: abs(p[0] - x))[:3]
    return sum(yi * float(np.prod([(x - xj) / (xi - xj) for xj, _ in three if xj != xi])) for xi, yi in three)


def transfer_regret(source: Curve, target: Curve) -> float:
    """Loss on `target` at the optimum of `source`, minus the best loss on `target`, in nats."""
    return loss_at(target, optimum(source).x) - optimum(target).loss


def basin(curve: Curve, rise: float = 0.02) -> tuple[float, float]:
    """The points left and right of the best where the loss is `rise` nats above it, on lines; NaN where none trained.

    A basin that reaches an edge of the grid is at least that wide.
    """
    points, best = sorted(curve), optimum(curve)
    if isnan(best.loss):
        return nan, nan
    limit, ends = best.loss + rise, []
    for side in ([p for p in points[::-1] if p[0] < best.x], [p for p in points if p[0] > best.x]):
        x, y = best.x, best.loss
        for x_next, y_next in side:
            if y_next > limit:
                x += (x_next - x) * (limit - y) / (y_next - y) if isfinite(y_next) else 0.0
                break
            x, y = x_next, y_next
        ends.append(x)
    return ends[0], ends[1]


def basin_width(curve: Curve, rise: float = 0.02) -> float:
    """Distance between the two ends of the basin."""
    left, right = basin(curve, rise)
    return right - left


def power_law(points: Sequence[tuple[float, float]], x: float, shrink: float | None = None) -> float:
    """The value at `x` of L + a x^-α, laid through (x, value) points by least squares.

    `shrink` is 2^-α: the share of the gain by one doubling of x that the next one brings. Where it is not given, which
    needs three points, the best from 0.1 to 0.98 is taken.
    """
    xs, ys = np.array(points, float).T
    fits = []
    for ratio in [shrink] if shrink else np.linspace(0.1, 0.98, 177).tolist():
        falls = np.stack([np.ones(len(xs) + 1), (np.append(xs, x) / xs[-1]) ** log2(ratio)], axis=1)
        coefficients = np.linalg.lstsq(falls[:-1], ys)[0]
        error = float(np.square(falls[:-1] @ coefficients - ys).sum())
        fits.append((error, float(falls[-1] @ coefficients)))
    return min(fits)[1]


def coupling(losses: np.ndarray) -> float:
    """The paper's measure of how two hyperparameters depend on each other (App. F.1), in nats; `losses` is (n, m).

    The increase in loss from taking the best column of another row instead of this row's own, and the same with rows
    and columns exchanged, averaged over all such pairs. It is 0 where the best of one is best whatever the other is.
    """
    pairs = ((grid, *pair) for grid in (losses, losses.T) for pair in permutations(range(len(grid)), 2))
    increases = [grid[i, np.argmin(grid[j])] - np.min(grid[i]) for grid, i, j in pairs]
    return float(np.mean(increases)) if increases else nan
