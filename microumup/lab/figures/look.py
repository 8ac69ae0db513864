"""One look for all pictures.

A scheme has its colour, marker and dashes everywhere. Of several sizes in one panel the largest is darkest, and each
has dashes of its own, so that nothing hangs on colour. Below the panels stands what is drawn.
"""

from math import isfinite, log2, nan
from textwrap import wrap
from typing import Any

import numpy as np

from microumup.lab import pictures as pic
from microumup.lab.figures.rows import Rows, by_seed, curve, values, where
from microumup.lab.figures.settings import FIXED_EMB, MUP, MUP_SMALL, SP, UMUP
from microumup.lab.statistics import flat_minimum

Style = dict[str, Any]

STYLES: dict[str, Style] = {
    SP: {"color": pic.GREEN, "marker": "^", "linestyle": ":"},
    MUP: {"color": pic.VERMILION, "marker": "s", "linestyle": "--"},
    MUP_SMALL: {"color": pic.VERMILION, "marker": "s", "linestyle": "--"},
    UMUP: {"color": pic.BLUE, "marker": "o", "linestyle": "-"},
    FIXED_EMB: {"color": pic.PURPLE, "marker": "v", "linestyle": "-."},
}
POINTS: Style = {"linestyle": "none", "markersize": 9, "markeredgecolor": "black"}  # over a line's style
DASHES = (":", "-.", "--", "-", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))  # of sizes, the last that are used end with "-"
GRAY: Style = {"color": "dimgray", "linewidth": 1, "zorder": 0.9}  # of a line to compare with
NATS, LR = "training loss (nats per token)", "learning rate η"
SWEEPS = "line: mean over seeds · band: lowest to highest seed · marker: mean of the seeds' optima, by five points each"


def panels(rows: int, columns: int, width: float, height: float, log: str = "", **shared: Any) -> tuple[Any, Any]:
    """A figure of so many inches and its axes (rows, columns), in the look of all; those in `log` by powers of 2."""
    figure = pic.new_figure(width, height)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92", linewidth=0.8)
        ax.set_axisbelow(True)
        for axis in log:
            getattr(ax, f"set_{axis}scale")("log", base=2)
    return figure, axes


def entitle(figure: Any, text: str) -> None:
    """Write the title above all panels, on as many lines as it needs; a first letter that is no µ is made a capital."""
    if text[0].isascii() and not text.startswith("u-µP"):
        text = text[0].upper() + text[1:]
    figure.suptitle("\n".join(wrap(text, int(10.5 * figure.get_figwidth()))))


def captioned(figure: Any, text: str, styles: dict[str, Style] | None = None, *, columns: int = 4) -> Any:
    """`figure` with a text below all panels, what is drawn, and keys: `styles` by name, or the first panel's own."""
    keys, labels = figure.axes[0].get_legend_handles_labels()
    if styles is not None:
        keys, labels = [figure.axes[0].plot([], [], **style)[0] for style in styles.values()], list(styles)
    lines = "\n".join(wrap(text, int(15 * figure.get_figwidth())))
    settings = {"loc": "outside lower center", "ncols": columns, "frameon": False, "borderaxespad": 0.2}
    figure.legend(keys, labels, title=lines, title_fontsize=8, fontsize=9, **settings)
    return figure


def sizes_style(line: str, count: int) -> list[Style]:
    """A style for each of `count` sizes of a line, from the smallest to the largest: from pale to its colour."""
    dashes = (*DASHES[max(0, 4 - count) : 4], *DASHES[4:])
    full = np.array([int(STYLES[line]["color"][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    styles = zip(np.linspace(1, 0.4, count)[::-1], dashes * count, strict=False)
    return [{"color": tuple(1 - share * (1 - full)), "linestyle": dash} for share, dash in styles]


def draw_seeds(ax: Any, rows: Rows, x: str, **style: Any) -> list[tuple[float, float]]:
    """Draw the mean loss against `x`, with the seeds as a band; the points of the line, but where a seed diverged."""
    xs = values(rows, x)
    losses = [[nan if row["loss"] is None else row["loss"] for row in where(rows, **{x: value})] for value in xs]
    means = [float(np.mean(each)) for each in losses]
    band = list(map(min, losses)), list(map(max, losses))
    ax.fill_between(xs, *band, color=style["color"], alpha=0.15, linewidth=0)
    ax.plot(xs, means, **style)
    return [point for point in zip(xs, means, strict=True) if isfinite(point[1])]


def sweeps(ax: Any, rows: Rows, line: str, size: str, x: str) -> None:
    """Loss of `line` against `x` in `ax`, a curve per value of the column `size`, its mean optimum marked; seeds as a
    band. `rows` are those of all panels, so that a size is drawn alike in each.
    """
    sizes = values(rows, size)
    for value, style in zip(sizes, sizes_style(line, len(sizes)), strict=True):
        here = where(rows, line=line, **{size: value})
        if not here:
            continue
        drawn = draw_seeds(ax, here, x, label=value, linewidth=1.8, **style)
        optima = [flat_minimum(curve(group, x)) for group in by_seed(here).values()]
        if drawn and (optima := [log2_x for log2_x in optima if isfinite(log2_x)]):
            best = float(np.mean(optima))
            # on the drawn line: a parabola's own minimum is below the lines between the points
            height = np.interp(best, [log2(x) for x, _ in drawn], [loss for _, loss in drawn])
            ax.plot(2.0**best, height, **STYLES[line] | POINTS | {"color": style["color"], "markersize": 8})
    tight = {"handlelength": 2.2, "columnspacing": 0.9, "handletextpad": 0.4, "borderaxespad": 0.1, "frameon": False}
    title = size.replace("batch_size", "sequences in a batch")
    ax.legend(title=title, title_fontsize=8, fontsize=8, loc="upper center", ncols=min(len(sizes), 4), **tight)


def zoom(axes: Any, rows: Rows, above: float = 0.6, room: float = 0.22) -> None:
    """Cut off what lies far above the lowest losses, for runs that diverge would flatten all others; and leave a share
    of the height as room for a legend above."""
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    if losses:
        low = min(losses)
        high = min(max(losses), float(np.median(losses)) + above)
        margin = 0.05 * (high - low) or 0.1
        for ax in axes.flat:
            ax.set_ylim(low - margin, high + margin + room * (high - low))


def spelled(name: str) -> str:
    """A hyperparameter as the paper writes it, or nearly so."""
    greek = {"lr": r"$\eta$", "eta_emb": r"$\hat\eta_\mathrm{emb}$", "sigma_init": r"$\sigma_\mathrm{init}$"}
    if name.startswith("alpha_"):
        index = name.removeprefix("alpha_").removesuffix("_softmax").replace("_", "-")
        return rf"$\alpha_\mathrm{{{index}}}$"
    return greek.get(name, name.replace("batch_size", "batch"))
