"""Our scheme `umup-iclr` against `unit-scaling`, the library of u-µP's authors: rules, ops, a whole decoder, AdamW.

They agree up to what the library does on purpose otherwise, and each of these is asserted here:

* τ: there it is a ratio of standard deviations, here of variances, as in the paper: ours is its square;
* attention's factor: there s is the length of the input at hand, here it is fixed with the model;
* the FFN's dx: there it takes fan_out^-1/2, here A: the gradients of gate and up are there √(F/D) of ours.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import pytest
from test_torch import F, heads, rotate, torch  # skips this file too where there is no PyTorch

from microumup import ops
from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate
from microumup.model import forward, init_params, loss
from microumup.multipliers import attention_sigma, log_interpolate
from microumup.optim import DECAYS, AdamW
from microumup.plan import gradient_constants, plan

uu = pytest.importorskip("unit_scaling", reason="needs unit-scaling: pip install 'microumup[peers]'")
U = uu.functional
RNG = np.random.default_rng(0)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64, sums of at most some hundred terms in another order
CLOSE_BY_RMS = {"rtol": 1e-6, "atol": 3e-6}  # its rms_norm goes through float32 in float64 too; gradients are near 1

CONFIG = ModelConfig(
    scheme="umup-iclr", width=16, layers=3, head_dim=4, seq_len=7, vocab_size=11, norm_eps=1e-5,
    alpha_res=0.7, alpha_res_attn_ratio=1.7, alpha_ffn_act=1.3, alpha_attn_softmax=1.5, alpha_loss_softmax=2.0,
)  # fmt: skip
B, T, D, FFN, V = 2, CONFIG.seq_len, CONFIG.width, CONFIG.ffn_dim, CONFIG.vocab_size
PLAN = plan(CONFIG, B * T)
IDS = RNG.integers(0, V, (B, T))
TAU = uu.transformer_residual_scaling_rule(CONFIG.alpha_res, CONFIG.alpha_res_attn_ratio)


# ---------------------------------------------------------------------------------------------------------------------
# rules


@pytest.mark.parametrize(("alpha_res", "ratio"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 4.0), (2.0, 0.25)])
@pytest.mark.parametrize("layers", [1, 2, 12])
def test_residual_tau_is_there_a_ratio_of_standard_deviations(layers: int, alpha_res: float, ratio: float) -> None:
    c = ModelConfig(scheme="umup-iclr", layers=layers, alpha_res=alpha_res, alpha_res_attn_ratio=ratio)
    theirs = uu.transformer_residual_scaling_rule(alpha_res, ratio)
    taus = [(scale.a / scale.b) ** 2 for scale in plan(c, 1).branches]
    assert taus == pytest.approx([theirs(index, c.branches) ** 2 for index in range(c.branches)], rel=1e-14)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_log_interpolate(weight: float) -> None:
    theirs = uu.core.functional.logarithmic_interpolation(weight, lower=0.1, upper=2.0)
    assert log_interpolate(weight, 2.0, 0.1) == pytest.approx(theirs, rel=1e-15)


# ---------------------------------------------------------------------------------------------------------------------
# ops


def residual_layer(branch: int) -> tuple[Callable[..., Tensor], Callable[..., Any], list[tuple[int, ...]]]:
    """R' = a f(R) + b R with a plain linear as f: a gradient that a would reach too early shows in that of w."""
    scale = PLAN.branches[branch]
    return (
        lambda x, w: ops.residual_add(ops.linear(ops.residual_split(x, scale=scale), w), x, scale=scale),
        lambda x, w: U.residual_apply(lambda h: F.linear(h, w), x, TAU(branch, CONFIG.branches)),
        [(B, T, D), (D, D)],
    )


def our_linear(name: str) -> Callable[..., Tensor]:
    return lambda x, weight: ops.linear(x, weight, scale=PLAN.linears[name].scale)


def our_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.attention(q, k, v, head_dim=CONFIG.head_dim, score_scale=PLAN.score_scale, scale=PLAN.attention)


