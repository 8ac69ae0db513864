"""Which runs each of the paper's figures is made of, as data: one list of jobs per figure, at three scales.

    laptop   two cores, hours: R0 = 2 layers, head dim 16, sequences of 32, batch 16, 512 steps, 25 % warm-up
    paper    Table 6, for a GPU or a cluster: width 256, 4 layers, sequences of 256, batch 64, 8192 steps
    quick    a few runs of a few steps per axis: whether the machinery works, in minutes; it says nothing about u-µP

A recipe gets the scale and what is already known of its runs, for a search goes on from what it has found; it is asked
again until it names nothing new. Learning rates and other hyperparameters are exponents of 2 here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, product
from math import inf
from typing import Any, NamedTuple

import numpy as np

from microumup.config import PRESETS, TrainConfig
from microumup.lab.search import Record
from microumup.lab.sweep import Job, run_id

Options = dict[str, Any]
Known = dict[str, Record]  # records by run id
Recipe = Callable[["Scale", Known], list[Job]]

# What is drawn as one line: a scheme, and for µP the width at which it is the standard parametrization.
SP, MUP, MUP_SMALL, UMUP = "sp", "mup", "mup-small", "umup"
FIXED_EMB = "umup-fixed-emb"  # u-µP without its rule for the embedding's learning rate


class Scale(NamedTuple):
    """What the figures vary, and around what. Exponents of 2 are named log2_…"""

    name: str
    run: Options  # R0: what a run is where its figure does not say otherwise
    widths: tuple[int, ...]  # with every seed
    widest: tuple[int, ...]  # with one seed, and fewer learning rates
    seeds: int
    base: dict[str, int]  # µP's base width, by line
    log2_lr: dict[str, dict[int, float]]  # the centre of the grid of learning rates, by line and width
    log2_typical_lr: dict[str, float]  # where the learning rate is not swept
    log2_reach: dict[str, float] = {}  # noqa: RUF012 - how far that grid goes to either side, where it is not 2
    points: int = 0  # how many values of an axis are kept; 0: all
    narrow: int = 32  # the width at which other things than width are varied
    middle: int = 64  # the width whose tensors are looked at
    short_steps: int = 128  # of RQ, the shorter FP8 experiment
    fp8_widths: tuple[int, ...] = (32, 64)
    emb_widths: tuple[int, ...] = (32, 128)
    log2_emb: dict[str, tuple[float, float]] = {}  # noqa: RUF012 - the range of η̂_emb, by line
    steps: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    log2_lr_shift: dict[tuple[str, int], float] = {}  # noqa: RUF012 - of fig6's grid, by axis and its value
    search_steps: int = 256
    search_seeds: int = 5
    draws: int = 100
    coupling_seeds: int = 2
    ranges_every: int = 64
    ending_seeds: int = 3  # of fig9

    def some(self, values: Iterable[float]) -> list[float]:
        """All of them; or as many as this scale keeps, the first and the last among them."""
        values = list(values)
        if not self.points or len(values) <= self.points:
            return values
        return [values[round(i)] for i in np.linspace(0, len(values) - 1, self.points)]

    def grid(self, centre: float, reach: float, step: float = 0.5) -> list[float]:
        """Exponents around `centre`, `reach` to either side."""
        return self.some(np.arange(centre - reach, centre + reach + step / 2, step).tolist())

    def options(self, line: str, width: int, log2_lr: float, seed: int = 0, **more: Any) -> Options:
        """The options of a run that belongs to `line`."""
        scheme = {MUP_SMALL: MUP, FIXED_EMB: UMUP}.get(line, line)
        options = self.run | {"scheme": scheme, "width": width, "lr": 2.0**log2_lr, "seed": seed}
        if scheme == MUP:
            options |= {"base_width": self.base[line], "base_layers": self.run["layers"]}
        if line == FIXED_EMB:
            options["embedding_lr_rule"] = False
        return options | more

    def line(self, config: Options) -> str:
        """The line that a run with these options belongs to."""
        scheme: str = config["scheme"]
        if scheme == MUP:
            return MUP if config["base_width"] == self.base[MUP] else MUP_SMALL
        return FIXED_EMB if scheme == UMUP and not config["embedding_lr_rule"] else scheme

    def job(self, line: str, width: int, log2_lr: float, seed: int = 0, *, ranges: int = 0, **more: Any) -> Job:
        """A run that belongs to `line`."""
        return Job(TrainConfig(**self.options(line, width, log2_lr, seed, **more)), ranges)


@lru_cache(maxsize=1 << 15)
def id_of(job: Job) -> str:
    """`sweep.run_id`, which takes a while, remembered: recipes are asked again and again."""
    return run_id(job)


TABLE6_RANGES = {  # of the multipliers, as exponents of 2; Table 6 prints the rows shifted by one
    MUP_SMALL: {
        "eta_emb": (0, 8), "sigma_init": (-2, 2), "alpha_emb": (-2, 2), "alpha_attn_softmax": (-2, 2),
        "alpha_loss_softmax": (-2, 2),
    },
    UMUP: {
        "alpha_res": (-3, 3), "alpha_res_attn_ratio": (-3, 3), "alpha_ffn_act": (-3, 3),
        "alpha_attn_softmax": (-2, 2), "alpha_loss_softmax": (-3, 3),
    },
}  # fmt: skip

LAPTOP = Scale(
    name="laptop",
    run={"layers": 2, "head_dim": 16, "seq_len": 32, "batch_size": 16, "steps": 512, "warmup": 0.25},
    widths=(32, 64, 128),
    widest=(256,),
    seeds=3,
    base={MUP: 256, MUP_SMALL: 32},
    log2_lr={
        SP: {32: -6, 64: -7, 128: -7.5, 256: -9},
        MUP: {32: -8, 64: -8, 128: -8, 256: -8.5},
        MUP_SMALL: {32: -5.5, 64: -5.5, 128: -5.5, 256: -5.5},
        UMUP: {32: 0.5, 64: 0.5, 128: 0.5, 256: 0},
        FIXED_EMB: {32: 0.5, 64: 0.5, 128: 0.5},
    },
    log2_typical_lr={SP: -7, MUP: -8, MUP_SMALL: -5.5, UMUP: 0.5, FIXED_EMB: 0.5},
    log2_reach={MUP: 1.5, MUP_SMALL: 1, UMUP: 1.5},
    log2_emb={MUP_SMALL: (0, 7), UMUP: (-4, 3), FIXED_EMB: (-7, 0)},
    steps=(128, 512, 2048),
    batches=(4, 16, 64),
    depths=(1, 2, 4, 8),
    log2_lr_shift={
        ("steps", 128): 0.5, ("steps", 2048): -0.5, ("batch_size", 4): -0.5, ("batch_size", 64): 0.5,
        ("layers", 1): -0.5, ("layers", 8): 0.5,
    },
)  # fmt: skip

QUICK = LAPTOP._replace(
    name="quick",
    run=LAPTOP.run | {"seq_len": 8, "batch_size": 2, "steps": 4},
    widths=(16, 32),
    widest=(),
    points=3,
    seeds=2,
    base={MUP: 32, MUP_SMALL: 16},
    log2_lr={line: dict.fromkeys((16, 32), centre) for line, centre in LAPTOP.log2_typical_lr.items()},
    narrow=16,
    middle=16,
    short_steps=2,
    fp8_widths=(16, 32),
    emb_widths=(16, 32),
    steps=(2, 4),
    batches=(1, 2),
    depths=(1, 2),
    search_steps=2,
    search_seeds=2,
    draws=4,
    coupling_seeds=1,
    ranges_every=2,
    ending_seeds=1,
)

PAPER = Scale(
    name="paper",
    run={"warmup": 2000 / 8192} | PRESETS["paper"],
    widths=(128, 256, 512, 1024, 2048),
    widest=(4096,),
    seeds=3,
    base={MUP: 256, MUP_SMALL: 256},
    log2_lr={
        SP: {width: -8.5 - step for step, width in enumerate((128, 256, 512, 1024, 2048, 4096))},
        **{line: dict.fromkeys((128, 256, 512, 1024, 2048, 4096), -8.0) for line in (MUP, MUP_SMALL)},
        **{line: dict.fromkeys((128, 256, 512, 1024, 2048, 4096), 1.0) for line in (UMUP, FIXED_EMB)},
    },
    log2_typical_lr={SP: -9, MUP: -8, MUP_SMALL: -8, UMUP: 1, FIXED_EMB: 1},
    narrow=256,
    middle=256,
    short_steps=8192,
    fp8_widths=(256, 4096),
    emb_widths=(256, 2048),
    log2_emb={MUP_SMALL: (0, 8), UMUP: (-2, 6), FIXED_EMB: (-6, 2)},
    steps=(2048, 4096, 8192, 16384, 32768),
    batches=(16, 32, 64, 128, 256),
    depths=(2, 4, 8, 16),
    search_steps=8192,
    search_seeds=1,
    draws=339,
    coupling_seeds=1,
    ranges_every=512,
)

SCALES = {scale.name: scale for scale in (LAPTOP, PAPER, QUICK)}


# ---------------------------------------------------------------------------------------------------------------------
# Transfer over width


def over_width(scale: Scale, lines: Sequence[str], *, widest: bool = True) -> Iterator[Job]:
    """Learning rates around each line's optimum, at every width and from every seed."""
    for line, width, seed in product(lines, scale.widths, range(scale.seeds)):
        for log2_lr in scale.grid(scale.log2_lr[line][width], scale.log2_reach.get(line, 2)):
            yield scale.job(line, width, log2_lr, seed)
    for line, width in product(lines, scale.widest if widest else ()):
        for log2_lr in scale.grid(scale.log2_lr[line][width], 0.5):
            yield scale.job(line, width, log2_lr)


