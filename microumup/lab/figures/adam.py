"""From which ε on does Adam feel it? A figure of our own: the paper says why ε need not be tuned, and shows no run.

Adam divides by √v̂ + ε, so ε counts from where it is no longer small against the gradients. Those of a stored weight
are g = c_W A g_eff (App. A.4): the gradient by the effective weight A·w, which schemes that train alike have in common,
times two constants that are known before any run. u-µP chooses them so that g is of the size 1.
"""

from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from math import inf, isfinite, log10, nan
from typing import Any

import numpy as np

from microumup.config import ModelConfig
from microumup.lab.figures.figure import Figure, Known
from microumup.lab.figures.judging import REPORT, Claim, Criterion, claim
from microumup.lab.figures.look import GRAY, NATS, POINTS, STYLES, captioned, draw_seeds, panels, sizes_style, zoom
from microumup.lab.figures.rows import Data, Row, Rows, by_seed, loss_of, over_seeds, values, where
from microumup.lab.figures.settings import MUP_SMALL, NAMES, UMUP, Run, Setting
from microumup.lab.search import Record
from microumup.lab.statistics import mean_interval
from microumup.plan import gradient_constants, plan

LOG10_EPS = {  # by line: Adam's default, and on to where it was seen to hurt
    MUP_SMALL: [-8, -6, -5.5, -5, -4.5, -4, -3.5, -3],
    UMUP: [-8, -5, -3, -2, -1.5, -1, -0.5, 0],
}
DEFAULT = -8  # log10 of it, PyTorch's and ours
RISE = 0.02  # nats
ROOM, MORE_ROOM, STAYS = Criterion(low=5.0), Criterion(low=2.0), Criterion(-0.5, 0.5)
AS_THEY_SAY = Criterion(-0.5, 0.5)  # half a decade: as much as lies between the weights of one model


def recipe(setting: Setting, known: Known) -> Iterator[Run]:
    """Values of ε of every line, at the narrowest and the widest width that has every seed."""
    for line, width in product(LOG10_EPS, (setting.widths[0], setting.widths[-1])):
        for seed, log10_eps in product(setting.seeds_for(f"ε {width}"), setting.some(LOG10_EPS[line])):
            options = {"width": width, "seed": seed, "steps": setting.search_steps, "adam_eps": 10.0**log10_eps}
            yield setting.run(line, **options)


def constant(record: Record) -> Row:
    """The median of c_W A over the weights of a run: of its gradients over those by effective weights."""
    c = record["config"]
    model = ModelConfig(**{field.name: c[field.name] for field in fields(ModelConfig)})
    numbers = plan(model, c["batch_size"] * c["seq_len"])
    constants = gradient_constants(numbers)
    return {"constant": float(f"{np.median([constants[name] * w.A for name, w in numbers.weights.items()]):.4g}")}


def hurts_from(rows: Rows) -> float:
    """The log10 of the largest ε whose loss is within RISE of the lowest, on lines between the points.

    NaN when that may be beyond the grid, and when nothing trained.
    """
    points = sorted((log10(row["adam_eps"]), loss_of(row)) for row in rows)
    limit = min((loss for _, loss in points), default=inf) + RISE
    within = [i for i, (_, loss) in enumerate(points) if loss <= limit < inf]
    if not within or within[-1] == len(points) - 1:
        return nan
    (x, y), (x_next, y_next) = points[within[-1] : within[-1] + 2]
    return x + (x_next - x) * (limit - y) / (y_next - y) if isfinite(y_next) else x


def claims(data: Data) -> Iterator[Claim]:
    """Judge from which ε on the loss is worse, and whether the constants of the gradients foretell it."""
    runs, widths = data.runs, values(data.runs, "width")

    def at(line: str, width: int) -> Rows:
        return where(runs, line=line, width=width)

    for line, width in product(LOG10_EPS, widths):
        text = f"{NAMES[line]}, width {width}: decades from Adam's 1e-8 to the ε that costs {RISE} nats"
        room = over_seeds(lambda rows: hurts_from(rows) - DEFAULT, at(line, width))
        yield claim(text, room, ROOM if line == UMUP else REPORT, "decades")
    for width in widths:
        pair = at(MUP_SMALL, width), at(UMUP, width)
        further = over_seeds(lambda a, b: hurts_from(b) - hurts_from(a), *pair)
        text = f"width {width}: the ε that costs {RISE} nats is larger in u-µP than in µP by"
        yield claim(text, further, MORE_ROOM, "decades")
        ratio = log10(pair[1][0]["constant"] / pair[0][0]["constant"])
        beyond = over_seeds(lambda a, b, ratio=ratio: hurts_from(b) - hurts_from(a) - ratio, *pair)
        text = f"width {width}: that is more than the constants c_W A say ({ratio:.1f} decades, u-µP over µP) by"
        yield claim(text, beyond, AS_THEY_SAY, "decades", "App. A.4")
    for line in LOG10_EPS:
        moved = over_seeds(lambda a, b: hurts_from(b) - hurts_from(a), at(line, widths[0]), at(line, widths[-1]))
        text = f"{NAMES[line]}: the ε that costs {RISE} nats moves from width {widths[0]} to {widths[-1]} by"
        yield claim(text, moved, STAYS if line == UMUP else REPORT, "decades")


def draw(data: Data) -> Any:
    """Draw a panel per line, in it a curve per width; marked is where it begins to hurt."""
    widths = values(data.runs, "width")
    figure, axes = panels(1, len(LOG10_EPS), 8, 4.2, sharex=True, sharey=True)
    for ax, line in zip(axes.flat, LOG10_EPS, strict=True):
        ax.set_xscale("log")
        for width, style in zip(widths, sizes_style(line, len(widths)), strict=True):
            here = where(data.runs, line=line, width=width)
            drawn = draw_seeds(ax, here, "adam_eps", label=f"width {width}", linewidth=1.8, **style)
            ends = mean_interval(map(hurts_from, by_seed(here).values())).value
            if isfinite(ends):
                height = np.interp(ends, [log10(x) for x, _ in drawn], [loss for _, loss in drawn])
                ax.plot(10.0**ends, height, **STYLES[line] | POINTS | {"color": style["color"], "markersize": 8})
        ax.axvline(10.0**DEFAULT, linestyle=":", **GRAY)
        ax.set(xlabel="Adam's ε", title=NAMES[line])
        ax.legend(fontsize=8, loc="upper left", frameon=False)
    axes[0, 0].set_ylabel(NATS)
    zoom(axes, data.runs, room=0.1)
    text = f"line: mean over seeds · band: lowest to highest seed · marker: ε costs {RISE} nats · gray: Adam's 1e-8"
    return captioned(figure, text, {})


FIGURES = [Figure(
    "adam-eps", "Adam's ε, over width",
    "u-µP bears an ε thousands of times as large as µP does, as its gradient constants say",
    """Adam divides by √v̂ + ε, so an ε that is small against the gradients of one scheme is not against those of
another. What the optimizer sees of a weight is the gradient by the effective weight, times c_W A: constants that are
known without a run (`plan.gradient_constants`), and that u-µP chooses so that gradients are about 1. The criteria were
fixed before the runs: from Adam's 1e-8 u-µP has at least 5 decades of room, and 2 more than µP; and where the loss
rises is as far apart as the constants say. SP was to be here too and was left out after its first runs: at width 128
no ε up to 1e-3 cost anything, since the learning rate that it shares with width 32 is too high there, and a large ε
mends that.""",
    claims, draw, recipe, ("width", "adam_eps", "vocab_size", "seed"), measure=constant,
)]  # fmt: skip
