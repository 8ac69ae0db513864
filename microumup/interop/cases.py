"""Cases that other implementations are held against: inputs, settings, and the outputs that u-µP has for them.

A case is an op (or a Plan, a rounding, a whole model) at one shape, dtype and α. `expected` works its outputs out
with the readable pairs of `ops.py`; `vectors` writes them to files, `reference` gives the same cases to callables.

Shapes are small and odd, so that fan_in, fan_out, b, V, K and s are all different numbers: a factor that is made of
the wrong one shows. Every α occurs at 1 and off 1, where one that is missing in a backward shows.

Legend: B batch, T sequence, D width, K head dim, F FFN dim, V vocabulary, S keys, N = B T tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from inspect import signature
from typing import Any, NamedTuple
from zlib import crc32

import ml_dtypes
import numpy as np

from microumup import model as llama
from microumup import ops
from microumup.backend import Array
from microumup.config import ModelConfig
from microumup.engine import Backward, Forward, Tensor, backpropagate
from microumup.fp8 import FORMATS, quantize
from microumup.multipliers import UnitScaled
from microumup.ops import ResidualScale, Scale
from microumup.optim import AdamW, adamw
from microumup.parametrization import SCHEMES
from microumup.plan import gradient_constants, plan

Arrays = dict[str, Array]
Settings = dict[str, Any]
Run = Callable[[Arrays, Settings], Arrays]
EPS = {"float64": 2.0**-52, "float32": 2.0**-23}
BOTH = ("umup", "umup-iclr")
STEPS, ETA, DECAY = 20, 0.5, 2.0**-5  # of the trained model; λ is large, so that a wrong reading of it shows


class Case(NamedTuple):
    """One thing to compute. `settings` are numbers and names as JSON has them, `inputs` arrays in the order of use."""

    name: str
    op: str
    dtype: str  # of the inputs and outputs that are no integers
    schemes: tuple[str, ...]  # for which it holds; a candidate for another scheme passes it over
    settings: Settings
    inputs: Arrays


def expected(case: Case) -> Arrays:
    """Outputs of the case by name. Those in float32 are worked out in float64 and rounded once: as good as float32 can
    be, and the same on every machine. Only a model in FP8 computes in float32, as its casts ask."""
    if case.dtype == "float32" and case.op not in ("model_fp8", "fp8_round", "linear_fp8"):
        inputs = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in case.inputs.items()}
        return {name: a.astype(np.float32) for name, a in run(case.op, inputs, case.settings).items()}
    return run(case.op, case.inputs, case.settings)


def run(op: str, inputs: Arrays, settings: Settings) -> Arrays:
    """Outputs of the op for these inputs, by name: y and dNAME of every input of floats, or what the op calls them."""
    if op in PAIRS:
        return run_pair(*PAIRS[op], inputs, settings)
    return RUNS[op](inputs, settings)


def keywords(settings: Settings, function: Callable[..., Any], arrays: int) -> Settings:
    """The settings that `function` has parameters for, behind those of its arrays; factors as a Scale.

    Raises ValueError for a keyword that it needs and no setting has.
    """
    try:
        parameters = list(signature(function).parameters.values())[arrays:]
    except ValueError:  # one that is built in is given arrays alone
        return {}
    parameters = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for p in parameters:
        if p.default is p.empty and p.name not in settings:
            raise ValueError(f"{p.name}: no setting has this name; there are {', '.join(settings)}")
    found = {p.name: settings[p.name] for p in parameters if p.name in settings}
    for name in {"scale", "loss_scale"} & set(found):
        found[name] = (ResidualScale if "a" in found[name] else Scale)(**found[name])
    return found


def run_pair(forward: Forward, backward: Backward, inputs: Arrays, settings: Settings) -> Arrays:
    """y and the gradients of a pair like those of `ops.py`, for the cotangent that `inputs` have as dy."""
    *names, _ = inputs
    y, saved = forward(*(inputs[name] for name in names), **keywords(settings, forward, len(names)))
    grads = zip(names, backward(inputs["dy"], saved), strict=True)
    return {"y": np.asarray(y)} | {f"d{name}": g for name, g in grads if g is not None}


def residual(inputs: Arrays, settings: Settings) -> Arrays:
    """A whole residual layer, R' = a f(R) + b R with a plain linear as f: here a that comes too early shows in dw."""
    scale, x, w = ResidualScale(**settings["scale"]), Tensor(inputs["x"]), Tensor(inputs["w"])
    y = ops.residual_add(ops.linear(ops.residual_split(x, scale=scale), w), x, scale=scale)
    backpropagate(y, inputs["dy"])
    assert x.grad is not None
    assert w.grad is not None
    return {"y": y.data, "dx": x.grad, "dw": w.grad}


