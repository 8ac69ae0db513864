"""What the paper claims of each figure, in numbers, and whether it holds.

Every function here goes from the rows of a figure's CSV to claims: an effect with its 95 % interval over seeds, what
it has to be, and the verdict, which one function gives.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from math import inf, isnan, log, log2, nan
from typing import Any, NamedTuple

import numpy as np

from microumup.lab.statistics import (
    Estimate,
    basin_width,
    coupling,
    exactly,
    mean_interval,
    optimum,
    transfer_regret,
)

Row = dict[str, Any]
Rows = list[Row]


class Data(NamedTuple):
    """What a figure's CSVs hold."""

    runs: Rows  # a row per run; where there are none, per measurement
    ranges: Rows  # a row per run, step and tensor, where the figure looks at tensors; else none


EQ12, EQ22 = "eq. 12", "eq. 22 as printed"  # by which rule τ is worked out

HOLDS, PARTLY, FAILS = "holds", "holds partly", "does not hold at this scale"
REPORTED, NOT_JUDGED = "reported", "not judged"


class Criterion(NamedTuple):
    """What an effect has to be: at least `low` and at most `high`. Without either it is only reported."""

    low: float = -inf
    high: float = inf

    def __str__(self) -> str:
        if self.low > -inf and self.high < inf:
            return f"within ±{self.high:g}" if self.low == -self.high else f"from {self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low > -inf else f"at most {self.high:g}" if self.high < inf else ""

    def allows(self, value: float) -> bool:
        """Whether `value` meets it; NaN meets nothing."""
        return self.low <= value <= self.high


class Claim(NamedTuple):
    """A claim and what was found."""

    claim: str
    effect: float | None  # None: there is no such number
    low: float | None  # the 95 % interval over seeds; None where there is one seed
    high: float | None
    unit: str
    paper: str  # the paper's figure
    criterion: str
    verdict: str


def judge(estimate: Estimate, criterion: Criterion) -> str:
    """The verdict: the one place where it is made."""
    if criterion == Criterion():
        return REPORTED
    if isnan(estimate.value):
        return NOT_JUDGED
    if not criterion.allows(estimate.value):
        return FAILS
    ends = [nan_if_none(end) for end in (estimate.low, estimate.high)]
    return HOLDS if all(map(criterion.allows, ends)) else PARTLY


def nan_if_none(value: float | None) -> float:
    """For a comparison that nothing unknown passes."""
    return float("nan") if value is None else value


def together(verdicts: Sequence[str]) -> str:
    """The verdict on a claim of several parts: what is only reported does not count."""
    judged = [verdict for verdict in verdicts if verdict != REPORTED]
    if not judged:
        return REPORTED
    if NOT_JUDGED in judged:
        return NOT_JUDGED
    if all(verdict == HOLDS for verdict in judged):
        return HOLDS
    return FAILS if all(verdict == FAILS for verdict in judged) else PARTLY


def amount(value: float | None, unit: str) -> str:
    """A number as it is shown; differences have their sign."""
    if value is None:
        return "–"
    return {"nats": f"{value:+.3f}", "octaves": f"{value:+.2f}"}.get(unit, f"{value:.3g}")


def claim(text: str, estimate: Estimate, criterion: Criterion, *, unit: str, paper: str = "") -> Claim:
    """A claim with its verdict."""
    effect = None if isnan(estimate.value) else estimate.value
    return Claim(text, effect, estimate.low, estimate.high, unit, paper, str(criterion), judge(estimate, criterion))


# ---------------------------------------------------------------------------------------------------------------------
# From rows to curves

NAMES = {
    "sp": "SP", "mup": "µP", "mup-small": "µP", "umup": "u-µP", "umup-fixed-emb": "u-µP without the embedding rule",
}  # fmt: skip
REPORT = Criterion()


def where(rows: Rows, **wanted: Any) -> Rows:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def values(rows: Rows, column: str) -> list[Any]:
    """What there is in a column, once each, in order."""
    return sorted({row[column] for row in rows})


def loss_of(row: Row) -> float:
    """The loss of a run; infinite if it diverged."""
    return inf if row["loss"] is None else float(row["loss"])


