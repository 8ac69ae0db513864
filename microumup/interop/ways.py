"""Other ways to do an op, a Plan or a model: the mistakes that people make, each run on the inputs of a case.

`causes.py` tries them on what a candidate put out. WAYS has them by op: words, and what the outputs would be.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from math import erf, log, sqrt
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np

from microumup import ops
from microumup.backend import Array
from microumup.config import ModelConfig
from microumup.engine import using
from microumup.fp8 import FORMATS, quantize
from microumup.interop.cases import FLOAT8, PAIRS, Arrays, Case, Settings, run, run_pair
from microumup.lab.mistakes import ZOO, eq_22_as_printed, planted
from microumup.multipliers import UnitScaled, residual_multipliers, residual_taus
from microumup.parametrization import SCHEMES

Alternative = Callable[[Case], Arrays]


def alternatives(case: Case) -> Iterator[tuple[str, Alternative]]:
    """Words, and the outputs of the case if it were done so."""
    op = {"attention_cached": "attention", "rope_offset": "rope", "model_fp8": "model"}.get(case.op, case.op)
    yield from WAYS.get(op, ())
    if case.settings.get("scale", {}).get("y", 1.0) != 1.0:
        yield from FACTORS_ASTRAY
    if op in ("plan", "model"):
        yield from of_models(case)


def changed(**settings: Any) -> Alternative:
    """The case with other settings; a function of the settings may stand for a value."""

    def alternative(case: Case) -> Arrays:
        s = case.settings
        new = {name: value(s) if callable(value) else value for name, value in settings.items()}
        scale = s.get("scale", {}) | new.pop("scale", {})
        return run(case.op, case.inputs, s | new | ({"scale": scale} if scale else {}))

    return alternative


def scaled(**rules: Callable[[Settings], float]) -> Alternative:
    """The case with these of its factors changed."""
    return changed(scale=lambda s: {name: rule(s) for name, rule in rules.items()})


def backward_of(**settings: Any) -> Alternative:
    """y as it should be, the gradients of the case with other settings."""

    def alternative(case: Case) -> Arrays:
        return changed(**settings)(case) | {"y": run(case.op, case.inputs, case.settings)["y"]}

    return alternative


def inputs(**rules: Callable[[Case], Array]) -> Alternative:
    """The case with other inputs; gradients are those for the inputs that they were."""
    return lambda case: run(case.op, case.inputs | {name: rule(case) for name, rule in rules.items()}, case.settings)


def pair(forward: Any = None, backward: Any = None) -> Alternative:
    """The case run by another forward, or backward."""

    def alternative(case: Case) -> Arrays:
        own = PAIRS[case.op]
        return run_pair(forward or own[0], backward or own[1], case.inputs, case.settings)

    return alternative


def patched(outputs: Callable[[Case, Arrays], Arrays]) -> Alternative:
    """The right outputs, some of them replaced."""

    def alternative(case: Case) -> Arrays:
        right = run(case.op, case.inputs, case.settings)
        return right | outputs(case, right)

    return alternative


def of_scale(name: str) -> Callable[[Settings], float]:
    return lambda s: float(s["scale"][name])


def one(_: Settings) -> float:
    return 1.0


FACTORS_ASTRAY: tuple[tuple[str, Alternative], ...] = (
    ("no factor anywhere, forward or backward", scaled(y=one, dx=one, dw=one)),
    ("the derivative of the unscaled op: no gradient has its factor", scaled(dx=one, dw=one)),
    ("the true derivative: all gradients have the forward's factor", scaled(dx=of_scale("y"), dw=of_scale("y"))),
    ("the factor is missing forward, though not backward", scaled(y=one)),
)


# ---- embedding, rms_norm ----
def overwriting(case: Case, right: Arrays) -> Arrays:
    dw = np.zeros_like(right["dw"])
    dw[case.inputs["tokens"]] = case.settings["scale"]["dw"] * case.inputs["dy"]
    return {"dw": dw}


def rms_norm_by(divisor: Callable[[Array, float], Array], center: bool = False) -> Alternative:
    """y = x over another root; the gradient by differences of it along each element."""

    def alternative(case: Case) -> Arrays:
        x, dy, eps = case.inputs["x"].astype(np.float64), case.inputs["dy"], case.settings["eps"]

        def f(x: Array) -> Array:
            x = x - x.mean(-1, keepdims=True) if center else x
            return x / divisor(x, eps)

        dx, h = np.empty_like(x), 1e-5
        for i in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[i] = h
            dx[i] = ((f(x + step) - f(x - step)) * dy).sum() / (2 * h)
        return {"y": f(x), "dx": dx}

    return alternative


def mean_square(x: Array) -> Array:
    return np.asarray(np.mean(x * x, axis=-1, keepdims=True))


# ---- rope ----
def halves(case: Case) -> Arrays:
    """Pairs made of an element and that half a head behind it."""
    order = _by_halves(case.settings["head_dim"])
    found = run(case.op, {name: _in_heads(a, order) for name, a in case.inputs.items()}, case.settings)
    return {name: _in_heads(a, np.argsort(order)) for name, a in found.items()}


def _by_halves(head_dim: int) -> Array:
    return np.arange(head_dim).reshape(2, -1).T.ravel()


def _in_heads(x: Array, index: Array) -> Array:
    """Every head of x with its elements in another order."""
    return np.ascontiguousarray(x.reshape(*x.shape[:-1], -1, len(index))[..., index]).reshape(x.shape)


# ---- attention ----
def interleaved(case: Case) -> Arrays:
    """Heads that take every H-th element instead of K neighbours."""
    K = case.settings["head_dim"]

    def gather(x: Array) -> Array:
        return np.ascontiguousarray(x.reshape(*x.shape[:-1], K, -1).swapaxes(-1, -2)).reshape(x.shape)

    def scatter(x: Array) -> Array:
        return np.ascontiguousarray(x.reshape(*x.shape[:-1], -1, K).swapaxes(-1, -2)).reshape(x.shape)

    return {
        name: scatter(a)
        for name, a in run(case.op, {n: gather(a) for n, a in case.inputs.items()}, case.settings).items()
    }


def unmasked(case: Case) -> Arrays:
    """Attention in which every query sees every key."""
    with patch.object(ops, "causal_mask", lambda xp, T, S, dtype: xp.zeros((T, S), dtype)):
        return run(case.op, case.inputs, case.settings)


def first_positions(case: Case) -> Arrays:
    """Queries that are the first of the positions, not the last."""
    T = case.inputs["q"].shape[1]
    short = run(case.op, case.inputs | {n: case.inputs[n][:, :T] for n in "kv"}, case.settings)
    return short | {f"d{n}": np.concatenate((short[f"d{n}"], 0 * case.inputs[n][:, T:]), 1) for n in "kv"}


def attention_factor(alpha: Callable[[Settings], float], length: Callable[[Case], int] | None = None) -> Alternative:
    def alternative(case: Case) -> Arrays:
        s = case.settings
        n = length(case) if length else s["seq_len"]
        factor = UnitScaled.attention(alpha(s), s["head_dim"], n)
        return scaled(y=lambda _: factor.y, dx=lambda _: factor.dx)(case)

    return alternative


# ---- gated_silu ----
def gated_gelu(case: Case) -> Arrays:
    x, g, dy, a = (*(case.inputs[n].astype(np.float64) for n in ("x_in", "x_gate", "dy")), case.settings["alpha"])
    c = case.settings["scale"]
    phi = 0.5 * (1 + np.vectorize(erf)(a * g / sqrt(2)))
    slope = phi + a * g * np.exp(-((a * g) ** 2) / 2) / sqrt(2 * np.pi)
    return {"y": c["y"] * x * g * phi, "dx_in": c["dx"] * dy * g * phi, "dx_gate": c["dx"] * dy * x * slope}


def silu_alpha_lost(case: Case, right: Arrays) -> Arrays:
    """The sigmoid's derivative without the α that the chain rule brings."""
    x, g, dy, a = (*(case.inputs[n] for n in ("x_in", "x_gate", "dy")), case.settings["alpha"])
    sigmoid = 1 / (1 + np.exp(-a * g))
    return {"dx_gate": case.settings["scale"]["dx"] * dy * x * (sigmoid + g * sigmoid * (1 - sigmoid))}


