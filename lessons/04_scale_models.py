# %% [markdown]
# # 04 · Scale models: attention, gated SiLU, the loss
# **Question.** A matmul's scale can be counted (lesson 02). Attention's and the gated SiLU's cannot. What does u-µP
# divide them by, how good is that, and where does it stop holding?
#
# *15 minutes.* From earlier lessons you need: [scale](glossary.md#scale) is the root mean square (RMS) of a tensor's
# elements; u-µP gives each op a factor so that scale 1 in makes scale 1 out; inside a residual branch forward and
# backward share one. s is the sequence length, K the head dimension, V the vocabulary.
#
# On paper, before you go on (answers at the end):
#
# 1. A token looks equally at itself and all tokens before it, n in all, and takes the mean of their values, which are
#    independent and have scale 1. What scale has the result for n = 1, for n = 256?
# 2. x and g are independent and have scale 1. What is the scale of x · g · ½, and what that of x · max(g, 0)?

# %%
import lesson
import numpy as np

from microumup import ops
from microumup.config import ModelConfig
from microumup.lab.expected import expected_rms
from microumup.lab.mistakes import ZOO, planted
from microumup.lab.pictures import BLACK, BLUE, GREEN, VERMILION
from microumup.lab.scales import fresh_loss, measured_rms
from microumup.model import forward, init_params
from microumup.multipliers import UnitScaled, attention_sigma, gated_silu_sigma, log_interpolate
from microumup.plan import plan

rng, K = np.random.default_rng(4), 16