def loss_or_guess(row: Row) -> float:
    """The loss of a run; if it diverged that of guessing, which is less: for what is to be large, the careful side."""
    return log(row["vocab_size"]) if row["loss"] is None else float(row["loss"])


def curve(rows: Rows, x: str = "lr") -> list[tuple[float, float]]:
    """The loss against log2 of the column `x`."""
    return sorted((log2(row[x]), loss_of(row)) for row in rows)


def by_seed(rows: Rows) -> dict[int, Rows]:
    """The rows of each seed."""
    return {seed: where(rows, seed=seed) for seed in values(rows, "seed")}


def over_seeds(measure: Callable[..., float], *groups: Rows) -> Estimate:
    """The mean over seeds, with its interval, of `measure` of a seed's rows in each group; of seeds that all have."""
    split = [by_seed(rows) for rows in groups]
    shared = set.intersection(*map(set, split)) if split else set()
    return mean_interval([measure(*(rows[seed] for rows in split)) for seed in sorted(shared)])


def place(rows: Rows, x: str = "lr") -> float:
    """Where the loss is lowest, log2 of the column `x`; NaN when that may be beyond the grid."""
    best = optimum(curve(rows, x))
    return best.x if best.inside else nan


def lowest(rows: Rows, x: str = "lr") -> float:
    """The lowest loss over the column `x`."""
    return optimum(curve(rows, x)).loss


def drift(narrow: Rows, wide: Rows, x: str = "lr") -> Estimate:
    """How far the optimum moves, in octaves."""
    return over_seeds(lambda one, other: place(other, x) - place(one, x), narrow, wide)


def gap(one: Rows, other: Rows, x: str = "lr") -> Estimate:
    """By how much the lowest loss of `other` is above that of `one`, in nats."""
    return over_seeds(lambda a, b: lowest(b, x) - lowest(a, x), one, other)


def sizes_with_seeds(rows: Rows, column: str = "width") -> list[int]:
    """The sizes that were run with the most seeds."""
    counts = {size: len(values(where(rows, **{column: size}), "seed")) for size in values(rows, column)}
    return [size for size, count in counts.items() if count == max(counts.values())]


def label(line: str, rows: Rows) -> str:
    """A line's name; with µP's base width where the rows have more than one."""
    bases = {row["line"]: row["base_width"] for row in rows if "base_width" in row and NAMES[row["line"]] == "µP"}
    return f"{NAMES[line]}, base width {bases[line]}" if line in bases and len(bases) > 1 else NAMES[line]


# ---------------------------------------------------------------------------------------------------------------------
# Transfer over width

STAYS = Criterion(-0.5, 0.5)
SP_DRIFTS = Criterion(high=-1.2)
SMALL_REGRET, LARGE_REGRET = Criterion(high=0.03), Criterion(low=0.2)
LOWER_LOSS = Criterion(low=0.02)


def fig1_left(data: Data) -> list[Claim]:
    """Drift, regret, basin and loss over width."""
    runs, widths = data.runs, sizes_with_seeds(data.runs)
    narrow, wide = widths[0], widths[-1]
    lines = [line for line in NAMES if line in values(runs, "line")]
    found = []
    for line in lines:
        ends = where(runs, line=line, width=narrow), where(runs, line=line, width=wide)
        found.append(claim(
            f"{label(line, runs)}: the best learning rate moves from width {narrow} to {wide} by", drift(*ends),
            SP_DRIFTS if line == "sp" else STAYS, unit="octaves", paper="drifts" if line == "sp" else "stays",
        ))  # fmt: skip
    for line in lines:
        ends = where(runs, line=line, width=narrow), where(runs, line=line, width=wide)
        criterion = {"sp": LARGE_REGRET, "umup": SMALL_REGRET}.get(line, REPORT)
        regret = over_seeds(lambda a, b: transfer_regret(curve(a), curve(b)), *ends)
        text = f"{label(line, runs)}: what the learning rate best at width {narrow} costs at width {wide}"
        found.append(claim(text, regret, criterion, unit="nats", paper="much" if line == "sp" else "little"))
    for line in lines:
        basin = over_seeds(lambda rows: basin_width(curve(rows)).octaves, where(runs, line=line, width=wide))
        text = f"{label(line, runs)}: width of the basin, 0.02 nats above the lowest loss, at width {wide}"
        found.append(claim(text, basin, REPORT, unit="octaves wide", paper="u-µP's is wider than µP's"))
    for line in (line for line in ("mup", "mup-small") if line in lines):
        for width in values(where(runs, line=line), "width"):
            ends = where(runs, line="umup", width=width), where(runs, line=line, width=width)
            criterion = LOWER_LOSS if line == "mup" and width in widths[:2] else REPORT
            text = f"{label(line, runs)}: its lowest loss is above u-µP's at width {width} by"
            found.append(claim(text, gap(*ends), criterion, unit="nats", paper="above 0"))
    for width, twice in pairwise(widths):
        ends = where(runs, line="mup", width=twice), where(runs, line="umup", width=width)
        text = f"u-µP's lowest loss at width {width} is above µP's at width {twice} by"
        found.append(
            claim(text, gap(*ends), REPORT, unit="nats", paper="u-µP reaches the loss of µP at twice its width")
        )
    return found


