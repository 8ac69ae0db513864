# %% [markdown]
# # 10 · FP8: eight bits, and no scaling
#
# **The question.** A linear layer, y = x wᵀ, multiplies three arrays: its input x, its weight w, and dy, the gradient
# of y. Round all three to 8 bits before they are multiplied. Why does u-µP not mind, while µP learns nothing?
#
# About 20 minutes. Can be read alone; all you need is that training computes a gradient of the loss for every tensor.
# µP and u-µP are two sets of rules for how weights start, how they are multiplied and how fast they learn ([lesson
# 06](06_parametrizations.py)). RMS, the root mean square, is the typical size of an element ([glossary](glossary.md)).
# Two questions for paper and pencil, answered at the end:
#
# 1. A float is ±2^e · 1.m. The 8-bit E4M3 has 4 bits for e and 3 for m. Which of its numbers is nearest to 0.1?
# 2. A batch has 512 tokens, the vocabulary 256 bytes, and the loss is the mean over tokens. A new model gives each byte
#    the probability p = 1/256. What is the gradient of a logit, for the byte that comes next and for all others?

# %%
from collections import deque
from dataclasses import replace
from itertools import cycle
from unittest.mock import patch

import lesson
import ml_dtypes
import numpy as np

from microumup import fp8, ops
from microumup.config import TrainConfig
from microumup.data import load_corpus
from microumup.fp8 import E4M3, E5M2, quantize
from microumup.lab.pictures import BLACK, BLUE, VERMILION
from microumup.ranges import linear_ranges
from microumup.trainer import Trainer

# %% [markdown]
# ## Predict
# E4M3's smallest positive number is 2^-9; below half of it all is rounded to 0. A new µP model of two layers has 15
# linears: seven a layer, and the last one, which makes the [logits](glossary.md#logits).

# %%
mine = lesson.guess("Which share of all elements of their gradients dy does E4M3 turn into 0? (0 to 1)")

# %% [markdown]
# ## The formats on paper
# Eight bits: a sign, then the exponent E, then the mantissa M. In E4M3 that is ±2^(E - 7) · (1 + M/8), in
# E5M2 ±2^(E - 15) · (1 + M/4). For E = 0 the 1 is missing, which fills the gap around 0 evenly: *subnormal* numbers.

# %%
VALUES, PAPER = {}, ((E4M3, 7, 3, 0b01111110, 448, 2**-9), (E5M2, 15, 2, 0b01111011, 57344, 2**-16))
for fmt, bias, mantissa_bits, last, largest, smallest in PAPER:  # after the last code come NaN or infinity
    E, M = np.divmod(np.arange(last + 1), 2**mantissa_bits)
    VALUES[fmt] = values = np.float32(2.0 ** (np.maximum(E, 1) - bias) * ((E > 0) + M / 2**mantissa_bits))
    apart = max(np.diff(values[2**mantissa_bits :]) / values[2**mantissa_bits : -1])
    facts = {"largest": (values[-1], largest), "smallest": (values[1], smallest), "fmt.max": (fmt.max, largest)}
    for what, (found, value) in (facts | {"neighbours apart": (apart, 0.5**mantissa_bits)}).items():
        lesson.claim(f"{fmt.name}: {what}", found, value, within=0)

# %% [markdown]
# Neighbours are at most 1/8 apart in E4M3, 1/4 in E5M2, which has more range for it. What is past the largest becomes
# the largest. Half way between two numbers, the one with the even M wins, so that nothing is pushed up on the whole.
#
# ## The naive way
# Take a model as it is and cast. Here is µP, with 512 tokens a batch, before the first step.

# %%
size = {"width": 64, "seq_len": 32, "batch_size": 16, "steps": 128}
umup, mup = TrainConfig(lr=2**0.5, **size), TrainConfig(scheme="mup", lr=2**-6, base_width=32, base_layers=2, **size)
corpus, ranges, zeros = load_corpus(seq_len=32), {}, {}
for model in (umup, mup):  # size, RMS and share that becomes 0 of x, w and dy of every linear; that share of all dy
    Trainer(model, corpus).update(0, watch=lambda step, losses: ranges.update({model: linear_ranges(losses)}))  # noqa: B023
    dy = [r for name, r in ranges[model].items() if name.endswith(".dy")]
    zeros[model] = sum(r.underflow * r.size for r in dy) / sum(r.size for r in dy)
