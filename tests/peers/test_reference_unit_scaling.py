"""The library `unit-scaling`, by PyTorch's autodiff, through `reference.check` and through the golden vectors.

It passes as `umup-iclr` but for what it does on purpose otherwise, and there the report has to say what that is:

* attention's factor is that of the input's length, where ours is that of the training length;
* its rms_norm goes through float32, so float64 cases of it, and of models, are right to float32's precision only;
* its E4M3 has a larger bias and a max of 240, its ties go toward zero: not OCP's float8;
* the linears of its own MLP come without a constraint, which √(F/D) in two gradients shows.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from microumup import reference
from microumup.interop.vectors import main, write

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[peers]'")
uu = pytest.importorskip("unit_scaling", reason="needs unit-scaling: pip install -e '.[peers]'")
U, F = uu.functional, torch.nn.functional


def heads(x: Any, head_dim: int) -> Any:
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attention(q: Any, k: Any, v: Any, *, head_dim: int, alpha: float) -> Any:
    q, k, v = (heads(x, head_dim) for x in (q, k, v))
    return U.scaled_dot_product_attention(q, k, v, is_causal=True, mult=alpha).transpose(1, 2).flatten(-2)


def residual(x: Any, w: Any, *, branch: int, branches: int, alpha_res: float, alpha_res_attn_ratio: float) -> Any:
    tau = uu.transformer_residual_scaling_rule(alpha_res, alpha_res_attn_ratio)(branch, branches)
    return U.residual_apply(lambda h: F.linear(h, w), x, tau)


OPS = {
    "linear": lambda x, w: U.linear(x, w, None),
    "readout": lambda x, w: U.linear_readout(x, w, None),
    "embedding": U.embedding,
    "attention": attention,
    "gated_silu": lambda x_in, x_gate, *, alpha: U.silu_glu(x_in, x_gate, mult=alpha),
    "residual": residual,
    "cross_entropy": lambda z, t, *, alpha: U.cross_entropy(z.flatten(0, 1), t.flatten(), mult=alpha),
    "rms_norm": lambda x, *, eps: U.rms_norm(x, x.shape[-1:], eps=eps),
}


def check(op: str, **settings: Any) -> str:
    return reference.check(op, OPS[op], framework="torch", scheme="umup-iclr", **settings)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("op", ["linear", "readout", "embedding", "gated_silu", "residual", "cross_entropy"])
def test_an_op_passes(op: str, dtype: str) -> None:
    assert "WRONG" not in check(op, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_attention_passes_where_the_input_is_as_long_as_in_training(dtype: str) -> None:
    assert "WRONG" not in check("attention", dtype=dtype, only="attention.alpha*")
    with pytest.raises(AssertionError, match="4 of 16 WRONG") as error:
        check("attention", dtype=dtype)
    assert "likely cause: σ of the input's length, not of the training length s (4 of 4 failures)" in str(error.value)


def test_rms_norm_passes_in_float32_and_is_said_to_be_float32_in_float64() -> None:
    assert "WRONG" not in check("rms_norm", dtype="float32")
    with pytest.raises(AssertionError, match="likely cause: right to float32's precision"):
        check("rms_norm")


def test_as_umup_the_readout_and_the_residual_do_not_pass() -> None:
    with pytest.raises(AssertionError, match=r"dx: the factor is fan_out\^-1/2, not fan_in\^-1/2"):
        reference.check("readout", OPS["readout"], framework="torch")
    with pytest.raises(AssertionError, match="L counts layers, not branches: that is umup-iclr"):
        reference.check("residual", residual, framework="torch")


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_its_fp8_is_another_and_the_report_says_which(name: str) -> None:
    FPFormat = pytest.importorskip("unit_scaling.formats").FPFormat
    formats = {"e4m3": FPFormat(4, 3, "nearest"), "e5m2": FPFormat(5, 2, "nearest")}

    def quantise(x: Any, *, format: str) -> Any:
        return formats[format].quantise(x)

    with pytest.raises(AssertionError) as error:
        reference.check("fp8_round", quantise, framework="torch", only=f"*{name}")
    assert "likely cause: a bias larger by 1 (fnuz), E4M3's max 240 instead of 448; and ties go toward zero" in str(
        error.value
    )


# ---------------------------------------------------------------------------------------------------------------------
# A whole decoder


def rope(x: Any, config: dict[str, Any]) -> Any:
    """Neighbours of a head as complex numbers, turned; the library leaves it to others."""
    K, T = config["head_dim"], x.shape[1]
    angle = torch.outer(
        torch.arange(T, dtype=x.dtype), config["rope_base"] ** (-torch.arange(0, K, 2, dtype=x.dtype) / K)
    )
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, K // 2, 2))) * turn).flatten(2)


def logits(w: dict[str, Any], tokens: Any, config: dict[str, Any], constraint: str | None = "to_output_scale") -> Any:
    c, D = config, config["width"]
    branches = 2 * c["layers"]
    tau = uu.transformer_residual_scaling_rule(c["alpha_res"], c["alpha_res_attn_ratio"])
    x = U.embedding(tokens, w["embedding"])
    for layer in range(c["layers"]):
        of = {name: w[f"layer{layer}.{name}"] for name in ("q", "k", "v", "o", "up", "gate", "down")}
        h, skip = U.residual_split(x, tau(2 * layer, branches))
        h = U.rms_norm(h, (D,), eps=c["norm_eps"])
        q, k, v = (U.linear(h, of[name], None) for name in "qkv")
        h = attention(rope(q, c), rope(k, c), v, head_dim=c["head_dim"], alpha=c["alpha_attn_softmax"])
        x = U.residual_add(U.linear(h, of["o"], None), skip, tau(2 * layer, branches))
        h, skip = U.residual_split(x, tau(2 * layer + 1, branches))
        h = U.rms_norm(h, (D,), eps=c["norm_eps"])
        up, gate = (U.linear(h, of[name], None, constraint=constraint) for name in ("up", "gate"))
        h = U.silu_glu(up, gate, mult=c["alpha_ffn_act"])
        x = U.residual_add(U.linear(h, of["down"], None, constraint=constraint), skip, tau(2 * layer + 1, branches))
    return U.linear_readout(U.rms_norm(x, (D,), eps=c["norm_eps"]), w["head"], None)


def loss(w: dict[str, Any], tokens: Any, targets: Any, config: dict[str, Any]) -> Any:
    z = logits(w, tokens, config).flatten(0, 1)
    return U.cross_entropy(z, targets.flatten(), mult=config["alpha_loss_softmax"])


def test_a_whole_decoder_passes() -> None:
    text = reference.check_model(loss, logits=logits, framework="torch", scheme="umup-iclr", dtype="float32")
    assert "18 right" in text  # logits, loss and 16 gradients


def test_its_own_mlp_without_a_constraint_is_named() -> None:
    def unconstrained(w: dict[str, Any], tokens: Any, targets: Any, config: dict[str, Any]) -> Any:
        z = logits(w, tokens, config, constraint=None).flatten(0, 1)
        return U.cross_entropy(z, targets.flatten(), mult=config["alpha_loss_softmax"])

    with pytest.raises(AssertionError, match="4 of 17 WRONG") as error:
        reference.check_model(unconstrained, framework="torch", scheme="umup-iclr", dtype="float32")
    assert "grad.layer1.up" in str(error.value)
    assert "likely cause: grad.layer0.gate: a factor √(F/D) too much" in str(error.value)


def test_the_library_passes_through_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a program would that knows nothing of this package but the files: index, inputs, outputs."""
    write(tmp_path)
    (tmp_path / "outputs").mkdir()
    index = json.loads((tmp_path / "index.json").read_text())
    outputs: dict[str, dict[str, Any]] = {}
    for case in index["cases"]:
        if "umup-iclr" not in case["schemes"] or case["name"].startswith("attention.short"):
            continue
        arrays = load_file(tmp_path / "inputs" / case["file"]) if case["inputs"] else {}
        given = {name: torch.tensor(arrays[f"{case['name']}/{name}"]) for name in case["inputs"]}
        found = trained(case, given) if case["op"] == "model" and case["dtype"] == "float32" else answered(case, given)
        for name, array in found.items():
            outputs.setdefault(case["file"], {})[f"{case['name']}/{name}"] = array.detach().contiguous().numpy()
    for file, arrays in outputs.items():
        save_file(arrays, tmp_path / "outputs" / file)
    only = ["attention.alpha*", "rms_norm*32", "model.umup-iclr.float32"]
    only += [f"{op}.*" for op in OPS if op not in ("attention", "rms_norm")]
    assert main(["check", str(tmp_path), "--scheme", "umup-iclr", "--only", *only]) == 0, capsys.readouterr().out


