# %% [markdown]
# # 07 · What Adam sees
#
# **Question.** The last lesson gave each weight a learning rate of its own. Why can Adam take one, what of the
# gradient's size does it ignore, and what can still go wrong: ε, weight decay, the embedding?
#
# *40 minutes. Needs: A, √B and C ([06](06_parametrizations.py)), why gradients may carry a constant
# ([03](03_cut_edge.py)). Words: [glossary](glossary.md), [notation](notation.md).* Two questions for pencil and paper:
#
# 1. All gradients are 1000 times as large as before. What changes in Adam's first step? And in that of plain gradient
#    descent (SGD), w ← w - η g?
# 2. Weight decay takes the share λ of a weight in each step, and a step adds something of the size η C. At which size
#    do both come to rest, if steps point in random directions? And if all point the same way?

# %%
import json

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
#
# Adam divides by the gradient's size plus a small constant ε = 1e-8, which keeps it from dividing by 0. Let all
# elements of a gradient be just as small: +1e-8 or -1e-8. The first step then has what share of the learning rate?

# %%
mine = lesson.guess("Adam's first step, over the learning rate, for gradients of ±1e-8 and ε = 1e-8?")

# %% [markdown]
# ## The naive way
#
# Plain gradient descent (SGD) moves a weight by η times its gradient. Here are the gradients of a new Llama in the
# standard parametrization, on one batch. A step of SGD moves one weight by 80 times as large a share of itself as
# another. No single η fits both.


# %%
def gradients(scheme):
    """Config, initial weights and gradients of a new model, for 16 sequences of 64 random tokens."""
    c, ids = ModelConfig(scheme=scheme), np.random.default_rng(0).integers(256, size=(2, 16, 64))
    leaves = {name: Tensor(w, name) for name, w in init_params(c).items()}
    backpropagate(loss(leaves, *ids, plan(c, ids[0].size)))
    return c, {name: leaf.data for name, leaf in leaves.items()}, {name: leaf.grad for name, leaf in leaves.items()}


c, w, g = gradients("sp")
share = {name: lesson.rms(g[name]) / lesson.rms(w[name]) for name in w}
for name in ("embedding", "layer0.q", "layer0.down", "head"):
    print(
        f"{name:12} RMS of w {lesson.rms(w[name]):.4f}, of its gradient {lesson.rms(g[name]):.6f}, ratio {share[name]:.5f}"
    )
lesson.claim(
    "SP under SGD: largest over smallest share of a weight", max(share.values()) / min(share.values()), 85, within=0.1
)

# %% [markdown]
# ## The paper's row
#
# Adam keeps two running means per element: m of the gradient, v of its square. It steps by their ratio:
#
# $$w \leftarrow (1 - s\lambda)\, w - s\,\eta\, C\, \frac{\hat m}{\sqrt{\hat v} + \varepsilon}$$
#
# m̂ and v̂ are m and v with a correction for having started at 0; s is the schedule, 1 at its peak. In the first step
# m̂ is the gradient and √v̂ its magnitude. So each element moves by ±η C, **whatever the gradient's scale**. That is
# why a learning rate can be given to each weight: it alone says how far a step goes.
#
# It also is why u-µP may multiply gradients by constants (App. A.4). Its backward factors make every gradient c_W times
# the true one, with another known c_W for each weight. Adam divides c_W out again; SGD has to be told.
#
# ## Our code

# %%
lesson.show(adamw, (optim, "DECAYS"), gradient_constants)

# %% [markdown]
# ## Check
#
# **The scale of a gradient does not matter.** c_W of u-µP is between 30,000 and 140,000 in this model. Adam's first
# step with these gradients and with the true ones is the same to a part in a thousand; SGD's would differ by c_W.


# %%
def first_step(g, rule=adamw):
    """The step that Adam does first, at learning rate 1 and without decay, on a weight that is 0."""
    return -rule(0 * g, g, 0 * g, 0 * g, t=1, lr=1.0, decay=0.0)[0]


c, w, g = gradients("umup")
constants = gradient_constants(plan(c, 16 * 64))
print({name: round(constants[name]) for name in ("embedding", "layer0.q", "layer0.down", "head")})
lesson.claim_least("smallest c_W", min(constants.values()), 30_000)
lesson.claim_most("largest c_W", max(constants.values()), 140_000)
up, true = g["layer0.up"].astype(float), g["layer0.up"] / constants["layer0.up"]
lesson.claim("u-µP: RMS of the first step, over the learning rate", lesson.rms(first_step(up)), 1.0, within=1e-3)
lesson.claim("the same with the true gradient", lesson.rms(first_step(true)), 1.0, within=1e-3)

# %% [markdown]
# **Until it is as small as ε.** At |g| = ε half of the step is left, and below it Adam becomes SGD with the learning
# rate η/ε. The hidden gradients of u-µP have a hundred million times the size of ε, those of SP in this small model a
# hundred thousand times; of a mean over more tokens they are smaller still. Lower precision than float32 asks for a
# larger ε, and comes nearer.

# %%
half = float(abs(first_step(np.array([1e-8, -1e-8]))).mean())
lesson.claim("share of the step left at |g| = ε", half, 0.5, within=1e-6)
lesson.answer(mine, half, "the gradient's size over itself plus ε")
_, _, of_sp = gradients("sp")
sizes = {"sp": lesson.rms(of_sp["layer0.up"]), "umup": lesson.rms(up)}
lesson.claim("log10 of u-µP's gradient of up over ε", np.log10(sizes["umup"] / 1e-8), 8.1, within=0.1, relative=False)
lesson.claim("log10 of SP's gradient of up over ε", np.log10(sizes["sp"] / 1e-8), 5.1, within=0.1, relative=False)

