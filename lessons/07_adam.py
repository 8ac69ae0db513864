# %% [markdown]
# # 07 · Adam's view
#
# **Question.** Why can each weight have a learning rate of its own, what of a gradient's size does Adam ignore, and
# what can still go wrong: ε, weight decay, the embedding?
#
# *15 minutes. Needs: A, √B and C ([06](06_parametrizations.py)), why gradients may carry a constant
# ([03](03_cut_edge.py)). Words: [glossary](glossary.md), [notation](notation.md).* Two questions for pencil and paper:
#
# 1. All gradients are 1000 times as large as before. What changes in Adam's first step? And in that of plain gradient
#    descent (SGD), w ← w - η g?
# 2. Each step takes the share λ of a weight away and adds ±η C, with a random sign. At which size does it settle?

# %%
import lesson
import numpy as np

from microumup import optim
from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.lab.pictures import COLOURS
from microumup.model import init_params, loss
from microumup.optim import DECAYS, adamw
from microumup.plan import gradient_constants, plan, weights

# %% [markdown]
# ## Predict
# [Adam](glossary.md#adam) divides by the gradient's size plus a small constant ε = 1e-8, which keeps it from dividing
# by 0. Let all elements of a gradient be just as small: +1e-8 or -1e-8. The first step then has what share of the
# learning rate?

# %%
mine = lesson.guess("Adam's first step, over the learning rate, for gradients of ±1e-8 and ε = 1e-8?")

# %% [markdown]
# ## The naive way
# Plain gradient descent (SGD) moves a weight by η times its gradient. In a new [Llama](glossary.md#llama) in the
# standard parametrization, SP, a step moves one weight by 85 times as large a share of itself as another. No single η
# fits both.


# %%
def gradients(scheme):
    """Plan, initial weights and gradients of a new model, for 16 sequences of 64 random tokens."""
    c, ids = ModelConfig(scheme=scheme), np.random.default_rng(0).integers(256, size=(2, 16, 64))
    p, leaves = plan(c, ids[0].size), {name: Tensor(w, name) for name, w in init_params(c).items()}
    backpropagate(loss(leaves, *ids, p))
    return p, {name: leaf.data for name, leaf in leaves.items()}, {name: leaf.grad for name, leaf in leaves.items()}


_, w, g = gradients("sp")
share = [lesson.rms(g[name]) / lesson.rms(w[name]) for name in w]
lesson.claim(
    "SP under SGD: largest over smallest share of a weight that moves", max(share) / min(share), 85, within=0.1
)

# %% [markdown]
# ## The paper's row
# Adam keeps two running means per element: m of the gradient, v of its square. It steps by their ratio:
#
# $$w \leftarrow (1 - s\lambda)\, w - s\,\eta\, C\, \frac{\hat m}{\sqrt{\hat v} + \varepsilon}$$
#
# m̂ and v̂ are m and v with a correction for having started at 0; s is the schedule, 1 at its peak. In the first step
# m̂ is the gradient and √v̂ its magnitude. So each element moves by ±η C, **whatever the gradient's scale**. Later
# steps are shorter where gradients change their sign, but scale does not matter there either: m̂ and √v̂ grow alike.
# That is why a learning rate can be given to each weight: it alone says how far a step goes.
#
# It also is why u-µP may multiply gradients by constants (App. A.4): each is c_W times the true one, with a known c_W
# for each weight. Adam divides it out again; SGD has to be told.
#
# ## Our code

# %%
lesson.show(adamw, (optim, "DECAYS"))

# %% [markdown]
# ## Check
# **The scale of a gradient does not matter.** c_W of `up`, a weight of the feed-forward network, is 80,000 in u-µP at
# this size. Adam's first step with these gradients and with the true ones is the same to half a percent, and the half
# percent is ε's. SGD's steps would differ by c_W.


# %%
def first_step(g):
    """The step that Adam does first, at learning rate 1 and without decay, on a weight that is 0."""
    return -adamw(0 * g, g, 0 * g, 0 * g, t=1, lr=1.0, decay=0.0)[0]


p, _, g = gradients("umup")
constants = gradient_constants(p)
lesson.claim("c_W of up", constants["layer0.up"], 80_000, within=0.01)
up, true = g["layer0.up"].astype(float), g["layer0.up"] / constants["layer0.up"]
lesson.claim("u-µP: RMS of the first step, over the learning rate", lesson.rms(first_step(up)), 1.0, within=1e-3)
lesson.claim("the same with the true gradient", lesson.rms(first_step(true)), 0.996, within=1e-3)

# %% [markdown]
# **Until it is as small as ε.** At |g| = ε half of the step is left, and far below it Adam is SGD with the learning
# rate η/ε. u-µP's gradient of `up` is $10^{8.1}$ times as large as ε, SP's here $10^{5.1}$ times.

# %%
half = float(abs(first_step(np.array([1e-8, -1e-8]))).mean())
lesson.claim("share of the step left at |g| = ε", half, 0.5, within=1e-6)
lesson.answer(mine, half, "the gradient's size over itself plus ε")
sizes = {scheme: lesson.rms(gradients(scheme)[2]["layer0.up"]) for scheme in ("sp", "umup")}
for scheme, size in (("sp", 5.1), ("umup", 8.1)):
    lesson.claim(f"{scheme}: log10 of up's gradient over ε", np.log10(sizes[scheme] / 1e-8), size, within=0.02)

