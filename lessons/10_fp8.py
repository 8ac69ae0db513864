# %% [markdown]
# # 10 · FP8: eight bits, and no scaling
#
# **The question.** A linear multiplies three arrays: its input x, its weight w, and dy, the gradient of its output.
# Round all three to 8 bits before they are multiplied. Why does a model in u-µP not mind, and one in µP stop learning?
#
# About 30 minutes. Can be read alone; you need to know that training computes a gradient of the loss for every tensor.
# µP and u-µP are two sets of rules for how large weights start, by what constants they are multiplied, and how fast
# they learn ([06](06_parametrizations.py)). RMS is the root mean square, the typical size of an element
# ([glossary](glossary.md)).
#
# Two questions for paper and pencil; the answers stand at the end:
#
# 1. A float is ±2^e · 1.m. E4M3 has 4 bits for e and 3 for m. Which number of E4M3 is nearest to 0.1?
# 2. A batch has 512 tokens, the vocabulary 256 bytes, and the loss is the mean over tokens. A new model gives each byte
#    the probability p = 1/256. What is the gradient of a logit, for the byte that comes next and for all others?

# %%
from collections import defaultdict, deque

import lesson
import ml_dtypes
import numpy as np

from microumup import fp8, ops
from microumup.config import TrainConfig
from microumup.data import load_corpus
from microumup.fp8 import E4M3, E5M2, quantize
from microumup.lab.pictures import BLACK, BLUE, VERMILION
from microumup.ranges import linear_ranges
from microumup.trainer import Trainer

# %% [markdown]
# ## Predict
#
# E4M3's smallest positive number is 2^-9; what is below half of it rounds to 0. Take a new µP model, and look at all
# elements of all gradients dy that its 15 linears get.

# %%
mine = lesson.guess("Which share of them does E4M3 turn into 0? (0 to 1)")

# %% [markdown]
# ## The formats on paper
#
# Eight bits are 256 codes. The first bit is the sign, then come the exponent bits E and the mantissa bits M. The value
# is ±2^(E - bias) · (1 + M/8). For E = 0 the leading 1 is missing, which fills the gap around 0 evenly: these are the
# *subnormal* numbers. In code:


# %%
def decode(code, exponent_bits, mantissa_bits):
    """The value of a positive code, if the format had neither NaN nor infinity."""
    bias = 2 ** (exponent_bits - 1) - 1
    E, M = divmod(code, 2**mantissa_bits)
    return 2.0 ** (max(E, 1) - bias) * ((E > 0) + M / 2**mantissa_bits)


for fmt, bits, last in ((E4M3, (4, 3), 0b01111110), (E5M2, (5, 2), 0b01111011)):  # last: the codes after it are NaN, ∞
    lesson.claim(f"{fmt.name}: largest", fmt.max, decode(last, *bits), within=0)
    lesson.claim(f"{fmt.name}: smallest", fmt.min_subnormal, decode(1, *bits), within=0)
    values = np.array([decode(code, *bits) for code in range(last + 1)], np.float32)
    kept = (quantize(values, fmt) == values).mean()
    lesson.claim(f"{fmt.name}: share of its values that quantize keeps", kept, 1, within=0)
lesson.claim("E4M3's largest, 1.75 · 2^8", E4M3.max, 448, within=0)
lesson.claim("E5M2's largest, 1.75 · 2^15", E5M2.max, 57344, within=0)
lesson.claim("E4M3's smallest, 2^-9", E4M3.min_subnormal, 2**-9, within=0)
lesson.claim("17 in E4M3: a tie of 16 and 18, whose M is odd", quantize(np.float32([17]), E4M3)[0], 16, within=0)
lesson.claim("19 in E4M3: a tie of 18 and 20, whose M is even", quantize(np.float32([19]), E4M3)[0], 20, within=0)

# %% [markdown]
# Ties go to the even M, so that rounding does not push numbers up on average. What is past the largest becomes the
# largest. Neighbours are at most 12.5 % apart in E4M3, 25 % in E5M2, which has more range for it.
#
# ## The naive way
#
# Take a model as it is and cast. Here is µP, in 512 tokens a batch, with its gradients before the first step.

