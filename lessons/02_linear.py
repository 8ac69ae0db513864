# %% [markdown]
# # 02 · The linear pair: three matmuls, three factors
#
# **Question.** A linear layer, y = x wᵀ, takes part in three matrix products: one forward, two backward. How large does
# each come out, and which three factors bring them back to scale 1?
#
# *15 minutes.* From lesson 01 you need one thing: an op is a pair of functions, `forward(x, w) -> y, saved` and
# `backward(dy, saved) -> dx, dw`, where dy is the gradient of y. *Scale* means the root mean square
# ([RMS](glossary.md#rms)), the typical size of an element; for numbers with mean 0 it is their standard deviation. A
# *feature* is one of the numbers that stand for a token, a piece of text. fan_in is the number of features that go into
# a weight, fan_out of those that come out, b of the tokens in a batch.
#
# On paper, before you go on (answers at the end):
#
# 1. A linear maps 1024 features to 256, for a batch of 64 tokens. All elements of x, w and dy are independent and have
#    scale 1. What are the scales of y, dx and dw?
# 2. Say we multiply dx by 1/√fan_in. For which shapes of w does dx have scale 1?

# %%
import lesson
import numpy as np

from microumup import ops
from microumup.config import ModelConfig
from microumup.fp8 import E4M3, quantize
from microumup.lab.pictures import BLACK, BLUE, GREEN, VERMILION
from microumup.multipliers import UnitScaled
from microumup.plan import plan

rng, WIDTH = np.random.default_rng(2), 256


def normal(*shape):  # independent numbers of mean 0 and scale 1
    return rng.standard_normal(shape, dtype=np.float32)


# %% [markdown]
# ## Predict
# Four linears of width 256 stand one behind the other. The input has scale 1, and so has every weight.

# %%
mine = lesson.guess("What is the RMS of the last one's output?")

# %% [markdown]
# ## The naive way
# Scale 1 in, scale 1 in the weights: it sounds as if scale 1 should come out.

# %%
y = normal(512, WIDTH)
for _ in range(4):
    y, _ = ops.linear_forward(y, normal(WIDTH, WIDTH))
after_four = lesson.rms(y)
lesson.claim("RMS after four linears of width 256", after_four, 16**4, within=0.01)
with np.errstate(over="ignore"):
    infinite = np.isinf(y.astype(np.float16)).mean()
lesson.claim("share of it that is infinite in float16", infinite, 0.32, within=0.02)
lesson.answer(mine, after_four, "for each linear multiplies by √256 = 16, and 16 · 16 · 16 · 16 = 65,536.")

# %% [markdown]
# Float16 ends at 65,504, so 32 % of the output is infinite. The gradients fare no better: dx grows with fan_out, dw
# with b. All three are sums of n products, and all three grow like √n.


# %%
def three_products(fan_in, fan_out, b, scale):
    """RMS of y, dx and dw, for x, w and dy of scale 1."""
    y, saved = ops.linear_forward(normal(b, fan_in), normal(fan_out, fan_in), scale=scale)
    return [lesson.rms(array) for array in (y, *ops.linear_backward(normal(b, fan_out), saved))]


for position, (what, count) in enumerate({"y": "fan_in", "dx": "fan_out", "dw": "b"}.items()):
    for n in (64, 256, 1024):
        rms = three_products(*(n if i == position else WIDTH for i in range(3)), ops.Scale())[position]
        lesson.claim(f"RMS of {what}, {count} = {n}", rms, n**0.5, within=0.02)

# %% [markdown]
# ## The paper's row
# **The idea:** count the terms of the sum and divide by the root of their number. Three lines each for y, dx and dw:
#
#     y_j = x_1 w_j1 + x_2 w_j2 + …           fan_in terms, each of variance 1 · 1 = 1
#     variance(y_j) = 1 + 1 + … = fan_in      variances of independent terms add up
#     1/√fan_in · y_j has variance 1
#
#     dx_i = dy_1 w_1i + dy_2 w_2i + …        fan_out terms: 1/√fan_out would be exact
#     u-µP takes 1/√fan_in all the same       y's factor, for a reason in lesson 03
#     dx has scale √(fan_out/fan_in)          that is 1 for a square w
#
#     dw_ji = dy_1j x_1i + dy_2j x_2i + …     a sum over the b tokens of the batch
#     variance(dw_ji) = b
#     1/√b · dw_ji has variance 1             it goes nowhere but into w's update
#
# This is the column "Hidden" in the lower half of the paper's Table 1. A weight acts as W = A · w; there **A**, its
# multiplier, is 1/√fan_in, and **B**, the variance of the initial w, is 1. **C** is a factor of the learning rate:
# lesson 06. The factor of dw is from Appendix A.4, which also puts every factor *after* its product: the operands x, w
# and dy are what gets [cast](glossary.md#cast) to [FP8](glossary.md#fp8), so it is they that shall have scale 1.
#
# **The [readout](glossary.md#readout) is different.** It is the last linear, from the model to the
# [logits](glossary.md#logits), the scores of the possible next tokens, and its A is 1/fan_in (column "Output").
# Training makes a weight agree with what it meets. [Adam](glossary.md#adam)'s first step moves each w_i by ±η, in the
# direction of x_i; then all terms of the sum have the same sign, and fan_in such terms add up to about 0.8 fan_in, not
# to √fan_in. Hidden weights have this sum too, but their C is 1/√fan_in. The readout's C is 1, so A must do it alone:

