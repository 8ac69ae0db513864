"""Searches, and tables of what they found: grids, random points, and the paper's independent search."""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import product
from math import exp, inf, log, prod
from typing import Any, NamedTuple

import numpy as np

from microumup import cli
from microumup.config import TrainConfig
from microumup.lab.tables import text_table
from microumup.limits import option_name
from microumup.parametrization import ALIASES

Axis = tuple[str, list[Any]]  # an option and its values
Record = dict[str, Any]  # what is kept of a run: see `sweep.run`

OPTIONS = {f.name: f.type for f in fields(TrainConfig)}
NUMBERS = (int, float, float | None)
MOST = 1_000_000  # runs of a sweep, each of which is a config in memory


def parse_grid(text: str) -> Axis:
    """`OPTION=VALUES` as a field of TrainConfig and its values. Raises ValueError, naming --grid.

    VALUES are a list, `32,64,128`; a geometric range from:to:factor, `2^-2:2^3:2^0.5`; or an arithmetic one, `1:4:+1`.
    In a whole-numbered option's range all is rounded. In a list for fp8 what holds a `=` belongs to the value before.
    """
    option, _, spec = (part.strip() for part in text.partition("="))
    name = option.removeprefix("--").replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in OPTIONS:
        raise ValueError(f"--grid {text}: {option!r} is no option of train; write OPTION=VALUES, as width=32,64,128")
    if not spec:
        raise ValueError(f"--grid {text}: names no values; write 32,64,128 or from:to:factor or from:to:+step")
    read = _range if ":" in spec and OPTIONS[name] in NUMBERS else _list
    try:
        return name, read(name, spec.replace("**", "^"))
    except (ValueError, OverflowError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"--grid {text}: {error}") from None


def _list(name: str, spec: str) -> list[Any]:
    if name == "fp8":  # a recipe may have commas of its own: fp8,head.dy=e4m3
        return re.split(r",(?![^,]*=)", spec)
    words = [word.strip() for word in spec.split(",")]
    if OPTIONS[name] is bool:
        if wrong := set(words) - {"on", "off"}:
            raise ValueError(f"{min(wrong)!r} is neither on nor off")
        return [word == "on" for word in words]
    kind: Callable[[str], Any] = cli.whole if OPTIONS[name] is int else str if OPTIONS[name] is str else cli.number
    return [(cli.absolute(word),) if name == "text" else kind(word) for word in words]


def _range(name: str, spec: str) -> list[Any]:
    words = spec.split(":")
    if len(words) != 3:
        raise ValueError("write a range as from:to:factor or from:to:+step")
    low, high, by = map(cli.number, words)
    if words[2].startswith("+"):
        steps = (high - low) / by if by else inf
    else:
        steps = log(high / low) / log(by) if min(low, high, by) > 0 and by != 1 else inf
    if not 0 <= steps < 10_000:
        raise ValueError(f"no steps of {words[2]} lead from {words[0]} to {words[1]}")
    count = range(int(steps + 1e-9) + 1)
    if words[2].startswith("+"):
        values = [low + i * by for i in count]
    else:  # 2^-2 2^0.5 2^0.5 is not 2^-1 to the last bit, 2^(-2 + 0.5 + 0.5) is
        (base, _, power), (first, _, start) = words[2].partition("^"), words[0].partition("^")
        exact = power and start and first == base
        scale, exponent = (1.0, float(start)) if exact else (low, 0.0)
        values = [scale * float(base) ** (exponent + i * float(power or 1)) for i in count]
    return list(dict.fromkeys(map(round, values))) if OPTIONS[name] is int else values


def grid(base: dict[str, Any], axes: Sequence[Axis], seeds: int) -> list[TrainConfig]:
    """Every combination of the axes' values on top of `base`, the first axis the slowest, each from `seeds` seeds.

    Raises ValueError for a combination that TrainConfig refuses.
    """
    if (runs := prod(len(values) for _, values in axes) * seeds) > MOST:
        raise ValueError(f"--grid: {runs:,} runs are more than {MOST:,}; name fewer values, or take --random")
    points = product(*([(name, value) for value in values] for name, values in axes))
    return [config for point in points for config in with_seeds(base | dict(point), seeds)]


def with_seeds(options: dict[str, Any], seeds: int) -> list[TrainConfig]:
    """A config for each of `seeds` seeds, from the seed in `options` on, or 0."""
    first = options.get("seed", 0)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return [TrainConfig(**options | {"seed": first + i}) for i in range(seeds)]