def fig1_left(scale: Scale, known: Known) -> list[Job]:
    """Every scheme; µP with a small base too, where that is another."""
    small = [MUP_SMALL] if scale.base[MUP] != scale.base[MUP_SMALL] else []
    return [*over_width(scale, (SP, MUP, UMUP)), *over_width(scale, small, widest=False)]


def fig5(scale: Scale, known: Known) -> list[Job]:
    """u-µP with its rule for the embedding's learning rate, as in Fig. 1, and without."""
    return [*over_width(scale, [UMUP], widest=False), *over_width(scale, [FIXED_EMB], widest=False)]


def over_emb(scale: Scale, lines: Sequence[str]) -> Iterator[Job]:
    """Factors of the embedding's learning rate, by octaves, at the width they are found at and the one they go to."""
    for line, width, seed in product(lines, scale.emb_widths, range(scale.seeds)):
        low, high = scale.log2_emb[line]
        for log2_emb in scale.grid((low + high) / 2, (high - low) / 2, 1):
            yield scale.job(line, width, scale.log2_typical_lr[line], seed, eta_emb=2.0**log2_emb)


def fig2_left(scale: Scale, known: Known) -> list[Job]:
    """µP."""
    return list(over_emb(scale, [MUP_SMALL]))


def fig4(scale: Scale, known: Known) -> list[Job]:
    """u-µP without the rule, and with it."""
    return list(over_emb(scale, [FIXED_EMB, UMUP]))


