"""A small u-µP in JAX, held against the same cases: op by op, as a model, and through the files."""

import json
from collections.abc import Callable
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from microumup import reference
from microumup.interop.vectors import main, write

jax = pytest.importorskip("jax", reason="needs JAX: pip install -e '.[peers]'")
jnp = jax.numpy


@pytest.fixture(autouse=True)
def x64() -> Any:
    """float64, in these tests alone."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


# ---------------------------------------------------------------------------------------------------------------------
# u-µP in JAX: a factor forward, another backward, and from them every op


def scaler(forward: float, backward: float) -> Callable[[Any], Any]:
    """x times one factor, its gradient times another."""

    @jax.custom_vjp
    def scale(x: Any) -> Any:
        return forward * x

    scale.defvjp(lambda x: (forward * x, None), lambda _, dy: (backward * dy,))
    return scale


def log_interpolate(w: float, upper: float, lower: float) -> float:
    return exp(w * log(upper) + (1 - w) * log(lower))


def linear(x: Any, w: Any, y_power: float = -0.5) -> Any:
    n, b = w.shape[1], x.size // w.shape[1]
    factor = n**y_power
    # dx: fan_in^-1/2, dw: b^-1/2, whatever stands forward
    x, w = scaler(1.0, n**-0.5)(x), scaler(1.0, b**-0.5)(w)
    return scaler(factor, 1.0)(x @ w.T)


def readout(x: Any, w: Any) -> Any:
    return linear(x, w, -1.0)


def embedding(tokens: Any, w: Any) -> Any:
    return scaler(1.0, sqrt(len(w) / tokens.size))(w)[tokens]


def rms_norm(x: Any, *, eps: float) -> Any:
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps)


def rope(x: Any, *, head_dim: int, base: float = 10_000.0) -> Any:
    angle = jnp.outer(jnp.arange(x.shape[1]), base ** (-jnp.arange(0, head_dim, 2) / head_dim))[:, None].astype(x.dtype)
    pairs = x.reshape(*x.shape[:2], -1, head_dim // 2, 2)
    even, odd, c, s = pairs[..., 0], pairs[..., 1], jnp.cos(angle), jnp.sin(angle)
    return jnp.stack((even * c - odd * s, even * s + odd * c), -1).reshape(x.shape)


def attention(q: Any, k: Any, v: Any, *, head_dim: int, alpha: float, seq_len: int) -> Any:
    B, T, D = q.shape
    q, k, v = (x.reshape(B, T, -1, head_dim) for x in (q, k, v))
    scores = alpha / head_dim * jnp.einsum("bthk,bshk->bhts", q, k)
    p = jax.nn.softmax(jnp.where(jnp.tri(T, dtype=bool), scores, -jnp.inf))
    sigma = log_interpolate(1 / (1 + 4 * head_dim / alpha**2), 1, sqrt(log(seq_len) / seq_len))
    return jnp.einsum("bhts,bshk->bthk", p, v).reshape(B, T, D) / sigma


def gated_silu(x_in: Any, x_gate: Any, *, alpha: float) -> Any:
    sigma = log_interpolate(1 / (1 + 1 / alpha**2), 1 / sqrt(2), 1 / 2)
    return x_in * x_gate * jax.nn.sigmoid(alpha * x_gate) / sigma


def residual_layer(f: Any, x: Any, branch: int, branches: int, alpha_res: float, alpha_res_attn_ratio: float) -> Any:
    f2 = alpha_res**2 * 2 / (alpha_res_attn_ratio**2 + 1)
    a2, k = alpha_res_attn_ratio**2 * f2, branch // 2
    tau = f2 / (branches + (k + 1) * a2 + k * f2) if branch % 2 else a2 / (branches + k * a2 + k * f2)
    a, b = sqrt(tau / (tau + 1)), sqrt(1 / (tau + 1))
    return scaler(a, 1.0)(f(scaler(1.0, a)(x))) + b * x  # a waits at the base of the branch


def residual(x: Any, w: Any, *, branch: int, branches: int, alpha_res: float, alpha_res_attn_ratio: float) -> Any:
    return residual_layer(lambda h: h @ w.T, x, branch, branches, alpha_res, alpha_res_attn_ratio)


def cross_entropy(logits: Any, targets: Any, *, alpha: float) -> Any:
    V = logits.shape[-1]
    z = alpha * scaler(1.0, targets.size / alpha * V / sqrt(V - 1))(logits)
    return -jnp.take_along_axis(jax.nn.log_softmax(z), targets[..., None].astype(int), -1).mean()


def adamw(w: Any, g: Any, m: Any, v: Any, *, t: int, lr: float, decay: float, betas: Any, eps: float) -> Any:
    m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
    step = m / (1 - betas[0] ** t) / (jnp.sqrt(v / (1 - betas[1] ** t)) + eps)
    return (1 - decay) * w - lr * step, m, v


OPS: dict[str, Callable[..., Any]] = {
    "linear": linear, "readout": readout, "embedding": embedding, "rms_norm": rms_norm, "rope": rope,
    "attention": attention, "gated_silu": gated_silu, "residual": residual, "cross_entropy": cross_entropy,
    "adamw": adamw,
}  # fmt: skip


def logits(w: dict[str, Any], tokens: Any, config: dict[str, Any]) -> Any:
    c = config
    res = (2 * c["layers"], c["alpha_res"], c["alpha_res_attn_ratio"])
    x = embedding(tokens, w["embedding"])
    for layer in range(c["layers"]):

        def attn(h: Any, at: str = f"layer{layer}.") -> Any:
            h = rms_norm(h, eps=c["norm_eps"])
            q, k, v = (linear(h, w[at + name]) for name in "qkv")
            q, k = (rope(z, head_dim=c["head_dim"]) for z in (q, k))
            h = attention(q, k, v, head_dim=c["head_dim"], alpha=c["alpha_attn_softmax"], seq_len=c["seq_len"])
            return linear(h, w[at + "o"])

        def ffn(h: Any, at: str = f"layer{layer}.") -> Any:
            h = rms_norm(h, eps=c["norm_eps"])
            return linear(
                gated_silu(linear(h, w[at + "up"]), linear(h, w[at + "gate"]), alpha=c["alpha_ffn_act"]), w[at + "down"]
            )

        x = residual_layer(attn, x, 2 * layer, *res)
        x = residual_layer(ffn, x, 2 * layer + 1, *res)
    return readout(rms_norm(x, eps=c["norm_eps"]), w["head"])


def loss(w: dict[str, Any], tokens: Any, targets: Any, config: dict[str, Any]) -> Any:
    return cross_entropy(logits(w, tokens, config), targets, alpha=config["alpha_loss_softmax"])


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("op", [op for op in OPS if op != "adamw"])
def test_an_op_passes(op: str, dtype: str) -> None:
    assert "WRONG" not in reference.check(op, OPS[op], framework="jax", dtype=dtype)


def test_without_x64_float64_cases_are_judged_as_float32() -> None:
    jax.config.update("jax_enable_x64", False)
    assert "WRONG" not in reference.check("attention", attention, framework="jax")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_model_passes(dtype: str) -> None:
    assert "18 right" in reference.check_model(loss, logits=logits, framework="jax", dtype=dtype)


def test_a_linear_that_jax_differentiates_by_itself_is_rejected() -> None:
    with pytest.raises(AssertionError, match="likely cause: the true derivative: all gradients have the forward's"):
        reference.check("linear", lambda x, w: x @ w.T * w.shape[1] ** -0.5, framework="jax")


def test_jax_passes_through_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    (tmp_path / "outputs").mkdir()
    outputs: dict[str, dict[str, Any]] = {}
    for case in json.loads((tmp_path / "index.json").read_text())["cases"]:
        if "umup" not in case["schemes"] or (case["op"] not in OPS and case["op"] != "model"):
            continue
        arrays = load_file(tmp_path / "inputs" / case["file"])
        given = {name: jnp.asarray(arrays[f"{case['name']}/{name}"]) for name in case["inputs"]}
        for name, array in (trained if case["op"] == "model" else answered)(case, given).items():
            outputs.setdefault(case["file"], {})[f"{case['name']}/{name}"] = np.array(array)
    for file, found in outputs.items():
        save_file(found, tmp_path / "outputs" / file)
    only = [f"{op}.*" for op in OPS] + ["model.*"]
    assert main(["check", str(tmp_path), "--scheme", "umup", "--only", *only]) == 0, capsys.readouterr().out


def answered(case: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    from inspect import signature

    f = OPS[case["op"]]
    settings = {k: v for k, v in case["settings"].items() if k in signature(f).parameters and k not in given}
    if case["op"] == "adamw":
        return dict(zip(("new_w", "new_m", "new_v"), f(*given.values(), **settings), strict=True))
    dy = given.pop("dy")
    floats = {name: x for name, x in given.items() if x.dtype.kind == "f"}
    y, back = jax.vjp(lambda floats: f(*(given | floats).values(), **settings), floats)
    return {"y": y} | {f"d{name}": g for name, g in back(dy)[0].items()}


def trained(case: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Twenty updates; a weight learns at η times the C of Table 1."""
    s, c = case["settings"], case["settings"]["config"]
    tokens, targets = given.pop("tokens"), given.pop("targets")
    w = {name[2:]: x for name, x in given.items()}
    C = {name: (x.shape[1] * 2 * c["layers"]) ** -0.5 for name, x in w.items()}
    C |= {"embedding": c["width"] ** -0.5, "head": 1.0}
    m, v = ({name: jnp.zeros_like(x) for name, x in w.items()} for _ in range(2))
    found: dict[str, Any] = {"logits": logits(w, tokens[0], c)}
    step = jax.jit(jax.value_and_grad(lambda w, ids, hits: loss(w, ids, hits, c)))
    losses = []
    for t in range(len(tokens)):
        out, grads = step(w, tokens[t], targets[t])
        if not t:
            found |= {"loss": out} | {f"grad.{name}": g for name, g in grads.items()}
        losses.append(out)
        for name in w:
            settings = {
                "t": t + 1,
                "lr": s["eta"] * C[name],
                "decay": s["weight_decay"],
                "betas": (0.9, 0.999),
                "eps": 1e-8,
            }
            w[name], m[name], v[name] = adamw(w[name], grads[name], m[name], v[name], **settings)
        if not t:
            found |= {f"after1.{name}": x for name, x in w.items()}
    return found | {"losses": jnp.stack(losses)} | {f"trained.{name}": x for name, x in w.items()}
