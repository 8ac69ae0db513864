"""Does the best learning rate stay over width? Figs. 1 (left) and 5; and the embedding's: Figs. 2 (left) and 4."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any

from microumup.lab.figures.figure import Figure, Known
from microumup.lab.figures.judging import REPORT, Claim, Criterion, claim
from microumup.lab.figures.look import LR, NATS, SWEEPS, captioned, panels, sweeps, zoom
from microumup.lab.figures.rows import Data, Rows, curve, flat_drift, gap, over_seeds, regret, values, where
from microumup.lab.figures.settings import FIXED_EMB, MUP, MUP_SMALL, NAMES, SP, UMUP, Run, Setting
from microumup.lab.statistics import basin_width

XLABELS = {"lr": LR, "eta_emb": r"factor of the embedding's $\eta$, $\hat\eta_\mathrm{emb}$"}


def at(rows: Rows, line: str, *widths: int) -> list[Rows]:
    """The rows of a line at each of some widths."""
    return [where(rows, line=line, width=width) for width in widths]


def label(line: str, rows: Rows) -> str:
    """A line's name; with µP's base width where the rows have more than one."""
    bases = {row["line"]: row["base_width"] for row in rows if "base_width" in row and NAMES[row["line"]] == "µP"}
    return f"{NAMES[line]}, base width {bases[line]}" if line in bases and len(bases) > 1 else NAMES[line]


def over_width(setting: Setting, lines: Sequence[str], *, widest: bool = True) -> Iterator[Run]:
    """Learning rates around each line's optimum, at every width and from every seed."""
    for line, width in product(lines, setting.widths):
        for seed, log2_lr in product(setting.seeds_for(f"{line} {width}"), setting.grid(*setting.around(line, width))):
            yield setting.run(line, width=width, lr=2.0**log2_lr, seed=seed)
    for line, width in product(lines, setting.widest if widest else ()):
        seeds = range(1) if line == SP else setting.seeds_for("widest", 1)
        for seed, log2_lr in product(seeds, setting.grid(setting.log2_lr[line][width], 0.5)):
            yield setting.run(line, width=width, lr=2.0**log2_lr, seed=seed)


def draw_over_width(data: Data, lines: Sequence[str] = tuple(NAMES), x: str = "lr") -> Any:
    """Loss over the column `x`: a panel for each of the lines that there are, in it a curve per width."""
    rows = data.runs
    lines = [line for line in lines if line in values(rows, "line")]
    figure, axes = panels(1, len(lines), 2.9 * max(2, len(lines)) + 0.6, 4.2, "x", sharey=True)
    for ax, line in zip(axes.flat, lines, strict=True):
        sweeps(ax, rows, line, "width", x)
        ax.set_xlabel(XLABELS[x])
        if len(lines) > 1:
            ax.set_title(label(line, rows), fontsize=11)
    axes[0, 0].set_ylabel(NATS)
    zoom(axes, rows)
    return captioned(figure, SWEEPS, {})


STAYS, SP_DRIFTS = Criterion(-0.5, 0.5), Criterion(high=-1.2)
SMALL_REGRET, LARGE_REGRET = Criterion(high=0.03), Criterion(low=0.2)
LOWER_LOSS = Criterion(low=0.0)  # all that the paper says
WORSE_WITHOUT = Criterion(low=0.025)


def fig1_left_recipe(setting: Setting, known: Known) -> list[Run]:
    """Runs of every scheme; of µP with a small base too, where that is another."""
    small = [MUP_SMALL] if setting.base[MUP] != setting.base[MUP_SMALL] else []
    return [*over_width(setting, (SP, MUP, UMUP)), *over_width(setting, small, widest=False)]


def fig1_left_claims(data: Data) -> Iterator[Claim]:
    """Judge drift and regret between the widths with all learning rates, and the loss at every width.

    At the widest the grid is too narrow to show a drift, so none could fail there.
    """
    runs = data.runs
    rates = {width: len(values(where(runs, width=width, line=UMUP), "lr")) for width in values(runs, "width")}
    widths = [width for width, count in rates.items() if count == max(rates.values())]
    narrow, wide = widths[0], widths[-1]
    lines = {line: label(line, runs) for line in NAMES if line in values(runs, "line")}
    for line, name in lines.items():
        criterion, paper = (SP_DRIFTS, "drifts") if line == SP else (STAYS, "stays")
        text = f"{name}: the best learning rate moves from width {narrow} to {wide} by"
        yield claim(text, flat_drift(*at(runs, line, narrow, wide)), criterion, "octaves", paper)
    for line, name in lines.items():
        criterion = {SP: LARGE_REGRET, UMUP: SMALL_REGRET}.get(line, REPORT)
        text = f"{name}: what the learning rate best at width {narrow} costs at width {wide}"
        cost = regret(*at(runs, line, narrow, wide))
        yield claim(text, cost, criterion, paper="much" if line == SP else "little")
    for line, name in lines.items():
        basin = over_seeds(lambda rows: basin_width(curve(rows)), *at(runs, line, wide))
        text = f"{name}: width of the basin, 0.02 nats above the lowest loss, at width {wide}"
        yield claim(text, basin, REPORT, "octaves wide", "u-µP's is wider than µP's")
    for line in (line for line in (MUP, MUP_SMALL) if line in lines):
        for width in values(where(runs, line=line), "width"):
            higher = gap(*at(runs, UMUP, width), *at(runs, line, width))
            text = f"{lines[line]}: its lowest loss is above u-µP's at width {width} by"
            yield claim(text, higher, LOWER_LOSS, paper="above 0")
    for width, twice in pairwise(widths):
        higher = gap(*at(runs, MUP, twice), *at(runs, UMUP, width))
        text = f"u-µP's lowest loss at width {width} is above µP's at width {twice} by"
        yield claim(text, higher, paper="u-µP reaches the loss of µP at twice its width")


