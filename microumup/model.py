"""The Llama of App. B and D.1.2, in the order of the paper's Table 5.

Pre-norm, RMSNorm without a gain, RoPE, SwiGLU with F = 11/4 D, no biases. Embedding and head are two matrices: one
could not be an input weight and an output weight at once, whose A, √B and C differ (Table 1). What a scheme changes are
numbers: the std and multiplier of each weight, the factors of each op, a and b of each branch. They come from
`parametrization.py` and `multipliers.py`; no line here asks which scheme it is.

Legend: B batch, T sequence, D width, H heads, K head dim, F FFN dim, V vocabulary, L residual branches (2 a layer).
"""

from dataclasses import dataclass, field, fields
from functools import lru_cache
from math import isfinite
from typing import Any
from zlib import crc32

import numpy as np

from microumup import ops
from microumup.backend import Array, xp_of
from microumup.engine import Tensor
from microumup.fp8 import parse_recipe
from microumup.ops import ResidualScale
from microumup.parametrization import SCHEMES, Scheme, Shape, Weight, weight, without_embedding_lr_rule

Params = dict[str, Tensor] | dict[str, Array]  # arrays for a forward pass that keeps no tape


def option(default: object, help: str, *, common: bool = False) -> Any:
    """A field that is also a command-line option: `help` says what it is and in which unit.

    Options that are not `common` are explained by `--help-all` alone.
    """
    return field(default=default, metadata={"help": help, "common": common})


RETIRED = {"tied_embeddings": False}  # options that are no more, with the value that says the same as their absence


