"""Does a model train when every linear's operands are cast to FP8, and nothing is scaled? Figs. 1 (right) and 7."""

from collections.abc import Iterator
from itertools import product
from math import isfinite, log
from typing import Any, NamedTuple

from microumup.lab.figures.figure import Figure, Known
from microumup.lab.figures.judging import REPORT, Claim, Criterion, claim
from microumup.lab.figures.look import GRAY, NATS, POINTS, STYLES, captioned, panels
from microumup.lab.figures.rows import Data, Row, Rows, by_seed, finite_loss, loss_of, or_nan, over_seeds, values, where
from microumup.lab.figures.settings import MUP_SMALL, UMUP, Options, Run, Setting
from microumup.lab.search import Record
from microumup.lab.statistics import Estimate

UMUP_TRAINS, UMUP_TRAINS_LONG, MUP_FAILS = Criterion(high=0.06), Criterion(high=0.04), Criterion(low=1.0)
DOES_NOT_TRAIN = Criterion(low=UMUP_TRAINS.high)  # more than what still counts as training
MUP_FLUSHES, UMUP_FLUSHES_LITTLE = Criterion(low=0.99), Criterion(high=0.03)
LONG_WIDTH = 64  # at the full number of steps and this width less is allowed


class Experiment(NamedTuple):
    """A line in FP8, to be compared with the same in float32."""

    name: str
    line: str
    fp8: str
    summed: bool = False  # the loss over the batch, instead of averaged


PLAIN = [Experiment("u-µP", UMUP, "fp8"), Experiment("µP", MUP_SMALL, "fp8")]
E4M3_ONLY = Experiment("u-µP, all in E4M3", UMUP, "fp8,o.x=e4m3,down.x=e4m3")
E5M2_GRADIENTS = Experiment("µP, gradients in E5M2", MUP_SMALL, "fp8,all.dy=e5m2")
SUMMED = Experiment("µP, loss summed", MUP_SMALL, "fp8", summed=True)
SHOWN = (PLAIN[0], E4M3_ONLY, PLAIN[1], E5M2_GRADIENTS, SUMMED)  # in Fig. 7, from top to bottom


def pairs(rows: Rows, experiment: Experiment) -> list[tuple[Row, Row]]:
    """The run in float32 and the one in FP8, seed by seed."""
    rows = where(rows, line=experiment.line)
    rows = [row for row in rows if (row.get("loss_scale", 1.0) != 1.0) == experiment.summed]
    plain, cast = (by_seed(where(rows, fp8=fp8)) for fp8 in ("none", experiment.fp8))
    return [(plain[seed][0], cast[seed][0]) for seed in sorted(plain.keys() & cast.keys())]


def cast_gap(rows: Rows, experiment: Experiment) -> Estimate:
    """Loss in FP8 minus loss in float32, in nats. NaN where float32 diverged."""
    both = map(list, zip(*pairs(rows, experiment), strict=True))
    return over_seeds(lambda plain, cast: finite_loss(cast[0]) - loss_of(plain[0]), *both)


def show_gap(gap: float) -> str:
    """A gap in nats; one that ruins a model without decimals, as it varies by nats from machine to machine."""
    return f"{gap:+.3f}" if gap < MUP_FAILS.low or not isfinite(gap) else f"about {gap:+.0f}"


def flushed(record: Record) -> Row:
    """The share of all elements of all dy that a cast to FP8 would turn into zeros before the first step."""
    dy = [r for name, r in record["ranges"].get("0", {}).items() if name.endswith(".dy")]
    total = sum(r["size"] for r in dy)
    return {"flushed": round(sum(r["underflow"] * r["size"] for r in dy) / total, 6) if total else None}


def with_casts(setting: Setting, width: int, steps: int) -> Iterator[Run]:
    """µP and u-µP from every seed, in float32 and in FP8, with the ranges before the first step and at the last."""
    for line, seed, fp8 in product((MUP_SMALL, UMUP), setting.seeds_for("casts"), ("none", "fp8")):
        yield setting.run(line, ranges=steps, width=width, steps=steps, seed=seed, fp8=fp8)


