# %% [markdown]
# # 01 · A tape in 40 lines
#
# **Question.** How does a program find the gradient of a loss by all of its weights at once? And why does u-µP want
# the backward half of every op written by hand? *15 minutes. Needs no other lesson.*
#
# On paper, before you go on (answers at the end):
#
# 1. In $y = x \cdot x$, $x$ is both inputs. Which two parts does its gradient have at $x = 3$? What is done with them?
# 2. Move $x$ by $h$ to both sides: the difference gives the slope, with an error of about $h^2$ (the curve's bend) plus
#    $\varepsilon / h$ (rounding; $\varepsilon \approx 10^{-16}$ in float64). Which $h$ is best?

# %%
import lesson
import numpy as np

from microumup import engine, ops
from microumup.engine import Tensor
from microumup.lab.gradcheck import derivatives, directions
from microumup.lab.pictures import BLUE, VERMILION

# %% [markdown]
# ## Predict
# Double a number 16 times, each time as `x + x`. To find the gradient, walk back from the end along every path to the
# beginning, one path after the other. How many values does that walk visit, in all?

# %%
mine = lesson.guess("16 doublings, walked back path by path: how many visits to a value?")

# %% [markdown]
# ## The naive way
# There are two. The first needs no idea: move one weight, run the model twice, take the difference. That is a
# [finite difference](glossary.md#finite-difference). It takes two passes for each weight; models have millions. The
# second knows the [chain rule](glossary.md#chain-rule): every op gets `dy`, the gradient of its output, and hands a
# part of it to each input. So let each value remember what made it. That memory is the [tape](glossary.md#tape). An op
# is a pair of functions: `forward(*arrays) -> (y, saved)` computes, and `backward(dy, saved) -> (dx, …)` returns a
# gradient for every array. `saved` is all that it needs to know of the forward pass.


# %%
class Value:  # an array, and how it was made
    def __init__(self, data, inputs=(), backward=lambda dy, saved: (), saved=None):
        self.data, self.inputs, self.backward, self.saved, self.grad = data, inputs, backward, saved, 0.0


def record(forward, backward):
    def op(*inputs):  # the op made of a pair, which remembers what it did
        y, saved = forward(*(x.data for x in inputs))
        return Value(y, inputs, backward, saved)

    return op


def path_by_path(value, dy):
    """Walk back from `value`; how many values were visited."""
    return 1 + sum(map(path_by_path, value.inputs, value.backward(dy, value.saved)))


add = record(lambda a, b: (a + b, None), lambda dy, saved: (dy, dy))  # y = a + b hands dy on to both
leaf = y = Value(1.0)
for _ in range(16):
    y = add(y, y)
lesson.answer(mine, visits := path_by_path(y, 1.0), "2^17 - 1: every doubling doubles the number of paths.")
lesson.claim("visits, path by path", visits, 131_071, within=0)

# %% [markdown]
# 17 values were visited 131,071 times. A real network forks like this wherever a layer's output is added to its own
# input, at every [residual branch](glossary.md#branch).
#
# ## The paper's row
# The idea that mends it: **a gradient is passed on only when it is complete**, when every value made from this one has
# sent its part. Those are all younger. So visit the values youngest first: each op runs backward once.


# %%
def behind(value, found):
    """Add to `found` every value that this one was made from, oldest first, and then itself."""
    for x in value.inputs:
        if x not in found:
            behind(x, found)
    found.append(value)
    return found


def walk_back(y, dy, join=lambda before, part: before + part):
    """Put the gradient of y into `grad` of every value behind it; how many values were visited."""
    y.grad, tape = dy, behind(y, [])
    for value in reversed(tape):
        for x, part in zip(value.inputs, value.backward(value.grad, value.saved), strict=True):
            x.grad = join(x.grad, part)
    return len(tape)


lesson.claim("visits, youngest first", walk_back(y, 1.0), 17, within=0)
lesson.claim("gradient by the leaf, 2^16", leaf.grad, 65_536, within=0)

# %% [markdown]
# `Value`, `record` and these two are the tape. Frameworks *derive* each backward from its forward. The paper cannot use
# that: it multiplies an op's output by one factor and its gradients by others (App. A.4), each chosen to keep numbers
# at a [scale](glossary.md#scale) of about 1. So here both halves are written.
#
# ## Our code
# The engine does the same. Sorting by age, `order`, replaces the recursion, and what every backward returns is checked;
# its `cotangent` is our first `dy`. Then the pair of [RMSNorm](glossary.md#rmsnorm), which divides each row by its root
# mean square. Read past what you do not know yet.

# %%
lesson.show(engine.primitive, engine.backpropagate, engine.tape, ops.rms_norm_forward, ops.rms_norm_backward)

