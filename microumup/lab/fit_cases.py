"""Worked cases of `fit_scale`: ops that the paper has no rule for, and two that it has.

Legend: B batch, T sequence, H heads, K head dim, G query heads that share a key and value head.
"""

from math import erf, sqrt
from typing import Any

import numpy as np

from microumup import ops
from microumup.backend import Array
from microumup.engine import Tensor, primitive
from microumup.lab.fit_scale import Subject
from microumup.ops import Output, Saved, causal_mask, split_heads

_erf = np.vectorize(erf, otypes=[np.float64])
HEADS, BATCH = 4, 4


def gelu(x: Array, *, alpha: float = 1.0) -> Array:
    """x Φ(α x). At α = 0 half of x, far above 1 a ReLU."""
    return np.asarray(x * 0.5 * (1 + _erf(alpha / sqrt(2) * x)))


def relu_squared(x: Array) -> Array:
    """max(x, 0)². Homogeneous: an α before it is a factor behind it, and so it has none."""
    return np.maximum(x, 0) ** 2


def softcapped_attention_forward(
    q: Array, k: Array, v: Array, *, alpha: float, seq_len: int, head_dim: int, cap: float = 2.0
) -> Output:
    """Causal attention with scores cap · tanh(α/K q kᵀ / cap). All (B, T, D)."""
    qh, kh, vh = (split_heads(x, head_dim) for x in (q, k, v))
    tanh = np.tanh(qh @ kh.swapaxes(-1, -2) * (alpha / head_dim / cap))  # (B, H, T, T)
    p = np.exp(cap * tanh + causal_mask(np, seq_len, seq_len, q.dtype))
    p /= p.sum(axis=-1, keepdims=True)
    return _merged(p @ vh), (qh, kh, vh, p, tanh, alpha / head_dim)


def softcapped_attention_backward(dy: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """dq, dk, dv."""
    qh, kh, vh, p, tanh, score_scale = saved
    dyh = split_heads(dy, qh.shape[-1])
    # y = p v, p = softmax(cap tanh(z / cap)), z = score_scale q kᵀ: the slope of cap tanh(z / cap) is 1 - tanh²
    dp = dyh @ vh.swapaxes(-1, -2)
    dz = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * (1 - tanh * tanh) * score_scale
    return _merged(dz @ kh), _merged(dz.swapaxes(-1, -2) @ qh), _merged(p.swapaxes(-1, -2) @ dyh)


def grouped_query_attention_forward(
    q: Array, k: Array, v: Array, *, alpha: float, seq_len: int, head_dim: int, group: int
) -> Output:
    """Causal attention in which `group` query heads share a head of k and v. q (B, T, D), k and v (B, T, D/group)."""
    wide = (_repeated(x, head_dim, group) for x in (k, v))
    y, saved = ops.attention_forward(q, *wide, head_dim=head_dim, score_scale=alpha / head_dim)
    return y, (saved, head_dim, group)


def grouped_query_attention_backward(dy: Array, saved: Saved) -> tuple[Array, ...]:
    """dq, dk, dv; a shared head gets the sum over its group."""
    of_attention, head_dim, group = saved
    dq, *wide = ops.attention_backward(dy, of_attention)
    return dq, *(d.reshape(*d.shape[:2], -1, group, head_dim).sum(axis=3).reshape(*d.shape[:2], -1) for d in wide)


def _repeated(x: Array, head_dim: int, group: int) -> Array:
    return x.reshape(*x.shape[:2], -1, head_dim).repeat(group, axis=2).reshape(*x.shape[:2], -1)


def _merged(x: Array) -> Array:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _qkv(rng: Any, *, seq_len: int, head_dim: int, group: int = 1) -> list[Array]:
    widths = (HEADS * head_dim, HEADS // group * head_dim, HEADS // group * head_dim)
    return [rng.standard_normal((BATCH, seq_len, width)) for width in widths]


def _gated(x_in: Tensor, x_gate: Tensor, *, alpha: float) -> Tensor:
    return ops.gated_silu(x_in, x_gate, alpha=alpha)


def _attention(q: Tensor, k: Tensor, v: Tensor, *, alpha: float, seq_len: int, head_dim: int) -> Tensor:
    return ops.attention(q, k, v, head_dim=head_dim, score_scale=alpha / head_dim)


SIZES = {"seq_len": (32, 96), "head_dim": (16, 64)}
gated_silu = Subject(_gated, lambda rng: [rng.standard_normal((64, 2048)) for _ in range(2)], {})
attention = Subject(_attention, _qkv, SIZES)
softcapped_attention = Subject(primitive(softcapped_attention_forward, softcapped_attention_backward), _qkv, SIZES)
grouped_query_attention = Subject(
    primitive(grouped_query_attention_forward, grouped_query_attention_backward), _qkv,
    {"seq_len": (32, 96), "head_dim": (16, 64), "group": (1, 4)},
)  # fmt: skip
