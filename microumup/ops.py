"""Every op of the model: a forward, its backward right under it, and one line that makes the op of the pair.

Both halves are pure functions of arrays, so anyone's implementation can be held against them without our tape.
A factor of Unit Scaling is an argument, 1 by default: plain ops are what `op(x)` gives, and `multipliers.py` says
which factors u-µP passes. Inputs are never written to. In a backward, `# y = ...` quotes what it differentiates.

Legend: B batch, T sequence, D width, H heads, K head dim (D = H K), F FFN dim, V vocabulary, S keys (T, or more with
a cache), N = B T tokens.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from microumup import checks
from microumup.backend import Array, scatter_add, xp_of
from microumup.engine import primitive
from microumup.fp8 import Format, LinearFormats, quantize

Saved = Any  # what a backward needs of its forward: an explicit tuple of arrays and settings
Output = tuple[Array, Saved]


class Scale(NamedTuple):
    """One factor for an op's output and one for each gradient: they multiply what the plain op would return.

    dx is the factor of the gradient of every activation, dw of the weight. The gradient is the true one when all
    three are equal.
    """

    y: float = 1.0
    dx: float = 1.0
    dw: float = 1.0


class ResidualScale(NamedTuple):
    """The factors of a residual layer, R' = a f(R) + b R. True gradients need dbranch · dbase = a."""

    a: float = 1.0
    b: float = 1.0
    dbranch: float = 1.0  # what dy is multiplied by where it enters the branch, at the add
    dbase: float = 1.0  # what the branch's gradient is multiplied by where it leaves, at the split


# ---- linear: y = x wᵀ ----
def linear_forward(x: Array, w: Array, *, scale: Scale = Scale(), fp8: LinearFormats = LinearFormats()) -> Output:
    """y = scale.y · (x wᵀ). x (..., D_in), w (D_out, D_in) -> y (..., D_out).

    With `fp8` formats x, w and dy are cast before each of the three matmuls (App. E.2); products stay in float32.
    The factors come after the matmuls, so that what is cast is the unit-scale x, w and dy (App. A.4).
    """
    scale = checks.linear(x, w, scale)
    rows = cast(x.reshape(-1, x.shape[-1]), fp8.x)  # (N, D_in)
    w = cast(w, fp8.w)
    y = rows @ w.T  # (N, D_out)
    y *= scale.y
    return y.reshape(*x.shape[:-1], -1), (rows, w, scale, fp8.dy)


def linear_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    rows, w, scale, dy_format = saved
    dy_rows = cast(dy.reshape(-1, dy.shape[-1]), dy_format)  # (N, D_out)
    # y = scale.y · (x wᵀ); the cast passes its gradient on unchanged, also where it saturated
    dx = dy_rows @ w  # (N, D_in)
    dx *= scale.dx
    dw = dy_rows.T @ rows  # (D_out, D_in)
    dw *= scale.dw
    return dx.reshape(*dy.shape[:-1], -1), dw


linear = primitive(linear_forward, linear_backward)


def cast(x: Array, fmt: Format | None) -> Array:
    """x rounded to fmt, or x itself if that is None."""
    return x if fmt is None else quantize(x, fmt)


# ---- embedding: a row of the table per token ----
def embedding_forward(tokens: Array, w: Array, *, scale: Scale = Scale()) -> Output:
    """y = scale.y · w[tokens]. tokens (B, T) of integers in [0, V), w (V, D) -> y (B, T, D)."""
    scale = checks.embedding(tokens, w, scale)
    y = w[tokens]  # (B, T, D)
    y *= scale.y
    return y, (tokens, len(w), scale)


def embedding_backward(dy: Array, saved: Saved) -> tuple[None, Array]:
    tokens, vocab_size, scale = saved
    # y = scale.y · w[tokens]: a row of w gets the sum over the places its token stands at
    dw = scatter_add(vocab_size, tokens.ravel(), dy.reshape(-1, dy.shape[-1]))  # (V, D)
    dw *= scale.dw
    return None, dw


embedding = primitive(embedding_forward, embedding_backward)


# ---- rms_norm: x over its root mean square, without a gain (Table 4: all factors 1) ----
def rms_norm_forward(x: Array, *, eps: float = 1e-6) -> Output:
    """y = x / √(mean(x²) + eps), the mean over the last axis. x (..., D) -> y (..., D)."""
    eps = checks.rms_norm(x, eps)
    xp = xp_of(x)
    inverse_rms = 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)  # (..., 1)
    y = x * inverse_rms
    return y, (y, inverse_rms)


def rms_norm_backward(dy: Array, saved: Saved) -> tuple[Array]:
    y, inverse_rms = saved
    # y = x · r, r = (mean(x²) + eps)^-1/2: dy reaches x directly, and through r with dr/dx = -r³ x / D = -r² y / D
    dx = dy - y * xp_of(y).mean(dy * y, axis=-1, keepdims=True)
    dx *= inverse_rms
    return (dx,)


rms_norm = primitive(rms_norm_forward, rms_norm_backward)


