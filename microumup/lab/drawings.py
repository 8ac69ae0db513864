"""How each figure is drawn, from the rows of its CSV: one look for all.

A scheme has its colour, marker and dashes everywhere. Of several sizes in one panel the largest is darkest, and each
has dashes of its own, so that nothing hangs on colour.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from math import isfinite, log, log2, nan
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from microumup import checkpoint
from microumup.fp8 import E4M3, E5M2
from microumup.lab import claims
from microumup.lab import pictures as pic
from microumup.lab.claims import ENDS, NAMES, Data, Row, Rows, by_seed, curve, label, values, where
from microumup.lab.scales_plot import STYLES as LINEARS
from microumup.lab.statistics import optimum

STYLES: dict[str, dict[str, Any]] = {
    "sp": {"color": pic.GREEN, "marker": "^", "linestyle": ":"},
    "mup": {"color": pic.VERMILION, "marker": "s", "linestyle": "--"},
    "mup-small": {"color": pic.VERMILION, "marker": "s", "linestyle": "--"},
    "umup": {"color": pic.BLUE, "marker": "o", "linestyle": "-"},
    "umup-fixed-emb": {"color": pic.PURPLE, "marker": "v", "linestyle": "-."},
}
DASHES = (":", "-.", "--", "-", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))  # of sizes, the last that are used end with "-"
NATS = "training loss (nats per token)"
LR, EMB_LR = "learning rate η", r"factor of the embedding's learning rate, $\hat\eta_\mathrm{emb}$"


def save(figure: Any, paths: Iterable[Path]) -> None:
    """Write the figure to every path; an SVG of the same figure is the same bytes."""
    settings = {"svg.hashsalt": "microumup", "svg.fonttype": "path"}
    with import_module("matplotlib").rc_context(settings):
        for path in paths:
            write = partial(
                figure.savefig,
                format=path.suffix[1:],
                dpi=150,
                metadata={"Date": None} if path.suffix == ".svg" else {"Software": None},
            )
            checkpoint.write_atomically(path, write)


def entitle(figure: Any, text: str) -> None:
    """Write the title above all panels, on as many lines as it needs; a first letter that is no µ is made a capital."""
    if text[0].isascii() and not text.startswith("u-µP"):
        text = text[0].upper() + text[1:]
    figure.suptitle("\n".join(wrap(text, int(10.5 * figure.get_figwidth()))))


def panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Any, Any]:
    """A figure of so many inches and its axes (rows, columns), in the look of all."""
    figure = pic.new_figure(width, height)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def shade(colour: str, share: float) -> tuple[float, ...]:
    """A mixture of white and `share` of the colour."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return tuple(1 - share * (1 - part) for part in parts)


def sizes_style(line: str, count: int) -> list[dict[str, Any]]:
    """A style for each of `count` sizes of a line, from the smallest to the largest."""
    dashes = (*DASHES[max(0, 4 - count) : 4], *DASHES[4:])
    shares = np.linspace(0.4, 1, count) if count > 1 else [1.0]
    colours = [shade(STYLES[line]["color"], share) for share in shares]
    return [{"color": c, "linestyle": d} for c, d in zip(colours, dashes * count, strict=False)]