WORSE_WITHOUT = Criterion(low=0.025)


def fig5(data: Data) -> list[Claim]:
    """What the rule for the embedding's learning rate is worth."""
    runs, widths = data.runs, values(data.runs, "width")
    found = []
    for width in widths:
        ends = where(runs, line="umup", width=width), where(runs, line="umup-fixed-emb", width=width)
        text = f"without the rule the lowest loss at width {width} is higher by"
        found.append(claim(text, gap(*ends), WORSE_WITHOUT, unit="nats", paper="higher at large width"))
    for line, criterion in (("umup", STAYS), ("umup-fixed-emb", REPORT)):
        ends = where(runs, line=line, width=widths[0]), where(runs, line=line, width=widths[-1])
        text = f"{NAMES[line]}: the best learning rate moves from width {widths[0]} to {widths[-1]} by"
        found.append(claim(text, drift(*ends), criterion, unit="octaves", paper="stays"))
    return found


EMB_SHRINKS, EMB_STAYS = Criterion(high=-1.0), Criterion(-0.5, 0.5)


def embedding_lr(data: Data, criteria: dict[str, Criterion], paper: dict[str, str]) -> list[Claim]:
    """How far the best η̂_emb moves from the smallest to the largest width, and what that costs if it is not moved."""
    widths = values(data.runs, "width")
    found = []
    for line, criterion in criteria.items():
        ends = where(data.runs, line=line, width=widths[0]), where(data.runs, line=line, width=widths[-1])
        text = f"{NAMES[line]}: the best η̂_emb moves from width {widths[0]} to {widths[-1]} by"
        found.append(claim(text, drift(*ends, x="eta_emb"), criterion, unit="octaves", paper=paper[line]))
        regret = over_seeds(lambda a, b: transfer_regret(curve(a, "eta_emb"), curve(b, "eta_emb")), *ends)
        text = f"{NAMES[line]}: what the η̂_emb best at width {widths[0]} costs at width {widths[-1]}"
        found.append(claim(text, regret, REPORT, unit="nats"))
    return found


def fig2_left(data: Data) -> list[Claim]:
    """µP."""
    return embedding_lr(data, {"mup-small": EMB_SHRINKS}, {"mup-small": "poor transfer"})


def fig4(data: Data) -> list[Claim]:
    """u-µP with its rule and without."""
    paper = {"umup": "stays", "umup-fixed-emb": "-1.5 octaves from width 256 to 2048"}
    return embedding_lr(data, {"umup": EMB_STAYS, "umup-fixed-emb": REPORT}, paper)


# ---------------------------------------------------------------------------------------------------------------------
# FP8

UMUP_TRAINS, UMUP_TRAINS_LONG, MUP_FAILS = Criterion(high=0.06), Criterion(high=0.04), Criterion(low=1.0)
DOES_NOT_TRAIN = Criterion(low=UMUP_TRAINS.high)  # more than what still counts as training
MUP_FLUSHES, UMUP_FLUSHES_LITTLE = Criterion(low=0.99), Criterion(high=0.03)
LONG_WIDTH = 64  # at the full number of steps and this width less is allowed


