# %% [markdown]
# # 05 · The residual stream: growth, a lemma, and a misprint
# **Question.** Every branch of a Transformer adds to one stream, so the stream grows with depth. How does u-µP keep it
# at scale 1, and is it then still the same network?
#
# *15 minutes.* Can be read alone; words: [glossary](glossary.md). The *trunk* or [residual
# stream](glossary.md#residual-stream) R begins as the embedding. L *branches*, attention and feed-forward (FFN) in
# turn, take it, compute something and add that: R' = R + f(R). Each begins with an [RMSNorm](glossary.md#rmsnorm),
# which divides a vector by its root mean square (RMS): how large R is, a branch cannot see. *Scale* means RMS. u-µP
# wants every tensor to start at scale 1. Where independent numbers are added, their squared scales (variances) add up.
#
# On paper, before you go on (answers at the end):
#
# 1. Mix trunk and branch half and half instead: R' = √½ f(R) + √½ R. After 24 branches, what share of the trunk's
#    variance is still the embedding's?
# 2. Let L = 2, and let both branches be multiplied by 1/√2 before they are added to the embedding. What is the ratio of
#    variances, branch to trunk, at the first add, and what at the second?

# %%
from math import prod, sqrt

import lesson
import numpy as np

from microumup import ops
from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.lab.figures.rules import taus_as_printed
from microumup.lab.pictures import BLACK, BLUE, GREEN, VERMILION
from microumup.lab.scales import fresh_loss, measured_rms
from microumup.multipliers import Plain, UnitScaled, residual_multipliers, residual_taus

# %% [markdown]
# ## Predict

# %%
mine = lesson.guess("Embedding and every branch's output have scale 1. What is the trunk's RMS after 64 branches?")

# %% [markdown]
# ## The naive way
# A network as small as can be: a branch is an RMSNorm and a linear, whose output has scale 1 (lesson 02 says why).

# %%
D, rng = 256, np.random.default_rng(5)
embedding = rng.standard_normal((64, D))
weights = rng.standard_normal((64, D, D))


def trunk(multipliers, factors=UnitScaled.residual):
    """R_0 … R_L, the trunk before the first and after every branch, for the (a, b) of each: R' = a f(R) + b R."""
    R = [Tensor(embedding)]
    for w, scale in zip(weights, (factors(a, b) for a, b in multipliers)):  # noqa: B905 - weights are left over
        normed = ops.rms_norm(ops.residual_split(R[-1], scale=scale), eps=0.0)
        branch = ops.linear(normed, w, scale=ops.Scale(y=D**-0.5, dx=D**-0.5))
        R.append(ops.residual_add(branch, R[-1], scale=scale))
    return R


def sizes(R):
    return [lesson.rms(r.data) for r in R]


plain = trunk([(1, 1)] * 64)
for L, size in {4: 2.24, 24: 5, 64: 8.06}.items():
    lesson.claim(f"R + f(R): RMS after {L} branches", sizes(plain)[L], size, within=0.02)
lesson.answer(mine, sizes(plain)[-1], "for 1 + 64 variances of 1 add up to 65, whose root is 8.06.")

# %% [markdown]
# The obvious cure is to halve the variance at every add: R' = √½ f(R) + √½ R. The scale stays 1. But each branch now
# halves the share of all that came before it. The embedding fades, and the network is another one:

# %%
halved = trunk([(sqrt(0.5), sqrt(0.5))] * 24)
lesson.claim("√½ f(R) + √½ R: RMS after 24 branches", sizes(halved)[-1], 1, within=0.02)
lesson.claim("  scale of the embedding in it (in R + f(R) it is 1 in 5.0)", sqrt(0.5) ** 24, 0.00024, within=0.02)