def linear_fp8(inputs: Arrays, settings: Settings) -> Arrays:
    """A linear's three products of rounded operands, the products themselves in float64 and rounded to float32 once."""
    x, w, dy = (
        quantize(inputs[name], FORMATS[fmt]).astype(np.float64) if fmt != "none" else inputs[name].astype(np.float64)
        for name, fmt in ((name, settings["formats"][name]) for name in ("x", "w", "dy"))
    )
    found = run_pair(*PAIRS["linear"], {"x": x, "w": w, "dy": dy}, settings)
    return {name: a.astype(np.float32) for name, a in found.items()}


def one_adamw(inputs: Arrays, settings: Settings) -> Arrays:
    """w, m and v after one update."""
    new = adamw(*inputs.values(), **keywords(settings, adamw, len(inputs)))
    return {f"new_{name}": a for name, a in zip("wmv", new, strict=True)}


FLOAT8 = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def fp8_decode(inputs: Arrays, settings: Settings) -> Arrays:
    """Value of every code."""
    return {"value": inputs["code"].view(FLOAT8[settings["format"]]).astype(np.float32)}


def fp8_round(inputs: Arrays, settings: Settings) -> Arrays:
    """x rounded, once with ±max for all that lies past it, and once with what a plain cast has there: NaN, infinity."""
    x, name = inputs["x"], settings["format"]
    with np.errstate(over="ignore"):
        return {"saturating": quantize(x, FORMATS[name]), "nonsaturating": x.astype(FLOAT8[name]).astype(np.float32)}


def plan_numbers(inputs: Arrays, settings: Settings) -> Arrays:
    """The numbers of a Plan as float64 arrays: a row for every weight in the order of settings["weights"], for every
    branch, and for the ops without a weight."""
    p = plan(ModelConfig(**settings["config"]), settings["batch_tokens"])
    scales = [p.embedding, *(p.linears[name].scale for name in p.weights if name != "embedding")]
    c_W, ws = gradient_constants(p), list(p.weights.values())
    columns = {
        "init_std": [w.init_std for w in ws], "A": [s.y for s in scales],
        "A_backward": [s.dx for s in scales][1:], "dw": [s.dw for s in scales], "C": [w.C for w in ws],
        "gradient_constant": [c_W[name] for name in p.weights],
        **{f"branch_{name}": [getattr(r, name) for r in p.branches] for name in ResidualScale._fields},
        "score_scale": [p.score_scale], "attention": [p.attention.y], "gated_silu": [p.gated_silu.y],
        "dlogits": [p.loss.dx * p.config.alpha_loss_softmax / p.batch_tokens],
    }  # fmt: skip
    return {name: np.array(column, np.float64) for name, column in columns.items()}


