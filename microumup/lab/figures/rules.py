"""Do models, ops and the residual do what the paper says? Tables 1 and 4, Lemma C.1, eq. (22); without training.

What the paper says of them is written down here once more, from the paper and not from the modules that are checked.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from math import sqrt
from statistics import median
from typing import Any

import numpy as np

from microumup import ops
from microumup.backend import Array
from microumup.config import ModelConfig
from microumup.engine import Tensor
from microumup.lab import pictures as pic
from microumup.lab.expected import expected_rms
from microumup.lab.figures.figure import Figure
from microumup.lab.figures.judging import Claim, Criterion, claim
from microumup.lab.figures.look import captioned, panels
from microumup.lab.figures.rows import Data, Row, Rows, largest, where
from microumup.lab.scales import fresh_loss, loss_with_logits, measured_rms, named_ops
from microumup.lab.statistics import exactly
from microumup.model import init_params
from microumup.multipliers import UnitScaled, residual_multipliers, residual_taus
from microumup.optim import AdamW
from microumup.plan import plan


def rounded(value: float) -> float:
    """Round to six digits: what lies behind them depends on the machine."""
    return float(f"{value:.6g}")


# ---- Table 1 ----
SCHEMES = {"mup": "µP", "umup": "u-µP"}
WIDTHS, DEPTHS = (32, 64, 128, 256), (1, 2, 4, 8)  # of the models that it is measured on
BASE_WIDTH, BASE_LAYERS = 64, 2
EXACT, SAMPLED = Criterion(high=1e-3), Criterion(high=0.05)


def as_printed(scheme: str, fan_in: int, width: int, L: int) -> dict[str, dict[str, float]]:
    """Table 1's cells, in absolute terms: µP's √B counts σ_init from the base shape's fan_in^-1/2."""
    base_fan_in, depth = fan_in * BASE_WIDTH / width, sqrt(2 * BASE_LAYERS / L)
    if scheme == "mup":
        return {
            "input": {"√B": 1.0, "A": 1.0, "C": 1.0},
            "output": {"√B": base_fan_in**-0.5, "A": base_fan_in / fan_in, "C": 1.0},
            "hidden": {"√B": fan_in**-0.5, "A": 1.0, "C": base_fan_in / fan_in * depth},
            "residual": {"A": depth},
        }
    return {
        "input": {"√B": 1.0, "A": 1.0, "C": width**-0.5},
        "output": {"√B": 1.0, "A": 1 / fan_in, "C": 1.0},
        "hidden": {"√B": 1.0, "A": fan_in**-0.5, "C": fan_in**-0.5 * L**-0.5},
        "residual": {"A": L**-0.5},
    }


def table1() -> Rows:
    """A row per scheme, type of weight, quantity and size of the model: what is measured, and what Table 1 says."""
    rows: Rows = []
    for scheme, (axis, sizes) in product(SCHEMES, {"width": WIDTHS, "layers": DEPTHS}.items()):
        for size in sizes:
            options: dict[str, Any] = {"scheme": scheme, "width": 64, "layers": 2, "seq_len": 16, axis: size}
            if scheme == "mup":
                options |= {"base_width": BASE_WIDTH, "base_layers": BASE_LAYERS}
            config = ModelConfig(**options)
            for (type, quantity), measured in measured_cells(config).items():
                fan_in = config.ffn_dim if type == "down" else config.width
                cells = as_printed(scheme, fan_in, config.width, config.branches)
                said = cells["hidden" if type == "down" else type][quantity]
                rows.append({"scheme": scheme, "type": type, "quantity": quantity, "axis": axis, "size": size,
                             "measured": rounded(measured), "paper": rounded(said)})  # fmt: skip
    return rows


