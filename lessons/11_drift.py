# %% [markdown]
# # 11 · What drifts during training
#
# **The question.** u-µP starts every tensor near scale 1, in the middle of what FP8 can store. Training changes the
# weights, and with them everything. Which tensors move away, how far, and what makes them?
#
# About 15 minutes. From lesson 10: a linear multiplies its input x, its weight w and its output's gradient dy. FP8 has
# two formats, E4M3 up to 448 and E5M2 up to 57344; larger elements *saturate*, they become the largest. RMS is the
# typical size of an element, an *octave* a factor of 2 ([glossary](glossary.md)).
#
# Two questions for paper and pencil; the answers stand at the end:
#
# 1. One step of Adam moves an element of a weight by at most about η · C, the learning rate and the weight's factor. In
#    u-µP the head has C = 1, a hidden weight of fan_in 64 in a model of 2 layers (L = 4 branches) has C = fan_in^-1/2 ·
#    L^-1/2. After 192 steps, in which the schedule lets half of η = 1.4 pass on average, how far has each moved at
#    most?
# 2. The input of `up` comes from an RMSNorm without a gain. By how much can its RMS grow?

# %%
import json

import lesson
import numpy as np

from microumup import ranges
from microumup.config import TrainConfig
from microumup.data import load_corpus
from microumup.fp8 import E4M3, E5M2, parse_recipe
from microumup.lab.pictures import BLACK, BLUE, GREEN, ORANGE, VERMILION
from microumup.plan import plan
from microumup.trainer import train

# %% [markdown]
# ## Predict
# The head is the last linear: it makes a logit of each byte from the model's 64 features. We train 192 steps at a good
# learning rate, η = 2^0.5.

# %%
mine = lesson.guess("By what factor does the RMS of the head's weight grow?")

# %% [markdown]
# ## The naive way
# Look at a new model: every RMS is within 2 octaves of 1, and no element is past 2^6. So E4M3 fits, for all tensors and
# for good. `watch` calls us back during training, with all gradients still there; we note how every x, w and dy lies
# in E4M3.

# %%
STEPS, RATES = 192, [2**-1.5, 2**0.5, 2**2.5, 2**4]
ALL_E4M3, corpus = parse_recipe("fp8,all.all=e4m3"), load_corpus(seq_len=32)


def drift(lr, **more):
    """The Range of every tensor by step, and the final loss of a u-µP model of width 64."""
    found = {}
    config = TrainConfig(width=64, seq_len=32, steps=STEPS, lr=lr, **more)
    result = train(config, corpus, watch_every=16, watch=lambda step, losses: found.update(
        {step: ranges.linear_ranges(losses, ALL_E4M3)}))[1]  # fmt: skip
    return found, result["loss_final"]


runs = {lr: drift(lr) for lr in RATES}
usual, loss = runs[2**0.5]
first, last = usual[0], usual[STEPS - 1]
lesson.claim_most("at the start: octaves from RMS 1, most", max(abs(np.log2(r.rms)) for r in first.values()), 2)
lesson.claim_most("at the start: largest element", max(r.absmax for r in first.values()), 2**6)
for lr, (found, final) in runs.items():
    name, worst = max(found[STEPS - 1].items(), key=lambda item: item[1].saturated)
    print(f"η = 2^{np.log2(lr):.3g}: loss {final:.3f}; most saturated at the end: {name}, {worst.saturated:.3%}")
saturated = runs[16][0][STEPS - 1]["layer1.down.x"].saturated
lesson.claim_least("η = 16: share of the last FFN-down's x past 448", saturated, 0.01)

# %% [markdown]
# At a good learning rate nothing leaves the range here. At one that is ten times too large, inputs of `down`, the last
# linear of the FFN, do. The look at the start showed nothing of this.
#
# ## The paper's row
# **The idea:** ask for each tensor what holds it. Appendix F.3 has four answers:
#
# * an input behind an RMSNorm cannot grow: the norm sets its RMS to 1, whatever came before;
# * the inputs of `o` (attention's last linear) and `down` are held by nothing: they are products of what other linears
#   put out, and grow. These two go to E5M2;
# * the head's weight has to grow. Its input is held at 1 and its product divided by D = 64, so logits start at D^-1/2 =
#   1/8. To be sure of the next byte takes logits of several units, and only w can give them. Its C, the factor of the
#   learning rate, is 1, so it can; a hidden weight's is 1/16 here;
# * gradients settle after the first steps, but those of `o` and `down` shrink as their inputs grow: a norm that divides
#   a larger stream passes less gradient on.
#
# And one thing moves them all, says the paper's Fig. 9: the learning rate.
#
# ## Our code

# %%
lesson.show(ranges.Range, ranges.linear_ranges, ranges.measure)

# %% [markdown]
# ## Check
# Growth in octaves at η = 2^0.5, from the first step to the last. (Rounding differs between processors, and training
# makes more of it: so the margins are wide where another seed differs as much.)

# %%
grown = {name: np.log2(last[name].rms / first[name].rms) for name in first}


def most(tensor):
    """Names of all tensors of this kind, the one that grows most first."""
    return sorted((name for name in grown if name.endswith("." + tensor)), key=grown.get, reverse=True)


for tensor in ("w", "x", "dy"):
    print(f"{tensor:2} grows most:", *(f"{name} {grown[name]:+.1f}" for name in most(tensor)[:4]))
lesson.claim("head.w grows by, octaves", grown["head.w"], 3.3, within=0.2, relative=False)
lesson.claim_most("any other weight by", grown[most("w")[1]], 1)
lesson.claim_most("an x behind a norm by, in either direction", max(
    abs(grown[name]) for name in most("x") if name.split(".")[1] not in ("o", "down")), 0.01)  # fmt: skip
