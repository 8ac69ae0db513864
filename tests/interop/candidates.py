"""Implementations of u-µP's ops in plain NumPy that share nothing with the package, and can be told to go wrong.

Each takes what one would write from the paper: sizes, α's, no factors. `but` names a mistake to make.
"""

from math import erf, exp, log, sqrt

import ml_dtypes
import numpy as np


def interpolate(w, upper, lower):
    return exp(w * log(upper) + (1 - w) * log(lower))


def linear(but="", readout=False):
    def forward(x, w):
        n, m = w.shape[1], w.shape[0]
        A = 1 / n if readout else n**-0.5
        A = {"y fan_out": m**-0.5, "y hidden": n**-0.5, "no factor": 1.0, "y twice": A * A}.get(but, A)
        return A * np.einsum("...i,oi->...o", x, w), (x, w, A)

    def backward(dy, saved):
        x, w, A = saved
        n, m, b = w.shape[1], w.shape[0], x[..., 0].size
        dx_factor = {
            "dx fan_out": m**-0.5, "derivative": A, "unscaled": 1.0, "no factor": 1.0, "dx 1/fan_in": 1 / n,
        }.get(but, n**-0.5)  # fmt: skip
        dw_factor = {
            "dw missing": 1.0, "dw 1/b": 1 / b, "dw sequences": len(x) ** -0.5, "derivative": A, "unscaled": 1.0,
            "no factor": 1.0, "dw fan_in": n**-0.5,
        }.get(but, b**-0.5)  # fmt: skip
        dx = dx_factor * np.einsum("...o,oi->...i", dy, w)
        dw = dw_factor * np.einsum("ro,ri->oi", dy.reshape(-1, m), x.reshape(-1, n))
        if but == "dw transposed":
            dw = dw.T
        if but == "sign":
            dx = -dx
        if but == "last row":
            dx[..., -1, :] = 0
        return dx, dw

    return forward, backward


def embedding(but=""):
    def forward(tokens, w):
        return w[tokens], (tokens, len(w))

    def backward(dy, saved):
        tokens, V = saved
        dw = np.zeros((V, dy.shape[-1]), dy.dtype)
        if but == "overwrites":
            dw[tokens] = dy
        else:
            np.add.at(dw, tokens, dy)
        return None, dw * {"inverted": sqrt(tokens.size / V), "missing": 1.0, "V/b": V / tokens.size}.get(
            but, sqrt(V / tokens.size)
        )

    return forward, backward


def rms_norm(but=""):
    def forward(x, *, eps):
        x0 = x - x.mean(-1, keepdims=True) if but == "layer norm" else x
        square = (x0**2).sum(-1, keepdims=True) / (1 if but == "sum" else x.shape[-1])
        r = (
            1 / (np.sqrt(square) + eps)
            if but == "eps outside"
            else 1 / np.sqrt(square + (0 if but == "no eps" else eps))
        )
        return x0 * r, (x0, r, eps)

    def backward(dy, saved):
        x, r, _ = saved
        if but == "constant":
            return dy * r
        D = 1 if but == "sum" else x.shape[-1]
        dx = dy * r - x * r**3 * (dy * x).sum(-1, keepdims=True) / D
        if but == "layer norm":
            dx = dx - dx.mean(-1, keepdims=True)
        if but == "eps outside":
            root = np.sqrt((x**2).mean(-1, keepdims=True))
            dx = dy * r - x * r**2 / root * (dy * x).mean(-1, keepdims=True)
        return dx

    return forward, backward


