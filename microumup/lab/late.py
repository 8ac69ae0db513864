"""Does a scheme still do late in a training, and with weight decay, what transfer over width asks of it?

The coordinate check's four steps at a small η see no weight decay and no weight that has changed much. `coordcheck
--late` trains at every width on the shipped text, with train's own schedule, and looks at four updates of every linear:
the first, those after 10 % and 50 % of the steps, and the last. Each is measured by what it does to the linear's output
for a validation text's x, RMS over tokens, elements and layers, at the weights that it meets:

    relative update    RMS(Δw x) / RMS(w x)               share of decay    RMS(Δw_decay x) / RMS(Δw x)

Δw_decay is what the update has beyond that of a twin which takes it, from the same weights, moments and batch, with
λ = 0. Not ‖Δw‖/‖w‖: an update acts on what x have in common, a new weight does not, so that at the start ‖Δw‖/‖w‖ goes
as width^-1/2 where the learning rate is right, and loses this later as weights come to be made of updates.

If one η and one λ are to serve all widths, both should stay as they are: width^0. The readout alone starts with outputs
that fall as width^-1/2, so its relative update may grow as width^1/2 until they are learned, and its share falls.

    decay                                       its part of an update            share, hidden weights
    independent         s(t) λ (Table 6)        of every weight alike            0
    fully-independent   λ                       of every weight alike            0
    coupled             s(t) η C λ              as C: less in wide models        u-µP -1/2, µP -1

λ is 2 over the steps: a weight that is left alone loses two thirds in a run, so that decay has a say within few steps.
η is 1/4 of the scheme's typical one: with all of it, in so short a training, seeds differ by more than is looked for,
and in µP updates of v, o and up grow with width for a while, as width^0.3.
The verdict is on --decay, or on independent decay with the others beside it. As in the short check a slope may be off
by 1/4, at each of the four updates. But trainings differ more than first steps do: here one that is off by up to 0.4 is
excused if its 95 % interval over seeds reaches what is right. `sp` is held against the same and fails: its updates grow
with width.
"""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import inf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup.backend import Array
from microumup.config import DECAYS, TrainConfig
from microumup.data import windows
from microumup.diverged import Diverged
from microumup.engine import Tensor
from microumup.fp8 import LINEARS
from microumup.lab import pictures as pic
from microumup.lab.scales import loss_with_logits, named_ops
from microumup.lab.slopes import TOLERANCE, Row, furthest_off, powers, row_of, slope_cells
from microumup.lab.sweep import corpus_of
from microumup.lab.tables import text_table
from microumup.lab.workers import run_all
from microumup.ranges import rms_of
from microumup.trainer import Trainer

WIDTHS = (32, 64, 128)
PART_OF_LR = 1 / 4  # of the scheme's typical η
SEEDS, STEPS, SEQ_LEN, BATCH_SIZE = 3, 128, 16, 16
PROBES = 64  # windows of the validation text
DECAY_IN_ALL = 2.0  # λ times the steps
MOMENTS = (0, 10, 50, 100)  # percent of the steps
MEASURES = {"update": "relative update", "share": "share of decay"}

Shares = dict[tuple[str, str, int], float]  # by measure, linear and moment


class Report(NamedTuple):
    """Findings of the late check."""

    scheme: str
    widths: tuple[int, ...]
    steps: int
    weight_decay: float
    decay: str  # the one that is judged
    rows: dict[str, list[Row]]  # of every measure, linear and moment, by decay; a row's step is its moment

    @property
    def passed(self) -> bool:
        return not failed(self.rows[self.decay])


def late(
    config: TrainConfig, *, widths: Sequence[int] = WIDTHS, seeds: Sequence[int] = range(SEEDS),
    decays: Sequence[str] = (), workers: int = 0, progress: bool = False,
) -> Report:  # fmt: skip
    """Train `config` at all `widths` with each of `decays`, its own if there are none, which is the one to be judged.

    Runs are in this process, with whatever has been replaced in it, or in as many others as there are `workers`.
    Raises ValueError for fewer than two widths, one that no network can have, and too few steps to be apart.
    """
    widths, decays = tuple(sorted(set(widths))), tuple(dict.fromkeys((config.decay, *decays)))
    if len(widths) < 2:
        raise ValueError(f"--widths: {', '.join(map(str, widths))} gives no slope; name two or more that differ")
    if len(set(updates(config.steps))) < len(MOMENTS):
        raise ValueError(f"--steps: {config.steps} are too few to look at four of them; take 8 or more")

    def job(decay: str, width: int, seed: int) -> TrainConfig:
        return replace(config, decay=decay, width=width, seed=seed)

    jobs = [job(*each) for width in reversed(widths) for each in ((d, width, s) for d in decays for s in seeds)]
    found = dict(zip(jobs, run_all(run, jobs, workers, progress=progress), strict=True))
    rows: dict[str, list[Row]] = {}
    for decay in decays:
        sizes = [[found[job(decay, width, seed)] for width in widths] for seed in seeds]
        rows[decay] = [
            row_of(*key, widths, np.array([[size[key] for size in of_seed] for of_seed in sizes]), expected(*key[:2]),
                   by_chance=True)
            for key in sizes[0][0]
        ]  # fmt: skip
    return Report(config.scheme, widths, config.steps, config.weight_decay, config.decay, rows)


