"""Where do the tensors lie in FP8's range, and what moves them? Figs. 3, 8 and 9."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import product
from math import log2, nan
from typing import Any

import numpy as np

from microumup.lab import pictures as pic
from microumup.lab.figures.figure import Figure, Known
from microumup.lab.figures.judging import REPORT, Claim, Criterion, claim
from microumup.lab.figures.look import GRAY, POINTS, STYLES, captioned, draw_seeds, panels, spelled, zoom
from microumup.lab.figures.rows import Data, Row, Rows, over_seeds, values, where
from microumup.lab.figures.settings import MUP_SMALL, NAMES, TABLE6_RANGES, UMUP, Run, Setting
from microumup.lab.scales import LINEAR_STYLES, draw_along, draw_limits
from microumup.lab.search import Record

LINES = (MUP_SMALL, UMUP)
TENSORS = {"x": "x, input", "w": "w, weight", "dy": "dy, gradient"}


def over_training(part: str, setting: Setting, known: Known) -> Iterator[Run]:
    """Runs of µP, and of u-µP from a part's seeds, with the ranges of every linear's x, w and dy along training."""
    for line in LINES:
        for seed in setting.seeds_for(part if line == UMUP else ""):
            yield setting.run(line, ranges=setting.ranges_every, width=setting.middle, seed=seed)


def log2_rms(rows: Rows) -> dict[str, float]:
    """Logarithm to base 2 of the RMS by tensor, of the rows of one step."""
    return {row["tensor"]: log2(row["rms"]) if row["rms"] else nan for row in rows}


# ---- Fig. 3: at the first step and at the last ----
INIT_LOW, INIT_HIGH, END_LOW, END_HIGH = Criterion(low=-1), Criterion(high=2), Criterion(low=-2), Criterion(high=5)


def fig3_claims(data: Data) -> Iterator[Claim]:
    """Judge the range of all tensors' RMS at the first step and at the last.

    q's and k's dy start lower by the paper's own rules, as attention is nearly uniform at init and hardly depends on
    its scores. They are held against nothing at init, but reported.
    """
    steps = values(data.ranges, "step")
    for line in (UMUP, MUP_SMALL):
        init, end = (where(data.ranges, line=line, step=step) for step in (steps[0], steps[-1]))
        of_scores = [row for row in init if row["tensor"].endswith((".q.dy", ".k.dy"))]
        others = [row for row in init if row not in of_scores]
        for rows, text, which, limit, paper in (
            (others, "smallest RMS at init, q's and k's dy aside", min, INIT_LOW, "near 0"),
            (others, "largest RMS at init", max, INIT_HIGH, "near 0"),
            (of_scores, "smallest RMS of q's and k's dy at init", min, REPORT, "near 0"),
            (end, "smallest RMS at the end", min, END_LOW, "in E4M3's range, -9 to 8.8"),
            (end, "largest RMS at the end", max, END_HIGH, "in E4M3's range, -9 to 8.8"),
        ):
            extreme = over_seeds(lambda rows, which=which: which(log2_rms(rows).values()), rows)
            asked = (limit, "octaves", paper) if line == UMUP else (REPORT, "octaves", "weights and gradients low")
            yield claim(f"{NAMES[line]}: log2 of the {text}", extreme, *asked)


def draw_fig3(data: Data) -> Any:
    """RMS of every tensor at init and at the end, of both schemes beside each other."""
    steps, seed = values(data.ranges, "step"), min(values(data.ranges, "seed"))
    figure, axes = panels(1, 2, 10, 4.8, sharey=True)
    for ax, step, words in zip(axes.flat, (steps[0], steps[-1]), ("at init", "after training"), strict=True):
        for (i, tensor), (j, line) in product(enumerate(TENSORS), enumerate(LINES)):
            rows = where(data.ranges, line=line, step=step, seed=seed)
            rms = [row["rms"] for row in rows if row["tensor"].endswith(f".{tensor}") and row["rms"]]
            spread = i - 0.18 + 0.36 * j + np.linspace(-0.12, 0.12, len(rms))
            ax.plot(spread, rms, **STYLES[line] | POINTS | {"markersize": 6, "markeredgewidth": 0.4})
        ax.set(title=words, xticks=range(3), xticklabels=TENSORS.values())
        draw_limits(ax, words=ax is axes[0, 1])
    axes[0, 0].set_ylabel("RMS")
    styles = {NAMES[line]: STYLES[line] | POINTS | {"markersize": 6} for line in LINES}
    return captioned(figure, f"a marker is a linear of a layer, of seed {seed}", styles)


# ---- Fig. 8: all along ----
GROWS_MOST = Criterion(low=0.0)


def growth(first: Rows, last: Rows, tensor: str) -> tuple[float, float]:
    """Growth of a tensor's RMS in octaves, and its lead over all others of its kind: over all x, or over all w."""
    before, after = log2_rms(first), log2_rms(last)
    grown = {name: after[name] - before[name] for name in before if name.endswith(tensor[-2:])}
    own = grown.pop(tensor)
    return own, own - max(grown.values())