def casts(data: Data) -> Iterator[Claim]:
    """Judge what FP8 costs each scheme, at each width and number of steps, and what it zeroes before the first."""
    runs, longest = data.runs, max(values(data.runs, "steps"))
    for width, steps in sorted({(row["width"], row["steps"]) for row in runs}):
        here = where(runs, width=width, steps=steps)
        umup = UMUP_TRAINS_LONG if width == LONG_WIDTH and steps == longest else UMUP_TRAINS
        asked = ((umup, "close to 0"), (MUP_FAILS, "fails to train"))
        for experiment, (criterion, paper) in zip(PLAIN, asked, strict=True):
            text = f"{experiment.name}: FP8's loss is above float32's at width {width}, {steps} steps, by"
            yield claim(text, cast_gap(here, experiment), criterion, paper=paper)
    for experiment, criterion in zip(PLAIN, (UMUP_FLUSHES_LITTLE, MUP_FLUSHES), strict=True):
        for width in values(runs, "width"):
            plain = [one for one, _ in pairs(where(runs, width=width, steps=longest), experiment)]
            share = over_seeds(lambda rows: or_nan(rows[0]["flushed"]), plain)
            text = f"{experiment.name}: share of all dy that E4M3 turns into zeros at init, width {width}"
            yield claim(text, share, criterion, "")


def draw_fig1_right(data: Data) -> Any:
    """Draw the final losses in float32 and in FP8, seed by seed."""
    figure, axes = panels(1, 1, 6, 4.4)
    ax, above = axes[0, 0], {"textcoords": "offset points", "xytext": (0, 9), "ha": "center"}
    for i, experiment in enumerate(PLAIN):
        rows = pairs(data.runs, experiment)
        for pair in rows:
            points = [(2 * i + j, finite_loss(row)) for j, row in enumerate(pair)]
            ax.plot(*zip(*points, strict=True), **POINTS | STYLES[experiment.line], linewidth=1)
            for point in (point for row, point in zip(pair, points, strict=True) if row["loss"] is None):
                ax.annotate("diverged", point, **above)
        gap, top = cast_gap(data.runs, experiment).value, max(finite_loss(cast) for _, cast in rows)
        ax.annotate(show_gap(gap) if isfinite(gap) else "", (2 * i + 1, top), fontweight="bold", **above)
    guess = log(data.runs[0]["vocab_size"])
    ax.axhline(guess, linestyle=(0, (1, 3)), **GRAY)
    ax.text(-0.35, guess, "guessing", color="dimgray", va="bottom", fontsize=9)
    ax.set_xticks(range(4), [f"{experiment.name}\n{cast}" for experiment in PLAIN for cast in ("float32", "FP8")])
    ax.margins(y=0.12)
    ax.set(xlim=(-0.4, 3.4), ylim=(0, None), ylabel=NATS)
    return captioned(figure, "a line is a seed, in float32 and in FP8 · number: what FP8 costs on average", {})


def fig7_recipe(setting: Setting, known: Known) -> Iterator[Run]:
    """Runs at all widths and both lengths; and, at full length, of what saves µP and what does not."""
    steps, summed = setting.usual["steps"], float(setting.usual["batch_size"] * setting.usual["seq_len"])
    for width, length in product(setting.fp8_widths, (steps, setting.short_steps)):
        yield from with_casts(setting, width, length)
    asked = ((SUMMED, "none"), (SUMMED, "fp8"), (E5M2_GRADIENTS, E5M2_GRADIENTS.fp8), (E4M3_ONLY, E4M3_ONLY.fp8))
    for width, seed, (experiment, fp8) in product(setting.fp8_widths, range(setting.seeds), asked):
        scaled: Options = {"loss_scale": summed} if experiment.summed else {}
        yield setting.run(experiment.line, ranges=steps, width=width, seed=seed, fp8=fp8, **scaled)


