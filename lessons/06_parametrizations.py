# %% [markdown]
# # 06 · From SP to µP to u-µP
#
# **Question.** Three numbers belong to a weight: what it is multiplied by, how large it starts, how fast it learns. Why
# does the usual choice fail when a model grows, and what do µP and u-µP choose instead?
#
# *20 minutes. Needs: what a linear does ([02](02_linear.py)), unit scaling ([03](03_cut_edge.py)), residual branches
# ([05](05_residual.py)). Words: [glossary](glossary.md), [notation](notation.md).* Two questions for pencil and paper:
#
# 1. A weight has the multiplier 1, starts with standard deviation 1/8, and has the learning rate factor 1/64. You want
#    it to start at 1, and all else to stay as it is. What become multiplier and learning rate factor?
# 2. The same with plain gradient descent (SGD) in place of Adam. What changes in your answer?

# %%
import lesson
import numpy as np

from microumup import parametrization
from microumup.config import ModelConfig
from microumup.fp8 import LINEARS
from microumup.lab import chain
from microumup.lab.coordcheck import coordcheck
from microumup.lab.mistakes import ZOO, planted
from microumup.lab.pictures import COLOURS
from microumup.model import init_params
from microumup.optim import AdamW
from microumup.plan import plan, weights

# %% [markdown]
# ## Predict
# Take the *standard parametrization*, SP: what most code does. Every weight starts with standard deviation 1/√fan_in,
# where fan_in counts the terms of the sum that it takes part in, and all share one learning rate η. Let Adam do one
# update in two models, one four times as wide as the other. In the wide one it does more to the output of a weight.

# %%
mine = lesson.guess("SP, width 256 against 64: how many times as much does an update change a hidden weight's output?")

# %% [markdown]
# ## The naive way
# A [coordinate check](glossary.md#coordinate-check) answers that. It trains models of several widths for a few steps
# and looks at the size ([RMS](glossary.md#rms), root mean square) of every tensor at the start; of what the updates Δw
# of a weight do to its output, A Δw x (the *effect*); and of how far every tensor has moved. If one η is to serve all
# widths, none of the three may grow with the width.
#
# SP takes care of the first: outputs start at the same size at every width. It fails at the second. A random w has
# terms of random signs, whose sum grows as √fan_in. An update is not random: Adam moves each element of w by η in the
# direction of its gradient, and that has the sign of this very x, times one sign for the whole row. So in Δw x no terms
# cancel, and their sum grows as fan_in.


# %%
def look(scheme):
    """A coordinate check in small: 16 random tokens, two updates, two seeds."""
    return coordcheck(ModelConfig(scheme=scheme, seq_len=16), widths=(64, 128, 256), seeds=(0, 1), steps=2)


def sizes(report, measure):
    """RMS at each width, geometric mean over the hidden weights q, k, v, o, gate, up, down; before or after a step."""
    rows = [row for row in report.rows if row.measure == measure and row.step <= 1 and row.tensor in LINEARS[:-1]]
    return np.exp(np.mean([np.log(row.rms) for row in rows], axis=0))


checks = {scheme: look(scheme) for scheme in ("sp", "mup", "umup")}
start, growth = (sizes(checks["sp"], measure)[-1] / sizes(checks["sp"], measure)[0] for measure in ("init", "effect"))
lesson.claim("SP: size at the start, width 256 over width 64", start, 1.0, within=0.03)
lesson.claim("SP: effect of one update, width 256 over width 64", growth, 3.6, within=0.05)
lesson.answer(mine, growth, "nearly the 4 of very wide models: the terms of Δw x add up, and there are 4 times as many")