# %% [markdown]
# **Weight decay has to be independent.** λ above stands alone: neither η nor C multiplies it (Table 6). Most libraries'
# AdamW takes η λ away instead, in which C would be: *coupled* decay. Then the abc-symmetry, A θ, √B/θ, C/θ, which left
# all of training as it was, changes how fast a weight decays. Here is a weight with θ = 1 and with θ = 0.3, trained on
# a small regression at ε = 0.


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
lesson.claim_least("coupled decay: losses with θ = 0.3 differ by", apart["coupled"].max(), 0.1)

# %% [markdown]
# **The embedding.** µP gives it C = 1 at any width, for its fan_in, the vocabulary, does not grow. The paper finds that
# its best learning rate falls with the width, and sets C = 1/√width (App. A.3): an observation, not a theorem. With the
# rule, one step at η = 1 and width 64 moves an embedding by 1/8 of itself, as it would a square hidden weight that is
# in no branch; without it, by all of itself. In the package's sweeps ([results](../docs/results.md), fig5) leaving it
# out costs 0.009 nats at width 32 and 0.048 at 128.

# %%
for rule, expected in ((True, 1 / 8), (False, 1.0)):
    emb = weights(ModelConfig(width=64, embedding_lr_rule=rule))["embedding"]
    lesson.claim(
        f"embedding, rule {rule}: share that a step at η = 1 moves", emb.C / emb.init_std, expected, within=1e-9
    )
claims = json.loads((lesson.ROOT / "docs" / "figures" / "fig5.json").read_text("utf-8"))["claims"]
published = {claim["claim"]: claim["effect"] for claim in claims}
for width, cost in ((32, 0.009), (128, 0.048)):
    measured = published[f"without the rule the lowest loss at width {width} is higher by"]
    lesson.claim(f"published: nats lost without the rule at width {width}", measured, cost, within=0.02, relative=False)

# %% [markdown]
# ## What would fool you
#
# Put ε under the root: √(v̂ + ε). It looks the same, and on gradients of scale one it is: our first check passes. But
# under the root 1e-8 weighs as much as 1e-4 outside of it, and gradients of 1e-5, which is what large models in SP or
# µP have, meet it: nine tenths of the step are gone. The same check at that scale sees it.


# %%
def under_the_root(w, g, m, v, *, t, lr, decay, betas=(0.9, 0.999), eps=1e-8):
    m, v = m + (1 - betas[0]) * (g - m), v + (1 - betas[1]) * (g * g - v)
    return (1 - decay) * w - lr * m / (1 - betas[0] ** t) / np.sqrt(v / (1 - betas[1] ** t) + eps), m, v


tiny = np.array([1e-5, -1e-5])
lesson.claim("planted: step at u-µP's gradients", lesson.rms(first_step(up, under_the_root)), 1.0, within=1e-3)
lesson.claim("planted: step at gradients of 1e-5", lesson.rms(first_step(tiny, under_the_root)), 0.1, within=0.02)
lesson.claim("adamw: step at gradients of 1e-5", lesson.rms(first_step(tiny)), 1.0, within=2e-3)

# %% [markdown]
# ## Figure

# %%
figure, (left, right) = lesson.figure(9, 4, ncols=2)
scales = 10.0 ** np.arange(-11, 2)
for name, rule, style, colour in (
    ("adamw", adamw, "o-", COLOURS[0]),
    ("ε under the root", under_the_root, "s--", COLOURS[1]),
):
    left.semilogx(scales, [first_step(np.array([x]), rule)[0] for x in scales], style, color=colour, label=name)
for (name, size), style in zip(sizes.items(), (":", "-."), strict=True):
    left.axvline(size, linestyle=style, color="black", label=f"gradient of up, {name}")
left.set(xlabel="gradient", ylabel="first step over the learning rate")
left.legend(frameon=False, fontsize=8)
for (decay, distance), style, colour in zip(apart.items(), ("o-", "s--"), COLOURS, strict=False):
    right.semilogy(np.maximum(distance, 1e-17), style, markersize=3, color=colour, label=decay)
right.set(xlabel="step", ylabel="|difference of losses|, θ = 1 and 0.3")
right.legend(frameon=False, title="weight decay")
caption = "Left: Adam's first step over the gradient's size, with ε beside the root (circles, solid) and under it (squares, dashed); vertical lines are gradients of SP (dotted) and u-µP (dash-dotted)."
caption += " Right: what the abc-symmetry changes under independent decay (circles; 1e-17 stands for 0) and under coupled decay (squares)."
lesson.save(figure, caption)

# %% [markdown]
# ## Exercise
#
# Write AdamW with independent decay in `lessons/exercises/ex07.py`. Graded by `pytest -m lesson07 lessons`; hints by
# `python lessons/hint.py 07 1` (2, 3).
#
# ## Recap
#
# Adam's step has the size η C whatever the gradient's, as long as that is far above ε: so C is what a scheme decides,
# and known constants in gradients do no harm. λ has to stand outside of η and C, or the abc-symmetry changes how
# weights decay.
#
# **The way on:** [08](08_llama.py) puts all rules into a whole model and looks at every tensor.
#
# ## Answers
#
# 1. Nothing, but for ε. SGD's step is 1000 times as large.
# 2. Random directions: squares add up, so RMS² 2λ = (η C)², RMS = η C/√(2λ). One direction: λ RMS = η C, RMS = η C/λ.
#    Both keep C in the same place as √B: a weight's size in the long run is a matter of its learning rate, whatever it
#    started with.