def draw(grids: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Random points, always the same and the first of a longer draw: log-uniform where the axis is a geometric range,
    uniform where it is an arithmetic one or a list."""
    if count > MOST:
        raise ValueError(f"--random: {count:,} points are more than {MOST:,}; take fewer")
    rng, axes = np.random.default_rng(0), [(text, *parse_grid(text)) for text in grids]

    def one(text: str, name: str, values: list[Any]) -> Any:
        if ":" not in text or OPTIONS[name] not in NUMBERS:
            return values[rng.integers(len(values))]
        low, high = sorted((values[0], values[-1]))
        geometric = not text.rpartition(":")[2].startswith("+")
        value = exp(rng.uniform(log(low), log(high))) if geometric else rng.uniform(low, high)
        return round(value) if OPTIONS[name] is int else float(f"{value:.4g}")

    return [{name: one(text, name, values) for text, name, values in axes} for _ in range(count)]


class Point(NamedTuple):
    """Runs that differ in the seed alone."""

    values: dict[str, Any]  # what was swept, but for the seed
    losses: list[float | None]  # None: diverged

    @property
    def loss(self) -> float:
        """Mean over the seeds, infinite if one diverged."""
        return inf if None in self.losses else sum(loss for loss in self.losses if loss is not None) / len(self.losses)


def ranked(records: Sequence[Record], names: Sequence[str]) -> list[Point]:
    """The points of the options `names`, best first."""
    points: dict[str, Point] = {}
    for record in {record["id"]: record for record in records}.values():
        values = {name: record["config"][name] for name in names}
        points.setdefault(json.dumps(values), Point(values, [])).losses.append(record["loss"])
    return sorted(points.values(), key=lambda point: point.loss)


Stage = tuple[str, Point]  # of an independent search: the axis, and the best of it


def independent(
    base: dict[str, Any], axes: Sequence[Axis], seeds: int, train_all: Callable[[list[TrainConfig]], list[Record]]
) -> list[Stage]:
    """The paper's independent search (App. F.1): what was tried at each stage, and the best of it.

    The axis lr with all else at its default; each other axis alone at the best lr; all best values combined, at that lr
    and the two next to it on the axis. Ends after the first stage if no lr trains.
    """
    by_name = dict(axes)
    lrs = sorted(by_name.pop("lr"))
    best = ranked(train_all(grid(base, [("lr", lrs)], seeds)), ["lr"])[0]
    found = [("lr", best)]
    if best.loss == inf:
        return found
    at_best = base | best.values
    lines = {name: grid(at_best, [(name, values)], seeds) for name, values in by_name.items()}
    records = train_all([config for configs in lines.values() for config in configs])
    for name, configs in lines.items():
        mine, records = records[: len(configs)], records[len(configs) :]
        found.append((name, ranked(mine, [name])[0]))
    combined = at_best | {name: value for _, point in found for name, value in point.values.items()}
    first = max(0, min(lrs.index(at_best["lr"]) - 1, len(lrs) - 3))
    around = ("lr", lrs[first : first + 3])
    points = ranked(train_all(grid(combined, [around], seeds)), [*by_name, "lr"])
    [same] = [point for point in points if point.values["lr"] == at_best["lr"]]
    return [*found, ("combined", same), ("combined, lr again", points[0])]


def show_value(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.4g}" if isinstance(value, float) else " ".join(value) if isinstance(value, list) else str(value)


def show_loss(point: Point) -> str:
    """The mean loss, and how far the seeds lie apart; or how many of them diverged."""
    if diverged := point.losses.count(None):
        return f"diverged ({diverged} of {len(point.losses)})"
    losses = [loss for loss in point.losses if loss is not None]
    return f"{point.loss:.4f}" + (f" ({min(losses):.4f} to {max(losses):.4f})" if len(losses) > 1 else "")


def summary(points: Sequence[Point], shown: int = 10) -> str:
    """The best points, and for each value of each option the best point that has it."""
    names = list(points[0].values)
    rows = [[*names, "loss"], *([*map(show_value, p.values.values()), show_loss(p)] for p in points[:shown])]
    some = f" ({shown} of them)" if len(points) > shown else ""
    text = [f"{len(points)} points, best first{some}:", text_table(rows)]
    for name in names if len(names) > 1 else ():
        best: dict[str, Point] = {}
        for point in points:
            best.setdefault(show_value(point.values[name]), point)
        if len(best) == len(points):
            continue  # drawn at random: each value is there once
        others = [other for other in names if other != name]
        rows = [[name, *others, "best loss"]]
        rows += [[v, *(show_value(p.values[other]) for other in others), show_loss(p)] for v, p in best.items()]
        text += ["", f"the best of each {option_name(name)}:", text_table(rows)]
    return "\n".join(text)


def account(stages: Sequence[Stage]) -> str:
    """The best of each stage of an independent search."""
    rows = [["search", "best", "loss"]]
    for stage, point in stages:
        values = ", ".join(f"{name} {show_value(value)}" for name, value in point.values.items())
        rows.append([stage, values, show_loss(point)])
    return text_table(rows)


def as_json(point: Point) -> dict[str, Any]:
    """The values of a point, its mean loss and the losses it is the mean of; None: diverged."""
    return {"values": point.values, "loss": point.loss, "losses": point.losses}