def their_attention(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (heads(x, CONFIG.head_dim) for x in (q, k, v))
    y = U.scaled_dot_product_attention(q, k, v, is_causal=True, mult=CONFIG.alpha_attn_softmax)
    return y.transpose(1, 2).flatten(-2)


OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Any], list[tuple[int, ...]]]] = {
    "linear": (our_linear("layer0.down"), lambda x, w: U.linear(x, w, None), [(B, T, FFN), (D, FFN)]),
    "linear_readout": (our_linear("head"), lambda x, w: U.linear_readout(x, w, None), [(B, T, D), (V, D)]),
    "embedding": (
        lambda w: ops.embedding(IDS, w, scale=PLAN.embedding),
        lambda w: U.embedding(torch.tensor(IDS), w),
        [(V, D)],
    ),
    "rms_norm": (
        lambda x: ops.rms_norm(x, eps=CONFIG.norm_eps), lambda x: U.rms_norm(x, (D,), eps=CONFIG.norm_eps), [(B, T, D)]
    ),
    "attention": (our_attention, their_attention, [(B, T, D)] * 3),
    "gated_silu": (
        lambda x_in, x_gate: ops.gated_silu(x_in, x_gate, alpha=CONFIG.alpha_ffn_act, scale=PLAN.gated_silu),
        lambda x_in, x_gate: U.silu_glu(x_in, x_gate, mult=CONFIG.alpha_ffn_act),
        [(B, T, D)] * 2,
    ),
    "residual, attention": residual_layer(2),
    "residual, FFN": residual_layer(3),
    "cross_entropy": (
        lambda z: ops.cross_entropy(z, IDS, alpha=CONFIG.alpha_loss_softmax, scale=PLAN.loss),
        lambda z: U.cross_entropy(z.flatten(0, 1), torch.tensor(IDS).flatten(), mult=CONFIG.alpha_loss_softmax),
        [(B, T, V)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_op(name: str) -> None:
    ours, theirs, shapes = OPS[name]
    close = CLOSE_BY_RMS if name == "rms_norm" else CLOSE
    arrays = [RNG.standard_normal(shape) for shape in shapes]
    inputs, peers = [Tensor(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = ours(*inputs), theirs(*peers)
    np.testing.assert_allclose(y.data, expected.detach().numpy(), **close)
    dy = RNG.standard_normal(y.data.shape)
    backpropagate(y, np.asarray(dy))
    expected.backward(torch.tensor(dy))
    for x, peer in zip(inputs, peers, strict=True):
        np.testing.assert_allclose(x.grad, peer.grad.numpy(), **close)


def test_their_attention_depends_on_the_length_of_the_input_and_ours_does_not() -> None:
    q, k, v = (RNG.standard_normal((B, 3, D)) for _ in range(3))  # 3 tokens, where s = 7
    ours, theirs = our_attention(q, k, v).data, their_attention(*map(torch.tensor, (q, k, v))).numpy()
    of_3, of_7 = (attention_sigma(CONFIG.alpha_attn_softmax, CONFIG.head_dim, s) for s in (3, 7))
    np.testing.assert_allclose(theirs, ours * (of_7 / of_3), **CLOSE)


def test_their_attention_has_no_factor_for_a_single_token_and_ours_does() -> None:
    q, k, v = (RNG.standard_normal((B, 1, D)) for _ in range(3))
    np.testing.assert_allclose(our_attention(q, k, v).data, PLAN.attention.y * v, **CLOSE)
    with pytest.raises(ValueError):  # the log of log(1)/1
        their_attention(*map(torch.tensor, (q, k, v)))


# ---------------------------------------------------------------------------------------------------------------------
# a whole decoder


class Rope(torch.nn.Module):
    """Turns q and k in the (B, T, 3D) that their fused projection puts out."""

    def forward(self, qkv: Any) -> Any:
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = (rotate(heads(x, CONFIG.head_dim)).transpose(1, 2).flatten(-2) for x in (q, k))
        return torch.cat((q, k, v), dim=-1)


def decoder(*, constrained: bool = False) -> Any:
    """Their TransformerDecoder, with what it has no arguments for put in: RoPE, α's, F = 11/4 D.

    The linears of its FFN come without a constraint; `constrained` gives them the default of every other Linear.
    """
    model = uu.TransformerDecoder(D, V, CONFIG.layers, heads=D // CONFIG.head_dim, residual_scaling=TAU)
    for layer in model.layers:
        mhsa, mlp = layer.mhsa, layer.mlp
        mhsa.linear_qkv = torch.nn.Sequential(mhsa.linear_qkv, Rope())
        mhsa.mult = CONFIG.alpha_attn_softmax
        mlp.forward = partial(feed_forward, mlp)
        for linear, shape in ((mlp.linear_1, (FFN, D)), (mlp.linear_gate, (FFN, D)), (mlp.linear_2, (D, FFN))):
            linear.weight.data = torch.empty(shape)
            if constrained:
                linear.constraint = "to_output_scale"
    return model.double()


def feed_forward(mlp: Any, x: Any) -> Any:
    return mlp.linear_2(U.silu_glu(mlp.linear_1(x), mlp.linear_gate(x), mult=CONFIG.alpha_ffn_act))


def by_our_names(model: Any) -> dict[str, tuple[Any, slice]]:
    """Where each of our weights is: their parameter, and its rows."""
    found = {"embedding": (model.embedding.weight, slice(None)), "head": (model.projection.weight, slice(None))}
    for index, layer in enumerate(model.layers):
        name, mhsa, mlp = f"layer{index}", layer.mhsa, layer.mlp
        qkv = mhsa.linear_qkv[0].weight  # (3D, D)
        found |= {f"{name}.{kind}": (qkv, slice(part * D, (part + 1) * D)) for part, kind in enumerate("qkv")}
        linears = {"o": mhsa.linear_o, "up": mlp.linear_1, "gate": mlp.linear_gate, "down": mlp.linear_2}
        found |= {f"{name}.{kind}": (linear.weight, slice(None)) for kind, linear in linears.items()}
    return found


def load(model: Any, params: dict[str, Any]) -> None:
    for name, (parameter, rows) in by_our_names(model).items():
        parameter.data[rows] = torch.tensor(params[name])


def their_loss(model: Any, tokens: Any, targets: Any) -> Any:
    logits = model(torch.tensor(tokens)).flatten(0, 1)
    return U.cross_entropy(logits, torch.tensor(targets).flatten(), mult=CONFIG.alpha_loss_softmax)


def batch(step: int) -> tuple[Any, Any]:
    ids = np.random.default_rng(step).integers(0, V, (B, T + 1))
    return ids[:, :-1], ids[:, 1:]


def test_logits_of_a_whole_decoder() -> None:
    params, model, (tokens, _) = init_params(CONFIG, 0, np.float64), decoder(), batch(0)
    load(model, params)
    theirs = model(torch.tensor(tokens)).detach().numpy()
    np.testing.assert_allclose(forward(params, tokens, PLAN).data, theirs, **CLOSE_BY_RMS)


def their_gradients(model: Any) -> dict[str, Any]:
    load(model, init_params(CONFIG, 0, np.float64))
    their_loss(model, *batch(0)).backward()
    return {name: parameter.grad[rows].numpy() for name, (parameter, rows) in by_our_names(model).items()}


def known_constant(name: str) -> float:
    """Without a constraint down's dx takes D^-1/2 for our F^-1/2; gate's and up's, behind it, the other way round."""
    return sqrt(FFN / D) if name.endswith(("gate", "up")) else 1.0


@pytest.mark.parametrize("constrained", [False, True])
def test_gradient_of_every_parameter_of_a_whole_decoder(constrained: bool) -> None:
    theirs = their_gradients(decoder(constrained=constrained))
    ours = {name: Tensor(w, name) for name, w in init_params(CONFIG, 0, np.float64).items()}
    backpropagate(loss(ours, *batch(0), PLAN))
    for name, tensor in ours.items():
        known = 1.0 if constrained else known_constant(name)
        np.testing.assert_allclose(theirs[name] / known, tensor.grad, err_msg=name, **CLOSE_BY_RMS)


def test_their_gradients_are_the_true_ones_times_our_gradient_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = their_gradients(decoder())
    monkeypatch.setattr(U, "scale_fwd", lambda x, scale: x * scale)
    monkeypatch.setattr(U, "scale_bwd", lambda x, scale: x)
    true = their_gradients(decoder())
    for name, c_W in gradient_constants(PLAN).items():
        np.testing.assert_allclose(theirs[name] / known_constant(name), true[name] * c_W, err_msg=name, **CLOSE_BY_RMS)


LR, DECAY = 0.3, 0.02


def groups_by_our_names(model: Any) -> dict[str, dict[str, Any]]:
    groups = uu.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY).param_groups
    group_of = {parameter: group for group in groups for parameter in group["params"]}
    return {name: group_of[parameter] for name, (parameter, _) in by_our_names(model).items()}


def test_learning_rate_of_every_parameter() -> None:
    theirs = {name: group["lr"] / LR for name, group in groups_by_our_names(decoder()).items()}
    assert theirs == pytest.approx({name: w.C for name, w in PLAN.weights.items()}, rel=1e-15)


def test_weight_decay_of_every_parameter_is_our_independent_mode() -> None:
    theirs = {name: group["lr"] * group["weight_decay"] for name, group in groups_by_our_names(decoder()).items()}
    ours = {name: DECAYS["independent"](DECAY, 1.0, LR, w.C) for name, w in PLAN.weights.items()}
    assert theirs == pytest.approx(ours, rel=1e-15)


@pytest.mark.parametrize(
    ("name", "module"), [("embedding", "Embedding"), ("layer0.q", "Linear"), ("head", "LinearReadout")]
)
def test_init_std(name: str, module: str) -> None:
    torch.manual_seed(0)
    drawn = getattr(uu, module)(256, 256).weight.detach().std()
    assert float(drawn) == pytest.approx(PLAN.weights[name].init_std, rel=0.02)  # of 2^16 draws: ± 0.003


def test_training_of_a_whole_decoder() -> None:
    ours, model = init_params(CONFIG, 0, np.float64), decoder()
    load(model, ours)
    peer = uu.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)
    optimizer = AdamW(ours, {name: w.C for name, w in PLAN.weights.items()}, lr=LR, weight_decay=DECAY)
    for step in range(10):
        tokens, targets = batch(step)
        tensors = {name: Tensor(w, name) for name, w in ours.items()}
        out = loss(tensors, tokens, targets, PLAN)
        backpropagate(out)
        peer.zero_grad()
        expected = their_loss(model, tokens, targets)
        expected.backward()
        assert float(out.data) == pytest.approx(float(expected.detach()), rel=1e-6)
        optimizer.step({name: t.grad for name, t in tensors.items() if t.grad is not None}, 1.0)
        peer.step()