# %%
for width in (64, 256, 1024, 4096):
    x = normal(width)
    sum_of_terms = float(x @ np.sign(x))  # Adam's first step of w, with η = 1 and C = 1, to raise this logit
    print(f"width {width:4}: it moves the logit by {width**-0.5 * sum_of_terms:4.1f} if A were 1/√fan_in")
    lesson.claim("  by this if A is 1/fan_in", sum_of_terms / width, 0.8, within=0.1)

# %% [markdown]
# The price: logits start at scale 1/√fan_in. That does no harm, as only the loss comes after them. Backward it would:
# every gradient of the model would be too small by 1/√fan_in. So the readout's dx takes 1/√fan_in (the † in Table 1),
# and comes out at √(V/D), V being the vocabulary, the readout's fan_out, and D the width.
#
# ## Our code
# A factor stands behind each product; `UnitScaled.linear` says which ones u-µP passes.

# %%
lesson.show(ops.Scale, ops.linear_forward, ops.linear_backward, UnitScaled.linear)

# %% [markdown]
# ## Check
# Four weights of a model of width 256: `q`, of attention, is square; `up`, 256 → 704, and `down`, 704 → 256, are of the
# feed-forward network; the head, another name of the readout, is 256 → 512. (The Plan has all numbers of one model.)

# %%
numbers = plan(ModelConfig(width=WIDTH, vocab_size=512), batch_tokens=1024)
EXPECTED = {
    "layer0.q": (1, 1, 1), "layer0.up": (1, 1.66, 1), "layer0.down": (1, 0.60, 1), "head": (1 / 16, 1.41, 1),
}  # fmt: skip
for name, expected in EXPECTED.items():
    fan_out, fan_in = numbers.weights[name].shape
    found = three_products(fan_in, fan_out, 1024, numbers.linears[name].scale)
    for what, measured, value in zip(("y", "dx", "dw"), found, expected, strict=True):
        lesson.claim(f"{name} ({fan_in} -> {fan_out}): RMS of {what}", measured, value, within=0.02)

# %% [markdown]
# What `up` does to dx, 1.66, `down` makes good again: 0.60. Their product is 1.
#
# ## Figure

# %%
COUNTS = [2**i for i in range(4, 11)]
figure, axes = lesson.figure(9, 4, ncols=2, sharey=True, sharex=True)
LINES = (("y over fan_in", BLUE, "o", "-"), ("dx over fan_out", VERMILION, "s", "--"), ("dw over b", GREEN, "^", ":"))
for ax, scaled in zip(axes, (False, True), strict=True):
    for varied, (label, colour, marker, dashes) in enumerate(LINES):
        cases = [[n if i == varied else WIDTH for i in range(3)] for n in COUNTS]
        factors = [UnitScaled.linear(c[0] ** -0.5, c[0] ** -0.5, c[2]) if scaled else ops.Scale() for c in cases]
        rms = [three_products(*case, scale)[varied] for case, scale in zip(cases, factors, strict=True)]
        ax.plot(COUNTS, rms, color=colour, marker=marker, linestyle=dashes, label=label)
    ax.axhline(1, color=BLACK, linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="n, terms of the sum", title="with the factors" if scaled else "naive")
axes[0].set_ylabel("RMS")
axes[1].legend(frameon=False)
caption = """RMS of the three products over the number of terms, the two other sizes at 256. Left without factors: all
three grow like √n, one line on the other. Right with them: y and dw stay at 1 (black line), dx passes 1 where fan_out =
fan_in = 256."""
lesson.save(figure, " ".join(caption.split()))

# %% [markdown]
# ## What would fool you
# Put the factor *before* the product. In exact arithmetic it is the same function: every RMS above stays as it is, and
# so does every gradient. The check that sees it casts the operands, as FP8 training will do. [E4M3](glossary.md#e4m3)
# is an 8-bit format whose smallest positive number is $2^{-9}$. The readout of a model of width 4096 shows it best: A
# is 1/4096.

# %%
x, w, A = normal(256, 4096), normal(64, 4096), np.float32(1 / 4096)
after, before = A * (x @ w.T), (A * x) @ w.T
lesson.claim("RMS of y, and with the factor before", lesson.rms(before), lesson.rms(after), within=1e-5)
cast_after = A * (quantize(x, E4M3) @ quantize(w, E4M3).T)
cast_before = quantize(A * x, E4M3) @ quantize(w, E4M3).T
lesson.claim("error of y in FP8, factor after", lesson.rms(cast_after - after) / lesson.rms(after), 0.037, within=0.03)
lesson.claim("error of y in FP8, factor before", lesson.rms(cast_before - after) / lesson.rms(after), 1, within=0.01)
lesson.claim("share of A · x that E4M3 turns into 0", (quantize(A * x, E4M3) == 0).mean(), 0.9999, within=1e-4)

# %% [markdown]
# ## Exercise
# Write the three products yourself, with the factors of a hidden weight and of the readout: `unit_linear` in
# `lessons/exercises/ex02.py`. `pytest -m lesson02 lessons` grades it, `python lessons/hint.py 02 1` gives a first hint.
#
# ## Recap
# An element of a matmul is a sum of n terms and grows like √n, so y gets 1/√fan_in, dw gets 1/√b, and dx gets y's
# factor. The readout gets 1/fan_in forward, because training lines its terms up, and 1/√fan_in backward.
#
# ## The way on
# Three factors that differ: then backward is no longer the derivative of forward. [Lesson 03](03_cut_edge.py) shows
# where that is harmless, and where it quietly ruins the training.
#
# ## Answers
# 1. y: √1024 = 32. dx: √256 = 16. dw: √64 = 8.
# 2. For square ones. dx is a sum of fan_out terms, so its scale is √(fan_out/fan_in).