def model(inputs: Arrays, settings: Settings, train: bool = True) -> Arrays:
    """A model's logits, loss and gradients on the first batch, then its losses and weights over updates of AdamW."""
    config = ModelConfig(**settings["config"])
    params = {name[2:]: a.copy() for name, a in inputs.items() if name.startswith("w.")}
    p = plan(config, inputs["tokens"][0].size)
    logits = llama.forward(params, inputs["tokens"][0], p).data
    found: Arrays = {"logits": logits.copy()}
    optimizer = AdamW(
        params, {name: w.C for name, w in p.weights.items()}, lr=settings["eta"], weight_decay=settings["weight_decay"]
    )
    losses: list[Array] = []
    for tokens, targets in zip(inputs["tokens"], inputs["targets"], strict=True):
        leaves = {name: Tensor(w, name) for name, w in params.items()}
        out = llama.loss(leaves, tokens, targets, p)
        backpropagate(out)
        grads = {name: t.grad for name, t in leaves.items() if t.grad is not None}
        if not losses:
            found |= {"loss": np.asarray(out.data).copy()} | {f"grad.{name}": g for name, g in grads.items()}
        losses.append(out.data)
        if not train:
            return found
        optimizer.step(grads, 1.0)
        if len(losses) == 1:
            found |= {f"after1.{name}": w.copy() for name, w in params.items()}
    dtype = logits.dtype
    return found | {"losses": np.array(losses, dtype)} | {f"trained.{name}": w for name, w in params.items()}


def _pair(name: str) -> tuple[Forward, Backward]:
    return getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")


