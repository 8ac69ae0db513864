"""CUDA sources of the kernels that `gpu.py` launches, each quoting the lines of Python which say what it computes.

Two kinds of kernel. One goes over all elements, each thread taking every so many of them (EACH). One goes by rows, a
block of threads to a row (ROW), each thread taking every so many of its elements (ALONG): neighbouring threads read
neighbouring numbers in both. Sums over a row are added up in an order that depends on the number of threads alone, and
nothing is added atomically, so that a result has the same bits on every run. Any number of threads that is a power of
two will do, one too: so the sources also run on a processor, where the tests hold them against `ops.py`.

What is rounded where, which decides about the bits of `quantize` and `adamw`:

    contraction   off: a product is rounded before it is added to something, as in NumPy
    division, √   correctly rounded, the compiler's default
    subnormals    CuPy compiles with -ftz=true: float32 below 2^-126, read or computed, become zeros of their sign

The last changes no bit of `quantize`: both formats have nothing below 2^-16 but zero, and what is that small rounds to
zero anyway. In `adamw` m and v end at 2^-126, where NumPy goes on to 2^-149: Adam's ε of 1e-8 swallows the root of such
a v, and such an m moves no weight that can be told from 0.

Legend: as in `ops.py`; n is the number of elements.
"""

import re
from functools import cache
from typing import Any

import numpy as np

from microumup.backend import Array, xp_of

OPTIONS = ("--fmad=false",)
THREADS = 256  # of a block at most, a power of two: PREAMBLE has room for so many partial sums
BLOCKS = 1 << 15  # of a kernel over all elements, at most; enough for any device

PREAMBLE = r"""
#define KERNEL extern "C" __global__ void
#define EACH(i, n) \
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
#define ROW ((long long)blockIdx.x)
#define ALONG(i, width) for (long long i = threadIdx.x; i < width; i += blockDim.x)
#define NAN_ __uint_as_float(0x7FC00000u)

// Every thread of a block brings an x and gets what all of them come to, halving the number of partial results.
#define OVER_A_BLOCK(name, join) \
__device__ float name(float x) { \
    __shared__ float part[256]; \
    unsigned t = threadIdx.x; \
    __syncthreads();                /* or a slow thread would still be reading the result before this one */ \
    part[t] = x; \
    __syncthreads(); \
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) { \
        if (t < half) part[t] = join(part[t], part[t + half]); \
        __syncthreads(); \
    } \
    return part[0]; \
}
#define PLUS(a, b) ((a) + (b))
OVER_A_BLOCK(block_sum, PLUS)
OVER_A_BLOCK(block_max, fmaxf)
"""

# ---- fp8.quantize ----
QUANTIZE = r"""
KERNEL quantize(const float *x, float *y, float largest, float min_normal, float unit, long long n) {
    EACH(i, n) {
        // xp.clip(x_i, -fmt.max, fmt.max, out=y); fminf would make a number of NaN
        float v = x[i];
        v = v > largest ? largest : v < -largest ? -largest : v;
        // step = 2^(max(⌊log2|y|⌋, min_exponent) − mantissa_bits), and unit = 2^-mantissa_bits
        float power = __uint_as_float(__float_as_uint(v) & 0x7F800000u);
        float step = (power > min_normal ? power : min_normal) * unit;
        // y /= step; xp.rint(y, out=y); y *= step
        y[i] = rintf(v / step) * step;
    }
}
"""

# ---- ops.embedding ----
EMBEDDING = r"""
KERNEL embedding_forward(const long long *tokens, const float *w, float *y, float scale, long long D, long long V) {
    long long id = tokens[ROW];
    bool known = 0 <= id && id < V;  // else NaN, which the check of the loss will find
    // y = w[tokens]; y *= scale.y
    ALONG(i, D) y[ROW * D + i] = known ? w[id * D + i] * scale : NAN_;
}

// The places of the text in the order of their tokens, equal ones from left to right: those of token v are count[v] of
// them from order[first[v]] on. A thread per place counts the tokens that come before its own.
KERNEL places_by_token(const long long *tokens, long long *order, long long *first, long long *count,
                       long long V, long long N) {
    EACH(j, N) {
        long long id = tokens[j], less = 0, equal = 0, equal_before = 0;
        for (long long i = 0; i < N; i++) {
            less += tokens[i] < id;
            equal += tokens[i] == id;
            equal_before += tokens[i] == id && i < j;
        }
        order[less + equal_before] = j;
        if (equal_before == 0 && 0 <= id && id < V) {
            first[id] = less;
            count[id] = equal;
        }
    }
}

// A block per row of w. What a row adds up is the same on every run, and in the same order.
KERNEL embedding_backward(const float *dy, const long long *order, const long long *first, const long long *count,
                          float *dw, float scale, long long D) {
    long long begin = first[ROW], times = count[ROW];
    ALONG(i, D) {
        // y = scale.y · w[tokens]: a row of w gets the sum over the places its token stands at
        float sum = 0;
        for (long long k = 0; k < times; k++) sum += dy[order[begin + k] * D + i];
        dw[ROW * D + i] = sum * scale;
    }
}
"""

