"""Tune small, train large: the learning rate of a large run from a sweep of small ones, and the loss to expect.

The best η of the sweep is carried along every axis on which the large run differs, width, layers, steps and batch size,
by the drift that was measured there (`microumup figures fig1-left fig6`). Where the interval of a drift excludes 0, η
moves by it; where it does not, η stays, for what may be chance is no reason to move. Either way that interval goes into
η's. SP does not transfer; what is said of it is a prediction of its drift.

The loss is L + a width^-α, fitted to each seed's lowest losses at three widths or more. Two fix no α: theirs is taken
from committed runs, and there is no interval. One says nothing, nor does the loss go over other axes than width.
Ends with 1 where nothing that was measured supports a prediction, and says what to sweep.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import log2, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup import cli
from microumup.config import TrainConfig
from microumup.lab import pictures as pic
from microumup.lab.drifts import DRIFTS, SHRINK, Drifts, Move, NoEvidence, along, line_of, octaves, per_octave
from microumup.lab.figures import look
from microumup.lab.figures.rows import Row, Rows, by_seed, curve, values, where
from microumup.lab.figures.settings import LAPTOP, MUP, NAMES, SP
from microumup.lab.optima import Tuned, describe, interval, power, tuned
from microumup.lab.search import Record, show_value
from microumup.lab.statistics import Estimate, mean_interval, optimum, power_law
from microumup.lab.sweep import load_results, plain, varying
from microumup.limits import option_name
from microumup.older import ADDED, NEWER, without_retired

AXES = ("width", "layers", "steps", "batch_size")
ASIDE = (  # what else may move η, and was not varied along with the axes
    "seq_len", "head_dim", "vocab_size", "corpus", "text", "fp8", "weight_decay", "beta1", "beta2", "adam_eps", "clip",
)  # fmt: skip


class Transfer(NamedTuple):
    """A prediction for a large run; learning rates as log2."""

    source: TrainConfig  # the model that η comes from
    target: TrainConfig  # with its η
    models: dict[int, Tuned]  # by width, whatever of each
    moves: list[Move]
    eta: Estimate
    loss: Estimate | None  # None: not known
    how: str  # where the loss comes from, or why it is not known
    notes: list[str]

    @property
    def tuned(self) -> Tuned:
        """What was found at the width that η comes from."""
        return self.models[self.source.width]

    @property
    def differ(self) -> list[str]:
        """The axes on which the large run differs."""
        return [move.axis for move in self.moves]


# ---- The sweep ----
def read_run(record: Record) -> tuple[TrainConfig, Row]:
    """The config of a run, and what counts of it as a row of the figures."""
    options, loss = without_retired(record["config"]), record["loss"]
    try:
        if lacks := sorted({f.name for f in fields(TrainConfig)} - {*options, *ADDED, *NEWER}):
            raise TypeError(f"it lacks {lacks[0]}")
        if not (loss is None or isinstance(loss, float)):
            raise TypeError(f"a loss of {loss!r:.40}")
        config = TrainConfig(**options | {name: tuple(options.get(name, ())) for name in ("text", "valid")})
    except TypeError as error:
        raise ValueError(f"run {record['id']} is of another version ({error}); sweep again") from None
    return config, {"width": config.width, "lr": config.eta, "seed": config.seed, "loss": loss}


def read_sweep(path: Path) -> list[tuple[TrainConfig, Row]]:
    """The runs of a sweep over learning rates, and widths. Raises ValueError, saying what it is instead."""
    if not (path / "results").is_dir():
        raise ValueError(f"{path} holds no sweep; make one by microumup sweep --out {path}")
    runs = [read_run(record) for record in load_results(path).values()]
    if not runs:
        raise NoEvidence(f"{path}: no run is done yet; give the sweep's command again")
    configs = [plain(config) for config, _ in runs]
    if other := [name for name in varying(configs) if name not in ("lr", "width", "seed")]:
        found = ", ".join(sorted({show_value(config[other[0]]) for config in configs}))
        raise ValueError(f"{path}: its runs differ in {option_name(other[0])} too ({found}); sweep lr and width alone")
    return runs


# ---- The prediction ----
def total(parts: Sequence[Estimate]) -> Estimate:
    """The sum of independent estimates: the squares of their intervals' arms add up."""
    value = sum(part.value for part in parts)
    low = sqrt(sum((part.value - part.low) ** 2 for part in parts if part.low is not None))
    high = sqrt(sum((part.high - part.value) ** 2 for part in parts if part.high is not None))
    return Estimate(value, value - low, value + high)


