"""What a sweep of learning rates found: the best η of a model, how sure it is, its basin, and what more to sweep.

Learning rates are exponents of 2 here, losses nats. Rows are dicts with lr, seed and loss, None if the run diverged.
"""

from math import inf, isfinite, log2
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup.lab.figures.rows import Row, Rows, by_seed, curve, loss_of, values
from microumup.lab.search import Record, show_value
from microumup.lab.statistics import Estimate, basin, mean_interval, optimum


class Tuned(NamedTuple):
    """The best learning rate of one model."""

    eta: Estimate  # log2 of it: the mean over seeds of their optima, by a parabola each; NaN if one has none
    loss: Estimate  # there
    basin: tuple[float, float]  # from and to which log2 η the mean loss is at most 0.02 nats above the lowest
    seeds: int
    problem: str  # why one cannot go by it, and the mend; "" where one can


def power(log2_eta: float) -> str:
    """A learning rate as one types it: `2^0.45`."""
    return f"2^{round(log2_eta, 2) + 0:g}"


def interval(estimate: Estimate, form: Any = "{:.3f}".format) -> str:
    """An estimate with its interval, each number by `form`."""
    if estimate.low is None or estimate.high is None:
        return f"{form(estimate.value)} (one seed, no interval)"
    return f"{form(estimate.value)} [{form(estimate.low)}, {form(estimate.high)}]"


def tuned(rows: Rows) -> Tuned:
    """The best learning rate of runs that differ in nothing but the learning rate and the seed."""
    curves = [curve(each) for each in by_seed(rows).values()]
    best = [optimum(each) for each in curves]
    losses = {log2(lr): [loss_of(row) for row in rows if row["lr"] == lr] for lr in values(rows, "lr")}
    trained = {x: [loss for loss in each if isfinite(loss)] for x, each in losses.items()}
    ends = basin([(x, float(np.mean(each)) if each else inf) for x, each in trained.items()])
    inside = all(each.inside for each in best)
    eta = mean_interval([each.x if each.inside else inf for each in best])
    problem = _gap(rows) or ("" if inside else _edge(rows))
    if not problem and (wild := [row for row in rows if row["loss"] is None and _within(row, ends)]):
        which = f"lr {power(log2(wild[0]['lr']))}, seed {wild[0]['seed']}"
        problem = f"a run within the basin diverged ({which}): no η near it is safe; try a longer --warmup"
    return Tuned(eta, mean_interval([each.loss for each in best]), ends, len(curves), problem)


def _within(row: Row, ends: tuple[float, float]) -> bool:
    return ends[0] <= log2(row["lr"]) <= ends[1]


def _gap(rows: Rows) -> str:
    """Which runs are not there."""
    lrs, seeds = values(rows, "lr"), values(rows, "seed")
    there = {(row["lr"], row["seed"]) for row in rows}
    if missing := [(lr, seed) for lr in lrs for seed in seeds if (lr, seed) not in there]:
        (lr, seed), all_ = missing[0], len(lrs) * len(seeds)
        first = f"lr {power(log2(lr))}, seed {seed}, is the first of {len(missing)} missing among {all_}"
        return f"the sweep is unfinished ({first}); give its command again"
    return ""


def _edge(rows: Rows) -> str:
    """Why a seed has no optimum, and which learning rates to add."""
    xs = [log2(lr) for lr in values(rows, "lr")]
    step = min(np.diff(xs), default=1.0)
    bests = {seed: optimum(curve(each)) for seed, each in by_seed(rows).items()}
    if not any(isfinite(best.loss) for best in bests.values()):
        return f"no run trained; add lower learning rates, as --grid lr={power(xs[0] - 2)},{power(xs[0] - 1)}"
    seed, x = next((seed, best.x) for seed, best in bests.items() if not best.inside)
    if not isfinite(x):
        return f"no run of seed {seed} trained; take another seed"
    why = {xs[-1]: "is the largest swept", xs[0]: "is the smallest swept"}.get(x, "lies beside a run that diverged")
    more = {xs[-1]: (x + step, x + 2 * step), xs[0]: (x - 2 * step, x - step)}.get(x, (x - step / 2, x + step / 2))
    return f"the best of seed {seed}, {power(x)}, {why}: add --grid lr={','.join(map(power, more))}"


def describe(found: Tuned, name: str = "") -> str:
    """The optimum in a line, or why there is none."""
    if isfinite(found.eta.value):
        text = f"best η {interval(found.eta, power)}, loss {interval(found.loss)}; "
        text += f"within 0.02 nats of it from {power(found.basin[0])} to {power(found.basin[1])}"
    else:
        text = "no optimum"
    return f"{name}{': ' * bool(name)}{text}{f'; but {found.problem}' * bool(found.problem)}"


def ending(records: list[Record], names: list[str], out: Path) -> tuple[list[str], list[Row]]:
    """Lines with the optimum of every model of a grid over lr, and how to go on; the same for JSON.

    `names` are the options that were swept, lr among them. Nothing for fewer than three learning rates.
    """
    others = [name for name in names if name != "lr"]
    models: dict[str, Rows] = {}
    for record in records:
        config = record["config"]
        name = ", ".join(f"{option} {show_value(config[option])}" for option in others)
        models.setdefault(name, []).append({"lr": config["lr"], "seed": config["seed"], "loss": record["loss"]})
    found = {name: tuned(rows) for name, rows in models.items() if len(values(rows, "lr")) > 2}
    lines = [describe(each, name) for name, each in found.items()]
    if found and set(others) <= {"width"}:
        widest = max(record["config"]["width"] for record in records)
        seeds = "" if max(each.seeds for each in found.values()) > 1 else "; it needs two seeds or more, as --seeds 3"
        lines.append(f"go on with: microumup transfer {out} --width {2 * widest}{seeds}")
    return lines, [{"model": name, **each._asdict()} for name, each in found.items()]
