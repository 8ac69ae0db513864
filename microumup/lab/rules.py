"""The rules themselves, measured without training: Tables 1 and 4, Lemma C.1 and eq. (22) as printed.

What the paper says of them is written down here once more, from the paper and not from the modules that are checked.
"""

from collections.abc import Callable, Iterator
from itertools import product
from math import sqrt
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from microumup.backend import Array
from microumup.config import ModelConfig
from microumup.engine import Tensor, tape
from microumup.lab.claims import EQ12, EQ22, Rows
from microumup.lab.expected import expected_rms
from microumup.lab.scales import fresh_loss, measured_rms
from microumup.model import forward, init_params
from microumup.multipliers import UnitScaled, residual_multipliers, residual_taus
from microumup.ops import (
    attention_backward,
    attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    embedding_backward,
    embedding_forward,
    gated_silu_backward,
    gated_silu_forward,
    linear_backward,
    linear_forward,
    rms_norm_forward,
    rope_forward,
)  # fmt: skip
from microumup.optim import AdamW
from microumup.plan import plan, weights

WIDTHS, DEPTHS = (32, 64, 128, 256), (1, 2, 4, 8)  # of the models that Table 1 is measured on
BASE_WIDTH, BASE_LAYERS = 64, 2


class Sizes(NamedTuple):
    """What Table 1's rules look at."""

    fan_in: float
    fan_out: float
    depth: float  # L
    base_fan_in: float
    base_depth: float


def _one(s: Sizes) -> float:
    return 1.0


# Table 1 in absolute terms; µP's √B counts σ_init from the base shape's fan_in^-1/2.
TABLE1: dict[str, dict[str, dict[str, Callable[[Sizes], float]]]] = {
    "mup": {
        "input": {"√B": _one, "A": _one, "C": _one},
        "output": {"√B": lambda s: s.base_fan_in**-0.5, "A": lambda s: s.base_fan_in / s.fan_in, "C": _one},
        "hidden": {
            "√B": lambda s: s.base_fan_in**-0.5 * sqrt(s.base_fan_in / s.fan_in),
            "A": _one,
            "C": lambda s: s.base_fan_in / s.fan_in * sqrt(s.base_depth / s.depth),
        },
        "residual": {"A": lambda s: sqrt(s.base_depth / s.depth)},
    },
    "umup": {
        "input": {"√B": _one, "A": _one, "C": lambda s: s.fan_out**-0.5},
        "output": {"√B": _one, "A": lambda s: 1 / s.fan_in, "C": _one},
        "hidden": {"√B": _one, "A": lambda s: s.fan_in**-0.5, "C": lambda s: s.fan_in**-0.5 * s.depth**-0.5},
        "residual": {"A": lambda s: s.depth**-0.5},
    },
}


def table1() -> Rows:
    """A row per scheme, type of weight, quantity and size of the model: what is measured, and what Table 1 says."""
    rows: Rows = []
    for scheme, (axis, sizes) in product(TABLE1, {"width": WIDTHS, "layers": DEPTHS}.items()):
        for size in sizes:
            options: dict[str, Any] = {"scheme": scheme, "width": 64, "layers": 2, "seq_len": 16, axis: size}
            if scheme == "mup":
                options |= {"base_width": BASE_WIDTH, "base_layers": BASE_LAYERS}
            config = ModelConfig(**options)
            for (type, quantity), measured in measured_cells(config).items():
                fan_in = config.ffn_dim if type == "down" else config.width
                base = fan_in * BASE_WIDTH / config.width
                said = TABLE1[scheme]["hidden" if type == "down" else type][quantity](
                    Sizes(fan_in, config.width, config.branches, base, 2 * BASE_LAYERS)
                )
                rows.append({"scheme": scheme, "type": type, "quantity": quantity, "axis": axis, "size": size,
                             "measured": rounded(measured), "paper": rounded(said)})  # fmt: skip
    return rows


def rounded(value: float) -> float:
    """To six digits: what lies behind them depends on the machine."""
    return float(f"{value:.6g}")