def mean_curve(rows: Rows, x: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """x, and over the seeds the mean, lowest and highest loss there; NaN where one diverged."""
    found = []
    for value in values(rows, x):
        losses = [nan if row["loss"] is None else row["loss"] for row in where(rows, **{x: value})]
        found.append((value, float(np.mean(losses)), min(losses), max(losses)))
    xs, means, lows, highs = (list(column) for column in zip(*found, strict=True))
    return xs, means, lows, highs


def sweeps(ax: Any, rows: Rows, line: str, size: str, x: str) -> None:
    """Loss of `line` against `x` in `ax`, a curve per value of the column `size`, its mean optimum marked; seeds as a
    band. `rows` are those of all panels, so that a size is drawn alike in each.
    """
    sizes = values(rows, size)
    for value, style in zip(sizes, sizes_style(line, len(sizes)), strict=True):
        here = where(rows, line=line, **{size: value})
        if not here:
            continue
        xs, means, lows, highs = mean_curve(here, x)
        ax.fill_between(xs, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
        ax.plot(xs, means, label=value, linewidth=1.8, **style)
        optima = [optimum(curve(group, x)) for group in by_seed(here).values()]
        best = [(o.x, o.loss) for o in optima if isfinite(o.x)]
        if best:
            at, loss = np.mean(best, axis=0)
            ax.plot(
                2**at, loss, marker=STYLES[line]["marker"], color=style["color"], markeredgecolor="black", markersize=8
            )
    ax.set_xscale("log", base=2)


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


def key(ax: Any, title: str, count: int) -> None:
    """The legend of the sizes in a panel, in the room above."""
    ax.legend(frameon=False, fontsize=8, title=title, title_fontsize=8, loc="upper center", ncols=min(count, 4),
              handlelength=2.2, columnspacing=0.9, handletextpad=0.4, borderaxespad=0.1)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Learning rates over sizes


def over_lines(rows: Rows, lines: Sequence[str], x: str, xlabel: str) -> Any:
    """A panel per line, in each a curve per width."""
    figure, axes = panels(1, len(lines), 2.9 * max(2, len(lines)) + 0.6, 4, sharey=True)
    for ax, line in zip(axes.flat, lines, strict=True):
        sweeps(ax, rows, line, "width", x)
        if len(lines) > 1:
            ax.set_title(label(line, rows), fontsize=11)
        key(ax, "width", len(values(rows, "width")))
    figure.supxlabel(xlabel, fontsize=10)
    axes[0, 0].set_ylabel(NATS)
    zoom(axes, rows)
    return figure


def fig1_left(data: Data) -> Any:
    """Loss over the learning rate, a panel per scheme."""
    return over_lines(data.runs, [line for line in NAMES if line in values(data.runs, "line")], "lr", LR)


def fig5(data: Data) -> Any:
    """The same with the rule and without."""
    return over_lines(data.runs, ["umup", "umup-fixed-emb"], "lr", LR)


def fig2_left(data: Data) -> Any:
    """Loss over η̂_emb in µP."""
    return over_lines(data.runs, ["mup-small"], "eta_emb", EMB_LR)


def fig4(data: Data) -> Any:
    """And in u-µP, without the rule and with it."""
    return over_lines(data.runs, ["umup-fixed-emb", "umup"], "eta_emb", EMB_LR)


def fig6(data: Data) -> Any:
    """µP above, u-µP below; steps, batch and depth beside each other."""
    rows = [row for row in data.runs if row["line"] != "sp"]
    figure, axes = panels(2, 3, 10, 6.4, sharey="col", sharex="row")
    for j, (axis, words) in enumerate(claims.AXES.items()):
        here = claims.along(rows, axis)
        for i, line in enumerate(("mup-small", "umup")):
            sweeps(axes[i, j], here, line, axis, "lr")
            key(axes[i, j], words, len(values(here, axis)))
            axes[i, j].set_xlabel(LR)
        zoom(axes[:, j], here)
    for ax, line in zip(axes[:, 0], ("mup-small", "umup"), strict=True):
        ax.set_ylabel(f"{NAMES[line]}: {NATS}")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# FP8


def fig1_right(data: Data) -> Any:
    """Final losses in float32 and in FP8, seed by seed."""
    figure, axes = panels(1, 1, 6, 4.2)
    ax = axes[0, 0]
    for i, line in enumerate(("umup", "mup-small")):
        rows = where(data.runs, line=line)
        for group in by_seed(rows).values():
            losses = [claims.loss_or_guess(where(group, fp8=fp8)[0]) for fp8 in ("none", "fp8")]
            ax.plot([2 * i, 2 * i + 1], losses, linewidth=1, markersize=9, markeredgecolor="black", **STYLES[line])
            for j, row in enumerate(where(group, fp8=fp8)[0] for fp8 in ("none", "fp8")):
                if row["loss"] is None:
                    ax.annotate(
                        "diverged", (2 * i + j, losses[j]), textcoords="offset points", xytext=(0, 8), ha="center"
                    )
        gap = claims.cast_gap(rows, "fp8").value
        top = max(claims.loss_or_guess(row) for row in where(rows, fp8="fp8"))
        text = f"{gap:+.3f}" if isfinite(gap) else ""
        ax.annotate(text, (2 * i + 1, top), textcoords="offset points", xytext=(0, 10), ha="center", fontweight="bold")
    guess = log(data.runs[0]["vocab_size"])
    ax.axhline(guess, color="dimgray", linestyle=(0, (1, 3)), zorder=0)
    ax.text(-0.35, guess, "guessing", color="dimgray", va="bottom", fontsize=9)
    names = [f"{NAMES[line]}\n{fp8}" for line in ("umup", "mup-small") for fp8 in ("float32", "FP8")]
    ax.set_xticks(range(4), names)
    ax.set_xlim(-0.4, 3.4)
    ax.set_ylim(bottom=0)
    ax.margins(y=0.12)
    ax.set_ylabel(NATS)
    return figure


EXPERIMENTS: tuple[tuple[str, str, str, bool], ...] = (  # line, fp8, what it is, whether the loss is summed
    ("umup", "fp8", "u-µP", False),
    ("umup", "fp8,o.x=e4m3,down.x=e4m3", "u-µP, all in E4M3", False),
    ("mup-small", "fp8", "µP", False),
    ("mup-small", "fp8,all.dy=e5m2", "µP, gradients in E5M2", False),
    ("mup-small", "fp8", "µP, loss summed", True),
)


def fig7(data: Data) -> Any:
    """What FP8 costs, by experiment, width and number of steps."""
    widths, lengths = values(data.runs, "width"), values(data.runs, "steps")
    figure, axes = panels(1, len(widths), 4.6 * len(widths) + 1, 3.6, sharey=True, sharex=True)
    for ax, width in zip(axes.flat, widths, strict=True):
        for i, (line, fp8, _, summed) in enumerate(EXPERIMENTS):
            for steps, fill in zip(lengths, ("none", "full")[-len(lengths) :], strict=True):
                rows = [
                    row
                    for row in where(data.runs, line=line, width=width, steps=steps)
                    if (row["loss_scale"] != 1) == summed
                ]
                gaps = [
                    claims.loss_or_guess(where(group, fp8=fp8)[0]) - claims.loss_or_guess(where(group, fp8="none")[0])
                    for group in by_seed(rows).values() if where(group, fp8=fp8)
                ]  # fmt: skip
                style = STYLES[line] | {"linestyle": "none", "fillstyle": fill, "markersize": 8}
                ax.plot(gaps, [i + (0.15 if fill == "none" else -0.15)] * len(gaps), **style)
        ax.axvline(0, color="black", linewidth=1)
        for limit in (claims.UMUP_TRAINS.high, claims.MUP_FAILS.low):
            ax.axvline(limit, color="dimgray", linestyle=(0, (1, 3)))
            ax.text(
                limit,
                1,
                f"{limit:g} ",
                transform=ax.get_xaxis_transform(),
                color="dimgray",
                fontsize=8,
                ha="right",
                va="top",
            )
        ax.set_xscale("symlog", linthresh=0.1)
        ax.set_title(f"width {width}")
        ax.set_xlabel("FP8's loss minus float32's (nats)")
    axes[0, 0].set_yticks(range(len(EXPERIMENTS)), [name for _, _, name, _ in EXPERIMENTS])
    axes[0, 0].set_ylim(len(EXPERIMENTS) - 0.5, -0.7)
    keys = [axes[0, 0].plot([], [], marker="o", color="black", linestyle="none", fillstyle=fill)[0]
            for fill in ("none", "full")[-len(lengths) :]]  # fmt: skip
    figure.legend(
        keys, [f"{steps} steps" for steps in lengths], loc="outside lower center", ncols=len(lengths), frameon=False
    )
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Search


def search_path(rows: Rows) -> list[float]:
    """The lowest loss so far after each run of one seed's independent search; last, the combined run itself."""
    search, rest = claims.independent_search(rows)
    own = [row for row in rows if row not in rest]
    names = claims.hyperparameters(rows)
    single = [claims.loss_of(row) for row in own if len(claims.changed(row, names)) < 2]
    return [*np.minimum.accumulate(single), search.combined]


def fig2_right(data: Data) -> Any:
    """The best loss so far of both searches against the number of runs."""
    figure, axes = panels(1, 1, 7, 5)
    ax, seen = axes[0, 0], list[float]()
    for line in ("mup-small", "umup"):
        rows = where(data.runs, line=line)
        paths = [search_path(group) for group in by_seed(rows).values()]
        length = min(map(len, paths))
        mean = np.mean([[*path[: length - 1], path[-1]] for path in paths], axis=0)
        colour = STYLES[line]["color"]
        ax.plot(range(1, length), mean[:-1], color=colour, linewidth=2, label=f"{NAMES[line]}, one by one")
        ax.plot([length - 1, length + 1], mean[-2:], color=colour, linewidth=1, linestyle=":")
        style = STYLES[line] | {"linestyle": "none", "markersize": 9, "markeredgecolor": "black"}
        ax.plot(length + 1, mean[-1], label=f"{NAMES[line]}, the best combined", **style)
        drawn = [claims.loss_or_guess(row) for row in claims.random_draws(rows)]
        counts = range(1, min(length, len(drawn)) + 1)
        drawn_best = [claims.expected_best(drawn, count) for count in counts]
        ax.plot(
            counts, drawn_best, color=colour, linewidth=1.5, linestyle="--", label=f"{NAMES[line]}, at random (mean)"
        )
        seen += [*mean[3:], *([drawn_best[-1]] if drawn_best else [])]
    first = len([r for r in next(iter(by_seed(where(data.runs, line="umup")).values()))
                 if not claims.changed(r, claims.hyperparameters(data.runs))])  # fmt: skip
    ax.axvline(first, color="dimgray", linewidth=1, zorder=0)
    ax.text(first, 0.98, "learning rate   line searches", transform=ax.get_xaxis_transform(), ha="center", va="top",
            color="dimgray", fontsize=8)  # fmt: skip
    seen = [loss for loss in seen if isfinite(loss)]
    if seen:
        margin = 0.08 * (max(seen) - min(seen)) or 0.1
        ax.set_ylim(min(seen) - margin, max(seen) + 2 * margin)
    ax.set_xlabel("runs")
    ax.set_ylabel("lowest training loss so far (nats)")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    return figure


def coupling(data: Data) -> Any:
    """A map per pair of hyperparameters: loss above the lowest; the best of each row and of each column marked."""
    found: dict[tuple[str, str], list[Any]] = {}
    for rows in by_seed(data.runs).values():
        for pair, losses in claims.grids(rows).items():
            found.setdefault(pair, []).append(losses)
    columns = 5
    figure, axes = panels(-(-len(found) // columns), columns, 11, 2.35 * -(-len(found) // columns))
    top = 0.5
    for ax in axes.flat[len(found) :]:
        ax.set_visible(False)
    image = None
    for ax, ((one, other), grids) in zip(axes.flat, found.items(), strict=False):
        losses = np.mean(grids, axis=0)
        image = ax.imshow(losses - np.nanmin(losses), origin="lower", cmap="viridis_r", vmin=0, vmax=top, aspect="auto")
        losses = np.where(np.isnan(losses), np.inf, losses)
        for i, row in enumerate(losses):
            ax.plot(int(np.argmin(row)), i, marker="o", color="black", markersize=7, fillstyle="none")
        for j, column in enumerate(losses.T):
            ax.plot(j, int(np.argmin(column)), marker="x", color="black", markersize=6)
        for name, ticks, where_to in ((other, ax.set_xticks, ax.set_xlabel), (one, ax.set_yticks, ax.set_ylabel)):
            points = values(claims_rows(data.runs, one, other), name)
            ticks(range(len(points)), [f"$2^{{{log2(point):g}}}$" for point in points], fontsize=7)
            where_to(spelled(name), fontsize=9)
        ax.grid(visible=False)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.5, extend="max")
        bar.set_label("loss above the lowest (nats)")
    marks = [
        axes[0, 0].plot([], [], marker=marker, color="black", linestyle="none", fillstyle="none")[0] for marker in "ox"
    ]
    figure.legend(marks, ["best of a row", "best of a column"], loc="outside lower right", ncols=2, frameon=False)
    return figure


def spelled(name: str) -> str:
    """A hyperparameter as the paper writes it, or nearly so."""
    greek = {"lr": r"$\eta$", "eta_emb": r"$\hat\eta_\mathrm{emb}$", "sigma_init": r"$\sigma_\mathrm{init}$"}
    if name.startswith("alpha_"):
        index = name.removeprefix("alpha_").removesuffix("_softmax").replace("_", "-")
        return rf"$\alpha_\mathrm{{{index}}}$"
    return greek.get(name, name.replace("batch_size", "batch"))


def claims_rows(rows: Rows, one: str, other: str) -> Rows:
    """The rows in which nothing but these two is off its default."""
    names = ["lr", *claims.hyperparameters(rows)]
    counts = values(rows, "lr")
    usual = max(counts, key=lambda lr: len(where(rows, lr=lr)))
    return where(rows, **{n: usual if n == "lr" else 1.0 for n in names if n not in (one, other)})


# ---------------------------------------------------------------------------------------------------------------------
# Scales of tensors


def format_lines(ax: Any, *, words: bool) -> None:
    """The limits of FP8's formats."""
    for fmt, colour in ((E4M3, "black"), (E5M2, "dimgray")):
        for text, limit, line in (
            ("max", fmt.max, "-"),
            ("min normal", fmt.min_normal, "--"),
            ("min subnormal", fmt.min_subnormal, ":"),
        ):
            ax.axhline(limit, color=colour, linestyle=line, linewidth=1, zorder=0.9)
            if words:
                ax.text(1.01, limit, f"{fmt.name.upper()} {text}", transform=ax.get_yaxis_transform(), color=colour,
                        fontsize=7, va="center")  # fmt: skip


def fig3(data: Data) -> Any:
    """RMS of every tensor at init and at the end, of both schemes beside each other."""
    steps = values(data.ranges, "step")
    seed = min(values(data.ranges, "seed"))
    figure, axes = panels(1, 2, 10, 4.6, sharey=True)
    for ax, step, words in zip(axes.flat, (steps[0], steps[-1]), ("at init", "after training"), strict=True):
        for i, tensor in enumerate(("x", "w", "dy")):
            for j, line in enumerate(("mup-small", "umup")):
                rows = [row for row in where(data.ranges, line=line, step=step, seed=seed)
                        if row["tensor"].endswith(f".{tensor}") and row["rms"]]  # fmt: skip
                spread = np.linspace(-0.12, 0.12, len(rows))
                style = STYLES[line] | {
                    "linestyle": "none",
                    "markersize": 6,
                    "markeredgecolor": "black",
                    "markeredgewidth": 0.4,
                }
                ax.plot(
                    i - 0.18 + 0.36 * j + spread,
                    [row["rms"] for row in rows],
                    label=NAMES[line] if not i else None,
                    **style,
                )
        ax.set_xticks(range(3), ["x, input", "w, weight", "dy, gradient"])
        ax.set_title(words)
        ax.set_yscale("log", base=2)
        format_lines(ax, words=ax is axes[0, 1])
    axes[0, 0].set_ylabel("RMS")
    axes[0, 0].legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.93))
    return figure


def fig8(data: Data) -> Any:
    """RMS of every tensor along training: µP above, u-µP below."""
    seed = min(values(data.ranges, "seed"))
    figure, axes = panels(2, 3, 11, 6.4, sharey=True, sharex=True)
    for i, line in enumerate(("mup-small", "umup")):
        for j, tensor in enumerate(("x", "w", "dy")):
            ax = axes[i, j]
            rows = [row for row in where(data.ranges, line=line, seed=seed) if row["tensor"].endswith(f".{tensor}")]
            for name in values(rows, "tensor"):
                kind = name.split(".")[-2]
                own = where(rows, tensor=name)
                style = LINEARS[kind] | {"markersize": 4, "linewidth": 1.2}
                ax.plot([row["step"] for row in own], [row["rms"] or nan for row in own], **style)
            ax.set_yscale("log", base=2)
            format_lines(ax, words=j == 2)
            if i == 0:
                ax.set_title({"x": "x, inputs", "w": "w, weights", "dy": "dy, gradients"}[tensor])
            else:
                ax.set_xlabel("step")
        axes[i, 0].set_ylabel(f"{NAMES[line]}: RMS")
    keys = [axes[0, 0].plot([], [], **style)[0] for style in LINEARS.values()]
    figure.legend(keys, list(LINEARS), loc="outside lower center", ncols=8, frameon=False)
    return figure


END_STYLES = {
    "rms_head_w": {"color": pic.BLUE, "marker": "o", "linestyle": "-"},
    "rms_down_x": {"color": pic.ORANGE, "marker": "s", "linestyle": "--"},
    "rms_down_dy": {"color": pic.GREEN, "marker": "^", "linestyle": ":"},
}


def fig9(data: Data) -> Any:
    """Loss above, RMS at the end below, against each thing that is varied."""
    axes_of = claims.one_at_a_time(data.runs)
    figure, axes = panels(2, len(axes_of), 1.45 * len(axes_of), 5, sharey="row", sharex="col")
    for j, (name, rows) in enumerate(axes_of.items()):
        xs, means, lows, highs = mean_curve(rows, name)
        style = dict(STYLES["umup"])
        axes[0, j].plot(xs, means, markersize=4, **style)
        axes[0, j].fill_between(xs, lows, highs, color=style["color"], alpha=0.2, linewidth=0)
        for column, style in END_STYLES.items():
            ys = [[log2(row[column]) for row in where(rows, **{name: x}) if row[column]] for x in xs]
            axes[1, j].plot(xs, [2 ** np.mean(y) if y else nan for y in ys], markersize=4, label=ENDS[column], **style)
        usual = max(values(data.runs, name), key=lambda value: len(where(data.runs, **{name: value})))
        for ax in axes[:, j]:
            ax.axvline(usual, color="dimgray", linewidth=1, zorder=0)
            ax.set_xscale("log", base=2)
        axes[1, j].set_xlabel(spelled(name), fontsize=10)
        axes[1, j].set_yscale("log", base=2)
    zoom(axes[:1], data.runs)
    axes[0, 0].set_ylabel("FP8 loss (nats)")
    axes[1, 0].set_ylabel("RMS at the end")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The rules

TYPE_STYLES = {
    "input": {"color": pic.ORANGE, "marker": "v"},
    "hidden": {"color": pic.BLUE, "marker": "o"},
    "down": {"color": pic.SKY, "marker": "D"},
    "output": {"color": pic.GREEN, "marker": "^"},
    "residual": {"color": pic.PURPLE, "marker": "P"},
}


def table1(data: Data) -> Any:
    """What models do, as points, on the lines of Table 1."""
    figure, axes = panels(2, 4, 11.5, 5.8)
    for i, (scheme, name) in enumerate((("mup", "µP"), ("umup", "u-µP"))):
        for j, (quantity, axis) in enumerate((("√B", "width"), ("A", "width"), ("C", "width"), ("depth", "layers"))):
            ax = axes[i, j]
            rows = where(data.runs, scheme=scheme, axis=axis)
            shown = (
                {("residual", "A"), ("hidden", "C")}
                if axis == "layers"
                else {(t, quantity) for t in TYPE_STYLES if t != "residual"}
            )
            for type, what in sorted(shown):
                own = where(rows, type=type, quantity=what)
                style = TYPE_STYLES[type]
                text = f"{type}: {what}" if axis == "layers" else {"down": "hidden, FFN down"}.get(type, type)
                ax.plot([r["size"] for r in own], [r["paper"] for r in own], color=style["color"], linewidth=1.2)
                ax.plot([r["size"] for r in own], [r["measured"] for r in own], linestyle="none", label=text, **style)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            low, high = ax.get_ylim()
            if high < 2 * low:  # nothing but chance: do not blow it up
                ax.set_ylim(low / 2, high * 2)
            ax.set_xlabel(axis)
            ax.set_title(
                f"{name}: "
                + {"√B": "init std √B", "A": "multiplier A", "C": "LR factor C", "depth": "over depth"}[quantity],
                fontsize=10,
            )
    figure.legend(*axes[0, 2].get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False)
    figure.legend(*axes[0, 3].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
    return figure


def table4(data: Data) -> Any:
    """RMS of every op's tensors, and of all tensors of a model against what is expected of them."""
    figure, axes = panels(1, 2, 11, 6, gridspec_kw={"width_ratios": (3, 2)})
    ops = [row for row in data.runs if row["op"] != "model"]

    def name(row: Row) -> str:
        setting = f", {'α' if row['setting'] == 'alpha' else 's'} = {row['value']:g}" if row["setting"] else ""
        return f"{row['op']}{setting}: {row['tensor']}"

    left, right = axes[0]
    left.axvline(1, color="black", linewidth=1)
    circle = {"linestyle": "none", "marker": "o", "markersize": 7, "fillstyle": "none", "color": pic.BLACK}
    left.plot([row["expected"] for row in ops], range(len(ops)), label="what the rules imply", **circle)
    left.plot(
        [row["measured"] for row in ops],
        range(len(ops)),
        linestyle="none",
        marker="x",
        color=pic.BLUE,
        label="measured",
    )
    left.set_yticks(range(len(ops)), [name(row) for row in ops], fontsize=6.5)
    left.invert_yaxis()
    left.set_xscale("log", base=2)
    left.set_xlabel("RMS, of inputs and gradients of RMS 1")
    left.legend(frameon=False, loc="center left")
    model = where(data.runs, op="model")
    for suffix, colour, marker in (
        ("y", pic.BLUE, "o"),
        ("dy", pic.VERMILION, "s"),
        ("dx", pic.GREEN, "^"),
        ("dw", pic.ORANGE, "D"),
        ("x", pic.SKY, "v"),
        ("w", pic.BLACK, "P"),
    ):
        own = [row for row in model if row["tensor"].rpartition(".")[2] == suffix]
        right.plot([row["expected"] for row in own], [row["measured"] for row in own], linestyle="none", marker=marker,
                   color=colour, markersize=5, label=suffix)  # fmt: skip
    ends = [min(row["expected"] for row in model), max(row["expected"] for row in model)] if model else [0.5, 2]
    right.plot(ends, ends, color="black", linewidth=1, zorder=0.9)
    right.set_xscale("log", base=2)
    right.set_yscale("log", base=2)
    right.set_xlabel("RMS that the rules imply")
    right.set_ylabel("RMS measured")
    right.set_title("all tensors of a new model", fontsize=10)
    right.legend(frameon=False, ncols=2)
    return figure


RULE_STYLES = {
    claims.EQ12: {"color": pic.BLUE, "marker": "o", "linestyle": "-"},
    claims.EQ22: {"color": pic.VERMILION, "marker": "s", "linestyle": "--"},
}


def lemma_c1(data: Data) -> Any:
    """The difference of the two networks over depth."""
    figure, axes = panels(1, 1, 6.4, 4)
    ax = axes[0, 0]
    for rule, style in RULE_STYLES.items():
        for alpha in values(data.runs, "alpha_res"):
            rows = where(data.runs, rule=rule, alpha_res=alpha)
            ax.plot(
                [r["branches"] for r in rows],
                [r["difference"] for r in rows],
                label=f"τ of {rule}" if alpha == 1 else None,
                **style,
            )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("residual branches L")
    ax.set_ylabel("largest difference of an output")
    ax.legend(frameon=False, loc="center right")
    return figure


def eq22(data: Data) -> Any:
    """σ(residual)/σ(embedding) over depth."""
    figure, axes = panels(1, 1, 6.4, 4)
    ax = axes[0, 0]
    for rule, style in RULE_STYLES.items():
        rows = where(data.runs, rule=rule)
        ax.plot([r["branches"] for r in rows], [r["ratio"] for r in rows], label=f"τ of {rule}", **style)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("residual branches L")
    ax.set_ylabel(r"σ(residual) / σ(embedding), at $\alpha_\mathrm{res} = 1$")
    ax.legend(frameon=False)
    return figure