# ---------------------------------------------------------------------------------------------------------------------
# FP8

CASTS = ("none", "fp8")
E5M2_GRADIENTS = "fp8,all.dy=e5m2"
ALL_E4M3 = "fp8,o.x=e4m3,down.x=e4m3"


def with_casts(scale: Scale, width: int, steps: int, **more: Any) -> Iterator[Job]:
    """µP and u-µP from every seed, in float32 and in FP8, with the ranges before the first step and at the last."""
    for line, seed, fp8 in product((MUP_SMALL, UMUP), range(scale.seeds), CASTS):
        options = {"steps": steps, "fp8": fp8} | more
        yield scale.job(line, width, scale.log2_typical_lr[line], seed, ranges=steps, **options)


def fig1_right(scale: Scale, known: Known) -> list[Job]:
    """One width, the full length."""
    return list(with_casts(scale, scale.fp8_widths[-1], scale.run["steps"]))


def fig7(scale: Scale, known: Known) -> list[Job]:
    """All widths and both lengths; and, at full length, what saves µP and what does not."""
    jobs = [
        job
        for w in scale.fp8_widths
        for s in (scale.run["steps"], scale.short_steps)
        for job in with_casts(scale, w, s)
    ]
    steps, summed = scale.run["steps"], float(scale.run["batch_size"] * scale.run["seq_len"])
    for width, seed in product(scale.fp8_widths, range(scale.seeds)):
        for line, options in (
            (MUP_SMALL, {"fp8": "none", "loss_scale": summed}),
            (MUP_SMALL, {"fp8": "fp8", "loss_scale": summed}),
            (MUP_SMALL, {"fp8": E5M2_GRADIENTS}),
            (UMUP, {"fp8": ALL_E4M3}),
        ):
            jobs.append(scale.job(line, width, scale.log2_typical_lr[line], seed, ranges=steps, **options))
    return jobs


