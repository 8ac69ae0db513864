# %% [markdown]
# # 12 · Searching hyperparameters
#
# **The question.** A scheme has half a dozen hyperparameters. May each be searched alone, at the others' defaults, and
# the best values then be put together? That is cheap. When does it go astray?
#
# About 15 minutes. From earlier lessons: µP and u-µP are tables of rules ([06](06_parametrizations.py)), η is the
# learning rate, RMS a typical size. *Hyperparameters* are what the rules leave to you: u-µP's are factors α before ops
# that are not linear, µP's also the init's scale σ_init and the embedding's α_emb ([glossary](glossary.md)). On paper:
#
# 1. Six hyperparameters with five values each: how many runs has the full grid, how many have six line searches?
# 2. In µP a new model's logits are proportional to σ_init · α_loss. α_loss = 1 is best at σ_init = 1. And at 1/4?

# %%
import json
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache

import lesson
import numpy as np

from microumup import ops
from microumup.config import TrainConfig
from microumup.data import load_corpus
from microumup.diverged import Diverged
from microumup.lab import search, statistics
from microumup.lab.pictures import BLACK, BLUE, VERMILION
from microumup.lab.scales import fresh_loss, named_ops
from microumup.plan import plan
from microumup.trainer import Trainer

SIZE = {"width": 32, "layers": 1, "seq_len": 16, "batch_size": 8, "steps": 64, "seed": 1}
BASE = {"umup": SIZE, "mup": SIZE | {"scheme": "mup", "base_width": 32, "base_layers": 1}}
RATES = {"umup": [2.0**k for k in range(-1, 4)], "mup": [2.0**k for k in range(-7, -2)]}
OWN = {"umup": ("alpha_attn_softmax", "alpha_ffn_act", "alpha_loss_softmax", "alpha_res"),
       "mup": ("alpha_attn_softmax", "sigma_init", "alpha_loss_softmax", "alpha_emb")}  # fmt: skip
LR = {"umup": 2.0, "mup": 2.0**-5}  # the best of those, as a sweep says
VALUES = [2.0**k for k in range(-2, 3)]  # of each of them; 1 is the default

# %% [markdown]
# ## Predict
# µP's weights start with a standard deviation proportional to σ_init. Attention's scores are products of q and k, and
# each is a weight times an input of RMS 1. Double σ_init.

# %%
mine = lesson.guess("By what factor does the RMS of attention's scores grow?")

# %% [markdown]
# ## The naive way
# In µP, search α_loss at σ_init = 1, and keep it when somebody wants σ_init = 1/4. A run of this tiny model takes a
# tenth of a second; its loss is that on validation text, in nats per byte.

# %%
corpus = load_corpus(seq_len=16)


@cache
def loss(config):
    trainer = Trainer(config, corpus)
    with suppress(Diverged):
        for step in range(config.steps):
            trainer.update(step)
        return trainer.validate(16)


def train_all(configs):
    return [{"id": str(hash(config)), "config": asdict(config), "loss": loss(config)} for config in configs]


def grid(scheme, **axes):
    (one, xs), (other, ys) = axes.items()
    points = [[TrainConfig(**BASE[scheme] | {"lr": LR[scheme], one: x, other: y}) for y in ys] for x in xs]
    return np.array([[loss(point) or np.log(256) for point in row] for row in points])


GRIDS = {
    "µP: σ_init and α_loss": grid("mup", sigma_init=VALUES, alpha_loss_softmax=VALUES),
    "u-µP: α_res and α_loss": grid("umup", alpha_res=VALUES, alpha_loss_softmax=VALUES),
    "u-µP: η and α_loss": grid("umup", lr=RATES["umup"], alpha_loss_softmax=VALUES),
}
mup, umup, with_rate = GRIDS.values()
lesson.claim_least("µP at σ_init = 1/4: keeping that α_loss costs, nats", mup[0, mup[2].argmin()] - mup[0].min(), 0.1)