def swapped(a: str, b: str) -> Alternative:
    return inputs(**{a: lambda case: case.inputs[b], b: lambda case: case.inputs[a]})


# ---- residual ----
def other_branch(rule: Callable[[Settings], list[tuple[float, float]]]) -> Alternative:
    """The (a, b) that another rule has for the branch."""

    def alternative(case: Case) -> Arrays:
        a, b = rule(case.settings)[case.settings["branch"]]
        return changed(scale=lambda _: UnitScaled.residual(a, b)._asdict())(case)

    return alternative


def by_taus(L: Callable[[Settings], int] = lambda s: int(s["branches"]), res: float = 1.0, power: float = 1.0) -> Any:
    def rule(s: Settings) -> list[tuple[float, float]]:
        taus = residual_taus(L(s), res * s["alpha_res"], s["alpha_res_attn_ratio"])
        return residual_multipliers([tau**power for tau in taus])

    return rule


# ---- cross_entropy ----
def no_onehot(case: Case, right: Arrays) -> Arrays:
    logits = case.inputs["logits"] * case.settings["alpha"]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    factor = case.settings["scale"]["dx"] * case.settings["alpha"] / case.settings["batch_tokens"]
    return {"dlogits": factor * p / p.sum(-1, keepdims=True)}


# ---- adamw ----
def adamw_by(step: Callable[..., Array]) -> Alternative:
    """Another last line of the update."""

    def last(case: Case, right: Arrays) -> Arrays:
        s = case.settings
        m, v = right["new_m"], right["new_v"]
        m_hat, v_hat = m / (1 - s["betas"][0] ** s["t"]), v / (1 - s["betas"][1] ** s["t"])
        return {"new_w": step(case.inputs["w"], m, v, m_hat, v_hat, s["lr"], s["decay"], s["eps"])}

    return patched(last)


