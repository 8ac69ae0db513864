"""Most pairs of `ops.py` once more, for speed and bounded memory on a GPU: what training runs there by default.

Each pair here has the signature of its readable one and the same values up to rounding. Matrix products stay cuBLAS's;
what stands around them is a kernel of `cuda.py` each, where composed array calls would go through memory once per call.
Four things make the difference:

    launches   a kernel does what three to ten array calls do, and reads and writes each number once
    factors    they go into a kernel, or into the smallest of two operands and their product
    memory     attention's scores and the head's logits exist a bounded number at a time; the cheap is computed again
    no waiting nothing here is read back to the host: ids are not looked at there, and the loss stays on the device

A token id or target outside the vocabulary makes NaN of all that depends on it, the loss above all, where `ops.py`
would raise: to look at ids is to wait for the device.

A kernel takes float32 on a GPU. For anything else, float64 or arrays of NumPy, a pair here runs that of `ops.py`.
KERNELS, at the end, names the ops that they are run for within `engine.using(KERNELS)`.

Legend: as in `ops.py`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from microumup import checks, cuda, fp8, ops, optim
from microumup.backend import Array, xp_of
from microumup.engine import Backward, Forward, Kernels, Op
from microumup.fp8 import Format, LinearFormats
from microumup.ops import Output, ResidualScale, Saved, Scale, split_heads

SCORES = 1 << 25  # elements of attention's scores at a time, 128 MiB
LOGITS = 1 << 25  # elements of logits at a time, 128 MiB


def _dense(x: Array, dtype: type = np.float32) -> Array:
    """x as a kernel reads it: C-contiguous. No copy where it already is."""
    return xp_of(x).ascontiguousarray(x, dtype=dtype)


def _on_gpu(*arrays: Array) -> bool:
    """True where kernels can take all of these: arrays on a GPU, none of them float64."""
    return all(xp_of(a) is not np and getattr(a, "dtype", None) != np.float64 for a in arrays)


# ---- quantize, and casts by it ----
def quantize(x: Array, fmt: Format, *, out: Array | None = None) -> Array:
    """fp8.quantize, bit for bit but for the payload of a NaN; into `out` if given, which may be x itself.

    Raises ValueError as fp8.quantize does.
    """
    if not _on_gpu(x) or getattr(x, "dtype", None) != np.float32 or not hasattr(fmt, "mantissa_bits"):
        return fp8.quantize(x, fmt)
    x = _dense(x)
    out = xp_of(x).empty_like(x) if out is None else out
    cuda.each("quantize", x.size, x, out, fmt.max, fmt.min_normal, 2.0**-fmt.mantissa_bits)
    return out


def cast(x: Array, fmt: Format | None) -> Array:
    """x rounded to fmt, or x itself if that is None."""
    return x if fmt is None else quantize(x, fmt)


# ---- linear: y = x wᵀ ----
def linear_forward(x: Array, w: Array, *, scale: Scale = Scale(), fp8: LinearFormats = LinearFormats()) -> Output:
    """ops.linear, with each factor where it costs least."""
    scale = checks.linear(x, w, scale)
    rows = cast(x.reshape(-1, x.shape[-1]), fp8.x)  # (N, D_in)
    w = cast(w, fp8.w)
    y = _product(rows, w.T, scale.y)  # (N, D_out)
    return y.reshape(*x.shape[:-1], -1), (rows, w, scale, fp8.dy)


def linear_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    rows, w, scale, dy_format = saved
    dy_rows = cast(dy.reshape(-1, dy.shape[-1]), dy_format)  # (N, D_out)
    # y = scale.y · (x wᵀ)
    dx = _product(dy_rows, w, scale.dx)  # (N, D_in)
    dw = _product(dy_rows.T, rows, scale.dw)  # (D_out, D_in)
    return dx.reshape(*dy.shape[:-1], -1), dw


def _product(a: Array, b: Array, factor: float) -> Array:
    """factor · (a b), the factor going into the smallest of the three."""
    size = len(a) * b.shape[-1]
    if factor == 1:
        return a @ b
    if size <= min(a.size, b.size):
        y = a @ b
        y *= factor
        return y
    return a @ (b * factor) if b.size <= a.size else (a * factor) @ b


# ---- embedding: a row of the table per token ----
def embedding_forward(tokens: Array, w: Array, *, scale: Scale = Scale()) -> Output:
    """ops.embedding. A token that is no row of w gets NaN."""
    with checks.ids_not_read():
        scale = checks.embedding(tokens, w, scale)
    tokens, w = _dense(tokens, np.int64), _dense(w)
    V, D = w.shape
    y = xp_of(w).empty((*tokens.shape, D), dtype=w.dtype)
    cuda.rows("embedding_forward", tokens.size, D, tokens, w, y, scale.y, D, V)
    return y, (tokens, V, scale)


def embedding_backward(dy: Array, saved: Saved) -> tuple[None, Array]:
    tokens, V, scale = saved
    xp, D = xp_of(dy), dy.shape[-1]
    order, first = (xp.empty(n, dtype=np.int64) for n in (tokens.size, V))
    count = xp.zeros(V, dtype=np.int64)
    cuda.each("places_by_token", tokens.size, tokens, order, first, count, V)
    # y = scale.y · w[tokens]: a row of w gets the sum over the places its token stands at
    dw = xp.empty((V, D), dtype=dy.dtype)
    cuda.rows("embedding_backward", V, D, _dense(dy), order, first, count, dw, scale.dw, D)
    return None, dw


# ---- rms_norm: x over its root mean square ----
def rms_norm_forward(x: Array, *, eps: float = 1e-6) -> Output:
    """ops.rms_norm."""
    eps = checks.rms_norm(x, eps)
    x, D = _dense(x), x.shape[-1]
    y, inverse_rms = xp_of(x).empty_like(x), xp_of(x).empty((*x.shape[:-1], 1), dtype=x.dtype)  # (..., D), (..., 1)
    cuda.rows("rms_norm_forward", inverse_rms.size, D, x, y, inverse_rms, eps, D)
    return y, (y, inverse_rms)


def rms_norm_backward(dy: Array, saved: Saved) -> tuple[Array]:
    y, inverse_rms = saved
    # y = x · r, r = (mean(x²) + eps)^-1/2; dr/dx = -r² y / D
    dx, D = xp_of(y).empty_like(y), y.shape[-1]
    cuda.rows("rms_norm_backward", inverse_rms.size, D, _dense(dy), y, inverse_rms, dx, D)
    return (dx,)


# ---- rope: rotary position embedding ----
def rope_forward(x: Array, *, head_dim: int, base: float = 10_000.0, start: int = 0) -> Output:
    """ops.rope, with its angles, which are uploaded once for all calls."""
    base = checks.rope(x, head_dim, base)
    turn = ops.turns(xp_of(x), *x.shape[1:], head_dim, base, start, x.dtype.char).view(np.float32)  # (T, D)
    return _rotate(x, turn, 1.0), turn


def rope_backward(dy: Array, saved: Saved) -> tuple[Array]:
    # y = turn · x: a rotation, so its transpose is the rotation back
    return (_rotate(dy, saved, -1.0),)


def _rotate(x: Array, turn: Array, sign: float) -> Array:
    x = _dense(x)
    y, (B, T, D) = xp_of(x).empty_like(x), x.shape
    cuda.rows("rope", B * T, D // 2, x, turn, y, sign, T, D // 2)
    return y


# ---- attention: softmax(score_scale · q kᵀ + causal mask) v, for every head ----
def attention_forward(
    q: Array, k: Array, v: Array, *, head_dim: int, score_scale: float = 1.0, scale: Scale = Scale()
) -> Output:
    """ops.attention for some sequences, or some queries of one, at a time: SCORES elements of p at most.

    No p is kept: backward computes it again, which is one more product of four and a small part of a step.

    CuPy copies what is not C-contiguous before it multiplies stacks of matrices. So p and dp, the large ones, are
    multiplied as they lie: pᵀ dy is (dyᵀ p)ᵀ.
    """
    score_scale, scale = checks.attention(q, k, v, head_dim, score_scale, scale)
    y = xp_of(q).empty(q.shape, dtype=q.dtype)
    qh, kh, vh, yh = (split_heads(x, head_dim) for x in (_dense(q), _dense(k), _dense(v), y))  # (B, H, T, K)
    for some, rows, seen in _parts(qh, kh):
        p = _softmax(qh[some, :, rows], kh[some, :, seen], score_scale, scale.y)  # holds scale.y
        yh[some, :, rows] = p @ vh[some, :, seen]
        del p  # or two parts would be alive at once
    return y, (qh, kh, vh, score_scale, scale)


def attention_backward(dy: Array, saved: Saved) -> tuple[Array, Array, Array]:
    qh, kh, vh, score_scale, scale = saved
    xp, (B, H, T, K), S = xp_of(dy), qh.shape, kh.shape[2]
    dq, dk, dv = (xp.empty((B, T, H * K), dtype=dy.dtype), *(xp.zeros((B, S, H * K), dtype=dy.dtype) for _ in range(2)))
    dqh, dkh, dvh, dyh = (split_heads(x, K) for x in (dq, dk, dv, dy * scale.dx))
    for some, rows, seen in _parts(qh, kh):
        p = _softmax(qh[some, :, rows], kh[some, :, seen], score_scale, 1.0)  # (b, H, t, s)
        # y = p v
        dvh[some, :, seen] += _transposed(_transposed(dyh[some, :, rows]) @ p)
        dp = _dense(dyh[some, :, rows] @ _transposed(vh[some, :, seen]))
        # p = softmax(scores): dscores = p · (dp - Σ_s p dp); scores = score_scale · q kᵀ + mask
        cuda.rows("softmax_backward", p.size // p.shape[-1], p.shape[-1], p, dp, score_scale, p.shape[-1])
        dqh[some, :, rows] = dp @ kh[some, :, seen]
        dkh[some, :, seen] += _transposed(_transposed(qh[some, :, rows]) @ dp)
        del p, dp
    return dq, dk, dv


def _parts(qh: Array, kh: Array) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of the sequences, of their queries, and of the keys that these see: together SCORES scores or fewer."""
    B, H, T, _ = qh.shape
    S = kh.shape[2]
    sequences, queries = max(1, SCORES // (H * T * S)), max(1, min(T, SCORES // (H * S)))
    for b in range(0, B, sequences):
        for t in range(0, T, queries):
            rows = slice(t, min(t + queries, T))
            yield slice(b, b + sequences), rows, slice(S - T + rows.stop)


def _transposed(x: Array) -> Array:
    return x.swapaxes(-1, -2)


def _softmax(q: Array, k: Array, score_scale: float, factor: float) -> Array:
    """factor · softmax(score_scale · q kᵀ + mask). q (b, H, t, K), k (b, H, s, K) -> (b, H, t, s)."""
    p = _dense(q @ _transposed(k))
    *_, t, s = p.shape
    cuda.rows("softmax_forward", p.size // s, s, p, score_scale, factor, t, s)
    return p


# ---- gated_silu: x_in · SiLU(x_gate) ----
def gated_silu_forward(x_in: Array, x_gate: Array, *, alpha: float = 1.0, scale: Scale = Scale()) -> Output:
    """ops.gated_silu, whose sigmoid is not kept but computed again."""
    alpha, scale = checks.gated_silu(x_in, x_gate, alpha, scale)
    x_in, x_gate = _dense(x_in), _dense(x_gate)
    y = xp_of(x_in).empty_like(x_in)
    cuda.each("gated_silu_forward", y.size, x_in, x_gate, y, alpha, scale.y)
    return y, (x_in, x_gate, alpha, scale)


def gated_silu_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    x_in, x_gate, alpha, scale = saved
    # y = x_in · x_gate · sigmoid(alpha · x_gate), and sigmoid' = sigmoid (1 - sigmoid)
    dx_in, dx_gate = (xp_of(x_in).empty_like(x_in) for _ in range(2))
    cuda.each("gated_silu_backward", dy.size, _dense(dy), x_in, x_gate, dx_in, dx_gate, alpha, scale.dx)
    return dx_in, dx_gate


# ---- residual: R' = a f(R) + b R. The split stays ops': its backward is one product already ----
def residual_add_forward(branch: Array, skip: Array, *, scale: ResidualScale = ResidualScale()) -> Output:
    """ops.residual_add."""
    scale = checks.residual("residual_add", scale, branch=branch, skip=skip)
    branch, skip = _dense(branch), _dense(skip)
    y = xp_of(skip).empty_like(skip)
    cuda.each("residual_add_forward", y.size, branch, skip, y, scale.a, scale.b)
    return y, scale


def residual_add_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    # y = a · branch + b · skip; with dbranch = 1 the branch sees dy itself, and a waits at the split (App. B)
    dy = _dense(dy)
    dbranch, dskip = (xp_of(dy).empty_like(dy) for _ in range(2))
    cuda.each("residual_add_backward", dy.size, dy, dbranch, dskip, saved.dbranch, saved.b)
    return dbranch, dskip


# ---- linear_cross_entropy: the readout and its loss ----
def linear_cross_entropy_forward(
    x: Array, w: Array, targets: Array, *, alpha: float = 1.0, scale: Scale = Scale(), loss_scale: Scale = Scale(),
    fp8: LinearFormats = LinearFormats(),
) -> Output:  # fmt: skip
    """ops.linear_cross_entropy, LOGITS of them at a time, each of which becomes its gradient in place and is used up.

    The gradients are ready when the loss is, for a cotangent of 1. But what is cast to fp8.dy is dy · dlogits, and dy
    comes later: with a format for it the gradients wait for backward, which computes the logits again. A target outside
    the vocabulary makes the loss NaN.
    """
    scale = checks.linear(x, w, scale)
    with checks.ids_not_read():
        checks.targets(targets, x.shape[:-1], len(w))
    op = "linear_cross_entropy"
    alpha, loss_scale = checks.plain(op, alpha=alpha), checks.factors(op, loss_scale)
    rows, w, hits = cast(x.reshape(-1, x.shape[-1]), fp8.x), cast(w, fp8.w), _dense(targets, np.int64).ravel()
    settings = (rows, w, hits, alpha, scale, loss_scale, fp8.dy)
    one = xp_of(x).ones((), dtype=x.dtype)
    if fp8.dy is not None:
        return _loss(one, None, *settings), (None, settings, x.shape)
    gradients = _no_gradients(rows, w)
    return _loss(one, gradients, *settings), (gradients, None, x.shape)


def linear_cross_entropy_backward(dy: Array, saved: Saved) -> tuple[Array, Array, None]:
    gradients, settings, shape = saved
    # loss = mean(log Σ exp(alpha · logits) - alpha · logits[target])
    if gradients:
        dx, dw = (dy * d for d in gradients)
    else:
        dx, dw = _no_gradients(*settings[:2])
        _loss(dy, (dx, dw), *settings)
    return dx.reshape(shape), dw, None


def _no_gradients(rows: Array, w: Array) -> tuple[Array, Array]:
    """Room for dx (N, D), and a dw (V, D) of zeros."""
    return xp_of(rows).empty(rows.shape, dtype=rows.dtype), xp_of(w).zeros(w.shape, dtype=w.dtype)


def _loss(
    dy: Array, gradients: tuple[Array, Array] | None, rows: Array, w: Array, targets: Array, alpha: float, scale: Scale,
    loss_scale: Scale, dy_format: Format | None,
) -> Array:  # fmt: skip
    """The loss, a 0-d array as dy is; what `_no_gradients` gave becomes dx and dw for the cotangent dy."""
    N, V = len(rows), len(w)
    losses = xp_of(rows).empty(N, dtype=rows.dtype)
    chunks = min(N, -(-N * V // LOGITS))
    for i in range(chunks):
        chunk = slice(N * i // chunks, N * (i + 1) // chunks)
        z = _dense(rows[chunk] @ w.T)  # (n, V)
        factor = loss_scale.dx * alpha / N
        cuda.rows("cross_entropy", len(z), V, z, targets[chunk], dy, losses[chunk], scale.y * alpha, factor, V)
        if gradients:
            dx, dw = gradients
            z = z if dy_format is None else quantize(z, dy_format, out=z)
            # logits = scale.y · (x wᵀ)
            dx[chunk] = z @ w
            dw += z.T @ rows[chunk]
        del z  # or two chunks would be alive at once
    if gradients:
        dx, dw = gradients
        dx *= scale.dx
        dw *= scale.dw
    return losses.mean() * loss_scale.y


# ---- adamw ----
def adamw(
    w: Array, g: Array, m: Array, v: Array, *, t: int, lr: float, decay: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """optim.adamw in place: it writes to w, m and v, and returns them; bit for bit what fused.adamw does.

    For what no kernel takes, float64 or a w, m or v that is not C-contiguous, it is optim.adamw itself.
    """
    if not _on_gpu(w, g, m, v) or not all(x.flags.c_contiguous for x in (w, m, v)):
        return optim.adamw(w, g, m, v, t=t, lr=lr, decay=decay, betas=betas, eps=eps)
    beta1, beta2 = betas
    m_bias, root_v_bias = 1 - beta1**t, (1 - beta2**t) ** 0.5
    # m̂/(√v̂ + ε), with m̂ = m/m_bias and √v̂ = √v/root_v_bias
    factors = (1 - beta1, 1 - beta2, eps * root_v_bias, lr * root_v_bias / m_bias, 1.0 - decay)
    cuda.each("adamw", w.size, w, _dense(g), m, v, *factors)
    return w, m, v


def _pair(op: Op, forward: Forward, backward: Backward) -> tuple[Forward, Backward]:
    """The pair given where kernels can take the arrays, that of `ops.py` for all others."""
    plain = getattr(ops, f"{op.__name__}_forward"), getattr(ops, f"{op.__name__}_backward")

    def either_forward(*arrays: Array, **settings: Any) -> Output:
        which = (forward, backward) if _on_gpu(*arrays) else plain
        y, saved = which[0](*arrays, **settings)
        return y, (which[1], saved)

    def either_backward(dy: Array, saved: Saved) -> tuple[Array | None, ...]:
        backward, saved = saved
        return backward(dy, saved)

    return either_forward, either_backward


KERNELS: Kernels = {
    op: _pair(op, forward, backward)
    for op, forward, backward in (
        (ops.linear, linear_forward, linear_backward),
        (ops.embedding, embedding_forward, embedding_backward),
        (ops.rms_norm, rms_norm_forward, rms_norm_backward),
        (ops.rope, rope_forward, rope_backward),
        (ops.attention, attention_forward, attention_backward),
        (ops.gated_silu, gated_silu_forward, gated_silu_backward),
        (ops.residual_add, residual_add_forward, residual_add_backward),
        (ops.linear_cross_entropy, linear_cross_entropy_forward, linear_cross_entropy_backward),
    )
}
