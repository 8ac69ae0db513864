"""Some pairs of `ops.py` once more, for speed on a CPU: what training runs there by default.

Each pair here has the signature of its readable one and the same values up to rounding, which the tests hold to 1e-6.
Five things make the difference:

    cache     elementwise work goes block by block, so that all its passes find their numbers in the cache
    products  of small matrices are taken a few rows at a time, which OpenBLAS multiplies without copying them first
    factors   a factor goes into the smallest of two operands and their product, not into the product always
    softmax   no maximum is taken off where the norms of the operands, or the scores, show that exp cannot overflow
    the head  takes its loss and its gradients a few hundred tokens at a time: no (N, V) array of logits ever exists

KERNELS, at the end, names the ops that they are run for within `engine.using(KERNELS)`.

Legend: as in `ops.py`.
"""

from math import sqrt

import numpy as np

from microumup import checks, ops
from microumup.backend import Array
from microumup.cpu import BLOCK, pieces, product, product_over_rows, times
from microumup.engine import Kernels
from microumup.fp8 import LinearFormats
from microumup.ops import Output, Saved, Scale, cast, causal_mask, split_heads

LARGE_HEAD = 64  # elements, from which on attention's matrix products read heads well as they lie
QUERIES = 32  # of attention at a time, twice as many of large heads; a block looks at no keys behind its last query
LOGITS = 1 << 23  # elements of logits at a time, 32 MiB
SAFE_EXPONENT = 60.0  # exp of anything within ± this, and a sum of 10^12 of them, is a normal float32


# ---- linear: y = x wᵀ ----
def linear_forward(x: Array, w: Array, *, scale: Scale = Scale(), fp8: LinearFormats = LinearFormats()) -> Output:
    """ops.linear, with each factor where it costs least."""
    scale = checks.linear(x, w, scale)
    rows = cast(x.reshape(-1, x.shape[-1]), fp8.x)  # (N, D_in)
    w = cast(w, fp8.w)
    y = product(rows, w.T, scale.y)  # (N, D_out)
    return y.reshape(*x.shape[:-1], -1), (rows, w, scale, fp8.dy)


def linear_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    rows, w, scale, dy_format = saved
    dy_rows = cast(dy.reshape(-1, dy.shape[-1]), dy_format)  # (N, D_out)
    # y = scale.y · (x wᵀ)
    dx = product(dy_rows, w, scale.dx)  # (N, D_in)
    dw = product_over_rows(dy_rows, rows)  # (D_out, D_in)
    dw *= scale.dw
    return dx.reshape(*dy.shape[:-1], -1), dw


# ---- rms_norm: x over its root mean square ----
def rms_norm_forward(x: Array, *, eps: float = 1e-6) -> Output:
    """ops.rms_norm, the squares summed without being stored."""
    eps = checks.rms_norm(x, eps)
    inverse_rms = 1 / np.sqrt(np.vecdot(x, x) / x.shape[-1] + eps)[..., None]  # (..., 1)
    y = x * inverse_rms
    return y, (y, inverse_rms)


def rms_norm_backward(dy: Array, saved: Saved) -> tuple[Array]:
    y, inverse_rms = saved
    # y = x · r, r = (mean(x²) + eps)^-1/2; dr/dx = -r² y / D
    along_y = np.vecdot(dy, y)[..., None] * (inverse_rms / y.shape[-1])  # (..., 1)
    dx = np.empty(y.shape, y.dtype)
    for dx_i, dy_i, y_i, r, along in pieces(dx, dy, y, inverse_rms, along_y):
        np.multiply(dy_i, r, out=dx_i)
        dx_i -= y_i * along
    return (dx,)


