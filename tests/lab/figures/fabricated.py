"""Made-up results of every run that a figure asks for: a world in which all that is claimed holds, and others."""

from collections.abc import Callable
from functools import cache, lru_cache
from math import log2
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from microumup.fp8 import LINEARS
from microumup.lab.figures.command import FIGURES
from microumup.lab.figures.figure import Figure, Known, data_of
from microumup.lab.figures.rows import Data, Rows
from microumup.lab.figures.settings import LAPTOP, Run, Setting, id_of
from microumup.lab.sweep import Job, plain


def lines(*, other: float = 0.0, **values: float) -> dict[str, float]:
    """A value per line, `other` for those not named."""
    names = ("sp", "mup", "mup_small", "umup", "umup_fixed_emb")
    return {name.replace("_", "-"): values.get(name, other) for name in names}


class World(NamedTuple):
    """What decides the loss and the ranges of a run; octaves and nats. Change a number, and a claim fails."""

    floor: dict[str, float] = lines(
        sp=2.2, mup=2.15, mup_small=2.1, umup=2.0, umup_fixed_emb=2.05
    )  # the loss at width 32
    lr: dict[str, float] = lines(
        sp=-6.2, mup=-8.1, mup_small=-5.5, umup=0.4, umup_fixed_emb=0.4
    )  # the best, at width 32
    lr_drift: dict[str, float] = lines(sp=-0.9)  # of it, per doubling of the width
    emb: dict[str, float] = lines(mup_small=4.0, umup=0.0, umup_fixed_emb=-3.0)  # the best η̂_emb
    emb_drift: dict[str, float] = lines(mup_small=-0.8, umup_fixed_emb=-0.5)
    steps_drift: dict[str, float] = lines(other=-0.2)
    batch_drift: dict[str, float] = lines(other=0.2)
    layers_drift: dict[str, float] = lines()
    basin: dict[str, float] = lines(sp=0.08, other=0.03)  # nats at an octave from the optimum
    cast: dict[str, float] = lines(umup=0.01, mup_small=6.0)  # what FP8 costs
    cast_summed: float = 0.015
    cast_e5m2: float = 4.0
    flushed: dict[str, float] = lines(umup=0.01, mup_small=0.997)
    against: dict[str, float] = lines(mup_small=0.1)  # how much two hyperparameters do the same thing: coupling
    init: tuple[float, float] = (-0.5, 1.5)  # log2 of the RMS of u-µP's tensors
    growth: float = 1.0  # of all of them
    growth_of: dict[str, float] = {  # noqa: RUF012
        "head.w": 3.0, "layer1.down.x": 2.5, "layer0.down.x": 2.0, "layer0.o.x": 2.0, "layer1.o.x": 2.0,
    }  # fmt: skip
    moves: dict[str, float] = {"lr": 1.0}  # noqa: RUF012 - the end RMS, octaves per octave
    eps: dict[str, float] = lines(other=-4.7, umup=-0.9)  # log10 of Adam's ε that costs 0.02 nats
    eps_drift: dict[str, float] = lines()
    diverged: Callable[[str, dict[str, Any]], bool] = lambda line, config: False
    noise: float = 0.002


@lru_cache(maxsize=1 << 15)
def config_of(job: Job) -> dict[str, Any]:
    """The options of a run, as its record has them."""
    return plain(job.config)