def without_retired(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a config that an older version may have written, without those that are no more.

    Raises ValueError where one of these has another value than the only one that ever ran.
    """
    for name, only in RETIRED.items():
        if name in options and options[name] != only:
            said = f"a run with {options[name]} cannot be loaded"
            raise ValueError(f"{option_name(name)}: {said}; the option is gone, and was only ever {only}")
    return {name: options[name] for name in options if name not in RETIRED}


@dataclass(frozen=True)
class ModelConfig:
    """The network. Everything that fixes it; raises ValueError, naming the option, for what no network can have."""

    scheme: str = option("umup", f"parametrization, a row of Tables 1-3: {', '.join(SCHEMES)}", common=True)
    width: int = option(64, "D, size of the residual stream; a multiple of the head dim", common=True)
    layers: int = option(2, "layers, of attention and FFN branch each", common=True)
    head_dim: int = option(16, "K, size of an attention head; even")
    seq_len: int = option(
        64, "s, tokens in a training sequence; fixed with the model, attention's factor depends on it"
    )
    vocab_size: int = option(256, "V; 256 is raw bytes, more trains a byte-level BPE tokenizer of that size")
    alpha_res: float = option(1.0, "u-µP: std of all branches' sum over the embedding's, at init (eq. 24)")
    alpha_res_attn_ratio: float = option(1.0, "u-µP: std of the attention branches over the FFN branches' (eq. 23)")
    alpha_ffn_act: float = option(1.0, "u-µP: multiplier in gated_silu's sigmoid (eq. 26)")
    alpha_attn_softmax: float = option(1.0, "multiplier before attention's softmax (eq. 25)")
    alpha_loss_softmax: float = option(1.0, "multiplier of the logits in the loss (eq. 27)")
    embedding_lr_rule: bool = option(True, "u-µP: scale the embedding's learning rate by 1/√width (App. A.3)")
    eta_emb: float = option(1.0, "η̂_emb, factor of the embedding's learning rate")
    sigma_init: float = option(1.0, "µP: factor of every initial std")
    alpha_emb: float = option(1.0, "µP: multiplier of the embedding's output")
    base_width: int = option(256, "µP: the width at which µP is the standard parametrization")
    base_layers: int = option(4, "µP: the number of layers at which it is")
    fp8: str = option(
        "none", "casts in every linear: none, fp8, fp8-iclr, then ,SITE.TENSOR=FORMAT to override", common=True
    )
    norm_eps: float = option(1e-6, "ε of RMSNorm")
    rope_base: float = option(10_000.0, "base of RoPE's frequencies")

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"--scheme: {self.scheme!r} is unknown; choose from {', '.join(SCHEMES)}")
        smallest = {"vocab_size": 2, "seq_len": 2, "head_dim": 2, "width": 4, "base_width": 4}
        for f in fields(ModelConfig):
            value = getattr(self, f.name)
            if f.type is int:
                check_least(self, **{f.name: smallest.get(f.name, 1)})
            if f.type is float and not (isfinite(value) and (value > 0 or (f.name == "norm_eps" and value == 0))):
                raise ValueError(f"{option_name(f.name)}: {value} is not a positive finite number")
        if self.head_dim % 2:
            raise ValueError(f"--head-dim: {self.head_dim} is odd; RoPE turns pairs of elements, use an even number")
        if self.width % self.head_dim:
            raise ValueError(f"--width: {self.width} is not a multiple of --head-dim {self.head_dim}")
        for name in ("width", "base_width"):
            if getattr(self, name) % 4:
                raise ValueError(
                    f"{option_name(name)}: {getattr(self, name)} is not a multiple of 4, and the FFN is 11/4 D"
                )
        known = SCHEMES[self.scheme].hyperparameters
        for name in sorted({hp for scheme in SCHEMES.values() for hp in scheme.hyperparameters} - set(known)):
            if getattr(self, name) != getattr(ModelConfig, name):
                has = ", ".join(map(option_name, known)) or "none but --lr and --eta-emb"
                raise ValueError(f"{option_name(name)}: not a hyperparameter of --scheme {self.scheme}; it has {has}")
        parse_recipe(self.fp8)

    @property
    def ffn_dim(self) -> int:
        return 11 * self.width // 4

    @property
    def branches(self) -> int:
        return 2 * self.layers

    @property
    def rules(self) -> Scheme:
        scheme = SCHEMES[self.scheme]
        return scheme if self.embedding_lr_rule else without_embedding_lr_rule(scheme)


def option_name(field: str) -> str:
    """`alpha_res` -> `--alpha-res`."""
    return "--" + field.replace("_", "-")


def check_least(options: object, **least: float) -> None:
    """Raise ValueError, naming the option, when an attribute of `options` is below its least value, or is NaN."""
    for name, bound in least.items():
        value = getattr(options, name)
        if not value >= bound:
            raise ValueError(f"{option_name(name)}: {value} is too small; the least is {bound}")


@lru_cache(maxsize=64)
def weights(config: ModelConfig) -> dict[str, Weight]:
    """Every weight of the model by name, with its scheme's rules worked out. An implementer's checklist."""
    c, D, F, V = config, config.width, config.ffn_dim, config.vocab_size

    def row(type: str, fan_in: int, fan_out: int, *, in_branch: bool) -> Weight:
        base_fan_in = fan_in if type == "input" else fan_in * c.base_width / D
        hps = {"sigma_init": c.sigma_init, "alpha_emb": c.alpha_emb, "eta_emb": c.eta_emb}
        shape = Shape(fan_in, fan_out, base_fan_in, c.branches, 2 * c.base_layers, in_branch, **hps)
        return weight(c.rules, type, shape)

    rows = {"embedding": row("input", V, D, in_branch=False)}
    for layer in range(c.layers):
        for name in ("q", "k", "v", "o"):
            rows[f"layer{layer}.{name}"] = row("hidden", D, D, in_branch=True)
        for name in ("gate", "up"):
            rows[f"layer{layer}.{name}"] = row("hidden", D, F, in_branch=True)
        rows[f"layer{layer}.down"] = row("hidden", F, D, in_branch=True)
    rows["head"] = row("output", D, V, in_branch=False)
    return rows


def branches(config: ModelConfig) -> list[ResidualScale]:
    """The residual factors of the L branches in order: attention and FFN of layer 0, of layer 1, …"""
    c = config
    multipliers = c.rules.residual.multipliers(c.branches, 2 * c.base_layers, c.alpha_res, c.alpha_res_attn_ratio)
    return [c.rules.ops.residual(a, b) for a, b in multipliers]


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


def linear_settings(config: ModelConfig, batch_tokens: int) -> dict[str, dict[str, Any]]:
    """What every linear is called with, by weight: its factors, and the formats it casts to."""
    factors, recipe = config.rules.ops, parse_recipe(config.fp8)
    return {
        name: {"scale": factors.linear(w.A, w.A_backward, batch_tokens), "fp8": recipe[name.rpartition(".")[2]]}
        for name, w in weights(config).items()
        if name != "embedding"
    }


def trunk(
    params: Params, tokens: Array, config: ModelConfig, cache: Cache | None = None, *, batch_tokens: int = 0,
    ops: Any = ops,
) -> Tensor:  # fmt: skip
    """The readout's input (B, T, D) at each of the tokens (B, T).

    `ops` is the module whose ops to use: `microumup.ops` to read, `microumup.fused` for speed. `batch_tokens` is b of
    Table 4, if the tokens are but a part of a batch.
    """
    if tokens.ndim != 2:
        raise ValueError(f"forward: tokens have shape {tokens.shape}; need (B, T)")
    c, factors, p = config, config.rules.ops, params
    batch_tokens = batch_tokens or tokens.size
    linears = linear_settings(c, batch_tokens)
    start = cache.length if cache else 0

    def project(x: Tensor, name: str) -> Tensor:
        return ops.linear(x, p[name], **linears[name])

    attention_scale = factors.attention(c.alpha_attn_softmax, c.head_dim, c.seq_len)
    score_scale = c.alpha_attn_softmax * c.rules.score_scale(c.head_dim)
    embedding_scale = factors.embedding(weights(c)["embedding"].A, c.vocab_size, batch_tokens)
    scales = branches(c)

    x = ops.embedding(tokens, p["embedding"], scale=embedding_scale)
    for layer in range(c.layers):
        name, attn, ffn = f"layer{layer}", scales[2 * layer], scales[2 * layer + 1]

        h = ops.rms_norm(ops.residual_split(x, scale=attn), eps=c.norm_eps)  # (B, T, D)
        q = ops.rope(project(h, f"{name}.q"), head_dim=c.head_dim, base=c.rope_base, start=start)
        k = ops.rope(project(h, f"{name}.k"), head_dim=c.head_dim, base=c.rope_base, start=start)
        v = project(h, f"{name}.v")
        keys, values = cache.extend(layer, k, v) if cache else (k, v)
        h = ops.attention(q, keys, values, head_dim=c.head_dim, score_scale=score_scale, scale=attention_scale)
        x = ops.residual_add(project(h, f"{name}.o"), x, scale=attn)

        h = ops.rms_norm(ops.residual_split(x, scale=ffn), eps=c.norm_eps)
        up, gate = project(h, f"{name}.up"), project(h, f"{name}.gate")  # (B, T, F)
        h = ops.gated_silu(up, gate, alpha=c.alpha_ffn_act, scale=factors.gated_silu(c.alpha_ffn_act))
        x = ops.residual_add(project(h, f"{name}.down"), x, scale=ffn)

    return ops.rms_norm(x, eps=c.norm_eps)


def forward(params: Params, tokens: Array, config: ModelConfig, cache: Cache | None = None) -> Tensor:
    """The logits (B, T, V) after each of the tokens (B, T); α_loss-softmax is not in them, it belongs to the loss.

    With Tensors as params the result has a tape for `backpropagate`; with arrays it is a constant. With a `cache` the
    tokens continue those it holds.
    """
    x = trunk(params, tokens, config, cache)
    return ops.linear(x, params["head"], **linear_settings(config, tokens.size)["head"])


def loss(
    params: Params, tokens: Array, targets: Array, config: ModelConfig, *, batch_tokens: int = 0, weight: float = 1.0,
    ops: Any = ops,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of the targets (B, T), in nats per token: a scalar. `batch_tokens`, `ops` as in `trunk`.

    What it is differentiated as is `weight` times that.
    """
    batch_tokens = batch_tokens or tokens.size
    x = trunk(params, tokens, config, batch_tokens=batch_tokens, ops=ops)
    scale = config.rules.ops.cross_entropy(config.alpha_loss_softmax, config.vocab_size, batch_tokens)
    return ops.linear_cross_entropy(
        x, params["head"], targets, alpha=config.alpha_loss_softmax,
        loss_scale=scale._replace(dx=weight * scale.dx),
        **linear_settings(config, batch_tokens)["head"],
    )  # fmt: skip


def gradient_constants(config: ModelConfig, batch_tokens: int) -> dict[str, float]:
    """c_W of every weight: what `backpropagate` puts out over the true gradient of the mean loss (App. A.4).

    The product of backward over forward factors along the one way from the loss to W. Inside a branch dy has not yet
    met a (the delay of App. B), which divides by it; behind the branch it has. Adam does not see these constants but
    through its ε; SGD divides by them.
    """
    c, factors, table = config, config.rules.ops, weights(config)
    loss_scale = factors.cross_entropy(c.alpha_loss_softmax, c.vocab_size, batch_tokens)

    def of_weight(name: str) -> float:
        scale = factors.linear(table[name].A, table[name].A_backward, batch_tokens)
        return scale.dw / scale.y

    head = factors.linear(table["head"].A, table["head"].A_backward, batch_tokens)
    at_logits = loss_scale.dx / loss_scale.y
    in_trunk = at_logits * head.dx / head.y
    constants = {"head": at_logits * of_weight("head")}
    for name in table:
        if name.startswith("layer"):
            layer, _, kind = name.removeprefix("layer").partition(".")
            branch = branches(c)[2 * int(layer) + (kind in ("gate", "up", "down"))]
            constants[name] = in_trunk * branch.dbranch / branch.a * of_weight(name)
    embed = factors.embedding(table["embedding"].A, c.vocab_size, batch_tokens)
    constants["embedding"] = in_trunk * embed.dw / embed.y
    return {name: constants[name] for name in table}