def answered(case: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """y and the gradients of an op."""
    if case["op"] not in OPS:
        return {}
    from inspect import signature

    f, dy = OPS[case["op"]], given.pop("dy")
    known = signature(f).parameters
    settings = {k: v for k, v in case["settings"].items() if k in known} if case["op"] != "embedding" else {}
    inputs = [x.requires_grad_() if x.is_floating_point() else x.long() for x in given.values()]
    y = f(*inputs, **settings)
    y.backward(dy)
    return {"y": y} | {f"d{name}": x.grad for name, x in zip(given, inputs, strict=True) if x.is_floating_point()}


def trained(case: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Logits, loss and gradients of the first batch, then twenty updates by the library's own AdamW."""
    s = case["settings"]
    tokens, targets = given.pop("tokens").long(), given.pop("targets").long()
    w = {}
    for name, x in given.items():
        depth = s["config"]["layers"] if ".layer" in name else None
        w[name[2:]] = uu.Parameter(x.clone(), "output" if name == "w.head" else "weight", depth)
    optimizer = uu.optim.AdamW(list(w.values()), lr=s["eta"], weight_decay=s["weight_decay"])
    found: dict[str, Any] = {"logits": logits(w, tokens[0], s["config"])}
    losses = []
    for ids, hits in zip(tokens, targets, strict=True):
        optimizer.zero_grad()
        out = loss(w, ids, hits, s["config"])
        out.backward()
        if not losses:
            found |= {"loss": out} | {f"grad.{name}": x.grad.clone() for name, x in w.items()}
        losses.append(out.detach())
        optimizer.step()
        if len(losses) == 1:
            found |= {f"after1.{name}": x.detach().clone() for name, x in w.items()}
    return found | {"losses": torch.stack(losses)} | {f"trained.{name}": x for name, x in w.items()}