def expected_loss(models: dict[int, Rows], width: int, shrink: float) -> tuple[Estimate | None, str]:
    """The lowest loss to expect at `width`, in nats, and how that is known; or why it is not.

    `models` are the rows of each width whose optimum can be gone by.
    """
    per_seed = {w: {s: optimum(curve(each)).loss for s, each in by_seed(rows).items()} for w, rows in models.items()}
    if width in per_seed:
        return mean_interval(per_seed[width].values()), "as measured there"
    widths = sorted(per_seed)
    shared = sorted(set.intersection(*map(set, per_seed.values())))
    if len(widths) < 2:
        return None, "one width says nothing of it; sweep three"
    if len(shared) < 2:
        return None, "its widths have not two seeds in common"
    means = [float(np.mean([per_seed[w][seed] for seed in shared])) for w in widths]
    if means != sorted(means, reverse=True):
        return None, "the lowest loss does not fall with the width"
    found = [
        power_law([(w, per_seed[w][s]) for w in widths], width, shrink if len(widths) == 2 else None) for s in shared
    ]
    names = ", ".join(map(str, widths))
    if len(widths) == 2:
        return Estimate(mean_interval(found).value), (
            f"by widths {names}, and by how losses of other runs fall; an interval needs three widths"
        )
    return mean_interval(found), f"a power law through widths {names}, for each seed"


def predict(
    runs: Sequence[tuple[TrainConfig, Row]],
    target: Mapping[str, Any],
    *,
    drifts: Drifts = DRIFTS,
    shrink: float = SHRINK,
) -> Transfer:
    """What a sweep says of a run that differs from its own in the sizes `target`.

    η comes from the width that is swept and nearest to the target's. Raises NoEvidence for a target that was not
    measured and for an optimum that one cannot go by, and ValueError for a config that no run can have.
    """
    rows = list({(c.width, c.lr, c.seed): row for c, row in runs}.values())  # a run is there twice if once with ranges
    goal = replace(runs[0][0], **target)  # raises for what no run can have
    by_width = {width: where(rows, width=width) for width in values(rows, "width")}
    models = {width: tuned(each) for width, each in by_width.items()}
    width = target.get("width", max(models))
    nearest = min(models, key=lambda swept: (abs(log2(width / swept)), -swept))
    source = next(config for config, _ in runs if config.width == nearest)
    goal = replace(goal, width=width)
    if models[nearest].problem:
        raise NoEvidence(f"width {nearest}: {models[nearest].problem}")
    if models[nearest].seeds < 2:
        raise NoEvidence(f"width {nearest}: one seed gives no interval; sweep again with --seeds 3, which adds to it")
    differ = {axis: (getattr(source, axis), getattr(goal, axis)) for axis in AXES}
    differ = {axis: ends for axis, ends in differ.items() if ends[0] != ends[1]}
    ways = [along(axis, *ends, line_of(source), drifts) for axis, ends in differ.items()]
    eta = total([models[nearest].eta, *(move.moved for move, _ in ways)])
    usable = {w: each for w, each in by_width.items() if not models[w].problem and models[w].seeds > 1}
    if others := [axis for axis in differ if axis != "width"]:
        loss, how = None, f"it is known over widths alone, not over {', '.join(others)}"
    else:
        loss, how = expected_loss(usable, goal.width, shrink)
    notes = [warning for _, warning in ways if warning]
    notes += [f"width {w} is left out: {models[w].problem or 'it has one seed'}" for w in models if w not in usable]
    if ways:
        notes += cautions(source, usable, [move for move, _ in ways])
    goal = replace(goal, lr=2.0**eta.value)
    return Transfer(source, goal, models, [move for move, _ in ways], eta, loss, how, notes)


def cautions(source: TrainConfig, usable: dict[int, Rows], moves: Sequence[Move]) -> list[str]:
    """In what this sweep differs from those that the drifts are of, and whether its own drift contradicts them."""
    notes = []
    if source.scheme == SP:
        notes.append("sp does not transfer: its optimum drifts, and this is a prediction of the drift")
    here, there = plain(source), plain(TrainConfig(**LAPTOP.usual))
    if names := [name for name in ASIDE if here[name] != there[name]]:
        these, those = (", ".join(f"{n} {show_value(c[n]) or 'none'}" for n in names) for c in (here, there))
        notes.append(f"the drifts were measured with {those}; this sweep has {these}")
    if len(usable) > 1:
        own = per_octave(usable[min(usable)], usable[max(usable)], "width")
        known = next((move.drift for move in moves if move.axis == "width"), own)
        if own.low > known.high or own.high < known.low:
            notes.append(f"the sweep's own drift over width, {octaves(own)}, contradicts the one that is used")
    return notes


# ---- What is said of it ----
def command(config: TrainConfig) -> str:
    """The command that trains `config`, with all options that are not the defaults; the seed is left to you."""
    words = ["microumup", "train", "--width", str(config.width), "--lr", f"{config.eta:.3g}"]
    for f in fields(TrainConfig):
        value = getattr(config, f.name)
        if value == f.default or f.name in ("width", "lr", "seed", "threads"):
            continue
        if isinstance(value, bool):
            words.append(option_name(f.name) if value else f"--no-{option_name(f.name)[2:]}")
        else:
            words += [option_name(f.name), *(map(str, value) if isinstance(value, tuple) else [f"{value}"])]
    return shlex.join(words)