def fig5_claims(data: Data) -> Iterator[Claim]:
    """Judge what the rule for the embedding's learning rate is worth."""
    runs, widths = data.runs, values(data.runs, "width")
    for width in widths:
        text = f"without the embedding's learning rate rule the lowest loss at width {width} is higher by"
        higher = gap(*at(runs, UMUP, width), *at(runs, FIXED_EMB, width))
        yield claim(text, higher, WORSE_WITHOUT, paper="higher at large width")
    for line, criterion in ((UMUP, STAYS), (FIXED_EMB, REPORT)):
        text = f"{NAMES[line]}: the best learning rate moves from width {widths[0]} to {widths[-1]} by"
        yield claim(text, flat_drift(*at(runs, line, widths[0], widths[-1])), criterion, "octaves", "stays")


EMB_SHRINKS, EMB_STAYS = Criterion(high=-1.0), Criterion(-0.5, 0.5)


def over_emb(setting: Setting, lines: Sequence[str]) -> Iterator[Run]:
    """Factors of the embedding's learning rate, by octaves, at the width they are found at and the one they go to."""
    for line, width, seed in product(lines, setting.emb_widths, range(setting.seeds)):
        for log2_emb in setting.octaves(*setting.log2_emb[line]):
            yield setting.run(line, width=width, seed=seed, eta_emb=2.0**log2_emb)


def embedding_claims(data: Data, criteria: dict[str, tuple[Criterion, str]]) -> Iterator[Claim]:
    """Judge how far the best η̂_emb moves from the smallest to the largest width; report what not moving it costs."""
    narrow, *_, wide = values(data.runs, "width")
    for line, (criterion, paper) in criteria.items():
        ends, name = at(data.runs, line, narrow, wide), NAMES[line]
        text = f"{name}: the best η̂_emb moves from width {narrow} to {wide} by"
        yield claim(text, flat_drift(*ends, x="eta_emb"), criterion, "octaves", paper)
        cost = regret(*ends, x="eta_emb")
        yield claim(f"{name}: what the η̂_emb best at width {narrow} costs at width {wide}", cost)


FIG2_LEFT = {MUP_SMALL: (EMB_SHRINKS, "poor transfer")}
FIG4 = {UMUP: (EMB_STAYS, "stays"), FIXED_EMB: (REPORT, "-1.5 octaves from width 256 to 2048")}

FIGURES = [Figure(
    "fig1-left", "Learning rate over width",
    "µP's and u-µP's best learning rate stays where it is over width, SP's does not",
    """Hyperparameters found on a small model are of use on a large one only if the optimum stays where
it is. Each curve is a width, its optimum marked. The paper says that in the standard parametrization the best
learning rate shrinks as the width grows, so that the one found at the smallest width is far too large later, and that
in µP and u-µP one value serves all. The last rows compare their losses, everything but the learning rate at its
default.""",
    fig1_left_claims, draw_over_width, fig1_left_recipe, ("base_width", "width", "lr", "seed"),
), Figure(
    "fig2-left", "µP's embedding learning rate over width", "µP's best embedding learning rate shrinks with width",
    """µP says that the embedding's learning rate needs no scaling with width. If so, the best factor on
it would be the same at both widths. The paper saw it shrink, which is why u-µP scales it by 1/√width.""",
    partial(embedding_claims, criteria=FIG2_LEFT), partial(draw_over_width, lines=[MUP_SMALL], x="eta_emb"),
    lambda setting, known: over_emb(setting, [MUP_SMALL]), ("width", "eta_emb", "seed"),
), Figure(
    "fig4", "u-µP's embedding learning rate over width",
    "with its rule u-µP's best embedding learning rate stays where it is over width",
    """The same sweep as in Fig. 2 (left), of u-µP: without its rule, when the best factor should shrink with
width as in µP, and with it, when it should stay.""",
    partial(embedding_claims, criteria=FIG4), partial(draw_over_width, lines=[FIXED_EMB, UMUP], x="eta_emb"),
    lambda setting, known: over_emb(setting, [FIXED_EMB, UMUP]), ("width", "eta_emb", "seed"),
), Figure(
    "fig5", "u-µP with its embedding rule and without", "without its embedding rule u-µP's loss is worse",
    """What the rule for the embedding is worth. It need not change where the best global learning rate is;
the question is by how much the loss there is higher without it.""",
    fig5_claims, draw_over_width,
    lambda setting, known: over_width(setting, [UMUP, FIXED_EMB], widest=False), ("width", "lr", "seed"),
)]  # fmt: skip