def unbound_lead(first: Rows, last: Rows) -> float:
    """Growth of the least grown input of an o or down projection, less that of the most grown other input."""
    before, after = log2_rms(first), log2_rms(last)
    inputs = {name: after[name] - before[name] for name in before if name.endswith(".x")}
    unbound = {name for name in inputs if name.endswith((".o.x", ".down.x"))}  # no RMSNorm stands before these
    return min(inputs[name] for name in unbound) - max(inputs[name] for name in inputs.keys() - unbound)


def fig8_claims(data: Data) -> Iterator[Claim]:
    """Judge which of u-µP's weights and which of its inputs grows most.

    Gradients are left out: q's and k's dy grow more than anything else, as they start low and catch up.
    """
    steps = values(data.ranges, "step")
    ends = [where(data.ranges, line=UMUP, step=step) for step in (steps[0], steps[-1])]
    last_down = max(name for name in values(data.ranges, "tensor") if name.endswith("down.x"))
    for tensor, words in (("head.w", "weight"), (last_down, "input")):
        own, ahead = (over_seeds(lambda a, b, i=i, of=tensor: growth(a, b, of)[i], *ends) for i in (0, 1))
        yield claim(f"u-µP: {tensor} grows by", own, REPORT, "octaves", "grows")
        text = f"u-µP: {tensor} grows more than any other {words} by"
        yield claim(text, ahead, GROWS_MOST, "octaves", "grows most" if words == "weight" else "")
    text = "u-µP: the inputs of all o and down projections grow more than every other input by"
    yield claim(text, over_seeds(unbound_lead, *ends), GROWS_MOST, "octaves", "grow considerably")


def draw_fig8(data: Data) -> Any:
    """RMS of every tensor along training: µP above, u-µP below."""
    seed = min(values(data.ranges, "seed"))
    figure, axes = panels(2, 3, 11, 6.6, sharey=True, sharex=True)
    for row, line in zip(axes, LINES, strict=True):
        rms = defaultdict[int, dict[str, float | None]](dict)
        for r in where(data.ranges, line=line, seed=seed):
            rms[r["step"]][r["tensor"]] = r["rms"]
        for ax, tensor in zip(row, TENSORS, strict=True):
            draw_along(ax, rms, tensor, words=tensor == "dy")
        row[0].set_ylabel(f"{NAMES[line]}: RMS")
    for top, bottom, words in zip(*axes, TENSORS.values(), strict=True):
        top.set_title(words)
        bottom.set_xlabel("step")
    return captioned(figure, f"a line is a linear of a layer, of seed {seed}", LINEAR_STYLES, columns=8)


# ---- Fig. 9: what moves them ----
MOVES, HARDLY_MOVES = Criterion(low=1.0), Criterion(high=1.0)
SIZES = {"width": "widths", "layers": "depths", "steps": "steps", "batch_size": "batches"}  # and the setting's field
ENDS: dict[str, tuple[str, Row]] = {  # the column of a tensor, its name and its style
    "rms_head_w": ("head's weight", {"color": pic.BLUE, "marker": "o", "linestyle": "-", "markersize": 4}),
    "rms_down_x": ("last FFN-down input", {"color": pic.ORANGE, "marker": "s", "linestyle": "--", "markersize": 4}),
    "rms_down_dy": ("last FFN-down gradient", {"color": pic.GREEN, "marker": "^", "linestyle": ":", "markersize": 4}),
}


def fig9_recipe(setting: Setting, known: Known) -> Iterator[Run]:
    """Runs of u-µP in FP8, one thing varied at a time, with the ranges at the end."""
    axes = {"lr": [2.0**value for value in setting.grid(setting.log2_typical_lr[UMUP], 2)]}
    axes |= {name: getattr(setting, field) for name, field in SIZES.items()}
    axes |= {name: [2.0**v for v in setting.octaves(*ends)] for name, ends in TABLE6_RANGES[UMUP].items()}
    for axis, points in axes.items():
        for seed, value in product(setting.seeds_for(f"end {axis}", setting.ending_seeds), points):
            options = setting.usual | {"seed": seed, "fp8": "fp8", axis: value}
            yield setting.run(UMUP, role=axis, ranges=options["steps"], **options)