# %%
MODELS = {"umup": {"lr": 2**0.5}, "mup": {"lr": 2**-6, "base_width": 32, "base_layers": 2}}
STEPS, corpus = 128, load_corpus(seq_len=32)


def trainer(scheme, cast="none"):
    size = {"width": 64, "seq_len": 32, "batch_size": 16, "steps": STEPS}
    return Trainer(TrainConfig(scheme=scheme, fp8=cast, **size, **MODELS[scheme]), corpus)


def fresh_ranges(scheme):
    """Size, RMS and share flushed to 0 in FP8 of x, w and dy of every linear, in float32 and before the first step."""
    found = {}
    trainer(scheme).update(0, watch=lambda step, losses: found.update(linear_ranges(losses)))
    return found


def flushed(ranges):
    dy = [r for name, r in ranges.items() if name.endswith(".dy")]
    return sum(r.underflow * r.size for r in dy) / sum(r.size for r in dy)


ranges = {scheme: fresh_ranges(scheme) for scheme in MODELS}
logits, last = ranges["mup"]["head.dy"], ranges["mup"]["layer1.down.dy"]
lesson.claim("µP: RMS of dy of the logits, log2", np.log2(logits.rms), -13, within=0.02, relative=False)
lesson.claim("µP: share of it that is flushed, 255 of 256", logits.underflow, 255 / 256, within=0.001)
lesson.claim("µP: share of the last FFN's dy that is flushed", last.underflow, 1, within=0.001)
lesson.claim("µP: share of all dy that is flushed", flushed(ranges["mup"]), 0.997, within=0.001)
lesson.answer(mine, flushed(ranges["mup"]), "as a mean over 512 tokens divides each token's gradient by 512.")

# %% [markdown]
# Of the logits' gradient only the target's element survives: it pushes the byte that came next up. The small elements
# that push all others down are gone, and to the layers behind, nothing comes at all. So what does training do? Frequent
# bytes are pushed up for ever, and the loss rises:


# %%
def final_loss(scheme, cast="none", kernels=None):
    """Mean training loss of the last 8 steps, in nats per byte; `kernels` are pairs to run for some ops."""
    run = trainer(scheme, cast)
    run.kernels = {**run.kernels, **(kernels or {})}
    return float(np.mean([run.update(step)[0] for step in range(STEPS)][-8:]))


plain = {scheme: final_loss(scheme) for scheme in MODELS}
mup_gap = final_loss("mup", "fp8") - plain["mup"]
lesson.claim("µP in float32: loss after 128 steps", plain["mup"], 2.24, within=0.05, relative=False)
lesson.claim_least("µP in FP8: loss above that by", mup_gap, 1.0)  # 1.4 here; it varies from machine to machine

# %% [markdown]
# ## The paper's row
#
# **The idea:** if every tensor starts at RMS 1 = 2^0, it starts in the middle of E4M3's range, 2^-9 to 2^8.8. u-µP
# chooses the constants in its ops so that x, w and dy do. For gradients it begins at the loss (Table 4, last row):
#
#     true     dlogits = (p - onehot)/512            RMS 2^-4/512 = 2^-13, for 256 bytes
#     u-µP     dlogits = (p - onehot) · V/√(V-1)     RMS 1, V is the size of the vocabulary; the 1/512 is gone
#
# Every gradient is then a known constant times the true one, and Adam, which divides by the gradient's own size, does
# not see it. With that, Appendix E.2's recipe is one line: cast x, w and dy to E4M3, the input x of two linears (`o`,
# attention's last, and `down`, the FFN's last) to E5M2, as they grow in training ([11](11_drift.py)). Scale nothing.
#
# ## Our code
#
# Rounding: divide by the distance of neighbours, round to whole numbers, multiply again. Both are exact, as the
# distance is a power of two; it is read off the exponent bits.

# %%
lesson.show(quantize, fp8._spacing, ops.linear_forward, (fp8, "RECIPES"))

# %% [markdown]
# ## Check
#
# A million random numbers against the library ml_dtypes, and u-µP in FP8 against itself in float32. (The loss of one
# seed varies by about 0.02 with the rounding alone, so a gap below 0.05 is none.)