PAIRS: dict[str, tuple[Forward, Backward]] = {
    **{name: _pair(name) for name in (
        "linear", "embedding", "rms_norm", "rope", "attention", "gated_silu", "residual_split", "residual_add",
        "cross_entropy", "linear_cross_entropy",
    )},
    # the same pairs, in settings of their own: an implementation may have the one without the other
    "readout": _pair("linear"), "rope_offset": _pair("rope"), "attention_cached": _pair("attention"),
}  # fmt: skip
RUNS: dict[str, Run] = {
    "residual": residual, "linear_fp8": linear_fp8, "adamw": one_adamw, "fp8_decode": fp8_decode,
    "fp8_round": fp8_round, "plan": plan_numbers, "model": model, "model_fp8": model,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The cases


def all_cases() -> Iterator[Case]:
    """Every case of the golden vectors, in the order of the index."""
    cases = [*op_cases(), *fp8_cases(), *plan_cases(), *model_cases()]
    for op in dict.fromkeys(case.op for case in cases):  # those of an op together
        yield from (case for case in cases if case.op == op)


def op_cases() -> Iterator[Case]:
    """Every op, at several shapes and α's, in float64 and float32."""
    for op, label, schemes, settings, shapes in _op_settings():
        for dtype in ("float64", "float32"):
            name = f"{op}.{label}.{dtype}"
            yield Case(name, op, dtype, schemes, settings, _draw(name, dtype, shapes))


Shapes = dict[str, Any]  # a shape by input; of integers (shape, one more than the largest)


def _op_settings() -> Iterator[tuple[str, str, tuple[str, ...], Settings, Shapes]]:
    for label, lead, D_in, D_out in (("2x3x5x7", (2, 3), 5, 7), ("3x5x8x3", (3, 5), 8, 3), ("10x12x17", (10,), 12, 17)):
        b = int(np.prod(lead))
        x, w, dy = (*lead, D_in), (D_out, D_in), (*lead, D_out)
        sizes = {"fan_in": D_in, "fan_out": D_out, "batch_tokens": b}
        hidden = UnitScaled.linear(D_in**-0.5, D_in**-0.5, b)
        yield "linear", label, BOTH, sizes | {"scale": hidden._asdict()}, {"x": x, "w": w, "dy": dy}
        for scheme in BOTH:
            A_backward = D_in**-0.5 if scheme == "umup" else D_out**-0.5
            readout = UnitScaled.linear(1 / D_in, A_backward, b)
            yield "readout", f"{label}.{scheme}", (scheme,), sizes | {"scale": readout._asdict()}, {
                "x": x, "w": w, "dy": dy}  # fmt: skip
    for B, T, V, D in ((2, 5, 7, 3), (3, 4, 5, 6)):
        b = B * T
        settings = {"vocab_size": V, "batch_tokens": b, "scale": UnitScaled.embedding(1.0, V, b)._asdict()}
        shapes = {"tokens": ((B, T), V), "w": (V, D), "dy": (B, T, D)}
        yield "embedding", f"{B}x{T}x{V}x{D}", BOTH, settings, shapes
    for label, eps, D in (("5", 1e-6, 5), ("12", 1e-6, 12), ("eps", 0.5, 7)):  # at ε = 0.5 it shows where ε goes
        yield "rms_norm", label, tuple(SCHEMES), {"eps": eps}, {"x": (2, 3, D), "dy": (2, 3, D)}
    for label, T, K, H, start in (("k4", 5, 4, 3, 0), ("k6", 7, 6, 2, 0), ("k4", 5, 4, 3, 9)):
        op, x = ("rope_offset" if start else "rope"), (2, T, K * H)
        settings = {"head_dim": K, "base": 10_000.0, "start": start}
        yield op, label, tuple(SCHEMES), settings, {"x": x, "dy": x}
    for op, label, alpha, T, S, K, H, s in (
        ("attention", "alpha1", 1.0, 6, 6, 4, 3, 6), ("attention", "alpha0.5", 0.5, 7, 7, 6, 2, 7),
        ("attention", "alpha3", 3.0, 5, 5, 4, 2, 5), ("attention", "short", 2.0, 5, 5, 4, 2, 32),
        ("attention_cached", "alpha2", 2.0, 3, 7, 4, 2, 16),
    ):  # fmt: skip
        factor = UnitScaled.attention(alpha, K, s)._replace(dw=1.0)
        settings = {
            "head_dim": K, "alpha": alpha, "seq_len": s, "score_scale": alpha / K, "scale": factor._asdict()
        }  # fmt: skip
        q, k = (2, T, K * H), (2, S, K * H)
        yield op, label, BOTH, settings, {"q": q, "k": k, "v": k, "dy": q}
    for alpha, F in ((1.0, 11), (0.5, 6), (3.0, 7)):
        settings = {"alpha": alpha, "scale": UnitScaled.gated_silu(alpha)._asdict()}
        shape = (2, 3, F)
        yield "gated_silu", f"alpha{alpha:g}", BOTH, settings, {"x_in": shape, "x_gate": shape, "dy": shape}
    for scheme, index, branches, alpha, ratio in (
        ("umup", 0, 4, 1.0, 1.0), ("umup", 3, 6, 0.7, 1.7), ("umup-iclr", 2, 4, 1.0, 1.0),
        ("umup-iclr", 3, 6, 0.7, 1.7), ("umup", 4, 6, 2.0, 0.5),
    ):  # fmt: skip
        a, b_ = SCHEMES[scheme].residual.multipliers(branches, branches, alpha, ratio)[index]
        scale: Settings = UnitScaled.residual(a, b_)._asdict()
        settings = {"branch": index, "branches": branches, "alpha_res": alpha, "alpha_res_attn_ratio": ratio,
                    "tau": a**2 / b_**2, "scale": scale}  # fmt: skip
        x, label = (2, 3, 5), f"{scheme}.branch{index}of{branches}"
        yield "residual", label, (scheme,), settings, {"x": x, "w": (5, 5), "dy": x}
        yield "residual_split", label, (scheme,), settings, {"x": x, "dy": x}
        yield "residual_add", label, (scheme,), settings, {"branch": x, "skip": x, "dy": x}
    for alpha, B, T, V in ((1.0, 2, 3, 5), (0.5, 3, 4, 7), (3.0, 2, 5, 17)):
        loss_scale = UnitScaled.cross_entropy(alpha, V, B * T)._asdict()
        settings = {"alpha": alpha, "vocab_size": V, "batch_tokens": B * T, "scale": loss_scale}
        shapes = {"logits": (B, T, V), "targets": ((B, T), V), "dy": ()}
        yield "cross_entropy", f"alpha{alpha:g}", BOTH, settings, shapes
        for scheme in BOTH:
            head = UnitScaled.linear(1 / 4, 4**-0.5 if scheme == "umup" else V**-0.5, B * T)._asdict()
            settings = settings | {"fan_in": 4, "fan_out": V, "scale": head, "loss_scale": loss_scale}
            shapes = {"x": (B, T, 4), "w": (V, 4), "targets": ((B, T), V), "dy": ()}
            yield "linear_cross_entropy", f"alpha{alpha:g}.{scheme}", (scheme,), settings, shapes
    for t, decay in ((1, 0.0), (7, 0.125)):
        settings = {"t": t, "lr": 0.3, "decay": decay, "betas": [0.9, 0.999], "eps": 1e-8}
        yield "adamw", f"t{t}", tuple(SCHEMES), settings, dict.fromkeys("wgmv", (4, 5))


def _draw(name: str, dtype: str, shapes: Shapes) -> Arrays:
    """Standard normal arrays, those of integers uniform. Targets and tokens repeat an id. Adam's moments are those of
    its t: zeros at the first; its gradients are of all sizes down to that of ε."""
    rng = np.random.default_rng(crc32(name.encode()))
    found: Arrays = {}
    for key, shape in shapes.items():
        if key in ("tokens", "targets"):
            size, below = shape
            found[key] = rng.integers(below, size=size).astype(np.int32)
            found[key].flat[-1] = found[key].flat[0]
        else:
            found[key] = np.asarray(rng.standard_normal(shape), dtype)
    if name.startswith("adamw"):
        found["g"] *= _powers_of_2(0, -27, found["g"].shape, dtype)  # 2^-27 is about ε
        found["m"] *= found["g"]
        found["v"] = (found["v"] * found["g"]) ** 2
        if ".t1." in name:
            found["m"], found["v"] = np.zeros_like(found["m"]), np.zeros_like(found["v"])
    if "dy" in shapes and shapes["dy"] == ():
        found["dy"] = np.asarray(1.0, dtype)
    return found


def _powers_of_2(first: int, last: int, shape: tuple[int, ...], dtype: str) -> Array:
    """Whole powers, which every machine has to the bit."""
    exponents = np.rint(np.linspace(first, last, int(np.prod(shape)))).astype(int)
    return np.ldexp(np.ones(shape, dtype), exponents.reshape(shape))


def fp8_cases() -> Iterator[Case]:
    """Both formats: every code, roundings where they are difficult, and linears of rounded operands."""
    for name, fmt in FORMATS.items():
        codes = {"code": np.arange(256, dtype=np.uint8)}
        settings = {"format": name, "max": fmt.max, "min_normal": fmt.min_normal, "min_subnormal": fmt.min_subnormal}
        yield Case(f"fp8_decode.{name}", "fp8_decode", "float32", tuple(SCHEMES), settings, codes)
        x = {"x": rounding_inputs(name)}
        yield Case(f"fp8_round.{name}", "fp8_round", "float32", tuple(SCHEMES), settings, x)
    for label, formats in (
        ("hidden", ("e4m3",) * 3),
        ("down", ("e5m2", "e4m3", "e4m3")),
        ("dy", ("e4m3", "e4m3", "e5m2")),
    ):
        case = f"linear_fp8.{label}"
        settings = {
            "fan_in": 11, "fan_out": 5, "batch_tokens": 12,
            "formats": dict(zip(["x", "w", "dy"], formats, strict=True)),
            "scale": UnitScaled.linear(11**-0.5, 11**-0.5, 12)._asdict(),
        }  # fmt: skip
        arrays = _draw(case, "float32", {"x": (12, 11), "w": (5, 11), "dy": (12, 5)})
        arrays["x"] *= _powers_of_2(-12, 10, (11,), "float32")  # from flushed to saturated, in both formats
        arrays["dy"] *= _powers_of_2(-12, 3, (5,), "float32")
        yield Case(case, "linear_fp8", "float32", BOTH, settings, arrays)


def rounding_inputs(name: str) -> Array:
    """float32: every value of the format, the middle between all neighbours, the float32 beside each, and what lies
    past max; zeros of both signs, infinities and NaN."""
    values = np.arange(256, dtype=np.uint8).view(FLOAT8[name]).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    exact = values.astype(np.float64)
    ties = ((exact[1:] + exact[:-1]) / 2).astype(np.float32)
    largest = FORMATS[name].max
    spacing = largest - exact[-2]
    past = np.array([largest + spacing * k for k in (0.25, 0.5, 0.75, 1.0, 2.0)] + [2 * largest, 1e30], np.float32)
    edge = np.concatenate([ties, past, -past])
    near = [np.nextafter(edge, np.float32(to)) for to in (-np.inf, np.inf)]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 2.0**-140], np.float32)
    return np.concatenate([values, edge, *near, special]).astype(np.float32)