def ending_rms(record: Record) -> Row:
    """RMS at the last step of the three tensors that Fig. 9 follows."""
    last = f"layer{record['config']['layers'] - 1}.down"
    names = dict(zip(ENDS, ("head.w", f"{last}.x", f"{last}.dy"), strict=True))
    end = record["ranges"].get(str(record["config"]["steps"] - 1), {})  # none of a run that diverged
    return {column: end[name]["rms"] if end else None for column, name in names.items()}


def moved(rows: Rows) -> float:
    """The largest change of one of the three tensors' RMS over the rows, in octaves."""
    logs = [[log2(row[column]) for row in rows if row[column]] for column in ENDS]
    return max(max(each) - min(each) if each else nan for each in logs)


def by_axis(rows: Rows) -> dict[str, Rows]:
    """The rows in which each thing is varied."""
    return {axis: where(rows, axis=axis) for axis in dict.fromkeys(row["axis"] for row in rows)}


def fig9_claims(data: Data) -> Iterator[Claim]:
    """Judge how far each hyperparameter moves the RMS at the end of training."""
    for name, rows in by_axis(data.runs).items():
        criterion, paper = (MOVES, "moves it") if name == "lr" else (HARDLY_MOVES, "hardly moves it")
        ends = [f"{end:.3g}" if isinstance(end, float) else end for end in values(rows, name)]
        text = f"{name} from {ends[0]} to {ends[-1]} moves the end RMS of one of three tensors by up to"
        yield claim(text, over_seeds(moved, rows), criterion, "octaves", paper)


def draw_fig9(data: Data) -> Any:
    """Loss above, RMS at the end below, against each thing that is varied."""
    varied = by_axis(data.runs)
    figure, axes = panels(2, len(varied), 1.45 * len(varied), 5.2, "x", sharey="row", sharex="col")
    for (above, below), (name, rows) in zip(axes.T, varied.items(), strict=True):
        draw_seeds(above, rows, name, markersize=4, **STYLES[UMUP])
        xs = values(rows, name)
        for column, (_, style) in ENDS.items():
            logs = [[log2(row[column]) for row in where(rows, **{name: x}) if row[column]] for x in xs]
            below.plot(xs, [2 ** np.mean(each) if each else nan for each in logs], **style)
        others = [row for row in data.runs if row["axis"] != name]
        for ax in (above, below):
            ax.axvline(others[0][name], **GRAY)  # its default
        below.set_xlabel(spelled(name), fontsize=10)
        below.set_yscale("log", base=2)
    zoom(axes[:1], data.runs)
    axes[0, 0].set_ylabel("FP8 loss (nats)")
    axes[1, 0].set_ylabel("RMS at the end")
    text = "line: mean over seeds, of the RMS's logarithm below · band: lowest to highest seed · vertical: the default"
    return captioned(figure, text, dict(ENDS.values()))


FIGURES = [Figure(
    "fig3", "RMS of every linear's tensors", "u-µP's tensors start near RMS 1 and stay in E4M3's range",
    """Each point is the RMS of an input x, a weight w or a gradient dy of one linear; lines are the limits of
the FP8 formats. u-µP starts near 1 by construction. What has to be seen is that training does not move it out of
E4M3's range.""",
    fig3_claims, draw_fig3, partial(over_training, "ranges"), ("width", "lr", "seed"),
    steps=lambda record: list(record["ranges"])[:: max(1, len(record["ranges"]) - 1)],  # the first and the last
), Figure(
    "fig8", "RMS along training", "the head's weight and the inputs of the o and down projections grow most",
    """The tensors of Fig. 3 along training. Many inputs cannot grow, since an RMSNorm stands before them. The
paper names those that do: the decoder's weight, and the inputs of both blocks' final projections, o and down, in every
layer. That down's in the last layer grows most is more than it says.""",
    fig8_claims, draw_fig8, partial(over_training, "growth"), ("width", "lr", "seed"),
    steps=lambda record: list(record["ranges"]),
), Figure(
    "fig9", "What moves the RMS at the end of training",
    "only the learning rate moves the RMS at the end of training",
    """u-µP in FP8 with one thing varied at a time: the loss above, the end RMS of three tensors below; a
vertical line is the default. If only the learning rate moves them, a format that fits one model fits its relatives.
An octave or more counts as moved.""",
    fig9_claims, draw_fig9, fig9_recipe, ("lr", *SIZES, *TABLE6_RANGES[UMUP], "seed"), role="axis",
    measure=ending_rms,
)]  # fmt: skip