def cast_gap(rows: Rows, fp8: str) -> Estimate:
    """Loss in FP8 minus loss in float32, in nats. NaN where float32 diverged."""

    def measure(cast: Rows, plain: Rows) -> float:
        return loss_or_guess(cast[0]) - loss_of(plain[0])

    return over_seeds(measure, where(rows, fp8=fp8), where(rows, fp8="none"))


def casts(data: Data) -> list[Claim]:
    """What FP8 costs each scheme, at each width and number of steps, and what it zeroes before the first."""
    runs, found = mean_loss(data.runs), []
    longest = max(values(runs, "steps"))
    for width, steps in sorted({(row["width"], row["steps"]) for row in runs}):
        here = where(runs, width=width, steps=steps)
        umup = UMUP_TRAINS_LONG if width == LONG_WIDTH and steps == longest else UMUP_TRAINS
        for line, criterion, paper in (("umup", umup, "close to 0"), ("mup-small", MUP_FAILS, "fails to train")):
            text = f"{NAMES[line]}: FP8's loss is above float32's at width {width}, {steps} steps, by"
            found.append(claim(text, cast_gap(where(here, line=line), "fp8"), criterion, unit="nats", paper=paper))
    for line, criterion in (("umup", UMUP_FLUSHES_LITTLE), ("mup-small", MUP_FLUSHES)):
        for width in values(runs, "width"):
            here = where(runs, line=line, width=width, steps=longest, fp8="none")
            share = over_seeds(lambda rows: nan_if_none(rows[0]["flushed"]), here)
            text = f"{NAMES[line]}: share of all dy that E4M3 turns into zeros at init, width {width}"
            found.append(claim(text, share, criterion, unit=""))
    return found


def mean_loss(rows: Rows) -> Rows:
    """Those that differentiate the mean loss, as is usual."""
    return [row for row in rows if row.get("loss_scale", 1.0) == 1.0]


def fig1_right(data: Data) -> list[Claim]:
    """One width, the full length."""
    return casts(data)


def fig7(data: Data) -> list[Claim]:
    """All widths and lengths, and what saves µP."""
    found, longest = casts(data), max(values(data.runs, "steps"))
    summed = [row for row in data.runs if row["loss_scale"] != 1.0]
    for width in values(data.runs, "width"):
        text = f"µP with the loss summed instead of averaged: FP8's loss is above float32's at width {width} by"
        found.append(claim(text, cast_gap(where(summed, width=width), "fp8"), UMUP_TRAINS, unit="nats"))
    for line, fp8, text, criterion in (
        ("mup-small", "fp8,all.dy=e5m2", "µP with gradients in E5M2", DOES_NOT_TRAIN),
        ("umup", "fp8,o.x=e4m3,down.x=e4m3", "u-µP with all in E4M3", REPORT),
    ):
        for width in values(data.runs, "width"):
            here = where(mean_loss(data.runs), line=line, width=width, steps=longest)
            sentence = f"{text}: the loss is above float32's at width {width} by"
            found.append(claim(sentence, cast_gap(here, fp8), criterion, unit="nats"))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Search

LR_ALONE, LITTLE_HARM, LESS_HARM = Criterion(low=0.03), Criterion(high=0.02), Criterion(low=0.0)


class Search(NamedTuple):
    """An independent search from one seed: the lowest loss after each phase. NaN for what was not run."""

    lr_alone: float
    lines: float  # after each hyperparameter alone
    combined: float  # with all the best values, at the learning rate they were found at
    readjusted: float  # and at the best of those around it

    @property
    def harm(self) -> float:
        """What combining costs against the best found before."""
        return self.combined - self.lines


def hyperparameters(rows: Rows) -> list[str]:
    """The columns that are searched beside the learning rate."""
    return [
        name
        for name in rows[0]
        if name not in ("line", "lr", "seed", "vocab_size", "loss", "diverged", "seconds", "version")
    ]


def changed(row: Row, names: Sequence[str]) -> list[str]:
    """Which of these hyperparameters are not at their default, which is 1 for all of them."""
    return [name for name in names if row[name] != 1.0]