# %%
numbers = np.random.default_rng(10).standard_normal(1_000_000, dtype=np.float32)
theirs = numbers.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
lesson.claim("numbers rounded otherwise than by ml_dtypes", (quantize(numbers, E4M3) != theirs).sum(), 0, within=0)
lesson.claim("u-µP: share of all dy that is flushed", flushed(ranges["umup"]), 0.006, within=0.001, relative=False)
rms = [r.rms for r in ranges["umup"].values()]
lesson.claim_least("u-µP: smallest RMS of any x, w and dy", min(rms), 2**-2)
lesson.claim_most("u-µP: largest", max(rms), 2**2.5)
umup_gap = final_loss("umup", "fp8") - plain["umup"]
lesson.claim("u-µP: loss in FP8 above float32's", umup_gap, 0, within=0.05, relative=False)

# %% [markdown]
# ## What u-µP saves
#
# µP can be rescued, as others do it: with a factor for every tensor, so that its largest element becomes 448. Finding
# that element takes a pass over the tensor before it can be cast. *Delayed scaling* takes the largest of the last 16
# steps instead, and so has to keep a history of every tensor:


# %%
class Delayed:
    """Casts with a factor per tensor, from the largest elements of the steps before."""

    def __init__(self):
        self.seen = defaultdict(lambda: deque(maxlen=16))  # of each tensor

    def cast(self, x, fmt, tensor):
        largest = float(abs(x).max())
        factor = np.float32(max(self.seen[tensor] or [largest]) / fmt.max or 1)
        self.seen[tensor].append(largest)
        return quantize(x / factor, fmt) * factor


def pairs(cast):
    """The linear and the readout with its loss, which cast by `cast(x, format, name of the tensor)`."""

    def linear_forward(x, w, *, scale, fp8):
        x, w_cast = cast(x, fp8.x, (id(w), "x")), cast(w, fp8.w, (id(w), "w"))
        y, saved = ops.linear_forward(x, w_cast, scale=scale)
        return y, (saved, fp8.dy, (id(w), "dy"))

    def linear_backward(dy, saved):
        saved, fmt, tensor = saved
        return ops.linear_backward(cast(dy, fmt, tensor), saved)

    def readout_forward(x, w, targets, *, alpha, scale, loss_scale, fp8):
        logits, of_linear = linear_forward(x, w, scale=scale, fp8=fp8)
        loss, of_loss = ops.cross_entropy_forward(logits, targets, alpha=alpha, scale=loss_scale)
        return loss, (of_linear, of_loss)

    def readout_backward(dy, saved):
        return *linear_backward(ops.cross_entropy_backward(dy, saved[1])[0], saved[0]), None

    return {
        ops.linear: (linear_forward, linear_backward),
        ops.linear_cross_entropy: (readout_forward, readout_backward),
    }


delayed = Delayed()
rescued = final_loss("mup", "fp8", pairs(delayed.cast)) - plain["mup"]
lesson.claim("µP: loss in FP8 with delayed scaling above float32's", rescued, 0, within=0.05, relative=False)
lesson.claim("tensors with a history of their own", len(delayed.seen), 45, within=0)
jump = 100 * numbers[:4096]  # a tensor whose elements were at most 1 until now, and are suddenly a hundred times larger
delayed.seen["jumps"].append(1.0)
lost = abs(delayed.cast(jump, E4M3, "jumps")).max() / abs(jump).max()
lesson.claim_most("delayed scaling, a tensor that jumps: what is left of its largest element", lost, 0.01)

# %% [markdown]
# So it works, for 45 histories in the training state, a pass for the largest element of each, two products with
# factors, and trouble when a tensor jumps. u-µP's constants are known before training and cost nothing of this.
#
# ## Figure

