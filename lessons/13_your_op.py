# %% [markdown]
# # 13 · An op of your own, certified
#
# **The question.** Your model has an op that the paper does not have, say GELU. Which factor does it need, and how do
# you show that it, and the rest of your u-µP, is right?
#
# About 15 minutes. From earlier lessons: an op is a pair of functions, forward and backward, with factors that keep its
# output at scale 1 ([02](02_linear.py)); inside a branch both take the same factor, which is the cut-edge rule
# ([03](03_cut_edge.py)); scale is the RMS ([glossary](glossary.md)). Two questions for paper and pencil:
#
# 1. GELU is y = x · Φ(α x), Φ the probability that a standard normal number is smaller. What is y as α goes to 0, what
#    as it grows without end? Which RMS has y then, if x is standard normal?
# 2. A layer multiplies the scale by 0.65. What is left after eight such layers?

# %%
from math import erf, pi, sqrt

import lesson
import numpy as np

from microumup import multipliers, ops, reference
from microumup.config import TrainConfig
from microumup.interop import doctor
from microumup.lab import fit_scale, gradcheck
from microumup.lab.pictures import BLACK, BLUE, VERMILION
from microumup.plan import plan

rng, Phi = np.random.default_rng(13), np.vectorize(lambda z: (1 + erf(z / sqrt(2))) / 2, otypes=[float])


def gelu(x, *, alpha=1.0):
    return x * Phi(alpha * x)


# %% [markdown]
# ## Predict

# %%
mine = lesson.guess("What is the RMS of GELU's output, α = 1, for x of mean 0 and RMS 1?")

# %% [markdown]
# ## The naive way
# Put it in as it is: eight layers, each a unit-scaled linear of width 256 and a GELU. What is left is less than 0.65^8,
# as smaller inputs come nearer to x/2.


# %%
def deep(activation):
    x = rng.standard_normal((256, 256))
    for _ in range(8):
        x = activation(x @ rng.standard_normal((256, 256)) / 16)
    return lesson.rms(x)


lesson.claim("RMS after eight layers with a plain GELU", deep(gelu), 0.0076, within=0.1)

# %% [markdown]
# ## The paper's row
# **The idea** (Appendix B): nobody can write down the scale for each α, but both ends are easy. For α near 0 GELU is
# x/2, of scale 1/2; for a large α it is a ReLU, max(x, 0), of scale 1/√2. In between go from one to the other on a
# logarithmic scale, and let one number c say where: σ(α) = log_interpolate(1/(1 + c/α²), 1/√2, 1/2). So does the paper
# for its gated SiLU (c = 1) and for attention. For an op of yours `fit_scale` measures, fits and prints the rule:

# %%
alphas = [2.0**k for k in range(-3, 4)]
text, rule, measured = fit_scale.report("gelu", gelu, alphas)
print(text)
for what, found, value in (("c", rule.c, 0.34), ("at α = 0, 1/2", rule.lower, 0.5), ("at ∞, 1/√2", rule.upper, 0.707)):
    lesson.claim(f"the rule's {what}", found, value, within=0.02)
lesson.claim_most("its largest error", rule.error, 0.006)
lesson.answer(mine, measured[alphas.index(1.0)].rms["y"], "between 1/2, that of x/2, and 1/√2, that of a ReLU.")

# %% [markdown]
# The same factor, 1/σ, then stands in the backward pass. It leaves dx at 1.01 to 1.04, which is good enough.
#
# ## Our code
# The model of the paper's own op, and how it becomes factors. Yours goes beside it:

# %%
lesson.show(multipliers.log_interpolate, multipliers.gated_silu_sigma, multipliers.UnitScaled.gated_silu)


def gelu_sigma(alpha):
    return multipliers.log_interpolate(1 / (1 + 0.339 / alpha**2), 0.711, 0.498)


def gelu_forward(x, *, alpha=1.0, scale=ops.Scale()):
    return scale.y * gelu(x, alpha=alpha), (x, alpha, scale)


def gelu_backward(dy, saved):
    x, alpha, scale = saved
    # y = x Φ(αx): Φ's derivative is the normal density
    density = np.exp(-((alpha * x) ** 2) / 2) / sqrt(2 * pi)
    return (scale.dx * dy * (Phi(alpha * x) + alpha * x * density),)


# %% [markdown]
# ## Check
# Four checks make a certificate: finite differences, factors, scale, and the reference for all else that you have
# written. Eight layers now end at 1.2 instead of 0.0076. What is off by chance grows, as GELU lets a larger part of
# larger inputs through; the norm at the start of each branch puts an end to that.

# %%
x, factors = rng.standard_normal((3, 7)), ops.Scale(y=1.7, dx=0.6)
for result in (*gradcheck.check_pair(gelu_forward, gelu_backward, [x], alpha=1.6),
               *gradcheck.check_factors(gelu_forward, gelu_backward, [x], factors, [1.7, 0.6], alpha=1.6)):  # fmt: skip
    lesson.claim(f"gradcheck: {result.name}: passed", result.passed, 1, within=0)