def independent_search(rows: Rows) -> tuple[Search, Rows]:
    """The phases of one seed's search, found again in its rows as it went; and the rows that were no part of it."""
    names = hyperparameters(rows)
    first = [row for row in rows if not changed(row, names)]
    start = min(sorted(first, key=lambda row: float(row["lr"])), key=loss_of)  # of equal ones the lowest, as it went
    lines = [row for row in rows if len(changed(row, names)) == 1 and row["lr"] == start["lr"]]
    best = {}
    for name in names:
        candidates = [start, *(row for row in lines if changed(row, names) == [name])]
        best[name] = min(sorted(candidates, key=lambda row, name=name: float(row[name])), key=loss_of)  # type: ignore[misc]
    together = where(rows, **{name: best[name][name] for name in names})
    same_lr = where(together, lr=start["lr"])
    found = Search(
        loss_of(start), min(map(loss_of, [start, *lines])), loss_of(same_lr[0]) if same_lr else nan,
        min(map(loss_of, together), default=nan),
    )  # fmt: skip
    used = [*first, *lines, *together]
    return found, [row for row in rows if row not in used]


def searches(rows: Rows) -> list[Search]:
    """The independent searches of a line, one per seed."""
    return [independent_search(group)[0] for group in by_seed(rows).values()]


def random_draws(rows: Rows) -> Rows:
    """What a line's random search drew."""
    return [row for group in by_seed(rows).values() for row in independent_search(group)[1]]


def expected_best(losses: Sequence[float], count: int) -> float:
    """The mean, over all samples of `count` of the losses, of the lowest in it: a shorter random search."""
    ordered, total, chance = sorted(losses), 0.0, 1.0
    for i, loss in enumerate(ordered):  # the lowest is the i-th when none of those before is drawn, and it is
        left = len(ordered) - i
        drawn = chance * min(1.0, count / left)
        total += drawn * loss
        chance -= drawn
        if chance <= 1e-12:
            break
    return total


def fig2_right(data: Data) -> list[Claim]:
    """Both searches of both schemes."""
    found = {line: searches(where(data.runs, line=line)) for line in ("mup-small", "umup")}
    mup, umup = found.values()
    pairs = list(zip(mup, umup, strict=False))
    claims = [
        claim("after the learning rate alone u-µP's loss is below µP's by",
              mean_interval(m.lr_alone - u.lr_alone for m, u in pairs), LR_ALONE, unit="nats", paper="below"),
        claim("u-µP: combining the best of each line search costs", mean_interval(u.harm for u in umup), LITTLE_HARM,
              unit="nats", paper="a slight degradation"),
        claim("µP: combining the best of each line search costs", mean_interval(m.harm for m in mup), REPORT,
              unit="nats", paper="very harmful"),
        claim("combining costs µP more than u-µP by", mean_interval(m.harm - u.harm for m, u in pairs), LESS_HARM,
              unit="nats", paper="more"),
    ]  # fmt: skip
    for line, name in (("umup", "u-µP"), ("mup-small", "µP")):
        gain = mean_interval(s.lr_alone - s.lines for s in found[line])
        claims.append(claim(f"{name}: line searches gain, over the learning rate alone", gain, REPORT, unit="nats"))
        drawn = [loss_or_guess(row) for row in random_draws(where(data.runs, line=line))]
        best = exactly(expected_best(drawn, 30)) if drawn else mean_interval([])
        claims.append(claim(f"{name}: a random search of 30 runs finds", best, REPORT, unit="nats per token"))
    return claims


# ---------------------------------------------------------------------------------------------------------------------
# Coupling


def grids(rows: Rows) -> dict[tuple[str, str], np.ndarray]:
    """The losses of one seed over every pair of hyperparameters, the others at their defaults."""
    names = ["lr", *hyperparameters(rows)]
    usual = Counter(row["lr"] for row in rows).most_common(1)[0][0]  # the default: every pair without lr has it
    default = {name: usual if name == "lr" else 1.0 for name in names}
    found = {}
    for pair in combinations(names, 2):
        others = {name: value for name, value in default.items() if name not in pair}
        here = where(rows, **others)
        axes = [values(here, name) for name in pair]
        losses = {(row[pair[0]], row[pair[1]]): loss_or_guess(row) for row in here}
        cells = [[losses.get((x, y), nan) for y in axes[1]] for x in axes[0]]
        if min(len(axis) for axis in axes) > 1:
            found[pair] = np.array(cells)
    return found


