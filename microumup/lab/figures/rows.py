"""Numbers from the rows of a figure's CSV: losses, optima, and the mean of anything over seeds."""

from collections.abc import Callable
from functools import partial
from math import inf, log, log2, nan
from typing import Any, NamedTuple

from microumup.lab.statistics import Estimate, exactly, flat_minimum, mean_interval, optimum, transfer_regret

Row = dict[str, Any]
Rows = list[Row]


class Data(NamedTuple):
    """Contents of a figure's CSVs."""

    runs: Rows  # a row per run, and per part it has in the figure; where there are none, per measurement
    ranges: Rows  # a row per run, step and tensor, where the figure looks at tensors; else none


def where(rows: Rows, **wanted: Any) -> Rows:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def values(rows: Rows, column: str) -> list[Any]:
    """The values of a column, once each, in order."""
    return sorted({row[column] for row in rows})


def by_seed(rows: Rows) -> dict[int, Rows]:
    """The rows of each seed."""
    return {seed: where(rows, seed=seed) for seed in values(rows, "seed")}


def loss_of(row: Row) -> float:
    """The loss of a run; infinite if it diverged."""
    return inf if row["loss"] is None else float(row["loss"])


def finite_loss(row: Row) -> float:
    """The loss of a run; if it diverged that of guessing, which is less: for what is to be large, the careful side."""
    return log(row["vocab_size"]) if row["loss"] is None else float(row["loss"])


def or_nan(value: float | None) -> float:
    """A value for comparisons that nothing unknown passes."""
    return nan if value is None else value


def curve(rows: Rows, x: str = "lr") -> list[tuple[float, float]]:
    """The loss against log2 of the column `x`."""
    return sorted((log2(row[x]), loss_of(row)) for row in rows)


def over_seeds(measure: Callable[..., float], *groups: Rows) -> Estimate:
    """The mean over seeds, with its interval, of `measure` of a seed's rows in each group; of seeds that all have."""
    split = [by_seed(rows) for rows in groups]
    shared = set.intersection(*map(set, split)) if split else set()
    return mean_interval([measure(*(rows[seed] for rows in split)) for seed in sorted(shared)])


def place(rows: Rows, x: str = "lr") -> float:
    """The log2 of the column `x` where the loss is lowest; NaN when that may be beyond the grid."""
    best = optimum(curve(rows, x))
    return best.x if best.inside else nan


def flat_place(rows: Rows, x: str = "lr") -> float:
    """The same by a wider parabola, which chance moves less."""
    return flat_minimum(curve(rows, x)) if optimum(curve(rows, x)).inside else nan


def drift(narrow: Rows, wide: Rows, *, x: str = "lr", place: Callable[[Rows, str], float] = place) -> Estimate:
    """Distance by which the optimum moves, in octaves. `place` says where it is."""
    return over_seeds(lambda one, other: place(other, x) - place(one, x), narrow, wide)


flat_drift = partial(drift, place=flat_place)


def moves_more(one: tuple[Rows, Rows], other: tuple[Rows, Rows]) -> Estimate:
    """Octaves by which `one`'s optimum moves further than `other`'s, whatever the direction; each from and to rows."""

    def more(a: Rows, b: Rows, c: Rows, d: Rows) -> float:
        return abs(flat_place(b) - flat_place(a)) - abs(flat_place(d) - flat_place(c))

    return over_seeds(more, *one, *other)


def gap(one: Rows, other: Rows) -> Estimate:
    """The lowest loss of `other` minus that of `one`, in nats."""
    return over_seeds(lambda a, b: optimum(curve(b)).loss - optimum(curve(a)).loss, one, other)


def regret(narrow: Rows, wide: Rows, *, x: str = "lr") -> Estimate:
    """The cost at `wide` of the `x` that is best at `narrow`, in nats."""
    return over_seeds(lambda a, b: transfer_regret(curve(a, x), curve(b, x)), narrow, wide)


def largest(rows: Rows, off: Callable[[Row], float]) -> Estimate:
    """The largest of what is off, which no chance had a part in."""
    return exactly(max(map(off, rows))) if rows else mean_interval([])