# %% [markdown]
# ## The paper's row
# **The idea** (Section 3.2, Appendix D): two hyperparameters that move the same scale of the model cannot be searched
# apart. So look which scale each one moves in a new model. There are five: the size of a step relative to its weight,
# what goes into attention's softmax, the FFN's sigmoid and the loss, and what branches add relative to the embedding.


# %%
def scales(config):
    nodes = {op.name: op.node.data for op in named_ops(fresh_loss(config, config.batch_size))}
    numbers = plan(config, config.batch_size * config.seq_len)
    q, k = (ops.split_heads(nodes[f"layer0.{name}_rope"], config.head_dim) for name in "qk")
    skip = nodes["embedding"] * np.prod([branch.b for branch in numbers.branches])
    step = config.eta * numbers.weights["layer0.q"].C / numbers.weights["layer0.q"].init_std
    scores = numbers.score_scale * lesson.rms(q @ k.swapaxes(-1, -2))
    sigmoid, logits = (lesson.rms(nodes[name]) for name in ("layer0.gate", "head"))
    branches = lesson.rms(nodes["layer0.ffn_add"] - skip) / lesson.rms(skip)
    return np.array([step, scores, config.alpha_ffn_act * sigmoid, config.alpha_loss_softmax * logits, branches])


moved = {}  # octaves that each scale (row) moves by when a hyperparameter (column) is doubled
for scheme, names in OWN.items():
    base = TrainConfig(**BASE[scheme])
    doubled = [replace(base, **{name: 2 * getattr(base, name)}) for name in ("lr", *names)]
    moved[scheme] = np.array([np.log2(scales(config) / scales(base)) for config in doubled]).T
    print(f"{scheme}. Rows: step, scores, sigmoid, loss, branches; columns: lr, {', '.join(names)}")
    print(moved[scheme].round(1) + 0)
lesson.claim_most("u-µP: distance from the identity matrix", abs(moved["umup"] - np.eye(5)).max(), 0.05)
lesson.claim("µP: scales that σ_init moves", (abs(moved["mup"][:, 2]) > 0.5).sum(), 5, within=0)
lesson.answer(mine, 2 ** moved["mup"][1, 2], "σ_init is in q and in k.")

# %% [markdown]
# In u-µP each hyperparameter moves one scale, its own. In µP σ_init moves all five, four of them together with another.
#
# ## Our code, and the check
# The paper's measure of what we have just seen, over all rows and columns: what it costs on average to take the best
# value of another one. Then whole searches: η, then each other one alone at the best η, then all best values together;
# or as many runs at random.

# %%
lesson.show(statistics.coupling, search.independent)
lesson.claim("µP: coupling of σ_init and α_loss", statistics.coupling(mup), 0.14, within=0.06, relative=False)
lesson.claim("u-µP: coupling of α_res and α_loss", statistics.coupling(umup), 0.04, within=0.04, relative=False)
rng, paths = np.random.default_rng(12), {}
for scheme, names in OWN.items():
    axes, base = [("lr", RATES[scheme]), *((name, VALUES) for name in names)], BASE[scheme] | {"lr": LR[scheme]}
    alone, *each, _, combined = (p.loss for _, p in search.independent(BASE[scheme], axes, 1, train_all))
    lines = list(dict.fromkeys(TrainConfig(**base | {name: x}) for name, xs in axes for x in xs))
    drawn = [TrainConfig(**base | {name: float(rng.choice(xs)) for name, xs in axes}) for _ in lines]
    paths[scheme] = [np.minimum.accumulate([loss(config) or 9 for config in configs]) for configs in (lines, drawn)]
    lesson.claim_most(f"{scheme}: the best line minus η alone", min(each) - alone, 0)
    lesson.claim(f"{scheme}: combined minus the best line", combined - min(each), 0, within=0.08, relative=False)