def measured_cells(config: ModelConfig) -> dict[tuple[str, str], float]:
    """√B, A and C of each type of weight, and the residual's A, from a model: what it draws, puts out and steps by.

    FFN down, whose fan_in differs, stands for itself. Of several weights of a type the median.
    """
    params, cells, skip = init_params(config), defaultdict[tuple[str, str], list[float]](list), 1.0
    tokens = np.arange(4 * config.seq_len).reshape(4, -1) % config.vocab_size
    numbers, rng = plan(config, tokens.size), np.random.default_rng(0)

    def note(name: str, quantity: str, value: float) -> None:
        cells["down" if name.endswith("down") else numbers.weights[name].type, quantity].append(value)

    loss = loss_with_logits({name: Tensor(w, name) for name, w in params.items()}, tokens, tokens, numbers)
    for name, node, weight in named_ops(loss):
        if weight:
            x, w = node.saved[0], weight.data  # of an embedding x are the tokens
            note(name, "A", fit(node.data, x @ w.T if node.op == "linear" else w[x])[0])
        elif node.op == "residual_add":
            a, b = fit(node.data, *(x.data for x in node.inputs if isinstance(x, Tensor)))
            skip *= b
            cells["residual", "A"].append(a / skip)  # the branch over the embedding, both at the end
    optimizer = AdamW(params, {name: w.C for name, w in numbers.weights.items()}, lr=1.0, weight_decay=0.0)
    optimizer.step({name: rng.standard_normal(w.shape, dtype=np.float32) for name, w in params.items()}, 1.0)
    for name, drawn in init_params(config).items():
        note(name, "√B", float(drawn.std()))
        note(name, "C", float(np.median(np.abs(np.float64(params[name]) - drawn))))  # Adam's first step is ± η C
    return {key: median(values) for key, values in cells.items()}


def fit(y: Array, *parts: Array) -> list[float]:
    """The factors with which `parts` add up to y."""
    columns = np.stack([np.float64(part).ravel() for part in parts], axis=1)
    return [float(f) for f in np.linalg.lstsq(columns, np.float64(y).ravel(), rcond=None)[0]]


def table1_claims(data: Data) -> Iterator[Claim]:
    """Judge the measured by Table 1."""
    for scheme, name in SCHEMES.items():
        for quantities, words, criterion in ((("A", "C"), "A, C and residual", EXACT), (("√B",), "init std", SAMPLED)):
            rows = [row for row in where(data.runs, scheme=scheme) if row["quantity"] in quantities]
            text = f"{name}: {words} measured on models differ from Table 1 by at most"
            off = largest(rows, lambda row: abs(row["measured"] / row["paper"] - 1))
            yield claim(text, off, criterion, "", "0")


TYPES: dict[str, tuple[str, Row]] = {  # of weights, and how they are drawn
    "input": ("input", {"color": pic.ORANGE, "marker": "v", "linestyle": "none"}),
    "hidden": ("hidden", {"color": pic.BLUE, "marker": "o", "linestyle": "none"}),
    "down": ("hidden, FFN down", {"color": pic.SKY, "marker": "D", "linestyle": "none"}),
    "output": ("output", {"color": pic.GREEN, "marker": "^", "linestyle": "none"}),
    "residual": ("residual", {"color": pic.PURPLE, "marker": "P", "linestyle": "none"}),
}
WEIGHTS = ("input", "hidden", "down", "output")
COLUMNS = {  # of the picture: a title, the axis, and the quantity of each type that is drawn
    "init std √B": ("width", dict.fromkeys(WEIGHTS, "√B")), "multiplier A": ("width", dict.fromkeys(WEIGHTS, "A")),
    "LR factor C": ("width", dict.fromkeys(WEIGHTS, "C")),
    "over depth: hidden's C, residual's A": ("layers", {"hidden": "C", "residual": "A"}),
}  # fmt: skip


def draw_table1(data: Data) -> Any:
    """Draw what models do, as points, on the lines of Table 1."""
    figure, axes = panels(2, len(COLUMNS), 11.5, 6, "xy")
    for row, (scheme, name) in zip(axes, SCHEMES.items(), strict=True):
        for ax, (title, (axis, shown)) in zip(row, COLUMNS.items(), strict=True):
            for type, quantity in shown.items():
                own = where(data.runs, scheme=scheme, axis=axis, type=type, quantity=quantity)
                sizes, (_, style) = [r["size"] for r in own], TYPES[type]
                ax.plot(sizes, [r["paper"] for r in own], color=style["color"], linewidth=1.2)
                ax.plot(sizes, [r["measured"] for r in own], **style)
            low, high = ax.get_ylim()
            if high < 2 * low:  # nothing but chance: do not blow it up
                ax.set_ylim(low / 2, high * 2)
            ax.set_xlabel(axis)
            ax.set_title(f"{name}: {title}", fontsize=10 if len(title) < 20 else 8)
    return captioned(figure, "marker: measured on a model · line: Table 1", dict(TYPES.values()), columns=5)