# ---- rope: rotary position embedding (Table 4: all factors 1) ----
def rope_forward(x: Array, *, head_dim: int, base: float = 10_000.0, start: int = 0) -> Output:
    """Turn every pair of neighbours in a head by an angle that grows with the position. x (B, T, D) -> y (B, T, D).

    A pair (x_2i, x_2i+1) is the complex number x_2i + j x_2i+1, multiplied by exp(j · position · base^(-2i/K)).
    `start` is the position of the first token (more than 0 when a cache holds those before it).
    """
    base = checks.rope(x, head_dim, base)
    turn = turns(xp_of(x), *x.shape[1:], head_dim, base, start, x.dtype.char)  # (T, D/2), complex
    return _rotate(x, turn), turn


def rope_backward(dy: Array, saved: Saved) -> tuple[Array]:
    # y = turn · x: a rotation, so its transpose is the rotation back
    return (_rotate(dy, saved.conj()),)


rope = primitive(rope_forward, rope_backward)


@lru_cache(maxsize=64)
def turns(xp: Any, length: int, width: int, head_dim: int, base: float, start: int, dtype: str) -> Array:
    frequency = base ** (-np.arange(0, head_dim, 2) / head_dim)  # (K/2,) radians per position
    angle = np.arange(start, start + length)[:, None] * np.tile(frequency, width // head_dim)  # (T, D/2)
    return xp.asarray(np.exp(1j * angle).astype(dtype.upper()))  # f -> F: complex64; d -> D: complex128


def _rotate(x: Array, turn: Array) -> Array:
    pairs = xp_of(x).ascontiguousarray(x).view(turn.dtype)  # (B, T, D/2), complex
    return (pairs * turn).view(x.dtype)  # (B, T, D)


# ---- attention: softmax(score_scale · q kᵀ + causal mask) v, for every head ----
def attention_forward(
    q: Array, k: Array, v: Array, *, head_dim: int, score_scale: float = 1.0, scale: Scale = Scale()
) -> Output:
    """y = scale.y · softmax(score_scale · q kᵀ + mask) v. q (B, T, D), k and v (B, S, D) -> y (B, T, D).

    The T queries are the last T of the S positions; a query sees the keys up to its own position. In u-µP
    score_scale is α_attn-softmax / K (eq. 25), in the standard parametrization 1/√K.
    """
    score_scale, scale = checks.attention(q, k, v, head_dim, score_scale, scale)
    xp = xp_of(q)
    qh, kh, vh = (split_heads(x, head_dim) for x in (q, k, v))  # (B, H, T, K), (B, H, S, K) twice
    scores = qh @ kh.swapaxes(-1, -2)  # (B, H, T, S)
    scores *= score_scale
    scores += causal_mask(xp, scores.shape[-2], scores.shape[-1], scores.dtype)
    scores -= scores.max(axis=-1, keepdims=True)  # softmax does not change, and exp cannot overflow
    p = xp.exp(scores, out=scores)
    p /= p.sum(axis=-1, keepdims=True)
    y = _merge_heads(p @ vh)  # (B, T, D)
    y *= scale.y
    return y, (qh, kh, vh, p, score_scale, scale)


def attention_backward(dy: Array, saved: Saved) -> tuple[Array, Array, Array]:
    qh, kh, vh, p, score_scale, scale = saved
    dyh = split_heads(dy, qh.shape[-1])  # (B, H, T, K)
    # y = p v
    dvh = p.swapaxes(-1, -2) @ dyh  # (B, H, S, K)
    dp = dyh @ vh.swapaxes(-1, -2)  # (B, H, T, S)
    # p = softmax(scores): dscores = p · (dp - Σ_s p dp)
    dp -= (p * dp).sum(axis=-1, keepdims=True)
    dp *= p
    # scores = score_scale · q kᵀ + mask
    dp *= score_scale
    dqh = dp @ kh  # (B, H, T, K)
    dkh = dp.swapaxes(-1, -2) @ qh  # (B, H, S, K)
    dq, dk, dv = (_merge_heads(d) for d in (dqh, dkh, dvh))
    for d in (dq, dk, dv):
        d *= scale.dx
    return dq, dk, dv


attention = primitive(attention_forward, attention_backward)


def split_heads(x: Array, head_dim: int) -> Array:
    """(B, T, D) -> (B, H, T, K), a view."""
    return x.reshape(*x.shape[:2], -1, head_dim).swapaxes(1, 2)


def _merge_heads(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)  # (B, H, T, K) -> (B, T, D), a copy


def causal_mask(xp: Any, queries: int, keys: int, dtype: Any) -> Array:
    """0 where query t may see key s, -inf where s lies in its future."""
    return xp.triu(xp.full((queries, keys), -xp.inf, dtype=dtype), k=1 + keys - queries)  # (T, S)


# ---- gated_silu: x_in · SiLU(x_gate), the middle of the SwiGLU FFN ----
def gated_silu_forward(x_in: Array, x_gate: Array, *, alpha: float = 1.0, scale: Scale = Scale()) -> Output:
    """y = scale.y · x_in · x_gate · sigmoid(alpha · x_gate) (eq. 26). All (..., F). alpha is α_ffn-act."""
    alpha, scale = checks.gated_silu(x_in, x_gate, alpha, scale)
    sigmoid = 0.5 * xp_of(x_gate).tanh((0.5 * alpha) * x_gate) + 0.5  # as a tanh it cannot overflow
    y = x_in * x_gate
    y *= sigmoid
    y *= scale.y
    return y, (x_in, x_gate, sigmoid, alpha, scale)


def gated_silu_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    x_in, x_gate, sigmoid, alpha, scale = saved
    dy = dy * scale.dx
    dy *= sigmoid
    # y = x_in · x_gate · sigmoid(alpha · x_gate), and sigmoid' = sigmoid (1 - sigmoid)
    dx_in = dy * x_gate
    dx_gate = dx_in * (1 - sigmoid)
    dx_gate *= alpha
    dx_gate += dy
    dx_gate *= x_in
    return dx_in, dx_gate


gated_silu = primitive(gated_silu_forward, gated_silu_backward)


# ---- residual: R' = a f(R) + b R, as a split at the base of the branch and an add at its end ----
def residual_split_forward(x: Array, *, scale: ResidualScale = ResidualScale()) -> Output:
    """The branch's input, x itself. Its gradient is multiplied by scale.dbase: there u-µP applies the delayed a."""
    return x, checks.residual("residual_split", scale, x=x)


def residual_split_backward(dy: Array, saved: Saved) -> tuple[Array]:
    # y = x
    return (dy * saved.dbase,)


residual_split = primitive(residual_split_forward, residual_split_backward)


def residual_add_forward(branch: Array, skip: Array, *, scale: ResidualScale = ResidualScale()) -> Output:
    """y = a · branch + b · skip (eq. 17). All (B, T, D)."""
    scale = checks.residual("residual_add", scale, branch=branch, skip=skip)
    y = scale.a * branch
    y += scale.b * skip
    return y, scale


def residual_add_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    # y = a · branch + b · skip; with dbranch = 1 the branch sees dy itself, and a waits at the split (App. B)
    return dy * saved.dbranch, dy * saved.b


residual_add = primitive(residual_add_forward, residual_add_backward)


# ---- cross_entropy: the loss ----
def cross_entropy_forward(logits: Array, targets: Array, *, alpha: float = 1.0, scale: Scale = Scale()) -> Output:
    """Mean over tokens of -log softmax(alpha · logits)[target] (eq. 27), in nats: a scalar. alpha is α_loss-softmax.

    logits (..., V); targets (...), integers in [0, V). scale.dx multiplies dlogits = alpha/N · (p - onehot).
    """
    alpha, scale = checks.cross_entropy(logits, targets, alpha, scale)
    xp = xp_of(logits)
    z = alpha * logits.reshape(-1, logits.shape[-1])  # (N, V)
    z -= z.max(axis=-1, keepdims=True)
    z_target = z[xp.arange(len(z)), targets.ravel()]  # (N,)
    p = xp.exp(z, out=z)
    total = p.sum(axis=-1, keepdims=True)  # (N, 1)
    loss = xp.mean(xp.log(total[:, 0]) - z_target) * scale.y
    p /= total
    return loss, (p, targets, logits.shape, alpha, scale)


def cross_entropy_backward(dy: Array, saved: Saved) -> tuple[Array, None]:
    p, targets, shape, alpha, scale = saved
    # loss = mean(log Σ exp(alpha · logits) - alpha · logits[target])
    factor = dy * (scale.dx * alpha / len(p))
    dlogits = p * factor
    dlogits[xp_of(p).arange(len(p)), targets.ravel()] -= factor
    return dlogits.reshape(shape), None


cross_entropy = primitive(cross_entropy_forward, cross_entropy_backward)


# ---- linear_cross_entropy: the readout and its loss as one op, so that kernels need never hold all (N, V) logits ----
def linear_cross_entropy_forward(
    x: Array, w: Array, targets: Array, *, alpha: float = 1.0, scale: Scale = Scale(), loss_scale: Scale = Scale(),
    fp8: LinearFormats = LinearFormats(),
) -> Output:  # fmt: skip
    """cross_entropy(linear(x, w), targets). x (..., D), w (V, D), targets (...) -> a scalar.

    `scale` and `fp8` are linear's, `alpha` and `loss_scale` the loss's.
    """
    logits, of_linear = linear_forward(x, w, scale=scale, fp8=fp8)
    loss, of_loss = cross_entropy_forward(logits, targets, alpha=alpha, scale=loss_scale)
    return loss, (of_linear, of_loss)


def linear_cross_entropy_backward(dy: Array, saved: Saved) -> tuple[Array, Array, None]:
    of_linear, of_loss = saved
    # loss = cross_entropy(logits, targets)
    dlogits, _ = cross_entropy_backward(dy, of_loss)
    # logits = linear(x, w)
    return *linear_backward(dlogits, of_linear), None


linear_cross_entropy = primitive(linear_cross_entropy_forward, linear_cross_entropy_backward)