def measured_cells(config: ModelConfig) -> dict[tuple[str, str], float]:
    """√B, A and C of each type of weight, and the residual's A, from a model: what it draws, puts out and steps by.

    FFN down, whose fan_in differs, stands for itself. Of several weights of a type the median.
    """
    params = init_params(config)
    cells: dict[tuple[str, str], list[float]] = {}

    def note(name: str, quantity: str, value: float) -> None:
        type = "down" if name.endswith("down") else weights(config)[name].type
        cells.setdefault((type, quantity), []).append(value)

    tokens = np.arange(4 * config.seq_len).reshape(4, -1) % config.vocab_size
    leaves = {name: Tensor(w, name) for name, w in params.items()}
    names = {id(w): name for name, w in params.items()}
    skip = 1.0
    for node in tape(forward(leaves, tokens, plan(config, tokens.size))):
        arrays = [x.data if isinstance(x, Tensor) else x for x in node.inputs]
        if node.op in ("linear", "embedding"):
            x, w = arrays
            plain = x @ w.T if node.op == "linear" else w[x]
            note(names[id(w)], "A", fit(node.data, plain)[0])
        elif node.op == "residual_add":
            a, b = fit(node.data, *arrays)
            skip *= b
            cells.setdefault(("residual", "A"), []).append(a / skip)  # the branch over the embedding, both at the end
    before, eta = {name: w.copy() for name, w in params.items()}, 1.0
    optimizer = AdamW(params, {name: w.C for name, w in weights(config).items()}, lr=eta, weight_decay=0.0)
    rng = np.random.default_rng(0)
    optimizer.step({name: rng.standard_normal(w.shape, dtype=np.float32) for name, w in params.items()}, 1.0)
    for name, w in params.items():
        note(name, "√B", float(before[name].std()))
        note(
            name, "C", float(np.median(np.abs(w.astype(np.float64) - before[name]))) / eta
        )  # Adam's first step is ± η C
    return {key: median(values) for key, values in cells.items()}


def fit(y: Array, *parts: Array) -> list[float]:
    """The factors with which `parts` add up to y."""
    columns = np.stack([np.float64(part).ravel() for part in parts], axis=1)
    return [float(f) for f in np.linalg.lstsq(columns, np.float64(y).ravel(), rcond=None)[0]]


# ---------------------------------------------------------------------------------------------------------------------
# Table 4

ALPHAS = tuple(2.0**i for i in range(-3, 4))
SEQUENCES = (16, 64, 256)
FAN_IN, FAN_OUT, VOCAB, HEAD_DIM = 256, 704, 512, 16


def table4() -> Rows:
    """RMS of what each op of Table 4 puts out and passes back, of unit normal inputs and gradients: a row per tensor.

    `expected` is 1, or the departure that the rules themselves imply; last come all tensors of a whole model.
    """
    rows: Rows = []
    for op, setting, value, rms, expected in (*op_scales(), *model_scales()):
        for tensor, measured in rms.items():
            aim = expected.get(tensor, 1.0)
            rows.append({"op": op, "setting": setting, "value": value, "tensor": tensor,
                         "measured": rounded(measured), "expected": rounded(aim)})  # fmt: skip
    return rows


Measured = tuple[str, str | None, float | None, dict[str, float], dict[str, float]]


