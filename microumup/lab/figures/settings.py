"""Settings of the figures, as data: how large they are run, and around what.

    laptop     two cores, hours: 2 layers, head dim 16, sequences of 32, batch 16, 512 steps, 25 % warm-up
    overnight  two cores, a night: 4 layers and 2048 steps, for what shows only in deeper models and longer runs
    paper      Table 6, for a GPU or a cluster: width 256, 4 layers, sequences of 256, batch 64, 8192 steps
    quick      a few runs of a few steps per axis: whether the machinery works, in minutes; it says nothing about u-µP

Learning rates and other hyperparameters are exponents of 2 here.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from microumup.config import PRESETS, TrainConfig
from microumup.lab.sweep import Job, run_id

Options = dict[str, Any]

# What is drawn as one line: a scheme, and for µP the width at which it is the standard parametrization.
SP, MUP, MUP_SMALL, UMUP = "sp", "mup", "mup-small", "umup"
FIXED_EMB = "umup-fixed-emb"  # u-µP without its rule for the embedding's learning rate
NAMES = {SP: "SP", MUP: "µP", MUP_SMALL: "µP", UMUP: "u-µP", FIXED_EMB: "u-µP without the embedding rule"}


class Run(NamedTuple):
    """A run that a figure asks for, and the part it has in it."""

    job: Job
    line: str
    role: str = ""  # of several: its axis, its phase, its pair of hyperparameters


class Setting(NamedTuple):
    """Sizes and grids that the figures vary, and around what. Exponents of 2 are named log2_…"""

    name: str
    usual: Options  # what a run is where its figure does not say otherwise
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
    short_steps: int = 128  # of the shorter FP8 experiment
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
    seeds_of: dict[str, int] = {}  # noqa: RUF012 - of parts that `figures power` said need more, or that are cheap

    def seeds_for(self, part: str, usual: int = 0) -> range:
        """The seeds of a part of a figure: as many as `seeds_of` says, else `usual`, else all that others have."""
        return range(self.seeds_of.get(part, usual or self.seeds))

    def some(self, values: list[float]) -> list[float]:
        """All of them; or as many as this setting keeps, the first and the last among them."""
        kept = min(self.points or len(values), len(values))
        return [values[round(i)] for i in np.linspace(0, len(values) - 1, kept)]

    def grid(self, centre: float, reach: float, step: float = 0.5) -> list[float]:
        """Exponents around `centre`, `reach` to either side."""
        return self.some(np.arange(centre - reach, centre + reach + step / 2, step).tolist())

    def around(self, line: str, width: int) -> tuple[float, float]:
        """The centre and the reach of a line's grid of learning rates at a width."""
        return self.log2_lr[line][width], self.log2_reach.get(line, 2)

    def octaves(self, low: float, high: float) -> list[float]:
        """Exponents from `low` to `high`, an octave apart."""
        return self.grid((low + high) / 2, (high - low) / 2, 1)

    def options(self, line: str, **other: Any) -> Options:
        """The options of a run that belongs to `line`: narrow and at the typical learning rate, but for the others."""
        scheme = {MUP_SMALL: MUP, FIXED_EMB: UMUP}.get(line, line)
        options = self.usual | {"scheme": scheme, "width": self.narrow, "lr": 2.0 ** self.log2_typical_lr[line]}
        if scheme == MUP:
            options |= {"base_width": self.base[line], "base_layers": self.usual["layers"]}
        if line == FIXED_EMB:
            options["embedding_lr_rule"] = False
        return options | other

    def run(self, line: str, *, role: str = "", ranges: int = 0, **other: Any) -> Run:
        """A run that belongs to `line`; its tensors are looked at every `ranges` steps."""
        return Run(Job(TrainConfig(**self.options(line, **other)), ranges), line, role)


@lru_cache(maxsize=1 << 15)
def id_of(job: Job) -> str:
    """`sweep.run_id`, which takes a while, remembered: recipes are asked again and again."""
    return run_id(job)


TABLE6_RANGES: dict[str, dict[str, tuple[int, int]]] = {  # of the multipliers; Table 6 prints them a row too low
    MUP_SMALL: {
        "eta_emb": (0, 8), "sigma_init": (-2, 2), "alpha_emb": (-2, 2), "alpha_attn_softmax": (-2, 2),
        "alpha_loss_softmax": (-2, 2),
    },
    UMUP: {
        "alpha_res": (-3, 3), "alpha_res_attn_ratio": (-3, 3), "alpha_ffn_act": (-3, 3),
        "alpha_attn_softmax": (-2, 2), "alpha_loss_softmax": (-3, 3),
    },
}  # fmt: skip

