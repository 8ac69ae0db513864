"""How much of a search is needed? Fig. 2 (right): hyperparameters searched one by one, and at random."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import inf, isfinite, nan
from typing import Any

import numpy as np

from microumup.config import TrainConfig
from microumup.lab.figures.figure import Figure, Known
from microumup.lab.figures.judging import REPORT, Claim, Criterion, claim
from microumup.lab.figures.look import GRAY, POINTS, STYLES, captioned, panels
from microumup.lab.figures.rows import Data, Rows, by_seed, finite_loss, loss_of, where
from microumup.lab.figures.settings import MUP_SMALL, NAMES, TABLE6_RANGES, UMUP, Options, Run, Setting, id_of
from microumup.lab.figures.width import LOWER_LOSS
from microumup.lab.search import Record, independent
from microumup.lab.statistics import exactly, mean_interval
from microumup.lab.sweep import Job, plain

LITTLE_HARM, LESS_HARM = Criterion(high=0.02), Criterion(low=0.0)
RATE, LINES, COMBINED, RANDOM = PHASES = ("learning rate", "line searches", "combined", "random")
COLUMNS = tuple(dict.fromkeys(("lr", *TABLE6_RANGES[MUP_SMALL], *TABLE6_RANGES[UMUP], "seed", "vocab_size")))


class NotKnown(Exception):
    """A search cannot go on before its runs are made."""


def one_by_one(setting: Setting, line: str, seed: int, known: Known) -> list[Run]:
    """The paper's search (App. F.1) from one seed, as far as what is known allows.

    A run that the learning rate's search made is not listed again among the line searches.
    """
    runs: list[Run] = []
    phases = iter(PHASES)

    def train_all(configs: list[TrainConfig]) -> list[Record]:
        phase, asked = next(phases), list(map(Job, configs))
        made = {id_of(run.job) for run in runs} if phase == LINES else set()
        runs.extend(Run(job, line, phase) for job in dict.fromkeys(asked) if id_of(job) not in made)
        if any(id_of(job) not in known for job in asked):
            raise NotKnown
        return [{"id": id_of(job), "config": plain(job.config), "loss": known[id_of(job)]["loss"]} for job in asked]

    rates = [2.0**log2_lr for log2_lr in setting.grid(setting.log2_typical_lr[line], 2)]
    others = {name: sorted({0.0, *setting.octaves(*ends)}) for name, ends in TABLE6_RANGES[line].items()}
    axes = [("lr", rates), *((name, [2.0**value for value in values]) for name, values in others.items())]
    with suppress(NotKnown):
        independent(setting.options(line, seed=seed, steps=setting.search_steps), axes, 1, train_all)
    return runs


def at_random(setting: Setting, line: str) -> Iterator[Run]:
    """Draws without replacement from the grid of all hyperparameters; the seeds of the trainings take turns."""
    rng, drawn = np.random.default_rng(0), set[str]()
    rates = setting.grid(setting.log2_typical_lr[line], 2)
    while len(drawn) < setting.draws:
        ranges, seed = TABLE6_RANGES[line].items(), len(drawn) % setting.search_seeds
        options: Options = {name: 2.0 ** int(rng.integers(*ends, endpoint=True)) for name, ends in ranges}
        options["lr"] = 2.0 ** rates[rng.integers(len(rates))]
        run = setting.run(line, role=RANDOM, seed=seed, steps=setting.search_steps, **options)
        if id_of(run.job) not in drawn:
            drawn.add(id_of(run.job))
            yield run


def recipe(setting: Setting, known: Known) -> Iterator[Run]:
    """Runs of both searches of both schemes."""
    for line in (MUP_SMALL, UMUP):
        for seed in setting.seeds_for(f"search {line}", setting.search_seeds):
            yield from one_by_one(setting, line, seed, known)
        yield from at_random(setting, line)


def searches(rows: Rows) -> list[tuple[float, float, float]]:
    """Each seed's lowest loss after the learning rate alone, after the line searches, and of the best combined.

    The latter is at the learning rate that the values were found at; NaN if it was not run.
    """
    found = []
    for group in by_seed(rows).values():
        rate, lines, combined = (where(group, phase=phase) for phase in (RATE, LINES, COMBINED))
        same_lr = where(combined, lr=lines[0]["lr"]) if lines else []
        alone, after = (min(map(loss_of, rows), default=inf) for rows in (rate, [*rate, *lines]))
        found.append((alone, after, loss_of(same_lr[0]) if same_lr else nan))
    return found


def random_losses(rows: Rows) -> list[float]:
    """The losses of a line's random search."""
    return [finite_loss(row) for row in where(rows, phase=RANDOM)]