for alpha in (0.125, 1, 8):
    factor = ops.Scale(y=1 / gelu_sigma(alpha), dx=1 / gelu_sigma(alpha))  # inside a branch both are the same
    y, saved = gelu_forward(rng.standard_normal(1 << 16), alpha=alpha, scale=factor)
    (dx,) = gelu_backward(rng.standard_normal(1 << 16), saved)
    lesson.claim(f"α = {alpha}: RMS of y", lesson.rms(y), 1, within=0.02)
    lesson.claim(f"α = {alpha}: RMS of dx", lesson.rms(dx), 1.025, within=0.03)
lesson.claim("RMS after eight layers, with the factor", deep(lambda y: gelu(y) / gelu_sigma(1)), 1.2, within=0.1)

# %% [markdown]
# The reference knows each op of the paper. Say you have gated SiLU, and once with a mistake that α = 1 does not show:


# %%
def silu_forward(x_in, x_gate, *, alpha):
    sigmoid, factor = 1 / (1 + np.exp(-alpha * x_gate)), 1 / multipliers.gated_silu_sigma(alpha)
    return factor * x_in * x_gate * sigmoid, (x_in, x_gate, sigmoid, alpha, factor)


def silu_backward(dy, saved, *, forget=False):
    x_in, x_gate, sigmoid, alpha, factor = saved
    slope = sigmoid * (1 + (1 if forget else alpha) * x_gate * (1 - sigmoid))
    return factor * dy * x_gate * sigmoid, factor * dy * x_in * slope


print(reference.check("gated_silu", silu_forward, silu_backward))
try:
    reference.check("gated_silu", silu_forward, lambda dy, saved: silu_backward(dy, saved, forget=True))
except AssertionError as wrong:
    found = str(wrong)
print(found)
lesson.claim("reference: it names the missing α", "α is missing in the sigmoid's derivative" in found, 1, within=0)

# %% [markdown]
# And the *doctor* holds a list of weights against Tables 1 to 3. Here hidden learning rates are µP's, 1/fan_in:

# %%
config, groups = TrainConfig(width=256, layers=1), []
for name, w in plan(config, batch_tokens=1024).weights.items():
    lr = config.eta * (w.C if w.type != "hidden" else 1 / w.shape[1])
    groups.append({"name": name, "shape": list(w.shape), "type": w.type, "multiplier": w.A, "lr": lr})
symptoms = doctor.examine(config, {"groups": groups})
print(doctor.report(config, {"groups": groups}, symptoms))
lesson.claim("doctor: weights with a wrong number", len(symptoms), 7, within=0)

# %% [markdown]
# ## Figure

# %%
figure, ax = lesson.figure(7, 4)
ax.semilogx(alphas, [gelu_sigma(alpha) for alpha in alphas], color=BLACK, base=2, label="σ(α), the rule")
ax.plot(alphas, [m.rms["y"] for m in measured], "o", color=BLUE, label="y, measured")
ax.plot(alphas, [m.rms["dx"] for m in measured], "s", color=VERMILION, fillstyle="none", label="dx, measured")
ax.set(xlabel="α", ylabel="RMS")
ax.legend(frameon=False)
lesson.save(figure, "Scale of GELU's output and gradient over its multiplier α; the line is the fitted rule.")

# %% [markdown]
# ## What would fool you
# dx comes out at 1.036: let a factor of its own bring it to 1. Finite differences and factors are as before, y and dx
# have RMS 1: all checks above pass. But in a branch, where the gradient also goes past the op, both now add up in a
# wrong proportion. The check that sees it is the cosine to the true gradient behind the branch: `gradcheck` takes it.

# %%
x, dy, sigma = rng.standard_normal(1 << 16), rng.standard_normal(1 << 16), gelu_sigma(1)
y, saved = gelu_forward(x, scale=ops.Scale(y=1 / sigma, dx=1 / sigma / 1.036))
(own,), (true,) = gelu_backward(dy, saved), gelu_backward(dy, (x, 1, ops.Scale(dx=1 / sigma)))
lesson.claim("own backward factor: RMS of y", lesson.rms(y), 1, within=0.01)
lesson.claim("own backward factor: RMS of dx", lesson.rms(own), 1, within=0.01)
off = [1 - a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in ((own, true), (dy + own, dy + true))]
lesson.claim_most("1 - cosine to the true gradient, of dx itself", off[0], gradcheck.COSINE_TOLERANCE)
lesson.claim_least("1 - cosine behind the branch", off[1], 1000 * gradcheck.COSINE_TOLERANCE)

# %% [markdown]
# ## Exercise
# Write the pair of ReLU², max(x, 0)², with its factor, in `lessons/exercises/ex13.py`. Its scale you can work out on
# paper. `pytest -m lesson13 lessons` grades it, `python lessons/hint.py 13 1` gives a first hint.
#
# ## Recap
# A new op needs one number, the RMS of its output for unit-scale inputs, as a function of its multiplier; the same
# factor goes backward. Then let finite differences, the reference and the doctor say what you cannot see.
#
# **The way on.** That was the last lesson. `microumup --help` lists the tools; your own model is next.
#
# **Answers.** 1. x/2, of RMS 1/2; max(x, 0), of RMS 1/√2, as half of the squares are gone. 2. 0.65^8 = 0.03.