# ---- ops.rms_norm ----
RMS_NORM = r"""
KERNEL rms_norm_forward(const float *x, float *y, float *inverse_rms, float eps, long long D) {
    x += ROW * D, y += ROW * D;
    // inverse_rms = 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    float sum = 0;
    ALONG(i, D) sum += x[i] * x[i];
    float r = 1 / sqrtf(block_sum(sum) / D + eps);
    if (threadIdx.x == 0) inverse_rms[ROW] = r;
    // y = x * inverse_rms
    ALONG(i, D) y[i] = x[i] * r;
}

KERNEL rms_norm_backward(const float *dy, const float *y, const float *inverse_rms, float *dx, long long D) {
    dy += ROW * D, y += ROW * D, dx += ROW * D;
    // y = x · r, r = (mean(x²) + eps)^-1/2: dy reaches x directly, and through r with dr/dx = -r² y / D
    float sum = 0;
    ALONG(i, D) sum += dy[i] * y[i];
    float mean = block_sum(sum) / D;
    ALONG(i, D) dx[i] = (dy[i] - y[i] * mean) * inverse_rms[ROW];
}
"""

# ---- ops.rope ----
ROPE = r"""
// Forward with sign 1, backward with -1: a rotation's transpose is the rotation back. A block per place in the text.
KERNEL rope(const float *x, const float *turn, float *y, float sign, long long T, long long pairs) {
    x += ROW * 2 * pairs, y += ROW * 2 * pairs, turn += ROW % T * 2 * pairs;
    ALONG(i, pairs) {
        // y = turn · x, of complex numbers
        float cosine = turn[2 * i], sine = sign * turn[2 * i + 1], a = x[2 * i], b = x[2 * i + 1];
        y[2 * i] = a * cosine - b * sine;
        y[2 * i + 1] = a * sine + b * cosine;
    }
}
"""

# ---- ops.attention, what lies between its matrix products ----
ATTENTION = r"""
// p (…, T, S) comes as q kᵀ. The T queries are the last of the S positions: this one sees the keys up to its own.
KERNEL softmax_forward(float *p, float score_scale, float factor, long long T, long long S) {
    p += ROW * S;
    long long seen = S - T + 1 + ROW % T;
    // scores *= score_scale; scores += causal_mask(…); scores -= scores.max(axis=-1, keepdims=True)
    float largest = score_scale * p[0];
    ALONG(s, seen) largest = fmaxf(largest, score_scale * p[s]);
    largest = block_max(largest);
    // p = xp.exp(scores, out=scores); p /= p.sum(axis=-1, keepdims=True)
    float sum = 0;
    ALONG(s, seen) sum += p[s] = expf(score_scale * p[s] - largest);
    sum = block_sum(sum);
    ALONG(s, S) p[s] = s < seen ? p[s] / sum * factor : 0;
}

KERNEL softmax_backward(const float *p, float *dp, float factor, long long S) {
    p += ROW * S, dp += ROW * S;
    // p = softmax(scores): dscores = p · (dp - Σ_s p dp)
    float sum = 0;
    ALONG(s, S) sum += p[s] * dp[s];
    sum = block_sum(sum);
    ALONG(s, S) dp[s] = (dp[s] - sum) * p[s] * factor;
}
"""

# ---- ops.gated_silu ----
GATED_SILU = r"""
KERNEL gated_silu_forward(const float *x_in, const float *x_gate, float *y, float alpha, float scale, long long n) {
    EACH(i, n) {
        // sigmoid = 0.5 * tanh((0.5 * alpha) * x_gate) + 0.5; y = x_in * x_gate; y *= sigmoid; y *= scale.y
        float sigmoid = 0.5f * tanhf(0.5f * alpha * x_gate[i]) + 0.5f;
        y[i] = x_in[i] * x_gate[i] * sigmoid * scale;
    }
}

KERNEL gated_silu_backward(const float *dy, const float *x_in, const float *x_gate, float *dx_in, float *dx_gate,
                           float alpha, float scale, long long n) {
    EACH(i, n) {
        float sigmoid = 0.5f * tanhf(0.5f * alpha * x_gate[i]) + 0.5f;
        float d = dy[i] * scale * sigmoid;
        // y = x_in · x_gate · sigmoid(alpha · x_gate), and sigmoid' = sigmoid (1 - sigmoid)
        dx_in[i] = d * x_gate[i];
        dx_gate[i] = (d * x_gate[i] * (1 - sigmoid) * alpha + d) * x_in[i];
    }
}
"""