lesson.claim("µP: RMS of the logits' dy, 2^-13", ranges[mup]["head.dy"].rms, 2**-13, within=0.01)
lesson.claim("µP: share of it that becomes 0, 255/256", ranges[mup]["head.dy"].underflow, 255 / 256, within=0.001)
lesson.claim("µP: share of all dy that becomes 0", zeros[mup], 0.997, within=0.001)
lesson.answer(mine, zeros[mup], "as the mean over 512 tokens divides each token's gradient by 512.")

# %% [markdown]
# Of the logits' gradient one element a token survives: it pushes the byte that came next up. What pushes the others
# down is lost, and the layers behind get next to nothing. Frequent bytes are pushed up for ever, and the loss rises:


# %%
def final_loss(model, recipe="none", cast=ops.cast):
    """Mean training loss of the last 8 steps, in nats per byte; tensors are rounded by `cast(x, format)`."""
    run = Trainer(replace(model, fp8=recipe), corpus)
    run.kernels = {}  # the readable pairs of ops.py; the fast ones cast by a name of their own
    with patch.object(ops, "cast", cast):
        return float(np.mean([run.update(step)[0] for step in range(model.steps)][-8:]))


mup_loss, mup_cast = final_loss(mup), final_loss(mup, "fp8")
lesson.claim("µP in float32: loss after 128 steps", mup_loss, 2.24, within=0.05, relative=False)
lesson.claim_least("µP: FP8's loss minus float32's", mup_cast - mup_loss, 1)

# %% [markdown]
# ## The paper's row
# **The idea:** a tensor of RMS 1 = 2^0 lies in the middle of E4M3's range, 2^-9 to 2^8.8. u-µP chooses the constants in
# its ops so that x, w and dy start there. For gradients it begins at the loss (Table 4, cross-entropy; V = 256):
#
#     true gradient    dlogits = (p - onehot)/512            RMS about 2^-4/512 = 2^-13
#     u-µP             dlogits = (p - onehot) · V/√(V-1)     RMS 1; the number of tokens is gone
#
# (p: the model's probabilities; onehot: 1 for the byte that came, 0 for others.) Every gradient is then a known
# constant times the true one, which Adam does not see. The rest is one line (Appendix E.2): cast x, w and dy to E4M3,
# but the inputs of attention's and the FFN's last linear to E5M2, since they grow in training ([11](11_drift.py)).
# Scale nothing.
#
# ## Our code, and the check
# Divide by the distance of neighbours, round, multiply. The distance is a power of two, read off the exponent bits. The
# check: ml_dtypes, a library; and u-µP's loss against its own in float32 (any rounding moves it by 0.02 or so).

# %%
lesson.show(quantize, fp8._spacing, ops.linear_forward, (fp8, "RECIPES"))
numbers = np.random.default_rng(10).standard_normal(1_000_000, dtype=np.float32)
theirs = numbers.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
lesson.claim("of a million, rounded otherwise", (quantize(numbers, E4M3) != theirs).sum(), 0, within=0)
lesson.claim("u-µP: share of all dy that becomes 0", zeros[umup], 0.006, within=0.001, relative=False)
lesson.claim_most("u-µP: octaves from RMS 1, most", max(abs(np.log2(r.rms)) for r in ranges[umup].values()), 2.5)
umup_loss, umup_cast = final_loss(umup), final_loss(umup, "fp8")
lesson.claim("u-µP: FP8's loss minus float32's", umup_cast - umup_loss, 0, within=0.05, relative=False)

# %% [markdown]
# ## What u-µP saves
# µP can be rescued as others do it: *per-tensor scaling* multiplies every tensor so that its largest element becomes
# 448. To find that one takes a pass over the tensor before the cast. *Delayed scaling* takes the largest of the last 16
# steps instead: it keeps a history of each of the 45 tensors that a step casts, and fails when one of them jumps.

# %%
histories = [deque(maxlen=16) for _ in range(3 * 15)]
turn = cycle(histories)  # a step casts the same tensors in the same order