def report(found: Transfer) -> str:
    """The prediction and its reasons, for people."""
    lines = [describe(found.tuned, f"{found.source.scheme}, width {found.source.width}")]
    for axis, start, end, known, moved in found.moves:
        does = f"η moves by {moved.value:+.2f} octaves" if moved.value else "η stays, for its drift may be 0"
        measured = f"{octaves(known)}, measured from {known.smallest} to {known.largest}"
        lines.append(f"{axis} {start} -> {end}: {does}: {measured}")
    lines.append(f"η to use: {found.target.eta:.3g} = {interval(found.eta, power)}")
    loss = "unknown" if not found.loss else interval(found.loss) if found.loss.low else f"{found.loss.value:.3f}"
    lines.append(f"loss to expect: {loss} ({found.how})")
    lines += [f"note: {note}" for note in found.notes]
    return "\n".join([*lines, "", command(found.target)])


def as_json(found: Transfer) -> dict[str, Any]:
    """The prediction, for programs; η in the dicts of Estimates as log2."""
    return {
        "scheme": found.source.scheme, "lr": found.target.eta, "log2_lr": found.eta, "loss": found.loss,
        "loss_how": found.how, "optimum": found.tuned, "source": {axis: getattr(found.source, axis) for axis in AXES},
        "target": {axis: getattr(found.target, axis) for axis in AXES}, "moves": found.moves, "notes": found.notes,
        "command": command(found.target),
    }  # fmt: skip


def draw(found: Transfer, rows: Rows) -> Any:
    """Losses over η, a curve per width swept, and the basin of the one η comes from; η and loss of the large run."""
    scheme, source, goal = found.source.scheme, found.source, found.target
    figure, axes = look.panels(1, 1, 7.5, 5.2, "x")
    ax = axes[0, 0]
    rows = [row | {"line": scheme if scheme in look.STYLES else MUP} for row in rows]
    look.sweeps(ax, rows, rows[0]["line"], "width", "lr")
    look.zoom(axes, rows, room=0.3)
    ax.axvspan(*(2.0**x for x in found.tuned.basin), color="0.93", zorder=0)
    ax.axvline(goal.eta, color="black", ymax=0.86, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1)
    if found.loss:
        arms = [[abs(end - found.loss.value)] for end in found.loss[1:] if end is not None] or None
        reach = [[abs(2.0**end - goal.eta)] for end in found.eta[1:] if end is not None]
        star: Any = look.POINTS | {"marker": "*", "markersize": 15, "color": pic.ORANGE, "ecolor": "black", "zorder": 4}
        ax.errorbar(goal.eta, found.loss.value, arms, reach, capsize=4, elinewidth=1.2, **star)
        ax.set_ylim(min(ax.get_ylim()[0], found.loss.value - 0.05, (found.loss.low or np.inf) - 0.02))
    run = ", ".join(f"{axis.replace('_', ' ')} {getattr(goal, axis)}" for axis in found.differ) or "the same"
    point = "star: η and loss of the large run, bars: 95 % intervals" if found.loss else "dotted: η of the large run"
    text = f"{look.SWEEPS} · gray: within 0.02 nats of the lowest at width {source.width} · {point}"
    ax.set(xlabel=look.LR, ylabel=look.NATS)
    name = NAMES.get(scheme, scheme)
    look.entitle(figure, f"{name}: from width {source.width} to {run}, η = {goal.eta:.3g}")
    return look.captioned(figure, text, {})


def main(argv: list[str] | None = None) -> int:
    """The command `transfer`."""
    parser = cli.Parser(
        "transfer", __doc__ or "", operands="SWEEP_DIR",
        examples="  microumup sweep --grid lr=2^-1:2^2:2^0.5 --grid width=32,64 --seeds 3 --out runs/small\n"
        "  microumup transfer runs/small --width 256\n"
        "  microumup transfer runs/small --width 128 --steps 2000 --plot runs/transfer.png",
    )  # fmt: skip
    parser.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR", help="what sweep --out named")
    for axis in AXES:
        text = f"of the large run (default: {'the widest swept' if axis == 'width' else 'as in the sweep'})"
        parser.add_argument(option_name(axis), type=cli.whole, metavar="N", help=text)
    cli.shared(parser, "plot", "quiet", json="the prediction; η as log2, with intervals")
    args = parser.parse_args(argv)
    try:
        with cli.bad_input(parser):
            runs = read_sweep(args.sweep_dir)
            found = predict(runs, {axis: size for axis in AXES if (size := getattr(args, axis)) is not None})
            if args.plot:
                pic.save(draw(found, [row for _, row in runs]), args.plot)
    except NoEvidence as error:
        parser.complain(str(error))
        return 1
    cli.say(args.quiet)(report(found))
    cli.json_line(args, as_json(found))
    return 0
