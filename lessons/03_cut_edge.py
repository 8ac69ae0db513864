# %% [markdown]
# # 03 · Cut edges: where backward may differ from forward
#
# **Question.** In u-µP a gradient has other factors than the output. So backward is not the derivative of forward.
# Where is that harmless, and where does it turn the gradient into a wrong direction?
#
# *15 minutes.* From lesson 02 you need the three factors of a linear: `scale.y` for its output, `scale.dx` and
# `scale.dw` for its gradients, 1/√b for dw (b: tokens in a batch). [Cosine](glossary.md#cosine) means that of the angle
# between two gradients, each taken as one long vector: 1 where they have the same direction, whatever their lengths.
#
# On paper, before you go on (answers at the end):
#
# 1. A readout has the factors y = 1/64, dx = 1/8, dw = 1/32. By which constant is the gradient of its weight off from
#    the true one? By which are the gradients of all weights before it off?
# 2. y = x + f(x), and a mistake doubles the gradient that comes through f. By what factor is dx off where f has the
#    slope 3, and where it has the slope 0?

# %%
import lesson
import numpy as np

from microumup import ops
from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.lab.expected import expected_rms
from microumup.lab.gradcheck import check_model, check_pair, tiny_config
from microumup.lab.mistakes import ZOO, planted
from microumup.lab.pictures import BLUE, GREEN, VERMILION
from microumup.lab.scales import fresh_loss, measured_rms
from microumup.model import init_params, loss
from microumup.plan import gradient_constants, plan

# %% [markdown]
# ## Predict
# A small [Llama](glossary.md#llama) has two layers of two branches, attention and feed-forward network (FFN). In the
# FFN stands the op `gated_silu`, whose factor is 1.68 forward and backward. Say that somebody forgets it backward.

# %%
mine = lesson.guess("What is the cosine between the embedding's gradient and the true one?")

# %% [markdown]
# ## The naive way
# The usual test of a gradient: move the weight a little and look at what the output does, that is, [finite
# differences](glossary.md#finite-difference). Here is a hidden linear of width 64, with its factors at b = 1024.

# %%
rng = np.random.default_rng(3)
hidden = plan(ModelConfig(), batch_tokens=1024).linears["layer0.q"].scale
of_x, of_w = check_pair(ops.linear_forward, ops.linear_backward, [*rng.standard_normal((2, 64, 64))], scale=hidden)
lesson.claim("dx over the true dx", of_x.measured, 1, within=1e-6)
lesson.claim("dw over the true dw", of_w.measured, 0.25, within=1e-6)

# %% [markdown]
# dw is a quarter of the derivative: 1/32 for dw stands against 1/8 for y. The test calls a correct linear wrong. Who
# then drops the test, or allows any factor, has no test any more. It takes a better one, and for that an idea.
#
# ## The paper's row
# **The idea.** Draw the model as a graph, ops as dots and tensors as edges. An edge is a [cut
# edge](glossary.md#cut-edge) if the graph falls in two when it is removed. All of a gradient has to pass it to get from
# the loss to what lies behind.
#
#     loss ─── readout ─── norm ──┬──────────── skip ────────────┬─── … ─── embedding
#                 │               └── down ── silu ── up, gate ──┘
#               weight                        branch
#
# Multiply the gradient by 8 at the readout: that is a cut edge, so *every* gradient behind it is 8 times the true one,
# and keeps its direction. A weight hangs on a cut edge of its own, so dw may have any factor. But an edge of a residual
# branch is not a cut edge: part of the gradient takes the skip. Multiply only one of both parts, and their sum points
# elsewhere. No constant mends that.
#
# **The formula.** Where the rule is kept, the gradient of each weight W is the true one times a constant that one can
# work out beforehand (Appendix A.4, and section 5.1 of the Unit Scaling paper):
#
# $$c_W = \prod_{\text{ops on the way from the loss to } W} \frac{\text{backward factor}}{\text{forward factor}}$$
#
# A branch allows one thing: factors that cancel before the ways meet again. u-µP multiplies a branch by a at its end.
# Backward it does so at its *base*, where it left the skip (App. B), so that dy is not too small within: it is 1/a too
# large there, and right again where it meets the skip.
#
# ## Our code
# It walks back from the loss. `r.dbranch / r.a` is the a that is still to come: dy enters a branch times `dbranch`, 1
# in u-µP. The weights of attention are q, k, v, o, those of the FFN gate, up, down.

# %%
lesson.show(gradient_constants)

# %% [markdown]
# ## Check
# First by finite differences, on a tiny model: each gradient's direction, and its length against the predicted c_W.

# %%
results = check_model(tiny_config("umup"))
lesson.claim_most("1 - cosine, the worst", max(r.error for r in results), 1e-9)
lesson.claim_most("|measured/predicted - 1|, the worst", max(abs(r.measured / r.predicted - 1) for r in results), 1e-6)

# %% [markdown]
# Then on the model of the prediction. Its true gradients come out when every backward factor is the forward one.

# %%
config = ModelConfig(width=32, head_dim=8, layers=2, seq_len=16, vocab_size=64)
params = init_params(config, dtype=np.float64)
tokens, targets = rng.integers(config.vocab_size, size=(2, 8, config.seq_len))
umup = plan(config, tokens.size)