# %% [markdown]
# **Weight decay has to be independent.** λ above stands alone: neither η nor C multiplies it (Table 6). Most libraries'
# AdamW takes the share η λ instead, with each weight's own rate η C: that is *coupled* decay. Then the
# [abc-symmetry](glossary.md#abc-symmetry), A θ, √B/θ, C/θ, which left all of training as it was, changes how fast a
# weight decays. Here is a weight with θ = 1 and with θ = 0.3, trained on a small regression at ε = 0. Both start as the
# same network; their losses stay the same under independent decay, and part by more than 1 under coupled.


# %%
def losses(theta, decay):
    """60 steps on y = W x with W = A w; decay is the name of a reading of weight decay."""
    rng = np.random.default_rng(0)
    x, target, w = (rng.standard_normal(shape) for shape in ((32, 8), (32, 4), (4, 8)))
    w, m, v, found, lam, eta = w / theta, 0 * w, 0 * w, [], {"independent": 2**-6, "coupled": 1.0}[decay], 2**-6
    for t in range(1, 61):
        dy = theta * x @ w.T - target
        found.append((dy**2).mean())
        taken = DECAYS[decay](lam, 1.0, eta, 1 / theta)
        w, m, v = adamw(w, theta * dy.T @ x, m, v, t=t, lr=eta / theta, decay=taken, eps=0.0)
    return np.array(found)


apart = {decay: abs(losses(1.0, decay) - losses(0.3, decay)) for decay in ("independent", "coupled")}
lesson.claim_most("independent decay: losses with θ = 0.3 differ by", apart["independent"].max(), 1e-12)
lesson.claim_least("coupled decay: losses with θ = 0.3 differ by", apart["coupled"].max(), 1.0)

# %% [markdown]
# **The embedding.** µP gives it C = 1 at any width, for its fan_in, the vocabulary, does not grow. The paper finds that
# its best learning rate falls with the width all the same, and sets C = 1/√width (App. A.3): not a theorem. With the
# rule, one step at η = 1 and width 64 moves an embedding by 1/8 of itself, as it would a square hidden weight outside
# of branches; without it, by all of itself. In the package's sweeps leaving it out costs more the wider the model
# ([results](../docs/results.md), fig5).

# %%
for rule, moved in ((True, 1 / 8), (False, 1.0)):
    emb = weights(ModelConfig(width=64, embedding_lr_rule=rule))["embedding"]
    lesson.claim(f"embedding, rule {rule}: share moved by a step at η = 1", emb.C / emb.init_std, moved, within=1e-9)

# %% [markdown]
# ## Figure
# Beside Adam's first step stands that of a mistake, of which the next part tells.

# %%
figure, (left, right) = lesson.figure(9, 4, ncols=2)
x = 10.0 ** np.arange(-11, 2)
left.semilogx(x, first_step(x), "o-", color=COLOURS[0])
left.semilogx(x, x / np.sqrt(x * x + 1e-8), "s--", color=COLOURS[1])
for name, size in sizes.items():
    left.axvline(size, linestyle=":", color="black")
    left.text(size, 0.02, f" {name}'s gradient", rotation=90, ha="right")
left.set(xlabel="gradient", ylabel="first step over the learning rate")
for (decay, distance), style, colour in zip(apart.items(), ("o-", "s--"), COLOURS, strict=False):
    right.semilogy(np.maximum(distance, 1e-17), style, markersize=3, color=colour, label=f"{decay} decay")
right.set(xlabel="step", ylabel="|difference of losses|, θ = 1 and 0.3")
right.legend(frameon=False)
caption = "Left: Adam's first step, ε beside the root (circles) or under it (squares); dotted: RMS of up's gradient. "
caption += "Right: what θ changes under independent decay (circles; 1e-17 is 0) and coupled decay (squares)."
lesson.save(figure, caption)

# %% [markdown]
# ## What would fool you
# Put ε under the root: √(v̂ + ε). It looks the same, and on gradients of scale one it is: our first check passes. But
# under the root 1e-8 weighs as much as 1e-4 outside of it. The true gradients of this model, of RMS 1.5e-5, lose six
# sevenths of their step. The same check at their scale sees it.

# %%
for name, gradient, left_over in (("u-µP's gradient", up, 1), ("the true gradient", true, 1 / 7)):
    planted = gradient / np.sqrt(gradient**2 + 1e-8)  # the first step, where m̂ is g and v̂ its square
    lesson.claim(f"planted: RMS of the step at {name}", lesson.rms(planted), left_over, within=0.01)
lesson.claim("RMS of the true gradient", lesson.rms(true), 1.5e-5, within=0.05)

# %% [markdown]
# ## Exercise
# Write AdamW with independent decay in `lessons/exercises/ex07.py`. Graded by `pytest -m lesson07 lessons`; hints by
# `python lessons/hint.py 07 1` (2, 3).
#
# ## Recap
# Adam's step has the size η C whatever the gradient's, as long as that is far above ε: so C decides how fast a weight
# moves, and known constants in gradients do no harm. λ has to stand outside of η and C, or the abc-symmetry changes how
# weights decay. **The way on:** [08](08_llama.py), all rules in a whole model, and every tensor looked at.
#
# ## Answers
# 1. Nothing, but for ε. SGD's step is 1000 times as large.
# 2. Squares add up, so it settles where 2 λ RMS² = (η C)²: at RMS = η C/√(2λ). In the long run a weight's size is a
#    matter of η C and λ, not of √B.