# ---- ops.residual_add ----
RESIDUAL_ADD = r"""
KERNEL residual_add_forward(const float *branch, const float *skip, float *y, float a, float b, long long n) {
    // y = scale.a * branch; y += scale.b * skip
    EACH(i, n) y[i] = a * branch[i] + b * skip[i];
}

KERNEL residual_add_backward(const float *dy, float *dbranch, float *dskip, float of_branch, float b, long long n) {
    // y = a · branch + b · skip: dy * saved.dbranch, dy * saved.b
    EACH(i, n) {
        dbranch[i] = dy[i] * of_branch;
        dskip[i] = dy[i] * b;
    }
}
"""

# ---- ops.cross_entropy ----
CROSS_ENTROPY = r"""
// z (N, V) comes as x wᵀ and becomes the gradient of the loss by it, but for what the caller puts into `factor`.
KERNEL cross_entropy(float *z, const long long *targets, const float *dy, float *losses, float alpha, float factor,
                     long long V) {
    z += ROW * V;
    long long target = targets[ROW];
    bool known = 0 <= target && target < V;  // else NaN, which the check of the loss will find
    // z = alpha * logits; z -= z.max(axis=-1, keepdims=True); z_target = z[xp.arange(len(z)), targets]
    float z_target = known ? alpha * z[target] : NAN_, largest = alpha * z[0];
    ALONG(i, V) largest = fmaxf(largest, alpha * z[i]);
    largest = block_max(largest);  // by now every thread has read z_target, which the next line overwrites
    // p = xp.exp(z, out=z); total = p.sum(axis=-1, keepdims=True)
    float total = 0;
    ALONG(i, V) total += z[i] = expf(alpha * z[i] - largest);
    total = block_sum(total);
    // loss = xp.mean(xp.log(total[:, 0]) - z_target)
    if (threadIdx.x == 0) losses[ROW] = logf(total) - (z_target - largest);
    // dlogits = p * factor; dlogits[xp.arange(len(p)), targets] -= factor
    factor = known ? *dy * factor : NAN_;
    ALONG(i, V) z[i] = z[i] / total * factor - (i == target ? factor : 0);
}
"""

# ---- fused.adamw: optim.adamw in place, the roots of v̂ and m̂ made factors of ε and lr ----
ADAMW = r"""
KERNEL adamw(float *w, const float *g, float *m, float *v, float to_g, float to_square, float eps, float lr, float keep,
             long long n) {
    EACH(i, n) {
        // m += (1 - beta1) * (g - m); v += (1 - beta2) * (g * g - v)
        m[i] += to_g * (g[i] - m[i]);
        v[i] += to_square * (g[i] * g[i] - v[i]);
        // update = m / (√v + ε) · lr; w *= 1 - decay; w -= update
        w[i] = w[i] * keep - m[i] / (sqrtf(v[i]) + eps) * lr;
    }
}
"""

SOURCES = {  # by the names of the kernels, complete; as ASCII, since CuPy writes them to files in the locale's encoding
    name: (PREAMBLE + source).encode("ascii", "replace").decode()
    for source in (
        QUANTIZE, EMBEDDING, RMS_NORM, ROPE, ATTENTION, GATED_SILU, RESIDUAL_ADD, CROSS_ENTROPY, ADAMW
    )
    for name in re.findall(r"^KERNEL (\w+)", source, re.MULTILINE)
}  # fmt: skip


def each(kernel: str, n: int, *args: Array | float) -> None:
    """Launch a kernel over n elements; it gets the args, and n behind them."""
    _launch(kernel, min(-(-n // THREADS), BLOCKS), THREADS, *args, n)


def rows(kernel: str, count: int, width: int, *args: Array | float) -> None:
    """Launch a kernel for `count` rows of `width` elements, a block each; it gets the args."""
    _launch(kernel, count, min(THREADS, max(32, 1 << (width - 1).bit_length())), *args)


def _launch(kernel: str, blocks: int, threads: int, *args: Any) -> None:
    """Arrays go by their address, so they have to be C-contiguous; a float goes as float, an int as long long."""
    as_declared = tuple({float: np.float32, int: np.int64}.get(type(arg), lambda array: array)(arg) for arg in args)
    _compiled(xp_of(args[0]), kernel, SOURCES[kernel])((blocks,), (threads,), as_declared)  # an array comes first


@cache
def _compiled(xp: Any, name: str, source: str) -> Any:
    """The kernel, of which CuPy makes machine code when it is first launched."""
    return xp.RawKernel(source, name, options=OPTIONS)