# %% [markdown]
# ## The paper's row
# So one η cannot be right for both. The idea of a way out: the weight W that the network multiplies by is a constant
# times an array w, which is what is stored and trained. In the paper's *abc-parametrization* (section 2.1)
#
# $$W = A\,w, \qquad w(0) \sim N(0, B)$$
# $$w(t+1) = w(t) - \eta\, C\, \Phi_t$$
#
# with Φ for what Adam makes of the gradients. **A** is the multiplier, a plain number in the forward pass; **√B** the
# standard deviation that w starts with, as B is the variance; **C** the weight's own factor of the learning rate η.
# Only two products count: A √B is how large W starts, A C how far a step moves it, as Adam's steps have one size
# whatever the gradient's ([07](07_adam.py)). So of three numbers one is free: for any θ, A θ, √B/θ and C/θ make the
# same network, trained in the same way. That is the [abc-symmetry](glossary.md#abc-symmetry).
#
# | A, √B, C of | input (embedding) | hidden | output (readout) |
# |---|---|---|---|
# | SP | 1, 1, 1 | 1, 1/√fan_in, 1 | 1, 1/√fan_in, 1 |
# | µP, Table 1 | 1, 1, 1 | 1, 1/√fan_in, base/fan_in | base/fan_in, 1/√base, 1 |
# | u-µP, Table 1 | 1, 1, 1/√fan_out | 1/√fan_in, 1, 1/√fan_in | 1/fan_in, 1, 1 |
#
# µP lets A C of hidden weights fall as 1/fan_in, which cancels the growth above, and A √B of the readout too. Its
# *base* is the fan_in at which it is told to be SP. u-µP spends the free number on √B = 1, so that all weights start at
# unit scale, and has no base: Tables 2 and 3 are the two steps. One rule is new, the embedding's (App. A.3).

# %%
print("powers of the width in A √B and A C: input, hidden, output (umup-iclr: the paper as published later)")
powers = {}
for name in parametrization.SCHEMES:
    small, large = (weights(ModelConfig(scheme=name, width=width)) for width in (64, 256))
    for part in ("init_std", "C"):
        now, then = ([t[n].A * getattr(t[n], part) for n in ("embedding", "layer0.up", "head")] for t in (large, small))
        powers[name, part] = np.round(np.log(np.divide(now, then)) / np.log(4), 6) + 0.0  # + 0 makes 0 of -0
    print(f"{name:11}A √B:", *powers[name, "init_std"], "  A C:", *powers[name, "C"])

# %% [markdown]
# ## Our code
# A scheme is a row of a table, each cell a function of the weight's shape; `depth` is L, how many branches there are.

# %%
lesson.show((parametrization, "MUP"), (parametrization, "UMUP"), parametrization.weight)

# %% [markdown]
# ## Check
# **The rows.** First the powers just printed, then u-µP's numbers at width 64. There a square weight has A = 1/8; its C
# is 1/8 over √4, as it lies in one of 4 branches (C of those is divided by √L). The FFN's width, `down`'s fan_in, is
# 176.

# %%
for name, exponent in (("sp", 0), ("mup", -1), ("mup-table2", -1), ("mup-table3", -1), ("umup", -1)):
    lesson.claim(f"{name}: power of the width in A √B of up", powers[name, "init_std"][1], -0.5, within=0)
    lesson.claim(f"{name}: power of the width in A C of up", powers[name, "C"][1], exponent, within=0)
table, down = weights(ModelConfig(width=64, layers=2)), 176**-0.5
lesson.claim("u-µP: largest |√B - 1|", max(abs(w.init_std - 1) for w in table.values()), 0, within=0)
rows = {"embedding": (1, 1 / 8), "layer0.up": (1 / 8, 1 / 16), "layer0.down": (down, down / 2), "head": (1 / 64, 1)}
for name, (A, C) in rows.items():
    lesson.claim(f"u-µP, width 64: A of {name}", table[name].A, A, within=1e-9)
    lesson.claim(f"u-µP, width 64: C of {name}", table[name].C, C, within=1e-9)

# %% [markdown]
# **The symmetry.** `mup` and `mup-table2` are two spellings of one network; θ of each weight is its √B. Trained side by
# side from the same draws, in float64, their losses agree to the last bits while Adam's ε is 0. With the usual ε = 1e-8
# they differ in the fifth decimal: the gradients of w, which differ by the factor θ, meet the same ε.


# %%
def losses(scheme, eps):
    """30 steps on sequences that count on by 1, 2 or 3. The first batch has every token, else ε = 0 gives 0/0."""
    c = ModelConfig(scheme, width=32, head_dim=8, seq_len=16, vocab_size=24, sigma_init=0.5, base_width=16)
    p, rng = plan(c, 4 * c.seq_len), np.random.default_rng(0)
    text = (rng.integers(24, size=(30, 4, 1)) + rng.integers(1, 4, (30, 4, 17)).cumsum(-1)) % 24
    text[0, :, :-1].flat[:24] = np.arange(24)
    C = {name: w.C for name, w in p.weights.items()}
    return chain.train(p, AdamW(init_params(c, 0, np.float64), C, lr=2**-8, weight_decay=2**-8, eps=eps), text)