PLANNED = (
    {"width": 16, "layers": 2, "head_dim": 4, "seq_len": 8, "vocab_size": 32},
    {"width": 96, "layers": 3, "head_dim": 16, "seq_len": 48, "vocab_size": 250},
    {"width": 256, "layers": 6, "head_dim": 64, "seq_len": 256, "vocab_size": 32_000},
)
HYPERPARAMETERS = {
    "alpha_res": 0.7, "alpha_res_attn_ratio": 1.7, "alpha_ffn_act": 1.3, "alpha_attn_softmax": 1.5,
    "alpha_loss_softmax": 2.5, "sigma_init": 0.8, "alpha_emb": 1.2, "base_width": 64, "base_layers": 5,
}  # fmt: skip


def plan_cases() -> Iterator[Case]:
    """All numbers of a model in every scheme, over shapes and depths; the last two with no hyperparameter at 1."""
    for scheme in SCHEMES:
        for i, sizes in enumerate(PLANNED):
            known = SCHEMES[scheme].hyperparameters
            chosen = {name: v for name, v in HYPERPARAMETERS.items() if name in known} if i else {}
            config: dict[str, Any] = {"scheme": scheme, **sizes, **chosen}
            settings = _plan_settings(ModelConfig(**config), (48, 120, 1024)[i])
            yield Case(f"plan.{scheme}.w{sizes['width']}", "plan", "float64", (scheme,), settings, {})