def coupled(data: Data, paper: str) -> list[Claim]:
    """The mean over all pairs, and the pair that is coupled most."""
    by_pair: dict[tuple[str, str], list[float]] = {}
    for rows in by_seed(data.runs).values():
        for pair, losses in grids(rows).items():
            by_pair.setdefault(pair, []).append(coupling(losses))
    mean = mean_interval(np.mean(list(by_pair.values()), axis=0).tolist())
    most = max(by_pair, key=lambda pair: float(np.mean(by_pair[pair])))
    name = NAMES[data.runs[0]["line"]]
    text = f"{name}: the optimum of another row or column costs, mean over all pairs"
    worst = f"{name}: the same of the most coupled, {' and '.join(most)}"
    return [
        claim(text, mean, REPORT, unit="nats", paper=paper),
        claim(worst, mean_interval(by_pair[most]), REPORT, unit="nats"),
    ]


def fig10(data: Data) -> list[Claim]:
    """µP."""
    return coupled(data, "0.08")


def fig11(data: Data) -> list[Claim]:
    """u-µP."""
    return coupled(data, "0.03")


# ---------------------------------------------------------------------------------------------------------------------
# Steps, batch, depth

DRIFTS_LITTLE, DEEP_LOSS = Criterion(-1.25, 1.25), Criterion(low=0.02)
AXES = {"steps": "steps", "batch_size": "sequences in a batch", "layers": "layers"}


def along(rows: Rows, axis: str) -> Rows:
    """The rows in which of steps, batch and depth at most `axis` is not at its default.

    The default is what most rows have: each of the others is varied with this one left alone.
    """
    defaults = {name: Counter(row[name] for row in rows).most_common(1)[0][0] for name in AXES if name != axis}
    return where(rows, **defaults)


def fig6(data: Data) -> list[Claim]:
    """Transfer of the learning rate, and the loss of the deepest model."""
    found = []
    pair = [row for row in data.runs if row["line"] != "sp"]
    for axis, words in AXES.items():
        sizes = values(along(pair, axis), axis)
        for line in ("mup-small", "umup"):
            rows = where(along(pair, axis), line=line)
            ends = where(rows, **{axis: sizes[0]}), where(rows, **{axis: sizes[-1]})
            criterion = REPORT if axis == "layers" else DRIFTS_LITTLE
            text = f"{NAMES[line]}: the best learning rate moves from {sizes[0]} to {sizes[-1]} {words} by"
            found.append(claim(text, drift(*ends), criterion, unit="octaves", paper="similar or better than µP's"))
    for steps in values(along(pair, "steps"), "steps"):
        own, others = (where(along(pair, "steps"), line=line, steps=steps) for line in ("umup", "mup-small"))
        text = f"µP: its lowest loss is above u-µP's after {steps} steps by"
        found.append(claim(text, gap(own, others), REPORT, unit="nats", paper="above 0"))
    by_depth = along(data.runs, "layers")
    deepest = max(values(by_depth, "layers"))
    deep = {line: where(by_depth, line=line, layers=deepest) for line in ("umup", "mup-small", "sp")}
    for better, worse in (("umup", "mup-small"), ("mup-small", "sp")):
        text = f"{deepest} layers: {NAMES[worse]}'s lowest loss is above {NAMES[better]}'s by"
        found.append(claim(text, gap(deep[better], deep[worse]), DEEP_LOSS, unit="nats", paper="above 0"))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Scales of tensors

INIT_LOW, INIT_HIGH, END_LOW, END_HIGH = Criterion(low=-1), Criterion(high=2), Criterion(low=-2), Criterion(high=5)
GROWS_MOST = Criterion(low=0.0)


def log2_rms(rows: Rows) -> dict[str, float]:
    """log2 of the RMS by tensor, of the rows of one step."""
    return {row["tensor"]: log2(row["rms"]) if row["rms"] else nan for row in rows}