# ---- attention: softmax(score_scale · q kᵀ + causal mask) v, for every head ----
def attention_forward(
    q: Array, k: Array, v: Array, *, head_dim: int, score_scale: float = 1.0, scale: Scale = Scale()
) -> Output:
    """ops.attention for some queries at a time, each block with those keys alone that its last query sees.

    What is kept as p holds scale.y. NumPy takes long to begin a row, which in a head is short: so whole blocks are
    multiplied by a mask, not what lies in the future alone, and p by 1/sum, not y.
    """
    score_scale, scale = checks.attention(q, k, v, head_dim, score_scale, scale)
    T, S = q.shape[1], k.shape[1]
    q = q * score_scale
    y = np.empty(q.shape, q.dtype)
    qh, vh, yh = (split_heads(x, head_dim) for x in (q, v, y))  # (B, H, T, K), vh (B, H, S, K)
    kt = _transposed(k, head_dim)  # (B, H, K, S)
    safe = _largest_norm(q, head_dim) * _largest_norm(k, head_dim) <= SAFE_EXPONENT  # |q k| <= |q| |k|
    n = QUERIES if head_dim < LARGE_HEAD else 2 * QUERIES
    blocks = []
    for start in range(0, T, n):
        rows = slice(start, min(start + n, T))
        seen = S - T + rows.stop
        past = np.tri(rows.stop - start, seen, S - T + start, dtype=q.dtype)  # (n, seen), 1 or 0
        p = qh[:, :, rows] @ kt[..., :seen]  # (B, H, n, seen)
        if not safe and _too_large(p):
            p += causal_mask(np, *past.shape, p.dtype)
            p -= p.max(axis=-1, keepdims=True)
        np.exp(p, out=p)
        p *= past
        p *= (scale.y / np.vecdot(p, np.ones(seen, p.dtype)))[..., None]
        np.matmul(p, vh[:, :, :seen], out=yh[:, :, rows])
        blocks.append((rows, seen, p))
    return y, (q, k, v, y, blocks, head_dim, score_scale, scale)


def attention_backward(dy: Array, saved: Saved) -> tuple[Array, Array, Array]:
    q, k, v, y, blocks, head_dim, score_scale, scale = saved
    dy = times(dy, scale.dx / scale.y)
    dq, dk, dv = (np.empty(x.shape, x.dtype) for x in (q, k, v))
    qh, kh, dqh, dyh = (split_heads(x, head_dim) for x in (q, k, dq, dy))
    vt = _transposed(v, head_dim)  # (B, H, K, S)
    along_y = np.einsum("btk,btk->bt", *(x.reshape(len(x), -1, head_dim) for x in (dy, y)))  # (B, T H)
    along_y = split_heads(along_y.reshape(*y.shape[:2], -1), 1) / scale.y  # (B, H, T, 1)
    for last, (rows, seen, p) in enumerate(reversed(blocks)):
        # y = p v
        _first_or_more(dv[:, :seen], p.swapaxes(-1, -2), dyh[:, :, rows], first=last == 0)
        dp = dyh[:, :, rows] @ vt[..., :seen]  # (B, H, n, seen)
        # p = softmax(scores): dscores = p · (dp - Σ_s p dp), and that sum is dy · y
        dp -= along_y[:, :, rows]
        dp *= p
        if seen == rows.stop - rows.start:
            dp[:, :, 0] = 0  # the first query sees but one key: no score changes that, and rounding shall not say so
        # scores = score_scale · q kᵀ + mask; q holds score_scale already
        np.matmul(dp, kh[:, :, :seen], out=dqh[:, :, rows])
        _first_or_more(dk[:, :seen], dp.swapaxes(-1, -2), qh[:, :, rows], first=last == 0)
    dq *= score_scale
    return dq, dk, dv


def _transposed(x: Array, head_dim: int) -> Array:
    """(B, S, D) -> (B, H, K, S). A matmul reads small heads three times as fast when they are laid out so."""
    view = split_heads(x, head_dim).swapaxes(-1, -2)
    return np.ascontiguousarray(view) if head_dim < LARGE_HEAD else view