for figure, effect, *interval in (
    ("fig2-right", "combining the best of each line search costs µP more than u-µP by", -0.019, 0.024),
    ("fig10", "µP: the optimum of another row or column costs, mean over all pairs", 0.002, 0.047),
    ("fig11", "u-µP: the optimum of another row or column costs, mean over all pairs", 0.002, 0.025),
):
    claims = json.loads((lesson.ROOT / "docs" / "figures" / f"{figure}.json").read_text("utf-8"))["claims"]
    found = next(claim for claim in claims if claim["claim"] == effect)
    for end, nats in zip(("low", "high"), interval, strict=True):
        lesson.claim(f"{figure}, {effect}: {end}", found[end], nats, within=0.01, relative=False)

# %% [markdown]
# What do these few dozen runs show? That σ_init and α_loss belong together in µP, and that line searches improve on η
# alone. Not that combining harms µP *more*, as the paper finds. The package's own figures, with more seeds, cannot tell
# either: their 95 % interval for that is -0.019 to +0.024 nats, and over *all* pairs the coupling is 0.002 to 0.047 in
# µP, 0.002 to 0.025 in u-µP. It is undecided at this scale.
#
# ## Figure

# %%
figure, axes = lesson.figure(11, 3.6, ncols=4, width_ratios=(1, 1, 1, 1.5))
for ax, (name, losses) in zip(axes, GRIDS.items(), strict=False):
    ax.imshow(losses - losses.min(), origin="lower", cmap="viridis_r", vmin=0, vmax=0.5)
    ax.plot(np.argmin(losses, axis=1), range(5), "o", color=BLACK, markersize=12, fillstyle="none")
    scheme, one, _, other = name.replace(":", "").split()
    ax.set(title=f"{scheme}, {statistics.coupling(losses):.2f} nats", xlabel=f"log2 {other}", ylabel=f"log2 {one}")
    first = -1 if one == "η" else -2
    ax.set(xticks=range(5), xticklabels=range(-2, 3), yticks=range(5), yticklabels=range(first, first + 5))
    ax.grid(visible=False)
for scheme, label, colour in (("umup", "u-µP", BLUE), ("mup", "µP", VERMILION)):
    axes[3].plot(range(1, len(lines) + 1), paths[scheme][0], "-", color=colour, label=f"{label}, one by one")
    axes[3].plot(range(1, len(lines) + 1), paths[scheme][1], "--", color=colour, label=f"{label}, at random")
axes[3].set(xlabel="runs", ylabel="lowest loss so far", ylim=(2.35, 2.8))
axes[3].legend(frameon=False, fontsize=8)
lesson.save(figure, "Loss over two hyperparameters: dark is high, circles the best of a row. Right: both searches.")

# %% [markdown]
# ## What would fool you
# The matrix above is the identity, so u-µP's hyperparameters are independent: that check passes. But it looks at a new
# model. In training the head's weight grows, the faster the larger η ([11](11_drift.py)); then η scales the logits as
# α_loss does. The check that sees it trains.

# %%
lesson.claim_most("u-µP, matrix: what η and α_loss share", abs(moved["umup"][:, 0] @ moved["umup"][:, 3]), 0.05)
lesson.claim_least("u-µP: coupling of η and α_loss, trained", statistics.coupling(with_rate), 0.05)

# %% [markdown]
# ## Exercise
# No stub this time. Which other pair of µP's should be coupled by the matrix, and which not? Add at the script's end
# `print(statistics.coupling(grid("mup", alpha_emb=VALUES, sigma_init=VALUES)))`, and the same for a pair of yours. Does
# a short training feel all that the matrix shows?
#
# ## Recap
# Two hyperparameters that move the same scale have to be searched together; u-µP has one for each scale of a new model.
# That shows in single pairs here; that its searches profit from it, a few dozen runs of a tiny model cannot show.
#
# **The way on.** [Lesson 13](13_your_op.py): an op that the paper does not have, with a factor of its own.
#
# **Answers.** 1. 5^6 = 15,625; and 30, or 25, as all lines share the point of the defaults. 2. α_loss = 4.