# %% [markdown]
# ## The paper's row
# **The idea.** Only the *proportion* in which branch and trunk are mixed matters, not how large the mixture is: what
# looks at it next is an RMSNorm. So keep the proportions of the plain sum, and shrink every mixture to scale 1.
#
# **The formula.** Let the plain network multiply branch $l$ by $r_l$, and the embedding by $r_0 = 1$ (eqs. 1, 2). When
# branch $l$ is added, the trunk has the variance $r_0^2 + … + r_{l-1}^2$. The ratio of variances is τ (eq. 12), and
# with a² + b² = 1 there is one way to have this ratio (eq. 8):
#
# $$\tau_l = \frac{r_l^2}{\sum_{i<l} r_i^2}, \qquad
# R' = a\,f(R) + b\,R, \qquad a = \sqrt{\tau_l / (\tau_l + 1)}, \qquad b = \sqrt{1 / (\tau_l + 1)}$$
#
# **Lemma C.1** says that nothing else changes: the new trunk is the old one over $\sqrt{r_0^2 + … + r_l^2}$, exactly.
#
# Which $r_l$? $α/\sqrt{L}$, as in an earlier rule, depth-µP: so the variance of all branches does not depend on L.
# **α_res** is then what it is named for, the scale of all branches together over that of the embedding; 1 by default. A
# second number, α_res-attn-ratio, lets attention and FFN branches differ (eqs. 23, 24).
#
# ## Our code

# %%
lesson.show(residual_taus, residual_multipliers)

# %% [markdown]
# ## Check
# First pencil question 2. Then, for 24 branches, scale 1 everywhere, the lemma, and what α_res means. Last a real Llama
# of 2 layers: its branches' scale is not quite 1 (lesson 04 says why), so its trunk ends at 1.14.

# %%
lesson.claim("τ of the second of two branches", residual_taus(2, 1, 1)[1], 1 / 3, within=1e-12)


def check(taus, alpha_res=1.0):
    """The largest distance of the trunk's RMS from 1, and the largest difference of the lemma's two networks."""
    r = alpha_res / sqrt(len(taus))
    original = trunk([(r, 1.0)] * len(taus))[-1].data
    R = trunk(residual_multipliers(taus))
    return max(abs(size - 1) for size in sizes(R)), np.abs(original / sqrt(1 + alpha_res**2) - R[-1].data).max()


def branches_over_embedding(taus):
    """Their scales at the trunk's end: each add leaves the embedding's variance b² of what it was."""
    return sqrt(1 / prod(b * b for _, b in residual_multipliers(taus)) - 1)


for alpha_res in (1.0, 2.0):
    taus = residual_taus(24, alpha_res, 1.0)
    off, lemma = check(taus, alpha_res)
    lesson.claim_most(f"α_res = {alpha_res:g}: RMS of the trunk is off from 1 by", off, 0.02)
    lesson.claim_most("  the networks of the lemma differ by", lemma, 1e-12)
    lesson.claim("  branches over embedding", branches_over_embedding(taus), alpha_res, within=1e-9)
model = measured_rms(fresh_loss(ModelConfig(layers=2), batch_size=16))
lesson.claim("RMS of the trunk's end in a Llama", model["layer1.ffn_add.y"], 1.14, within=0.02)

# %% [markdown]
# ## The misprint
# The paper also prints τ multiplied out, in eq. (22). For α_res = 1 that comes to 1/(l √L). Eq. (12) gives (1/L) / (1 +
# (l-1)/L) = 1/(L + l - 1). In (22) the squares are gone, and 1/√L stands on τ instead of on r. A reader may overlook
# it, and a check of scales will: a² + b² = 1 whatever τ is. Run both, and it shows: α_res should be 1 and depends on
# depth instead, and the lemma fails. Its proof uses eq. (12), and so does our code.

# %%
lesson.show(taus_as_printed)
for L, value in {4: 1.21, 8: 1.19, 24: 1.05, 64: 0.89}.items():
    ratio = branches_over_embedding(taus_as_printed(L, 1.0, 1.0))
    lesson.claim(f"eq. (22), L = {L}: branches over embedding", ratio, value, within=0.005)
