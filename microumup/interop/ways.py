"""Other ways to do an op, a Plan or a model: the mistakes that people make, each run on the inputs of a case.

`causes.py` tries them on what a candidate put out. WAYS has them by op: words, and a function that makes of a Try the
outputs that the case would have if it were done so, or some of them. Those of FP8 are in `fp8_ways.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from math import erf, log, sqrt
from typing import Any
from unittest.mock import patch

import numpy as np

from microumup import ops
from microumup.backend import Array
from microumup.config import ModelConfig
from microumup.engine import using
from microumup.interop.cases import PAIRS, Arrays, Case, Settings, run, run_pair
from microumup.lab.mistakes import ZOO, eq_22_as_printed, planted
from microumup.multipliers import UnitScaled, residual_multipliers, residual_taus
from microumup.parametrization import SCHEMES


class Try:
    """A case to be done otherwise."""

    def __init__(self, case: Case) -> None:
        self.op, self.case, self.s, self.i = case.op, case, case.settings, case.inputs
        self.scale: dict[str, float] = self.s.get("scale", {})

    @cached_property
    def right(self) -> Arrays:
        return run(self.op, self.i, self.s)

    def again(self, inputs: Arrays | None = None, scale: dict[str, float] | None = None, **settings: Any) -> Arrays:
        """All outputs, with these inputs, factors and settings changed."""
        factors = {"scale": self.scale | scale} if scale else {}
        return run(self.op, self.i | (inputs or {}), self.s | settings | factors)

    def backward(self, **settings: Any) -> Arrays:
        """The right y, and all gradients with these settings changed."""
        return self.again(**settings) | {"y": self.right["y"]}

    def pair(self, forward: Any = None, backward: Any = None) -> Arrays:
        """All outputs of another forward, or backward."""
        own = PAIRS[self.op]
        return run_pair(forward or own[0], backward or own[1], self.i, self.s)

    def times(self, factor: float, *outputs: str) -> Arrays:
        """These outputs times a factor, the others as they should be."""
        return self.right | {name: factor * self.right[name] for name in outputs}


Way = Callable[[Try], Arrays]
Ways = tuple[tuple[str, Way], ...]


# ---------------------------------------------------------------------------------------------------------------------
# Formulas that are no change of a setting


def overwriting(t: Try) -> Arrays:
    """An embedding's gradient in which a token that occurs twice counts once."""
    dw = np.zeros_like(t.right["dw"])
    dw[t.i["tokens"]] = t.scale["dw"] * t.i["dy"]
    return t.right | {"dw": dw}


def rms_norm_by(root: Callable[[Array, float, int], Array], *, center: bool = False) -> Way:
    """y = x over another root of (mean square, ε, D); the gradient by differences along each element."""

    def way(t: Try) -> Arrays:
        x, eps, h = t.i["x"].astype(np.float64), t.s["eps"], 1e-5

        def f(x: Array) -> Array:
            x = x - x.mean(-1, keepdims=True) if center else x
            return x / root(np.mean(x * x, axis=-1, keepdims=True), eps, x.shape[-1])

        dx = np.empty_like(x)
        for i in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[i] = h
            dx[i] = ((f(x + step) - f(x - step)) * t.i["dy"]).sum() / (2 * h)
        return {"y": f(x), "dx": dx}

    return way


def reordered(x: Array, order: Array) -> Array:
    """Every group of len(order) neighbours in another order."""
    return np.ascontiguousarray(x.reshape(*x.shape[:-1], -1, len(order))[..., order]).reshape(x.shape)


def in_order(order: Callable[[Try], Array]) -> Way:
    """The case with elements in another order, and its outputs put back."""

    def way(t: Try) -> Arrays:
        index = order(t)
        found = t.again({name: reordered(a, index) for name, a in t.i.items()})
        return {name: reordered(a, np.argsort(index)) for name, a in found.items()}

    return way