def config_of(args: Namespace, model: dict[str, Any]) -> TrainConfig:
    """The training that a command asks for, of a model with such options. Raises ValueError for what cannot be."""
    decay, lam = args.decay or DECAYS[0], args.weight_decay
    c = TrainConfig(
        **model, steps=args.steps, batch_size=args.batch_size, lr=args.lr, decay=decay,
        weight_decay=min(1.0, DECAY_IN_ALL / args.steps) if lam is None else lam,
    )  # fmt: skip
    if not c.weight_decay:
        raise ValueError("--weight-decay: with 0 there is no decay to look at; name a λ above it")
    return c if args.lr is not None else replace(c, lr=PART_OF_LR * c.eta)


# ---- Measuring ----
def updates(steps: int) -> list[int]:
    """The updates that are looked at, one for each of MOMENTS."""
    return [min(round(percent / 100 * steps), steps - 1) for percent in MOMENTS]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def run(config: TrainConfig) -> Shares:
    """Train, and measure the four updates. From where it diverges on, everything is infinite."""
    corpus, keys = corpus_of(config), [(measure, name) for measure in MEASURES for name in LINEARS]
    trainer, found = Trainer(config, corpus), dict.fromkeys(((*key, m) for key in keys for m in MOMENTS), inf)
    moments = dict(zip(updates(config.steps), MOMENTS, strict=True))
    probe = next(iter(windows(corpus.valid, seq_len=config.seq_len, batch_size=PROBES, count=1)))
    try:
        for step in range(config.steps):
            if step in moments:
                before = {name: array.copy() for name, array in trainer.state().items()}
                twin = Trainer(replace(config, weight_decay=0.0), corpus)
                twin.load_state({name: array.copy() for name, array in before.items()}, step)
                twin.update(step)
            trainer.update(step)
            if step in moments:
                weights = {name: before[f"params/{name}"] for name in trainer.params}
                leaves = {name: Tensor(w, name) for name, w in weights.items()}
                loss = loss_with_logits(leaves, *probe, trainer.plan)
                measured = parts(loss, trainer.params, twin.params)
                found |= {(*key, moments[step]): size for key, size in measured.items()}
    except Diverged:
        pass
    return found


def parts(loss: Tensor, after: dict[str, Array], without_decay: dict[str, Array]) -> dict[tuple[str, str], float]:
    """The relative update and the share of decay of every linear on the tape of `loss`, by measure and name, from its
    weight after an update, and after one that had no decay."""
    squares: dict[tuple[str, str], float] = defaultdict(float)  # over the layers, which have one shape
    for op in named_ops(loss):
        if op.node.op == "linear":
            assert op.weight
            x, w, w_after, name = op.node.inputs[0], op.weight.data, after[op.weight.name], op.weight.name
            assert isinstance(x, Tensor)
            changes = {"w": w, "update": w_after - w, "decay": w_after - without_decay[name]}
            for kind, change in changes.items():
                squares[kind, op.kind] += rms_of(x.data @ change.T) ** 2

    def ratio(one: str, other: str, name: str) -> float:
        return sqrt(squares[one, name] / squares[other, name]) if squares[other, name] else inf

    found = {("update", name): ratio("update", "w", name) for name in LINEARS}
    return found | {("share", name): ratio("decay", "update", name) for name in LINEARS}


# ---- Judging ----
def expected(measure: str, tensor: str) -> tuple[float, float]:
    """The least and the greatest right slope, whatever the scheme."""
    if tensor == "head":
        return (0.0, 0.5) if measure == "update" else (-0.5, 0.0)
    return (0.0, 0.0)


def failed(rows: Sequence[Row]) -> list[Row]:
    """Rows of what goes wrong: of every measure and linear the one that is furthest off, and these by how far."""
    return sorted((row for row in furthest_off(rows) if row.verdict != "ok"), key=lambda row: -row.off)


def rule_behind(row: Row, rows: Sequence[Row]) -> str:
    """Rule to look at when a slope is wrong. A wrong learning rate moves both slopes, but not their sum, which is that
    of what decay takes away, relative to what is there."""
    update, share = (
        next(r for r in rows if (r.measure, r.tensor, r.step) == (measure, row.tensor, row.step))
        for measure in MEASURES
    )
    if abs(update.slope + share.slope) > TOLERANCE:
        return "the factor of λ in weight decay, which should not change with width: s(t) λ, without η C"
    return f"C, the learning rate factor, of the {'output' if row.tensor == 'head' else 'hidden'} weights"


def reading(report: Report) -> str:
    """The verdict in words, to be understood without the table; then those on other decays."""
    others = [f"{decay} decay, for comparison: {of_decay(report, decay)}" for decay in report.rows]
    return "\n".join([of_decay(report, report.decay), *others[1:]])