# ---- Table 4 ----
FORWARD_SILU, BACKWARD_SILU = Criterion(high=0.013), Criterion(high=0.05)
ATTENTION, WHOLE_MODEL = Criterion(high=0.12), Criterion(high=0.2)
ALPHAS = tuple(2.0**i for i in range(-3, 4))
SEQUENCES = (16, 64, 256)
FAN_IN, FAN_OUT, VOCAB, HEAD_DIM, TOKENS = 256, 704, 512, 16, 2048
NOT_ONE = {  # by the rules themselves
    "linear": {"dx": sqrt(FAN_OUT / FAN_IN)}, "readout": {"y": FAN_IN**-0.5, "dx": sqrt(VOCAB / FAN_IN)},
}  # fmt: skip


def table4() -> Rows:
    """RMS of what each op of Table 4 puts out and passes back, of unit normal inputs and gradients: a row per tensor.

    `expected` is 1, or the departure that the rules themselves imply; last come all tensors of a whole model.
    """
    config = ModelConfig(width=256, layers=2, head_dim=16, seq_len=64)
    rng, rows, implied = np.random.default_rng(0), list[Row](), NOT_ONE | {"model": expected_rms(config)}

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    def note(op: str, setting: str | None = None, value: float | None = None, /, **tensors: Array | float) -> None:
        for tensor, x in tensors.items():  # an RMS may stand for its tensor
            measured, expected = np.sqrt(np.mean(np.square(x, dtype=np.float64))), implied.get(op, {}).get(tensor, 1.0)
            rows.append({"op": op, "setting": setting, "value": value, "tensor": tensor, "measured": rounded(measured),
                         "expected": rounded(expected)})  # fmt: skip

    x = normal(TOKENS, FAN_IN)
    for op, fan_out, factor in (("linear", FAN_OUT, FAN_IN**-0.5), ("readout", VOCAB, 1 / FAN_IN)):
        scale = UnitScaled.linear(factor, FAN_IN**-0.5, TOKENS)
        y, saved = ops.linear_forward(x, normal(fan_out, FAN_IN), scale=scale)
        dx, dw = ops.linear_backward(normal(TOKENS, fan_out), saved)
        note(op, y=y, dx=dx, dw=dw)
    ids = rng.integers(VOCAB, size=(8, TOKENS // 8))
    y, saved = ops.embedding_forward(ids, normal(VOCAB, FAN_IN), scale=UnitScaled.embedding(1.0, VOCAB, TOKENS))
    note("embedding", y=y, dw=ops.embedding_backward(normal(*y.shape), saved)[1])
    note("rms_norm", y=ops.rms_norm_forward(x)[0])
    note("rope", y=ops.rope_forward(x.reshape(8, -1, FAN_IN), head_dim=HEAD_DIM)[0])
    logits = FAN_IN**-0.5 * normal(8, TOKENS // 8, VOCAB)
    scale = UnitScaled.cross_entropy(1.0, VOCAB, TOKENS)
    loss, saved = ops.cross_entropy_forward(logits, ids, alpha=1.0, scale=scale)
    note("cross_entropy", dx=ops.cross_entropy_backward(np.ones_like(loss), saved)[0])
    for alpha in ALPHAS:
        scale = UnitScaled.gated_silu(alpha)
        y, saved = ops.gated_silu_forward(normal(TOKENS, FAN_OUT), normal(TOKENS, FAN_OUT), alpha=alpha, scale=scale)
        d_in, d_gate = ops.gated_silu_backward(normal(TOKENS, FAN_OUT), saved)
        note("gated_silu", "alpha", alpha, y=y, dx_in=d_in, dx_gate=d_gate)
    for seq_len in SEQUENCES:
        q, k, v, dy = (normal(16, seq_len, FAN_IN) for _ in range(4))
        scale = UnitScaled.attention(1.0, HEAD_DIM, seq_len)
        y, saved = ops.attention_forward(q, k, v, head_dim=HEAD_DIM, score_scale=1 / HEAD_DIM, scale=scale)
        note("attention", "seq_len", seq_len, y=y, dv=ops.attention_backward(dy, saved)[2])
    note("model", **measured_rms(fresh_loss(config, 16)))
    return rows


def table4_claims(data: Data) -> Iterator[Claim]:
    """Judge the RMS of every op's tensors."""
    silu, attention, model = (where(data.runs, op=op) for op in ("gated_silu", "attention", "model"))
    exact = [row for row in data.runs if row["op"] not in ("gated_silu", "attention", "model")]
    output, gradients = where(silu, tensor="y"), [row for row in silu if row["tensor"] != "y"]
    for text, rows, criterion in (
        ("ops whose factor is exact: RMS differs from what it should be", exact, SAMPLED),
        ("gated_silu, α from 1/8 to 8: RMS of its output differs from 1", output, FORWARD_SILU),
        ("and of its gradients", gradients, BACKWARD_SILU),
        ("attention over 16 to 256 tokens: RMS differs from 1", attention, ATTENTION),
        ("every tensor of a new u-µP model: RMS differs from what the rules imply", model, WHOLE_MODEL),
    ):
        off = largest(rows, lambda row: abs(row["measured"] / row["expected"] - 1))
        yield claim(f"{text} by at most", off, criterion, "", "" if rows is model else "0")


MODEL_TENSORS = {
    "y": (pic.BLUE, "o"), "dy": (pic.VERMILION, "s"), "dx": (pic.GREEN, "^"), "dw": (pic.ORANGE, "D"),
    "x": (pic.SKY, "v"), "w": (pic.BLACK, "P"),
}  # fmt: skip


def draw_table4(data: Data) -> Any:
    """Draw the RMS of every op's tensors, and of all tensors of a model against what is expected of them."""
    figure, axes = panels(1, 2, 11, 6.2, "x", gridspec_kw={"width_ratios": (3, 2)})
    alone, model = [row for row in data.runs if row["op"] != "model"], where(data.runs, op="model")

    def name(row: Row) -> str:
        setting = f", {'α' if row['setting'] == 'alpha' else 's'} = {row['value']:g}" if row["setting"] else ""
        return f"{row['op']}{setting}: {row['tensor']}"

    left, right = axes[0]
    left.axvline(1, color="black", linewidth=1)
    places = range(len(alone))
    expected, measured = ([row[column] for row in alone] for column in ("expected", "measured"))
    left.plot(expected, places, "o", color=pic.BLACK, label="what the rules imply", markersize=7, fillstyle="none")
    left.plot(measured, places, "x", color=pic.BLUE, label="measured")
    left.set_yticks(places, map(name, alone), fontsize=6.5)
    left.invert_yaxis()
    left.set_xlabel("RMS, of inputs and gradients of RMS 1")
    left.legend(frameon=False, loc="center left")
    for suffix, (colour, marker) in MODEL_TENSORS.items():
        own = [row for row in model if row["tensor"].rpartition(".")[2] == suffix]
        expected, measured = ([row[column] for row in own] for column in ("expected", "measured"))
        right.plot(expected, measured, marker, color=colour, label=suffix, markersize=5)
    ends = [pick(row["expected"] for row in model) for pick in (min, max)]
    right.plot(ends, ends, color="black", linewidth=1, zorder=0.9)
    right.set_yscale("log", base=2)
    right.set(xlabel="RMS that the rules imply", ylabel="RMS measured")
    right.set_title("all tensors of a new model", fontsize=10)
    right.legend(frameon=False, ncols=2)
    return captioned(figure, "a marker is a tensor · line: 1 on the left, equal on the right", {})


# ---- The residual: Lemma C.1, and eq. (22) as printed ----
EQ12, EQ22 = "eq. 12", "eq. 22 as printed"  # by which rule τ is worked out
BRANCHES, ALPHA_RATIOS = (2, 4, 8, 24, 64), ((1.0, 1.0), (2.0, 0.5), (0.25, 4.0))
YAXES = {
    "difference": {"ylabel": "largest difference of an output", "yscale": "log"},
    "ratio": {"ylabel": r"σ(residual) / σ(embedding), at $\alpha_\mathrm{res} = 1$"},
}
EQUAL, DIFFERENT, OFF = Criterion(high=1e-12), Criterion(low=0.1), Criterion(low=0.05)


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


RULES: dict[str, Callable[[int, float, float], list[float]]] = {EQ12: residual_taus, EQ22: taus_as_printed}


def lemma_c1() -> Rows:
    """Differences of the network of eqs. (9, 10) from that of eqs. (1, 2), which Lemma C.1 says it equals."""
    return [
        {"rule": rule, "branches": branches, "alpha_res": alpha, "alpha_res_attn_ratio": ratio,
         "difference": float(f"{difference(taus(branches, alpha, ratio), alpha, ratio):.3g}")}
        for (rule, taus), branches, (alpha, ratio) in product(RULES.items(), BRANCHES, ALPHA_RATIOS)
    ]  # fmt: skip


def difference(taus: list[float], alpha_res: float, ratio: float) -> float:
    """The largest difference of an output of the two networks, which have scale 1, in float64.

    The blocks f_l are the same random ones, zero-homogeneous as the lemma asks; r_0 = 1 and r_l = α̂/√L.
    """

    def block(x: Array, w: Array) -> Array:
        return np.tanh(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) @ w)  # normalized first: zero-homogeneous

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


def eq22() -> Rows:
    """σ(residual)/σ(embedding) at the end of the trunk, which is to be α_res = 1, by each rule."""
    rows = []
    for (rule, taus), branches in product(RULES.items(), BRANCHES):
        skip = float(np.prod([b * b for _, b in residual_multipliers(taus(branches, 1.0, 1.0))]))
        rows.append({"rule": rule, "branches": branches, "ratio": float(f"{sqrt((1 - skip) / skip):.6g}")})
    return rows


def lemma_c1_claims(data: Data) -> Iterator[Claim]:
    """Judge if the two networks are one."""
    proven, printed = ([row["difference"] for row in where(data.runs, rule=rule)] for rule in RULES)
    yield claim("with τ of eq. (12) the two networks differ by at most", exactly(max(proven)), EQUAL, "", "0")
    yield claim("with τ as eq. (22) prints it they differ by at least", exactly(min(printed)), DIFFERENT, "", "0")


def eq22_claims(data: Data) -> Iterator[Claim]:
    """Judge if α_res is what it is called."""
    proven, printed = (largest(where(data.runs, rule=rule), lambda row: abs(row["ratio"] - 1)) for rule in RULES)
    yield claim("with τ of eq. (12) σ(residual)/σ(embedding) differs from α_res = 1 by at most", proven, EQUAL, "", "0")
    yield claim("with τ as eq. (22) prints it, by up to", printed, OFF, "", "0")


def draw_residual(data: Data) -> Any:
    """The last column over depth, by each rule; where there are several α_res, a line for each."""
    column = list(data.runs[0])[-1]
    figure, axes = panels(1, 1, 6.4, 4.2, "x")
    ax = axes[0, 0]
    styles = ({"color": pic.BLUE, "marker": "o"}, {"color": pic.VERMILION, "marker": "s", "linestyle": "--"})
    for (rule, style), (alpha, _) in product(zip(RULES, styles, strict=True), ALPHA_RATIOS):
        if rows := [row for row in where(data.runs, rule=rule) if row.get("alpha_res", 1) == alpha]:
            label = f"τ of {rule}" if alpha == 1 else None
            ax.plot([r["branches"] for r in rows], [r[column] for r in rows], label=label, **style)
    ax.set(xlabel="residual branches L", **YAXES[column])
    return captioned(figure, "a marker is a network of that depth")


FIGURES = [Figure(
    "table1", "Table 1, measured on models", "models do what Table 1 says, over width and over depth",
    """No training: init, multiplier and step of every type of weight, measured on models of several sizes,
are the points; the paper's Table 1 are the lines.""",
    table1_claims, draw_table1, compute=table1,
), Figure(
    "table4", "Table 4, measured op by op", "every op puts out and passes back the scale that Table 4 implies",
    """No training: what every op makes of inputs and gradients of RMS 1. Circles are what the rules imply;
most are at 1, and those that are not are known exactly. On the right all tensors of a new model, where these add
up.""",
    table4_claims, draw_table4, compute=table4,
), Figure(
    "lemma-c1", "Lemma C.1",
    "the rescaled residual network is the original one; with eq. (22) as printed it is not",
    """No training: a pre-norm network can be rescaled so that its trunk keeps scale 1 and its output does
not change. Measured on random networks, with τ as worked out from eq. (12) and with the closed form that eq. (22)
prints.""",
    lemma_c1_claims, draw_residual, compute=lemma_c1,
), Figure(
    "eq22", "Eq. (22) as printed", "α_res is the ratio it is called; with eq. (22) as printed it is not",
    """No training: the ratio of the branches' scale to the embedding's, which at α_res = 1 should be 1 at
every depth.""",
    eq22_claims, draw_residual, compute=eq22,
)]  # fmt: skip