def fig3(data: Data) -> list[Claim]:
    """The range of all tensors' RMS at the first step and at the last.

    q's and k's dy start lower by the paper's own rules, as attention is nearly uniform at init and hardly depends on
    its scores. They are held against nothing at init, but reported.
    """
    steps, found = values(data.ranges, "step"), []

    def add(rows: Rows, line: str, text: str, which: Callable[..., float], limit: Criterion, paper: str) -> None:
        extreme = over_seeds(lambda rows: which(log2_rms(rows).values()), rows)
        paper = paper if line == "umup" else "weights and gradients low"
        limit = limit if line == "umup" else REPORT
        found.append(claim(f"{NAMES[line]}: log2 of the {text}", extreme, limit, unit="octaves", paper=paper))

    for line in ("umup", "mup-small"):
        init, end = (where(data.ranges, line=line, step=step) for step in (steps[0], steps[-1]))
        of_scores = [row for row in init if row["tensor"].endswith((".q.dy", ".k.dy"))]
        others = [row for row in init if row not in of_scores]
        add(others, line, "smallest RMS at init, q's and k's dy aside", min, INIT_LOW, "near 0")
        add(others, line, "largest RMS at init", max, INIT_HIGH, "near 0")
        add(of_scores, line, "smallest RMS of q's and k's dy at init", min, REPORT, "near 0")
        add(end, line, "smallest RMS at the end", min, END_LOW, "in E4M3's range, -9 to 8.8")
        add(end, line, "largest RMS at the end", max, END_HIGH, "in E4M3's range, -9 to 8.8")
    return found


def growth(first: Rows, last: Rows, kind: str) -> dict[str, float]:
    """By how many octaves the RMS of every tensor of a kind grows, `.w` or `.x`."""
    before, after = log2_rms(first), log2_rms(last)
    return {name: after[name] - before[name] for name in before if name.endswith(kind)}


def lead(of: dict[str, float], tensor: str) -> float:
    """By how much `tensor` is ahead of all others."""
    return of[tensor] - max(value for name, value in of.items() if name != tensor)


def fig8(data: Data) -> list[Claim]:
    """Which of u-µP's weights and which of its inputs grows most.

    Gradients are left out: q's and k's dy grow more than anything else, as they start low and catch up.
    """
    steps = values(data.ranges, "step")
    ends = tuple(where(data.ranges, line="umup", step=step) for step in (steps[0], steps[-1]))
    last_down = max(name for name in values(data.ranges, "tensor") if name.endswith("down.x"))
    found = []
    for tensor, kind, words in (("head.w", ".w", "weight"), (last_down, ".x", "input")):
        own = over_seeds(lambda a, b, tensor=tensor, kind=kind: growth(a, b, kind)[tensor], *ends)
        ahead = over_seeds(lambda a, b, tensor=tensor, kind=kind: lead(growth(a, b, kind), tensor), *ends)
        found.append(claim(f"u-µP: {tensor} grows by", own, REPORT, unit="octaves", paper="grows"))
        text = f"u-µP: {tensor} grows more than any other {words} by"
        found.append(claim(text, ahead, GROWS_MOST, unit="octaves", paper="grows most"))
    return found


MOVES, HARDLY_MOVES = Criterion(low=1.0), Criterion(high=1.0)
ENDS = {"rms_head_w": "head's weight", "rms_down_x": "last FFN-down input", "rms_down_dy": "last FFN-down gradient"}


def one_at_a_time(rows: Rows) -> dict[str, Rows]:
    """The rows by the column that is varied in them, the others at their defaults: what most rows have."""
    fixed = {*ENDS, "line", "seed", "loss", "diverged", "seconds", "version"}
    names = [name for name in rows[0] if name not in fixed]
    default = {name: Counter(row[name] for row in rows).most_common(1)[0][0] for name in names}
    return {
        name: where(rows, **{other: value for other, value in default.items() if other != name}) for name in names
    }  # fmt: skip


def moved(rows: Rows) -> float:
    """The largest change of one of the three tensors' RMS over the rows, in octaves."""
    spans = []
    for column in ENDS:
        ends = [log2(row[column]) for row in rows if row[column]]
        spans.append(max(ends) - min(ends) if ends else nan)
    return max(spans)