def _largest_norm(x: Array, size: int) -> float:
    """The largest norm among any `size` neighbours in x."""
    rows = x.reshape(-1, size)
    return sqrt(np.einsum("ij,ij->i", rows, rows).max())


def _too_large(x: Array) -> bool:
    """True where exp needs the maximum of each row taken off first, lest it overflow or all of a row become 0."""
    return max(float(x.max()), -float(x.min())) > SAFE_EXPONENT


def _first_or_more(out: Array, a: Array, b: Array, *, first: bool) -> None:
    """out (B, S, D) = a b (B, H, S, K), or out += a b."""
    part = out if first else np.empty(out.shape, out.dtype)
    np.matmul(a, b, out=split_heads(part, b.shape[-1]))
    if not first:
        out += part


# ---- gated_silu: x_in · SiLU(x_gate) ----
def gated_silu_forward(x_in: Array, x_gate: Array, *, alpha: float = 1.0, scale: Scale = Scale()) -> Output:
    """ops.gated_silu, block by block; the sigmoid that is kept holds scale.y."""
    alpha, scale = checks.gated_silu(x_in, x_gate, alpha, scale)
    y, sigmoid = (np.empty(x_in.shape, x_in.dtype) for _ in range(2))
    for y_i, s, u, g in pieces(y, sigmoid, x_in, x_gate):
        np.multiply(g, 0.5 * alpha, out=s)
        np.tanh(s, out=s)
        s *= 0.5 * scale.y
        s += 0.5 * scale.y
        np.multiply(g, s, out=y_i)
        y_i *= u
    return y, (x_in, x_gate, sigmoid, alpha, scale)


def gated_silu_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    x_in, x_gate, sigmoid, alpha, scale = saved
    dx_in, dx_gate = (np.empty(x_in.shape, x_in.dtype) for _ in range(2))
    for silu, slope, d, s, u, g in pieces(dx_in, dx_gate, dy, sigmoid, x_in, x_gate):
        # silu = x_gate · s, s = scale.y · sigmoid(alpha · x_gate): its slope is s + alpha · silu · (1 - s / scale.y)
        np.multiply(g, s, out=silu)
        np.multiply(s, -alpha / scale.y, out=slope)
        slope += alpha
        slope *= silu
        slope += s
        # y = x_in · silu
        d = times(d, scale.dx / scale.y)
        slope *= u
        slope *= d
        silu *= d
    return dx_in, dx_gate


# ---- linear_cross_entropy: the readout and its loss ----
def linear_cross_entropy_forward(
    x: Array, w: Array, targets: Array, *, alpha: float = 1.0, scale: Scale = Scale(), loss_scale: Scale = Scale(),
    fp8: LinearFormats = LinearFormats(),
) -> Output:  # fmt: skip
    """ops.linear_cross_entropy, some LOGITS at a time, each of which becomes its gradient in place and is used up.

    The gradients are ready when the loss is, for a cotangent of 1: backward hardly does anything.
    """
    scale = checks.linear(x, w, scale)
    checks.targets(targets, x.shape[:-1], len(w))
    op = "linear_cross_entropy"
    alpha, loss_scale = checks.plain(op, alpha=alpha), checks.factors(op, loss_scale)
    settings = (x, w, targets, alpha, scale, loss_scale, fp8)
    loss, dx, dw = _loss_and_gradients(*settings)
    return loss, (dx, dw, settings)


def linear_cross_entropy_backward(dy: Array, saved: Saved) -> tuple[Array, Array, None]:
    dx, dw, (x, w, targets, alpha, scale, loss_scale, fp8) = saved
    # loss = mean(log Σ exp(alpha · logits) - alpha · logits[target])
    if dy == 1:
        return dx, dw, None
    if fp8.dy is None:
        return dx * dy, dw * dy, None
    # what is cast is dy · dlogits, not dlogits
    loss_scale = loss_scale._replace(dx=loss_scale.dx * float(dy))
    _, dx, dw = _loss_and_gradients(x, w, targets, alpha, scale, loss_scale, fp8)
    return dx, dw, None