def adamw_moments(case: Case) -> Arrays:
    """Decay as part of the gradient: L2, as in Adam of old."""
    s = case.settings
    g = case.inputs["g"] + s["decay"] * case.inputs["w"]
    return run(case.op, case.inputs | {"g": g}, s | {"decay": 0.0})


# ---- FP8 ----
OTHER_FLOAT8 = {
    "E4M3 with infinities, max 240 instead of 448": ("e4m3", ml_dtypes.float8_e4m3),
    "E4M3 of bias 8 (fnuz), max 240 instead of 448": ("e4m3", ml_dtypes.float8_e4m3fnuz),
    "E5M2 of bias 16 (fnuz)": ("e5m2", ml_dtypes.float8_e5m2fnuz),
    "E5M2 in place of E4M3": ("e4m3", ml_dtypes.float8_e5m2),
    "E4M3 in place of E5M2": ("e5m2", ml_dtypes.float8_e4m3fn),
}


def other_float8(name: str, dtype: Any) -> Alternative:
    def alternative(case: Case) -> Arrays:
        if case.settings["format"] != name:
            return {}
        if case.op == "fp8_decode":
            return {"value": case.inputs["code"].view(dtype).astype(np.float32)}
        x, most = case.inputs["x"], float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        return {"saturating": np.clip(x, -most, most).astype(dtype).astype(np.float32),
                "nonsaturating": x.astype(dtype).astype(np.float32)}  # fmt: skip

    return alternative