# ---------------------------------------------------------------------------------------------------------------------
# Search


def best(jobs: Sequence[Job], known: Known) -> Job:
    """The one with the lowest loss; those that diverged are worst."""
    return min(jobs, key=lambda job: inf if (loss := known[id_of(job)]["loss"]) is None else loss)


def learning_rates(scale: Scale, line: str, seed: int) -> list[Job]:
    """The first phase of a search: everything else at its default."""
    grid = scale.grid(scale.log2_typical_lr[line], 2)
    return [scale.job(line, scale.narrow, log2_lr, seed, steps=scale.search_steps) for log2_lr in grid]


def line_searches(scale: Scale, line: str, seed: int, log2_lr: float) -> dict[str, list[Job]]:
    """The second phase: each hyperparameter alone, by octaves over its range in Table 6, its default among them."""
    searches = {}
    for name, (low, high) in TABLE6_RANGES[line].items():
        values = sorted({0.0, *scale.grid((low + high) / 2, (high - low) / 2, 1)})
        searches[name] = [
            scale.job(line, scale.narrow, log2_lr, seed, steps=scale.search_steps, **{name: 2.0**value})
            for value in values
        ]
    return searches


def independent_search(scale: Scale, line: str, seed: int, known: Known) -> list[Job]:
    """The paper's search (App. F.1) from one seed, as far as what is known allows: the learning rate; at the best one
    every other hyperparameter alone; all the best values together, at that learning rate and around it."""

    def all_known(jobs: Sequence[Job]) -> bool:
        return all(id_of(job) in known for job in jobs)

    first = learning_rates(scale, line, seed)
    if not all_known(first):
        return first
    log2_lr = float(np.log2(best(first, known).config.eta))
    searches = line_searches(scale, line, seed, log2_lr)
    second = [job for jobs in searches.values() for job in jobs]
    if not all_known(second):
        return first + second
    found = {name: getattr(best(jobs, known).config, name) for name, jobs in searches.items()}
    third = [
        scale.job(line, scale.narrow, log2_lr + shift, seed, steps=scale.search_steps, **found)
        for shift in scale.some((0.0, -0.5, 0.5))
    ]
    return first + second + third


def random_search(scale: Scale, line: str) -> list[Job]:
    """Draws without replacement from the grid of all hyperparameters; the seeds of the trainings take turns."""
    rng, jobs = np.random.default_rng(0), dict[str, Job]()
    learning_rates = scale.grid(scale.log2_typical_lr[line], 2)
    while len(jobs) < scale.draws:
        values: Options = {
            name: 2.0 ** int(rng.integers(low, high, endpoint=True))
            for name, (low, high) in TABLE6_RANGES[line].items()
        }
        log2_lr = learning_rates[rng.integers(len(learning_rates))]
        seed = len(jobs) % scale.search_seeds
        job = scale.job(line, scale.narrow, log2_lr, seed, steps=scale.search_steps, **values)
        jobs.setdefault(id_of(job), job)
    return list(jobs.values())


def fig2_right(scale: Scale, known: Known) -> list[Job]:
    """Both searches of both schemes."""
    jobs = []
    for line in (MUP_SMALL, UMUP):
        for seed in range(scale.search_seeds):
            jobs += independent_search(scale, line, seed, known)
        jobs += random_search(scale, line)
    return jobs