apart = {eps: np.abs(losses("mup", eps) - losses("mup-table2", eps)) for eps in (0.0, 1e-8)}
lesson.claim_most("largest difference of losses at ε = 0", apart[0.0].max(), 1e-12)
lesson.claim("log10 of the largest at ε = 1e-8", np.log10(apart[1e-8].max()), -4.6, within=0.5, relative=False)

# %% [markdown]
# **The coordinate check.** A tensor's *slope* is the power of the width that its size goes with. It may be 1/4 off, as
# all rules are powers in steps of 1/2. Of 42 slopes SP has 24 wrong, µP and u-µP none.

# %%
for name, wrong, slope in (("sp", 24, 0.92), ("mup", 0, -0.08), ("umup", 0, -0.07)):
    one, *_, four = np.log(sizes(checks[name], "effect")) / np.log(4)
    lesson.claim(f"{name}: wrong slopes, of {len(checks[name].judged)}", len(checks[name].failed), wrong, within=0)
    lesson.claim(f"{name}: slope of the effect of hidden updates", four - one, slope, within=0.04, relative=False)

# %% [markdown]
# ## Figure

# %%
figure, (left, right) = lesson.figure(9, 4, ncols=2)
for (name, report), style, colour in zip(checks.items(), ("o-", "s--", "^:"), COLOURS, strict=False):
    y = sizes(report, "effect")
    left.loglog(report.sizes, y / y[0], style, base=2, color=colour, label=name)
left.set(xlabel="width", ylabel="effect of one update, relative", xticks=report.sizes, xticklabels=report.sizes)
for (eps, distance), style, colour in zip(apart.items(), ("o-", "s--"), COLOURS, strict=False):
    right.semilogy(np.maximum(distance, 1e-17), style, markersize=4, color=colour, label=f"ε = {eps:g}")
right.set(xlabel="step", ylabel="|loss of mup - loss of mup-table2|")
_ = left.legend(frameon=False), right.legend(frameon=False)
caption = "Left: effect of an update of hidden weights: grows in SP (circles), not in µP (squares), u-µP (triangles). "
caption += "Right: |difference| of two spellings of µP: ε = 0 (circles; 1e-17 stands for 0) and ε = 1e-8 (squares)."
lesson.save(figure, caption)

# %% [markdown]
# ## What would fool you
# A coordinate check over width sees powers of the width, and nothing else. Forget 1/√L in C of the weights in L
# branches: the same factor is missing at every width, and every slope is right. The check over depth sees it.

# %%
deep = {"config": ModelConfig(seq_len=16), "depths": (2, 4, 8), "seeds": (0,), "steps": 2}
with planted(ZOO["branch-lr-1"]):
    lesson.claim("planted: wrong slopes over width", len(look("umup").failed), 0, within=0)
    lesson.claim_least("planted: wrong slopes over depth", len(coordcheck(**deep).failed), 7)
lesson.claim("without it: wrong slopes over depth", len(coordcheck(**deep).failed), 0, within=0)

# %% [markdown]
# ## Exercise
# Write u-µP's row yourself, √B, A and C of every type of weight, in `lessons/exercises/ex06.py`. Graded by `pytest -m
# lesson06 lessons`; hints by `python lessons/hint.py 06 1` (2, 3).
#
# ## Recap
# The terms of an update's effect add up where those of a random weight cancel, so A C of a hidden weight has to fall as
# 1/fan_in while A √B falls as 1/√fan_in; SP has only the second. Of A, √B and C one is free, and u-µP spends it on
# starting every weight at 1. **The way on:** [07](07_adam.py), what Adam sees of a gradient, and what it does not.
#
# ## Answers
# 1. θ = 1/8: A = 1/8, √B = 1, C = 8/64 = 1/8. That is u-µP's square hidden weight at width 64, branches aside.
# 2. The gradient of w is A times that of W, and SGD's step has this A once more: W moves by A² C. C becomes C/θ² = 1.