def rounded(how: Callable[[Array, Array], Array]) -> Alternative:
    """Another rounding of y = x/step to whole numbers; how(y, step)."""

    def alternative(case: Case) -> Arrays:
        fmt = FORMATS[case.settings["format"]]
        found = {}
        for name, x in (
            ("saturating", np.clip(case.inputs["x"], -fmt.max, fmt.max)),
            ("nonsaturating", case.inputs["x"]),
        ):
            finite = np.where(np.isfinite(x), x, 1.0).astype(np.float64)
            exponent = np.floor(np.log2(np.maximum(np.abs(finite), fmt.min_normal)))
            step = 2.0 ** (exponent - fmt.mantissa_bits)
            y = np.where(np.isfinite(x), np.copysign(how(finite / step, step) * step, finite), x)
            if name == "nonsaturating":
                past = np.abs(y) > fmt.max
                y = np.where(past, np.nan if fmt.name == "e4m3" else np.copysign(np.inf, y), y)
            found[name] = y.astype(np.float32)
        return found

    return alternative


def away(y: Array, _: Array) -> Array:
    return np.asarray(np.floor(np.abs(y) + 0.5))


def truncated(y: Array, _: Array) -> Array:
    return np.asarray(np.floor(np.abs(y)))


def flushed(case: Case, right: Arrays) -> Arrays:
    least = case.settings["min_normal"]
    return {name: np.where(np.abs(a) < least, np.copysign(np.float32(0), a), a) for name, a in right.items()}


def without_subnormals(case: Case, right: Arrays) -> Arrays:
    if case.op == "fp8_decode":
        return {}
    x, least = case.inputs["x"], np.float32(case.settings["min_normal"])
    small = np.abs(x) < least
    return {name: np.where(small, np.copysign(np.rint(np.abs(x) / least) * least, x), a) for name, a in right.items()}


def unsigned_zero(case: Case, right: Arrays) -> Arrays:
    return {name: np.where(a == 0, np.float32(0), a) for name, a in right.items()}


def overflowed(case: Case, right: Arrays) -> Arrays:
    return {"saturating": right["nonsaturating"]}


def saturated(case: Case, right: Arrays) -> Arrays:
    return {"nonsaturating": right["saturating"]}


def max_480(case: Case, right: Arrays) -> Arrays:
    """The code of NaN read as the number 480."""
    if case.settings["format"] != "e4m3":
        return {}
    name, a = next(iter(right.items()))
    x = (
        np.where(np.arange(len(a)) % 256 >= 128, -480.0, 480.0)
        if name == "value"
        else np.copysign(480, case.inputs["x"])
    )
    past = np.isnan(a) if name == "value" else np.abs(case.inputs["x"]) > 464
    return {name: np.where(past & ~np.isnan(case.inputs.get("x", 0.0)), x, a).astype(np.float32)}


def fp8_formats(**formats: str) -> Alternative:
    return changed(formats=lambda s: s["formats"] | formats)


def before_cast(tensor: str, outputs: tuple[str, ...]) -> Alternative:
    """A factor that is put on an operand before its cast, not on the product."""

    def way(case: Case, right: Arrays) -> Arrays:
        s = case.settings
        found = {}
        for name in outputs:
            factor = s["scale"][name]
            moved = case.inputs | {tensor: (case.inputs[tensor] * np.float32(factor)).astype(np.float32)}
            found[name] = run(case.op, moved, s | {"scale": s["scale"] | {name: 1.0}})[name]
        return found

    return patched(way)


def per_tensor(case: Case) -> Arrays:
    """Every operand scaled so that its largest element is max, and back."""
    scaled_inputs, back = {}, {}
    for name, a in case.inputs.items():
        fmt = case.settings["formats"][name]
        back[name] = float(np.abs(a).max()) / FORMATS[fmt].max
        scaled_inputs[name] = quantize((a / np.float32(back[name])).astype(np.float32), FORMATS[fmt]) * np.float32(
            back[name]
        )
    return run(case.op, scaled_inputs, case.settings | {"formats": dict.fromkeys(["x", "w", "dy"], "none")})


def times_sqrt_K(s: Settings) -> float:
    return float(s["score_scale"] * s["head_dim"] ** 0.5)