def fig7_claims(data: Data) -> Iterator[Claim]:
    """Judge the plain casts, and the other experiments at full length."""
    yield from casts(data)
    longest = max(values(data.runs, "steps"))
    for experiment, text, criterion in (
        (SUMMED, "µP with the loss summed instead of averaged: FP8's loss", UMUP_TRAINS),
        (E5M2_GRADIENTS, "µP with gradients in E5M2: the loss", DOES_NOT_TRAIN),
        (E4M3_ONLY, "u-µP with all in E4M3: the loss", REPORT),
    ):
        for width in values(data.runs, "width"):
            cost = cast_gap(where(data.runs, width=width, steps=longest), experiment)
            yield claim(f"{text} is above float32's at width {width} by", cost, criterion)


def draw_fig7(data: Data) -> Any:
    """Draw what FP8 costs, by experiment, width and number of steps."""
    widths, lengths = values(data.runs, "width"), values(data.runs, "steps")
    fills = ("none", "full")[-len(lengths) :]
    figure, axes = panels(1, len(widths), 4.6 * len(widths) + 1, 3.8, sharey=True, sharex=True)
    for ax, width in zip(axes.flat, widths, strict=True):
        for (i, experiment), (steps, fill) in product(enumerate(SHOWN), zip(lengths, fills, strict=True)):
            found = pairs(where(data.runs, width=width, steps=steps), experiment)
            costs = [finite_loss(cast) - finite_loss(plain) for plain, cast in found]
            style = STYLES[experiment.line] | {"linestyle": "none", "fillstyle": fill, "markersize": 8}
            ax.plot(costs, [i + (0.15 if fill == "none" else -0.15)] * len(costs), **style)
        ax.axvline(0, color="black", linewidth=1)
        for limit in (UMUP_TRAINS.high, MUP_FAILS.low):
            ax.axvline(limit, **GRAY | {"linestyle": (0, (1, 3))})
            ax.annotate(f"{limit:g} ", (limit, 1), xycoords=("data", "axes fraction"), color="dimgray", fontsize=8,
                        ha="right", va="top")  # fmt: skip
        ax.set_xscale("symlog", linthresh=0.1)
        ax.set(title=f"width {width}", xlabel="FP8's loss minus float32's (nats)")
    axes[0, 0].set_yticks(range(len(SHOWN)), [experiment.name for experiment in SHOWN])
    axes[0, 0].set_ylim(len(SHOWN) - 0.5, -0.7)
    text = "a marker is a seed · dotted: up to the first u-µP still trains, from the second on µP does not"
    black = {"marker": "o", "color": "black", "linestyle": "none"}
    styles = {f"{n} steps": black | {"fillstyle": fill} for n, fill in zip(lengths, fills, strict=True)}
    return captioned(figure, text, styles)


FIG1_RIGHT = Figure(
    "fig1-right", "FP8 by a plain cast", "u-µP trains in FP8 by a plain cast, µP does not",
    """The same runs in float32 and with every linear's three operands rounded to FP8, nothing scaled. A
line is a seed. u-µP's tensors start where FP8 has its numbers. µP's gradients start below the smallest of them, and
what is below becomes zero: the last rows say how much of them.""",
    casts, draw_fig1_right, lambda setting, known: with_casts(setting, setting.fp8_widths[-1], setting.usual["steps"]),
    ("width", "steps", "fp8", "seed", "vocab_size"), measure=flushed,
)  # fmt: skip
FIG7 = Figure(
    "fig7", "What FP8 costs", "u-µP trains in FP8; µP only if its gradients are scaled up",
    """Why µP fails, shown by mending it. Summing the loss over the batch instead of averaging multiplies all
gradients by the number of tokens; Adam does not see it, but FP8 does. The other rows ask whether more range for the
gradients alone, E5M2, would do, and whether u-µP needs the exception that the paper makes, E5M2 for two inputs.""",
    fig7_claims, draw_fig7, fig7_recipe, ("width", "steps", "fp8", "loss_scale", "seed", "vocab_size"), measure=flushed,
)  # fmt: skip
FIGURES = (FIG1_RIGHT, FIG7)