def delayed(x, fmt):
    history, largest = next(turn), float(abs(x).max())
    factor = np.float32(max(history or [largest]) / fmt.max or 1)
    history.append(largest)
    return quantize(x / factor, fmt) * factor


rescued = final_loss(mup, "fp8", delayed)
lesson.claim("µP with delayed scaling: FP8's loss minus float32's", rescued - mup_loss, 0, within=0.05, relative=False)
lesson.claim("numbers in the histories", sum(map(len, histories)), 720, within=0)
turn = cycle([deque([1.0])])  # a tensor of at most 1 until now, whose next is a hundred times larger:
lesson.claim("what a jump to 100 becomes", delayed(np.float32([100]), E4M3)[0], 1, within=0.01)

# %% [markdown]
# ## Figure

# %%
figure, (left, right) = lesson.figure(10, 4.2, ncols=2, width_ratios=(3, 2))
for model, label, colour, marker, shift in ((umup, "u-µP", BLUE, "o", -0.15), (mup, "µP", VERMILION, "s", 0.15)):
    for i, tensor in enumerate(fp8.TENSORS):
        rms = [r.rms for name, r in ranges[model].items() if name.endswith("." + tensor)]
        places = i + shift + np.linspace(-0.1, 0.1, len(rms))
        left.semilogy(places, rms, marker, base=2, color=colour, markeredgecolor=BLACK, label=label if i == 0 else None)
left.axhspan(E4M3.min_subnormal, E4M3.max, color="0.9", zorder=0)
left.set(ylabel="RMS", xticks=range(3), xticklabels=["x, input", "w, weight", "dy, gradient"])
left.legend(frameon=False, loc="lower left")
names = ["u-µP\nfloat32", "u-µP\nFP8", "µP\nfloat32", "µP\nFP8", "µP\ndelayed"]
bars = right.bar(names, [umup_loss, umup_cast, mup_loss, mup_cast, rescued], color=2 * [BLUE] + 3 * [VERMILION])
right.bar_label(bars, fmt="%.2f")
right.set(ylabel="loss after 128 steps (nats per byte)")
lesson.save(figure, "Left: a marker is x, w or dy of a linear of a new model; grey: E4M3's range. Right: final losses.")

# %% [markdown]
# ## What would fool you
# Let `rint` send ties away from zero, as school does. Random numbers hardly ever are ties, and training does not mind:
# the check above passes. The one that catches it rounds the middle between any two neighbours.

# %%
with patch.object(np, "rint", lambda y, out: np.trunc(y + np.copysign(np.float32(0.5), y), out=out)):
    lesson.claim("wrong ties: of a million, rounded otherwise", (quantize(numbers, E4M3) != theirs).sum(), 0, within=0)
    fooled = final_loss(umup, "fp8")
    lesson.claim("wrong ties: FP8's loss minus float32's", fooled - umup_loss, 0, within=0.05, relative=False)
    middle = (VALUES[E4M3][1:] + VALUES[E4M3][:-1]) / 2
    theirs = middle.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    lesson.claim("wrong ties: of 126, rounded otherwise", (quantize(middle, E4M3) != theirs).sum(), 63, within=0)
lesson.claim("right ones: of 126, rounded otherwise", (quantize(middle, E4M3) != theirs).sum(), 0, within=0)

# %% [markdown]
# ## Exercise
# Write the rounding to E4M3 yourself: `to_e4m3` in `lessons/exercises/ex10.py`. `pytest -m lesson10 lessons` grades it,
# `python lessons/hint.py 10 1` gives a first hint.
#
# ## Recap
# E4M3 has numbers from 2^-9 to 448, and µP's gradients of a mean loss lie below all of them: they become zeros. u-µP
# starts every x, w and dy near RMS 1, so a plain cast does, where others keep a changing factor for every tensor.
#
# **The way on.** Near 1 at the start: and later? [Lesson 11](11_drift.py) follows every tensor through training.
#
# **Answers.** 1. 0.1 = 2^-4 · 1.6. M counts eighths: 0.6 · 8 = 4.8, so M = 5, and 2^-4 · 1.625 = 0.1015625. 2. The next
# byte: (p - 1)/512 = -2^-9.01, which becomes -2^-9. Any other: p/512 = 2^-17, which becomes 0.