# %%
figure, (left, right) = lesson.figure(10, 4.2, ncols=2, width_ratios=(3, 2))
STYLES = {"umup": ("u-µP", BLUE, "o", -0.15), "mup": ("µP", VERMILION, "s", 0.15)}
for scheme, (label, colour, marker, shift) in STYLES.items():
    for i, tensor in enumerate(fp8.TENSORS):
        rms = [r.rms for name, r in ranges[scheme].items() if name.endswith("." + tensor)]
        places = i + shift + np.linspace(-0.1, 0.1, len(rms))
        left.plot(places, rms, marker, color=colour, markeredgecolor=BLACK, label=label if i == 0 else None)
left.axhspan(E4M3.min_subnormal, E4M3.max, color="0.9", zorder=0)
left.set(ylabel="RMS", xticks=range(3), xticklabels=["x, input", "w, weight", "dy, gradient"])
left.set_yscale("log", base=2)
left.legend(frameon=False, loc="lower left")
bars = {"u-µP\nfloat32": plain["umup"], "u-µP\nFP8": plain["umup"] + umup_gap, "µP\nfloat32": plain["mup"],
        "µP\nFP8": plain["mup"] + mup_gap, "µP\nFP8,\ndelayed": plain["mup"] + rescued}  # fmt: skip
for i, loss in enumerate(bars.values()):
    colour, hatch = (BLUE, None) if i < 2 else (VERMILION, "//")
    right.bar(i, loss, color=colour, hatch=hatch, edgecolor="white")
    right.text(i, loss + 0.05, f"{loss:.2f}", ha="center")
right.set(ylabel="loss after 128 steps (nats per byte)", xticks=range(5), xticklabels=bars)
caption = """Left: a marker is the RMS of x, w or dy of one linear before training; the grey band is all that E4M3 can
show, 2^-9 to 448. Every tensor of u-µP lies in it, every dy of µP below it. Right: final losses; hatched bars are µP."""
lesson.save(figure, " ".join(caption.split()))

# %% [markdown]
# ## What would fool you
#
# A rounding that sends ties away from zero, as school does. A million random numbers hardly ever are a tie, and
# training does not mind either: this lesson's check passes. The one that catches it looks at the middle between
# any two neighbours.


# %%
def away_from_zero(x, fmt, tensor=None):
    y = np.clip(np.ascontiguousarray(x), -fmt.max, fmt.max)
    step = fp8._spacing(y, fmt)
    return np.sign(y) * np.floor(abs(y) / step + np.float32(0.5)) * step


lesson.claim("wrong ties: random numbers rounded otherwise", (away_from_zero(numbers, E4M3) != theirs).sum(), 0, within=3, relative=False)  # fmt: skip
fooled = final_loss("umup", "fp8", pairs(away_from_zero)) - plain["umup"]
lesson.claim("wrong ties: u-µP's loss in FP8 above float32's", fooled, 0, within=0.05, relative=False)
values = np.array([decode(code, 4, 3) for code in range(127)], np.float32)
ties = (values[1:] + values[:-1]) / 2
ours, right_ones = away_from_zero(ties, E4M3), ties.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
lesson.claim("wrong ties: of 126 ties rounded otherwise", (ours != right_ones).sum(), 63, within=0)
lesson.claim("quantize: of 126 ties rounded otherwise", (quantize(ties, E4M3) != right_ones).sum(), 0, within=0)

# %% [markdown]
# ## Exercise
#
# Write the rounding to E4M3 yourself: `to_e4m3` in `lessons/exercises/ex10.py`. `pytest -m lesson10 lessons` grades it,
# `python lessons/hint.py 10 1` gives a first hint.
#
# ## Recap
#
# E4M3 has numbers from 2^-9 to 448, and µP's gradients of a mean loss lie below all of them: they become zeros. u-µP
# starts every x, w and dy near RMS 1, so a plain cast does, where others keep a changing factor for every tensor.
#
# ## The way on
#
# Near 1 at the start: and later? [Lesson 11](11_drift.py) follows every tensor through training.
#
# ## Answers
#
# 1. 0.1 = 2^-4 · 1.6. M counts eighths: 0.6 · 8 = 4.8, so M = 5, and 2^-4 · 1.625 = 0.1015625.
# 2. For the next byte (p - 1)/512 = -0.00195, or -2^-9.01: it becomes E4M3's smallest number. For all others p/512 =
#    2^-17, which becomes 0.
