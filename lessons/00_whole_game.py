# %% [markdown]
# # 00 · The whole game
#
# **Question.** A setting found on a small model often fails on a large one. Why, and what does it have to do with the
# size of numbers? *15 minutes. Needs nothing.* This is all of u-µP, the *unit-scaled maximal update parametrization*,
# in small; the other lessons take it apart. "The paper" is everywhere the one that introduced it,
# <https://arxiv.org/abs/2407.17465>.
#
# On paper, before you go on (answers at the end):
#
# 1. You add up $D$ numbers, each $+1$ or $-1$ by the toss of a coin. How large is the sum, roughly, at $D = 256$? And
#    how large if all the tosses agree?
# 2. float16 has no number above 65,504. A layer multiplies the size of its input by 16. How many layers fit?

# %%
import lesson
import numpy as np

from microumup import ops, parametrization
from microumup.config import TrainConfig
from microumup.data import load_corpus
from microumup.fp8 import E4M3
from microumup.generate import generate
from microumup.lab.pictures import BLACK, BLUE, GREEN, VERMILION
from microumup.trainer import train

# %% [markdown]
# ## Predict
# We train small language models: they read 230 years of presidents' addresses and guess the next byte. Their
# [loss](glossary.md#loss), in [nats](glossary.md#nat), falls from ln 256 = 5.5 (all bytes equally likely) to about 2.
# The size of training's steps is the [learning rate](glossary.md#learning-rate) η, the setting that matters most. We
# look for it where that is cheap, at [width](glossary.md#width) 32: 32 numbers for every byte read. Of $2^{-8}$,
# $2^{-6}$ and $2^{-4}$ the best is $2^{-6}$. Then we use it at width 128, where $2^{-8}$ turns out to be better.

# %%
mine = lesson.guess("at width 128, by how much is the loss with 2^-6 above that with 2^-8?", "nats")

# %% [markdown]
# ## The naive way
# The standard parametrization, SP for short, is what most libraries do: weights start at random with a size of
# $1/\sqrt{\text{width}}$, and one learning rate serves them all.

# %%
corpus = load_corpus(seq_len=32)


def trained(scheme, width, log2_lr):
    config = TrainConfig(
        scheme=scheme, width=width, lr=2.0**log2_lr, layers=1, seq_len=32, batch_size=8, steps=256, warmup=0.25
    )
    return train(config, corpus)


def losses(scheme, width, grid):
    """Loss at the end of training, by log2 of the learning rate."""
    found = {log2_lr: trained(scheme, width, log2_lr)[1]["loss_final"] for log2_lr in grid}
    print(f"{scheme}, width {width}: " + ", ".join(f"{loss:.3f} at 2^{x}" for x, loss in found.items()))
    return found


sp = {32: losses("sp", 32, (-8, -6, -4)), 128: losses("sp", 128, (-10, -8, -6))}
best = min(sp[32], key=sp[32].get)
lesson.claim("SP, width 32: log2 of the best learning rate", best, -6, within=0)
lesson.claim("SP, width 128: log2 of the best", min(sp[128], key=sp[128].get), -8, within=0)
cost = sp[128][best] - sp[128][-8]
lesson.answer(mine, cost, "nats: a wide model takes too large a step with a narrow model's learning rate.")
lesson.claim("SP: what width 32's learning rate costs at width 128, nats", cost, 0.20, within=0.05, relative=False)
lesson.claim_least(
    "SP: with it, the loss at width 128 is above that at width 32 by", sp[128][best] - sp[32][best], 0.01
)

# %% [markdown]
# A fifth of a nat is lost: the model that is four times wider ends up worse than the narrow one. And at real widths one
# cannot look for η once more.
#
# ## The paper's row
# The idea: put the width into the *rules*, so that it is no longer in the *settings*. An output of a layer is a sum of
# $D$ products of a weight and an input. Two things happen to that sum.
#
# * At the start the weights are random, so the products have random signs. Their sum is about $\sqrt D$ times as large
#   as one of them. Multiplied by $A = 1/\sqrt D$ it has the size of one again.
# * In training the products change *together*: that is what learning is. Adam, the usual optimizer, moves every weight
#   by about $\eta C$. All $D$ products then move in one direction, and the output moves by $A \cdot \eta C \cdot D$.
#   With $C = 1/\sqrt D$ that is η, at every width.
#
# This is u-µP's rule for hidden weights, in the paper's Table 1: $W = A\,w$ with $A = 1/\sqrt{\text{fan-in}}$, initial
# size $\sqrt B = 1$ ($B$ is the variance), learning rate $\eta\,C$ with $C = 1/\sqrt{\text{fan-in}}$. Fan-in is the $D$
# that is summed over.
#
# ## Our code
# A scheme is a row of a table, and this is u-µP's. `hidden` is the column that we just derived, made of weights' shapes
# and nothing else; the rest waits for later lessons. Below it is where $A$ ends up: `scale.y`, a factor of an *op*, as
# the functions are called that a network is made of.

# %%
lesson.show((parametrization, "UMUP"), ops.linear_forward)

# %% [markdown]
# ## Check
# The same search with u-µP. Its learning rates are around 1, as they are measured against weights of size 1. What is
# best at width 32 is best at width 128 too.

# %%
umup = {width: losses("umup", width, (-2, 0, 2)) for width in (32, 128)}
for width, found in umup.items():
    lesson.claim(f"u-µP, width {width}: log2 of the best learning rate", min(found, key=found.get), 0, within=0)
lesson.claim_least("u-µP: what the wider model gains with that learning rate, nats", umup[32][0] - umup[128][0], 0.04)

