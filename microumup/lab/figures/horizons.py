"""Does the best learning rate stay where it is over steps, batch size and depth? Fig. 6."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from microumup.lab.figures.figure import Figure, Known
from microumup.lab.figures.judging import REPORT, Claim, Criterion, claim
from microumup.lab.figures.look import LR, NATS, SWEEPS, captioned, panels, sweeps, zoom
from microumup.lab.figures.rows import Data, Rows, flat_drift, gap, moves_more, values, where
from microumup.lab.figures.settings import MUP_SMALL, NAMES, SP, UMUP, Run, Setting
from microumup.lab.figures.width import LOWER_LOSS

DRIFTS_LITTLE = Criterion(-1.25, 1.25)  # our own bound
NOT_FURTHER = Criterion(high=0.5)  # "similar or better", seen on the paper's grid of half octaves
AXES = {"steps": "steps", "batch_size": "sequences in a batch", "layers": "layers"}
LINES = (MUP_SMALL, UMUP)


def recipe(setting: Setting, known: Known) -> Iterator[Run]:
    """Learning rates at each number of steps, batch size and depth, around where the optimum is expected."""
    sizes = {"steps": setting.steps, "batch_size": setting.batches, "layers": setting.depths}
    asked = [(axis, line, value) for axis in AXES for line, value in product(LINES, sizes[axis])]
    for axis, line, value in [*asked, ("layers", SP, max(setting.depths))]:
        centre = setting.log2_typical_lr[line]
        if line != SP:
            centre += setting.log2_lr_shift.get((axis, value), 0)
        seeds = range(setting.seeds) if line == SP else setting.seeds_for(f"{axis} {value}")
        for seed, log2_lr in product(seeds, setting.grid(centre, 1.5)):
            yield setting.run(line, role=axis, lr=2.0**log2_lr, seed=seed, **{axis: value})


def claims(data: Data) -> Iterator[Claim]:
    """Judge the transfer of the learning rate; the loss after each number of steps, and of the deepest model."""

    def at(axis: str, line: str, value: int) -> Rows:
        return where(data.runs, axis=axis, line=line, **{axis: value})

    for axis, words in AXES.items():
        sizes = values(where(data.runs, axis=axis), axis)
        for line in LINES:
            moved = flat_drift(at(axis, line, sizes[0]), at(axis, line, sizes[-1]))
            criterion = REPORT if axis == "layers" else DRIFTS_LITTLE
            text = f"{NAMES[line]}: the best learning rate moves from {sizes[0]} to {sizes[-1]} {words} by"
            yield claim(text, moved, criterion, "octaves")
        mup, umup = ((at(axis, line, sizes[0]), at(axis, line, sizes[-1])) for line in LINES)
        text = f"u-µP's best learning rate moves further than µP's from {sizes[0]} to {sizes[-1]} {words} by"
        yield claim(text, moves_more(umup, mup), NOT_FURTHER, "octaves", "similar or less")
    for steps in values(where(data.runs, axis="steps"), "steps"):
        higher = gap(at("steps", UMUP, steps), at("steps", MUP_SMALL, steps))
        text = f"µP: its lowest loss is above u-µP's after {steps} steps by"
        yield claim(text, higher, LOWER_LOSS, paper="above 0")
    deepest = max(values(where(data.runs, axis="layers"), "layers"))
    for better, worse in ((UMUP, MUP_SMALL), (MUP_SMALL, SP)):
        text = f"{deepest} layers: {NAMES[worse]}'s lowest loss is above {NAMES[better]}'s by"
        higher = gap(at("layers", better, deepest), at("layers", worse, deepest))
        yield claim(text, higher, LOWER_LOSS, paper="above 0")


def draw(data: Data) -> Any:
    """Draw µP above, u-µP below; steps, batch and depth beside each other."""
    figure, axes = panels(2, 3, 10, 6.6, "x", sharey="col", sharex="row")
    for column, axis in zip(axes.T, AXES, strict=True):
        here = [row for row in where(data.runs, axis=axis) if row["line"] in LINES]
        for ax, line in zip(column, LINES, strict=True):
            sweeps(ax, here, line, axis, "lr")
            ax.set_xlabel(LR)
        zoom(column, here)
    for ax, line in zip(axes[:, 0], LINES, strict=True):
        ax.set_ylabel(f"{NAMES[line]}: {NATS}")
    return captioned(figure, SWEEPS, {})


FIGURES = [Figure(
    "fig6", "Learning rate over steps, batch size and depth",
    "u-µP's best learning rate moves no further than µP's over steps, batch size and depth, and its loss is lower",
    """What µTransfer promises for width is only hoped for in these three. The paper compares: u-µP's transfer is
"similar to or better than" µP's. ±1.25 octaves, for a factor of 16 in steps or batch, is a bound of our own; over depth
a drift is only compared, for the depth rule is known to correct too much in models as shallow as these. Each panel has
the same vertical range for µP and u-µP.""",
    claims, draw, recipe, ("steps", "batch_size", "layers", "lr", "seed"), role="axis",
)]  # fmt: skip
