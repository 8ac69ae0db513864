# %% [markdown]
# # 09 · A learning rate that stays
#
# **Question.** You have found the best learning rate of a small model. Is it the best one of a large model, too?
#
# *20 minutes. Can be read alone: all it needs is that a model is trained in steps, and that the learning rate η says
# how far each step goes. Why u-µP does what is seen here is the matter of [06](06_parametrizations.py) and
# [07](07_adam.py). Words: [glossary](glossary.md), [notation](notation.md).* Two questions for pencil and paper:
#
# 1. A sweep over η costs 12 trainings. Those of the large model take 16 times as long as those of a small one. What
#    does it save to sweep on the small one and to train the large one once?
# 2. The loss around its best η is a parabola in log2 η, 0.02 nats higher one octave (a factor of 2) away. What does it
#    cost to miss the best η by half an octave, what by two and a half octaves?

# %%
import json

import lesson
import numpy as np

from microumup import parametrization
from microumup.config import TrainConfig
from microumup.data import load_corpus
from microumup.diverged import Diverged
from microumup.lab import statistics
from microumup.lab.pictures import COLOURS
from microumup.trainer import Trainer

# %% [markdown]
# ## Predict
# The model is a [Llama](glossary.md#llama) of one layer that learns to continue text, byte by byte. SP, the *standard
# parametrization*, is what most code does: weights start with standard deviation 1/√fan_in (fan_in: how many numbers
# each output sums up), and all share one η. Let the model become four times as wide.

# %%
mine = lesson.guess("SP, from width 16 to width 64: by what factor does the best learning rate shrink?")

# %% [markdown]
# ## The naive way
# Sweep η at width 16, in factors of two, and use the best at width 64. Here are sweeps at three widths, so that we can
# see what that costs. A run has 64 steps of 8 sequences of 32 bytes. Its loss is the mean over texts not trained on, in
# [nats](glossary.md#nat) per byte: 5.55 = ln 256 for a model that knows nothing. A point is the mean of two seeds; each
# seed fixes initial weights and batches, and is the same at every η.

# %%
WIDTHS, SEEDS, STEPS = (16, 32, 64), (0, 1), 64
GRIDS = {"sp": range(-8, -1), "umup": range(-1, 4)}  # log2 of η
corpus = load_corpus(seq_len=32)


def final_loss(scheme, width, log_lr, seed):
    """Loss on validation text after a training; infinite where it diverged."""
    model = {"scheme": scheme, "width": width, "layers": 1, "seq_len": 32}
    trainer = Trainer(TrainConfig(**model, batch_size=8, steps=STEPS, lr=2.0**log_lr, seed=seed), corpus)
    try:
        for step in range(STEPS):
            trainer.update(step)
    except Diverged:
        return np.inf
    return trainer.validate(batches=16)


curves, best = {}, {}  # by scheme and width: the points (log2 η, loss), and their lowest
for scheme, grid in GRIDS.items():
    print(f"{scheme:4}   loss at log2 η =", *(f"{x:6}" for x in grid), "    lowest at")
    for width in WIDTHS:
        curve = [(x, float(np.mean([final_loss(scheme, width, x, seed) for seed in SEEDS]))) for x in grid]
        curves[scheme, width], best[scheme, width] = curve, statistics.optimum(curve)
        print(f"    width {width:9}   ", *(f"{y:6.3f}" for _, y in curve), f"  2^{best[scheme, width].x:.2f}")

# %% [markdown]
# In SP the best η shrinks by more than the factor of four that the width has grown by. The η that was best at width 16
# costs 0.16 nats at width 64. That is called the *regret*: the loss at an η chosen elsewhere, above the lowest loss
# that this model could have had. It eats up all that is gained by being four times as wide, and more.

# %%
regret = {scheme: statistics.transfer_regret(curves[scheme, 16], curves[scheme, 64]) for scheme in GRIDS}
moved = {scheme: best[scheme, 64].x - best[scheme, 16].x for scheme in GRIDS}
gain = best["sp", 16].loss - best["sp", 64].loss
lesson.claim("SP: the best η moves from width 16 to 64, in octaves", moved["sp"], -2.5, within=0.5, relative=False)
lesson.claim("SP: regret at width 64 of the η best at 16, nats", regret["sp"], 0.16, within=0.05, relative=False)
lesson.claim("SP: lowest loss at width 16 above that at 64, nats", gain, 0.12, within=0.04, relative=False)
lesson.answer(
    mine,
    2 ** -moved["sp"],
    "roughly the 4 of theory: in a model four times as wide, one update does four times as much",
)

# %% [markdown]
# ## The paper's row
# The idea first. What an update of a weight does to the weight's output is a sum of fan_in terms. They all pull the
# same way, since the update was made from this very input. So in SP the effect of a step grows as fan_in, and η has to
# make up for it. If the learning rate of each weight is divided by its own fan_in, a step does the same at every width,
# and the η in front of all can stay.
#
# In the paper's Table 1 a weight has three numbers: **A** multiplies it in the forward pass, **√B** is the standard
# deviation that it starts with, **C** multiplies η. A step moves what the weight does by A C η. SP has A = C = 1. u-µP,
# the *unit-scaled maximal update parametrization*, has A = C = 1/√fan_in for hidden weights, which makes A C =
# 1/fan_in; and √B = 1. The paper's Fig. 1 (left) shows the sweeps: the best η moves in SP and stays in u-µP.
#
# ## Our code
# The two rows of the table; and how the best η and the regret are read off a sweep.

# %%
lesson.show((parametrization, "SP"), (parametrization, "UMUP"), statistics.optimum, statistics.transfer_regret)