def fig9(data: Data) -> list[Claim]:
    """How far each hyperparameter moves the RMS at the end of training."""
    found = []
    for name, rows in one_at_a_time(data.runs).items():
        low, high = (values(rows, name)[i] for i in (0, -1))
        criterion, paper = (MOVES, "moves it") if name == "lr" else (HARDLY_MOVES, "hardly moves it")
        low, high = (f"{end:.3g}" if isinstance(end, float) else end for end in (low, high))
        text = f"{name} from {low} to {high} moves the end RMS of one of three tensors by up to"
        found.append(claim(text, over_seeds(moved, rows), criterion, unit="octaves", paper=paper))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The rules

EXACT, SAMPLED, FORWARD_SILU, BACKWARD_SILU = (
    Criterion(high=1e-3), Criterion(high=0.05), Criterion(high=0.013), Criterion(high=0.05),
)  # fmt: skip
ATTENTION, WHOLE_MODEL, EQUAL, DIFFERENT, OFF = (
    Criterion(high=0.12), Criterion(high=0.2), Criterion(high=1e-12), Criterion(low=0.1), Criterion(low=0.05),
)  # fmt: skip


def largest(rows: Rows, off: Callable[[Row], float]) -> Estimate:
    """The largest of what is off, which no chance had a part in."""
    return exactly(max(map(off, rows))) if rows else mean_interval([])


def table1(data: Data) -> list[Claim]:
    """Measured against Table 1."""
    found = []
    for scheme, name in (("mup", "µP"), ("umup", "u-µP")):
        for quantities, words, criterion in ((("A", "C"), "A, C and residual", EXACT), (("√B",), "init std", SAMPLED)):
            rows = [row for row in where(data.runs, scheme=scheme) if row["quantity"] in quantities]
            text = f"{name}: {words} measured on models differ from Table 1 by at most"
            estimate = largest(rows, lambda row: abs(row["measured"] / row["paper"] - 1))
            found.append(claim(text, estimate, criterion, unit="", paper="0"))
    return found


def table4(data: Data) -> list[Claim]:
    """RMS of every op's tensors."""

    def off(row: Row) -> float:
        return abs(row["measured"] / row["expected"] - 1)

    modelled = ("gated_silu", "attention", "model")
    silu = where(data.runs, op="gated_silu")
    return [
        claim("ops whose factor is exact: RMS differs from what it should be by at most",
              largest([r for r in data.runs if r["op"] not in modelled], off), SAMPLED, unit="", paper="0"),
        claim("gated_silu, α from 1/8 to 8: RMS of its output differs from 1 by at most",
              largest(where(silu, tensor="y"), off), FORWARD_SILU, unit="", paper="0"),
        claim("and of its gradients by at most", largest([r for r in silu if r["tensor"] != "y"], off), BACKWARD_SILU,
              unit="", paper="0"),
        claim("attention over 16 to 256 tokens: RMS differs from 1 by at most",
              largest(where(data.runs, op="attention"), off), ATTENTION, unit="", paper="0"),
        claim("every tensor of a new u-µP model: RMS differs from what the rules imply by at most",
              largest(where(data.runs, op="model"), off), WHOLE_MODEL, unit=""),
    ]  # fmt: skip


def lemma_c1(data: Data) -> list[Claim]:
    """Whether the two networks are one."""
    proven, printed = (where(data.runs, rule=rule) for rule in (EQ12, EQ22))
    return [
        claim("with τ of eq. (12) the two networks differ by at most",
              largest(proven, lambda row: float(row["difference"])), EQUAL, unit="", paper="0"),
        claim("with τ as eq. (22) prints it they differ by at least",
              exactly(min(r["difference"] for r in printed)), DIFFERENT, unit="", paper="0"),
    ]  # fmt: skip


def eq22(data: Data) -> list[Claim]:
    """Whether α_res is what it is called."""
    proven, printed = (where(data.runs, rule=rule) for rule in (EQ12, EQ22))

    def off(row: Row) -> float:
        return abs(row["ratio"] - 1)

    return [
        claim("with τ of eq. (12) σ(residual)/σ(embedding) differs from α_res = 1 by at most", largest(proven, off),
              EQUAL, unit="", paper="0"),
        claim("with τ as eq. (22) prints it, by up to", largest(printed, off), OFF, unit="", paper="0"),
    ]  # fmt: skip