def coupling(scale: Scale, line: str) -> list[Job]:
    """A grid of 5 x 5 over every pair of hyperparameters, the others at their defaults."""
    lr = scale.log2_typical_lr[line]
    axes = {"lr": scale.grid(lr, 2, 1)}
    axes |= {name: scale.some(np.linspace(*ends, 5).tolist()) for name, ends in TABLE6_RANGES[line].items()}
    jobs = {}
    for (one, other), seed in product(combinations(axes, 2), range(scale.coupling_seeds)):
        for x, y in product(axes[one], axes[other]):
            values = {one: x, other: y}
            log2_lr = values.pop("lr", lr)
            options: Options = {name: 2.0**value for name, value in values.items()}
            job = scale.job(line, scale.narrow, log2_lr, seed, steps=scale.search_steps, **options)
            jobs[id_of(job)] = job  # grids cross each other
    return list(jobs.values())


def fig10(scale: Scale, known: Known) -> list[Job]:
    """µP."""
    return coupling(scale, MUP_SMALL)


def fig11(scale: Scale, known: Known) -> list[Job]:
    """u-µP."""
    return coupling(scale, UMUP)


# ---------------------------------------------------------------------------------------------------------------------
# Transfer over steps, batch and depth


def fig6(scale: Scale, known: Known) -> list[Job]:
    """Learning rates at each number of steps, batch size and depth, around where the optimum is expected."""
    jobs = {}
    axes = {"steps": scale.steps, "batch_size": scale.batches, "layers": scale.depths}
    for axis, values in axes.items():
        for line, value, seed in product((MUP_SMALL, UMUP), values, range(scale.seeds)):
            centre = scale.log2_typical_lr[line] + scale.log2_lr_shift.get((axis, value), 0)
            for log2_lr in scale.grid(centre, 1.5):
                job = scale.job(line, scale.narrow, log2_lr, seed, **{axis: value})
                jobs[id_of(job)] = job
    deepest = max(scale.depths)
    centre = scale.log2_typical_lr[SP] + scale.log2_lr_shift.get((SP, deepest), 0)
    for seed, log2_lr in product(range(scale.seeds), scale.grid(centre, 1.5)):
        job = scale.job(SP, scale.narrow, log2_lr, seed, layers=deepest)
        jobs[id_of(job)] = job
    return list(jobs.values())


# ---------------------------------------------------------------------------------------------------------------------
# Scales of tensors


def over_training(scale: Scale, every: int) -> list[Job]:
    """µP and u-µP with the ranges of every linear's x, w and dy along training."""
    return [
        scale.job(line, scale.middle, scale.log2_typical_lr[line], seed, ranges=every)
        for line, seed in product((MUP_SMALL, UMUP), range(scale.seeds))
    ]


def fig3(scale: Scale, known: Known) -> list[Job]:
    """The first step and the last of what Fig. 8 follows."""
    return over_training(scale, scale.ranges_every)


def fig8(scale: Scale, known: Known) -> list[Job]:
    """All along."""
    return over_training(scale, scale.ranges_every)


def ending_axes(scale: Scale) -> dict[str, list[float]]:
    """What Fig. 9 varies, each alone: values as they are, not exponents."""
    log2_lr = scale.log2_typical_lr[UMUP]
    multipliers = {
        name: [2.0**v for v in scale.grid((low + high) / 2, (high - low) / 2, 1)]
        for name, (low, high) in TABLE6_RANGES[UMUP].items()
    }
    sizes = {"width": scale.widths, "layers": scale.depths, "steps": scale.steps, "batch_size": scale.batches}
    return {"lr": [2.0**v for v in scale.grid(log2_lr, 2)]} | {k: list(v) for k, v in sizes.items()} | multipliers


def fig9(scale: Scale, known: Known) -> list[Job]:
    """u-µP in FP8, one thing varied at a time, with the ranges at the end."""
    jobs = {}
    for (axis, values), seed in product(ending_axes(scale).items(), range(scale.ending_seeds)):
        for value in values:
            default = scale.options(UMUP, scale.narrow, scale.log2_typical_lr[UMUP], seed, fp8="fp8")
            config = TrainConfig(**default | {axis: value})
            job = Job(config, config.steps)
            jobs[id_of(job)] = job
    return list(jobs.values())