def by_halves(head_dim: int) -> Array:
    """Indices that put elements half a head apart beside each other."""
    return np.arange(head_dim).reshape(2, -1).T.ravel()


def turned_back(x: Array, *, head_dim: int, base: float, start: int) -> tuple[Array, Array]:
    """RoPE's forward that turns the other way."""
    _, turn = ops.rope_forward(x, head_dim=head_dim, base=base, start=start)
    return ops.rope_backward(x, turn)[0], turn.conj()


def unmasked(t: Try) -> Arrays:
    """Attention in which every query sees every key."""
    with patch.object(ops, "causal_mask", lambda xp, T, S, dtype: xp.zeros((T, S), dtype)):
        return t.again()


def first_positions(t: Try) -> Arrays:
    """Queries that are the first of the positions, not the last."""
    T = t.i["q"].shape[1]
    short = t.again({n: t.i[n][:, :T] for n in "kv"})
    return short | {f"d{n}": np.concatenate((short[f"d{n}"], 0 * t.i[n][:, T:]), 1) for n in "kv"}


def attention_sigma(t: Try, alpha: float, length: int) -> Arrays:
    """Attention with the factor of another α or length."""
    return t.again(scale=UnitScaled.attention(alpha, t.s["head_dim"], length)._replace(dw=1.0)._asdict())


def gated_gelu(t: Try) -> Arrays:
    """x_in · x_gate · Φ(α x_gate)."""
    x, g, dy, a = *(t.i[n].astype(np.float64) for n in ("x_in", "x_gate", "dy")), t.s["alpha"]
    phi = 0.5 * (1 + np.vectorize(erf)(a * g / sqrt(2)))
    slope = phi + a * g * np.exp(-((a * g) ** 2) / 2) / sqrt(2 * np.pi)
    y, d = t.scale["y"], t.scale["dx"] * dy
    return {"y": y * x * g * phi, "dx_in": d * g * phi, "dx_gate": d * x * slope}


def silu_alpha_lost(t: Try) -> Arrays:
    """The sigmoid's derivative without the α that the chain rule brings."""
    x, g, dy, a = *(t.i[n] for n in ("x_in", "x_gate", "dy")), t.s["alpha"]
    s = 1 / (1 + np.exp(-a * g))
    return t.right | {"dx_gate": t.scale["dx"] * dy * x * (s + g * s * (1 - s))}


def branch(t: Try, multipliers: list[tuple[float, float]]) -> Arrays:
    """The residual layer with the (a, b) that another rule has for it."""
    return t.again(scale=UnitScaled.residual(*multipliers[t.s["branch"]])._asdict())


def taus(s: Settings, alpha_res: float, ratio: float, power: float = 1.0) -> list[tuple[float, float]]:
    """(a, b) of all branches, of τ to a power."""
    return residual_multipliers([tau**power for tau in residual_taus(s["branches"], alpha_res * s["alpha_res"], ratio)])


def no_onehot(t: Try) -> Arrays:
    """dlogits of p alone."""
    p = np.exp(t.s["alpha"] * (t.i["logits"] - t.i["logits"].max(-1, keepdims=True)))
    factor = t.scale["dx"] * t.s["alpha"] / t.s["batch_tokens"]
    return t.right | {"dlogits": factor * p / p.sum(-1, keepdims=True)}


def update(step: Callable[..., Array]) -> Way:
    """AdamW with another last line: step(w, m, v, m̂, v̂, lr, decay, ε)."""

    def way(t: Try) -> Arrays:
        m, v, (beta1, beta2) = t.right["new_m"], t.right["new_v"], t.s["betas"]
        m_hat, v_hat = m / (1 - beta1 ** t.s["t"]), v / (1 - beta2 ** t.s["t"])
        new = step(t.i["w"], m, v, m_hat, v_hat, t.s["lr"], t.s["decay"], t.s["eps"])
        return t.right | {"new_w": new}

    return way