trainer, result = trained("umup", 32, 0)
lesson.claim("u-µP: loss before the first step, ln 256, nats", result["loss_first"], 5.545, within=0.01)
text = generate(trainer.params, trainer.plan, list(b"The people "), 120, temperature=0.7)
print("What width 32 has learned in 256 steps:", corpus.tokenizer.decode(text).replace("\n", " "))

# %% [markdown]
# ### Why size matters
# Keeping every number at size 1 buys more than a learning rate. Computers store numbers in
# [formats](glossary.md#format) with a largest and a smallest one. Of float16 these are 65,504 and $6 \cdot 10^{-8}$; of
# E4M3, which has 8 bits, 448 and $2^{-9} = 0.002$. Send numbers of size 1 through 20 layers of width 256, and look at
# their [RMS](glossary.md#rms), the root of the mean square.

# %%
rng = np.random.default_rng(0)
D, LAYERS = 256, 20
x = rng.standard_normal((64, D)).astype(np.float32)
draws = [rng.standard_normal((D, D)).astype(np.float32) for _ in range(LAYERS)]


def sizes(std, scale):
    """RMS of the input and of every layer's output; RMS of what becomes of a gradient of size 1 on its way back."""
    y, dy, walk, forward = x, x, [], [lesson.rms(x)]
    for w in draws:
        y, saved = ops.linear_forward(y, np.float32(std) * w, scale=scale)
        walk.append(saved)
        forward.append(lesson.rms(y))
    for saved in reversed(walk):
        dy, _ = ops.linear_backward(dy, saved)
    return np.array(forward), lesson.rms(dy)


A = parametrization.UMUP.hidden.A(parametrization.Shape(D, D, D, 2, 2))
large, _ = sizes(1.0, ops.Scale())
small, _ = sizes(0.02, ops.Scale())
unit, back = sizes(1.0, ops.Scale(y=A, dx=A))
half = np.finfo(np.float16)
lesson.claim("weights of size 1: first layer above float16's largest", np.argmax(large > float(half.max)), 4, within=0)
lesson.claim("weights of size 1: first layer above E4M3's largest", np.argmax(large > E4M3.max), 3, within=0)
lesson.claim("size 0.02: first layer below E4M3's smallest", np.argmax(small < E4M3.min_subnormal), 6, within=0)
lesson.claim("size 0.02: first below float16's", np.argmax(small < float(half.smallest_subnormal)), 15, within=0)
lesson.claim("size 1 and a factor A: RMS after 20 layers", unit[-1], 1.0, within=0.1)  # 20 layers of chance, 1 % each

# %% [markdown]
# ## Figure

# %%
figure, (left, middle, right) = lesson.figure(9.5, 3.7, ncols=3)
for axis, name, found in ((left, "SP", sp), (middle, "u-µP", umup)):
    for (width, line), style, colour in zip(found.items(), ("s--", "o-"), (VERMILION, BLUE), strict=True):
        axis.plot(line.keys(), line.values(), style, color=colour, label=f"width {width}")
    axis.set(title=name, xlabel="log2 of the learning rate", ylabel="loss, nats")
    axis.legend()
for y, style, label in ((large, "s--", "weights 1"), (small, "^:", "weights 0.02"), (unit, "o-", "weights 1, and A")):
    right.semilogy(y, style, color={"s": VERMILION, "^": GREEN, "o": BLUE}[style[0]], label=label, markersize=4)
for limit in (half.max, half.smallest_subnormal):
    right.axhline(float(limit), color=BLACK, linewidth=1)
right.axhspan(E4M3.min_subnormal, E4M3.max, color=BLACK, alpha=0.1)
right.set(title="RMS through 20 layers", xlabel="layer", ylim=(1e-11, 1e11))
right.legend(fontsize=8)
lesson.save(figure, "Loss over the learning rate, dashed squares width 32, solid circles width 128: SP's best moves "
            "to the left, u-µP's stays. Right: size of numbers through 20 layers; E4M3 stores what lies in the grey, "
            "float16 what lies between the black lines.")  # fmt: skip

# %% [markdown]
# ## What would fool you
# That check looked forward only. Training also walks backward, and there each layer has a factor of its own. Forget it:
# every number forward is as before, while the gradient is lost. So look at gradients too.

# %%
forgot, lost = sizes(1.0, ops.Scale(y=A))
lesson.claim("fooled: RMS after 20 layers, backward factor forgotten", forgot[-1], 1.0, within=0.1)
lesson.claim("caught: log10 of the RMS of its gradient", np.log10(lost), 24.1, within=0.2, relative=False)
lesson.claim("with the factor: RMS of the gradient", back, 1.0, within=0.1)

# %% [markdown]
# ## Exercise
# No stub here. Run `microumup train --scheme sp --width 64 --layers 1 --seq-len 32 --steps 256 --warmup 0.25 --lr 2^-7`
# and two other learning rates. Where is SP's best at width 64? By the pencil it lies between width 32's $2^{-6}$ and
# width 128's $2^{-8}$.
#
# ## Recap
# What is right for a narrow model is wrong for a wide one as long as the width hides in the settings; u-µP puts it into
# factors that follow from shapes. The same factors keep every number near 1, where even 8 bits can store it.
#
# **The way on:** [01 · A tape in 40 lines](01_tape.py), and from there in order. Or in leaps: [05](05_residual.py) on
# depth, [09](09_transfer.py) on learning rates, [10](10_fp8.py) on FP8.
#
# **Answers.** 1. About $\sqrt{256} = 16$; and 256. That is why there is a $C$. 2. $16^4$ is 65,536: three layers fit.