# %% [markdown]
# ## Check
# Learning rates are compared in [octaves](glossary.md#octave), factors of two. From width 16 to 64 the best η of u-µP
# moves by a sixth of an octave, and what was best at width 16 costs next to nothing at width 64. The tolerances cover
# what two seeds leave open: with other seeds a best η at this size moves by half an octave easily. The package's own
# sweeps are longer, of widths 32 to 128 and three seeds each ([results](../docs/results.md), fig1-left). They find that
# SP's moves by 1.88 octaves, u-µP's by 0.01.

# %%
lesson.claim("u-µP: the best η moves from width 16 to 64, in octaves", moved["umup"], 0.16, within=0.5, relative=False)
lesson.claim_most("u-µP: regret at width 64 of the η best at 16, nats", regret["umup"], 0.03)
lesson.claim_least("SP's regret over u-µP's", regret["sp"] / max(regret["umup"], 1e-3), 3)
lesson.claim("best η that lie inside of their grid, of 6", sum(found.inside for found in best.values()), 6, within=0)


def published(figure):
    """What the package's own runs found: the measured effect by claim."""
    claims = json.loads((lesson.ROOT / "docs" / "figures" / f"{figure}.json").read_text("utf-8"))["claims"]
    return {claim["claim"]: claim["effect"] for claim in claims}


for name, octaves in (("SP", -1.88), ("u-µP", -0.01)):
    measured = published("fig1-left")[f"{name}: the best learning rate moves from width 32 to 128 by"]
    lesson.claim(
        f"{name}: the best η moves from width 32 to 128, published", measured, octaves, within=0.05, relative=False
    )

# %% [markdown]
# ## Figure

# %%
figure, axes = lesson.figure(9, 4, ncols=2, sharey=True)
for scheme, axis in zip(GRIDS, axes, strict=True):
    for width, style, colour in zip(WIDTHS, ("o-", "s--", "^:"), COLOURS, strict=False):
        axis.plot(*zip(*curves[scheme, width], strict=True), style, color=colour, label=f"width {width}")
        axis.plot(*best[scheme, width][:2], "*", color=colour, markersize=16, markeredgecolor="black")
    axis.set(title={"sp": "SP", "umup": "u-µP"}[scheme], xlabel="log2 of the learning rate η", xticks=GRIDS[scheme])
axes[0].set(ylabel="loss, nats per byte", ylim=(2.4, 3.2))
axes[1].legend(frameon=False)
caption = "Loss over the learning rate at width 16 (circles, solid), 32 (squares, dashed) and 64 (triangles, dotted); \
stars mark the lowest point of each. In SP the stars wander to the left as the width grows. In u-µP they stay."
lesson.save(figure, caption)

# %% [markdown]
# ## What transfer does not promise
# The theory is about width. In the package's sweeps (fig6) the best η of u-µP does move with other things: by about an
# octave down from 128 to 2048 steps, 1.2 octaves up from 4 to 64 sequences in a batch, 1.7 up from 1 layer to 8. Nor is
# u-µP's loss promised to be the lowest: in the figure SP's is, at its own best η, by 0.06 nats at width 64.

# %%
above = best["umup", 64].loss - best["sp", 64].loss
lesson.claim("width 64: u-µP's lowest loss above SP's, nats", above, 0.06, within=0.04, relative=False)
found = published("fig6")
for what, octaves in (("128 to 2048 steps", -0.93), ("4 to 64 sequences in a batch", 1.19), ("1 to 8 layers", 1.66)):
    measured = found[f"u-µP: the best learning rate moves from {what} by"]
    lesson.claim(f"u-µP, {what}: octaves", measured, octaves, within=0.05, relative=False)

# %% [markdown]
# ## What would fool you
# Somebody sweeps SP over the grid $2^{-8}$, $2^{-7}$, $2^{-6}$ and reports: the best η is $2^{-6}$ at every width, it
# does not move. Our first check, that the best η moves by less than half an octave, passes. But all three are the last
# point of the grid, so the lowest losses lie beyond it. The check that sees it asks whether the best point has
# neighbours on both sides.

# %%
cut = {width: statistics.optimum(curves["sp", width][:3]) for width in WIDTHS}
lesson.claim("cut grid: SP's best η moves by, in octaves", cut[64].x - cut[16].x, 0, within=0.5, relative=False)
lesson.claim("cut grid: best η that lie inside of it, of 3", sum(o.inside for o in cut.values()), 0, within=0)

# %% [markdown]
# ## Exercise
# No stub this time. Add `"mup": range(-7, -1)` to GRIDS; where the scheme is `mup`, add `base_width=16` and
# `base_layers=1` to the model. At width 16 it then is SP but for attention's factor. Where must its best η lie there,
# and where at width 64? The table that is printed first tells; the checks stop further down, as they count on two
# schemes.
#
# ## Recap
# In SP the best learning rate falls as the width grows, and one found on a small model spoils a large one; in u-µP it
# stays within what seeds make uncertain. Read a sweep by its lowest point inside of the grid, and by the regret: what
# it costs to use the small model's choice. **The way on:** [10](10_fp8.py), what starting every tensor at scale one
# gives for free: training in 8 bits.
#
# ## Answers
# 1. On the large model 12 · 16 = 192 small trainings; on the small one 12, and 16 for the large run: 28, a seventh.
# 2. A parabola: 0.02 · 0.5² = 0.005 nats, and 0.02 · 2.5² = 0.125 nats. A small miss is cheap, a drift is not.
# 3. (The exercise.) Near SP's at width 16; and near the same at 64, as µP transfers too.