def rope(but=""):
    def turn(x, head_dim, base, sign):
        B, T, D = x.shape
        x = x.reshape(B, T, -1, head_dim)
        i = np.arange(head_dim // 2)
        power = -i / head_dim if but == "frequency" else -2 * i / head_dim
        angle = sign * np.outer(np.arange(T) + (but == "from 1"), base**power)[:, None]  # (T, 1, K/2)
        c, s = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
        u, v = (x[..., : head_dim // 2], x[..., head_dim // 2 :]) if but == "halves" else (x[..., ::2], x[..., 1::2])
        out = np.empty_like(x)
        p, q = u * c - v * s, u * s + v * c
        if but == "halves":
            out[..., : head_dim // 2], out[..., head_dim // 2 :] = p, q
        else:
            out[..., ::2], out[..., 1::2] = p, q
        return out.reshape(B, T, D)

    def forward(x, *, head_dim, base):
        return turn(x, head_dim, base, -1 if but == "other way" else 1), (head_dim, base)

    def backward(dy, saved):
        return turn(dy, *saved, {"on": 1, "other way": 1}.get(but, -1))

    return forward, backward


def attention(but=""):
    def heads(x, K):
        B, T, D = x.shape
        if but == "interleaved":
            return x.reshape(B, T, K, D // K).transpose(0, 3, 1, 2)
        return x.reshape(B, T, D // K, K).transpose(0, 2, 1, 3)

    def merge(x):
        B, H, T, K = x.shape
        return (x.transpose(0, 2, 3, 1) if but == "interleaved" else x.transpose(0, 2, 1, 3)).reshape(B, T, H * K)

    def forward(q, k, v, *, head_dim, alpha, seq_len):
        K, s = head_dim, q.shape[1] if but == "input length" else seq_len
        qh, kh, vh = (heads(x, K) for x in (q, k, v))
        scale = {"sqrt K": alpha / sqrt(K), "no alpha": 1 / K}.get(but, alpha / K)
        scores = scale * np.einsum("bhtk,bhsk->bhts", qh, kh)
        if but != "no mask":
            scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p = p / p.sum(-1, keepdims=True)
        a = 1.0 if but == "sigma of 1" else alpha
        sigma = 1.0 if but == "no factor" else interpolate(1 / (1 + 4 * K / a**2), 1, sqrt(log(s) / s))
        return merge(p @ vh) / sigma, (qh, kh, vh, p, scale, sigma, alpha)

    def backward(dy, saved):
        qh, kh, vh, p, scale, sigma, alpha = saved
        dyh = heads(dy, qh.shape[-1]) / (1.0 if but == "unscaled" else sigma)
        dp = dyh @ vh.swapaxes(-1, -2)
        dz = p * (dp - (p * dp).sum(-1, keepdims=True))
        scale = {"alpha lost": scale / alpha, "scale lost": 1.0}.get(but, scale)
        dq, dk, dv = merge(scale * dz @ kh), merge(scale * dz.swapaxes(-1, -2) @ qh), merge(p.swapaxes(-1, -2) @ dyh)
        return (dq, dv, dk) if but == "order" else (dq, dk, dv)

    return forward, backward


def gated_silu(but=""):
    def forward(x_in, x_gate, *, alpha):
        x, g = (x_gate, x_in) if but == "swapped" else (x_in, x_gate)
        a = 1.0 if but == "no alpha" else alpha
        z = np.vectorize(lambda t: 0.5 * (1 + erf(t / sqrt(2))))(a * g) if but == "gelu" else 1 / (1 + np.exp(-a * g))
        b = 1.0 if but == "sigma of 1" else alpha
        sigma = 1.0 if but == "no factor" else interpolate(1 / (1 + 1 / b**2), 1 / sqrt(2), 1 / 2)
        return x * g * z / sigma, (x, g, z, a, sigma)

    def backward(dy, saved):
        x, g, z, a, sigma = saved
        dy = dy if but == "unscaled" else dy / sigma
        inner = 1.0 if but == "alpha lost" else a
        slope = np.exp(-((a * g) ** 2) / 2) / sqrt(2 * np.pi) if but == "gelu" else z * (1 - z)
        dx, dg = dy * g * z, dy * x * (z + inner * g * slope)
        return (dg, dx) if but == "swapped" else (dx, dg)

    return forward, backward


def residual(but=""):
    def forward(x, w, *, branch, branches, alpha_res, alpha_res_attn_ratio):
        L, ratio = branches, alpha_res_attn_ratio
        af = alpha_res * sqrt(2 / (ratio**2 + 1)) * (sqrt(2) if but == "layers" else 1)
        aa = ratio * af
        k, l = branch // 2, branch + 1  # noqa: E741
        if but == "printed":
            tau = (aa / (1 + k * aa + k * af) if l % 2 else af / (1 + (k + 1) * aa + k * af)) / sqrt(L)
        else:
            aa, af = aa**2, af**2
            tau = aa / (L + k * aa + k * af) if l % 2 else af / (L + (k + 1) * aa + k * af)
        tau = {"std": tau**2, "root": sqrt(tau)}.get(but, tau)
        a, b = sqrt(tau / (tau + 1)), sqrt(1 / (tau + 1))
        if but == "swapped":
            a, b = b, a
        return a * x @ w.T + b * x, (x, w, a, b)

    def backward(dy, saved):
        x, w, a, b = saved
        D = x.shape[-1]
        at_end = a if but in ("undelayed", "both ends") else 1.0
        at_base = 1.0 if but in ("undelayed", "no end") else a
        branch = at_end * dy
        dw = branch.reshape(-1, D).T @ x.reshape(-1, D)
        return at_base * (branch @ w) + (1 if but == "b lost" else b) * dy, dw

    return forward, backward


def cross_entropy(but=""):
    def forward(logits, targets, *, alpha):
        V = logits.shape[-1]
        z = (1 if but == "no alpha" else alpha) * logits.reshape(-1, V)
        z = z - z.max(-1, keepdims=True)
        p = np.exp(z)
        p = p / p.sum(-1, keepdims=True)
        rows = np.arange(len(z))
        nll = -np.log(p[rows, targets.ravel()])
        loss = nll.sum() if but == "sum" else nll.mean() / (log(2) if but == "bits" else 1)
        return np.asarray(loss), (p, targets, logits.shape, alpha)

    def backward(dy, saved):
        p, targets, shape, alpha = saved
        b, V = p.shape
        d = p.copy()
        if but != "onehot":
            d[np.arange(b), targets.ravel()] -= 1
        factor = {
            "1/b": V / sqrt(V - 1) / b, "alpha": alpha * V / sqrt(V - 1), "no V": 1.0, "true": alpha / b,
        }.get(but, V / sqrt(V - 1))  # fmt: skip
        return (dy * factor * d).reshape(shape)

    return forward, backward


def adamw(but=""):
    def step(w, g, m, v, *, t, lr, decay, betas, eps):
        b1, b2 = betas[::-1] if but == "betas" else betas
        if but == "L2":
            g = g + decay * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        mh, vh = (m, v) if but == "no bias correction" else (m / (1 - b1**t), v / (1 - b2**t))
        step = mh / (np.sqrt(vh + eps) if but == "eps" else np.sqrt(vh) + eps)
        taken = {"times lr": lr * decay, "L2": 0.0}.get(but, decay)
        return w - taken * w - lr * step, m, v

    return step


def fp8_round(but=""):
    """Both overflows, by walking through the codes: nearest of all values, ties to the even code."""

    def rounded(x, *, format):
        dtype = ml_dtypes.float8_e4m3fn if format == "e4m3" else ml_dtypes.float8_e5m2
        codes = np.arange(128, dtype=np.uint8)
        values = codes.view(dtype).astype(np.float64)
        keep = np.isfinite(values)
        if but == "240" and format == "e4m3":
            keep &= values <= 240
        if but == "flush":
            keep &= (values == 0) | (values >= {"e4m3": 2.0**-6, "e5m2": 2.0**-14}[format])
        codes, values = codes[keep], values[keep]
        most, size = values[-1], np.abs(x).astype(np.float64)
        i = np.searchsorted(values, np.minimum(size, most)).clip(1, len(values) - 1)
        low, high = values[i - 1], values[i]
        middle = (low + high) / 2
        even = codes[i - 1] % 2 == 0
        up = (size > middle) | ((size == middle) & (~even | (but == "away")))
        if but == "truncate":
            up = size >= high
        near = np.where(np.minimum(size, most) == high, high, np.where(up, high, low))
        y = np.where(np.isnan(x), np.nan, near if but == "zero" else np.copysign(near, x))
        if but == "zero":
            y = np.where(y == 0, 0.0, np.copysign(y, x))
        step = most - values[-2]
        limit = most + step / 2  # the middle between max and what would come next: a tie, and max is even
        past = size > limit if format == "e4m3" else size >= limit
        plain = np.where(past, np.nan if format == "e4m3" else np.copysign(np.inf, x), y)
        saturating = plain if but == "overflow" else y
        nonsaturating = y if but == "saturates" else plain
        return saturating.astype(np.float32), nonsaturating.astype(np.float32)

    return rounded


def linear_fp8(but=""):
    def cast(x, name):
        if name == "none" or (but == "nothing cast"):
            return x
        dtype = ml_dtypes.float8_e4m3fn if name == "e4m3" else ml_dtypes.float8_e5m2
        most = float(ml_dtypes.finfo(dtype).max)
        return np.clip(x, -most, most).astype(dtype).astype(np.float32)

    def forward(x, w, *, formats):
        n = np.float32(w.shape[1] ** -0.5)
        wq = cast(w, formats["w"])
        if but == "before":
            return cast(x * n, formats["x"]) @ wq.T, (cast(x, formats["x"]), wq, formats)
        xq = cast(x, formats["x"])
        return xq @ wq.T * n, (xq, wq, formats)

    def backward(dy, saved):
        xq, wq, formats = saved
        dyq = dy if but == "dy not cast" else cast(dy, "e5m2" if but == "dy e5m2" else formats["dy"])
        return dyq @ wq * np.float32(wq.shape[1] ** -0.5), dyq.T @ xq * np.float32(len(xq) ** -0.5)

    return forward, backward


OPS = {
    "linear": linear, "readout": lambda but="": linear(but, readout=True), "embedding": embedding,
    "rms_norm": rms_norm, "rope": rope, "attention": attention, "gated_silu": gated_silu, "residual": residual,
    "cross_entropy": cross_entropy, "linear_fp8": linear_fp8,
}  # fmt: skip
FUNCTIONS = {"adamw": adamw, "fp8_round": fp8_round}


def candidate(op, but=""):
    """(forward, backward) of an op with a mistake, or (function, None)."""
    return OPS[op](but) if op in OPS else (FUNCTIONS[op](but), None)


MISTAKES = [  # op, mistake, words of the cause that has to come first
    ("linear", "dw transposed", "dw is transposed"),
    ("linear", "dw missing", "dw: the factor b^-1/2 is missing"),
    ("linear", "dw 1/b", "dw: the factor is 1/b, not b^-1/2"),
    ("linear", "dw sequences", "(number of sequences)^-1/2, not b^-1/2"),
    ("linear", "dw fan_in", "the true derivative: all gradients have the forward's factor"),
    ("linear", "dx fan_out", "dx: the factor is fan_out^-1/2, not fan_in^-1/2"),
    ("linear", "y fan_out", "y: the factor is fan_out^-1/2, not fan_in^-1/2"),
    ("linear", "y twice", "y: the factor is 1/fan_in, not fan_in^-1/2"),
    ("linear", "no factor", "no factor anywhere"),
    ("linear", "unscaled", "the derivative of the unscaled op"),
    ("linear", "derivative", "the true derivative"),
    ("linear", "sign", "dx: the sign is wrong"),
    ("linear", "last row", ""),  # no cause that is known, and none is made up
    ("readout", "y hidden", "y: the factor is fan_in^-1/2, not 1/fan_in"),
    ("readout", "dx fan_out", "dx: the factor is fan_out^-1/2, not fan_in^-1/2"),
    ("readout", "dx 1/fan_in", "dx: the factor is 1/fan_in, not fan_in^-1/2"),
    ("embedding", "overwrites", "overwritten, not added up"),
    ("embedding", "inverted", "dw: the factor is (V/b)^-1/2, not √(V/b)"),
    ("embedding", "missing", "dw: the factor √(V/b) is missing"),
    ("embedding", "V/b", "dw: the factor is (V/b), not √(V/b)"),
    ("rms_norm", "constant", "takes the root mean square for a constant"),
    ("rms_norm", "eps outside", "ε stands outside of the root"),
    ("rms_norm", "no eps", "ε is missing"),
    ("rms_norm", "layer norm", "as in LayerNorm"),
    ("rms_norm", "sum", "a sum of squares in place of their mean"),
    ("rope", "halves", "pairs are halves of a head"),
    ("rope", "on", "the backward turns on, not back"),
    ("rope", "other way", "it turns the other way"),
    ("rope", "from 1", "positions are counted from 1"),
    ("rope", "frequency", "base^(-i/K)"),
    ("attention", "sqrt K", "scores of α/√K, not α/K"),
    ("attention", "no alpha", "α is missing in the scores"),
    ("attention", "no mask", "no causal mask"),
    ("attention", "input length", "σ of the input's length"),
    ("attention", "sigma of 1", "σ of α = 1"),
    ("attention", "alpha lost", "dq and dk lack the α of the scores' scale"),
    ("attention", "scale lost", "dq and dk lack the scores' scale α/K"),
    ("attention", "interleaved", "a head takes every H-th element"),
    ("attention", "unscaled", "the derivative of the unscaled op"),
    ("attention", "no factor", "no factor anywhere"),
    ("attention", "order", "dk and dv are swapped"),
    ("gated_silu", "swapped", "x_in and x_gate are swapped"),
    ("gated_silu", "alpha lost", "α is missing in the sigmoid's derivative"),
    ("gated_silu", "no alpha", "α is missing"),
    ("gated_silu", "sigma of 1", "σ of α = 1"),
    ("gated_silu", "gelu", "a GELU"),
    ("gated_silu", "unscaled", "the derivative of the unscaled op"),
    ("residual", "undelayed", "a on the dy of the branch, not at its base"),
    ("residual", "both ends", "a both on the dy of the branch and at its base"),
    ("residual", "no end", "a nowhere in the backward"),
    ("residual", "printed", "eq. (22) prints"),
    ("residual", "std", "τ taken for a ratio of standard deviations"),
    ("residual", "root", "√τ taken for τ"),
    ("residual", "layers", "L counts layers, not branches"),
    ("residual", "swapped", "a and b are swapped"),
    ("residual", "b lost", "b is missing in the backward"),
    ("cross_entropy", "1/b", "1/b is still in the gradient"),
    ("cross_entropy", "alpha", "α is in the gradient"),
    ("cross_entropy", "no V", "V/√(V-1) is missing"),
    ("cross_entropy", "true", "the true derivative of the mean loss"),
    ("cross_entropy", "sum", "a sum over tokens"),
    ("cross_entropy", "bits", "in bits"),
    ("cross_entropy", "onehot", "lack the onehot"),
    ("cross_entropy", "no alpha", "α is missing"),
    ("adamw", "times lr", "the decay is multiplied by the learning rate"),
    ("adamw", "L2", "part of the gradient"),
    ("adamw", "eps", "ε stands under the root"),
    ("adamw", "no bias correction", "no bias correction"),
    ("adamw", "betas", "β1 and β2 are swapped"),
    ("fp8_round", "away", "ties go away from zero"),
    ("fp8_round", "240", "max 240 instead of 448"),
    ("fp8_round", "flush", "subnormals are flushed"),
    ("fp8_round", "truncate", "rounds toward zero"),
    ("fp8_round", "zero", "the sign of zero is lost"),
    ("fp8_round", "overflow", "where it should saturate"),
    ("fp8_round", "saturates", "where a plain cast has NaN or infinity"),
    ("linear_fp8", "before", "the factor is on x before its cast"),
    ("linear_fp8", "dy not cast", "dy is not cast"),
    ("linear_fp8", "dy e5m2", "dy is cast to E5M2"),
    ("linear_fp8", "nothing cast", "nothing is cast"),
]