Ways = tuple[tuple[str, Alternative], ...]
WAYS: dict[str, Ways] = {
    "embedding": (("rows of tokens that occur twice are overwritten, not added up", patched(overwriting)),),
    "rms_norm": (
        ("the gradient takes the root mean square for a constant", pair(backward=lambda dy, saved: (dy * saved[1],))),
        ("ε stands outside of the root", rms_norm_by(lambda x, eps: np.sqrt(mean_square(x)) + eps)),
        ("ε is missing", changed(eps=0.0)),
        ("the mean is taken off, as in LayerNorm", rms_norm_by(lambda x, eps: np.sqrt(mean_square(x) + eps), center=True)),
        ("a sum of squares in place of their mean",
         rms_norm_by(lambda x, eps: np.sqrt(mean_square(x) * x.shape[-1] + eps))),
    ),
    "rope": (
        ("pairs are halves of a head (i, i + K/2), not neighbours (2i, 2i + 1)", halves),
        ("the backward turns on, not back", pair(backward=lambda dy, turn: ops.rope_backward(dy, turn.conj()))),
        ("it turns the other way", pair(
            lambda x, **kw: (lambda turn: (ops.rope_backward(x, turn)[0], turn.conj()))(ops.rope_forward(x, **kw)[1]))),
        ("positions are counted from 1", changed(start=lambda s: s["start"] + 1)),
        ("the start is ignored", changed(start=0)),
        ("frequencies are base^(-i/K), not base^(-2i/K)", changed(base=lambda s: s["base"] ** 0.5)),
        ("angles run over the whole width, not anew in every head", lambda case: changed(
            head_dim=case.inputs["x"].shape[-1])(case)),
    ),
    "attention": (
        ("σ of the input's length, not of the training length s",
         attention_factor(lambda s: s["alpha"], lambda case: case.inputs["k"].shape[1])),
        ("scores of α/√K, not α/K", changed(score_scale=times_sqrt_K)),
        ("scores without their scale α/K", changed(score_scale=1.0)),
        ("α is missing in the scores", changed(score_scale=lambda s: s["score_scale"] / s["alpha"])),
        ("α is missing in the backward", backward_of(score_scale=lambda s: s["score_scale"] / s["alpha"])),
        ("dq and dk lack the scores' scale α/K", patched(
            lambda case, right: {n: right[n] / case.settings["score_scale"] for n in ("dq", "dk")})),
        ("dq and dk lack the α of the scores' scale", patched(
            lambda case, right: {n: right[n] / case.settings["alpha"] for n in ("dq", "dk")})),
        ("σ of α = 1", attention_factor(one)),
        ("no causal mask", unmasked),
        ("a head takes every H-th element, not K neighbours", interleaved),
        ("k and v are swapped", swapped("k", "v")),
        ("queries are the first positions, not the last", first_positions),
    ),
    "gated_silu": (
        ("x_in and x_gate are swapped", swapped("x_in", "x_gate")),
        ("α is missing in the sigmoid's derivative", patched(silu_alpha_lost)),
        ("α is missing in the backward", backward_of(alpha=1.0)),
        ("α is missing", changed(alpha=1.0)),
        ("σ of α = 1", scaled(y=lambda s: UnitScaled.gated_silu(1.0).y, dx=lambda s: UnitScaled.gated_silu(1.0).y)),
        ("a GELU in place of the SiLU", gated_gelu),
    ),
    "residual": (
        ("a on the dy of the branch, not at its base", scaled(dbranch=of_scale("a"), dbase=one)),
        ("a both on the dy of the branch and at its base", scaled(dbranch=of_scale("a"))),
        ("a nowhere in the backward", scaled(dbase=one)),
        ("a is there twice forward", scaled(a=lambda s: s["scale"]["a"] ** 2)),
        ("a and b are swapped", scaled(
            a=of_scale("b"), b=of_scale("a"), dbase=of_scale("b"))),
        ("b is missing", scaled(b=one)),
        ("b is missing in the backward", patched(lambda case, right: {
            "dx": right["dx"] + (1 - case.settings["scale"]["b"]) * case.inputs["dy"]})),
        ("no factors: R' = f(R) + R", scaled(a=one, b=one, dbase=one)),
        ("τ as eq. (22) prints it, without squares", other_branch(
            lambda s: eq_22_as_printed(s["branches"], 0, s["alpha_res"], s["alpha_res_attn_ratio"]))),
        ("τ taken for a ratio of standard deviations", other_branch(by_taus(power=0.5))),
        ("√τ taken for τ", other_branch(by_taus(power=2.0))),
        ("L counts layers, not branches: that is umup-iclr", other_branch(by_taus(res=sqrt(2)))),
        ("L counts branches, not layers: that is umup", other_branch(by_taus())),
        ("α_res-attn-ratio is inverted: attention and FFN are taken for each other", other_branch(
            lambda s: residual_multipliers(residual_taus(s["branches"], s["alpha_res"], 1 / s["alpha_res_attn_ratio"])))),
        ("α_res and its ratio are ignored", other_branch(lambda s: residual_multipliers(residual_taus(s["branches"], 1.0, 1.0)))),
    ),
    "cross_entropy": (
        ("α is missing", changed(alpha=1.0, scale=lambda s: {"dx": s["scale"]["dx"] * s["alpha"]})),
        ("α is missing in the backward's softmax", backward_of(
            alpha=1.0, scale=lambda s: {"dx": s["scale"]["dx"] * s["alpha"]})),
        ("dlogits lack the onehot of the target", patched(no_onehot)),
        ("the true derivative of the mean loss: 1/b and α are still in it", scaled(dx=one)),
        ("1/b is still in the gradient", scaled(dx=lambda s: s["scale"]["dx"] / s["batch_tokens"])),
        ("α is in the gradient", scaled(dx=lambda s: s["scale"]["dx"] * s["alpha"])),
        ("V/√(V-1) is missing in the gradient", scaled(dx=lambda s: s["batch_tokens"] / s["alpha"])),
        ("the loss is a sum over tokens, not their mean", patched(
            lambda case, right: {"y": right["y"] * case.settings["batch_tokens"]})),
        ("the loss is in bits, not in nats", patched(lambda case, right: {"y": right["y"] / log(2)})),
    ),
    "adamw": (
        ("the decay is multiplied by the learning rate", changed(decay=lambda s: s["lr"] * s["decay"])),
        ("the decay is part of the gradient (L2), not decoupled", adamw_moments),
        ("ε stands under the root", adamw_by(lambda w, m, v, mh, vh, lr, d, eps: (1 - d) * w - lr * mh / np.sqrt(vh + eps))),
        ("no bias correction", adamw_by(lambda w, m, v, mh, vh, lr, d, eps: (1 - d) * w - lr * m / (np.sqrt(v) + eps))),
        ("the decay is taken from the updated weight", adamw_by(
            lambda w, m, v, mh, vh, lr, d, eps: (1 - d) * (w - lr * mh / (np.sqrt(vh) + eps)))),
        ("there is no decay", changed(decay=0.0)),
        ("β1 and β2 are swapped", changed(betas=lambda s: s["betas"][::-1])),
        ("no root of v", adamw_by(lambda w, m, v, mh, vh, lr, d, eps: (1 - d) * w - lr * mh / (vh + eps))),
    ),
    "fp8_decode": tuple((words, other_float8(*of)) for words, of in OTHER_FLOAT8.items()) + (
        ("max 480: the code of NaN is read as a number", patched(max_480)),
        ("subnormals are flushed to zero", patched(flushed)), ("the sign of zero is lost", patched(unsigned_zero)),
    ),
    "fp8_round": tuple((words, other_float8(*of)) for words, of in OTHER_FLOAT8.items()) + (
        ("ties go away from zero, not to the even neighbour", rounded(away)),
        ("it rounds toward zero, not to the nearest", rounded(truncated)),
        ("subnormals are flushed to zero", patched(flushed)), ("the sign of zero is lost", patched(unsigned_zero)),
        ("past max there is NaN or infinity, where it should saturate", patched(overflowed)),
        ("past max it saturates, where a plain cast has NaN or infinity", patched(saturated)),
        ("max 480: the code of NaN is used as a number", patched(max_480)),
    ),
    "linear_fp8": (
        ("nothing is cast", fp8_formats(x="none", w="none", dy="none")),
        ("dy is not cast", fp8_formats(dy="none")), ("x is not cast", fp8_formats(x="none")),
        ("w is not cast", fp8_formats(w="none")),
        *((f"{tensor} is cast to {fmt.upper()}", fp8_formats(**{tensor: fmt})) for tensor in ("dy", "x", "w") for fmt in FLOAT8),
        ("the factor is on x before its cast, not after the matmul", before_cast("x", ("y",))),
        ("the factor is on w before its cast, not after the matmul", before_cast("w", ("y", "dx"))),
        ("the factor is on dy before its cast, not after the matmul", before_cast("dy", ("dx", "dw"))),
        ("operands are scaled to their largest element (per-tensor scaling)", per_tensor),
    ),
}  # fmt: skip