# ---------------------------------------------------------------------------------------------------------------------
# The ways

FACTORS_ASTRAY: Ways = (
    ("no factor anywhere, forward or backward", lambda t: t.again(scale={"y": 1.0, "dx": 1.0, "dw": 1.0})),
    ("the derivative of the unscaled op: no gradient has its factor", lambda t: t.again(scale={"dx": 1.0, "dw": 1.0})),
    ("the true derivative: all gradients have the forward's factor",
     lambda t: t.again(scale={"dx": t.scale["y"], "dw": t.scale["y"]})),
    ("the factor is missing forward, though not backward", lambda t: t.again(scale={"y": 1.0})),
)  # fmt: skip

WAYS: dict[str, Ways] = {
    "embedding": (("rows of tokens that occur twice are overwritten, not added up", overwriting),),
    "rms_norm": (
        ("the gradient takes the root mean square for a constant",
         lambda t: t.pair(backward=lambda dy, saved: (dy * saved[1],))),
        ("ε stands outside of the root", rms_norm_by(lambda square, eps, D: np.sqrt(square) + eps)),
        ("ε is missing", lambda t: t.again(eps=0.0)),
        ("the mean is taken off, as in LayerNorm",
         rms_norm_by(lambda square, eps, D: np.sqrt(square + eps), center=True)),
        ("a sum of squares in place of their mean", rms_norm_by(lambda square, eps, D: np.sqrt(D * square + eps))),
    ),
    "rope": (
        ("pairs are halves of a head (i, i + K/2), not neighbours (2i, 2i + 1)",
         in_order(lambda t: by_halves(t.s["head_dim"]))),
        ("the backward turns on, not back",
         lambda t: t.pair(backward=lambda dy, turn: ops.rope_backward(dy, turn.conj()))),
        ("it turns the other way", lambda t: t.pair(turned_back)),
        ("positions are counted from 1", lambda t: t.again(start=t.s["start"] + 1)),
        ("the start is ignored", lambda t: t.again(start=0)),
        ("frequencies are base^(-i/K), not base^(-2i/K)", lambda t: t.again(base=t.s["base"] ** 0.5)),
        ("angles run over the whole width, not anew in every head", lambda t: t.again(head_dim=t.i["x"].shape[-1])),
    ),
    "attention": (
        ("σ of the input's length, not of the training length s",
         lambda t: attention_sigma(t, t.s["alpha"], t.i["k"].shape[1])),
        ("scores of α/√K, not α/K", lambda t: t.again(score_scale=t.s["score_scale"] * t.s["head_dim"] ** 0.5)),
        ("scores without their scale α/K", lambda t: t.again(score_scale=1.0)),
        ("α is missing in the scores", lambda t: t.again(score_scale=t.s["score_scale"] / t.s["alpha"])),
        ("α is missing in the backward", lambda t: t.backward(score_scale=t.s["score_scale"] / t.s["alpha"])),
        ("dq and dk lack the scores' scale α/K", lambda t: t.times(1 / t.s["score_scale"], "dq", "dk")),
        ("dq and dk lack the α of the scores' scale", lambda t: t.times(1 / t.s["alpha"], "dq", "dk")),
        ("σ of α = 1", lambda t: attention_sigma(t, 1.0, t.s["seq_len"])),
        ("no causal mask", unmasked),
        ("a head takes every H-th element, not K neighbours", in_order(
            lambda t: np.arange(t.i["q"].shape[-1]).reshape(t.s["head_dim"], -1).T.ravel())),
        ("k and v are swapped", lambda t: t.again({"k": t.i["v"], "v": t.i["k"]})),
        ("queries are the first positions, not the last", first_positions),
    ),
    "gated_silu": (
        ("x_in and x_gate are swapped", lambda t: t.again({"x_in": t.i["x_gate"], "x_gate": t.i["x_in"]})),
        ("x_in and x_gate are swapped", lambda t: (lambda found: found | {
            "dx_in": found["dx_gate"], "dx_gate": found["dx_in"]})(
                t.again({"x_in": t.i["x_gate"], "x_gate": t.i["x_in"]}))),
        ("α is missing in the sigmoid's derivative", silu_alpha_lost),
        ("α is missing in the backward", lambda t: t.backward(alpha=1.0)),
        ("α is missing", lambda t: t.again(alpha=1.0)),
        ("σ of α = 1", lambda t: t.again(scale=UnitScaled.gated_silu(1.0)._asdict())),
        ("a GELU in place of the SiLU", gated_gelu),
    ),
    "residual": (
        ("a on the dy of the branch, not at its base",
         lambda t: t.again(scale={"dbranch": t.scale["a"], "dbase": 1.0})),
        ("a both on the dy of the branch and at its base", lambda t: t.again(scale={"dbranch": t.scale["a"]})),
        ("a nowhere in the backward", lambda t: t.again(scale={"dbase": 1.0})),
        ("a is there twice forward", lambda t: t.again(scale={"a": t.scale["a"] ** 2})),
        ("a and b are swapped", lambda t: t.again(scale={"a": t.scale["b"], "b": t.scale["a"], "dbase": t.scale["b"]})),
        ("b is missing", lambda t: t.again(scale={"b": 1.0})),
        ("b is missing in the backward", lambda t: t.backward(scale={"b": 1.0})),
        ("no factors: R' = f(R) + R", lambda t: t.again(scale={"a": 1.0, "b": 1.0, "dbase": 1.0})),
        ("τ as eq. (22) prints it, without squares", lambda t: branch(
            t, eq_22_as_printed(t.s["branches"], 0, t.s["alpha_res"], t.s["alpha_res_attn_ratio"]))),
        ("τ taken for a ratio of standard deviations",
         lambda t: branch(t, taus(t.s, 1, t.s["alpha_res_attn_ratio"], 2))),
        ("√τ taken for τ", lambda t: branch(t, taus(t.s, 1, t.s["alpha_res_attn_ratio"], 0.5))),
        ("L counts layers, not branches: that is umup-iclr",
         lambda t: branch(t, taus(t.s, sqrt(2), t.s["alpha_res_attn_ratio"]))),
        ("L counts branches, not layers: that is umup", lambda t: branch(t, taus(t.s, 1, t.s["alpha_res_attn_ratio"]))),
        ("α_res-attn-ratio is inverted: attention and FFN are taken for each other",
         lambda t: branch(t, taus(t.s, 1, 1 / t.s["alpha_res_attn_ratio"]))),
    ),
    "cross_entropy": (
        ("α is missing", lambda t: t.again(alpha=1.0, scale={"dx": t.scale["dx"] * t.s["alpha"]})),
        ("α is missing in the backward's softmax",
         lambda t: t.backward(alpha=1.0, scale={"dx": t.scale["dx"] * t.s["alpha"]})),
        ("dlogits lack the onehot of the target", no_onehot),
        ("the true derivative of the mean loss: 1/b and α are still in it", lambda t: t.again(scale={"dx": 1.0})),
        ("1/b is still in the gradient", lambda t: t.times(1 / t.s["batch_tokens"], "dlogits")),
        ("α is in the gradient", lambda t: t.times(t.s["alpha"], "dlogits")),
        ("V/√(V-1) is missing in the gradient", lambda t: t.again(scale={"dx": t.s["batch_tokens"] / t.s["alpha"]})),
        ("the loss is a sum over tokens, not their mean", lambda t: t.times(t.s["batch_tokens"], "y")),
        ("the loss is in bits, not in nats", lambda t: t.times(1 / log(2), "y")),
    ),
    "adamw": (
        ("the decay is multiplied by the learning rate", lambda t: t.again(decay=t.s["lr"] * t.s["decay"])),
        ("the decay is part of the gradient (L2), not decoupled",
         lambda t: t.again({"g": t.i["g"] + t.s["decay"] * t.i["w"]}, decay=0.0)),
        ("ε stands under the root",
         update(lambda w, m, v, mh, vh, lr, d, eps: (1 - d) * w - lr * mh / np.sqrt(vh + eps))),
        ("no bias correction", update(lambda w, m, v, mh, vh, lr, d, eps: (1 - d) * w - lr * m / (np.sqrt(v) + eps))),
        ("the decay is taken from the updated weight",
         update(lambda w, m, v, mh, vh, lr, d, eps: (1 - d) * (w - lr * mh / (np.sqrt(vh) + eps)))),
        ("there is no decay", lambda t: t.again(decay=0.0)),
        ("β1 and β2 are swapped", lambda t: t.again(betas=t.s["betas"][::-1])),
        ("no root of v", update(lambda w, m, v, mh, vh, lr, d, eps: (1 - d) * w - lr * mh / (vh + eps))),
    ),
    "model": (
        ("the gradients are those of the mean loss, without Table 4's backward factors", lambda t: t.right | {
            f"grad.{name}": t.right[f"grad.{name}"] / c for name, c in t.s["gradient_constants"].items()}),
        ("RoPE's pairs are halves of a head (i, i + K/2), not neighbours (2i, 2i + 1)", lambda t: with_halves(t)),
        ("the weight decay is multiplied by η", lambda t: t.again(weight_decay=t.s["weight_decay"] * t.s["eta"])),
        ("there is no weight decay", lambda t: t.again(weight_decay=0.0)),
    ),
}  # fmt: skip