off, lemma = check(taus_as_printed(24, 1.0, 1.0))
lesson.claim_most("eq. (22): RMS of the trunk is off from 1 by", off, 0.02)
lesson.claim_least("eq. (22): the networks of the lemma differ by", lemma, 0.5)

# %% [markdown]
# ## Figure

# %%
figure, (left, right) = lesson.figure(10, 4, ncols=2)
multipliers = residual_multipliers(residual_taus(24, 1.0, 1.0))
ours = trunk(multipliers)
left.plot(sizes(plain)[:25], "s--", color=VERMILION, label="R + f(R)", markersize=4)
left.plot(sizes(halved), "^:", color=GREEN, label="√½ f(R) + √½ R", markersize=4)
left.plot(sizes(ours), "o-", color=BLUE, label="τ of eq. (12)", markersize=4)
left.set(xlabel="branches so far", ylabel="RMS of the trunk", ylim=(0, 5.5))
DEPTHS = (2, 4, 8, 16, 24, 32, 48, 64)
true, printed = ([branches_over_embedding(f(L, 1.0, 1.0)) for L in DEPTHS] for f in (residual_taus, taus_as_printed))
right.plot(DEPTHS, true, "o-", color=BLUE, label="eq. (12)")
right.plot(DEPTHS, printed, "D-.", color=BLACK, label="eq. (22) as printed")
right.set(xlabel="L, branches in all", ylabel="branches over embedding, RMS", ylim=(0.8, 1.3))
for ax in (left, right):
    ax.legend(frameon=False)
caption = "Left: RMS of the trunk along 24 branches; √½ and τ keep it at 1. Right: what α_res = 1 comes to, by depth. "
lesson.save(figure, caption + "It should be 1: with eq. (12) it is, with eq. (22) as printed it depends on the depth.")

# %% [markdown]
# ## What would fool you
# All above looks forward. Backward, u-µP lets dy into a branch as it is, and multiplies by a at the branch's *base*
# instead (App. B), so that gradients in the branch have scale 1 too. Apply a at both ends, and every check above still
# passes. The gradient is wrong, and only a comparison with the true one says so: it points elsewhere.

# %%
true = trunk(multipliers, Plain.residual)
both_ends = trunk(multipliers, lambda a, b: ops.ResidualScale(a, b, dbranch=a, dbase=a))
for R in (true, ours, both_ends):
    backpropagate(R[-1], np.cos(embedding))  # any dy will do
for name, R, value in (("a at the base", ours, 1.0), ("a at both ends", both_ends, 0.80)):
    lesson.claim_most(f"{name}: the trunk's end differs by", np.abs(R[-1].data - true[-1].data).max(), 1e-12)
    dx, dx_true = R[0].grad, true[0].grad
    cosine = (dx * dx_true).sum() / np.sqrt((dx * dx).sum() * (dx_true * dx_true).sum())
    lesson.claim("  cosine of the embedding's gradient to the true one", cosine, value, within=0.01)

# %% [markdown]
# ## Exercise
# Work out the (a, b) of all branches: `branch_multipliers` in `lessons/exercises/ex05.py`. `pytest -m lesson05 lessons`
# grades it, `python lessons/hint.py 05 1` gives a first hint.
#
# ## Recap
# A plain residual stream grows like √(1 + L). Mixing branch and trunk in the same proportions, but with a² + b² = 1,
# keeps it at scale 1 and leaves the network as it was.
#
# ## The way on
# Scales at the start are one half of u-µP. The other is how fast weights may move: [lesson 06](06_parametrizations.py).
#
# ## Answers
# 1. $2^{-24}$, about 6 in 100 million: it is halved 24 times.
# 2. Each branch has the variance ½. At the first add ½ to 1, that is 1/2; at the second ½ to 1½, that is 1/3.