# ---- Plans and models ----
def of_models(case: Case) -> Iterator[tuple[str, Alternative]]:
    """Mistakes of the zoo, other schemes, hyperparameters that are ignored: what a Plan and a model can have wrong."""

    def again(case: Case, config: ModelConfig | None = None, **settings: Any) -> Arrays:
        s = case.settings | settings | ({"config": asdict(config)} if config else {})
        return run(case.op, case.inputs, s)

    config = ModelConfig(**case.settings["config"])
    if case.op != "plan":
        constants = case.settings["gradient_constants"]
        yield ("the gradients are those of the mean loss, without Table 4's backward factors", patched(lambda case, right: {
            f"grad.{name}": right[f"grad.{name}"] / c for name, c in constants.items()}))  # fmt: skip

        def with_kernels(case: Case) -> Arrays:
            with using({ops.rope: (_halves_forward, _halves_backward)}):
                return again(case)

        yield "RoPE's pairs are halves of a head (i, i + K/2), not neighbours (2i, 2i + 1)", with_kernels
    if config.scheme == "umup":
        for name, mistake in ZOO.items():
            if name != "nothing":

                def alternative(case: Case, mistake: Any = mistake) -> Arrays:
                    with planted(mistake):
                        return again(case)

                yield f"{mistake.what}; it is {mistake.rule}" if mistake.rule else mistake.what, alternative
    defaults = ModelConfig(scheme=config.scheme)
    for name in SCHEMES[config.scheme].hyperparameters:
        value = getattr(defaults, name) if name not in ("base_width", "base_layers") else getattr(config, name[5:])
        if getattr(config, name) != value:
            ignored = replace(config, **{name: value})
            yield f"{name} is ignored", lambda case, c=ignored: again(case, c)
    yield (
        "b counts sequences, not tokens",
        lambda case: again(case, batch_tokens=max(1, case.settings["batch_tokens"] // config.seq_len)),
    )
    for scheme, row in SCHEMES.items():
        if scheme != config.scheme:
            kept = {n: v for n, v in asdict(config).items() if n in row.hyperparameters or n in _SIZES}
            other = ModelConfig(**kept | {"scheme": scheme})
            yield f"this is {scheme}, not {config.scheme}", lambda case, c=other: again(case, c)


_SIZES = ("width", "layers", "head_dim", "seq_len", "vocab_size", "fp8", "norm_eps", "rope_base")


def _halves_forward(x: Array, *, head_dim: int, base: float, start: int) -> Any:
    order = _by_halves(head_dim)
    y, turn = ops.rope_forward(_in_heads(x, order), head_dim=head_dim, base=base, start=start)
    return _in_heads(y, np.argsort(order)), (turn, order)


def _halves_backward(dy: Array, saved: Any) -> tuple[Array]:
    turn, order = saved
    return (_in_heads(ops.rope_backward(_in_heads(dy, order), turn)[0], np.argsort(order)),)