# %% [markdown]
# ## Check
# A wrong backward stops nothing. So it is held against finite differences, along 8 random directions that each move all
# elements of a weight at once. The network: linear (`y = x wᵀ`), RMSNorm, linear.

# %%
rng = np.random.default_rng(1)
x, dy, w1, w2 = (rng.standard_normal((6, 6)) for _ in range(4))
linear = record(ops.linear_forward, ops.linear_backward)
rms_norm = record(ops.rms_norm_forward, ops.rms_norm_backward)


def chain(x, w1, w2):
    return linear(rms_norm(linear(x, w1)), w2)


def error(network, **how):
    """By how much the gradient by w1 differs from differences, as a share of it."""
    leaf, along = Value(w1), directions(w1.shape, sample=8)
    walk_back(network(Value(x), leaf, Value(w2)), dy, **how)
    true = derivatives(lambda w: float((dy * network(Value(x), Value(w), Value(w2)).data).sum()), w1, along)
    return np.linalg.norm(np.tensordot(along, leaf.grad, 2) - true) / np.linalg.norm(true)


lesson.claim_most("our tape against differences", error(chain), 1e-9)  # they are good to about 1e-11

# %% [markdown]
# Now what the paper needs: the output times 0.5, the weight's gradient times 2. The true gradient shrinks with the
# output, so what comes back is 4 times the true one. [Lesson 03](03_cut_edge.py) says when that is allowed.

# %%
tensors = [Tensor(x), Tensor(w1)]
engine.backpropagate(ops.linear(*tensors, scale=ops.Scale(y=0.5, dx=0.5, dw=2.0)), dy)
true = derivatives(lambda w: float((dy * 0.5 * (x @ w.T)).sum()), w1, directions(w1.shape, sample=36)).reshape(6, 6)
for ratio in (tensors[1].grad / true).min(), (tensors[1].grad / true).max():
    lesson.claim("gradient over the true one, an extreme element", ratio, 4, within=1e-6)

# %% [markdown]
# ## Figure
# The best step is small against the curve's bend and large against rounding. In float32 none does better than
# $10^{-6}$, which is why gradients are checked in float64.

# %%
figure, axis = lesson.figure(height=3.6)
for dtype, marker, colour in ((np.float32, "s--", VERMILION), (np.float64, "o-", BLUE)):
    h = 10.0 ** np.arange(-12, 0.1, 0.5).astype(dtype)
    slope = (np.exp(1 + h) - np.exp(1 - h)) / (2 * h)
    errors = np.abs(slope / np.exp(1) - 1)
    axis.loglog(h, errors, marker, color=colour, label=dtype.__name__)
    lesson.claim_least(f"{dtype.__name__}: the least error", errors.min(), 1e-6 if dtype is np.float32 else 1e-13)
axis.set(xlabel="step h", ylabel="relative error of the slope of exp at 1")
axis.legend()
lesson.save(figure, "Error of a central difference over its step. Dashed squares: float32, solid circles: float64. "
            "Left of each valley rounding rules, right of it the curve's bend.")  # fmt: skip

# %% [markdown]
# ## What would fool you
# A tape that *replaces* a part instead of adding it, `x.grad = part`. It passes the check above: in a chain every value
# is used once. Used twice, as around a residual branch, it is wrong. A check sees only what its network does.


# %%
def residual(x, w1, w2):
    h = linear(x, w1)
    return add(linear(rms_norm(h), w2), h)  # h is used twice


replace = {"join": lambda before, part: part}
lesson.claim_most("fooled: the wrong tape on the chain", error(chain, **replace), 1e-9)
lesson.claim_least("caught: the wrong tape on the residual", error(residual, **replace), 0.1)
lesson.claim_most("the right tape on the residual", error(residual), 1e-9)

# %% [markdown]
# ## Exercise
# Write `walk_back` for a tape that is a plain list: `lessons/exercises/ex01.py` says in slow loops what it does. Some
# values are used twice, some never, some in vain, and some share their array. `pytest -m lesson01 lessons` grades it on
# a random tape; `python lessons/hint.py 01 1` (then 2, 3) gives hints.
#
# ## Recap
# A tape is a list of values that know what made them: walked youngest first, every op runs backward once, and parts
# that meet are added. Each op is a pair of functions, whose factors may differ, and finite differences check it.
#
# **The way on:** [02 · The linear pair](02_linear.py): three matrix products, three factors.
#
# **Answers.** 1. Each is the other input: 3 and 3. They are added, to 6, which is $2x$. 2. $h^2 + \varepsilon/h$ is
# least where $2h = \varepsilon/h^2$: at $h = (\varepsilon/2)^{1/3} \approx 4 \cdot 10^{-6}$, as in the figure.