def _plan_settings(config: ModelConfig, batch_tokens: int) -> Settings:
    return {"config": asdict(config), "batch_tokens": batch_tokens, "weights": list(plan(config, batch_tokens).weights)}


def model_cases() -> Iterator[Case]:
    """A model of two layers, its first batch and twenty updates: in both dtypes, in FP8, and as later published."""
    config = model_config("umup")
    for label, dtype, c in (
        ("umup", "float64", config), ("umup", "float32", config), ("fp8", "float32", replace(config, fp8="fp8")),
        ("umup-iclr", "float64", replace(config, scheme="umup-iclr")),
        ("umup-iclr", "float32", replace(config, scheme="umup-iclr")),
    ):  # fmt: skip
        yield model_case(c, label, dtype)


def model_config(scheme: str) -> ModelConfig:
    """The config of the model among the vectors: no α is 1, and RMSNorm's ε is large enough to show."""
    return ModelConfig(
        scheme=scheme, width=16, layers=2, head_dim=4, seq_len=6, vocab_size=24, norm_eps=1e-5, alpha_res=0.7,
        alpha_res_attn_ratio=1.7, alpha_ffn_act=1.3, alpha_attn_softmax=1.5, alpha_loss_softmax=2.0,
    )  # fmt: skip


def model_case(config: ModelConfig, label: str, dtype: str) -> Case:
    """Weights, and twenty batches of a text that can be learned: sequences that count up."""
    params = llama.init_params(config, 0, np.dtype(dtype).type)
    rng = np.random.default_rng(1)
    start = rng.integers(config.vocab_size, size=(STEPS, 5, 1))
    ids = ((start + np.arange(config.seq_len + 1)) % config.vocab_size).astype(np.int32)
    settings = _plan_settings(config, 5 * config.seq_len) | {"eta": ETA, "weight_decay": DECAY, "decay": "independent"}
    settings["gradient_constants"] = gradient_constants(plan(config, settings["batch_tokens"]))
    inputs: Arrays = {f"w.{name}": w for name, w in params.items()}
    inputs |= {"tokens": np.ascontiguousarray(ids[..., :-1]), "targets": np.ascontiguousarray(ids[..., 1:])}
    op = "model" if config.fp8 == "none" else "model_fp8"
    return Case(f"{op}.{label}.{dtype}", op, dtype, (config.scheme,), settings, inputs)