def op_scales() -> Iterator[Measured]:
    """Of each op on its own: its name, what is varied and its value, the RMS by tensor, and those not meant to be 1."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    def rms(**arrays: Array) -> dict[str, float]:
        return {name: float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for name, x in arrays.items()}

    tokens = 2048
    x = normal(tokens, FAN_IN)
    y, saved = linear_forward(x, normal(FAN_OUT, FAN_IN), scale=UnitScaled.linear(FAN_IN**-0.5, FAN_IN**-0.5, tokens))
    dx, dw = linear_backward(normal(tokens, FAN_OUT), saved)
    yield "linear", None, None, rms(y=y, dx=dx, dw=dw), {"dx": sqrt(FAN_OUT / FAN_IN)}
    y, saved = linear_forward(x, normal(VOCAB, FAN_IN), scale=UnitScaled.linear(1 / FAN_IN, FAN_IN**-0.5, tokens))
    dx, dw = linear_backward(normal(tokens, VOCAB), saved)
    yield "readout", None, None, rms(y=y, dx=dx, dw=dw), {"y": FAN_IN**-0.5, "dx": sqrt(VOCAB / FAN_IN)}
    ids = rng.integers(VOCAB, size=(8, tokens // 8))
    y, saved = embedding_forward(ids, normal(VOCAB, FAN_IN), scale=UnitScaled.embedding(1.0, VOCAB, tokens))
    yield "embedding", None, None, rms(y=y, dw=embedding_backward(normal(*y.shape), saved)[1]), {}
    yield "rms_norm", None, None, rms(y=rms_norm_forward(x)[0]), {}
    yield "rope", None, None, rms(y=rope_forward(x.reshape(8, -1, FAN_IN), head_dim=HEAD_DIM)[0]), {}
    logits = FAN_IN**-0.5 * normal(8, tokens // 8, VOCAB)
    scale = UnitScaled.cross_entropy(1.0, VOCAB, tokens)
    loss, saved = cross_entropy_forward(logits, ids, alpha=1.0, scale=scale)
    yield "cross_entropy", None, None, rms(dx=cross_entropy_backward(np.ones_like(loss), saved)[0]), {}
    for alpha in ALPHAS:
        scale = UnitScaled.gated_silu(alpha)
        y, saved = gated_silu_forward(normal(tokens, FAN_OUT), normal(tokens, FAN_OUT), alpha=alpha, scale=scale)
        d_in, d_gate = gated_silu_backward(normal(tokens, FAN_OUT), saved)
        yield "gated_silu", "alpha", alpha, rms(y=y, dx_in=d_in, dx_gate=d_gate), {}
    for seq_len in SEQUENCES:
        q, k, v, dy = (normal(16, seq_len, FAN_IN) for _ in range(4))
        scale = UnitScaled.attention(1.0, HEAD_DIM, seq_len)
        y, saved = attention_forward(q, k, v, head_dim=HEAD_DIM, score_scale=1 / HEAD_DIM, scale=scale)
        yield "attention", "seq_len", seq_len, rms(y=y, dv=attention_backward(dy, saved)[2]), {}


def model_scales() -> Iterator[Measured]:
    """Of a whole new model on random tokens."""
    config = ModelConfig(width=256, layers=2, head_dim=16, seq_len=64)
    yield "model", None, None, measured_rms(fresh_loss(config, 16)), expected_rms(config)


# ---------------------------------------------------------------------------------------------------------------------
# Lemma C.1 and eq. (22)

TAUS: dict[str, Callable[[int, float, float], list[float]]] = {EQ12: residual_taus}
LEMMA_BRANCHES, LEMMA_ALPHAS = (2, 4, 8, 24, 64), ((1.0, 1.0), (2.0, 0.5), (0.25, 4.0))


def taus_as_printed(branches: int, alpha_res: float, ratio: float) -> list[float]:
    """Eq. (22), letter for letter: no squares, and L^-1/2 on τ."""
    alpha_f = alpha_res * sqrt(2 / (ratio**2 + 1))
    alpha_a = ratio * alpha_f
    taus = []
    for l in range(1, branches + 1):  # noqa: E741 - the paper's index of a branch
        k = (l - 1) // 2
        attention = alpha_a / (1 + k * alpha_a + k * alpha_f)
        ffn = alpha_f / (1 + (k + 1) * alpha_a + k * alpha_f)
        taus.append((attention if l % 2 else ffn) / sqrt(branches))
    return taus


TAUS[EQ22] = taus_as_printed


def lemma_c1() -> Rows:
    """How far the network of eqs. (9, 10) is from that of eqs. (1, 2), which Lemma C.1 says it equals."""
    return [
        {"rule": rule, "branches": branches, "alpha_res": alpha, "alpha_res_attn_ratio": ratio,
         "difference": float(f"{difference(taus(branches, alpha, ratio), alpha, ratio):.3g}")}
        for (rule, taus), branches, (alpha, ratio) in product(TAUS.items(), LEMMA_BRANCHES, LEMMA_ALPHAS)
    ]  # fmt: skip


def difference(taus: list[float], alpha_res: float, ratio: float) -> float:
    """The largest difference of an output of the two networks, which have scale 1, in float64.

    The blocks f_l are the same random ones, zero-homogeneous as the lemma asks; r_0 = 1 and r_l = α̂/√L.
    """
    rng, branches = np.random.default_rng(0), len(taus)
    alpha_f = alpha_res * sqrt(2 / (ratio**2 + 1))
    plain = scaled = rng.standard_normal((8, 32))
    variance = 1.0
    for l, (a, b) in enumerate(residual_multipliers(taus), start=1):  # noqa: E741
        w = rng.standard_normal((32, 32)) / sqrt(32)
        r = (ratio * alpha_f if l % 2 else alpha_f) / sqrt(branches)
        plain, scaled = r * block(plain, w) + plain, a * block(scaled, w) + b * scaled
        variance += r * r
    return float(np.abs(plain / sqrt(variance) - scaled).max())


def block(x: Array, w: Array) -> Array:
    """A zero-homogeneous function: it normalizes first."""
    return np.tanh(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) @ w)


def eq22() -> Rows:
    """σ(residual)/σ(embedding) at the end of the trunk, which is to be α_res = 1, by each rule."""
    rows = []
    for (rule, taus), branches in product(TAUS.items(), LEMMA_BRANCHES):
        skip = float(np.prod([b * b for _, b in residual_multipliers(taus(branches, 1.0, 1.0))]))
        rows.append({"rule": rule, "branches": branches, "ratio": rounded(sqrt((1 - skip) / skip))})
    return rows