def _loss_and_gradients(
    x: Array, w: Array, targets: Array, alpha: float, scale: Scale, loss_scale: Scale, fp8: LinearFormats
) -> tuple[Array, Array, Array]:
    """The loss, dx and dw, for a cotangent of 1."""
    rows, w = cast(x.reshape(-1, x.shape[-1]), fp8.x), cast(w, fp8.w)
    (N, D), V = rows.shape, len(w)
    dx, dw = (np.empty(x.shape, x.dtype) for x in (rows, w))
    losses = np.empty(N)
    factor = scale.y * alpha
    safe = factor * _largest_norm(rows, D) * _largest_norm(w, D) <= SAFE_EXPONENT  # |x w| <= |x| |w|
    chunks = -(-N * V // LOGITS)
    for i in range(chunks):
        chunk = slice(N * i // chunks, N * (i + 1) // chunks)
        z = product(rows[chunk], w.T, factor)  # (n, V)
        losses[chunk] = _softmax_gradient(z, targets.ravel()[chunk], loss_scale.dx * alpha / N, safe=safe)
        z = cast(z, fp8.dy)
        # logits = scale.y · (x wᵀ)
        np.matmul(z, w, out=dx[chunk])
        if i == 0:
            np.matmul(z.T, rows[chunk], out=dw)
        else:
            _add_product(dw, z.T, rows[chunk])
        del z  # or two chunks would be alive at once
    dx *= scale.dx
    dw *= scale.dw
    loss = np.asarray(losses.mean() * loss_scale.y, dtype=x.dtype)[()]
    return loss, dx.reshape(x.shape), dw


def _add_product(out: Array, a: Array, b: Array) -> None:
    """out += a b, of which never more exists than a piece."""
    for out_i, a_i in pieces(out, a):
        out_i += a_i @ b


def _softmax_gradient(z: Array, targets: Array, factor: float, *, safe: bool) -> Array:
    """z (n, V) becomes factor · (softmax(z) - onehot), in place; returns the losses -log softmax(z)[target] (n,)."""
    losses = np.empty(len(z))
    ones = np.ones(z.shape[1], z.dtype)
    for y, target, loss in pieces(z, targets[:, None], losses[:, None], size=4 * BLOCK):
        hit = np.arange(len(y)), target[:, 0]
        if not safe and _too_large(y):
            y -= y.max(axis=-1, keepdims=True)
        loss[:, 0] = -y[hit]
        np.exp(y, out=y)
        total = np.vecdot(y, ones)
        loss[:, 0] += np.log(total)
        y *= (factor / total)[:, None]
        y[hit] -= factor
    return losses


# ---- adamw ----
def adamw(
    w: Array, g: Array, m: Array, v: Array, *, t: int, lr: float, decay: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """optim.adamw in place: it writes to w, m and v, and returns them. The roots of v̂ and m̂ become factors of lr."""
    beta1, beta2 = betas
    m_bias, root_v_bias = 1 - beta1**t, (1 - beta2**t) ** 0.5
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    # m̂/(√v̂ + ε), with m̂ = m/m_bias and √v̂ = √v/root_v_bias
    update = np.sqrt(v)
    update += eps * root_v_bias
    np.divide(m, update, out=update)
    update *= lr * root_v_bias / m_bias
    if decay:
        w *= 1 - decay
    w -= update
    return w, m, v


KERNELS: Kernels = {
    ops.linear: (linear_forward, linear_backward),
    ops.rms_norm: (rms_norm_forward, rms_norm_backward),
    ops.attention: (attention_forward, attention_backward),
    ops.gated_silu: (gated_silu_forward, gated_silu_backward),
    ops.linear_cross_entropy: (linear_cross_entropy_forward, linear_cross_entropy_backward),
}