def normal(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def attention(s, scale=ops.Scale()):  # with u-µP's scores: α/K times q·k, here for α = 1
    q, k, v = (normal(8, s, 256) for _ in "qkv")
    return ops.attention_forward(q, k, v, head_dim=K, score_scale=1 / K, scale=scale)[0]


# %% [markdown]
# ## Predict
# [Attention](glossary.md#attention) compares a token's query q with all keys k, and by these *scores* takes a mean of
# the values v; *causal*: only of itself and tokens before it. Here are 256 tokens; q, k, v are random, of scale 1.

# %%
mine = lesson.guess("What is the RMS of its output?")

# %% [markdown]
# ## The naive way
# Each token takes a mean of s values, so the scale is 1/√s; multiply by √s. That fails by a factor of 2.5:

# %%
measured = lesson.rms(attention(256))
lesson.claim("RMS of attention over 256 tokens", measured, 0.158, within=0.02)
lesson.claim("after the naive factor √256", measured * 16, 2.5, within=0.03)
lesson.answer(mine, measured, "and not 1/16: the first tokens see few others, and their means are large.")

# %% [markdown]
# ## The paper's row
# **The idea.** α, a [hyperparameter](glossary.md#hyperparameter) (it multiplies what a sigmoid or softmax gets),
# decides how strongly an op bends, and at both ends the scale is known. The gated SiLU, of the feed-forward network, is
# x_in · x_gate · sigmoid(α x_gate). With a small α the sigmoid is ½ everywhere, and the scale is ½; with a large one it
# is a step, and the scale 1/√2. With a small α attention is a plain mean; with a large one it copies a single token, at
# scale 1. In between mix both ends, on a logarithmic scale, by a weight that depends on α.
#
# **The formulas** (App. B and Table 4): $\sigma = \text{upper}^w \cdot \text{lower}^{1-w}$, with
#
#     gated SiLU    upper = 1/√2    lower = 1/2             w = 1 / (1 + 1/α²)
#     attention     upper = 1       lower = √(log s / s)    w = 1 / (1 + 4K/α²)
#
# The op is multiplied by 1/σ, forward and backward. The paper does not derive this: it is an empirical *model* of the
# scale. So it has an error and a range, and you should know both.
#
# **The loss** is exact. Its gradient by the logits is p - onehot, the probabilities minus 1 at the target. Three lines:
#
#     at the start each p is about 1/V, so a row has V - 1 elements 1/V and one 1/V - 1
#     the mean of their squares is ((V - 1)/V² + (1 - 1/V)²) / V = (V - 1)/V²
#     so V/√(V - 1) times p - onehot has scale 1
#
# ## Our code

# %%
lesson.show(log_interpolate, gated_silu_sigma, attention_sigma, UnitScaled.gated_silu, UnitScaled.cross_entropy)

# %% [markdown]
# ## Check
# How good are they? Gated SiLU: within 1 % forward and 4 % backward, for every α from 1/8 to 8. Attention: the scale is
# 10 % above σ at 16 tokens and 5 % at 256. At α = 1 attention is nearly a plain mean, whose exact scale is √(H_s/s),
# with H_s = 1 + 1/2 + … + 1/s; the model has log s for it. The loss: exact.

# %%
ALPHAS, silu = [2.0**i for i in range(-3, 4)], []
for alpha in ALPHAS:
    y, saved = ops.gated_silu_forward(normal(400_000), normal(400_000), alpha=alpha, scale=UnitScaled.gated_silu(alpha))
    silu.append([lesson.rms(a) for a in (y, *ops.gated_silu_backward(normal(400_000), saved))])
for what, column, most in (("y", 0, 0.01), ("dx_in", 1, 0.01), ("dx_gate", 2, 0.04)):
    off = max(abs(rms[column] - 1) for rms in silu)
    lesson.claim_most(f"gated_silu, α from 1/8 to 8: RMS of {what} is off from 1 by", off, most + 0.005)
for s, value in {16: 1.10, 64: 1.07, 256: 1.05}.items():
    measured, exact = lesson.rms(attention(s)), (sum(1 / n for n in range(1, s + 1)) / s) ** 0.5
    lesson.claim(f"attention, s = {s}: RMS over σ", measured / attention_sigma(1.0, K, s), value, within=0.03)
    lesson.claim("  RMS over √(H_s/s)", measured / exact, 1, within=0.03)
logits, targets = 0.01 * normal(4096, 256), rng.integers(256, size=4096)
_, saved = ops.cross_entropy_forward(logits, targets, scale=UnitScaled.cross_entropy(1.0, 256, 4096))
lesson.claim("loss: RMS of dlogits", lesson.rms(ops.cross_entropy_backward(np.float32(1), saved)[0]), 1, within=0.01)

# %% [markdown]
# ## Where they stop holding
# **A mean over positions.** One σ serves all. At s = 256 the first token, which sees only itself, comes out at 6.6, and
# the last ones at 0.43. Only the mean square over all positions is near 1.
#
# **Independent tokens.** σ supposes that tokens have nothing in common. In the first layer that is so. It adds to each
# a mean of those before it, nearly the same one as to its neighbours. From then on they resemble each other, and a mean
# of similar vectors does not shrink: in the second layer attention's output starts at 1.8, and at 2.8 for 256 tokens.
# `expected_rms` works that out from shapes alone; what is measured scatters around it with the draw of the weights. Is
# 2.8 bad? It is one and a half powers of two, of seventeen that E4M3 has, the 8-bit format. But it is why one should
# compare a tensor with what the rules imply for it, and not with 1.

# %%
by_position = np.sqrt((attention(256, scale=UnitScaled.attention(1.0, K, 256)) ** 2).mean(axis=(0, 2)))
lesson.claim("RMS of the first token", by_position[0], 6.6, within=0.06)
lesson.claim("RMS of the last 32 tokens", by_position[-32:].mean(), 0.43, within=0.03)
for s, value in {64: 1.8, 256: 2.8}.items():
    config = ModelConfig(width=128, seq_len=s, layers=2)
    rms, rules = measured_rms(fresh_loss(config, batch_size=1024 // s)), expected_rms(config)
    lesson.claim(f"attention in the second layer, s = {s}: worked out", rules["layer1.attention.y"], value, within=0.02)
    lesson.claim("  measured", rms["layer1.attention.y"], value, within=0.1)

# %% [markdown]
# ## Figure

# %%
figure, axes = lesson.figure(11, 4, ncols=3)
model = np.array([gated_silu_sigma(alpha) for alpha in ALPHAS])
axes[0].plot(ALPHAS, model, color=BLUE, label="model")
axes[0].plot(ALPHAS, model * [rms[0] for rms in silu], "o", color=BLACK, label="measured")
axes[0].set(xlabel="α", ylabel="RMS without a factor", title="gated SiLU")
LENGTHS = [2**i for i in range(2, 9)]
axes[1].plot(LENGTHS, [attention_sigma(1.0, K, s) for s in LENGTHS], color=BLUE, label="model")
axes[1].plot(LENGTHS, [lesson.rms(attention(s)) for s in LENGTHS], "o", color=BLACK, label="measured")
axes[1].plot(LENGTHS, [s**-0.5 for s in LENGTHS], "--", color=VERMILION, label="naive, 1/√s")
axes[1].set(xlabel="s, tokens", title="attention")
n = np.arange(1, 257)
axes[2].plot(n, n**-0.5 / attention_sigma(1.0, K, 256), "-.", color=GREEN, label="1/(σ √n)")
axes[2].plot(n[::8], by_position[::8], "o", color=BLACK, label="measured", markersize=4)
axes[2].axhline(1, color=BLACK, linewidth=1)
axes[2].set(xlabel="n, position", title="attention, times 1/σ")
for ax in axes:
    ax.set_xscale("log", base=2)
    ax.legend(frameon=False)
for ax in axes[1:]:
    ax.set_yscale("log", base=2)
caption = (
    "Points: measured. Lines: left and middle the models σ, dashed the naive 1/√s. Right: RMS by position when the "
)
lesson.save(figure, caption + "op is multiplied by 1/σ, for 256 tokens; black line: 1.")

# %% [markdown]
# ## What would fool you
# σ depends on s. Take the length of the text at hand for it, instead of the length that the model was made for. Every
# check of scales passes: at the training length nothing changes. But now the same text gets other logits when more text
# follows it, and a single token divides by zero (log 1 = 0). What sees it: the logits of a prefix.

# %%
config = ModelConfig()
params, numbers = init_params(config), plan(config, 64)
text = np.random.default_rng(0).integers(256, size=(1, config.seq_len))


def prefix_error():  # change of the logits of 8 tokens when the 56 behind them are cut off, over their size
    whole, prefix = forward(params, text, numbers).data[:, :8], forward(params, text[:, :8], numbers).data
    return lesson.rms(whole - prefix) / lesson.rms(whole)


lesson.claim_most("s fixed with the model: the prefix changes by", prefix_error(), 1e-4)
right = measured_rms(fresh_loss(config, batch_size=4))
with planted(ZOO["input-length"]):
    error, wrong = prefix_error(), measured_rms(fresh_loss(config, batch_size=4))
off = max(abs(wrong[name] - right[name]) for name in right)
lesson.claim_most("s of the input: RMS of any tensor is off by", off, 1e-6)
lesson.claim("s of the input: the prefix changes by", error, 0.44, within=0.02)

# %% [markdown]
# ## Exercise
# Write the gated SiLU with its factor, forward and backward: `unit_gated_silu` in `lessons/exercises/ex04.py`. `pytest
# -m lesson04 lessons` grades it, `python lessons/hint.py 04 1` gives a first hint.
#
# ## Recap
# Ops without a formula get a fitted one: their scale is known at both ends of α and interpolated between. It holds for
# independent tokens and on the mean over positions; where it does not, compare with what the rules imply.
#
# ## The way on
# One place is left where scale grows: the sum of all branches. [Lesson 05](05_residual.py).
#
# ## Answers
# 1. 1/√n: 1 for the first token, 1/16 for the 256th.
# 2. ½; and 1/√2, for half of the squares are gone.
