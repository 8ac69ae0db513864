"""Do hyperparameters depend on each other? Figs. 10 and 11: the loss over every pair of them."""

from collections.abc import Iterator
from functools import partial
from itertools import combinations, product
from math import log2, nan
from typing import Any

import numpy as np

from microumup.lab.figures.figure import Figure, Known
from microumup.lab.figures.judging import Claim, claim
from microumup.lab.figures.look import captioned, panels, spelled
from microumup.lab.figures.rows import Data, Rows, by_seed, finite_loss, values, where
from microumup.lab.figures.settings import MUP_SMALL, NAMES, TABLE6_RANGES, UMUP, Run, Setting
from microumup.lab.statistics import coupling, mean_interval

AND = " and "  # between the two names of a pair


def recipe(line: str, setting: Setting, known: Known) -> Iterator[Run]:
    """A grid of 5 x 5 over every pair of hyperparameters, the others at their defaults. Grids cross each other."""
    axes = {"lr": setting.grid(setting.log2_typical_lr[line], 2, 1)}
    axes |= {name: setting.some(np.linspace(*ends, 5).tolist()) for name, ends in TABLE6_RANGES[line].items()}
    for pair, seed in product(combinations(axes, 2), range(setting.coupling_seeds)):
        for point in product(*(axes[name] for name in pair)):
            options = {name: 2.0**value for name, value in zip(pair, point, strict=True)}
            yield setting.run(line, role=AND.join(pair), seed=seed, steps=setting.search_steps, **options)


def grids(rows: Rows) -> dict[str, list[np.ndarray]]:
    """Losses over both of each pair, (n, m) of each seed."""
    found: dict[str, list[np.ndarray]] = {}
    for pair in dict.fromkeys(row["pair"] for row in rows):
        one, other = pair.split(AND)
        for here in by_seed(where(rows, pair=pair)).values():
            losses = {(row[one], row[other]): finite_loss(row) for row in here}
            cells = [[losses.get((x, y), nan) for y in values(here, other)] for x in values(here, one)]
            found.setdefault(pair, []).append(np.array(cells))
    return found


def claims(data: Data, paper: str) -> Iterator[Claim]:
    """Report the mean over all pairs, and the pair that is coupled most."""
    by_pair = {pair: list(map(coupling, seeds)) for pair, seeds in grids(data.runs).items()}
    mean = mean_interval(np.mean(list(by_pair.values()), axis=0).tolist())
    most = max(by_pair, key=lambda pair: float(np.mean(by_pair[pair])))
    name = NAMES[data.runs[0]["line"]]
    yield claim(f"{name}: the optimum of another row or column costs, mean over all pairs", mean, paper=paper)
    yield claim(f"{name}: the same of the most coupled, {most}", mean_interval(by_pair[most]))


def draw(data: Data) -> Any:
    """Draw a map per pair of hyperparameters: loss above the lowest; the best of each row and of each column marked."""
    found, columns = grids(data.runs), 5
    rows = -(-len(found) // columns)
    figure, axes = panels(rows, columns, 11, 2.35 * rows + 0.3)
    for ax in axes.flat[len(found) :]:
        ax.set_visible(False)
    for ax, (pair, seeds) in zip(axes.flat, found.items(), strict=False):
        losses = np.mean(seeds, axis=0)
        image = ax.imshow(losses - np.nanmin(losses), origin="lower", cmap="viridis_r", vmin=0, vmax=0.5, aspect="auto")
        losses = np.where(np.isnan(losses), np.inf, losses)
        for i, row in enumerate(losses):
            ax.plot(int(np.argmin(row)), i, marker="o", color="black", markersize=7, fillstyle="none")
        for j, column in enumerate(losses.T):
            ax.plot(j, int(np.argmin(column)), marker="x", color="black", markersize=6)
        one, other = pair.split(AND)
        for name, ticks, where_to in ((other, ax.set_xticks, ax.set_xlabel), (one, ax.set_yticks, ax.set_ylabel)):
            points = values(where(data.runs, pair=pair), name)
            ticks(range(len(points)), [f"$2^{{{log2(point):g}}}$" for point in points], fontsize=7)
            where_to(spelled(name), fontsize=9)
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes, shrink=0.5, extend="max").set_label("loss above the lowest (nats)")
    style = {"color": "black", "linestyle": "none", "fillstyle": "none"}
    styles = {"best of a row": style | {"marker": "o"}, "best of a column": style | {"marker": "x"}}
    return captioned(figure, "colour: mean over seeds of the loss", styles)


def figure(name: str, line: str, paper: str, shows: str, prose: str) -> Figure:
    """The figure of a line; `paper` is the mean coupling that the paper finds."""
    columns = ("lr", *TABLE6_RANGES[line], "seed", "vocab_size")
    title, claimed = f"How {NAMES[line]}'s hyperparameters are coupled", partial(claims, paper=paper)
    return Figure(name, title, shows, prose, claimed, draw, partial(recipe, line), columns, role="pair")


FIGURES = [figure(
    "fig10", MUP_SMALL, "0.08", "µP's hyperparameters are coupled",
    """Loss over every pair of µP's hyperparameters. Where two do the same thing the optimum is a diagonal
valley: the best value of one depends on the other, and searching them one by one goes astray. The number is the
paper's: what it costs to take the optimum of another row or column.""",
), figure(
    "fig11", UMUP, "0.03", "u-µP's hyperparameters are coupled less than µP's",
    """The same for u-µP's hyperparameters, which were chosen so that each controls a scale of its own. To be
compared with Fig. 10, intervals included.""",
)]  # fmt: skip
