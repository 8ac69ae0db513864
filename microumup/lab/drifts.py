"""How far the best learning rate moves along an axis, as the committed runs measured it, and where that is known.

A drift is in octaves of η for a doubling of a size. It is used from the smallest to the largest size that it was
measured at, and no further. Width alone may go an octave beyond, with a warning: `microumup coordcheck` follows the
causes of a drift to width 1024 and finds none, but in SP, to which this does not apply.
"""

from collections.abc import Mapping
from math import log2
from typing import NamedTuple

from microumup.config import TrainConfig
from microumup.lab.figures.rows import Rows, drift, or_nan
from microumup.lab.figures.settings import LAPTOP, MUP, MUP_SMALL, SP, UMUP
from microumup.lab.optima import interval
from microumup.lab.search import show_value
from microumup.lab.statistics import Estimate
from microumup.limits import option_name


class Drift(NamedTuple):
    """Octaves by which the best η moves when the size of an axis doubles, and between which sizes that was measured."""

    smallest: int
    largest: int
    value: float
    low: float  # the 95 % interval over seeds
    high: float
    tested: int  # the largest size that has an optimum at all, of one seed


Drifts = Mapping[tuple[str, str], Drift]  # by line of the figures, and axis

# tests/lab/test_transfer.py works them out from docs/figures, and says what to write here when those are made anew
DRIFTS: Drifts = {
    (SP, "width"): Drift(32, 128, -0.921, -1.087, -0.756, 256),
    (MUP, "width"): Drift(32, 128, -0.173, -0.307, -0.038, 256),
    (MUP_SMALL, "width"): Drift(32, 128, -0.025, -0.289, 0.239, 128),
    (UMUP, "width"): Drift(32, 128, 0.037, -0.165, 0.24, 256),
    (MUP_SMALL, "layers"): Drift(1, 8, 0.283, 0.125, 0.44, 8),
    (UMUP, "layers"): Drift(1, 8, 0.487, 0.193, 0.781, 8),
    (MUP_SMALL, "steps"): Drift(128, 2048, -0.37, -0.526, -0.214, 2048),
    (UMUP, "steps"): Drift(128, 2048, -0.238, -0.542, 0.067, 2048),
    (MUP_SMALL, "batch_size"): Drift(4, 64, 0.317, 0.175, 0.459, 64),
    (UMUP, "batch_size"): Drift(4, 64, 0.25, 0.134, 0.365, 64),
}
SHRINK = 0.655  # share of the gain in loss by one doubling of the width that the next one brings; mean of four lines


class NoEvidence(Exception):
    """Nothing that was measured supports a prediction."""


class Move(NamedTuple):
    """The way along an axis, and what it does to log2 η."""

    axis: str
    start: int
    end: int
    drift: Drift
    moved: Estimate


def line_of(config: TrainConfig) -> str:
    """The line of the figures that a model belongs to. Raises NoEvidence where there is none."""
    for name in ("optimizer", "decay", "embedding_lr_rule"):
        if (value := getattr(config, name)) != (default := getattr(TrainConfig, name)):
            known = f"drifts are measured with {show_value(default)}"
            raise NoEvidence(f"{option_name(name)} {show_value(value)}: {known}; sweep at the target itself")
    if config.scheme == MUP:  # µP's lines differ in the base width alone: the nearer one
        return min((MUP, MUP_SMALL), key=lambda line: abs(log2(config.base_width / LAPTOP.base[line])))
    if config.scheme not in (SP, UMUP):
        raise NoEvidence(f"--scheme {config.scheme}: its drift is not measured; that of {SP}, {MUP} and {UMUP} is")
    return config.scheme


def per_octave(small: Rows, large: Rows, axis: str) -> Drift:
    """Drift of the best η from the rows of a small size to those of a large one, over the seeds that both have."""
    start, end = small[0][axis], large[0][axis]
    value, low, high = (round(part / log2(end / start), 3) + 0.0 for part in map(or_nan, drift(small, large)))
    return Drift(start, end, value, low, high, tested=end)


def along(axis: str, start: int, end: int, line: str, drifts: Drifts) -> tuple[Move, str]:
    """The way along an axis, and a warning or "". Raises NoEvidence where it leaves what was measured."""
    found = drifts.get((line, axis)) or drifts.get(({MUP: MUP_SMALL}.get(line, line), axis))
    if not found:
        raise NoEvidence(f"{option_name(axis)}: no drift of --scheme {line} over {axis} is measured")
    further = axis == "width" and line != SP
    for size, whose in ((start, f"the sweep's {axis} {start}"), (end, f"{option_name(axis)} {end}")):
        if not found.smallest <= size <= found.tested * (1 + further):
            tested, option = f"measured from {found.smallest} to {found.tested}", option_name(axis)
            tested += f", and carried to {2 * found.tested}" * further
            raise NoEvidence(
                f"{whose}: the drift of {line} over {option} is {tested}; stay there, or sweep {option} {end}"
            )
    octaves = log2(end / start)
    ends = sorted((octaves * found.low, octaves * found.high))
    moved = Estimate(octaves * found.value if found.low * found.high > 0 else 0.0, *ends)
    size = max(start, end)
    warning = f"{axis} {size} is beyond {found.tested}, the largest at which an optimum was measured"
    return Move(axis, start, end, found, moved), warning * (size > found.tested)


def octaves(drift: Drift) -> str:
    """A drift with its interval."""
    return f"{interval(Estimate(drift.value, drift.low, drift.high), '{:+.2f}'.format)} octaves a doubling"