def expected_best(losses: Sequence[float], count: int) -> float:
    """The mean, over all samples of `count` of the losses, of the lowest in it: a shorter random search."""
    ordered, total, chance = sorted(losses), 0.0, 1.0
    for i, loss in enumerate(ordered):  # the lowest is the i-th when none of those before is drawn, and it is
        drawn = chance * min(1.0, count / (len(ordered) - i))
        total += drawn * loss
        chance -= drawn
    return total


def claims(data: Data) -> Iterator[Claim]:
    """Judge what each phase gains, and what combining costs."""

    def minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
        return [a - b for a, b in zip(one, other, strict=False)]  # of the seeds that both have

    mup, umup = (list(zip(*searches(where(data.runs, line=line)), strict=True)) for line in (MUP_SMALL, UMUP))
    harm, umup_harm = minus(mup[2], mup[1]), minus(umup[2], umup[1])
    text, alone = "combining the best of each line search costs", "with the learning rate alone tuned"
    for sentence, losses, criterion, paper in (
        (f"{alone}, u-µP's loss is below µP's by", minus(mup[0], umup[0]), LOWER_LOSS, "below"),
        (f"u-µP: {text}", umup_harm, LITTLE_HARM, "a slight degradation"),
        (f"µP: {text}", harm, REPORT, "very harmful"),
        (f"{text} µP more than u-µP by", minus(harm, umup_harm), LESS_HARM, "more"),
    ):
        yield claim(sentence, mean_interval(losses), criterion, paper=paper)
    for line, search in ((UMUP, umup), (MUP_SMALL, mup)):
        gain = mean_interval(minus(search[0], search[1]))
        yield claim(f"{NAMES[line]}: line searches gain, over the learning rate alone", gain)
        best = exactly(expected_best(random_losses(where(data.runs, line=line)), 30))
        yield claim(f"{NAMES[line]}: a random search of 30 runs finds", best, unit="nats per token")


def draw(data: Data) -> Any:
    """The best loss so far of both searches against the number of runs."""
    figure, axes = panels(1, 1, 7, 5.2)
    ax, seen = axes[0, 0], list[float]()
    for line in (MUP_SMALL, UMUP):
        rows, name, colour = where(data.runs, line=line), NAMES[line], STYLES[line]["color"]
        single = [row for row in rows if row["phase"] in (RATE, LINES)]
        paths = [np.minimum.accumulate(list(map(loss_of, group))) for group in by_seed(single).values()]
        length = min(map(len, paths))
        mean = np.mean([path[:length] for path in paths], axis=0)
        combined = float(np.mean([combined for *_, combined in searches(rows)]))
        ax.plot(range(1, length + 1), mean, color=colour, linewidth=2, label=f"{name}, one by one")
        ax.plot([length, length + 2], [mean[-1], combined], color=colour, linewidth=1, linestyle=":")
        ax.plot(length + 2, combined, label=f"{name}, the best combined", **STYLES[line] | POINTS)
        drawn = random_losses(rows)
        counts = range(1, min(length + 1, len(drawn)) + 1)
        best = [expected_best(drawn, count) for count in counts]
        ax.plot(counts, best, color=colour, linewidth=1.5, linestyle="--", label=f"{name}, at random (mean)")
        seen += [*mean[3:], combined, *best[-1:]]
    first = len(where(data.runs, line=UMUP, phase=RATE, seed=0))
    ax.axvline(first, **GRAY)
    ax.text(first, 0.98, "learning rate   line searches", transform=ax.get_xaxis_transform(), ha="center", va="top",
            color="dimgray", fontsize=8)  # fmt: skip
    if seen := [loss for loss in seen if isfinite(loss)]:
        margin = 0.08 * (max(seen) - min(seen)) or 0.1
        ax.set_ylim(min(seen) - margin, max(seen) + 2 * margin)
    ax.set(xlabel="runs", ylabel="lowest training loss so far (nats)")
    text = "solid and marker: means over seeds · dashed: mean over all choices of so many of the random runs"
    return captioned(figure, text, columns=2)


FIGURES = [Figure(
    "fig2-right", "Hyperparameters searched one by one, and at random",
    "u-µP needs little more than its learning rate, and its optima combine",
    """How much of a search is needed? First the learning rate alone, then every other hyperparameter
alone, then the best of each together. The marker is that combination: of hyperparameters that do not depend on each
other it would lie at the end of its curve or below. Dashed: the best of as many random draws, on average.""",
    claims, draw, recipe, COLUMNS, role="phase",
)]  # fmt: skip