def gradients(numbers):
    leaves = {name: Tensor(w, name) for name, w in params.items()}
    backpropagate(loss(leaves, tokens, targets, numbers))
    return {name: leaf.grad for name, leaf in leaves.items()}


true_gradients = gradients(umup._replace(
    embedding=ops.Scale(), loss=ops.Scale(),
    branches=tuple(ops.ResidualScale(r.a, r.b, dbranch=r.a) for r in umup.branches),
    linears={name: of._replace(scale=ops.Scale(*3 * [of.scale.y])) for name, of in umup.linears.items()},
))  # fmt: skip


def cosine(name, numbers):
    g, t = gradients(numbers)[name], true_gradients[name]
    return float((g * t).sum() / np.sqrt((g * g).sum() * (t * t).sum()))


found, predicted = gradients(umup), gradient_constants(umup)
for name, value in {"head": 2919, "layer1.down": 13692, "layer0.q": 6528, "embedding": 4128}.items():
    lesson.claim(f"c of {name}, predicted", predicted[name], value, within=1e-3)
    length = np.linalg.norm(found[name]) / np.linalg.norm(true_gradients[name])
    lesson.claim("  measured over predicted", length / predicted[name], 1, within=1e-9)
    lesson.claim("  cosine", cosine(name, umup), 1, within=1e-12)

# %% [markdown]
# Large, different, and harmless. Adam divides a gradient by its own size and so does not see c_W; SGD has to divide by
# it, and does (`optimizer="sgd"` in `TrainConfig`). Now change a factor on a cut edge, then one in the branches:


# %%
def times(op, factor):
    """The plan with the dx factor of an op changed: of the head, or of gated_silu or attention in all layers."""
    scale = umup.linears["head"].scale if op == "head" else getattr(umup, op)
    changed = scale._replace(dx=factor * scale.dx)
    if op != "head":
        return umup._replace(**{op: changed})
    return umup._replace(linears={**umup.linears, op: umup.linears[op]._replace(scale=changed)})


lesson.claim("gated_silu's factor", umup.gated_silu.dx, 1.68, within=0.002)
lesson.claim("embedding, readout's dx times 8", cosine("embedding", times("head", 8)), 1, within=1e-12)
broken = times("gated_silu", 1 / umup.gated_silu.dx)
for name, value in {"layer1.down": 1, "layer1.q": 0.98, "layer0.q": 0.95, "embedding": 0.96}.items():
    lesson.claim(f"{name}, gated_silu's factor forgotten backward", cosine(name, broken), value, within=0.006)
lesson.answer(mine, cosine("embedding", broken), "for the skip's part is right and the branches' is not.")

# %% [markdown]
# The last branch has cosine 1: between it and the loss nothing splits. Behind it skip and branch meet, and no gradient
# points where it should. Nothing overflows, nothing stops: only comparing with the true gradient shows it.
#
# ## Figure

# %%
FACTORS = 2.0 ** np.arange(-3, 4)
figure, ax = lesson.figure()
LINES = {"head": ("readout (cut edge)", GREEN, "o-"), "gated_silu": ("gated_silu (in a branch)", BLUE, "s--"),
         "attention": ("attention (in a branch)", VERMILION, "^:")}  # fmt: skip
for op, (label, colour, style) in LINES.items():
    ax.plot(FACTORS, [cosine("embedding", times(op, f)) for f in FACTORS], style, color=colour, label=label)
ax.set(xlabel="backward factor, over what it should be", ylabel="cosine of the embedding's gradient", ylim=(0, 1.05))
ax.set_xscale("log", base=2)
ax.legend(frameon=False, loc="lower left")
caption = "Cosine of the embedding's gradient to the true one, over what one op's backward factor is multiplied by. At "
lesson.save(figure, caption + "the readout no factor turns the gradient; in a branch every factor but 1 does.")

# %% [markdown]
# ## What would fool you
# A wrong factor on a cut edge. Take the usual mean loss, whose gradient has 1/b in it; u-µP's has not. Every cosine is
# 1, every length is as predicted: this lesson's check has nothing to say. The check of *scales* has.

# %%
with planted(ZOO["mean-loss"]):
    results = check_model(tiny_config("umup"))
    measured = measured_rms(fresh_loss(ModelConfig(), batch_size=16))["head.dy"]
lesson.claim("mean loss: checks of this lesson that fail", sum(not r.passed for r in results), 0, within=0)
rules = expected_rms(ModelConfig())["head.dy"]
lesson.claim("mean loss: RMS of dy at the head, over what the rules imply", measured / rules, 1 / 1024, within=0.02)

# %% [markdown]
# ## Exercise
# Work out c_W yourself, of any weight of a Llama from its Plan: `gradient_constant` in `lessons/exercises/ex03.py`.
# `pytest -m lesson03 lessons` grades it, `python lessons/hint.py 03 1` gives a first hint.
#
# ## Recap
# On a cut edge a backward factor may differ from the forward one: all gradients behind it are the true ones times one
# known constant. Within a residual branch it must not, or the gradients turn.
#
# ## The way on
# Linears have exact factors. [Lesson 04](04_scale_models.py) is about ops for which nobody has a formula.
#
# ## Answers
# 1. Its own: (1/32) / (1/64) = 2. Of those before it: (1/8) / (1/64) = 8, times what their own dw brings.
# 2. (1 + 6) / (1 + 3) = 1.75, and (1 + 0) / (1 + 0) = 1. Two places, two factors: there is no constant.