def of_decay(report: Report, decay: str) -> str:
    """The verdict on one decay."""
    rows = report.rows[decay]
    wrong, count, widths = failed(rows), len(furthest_off(rows)), report.widths
    with_decay = f"with {decay} decay, λ = {report.weight_decay:.3g},"
    if not wrong:
        return (
            f"PASS: from width {widths[0]} to {widths[-1]}, {with_decay} all {count} slopes are as they "
            f"should be from the first to the last of {report.steps} updates. They cannot show what depth and longer "
            f"runs ask for."
        )
    first, rule = wrong[0], rule_behind(wrong[0], rows)
    if rule.startswith("C,"):  # of which a wrong share only follows
        first = next((row for row in wrong if row.measure == "update" and rule_behind(row, rows) == rule), first)
    right = powers(first.expected, "width")
    alike = [r for r in wrong if (r.measure, r.verdict, rule_behind(r, rows)) == (first.measure, first.verdict, rule)]
    consequence = {
        ("share", "too small"): "One λ for all is too low for wide models.",
        ("share", "too large"): "One λ for all is too high for wide models.",
        ("update", "too small"): "One learning rate for all is too low for wide models.",
        ("update", "too large"): "One learning rate for all is too high for wide models.",
    }[first.measure, first.verdict]
    what = {"update": "the relative update", "share": "decay's share in the update"}[first.measure]
    return (
        f"FAIL: {with_decay} {len(wrong)} of {count} slopes are not as they should be. Look first at {rule}: "
        f"{what} of {', '.join(row.tensor for row in alike)} goes as {powers([row.slope for row in alike], 'width')} "
        f"where {right} is right, {first.step} % into the run. {consequence}"
    )


# ---- Showing ----
def table(report: Report) -> str:
    """A line per linear: sizes at every width where it is furthest off, the slope there, and those of all updates."""
    sections = []
    for decay, rows in report.rows.items():
        heads = [f"{report.scheme}, {decay} decay", *(f"width {width}" for width in report.widths)]
        lines = [[*heads, "at", "slope ± 95 %", "expected", "verdict", *(f"{percent} %" for percent in MOMENTS)]]
        for measure, words in MEASURES.items():
            lines.append([words])
            for row in furthest_off(rows):
                if row.measure == measure:
                    slopes = [f"{r.slope:.2f}" for r in rows if (r.measure, r.tensor) == (measure, row.tensor)]
                    slope, right = slope_cells(row)
                    sizes = [f"{size:.3g}" for size in row.rms]
                    lines.append([f"  {row.tensor}", *sizes, f"{row.step} %", slope, right, row.verdict, *slopes])
        sections.append(text_table(lines, "<" + ">" * (len(report.widths) + 1) + "<><" + ">" * len(MOMENTS)))
    return "\n\n".join(sections)


def plot(path: Path, report: Report) -> None:
    """Draw both measures over width at the four updates, a colour per decay. Raises ValueError without matplotlib,
    OSError where `path` cannot be written."""
    figure = pic.new_figure(2.8 * len(MOMENTS), 7)
    axes = figure.subplots(len(MEASURES), len(MOMENTS), sharex=True, sharey="row")
    looks = dict(zip(DECAYS, ((pic.BLUE, "o"), (pic.GREEN, "s"), (pic.VERMILION, "v")), strict=True))
    for decay, rows in report.rows.items():
        colour, marker = looks[decay]
        for row in rows:
            style = ":" if row.tensor == "head" else "-" if row.verdict == "ok" else "--"
            ax = axes[list(MEASURES).index(row.measure), MOMENTS.index(row.step)]
            ax.plot(report.widths, row.rms, style, color=colour, marker=marker, markersize=3, linewidth=1, alpha=0.8)
    for ax, percent in zip(axes[0], MOMENTS, strict=True):
        ax.set_title({0: "first update", 100: "last update"}.get(percent, f"after {percent} % of the steps"))
    for ax in axes.flat:
        ax.loglog(base=2)
        ax.set(xticks=report.widths, xticklabels=report.widths)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelleft=True)
    for ax, words in zip(axes[:, 0], MEASURES.values(), strict=True):
        ax.set_ylabel(words)
    for ax in axes[-1]:
        ax.set_xlabel("width")
    verdicts = {decay: "FAIL" if failed(rows) else "PASS" for decay, rows in report.rows.items()}
    keys = [axes[0, 0].plot([], [], "-", color=looks[decay][0], marker=looks[decay][1])[0] for decay in verdicts]
    labels = [f"{decay} decay: {verdict}" for decay, verdict in verdicts.items()]
    keys += [axes[0, 0].plot([], [], style, color=pic.BLACK)[0] for style in (":", "--")]
    labels += ["readout", "slope is wrong"]
    figure.legend(keys, labels, loc="outside lower center", ncols=len(keys), frameon=False)
    figure.suptitle(f"{report.scheme}: updates of every linear, and what weight decay has in them")
    pic.save(figure, path)