# ---- Plans and models ----
SIZES = ("width", "layers", "head_dim", "seq_len", "vocab_size", "fp8", "norm_eps", "rope_base")


def of_models(case: Case) -> Iterator[tuple[str, Way]]:
    """Mistakes of the zoo, other schemes, hyperparameters that are ignored: what a Plan and a model can have wrong."""

    def by(config: ModelConfig) -> Way:
        return lambda t: t.again(config=asdict(config))

    def with_(mistake: Any) -> Way:
        def way(t: Try) -> Arrays:
            with planted(mistake):
                return t.again()

        return way

    config = ModelConfig(**case.settings["config"])
    if config.scheme == "umup":  # the scheme that they are planted in
        elsewhere = ("nothing", "adam-eps-1")  # the latter is planted where the lab trains alone
        yield from ((f"{m.what}; it is {m.rule}", with_(m)) for name, m in ZOO.items() if name not in elsewhere)
    for name in SCHEMES[config.scheme].hyperparameters:
        value = getattr(config, name[5:]) if name.startswith("base_") else getattr(ModelConfig, name)
        if getattr(config, name) != value:
            yield f"{name} is ignored", by(replace(config, **{name: value}))
    if case.op == "plan":
        sequences = max(1, case.settings["batch_tokens"] // config.seq_len)
        yield "b counts sequences, not tokens", lambda t: t.again(batch_tokens=sequences)
    for scheme, row in SCHEMES.items():
        if scheme != config.scheme:
            kept = {n: v for n, v in asdict(config).items() if n in row.hyperparameters or n in SIZES}
            yield f"this is {scheme}, not {config.scheme}", by(ModelConfig(**kept | {"scheme": scheme}))


def with_halves(t: Try) -> Arrays:
    """The model with RoPE's pairs made of halves of a head."""

    def forward(x: Array, *, head_dim: int, **settings: Any) -> Any:
        order = by_halves(head_dim)
        y, turn = ops.rope_forward(reordered(x, order), head_dim=head_dim, **settings)
        return reordered(y, np.argsort(order)), (turn, order)

    def backward(dy: Array, saved: Any) -> tuple[Array]:
        turn, order = saved
        return (reordered(ops.rope_backward(reordered(dy, order), turn)[0], np.argsort(order)),)

    with using({ops.rope: (forward, backward)}):
        return t.again()