def record(world: World, line: str, job: Job) -> dict[str, Any]:
    """The made-up record of a run."""
    c = config_of(job)
    doublings = log2(c["width"] / 32)
    rng = np.random.default_rng((c["seed"], crc32(line.encode()), c["width"], c["steps"]))
    lr = world.lr[line] + world.lr_drift[line] * doublings
    lr += world.steps_drift[line] * log2(c["steps"] / 512) + world.batch_drift[line] * log2(c["batch_size"] / 16)
    lr += world.layers_drift[line] * log2(c["layers"] / 2)
    off = log2(c["lr"]) - lr - 0.02 * rng.standard_normal()
    loss = world.floor[line] - 0.12 * doublings - 0.1 * log2(c["steps"] / 512) - 0.1 * log2(c["layers"] / 2)
    loss += world.basin[line] * off**2 + world.noise * rng.standard_normal()
    emb = world.emb[line] + world.emb_drift[line] * doublings
    loss += 0.01 * (log2(c["eta_emb"]) - emb) ** 2 - 0.01 * emb**2  # so that at 1 it costs nothing
    names = ("sigma_init", "alpha_emb", "alpha_res", "alpha_ffn_act", "alpha_attn_softmax", "alpha_loss_softmax")
    shifts = {name: log2(c[name]) for name in names}
    loss += sum(0.02 * shift**2 for shift in shifts.values())
    one, other = (
        (shifts["sigma_init"], shifts["alpha_emb"])
        if line.startswith("mup")
        else (shifts["alpha_res"], shifts["alpha_ffn_act"])
    )
    loss += world.against[line] * ((one + other - 2) ** 2 - 2**2)
    if c["fp8"] != "none":
        cost = world.cast[line]
        if c["loss_scale"] != 1:
            cost = world.cast_summed
        elif "e5m2" in c["fp8"]:
            cost = world.cast_e5m2
        loss += cost
    loss += 0.02 * c["adam_eps"] / 10 ** (world.eps[line] + world.eps_drift[line] * doublings)
    diverged = world.diverged(line, c)
    steps = sorted({*range(0, c["steps"], job.ranges_every), c["steps"] - 1}) if job.ranges_every else []
    return {
        "id": id_of(job), "config": c, "ranges_every": job.ranges_every, "version": "0", "seconds": 1.0,
        "loss": None if diverged else round(float(loss), 5), "loss_valid": None, "diverged": diverged,
        "ranges": {str(step): ranges(world, line, c, step / (c["steps"] - 1)) for step in steps},
    }  # fmt: skip


def ranges(world: World, line: str, c: dict[str, Any], progress: float) -> dict[str, Any]:
    """The made-up ranges of all tensors, so far into training."""
    names = [f"layer{i}.{kind}.{t}" for i in range(c["layers"]) for kind in LINEARS[:-1] for t in ("x", "w", "dy")]
    names += [f"head.{t}" for t in ("x", "w", "dy")]
    found = {}
    low, high = world.init
    growth_of = dict(world.growth_of)
    if c["layers"] != 2:
        growth_of[f"layer{c['layers'] - 1}.down.x"] = growth_of.get("layer1.down.x", world.growth)
    for i, name in enumerate(names):
        start = (
            low
            + (high - low) * i / (len(names) - 1)
            + (0 if line.startswith("umup") else -9 if name.endswith("dy") else -3)
        )
        octaves = start + progress * (growth_of.get(name, world.growth) + 0.05 * (c["seed"] % 3))
        octaves += progress * sum(per * log2(c[hp] / (2**0.5 if hp == "lr" else 1)) for hp, per in world.moves.items())
        found[name] = {
            "rms": 2.0**octaves, "absmax": 2.0 ** (octaves + 2), "saturated": 0.0, "size": 100, "format": "e4m3",
            "underflow": world.flushed[line] if name.endswith("dy") else 0.0,
        }  # fmt: skip
    return found


@cache
def computed(name: str) -> Rows:
    """The rows of a figure without runs, which do take a second."""
    compute = FIGURES[name].compute
    assert compute
    return compute()


def records(figure: Figure, world: World, setting: Setting = LAPTOP) -> Known:
    """What a figure's runs would leave in that world."""
    assert figure.recipe
    known: Known = {}

    def missing() -> list[Run]:
        assert figure.recipe
        return [run for run in figure.recipe(setting, known) if id_of(run.job) not in known]

    while runs := missing():
        known |= {id_of(run.job): record(world, run.line, run.job) for run in runs}
    return known


def data(figure: Figure, world: World, setting: Setting = LAPTOP) -> Data:
    """What the figure's CSVs would hold in that world."""
    if figure.compute:
        return Data(computed(figure.name), [])
    return data_of(figure, setting, records(figure, world, setting))