for name, octaves in (("layer0.down.x", 2.5), ("layer1.down.x", 1.5), ("layer0.o.x", 1.2), ("layer1.o.x", 1.2)):
    lesson.claim(f"{name} grows by", grown[name], octaves, within=0.7, relative=False)
lesson.claim_least("least growth of q's and k's dy", min(grown[f"layer{i}.{n}.dy"] for i in (0, 1) for n in "qk"), 2)
lesson.answer(mine, 2 ** grown["head.w"], "3.3 octaves: nothing else can make its logits larger, and its C is 1.")
weights = plan(TrainConfig(width=64), 512).weights
lesson.claim("C of the head over C of a hidden weight", weights["head"].C / weights["layer0.q"].C, 16, within=1e-9)

# %% [markdown]
# The paper finds the *last* `down` input ahead; here it is the first layer's, as in the package's own Fig. 8. q's and
# k's dy grow most of all, by catching up: at the start attention hardly depends on its scores, so they begin low.
#
# Now the learning rate. Octaves from RMS 1 at the end:

# %%
ends = {name: [np.log2(found[STEPS - 1][name].rms) for found, _ in runs.values()] for name in first}
for name, expected in (("head.w", (2.6, 3.3, 4.3, 5.2)), ("layer0.down.x", (1.2, 2.5, 4.4, 7.2))):
    for lr, measured, octaves in zip(RATES, ends[name], expected, strict=True):
        margin = 0.2 if name == "head.w" else 1
        lesson.claim(f"{name}, η = 2^{np.log2(lr):.3g}", measured, octaves, within=margin, relative=False)
shrinks = ends["layer1.down.dy"][0] - ends["layer1.down.dy"][3]
lesson.claim_least("layer1.down.dy is smaller at η = 2^4 than at 2^-1.5 by, octaves", shrinks, 4)
published = json.loads((lesson.ROOT / "docs" / "figures" / "fig9.json").read_text("utf-8"))["claims"]
for what, octaves in (("steps from", 2.9), ("alpha_res from", 2.4), ("alpha_loss_softmax from", 3.8)):
    (effect,) = [claim["effect"] for claim in published if claim["claim"].startswith(what)]
    lesson.claim(f"published: {what} its least to its most, octaves", effect, octaves, within=0.5, relative=False)

# %% [markdown]
# Other things move them as well at this scale. In the package's own Fig. 9, 16 times the steps do so by 2.9 octaves,
# α_res by 2.4, α_loss-softmax by 3.8; the paper sees next to nothing. So what one needs is room above 1.
#
# ## Figure

# %%
figure, (left, right) = lesson.figure(10, 4.2, ncols=2, sharey=True)
SHOWN = {"head.w": (BLUE, "o", "-"), "layer0.down.x": (VERMILION, "s", "--"), "layer1.down.x": (ORANGE, "D", "-."),
         "layer1.down.dy": (GREEN, "^", ":")}  # fmt: skip
for name in first:
    left.plot(list(usual), [usual[step][name].rms for step in usual], color="0.8", linewidth=0.8)
for name, (colour, marker, dashes) in SHOWN.items():
    style = {"color": colour, "marker": marker, "linestyle": dashes, "label": name}
    left.plot(list(usual), [usual[step][name].rms for step in usual], markersize=5, **style)
    right.plot(RATES, [2**end for end in ends[name]], **style)
for ax in (left, right):
    ax.set_yscale("log", base=2)
    ax.axhline(E4M3.max, color=BLACK, linewidth=1)
    ax.annotate("largest of E4M3", (0.02, E4M3.max), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
right.set_xscale("log", base=2)
left.set(xlabel="step", ylabel="RMS", title="η = 2^0.5")
right.set(xlabel="learning rate η", title=f"after {STEPS} steps")
left.legend(frameon=False, fontsize=8, loc="lower right")
lesson.save(
    figure, "Left: RMS of every x, w and dy along training, four of them in colour. Right: theirs at the end, over η."
)

# %% [markdown]
# ## What would fool you
# This lesson looks at RMS, as the paper does, and at η = 16 the check "every RMS lies in E4M3's range" passes. But the
# RMS is a typical size, and elements are not all typical. The check that sees it counts the elements past 448.

# %%
at_16 = runs[16][0][STEPS - 1]
lesson.claim_most("η = 16: largest RMS, over E4M3's 448", max(r.rms for r in at_16.values()) / E4M3.max, 1)
lesson.claim_least("yet the largest element, over 448", at_16["layer1.down.x"].absmax / E4M3.max, 3)
lesson.claim_most("and over E5M2's 57344", at_16["layer1.down.x"].absmax / E5M2.max, 0.5)

# %% [markdown]
# ## Exercise
# No stub this time. α_loss-softmax multiplies the logits in the loss. Set to 8, what should it do to the head's weight,
# and by how many octaves? Then add two lines at the script's end: `found, _ = drift(2**0.5, alpha_loss_softmax=8)` and
# `print(np.log2(found[STEPS - 1]["head.w"].rms))`. Above it was 3.3.
#
# ## Recap
# Inputs behind a norm stay, the head's weight and the inputs of `o` and `down` grow, by octaves, and the learning rate
# decides by how many. Starting at 1 leaves room for it, and E5M2 leaves more to the two that need it.
#
# **The way on.** [Lesson 12](12_search.py): how many hyperparameters have to be searched, and in which order?
#
# **Answers.** 1. The head: 192 · 0.7 = 135; the hidden weight: C = 1/8 · 1/2 = 1/16, so 8.4. 2. Not at all.
