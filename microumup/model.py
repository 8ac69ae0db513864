"""The Llama of App. B and D.1.2, in the order of the paper's Table 5.

Pre-norm, RMSNorm without a gain, RoPE, SwiGLU with F = 11/4 D, no biases. Embedding and readout are two matrices: one
cannot be an input weight and an output weight, whose A, √B and C differ (Table 1). What a scheme changes are numbers,
and they are in the Plan; no line here works one out, or asks which scheme it is.

Legend: B batch, T sequence, D width, F FFN dim, V vocabulary, S keys (T, or more with a cache), N = B T tokens.
"""

from zlib import crc32

import numpy as np

from microumup import ops
from microumup.backend import Array, xp_of
from microumup.config import ModelConfig
from microumup.engine import Tensor
from microumup.plan import Plan, weights

Params = dict[str, Tensor] | dict[str, Array]  # arrays for a forward pass that keeps no tape

LOGITS = 1 << 23  # elements of logits that `evaluate` holds at a time, 32 MiB


def init_params(config: ModelConfig, seed: int = 0, dtype: type = np.float32) -> dict[str, Array]:
    """w(0) ~ N(0, B) for every weight. The draw depends on the seed and the weight's name alone: not on the scheme, not
    on the other weights, so that schemes can be compared from the same start."""
    params: dict[str, Array] = {}
    for name, w in weights(config).items():
        draw = np.random.default_rng((seed, crc32(name.encode()))).standard_normal(w.shape)
        params[name] = (w.init_std * draw).astype(dtype)
    return params


class Cache:
    """Keys and values of the tokens seen so far, layer by layer; generation continues from them."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Array, Array]] = {}

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1] if self.layers else 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Array, Array]:
        """The keys and values (B, S, D) of `layer` with those of the new tokens behind them."""
        if layer in self.layers:
            (old_k, old_v), xp = self.layers[layer], xp_of(k.data)
            self.layers[layer] = xp.concatenate((old_k, k.data), axis=1), xp.concatenate((old_v, v.data), axis=1)
        else:
            self.layers[layer] = k.data, v.data
        return self.layers[layer]


def trunk(params: Params, tokens: Array, plan: Plan, cache: Cache | None = None) -> Tensor:
    """The readout's input (B, T, D) at each of the tokens (B, T). With a `cache` they continue those it holds."""
    if tokens.ndim != 2:
        raise ValueError(f"forward: tokens have shape {tokens.shape}; need (B, T)")
    c, start = plan.config, cache.length if cache else 0
    turned = {"head_dim": c.head_dim, "base": c.rope_base, "start": start}
    softmax = {"head_dim": c.head_dim, "score_scale": plan.score_scale, "scale": plan.attention}

    def project(x: Tensor, name: str) -> Tensor:
        return ops.linear(x, params[name], **plan.linears[name]._asdict())

    x = ops.embedding(tokens, params["embedding"], scale=plan.embedding)  # (B, T, D)
    for layer in range(c.layers):
        name, (attn, ffn) = f"layer{layer}", plan.branches[2 * layer : 2 * layer + 2]

        h = ops.rms_norm(ops.residual_split(x, scale=attn), eps=c.norm_eps)  # (B, T, D)
        q = ops.rope(project(h, f"{name}.q"), **turned)
        k = ops.rope(project(h, f"{name}.k"), **turned)
        v = project(h, f"{name}.v")
        keys, values = cache.extend(layer, k, v) if cache else (k, v)  # (B, S, D)
        h = ops.attention(q, keys, values, **softmax)  # (B, T, D)
        x = ops.residual_add(project(h, f"{name}.o"), x, scale=attn)

        h = ops.rms_norm(ops.residual_split(x, scale=ffn), eps=c.norm_eps)
        up, gate = project(h, f"{name}.up"), project(h, f"{name}.gate")  # (B, T, F)
        h = ops.gated_silu(up, gate, alpha=c.alpha_ffn_act, scale=plan.gated_silu)
        x = ops.residual_add(project(h, f"{name}.down"), x, scale=ffn)

    return ops.rms_norm(x, eps=c.norm_eps)


def forward(params: Params, tokens: Array, plan: Plan, cache: Cache | None = None) -> Tensor:
    """The logits (B, T, V) after each of the tokens (B, T); α_loss-softmax is not in them, it belongs to the loss.

    With Tensors as params the result has a tape for `backpropagate`; with arrays it is a constant.
    """
    return ops.linear(trunk(params, tokens, plan, cache), params["head"], **plan.linears["head"]._asdict())


def loss(params: Params, tokens: Array, targets: Array, plan: Plan) -> Tensor:
    """Mean cross-entropy of the targets (B, T), in nats per token: a scalar."""
    return _readout_loss(params, trunk(params, tokens, plan), targets, plan)


def evaluate(params: dict[str, Array], tokens: Array, targets: Array, plan: Plan) -> float:
    """The value of `loss`, forward only, a few tokens of the head at a time: all (N, V) logits never exist."""
    x, total = trunk(params, tokens, plan).data, 0.0
    x, targets = x.reshape(-1, x.shape[-1]), targets.ravel()  # (N, D), (N,)
    rows = max(1, LOGITS // plan.config.vocab_size)
    for i in range(0, len(x), rows):
        part = slice(i, i + rows)
        total += float(_readout_loss(params, x[part], targets[part], plan).data) * len(targets[part])
    return total / len(x)


def _readout_loss(params: Params, x: Tensor | Array, targets: Array, plan: Plan) -> Tensor:
    settings = {"alpha": plan.config.alpha_loss_softmax, "loss_scale": plan.loss, **plan.linears["head"]._asdict()}
    return ops.linear_cross_entropy(x, params["head"], targets, **settings)