LAPTOP = Setting(
    name="laptop",
    usual={"layers": 2, "head_dim": 16, "seq_len": 32, "batch_size": 16, "steps": 512, "warmup": 0.25},
    widths=(32, 64, 128), widest=(256,), seeds=3,
    base={MUP: 256, MUP_SMALL: 32},
    log2_lr={
        SP: {32: -6, 64: -7, 128: -7.5, 256: -9},
        MUP: {32: -8, 64: -8, 128: -8, 256: -8.5}, MUP_SMALL: {32: -5.5, 64: -5.5, 128: -5.5, 256: -5.5},
        UMUP: {32: 0.5, 64: 0.5, 128: 0.5, 256: 0}, FIXED_EMB: {32: 0.5, 64: 0.5, 128: 0.5},
    },
    log2_typical_lr={SP: -7, MUP: -8, MUP_SMALL: -5.5, UMUP: 0.5, FIXED_EMB: 0.5},
    log2_reach={MUP: 1.5, MUP_SMALL: 1, UMUP: 1.5},
    log2_emb={MUP_SMALL: (0, 7), UMUP: (-4, 3), FIXED_EMB: (-7, 0)},
    steps=(128, 512, 2048), batches=(4, 16, 64), depths=(1, 2, 4, 8),
    log2_lr_shift={
        ("steps", 128): 0.5, ("steps", 2048): -0.5, ("batch_size", 4): -0.5, ("batch_size", 64): 0.5,
        ("layers", 1): -0.5, ("layers", 8): 0.5,
    },
    seeds_of={
        f"{MUP} 64": 6, f"{UMUP} 64": 6, f"{MUP} 128": 5, f"{UMUP} 128": 5, "casts": 6, "ranges": 25, "growth": 10,
        "steps 128": 8, "layers 8": 6, "batch_size 4": 9, "batch_size 64": 9, "end width": 6, "end layers": 8,
        "end batch_size": 21, "ε 128": 7, "widest": 3,
    },
)  # fmt: skip

OVERNIGHT = LAPTOP._replace(
    name="overnight",
    usual=LAPTOP.usual | {"layers": 4, "steps": 2048},
    base={MUP: 32, MUP_SMALL: 32},
    log2_lr={
        SP: {32: -6.5, 64: -7.5, 128: -8, 256: -9.5}, MUP: dict.fromkeys((32, 64, 128, 256), -5.5),
        MUP_SMALL: dict.fromkeys((32, 64, 128), -5.5), UMUP: dict.fromkeys((32, 64, 128, 256), 0.5),
        FIXED_EMB: dict.fromkeys((32, 64, 128), 0.5),
    },
    log2_reach={SP: 1.5, MUP: 1.5, MUP_SMALL: 1.5, UMUP: 1.5, FIXED_EMB: 1.5},
    short_steps=512, steps=(512, 2048, 8192), depths=(2, 4, 8, 16),
    log2_lr_shift={
        ("steps", 512): 0.5, ("steps", 8192): -0.5, ("batch_size", 4): -0.5, ("batch_size", 64): 0.5,
        ("layers", 2): -0.5, ("layers", 8): 0.5, ("layers", 16): 1,
    },
    search_steps=512, draws=60, coupling_seeds=1, ranges_every=256,
    seeds_of={f"{line} {width}": 5 for line in (MUP, UMUP) for width in (32, 64, 128)}
    | {"widest": 4, "ranges": 8, "growth": 8},
)  # fmt: skip

QUICK = LAPTOP._replace(
    name="quick",
    usual=LAPTOP.usual | {"seq_len": 8, "batch_size": 2, "steps": 4},
    widths=(16, 32), widest=(), points=3, seeds=2,
    base={MUP: 32, MUP_SMALL: 16},
    log2_lr={line: dict.fromkeys((16, 32), centre) for line, centre in LAPTOP.log2_typical_lr.items()},
    narrow=16, middle=16, short_steps=2, fp8_widths=(16, 32), emb_widths=(16, 32),
    steps=(2, 4), batches=(1, 2), depths=(1, 2),
    seeds_of={}, search_steps=2, search_seeds=2, draws=4, coupling_seeds=1, ranges_every=2, ending_seeds=1,
)  # fmt: skip

PAPER = Setting(
    name="paper",
    usual={"warmup": 2000 / 8192} | PRESETS["paper"],
    widths=(128, 256, 512, 1024, 2048), widest=(4096,), seeds=3,
    base={MUP: 256, MUP_SMALL: 256},
    log2_lr={SP: {128 << i: -8.5 - i for i in range(6)}} | {
        line: {128 << i: lr for i in range(6)} for line, lr in {MUP: -8, MUP_SMALL: -8, UMUP: 1, FIXED_EMB: 1}.items()
    },
    log2_typical_lr={SP: -9, MUP: -8, MUP_SMALL: -8, UMUP: 1, FIXED_EMB: 1},
    narrow=256, middle=256, short_steps=8192, fp8_widths=(256, 4096), emb_widths=(256, 2048),
    log2_emb={MUP_SMALL: (0, 8), UMUP: (-2, 6), FIXED_EMB: (-6, 2)},
    steps=(2048, 4096, 8192, 16384, 32768), batches=(16, 32, 64, 128, 256), depths=(2, 4, 8, 16),
    search_steps=8192, search_seeds=1, draws=339, coupling_seeds=1, ranges_every=512,
)  # fmt: skip

SETTINGS = {setting.name: setting for setting in (LAPTOP, OVERNIGHT, PAPER, QUICK)}
