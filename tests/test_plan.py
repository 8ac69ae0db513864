"""The Plan: what it holds, how much work it is, and what is multiplied along it."""

from math import log, sqrt
from typing import Any

import numpy as np
import pytest

from microumup import plan as plan_module
from microumup.config import ModelConfig
from microumup.fp8 import parse_recipe
from microumup.ops import ResidualScale, Scale
from microumup.parametrization import SCHEMES, Weight, weight
from microumup.plan import Linear, Plan, gradient_constants, plan, weights

SIZE = {"width": 16, "layers": 3, "head_dim": 8, "seq_len": 12, "vocab_size": 19}
ODD = {  # values whose decimals are endless, and none of them 1
    "alpha_res": 1 / 3, "alpha_res_attn_ratio": sqrt(2), "alpha_ffn_act": 0.1, "alpha_attn_softmax": 2**0.3,
    "alpha_loss_softmax": 7 / 11, "sigma_init": 1 / 7, "alpha_emb": log(3), "base_width": 12, "base_layers": 5,
    "embedding_lr_rule": False,
}  # fmt: skip


def odd(scheme: str, **options: Any) -> ModelConfig:
    """A config of the scheme with every hyperparameter that it has at an odd value."""
    has = {name: ODD[name] for name in SCHEMES[scheme].hyperparameters}
    return ModelConfig(**{"scheme": scheme, "eta_emb": 1.7, "norm_eps": 1e-7} | SIZE | has | options)


def count_rows(monkeypatch: pytest.MonkeyPatch, layers: int) -> int:
    calls = []

    def counted(*args: Any) -> Weight:
        calls.append(args)
        return weight(*args)

    monkeypatch.setattr(plan_module, "weight", counted)
    assert len(plan(ModelConfig(**SIZE | {"layers": layers}), 36).weights) == 2 + 7 * layers
    return len(calls)


def test_the_rules_of_a_layer_are_worked_out_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < count_rows(monkeypatch, 1000) == count_rows(monkeypatch, 1)


def test_plans_of_other_configs_in_between_change_nothing() -> None:
    """Nothing is remembered from one call for the next, nor shared between two plans that somebody writes to."""
    configs = [odd(scheme, fp8=fp8) for scheme in SCHEMES for fp8 in ("none", "fp8")]
    first = [repr(plan(config, 37)) for config in configs]
    for config, before in zip(reversed(configs), reversed(first), strict=True):
        numbers = plan(config, 37)
        assert repr(numbers) == before
        numbers.weights.clear()
        numbers.linears.clear()
    assert [repr(plan(config, 37)) for config in configs] == first


def test_a_row_of_the_table_that_changes_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(**SIZE)
    assert weights(config)["head"].C == 1.0
    row = SCHEMES["umup"]
    monkeypatch.setitem(SCHEMES, "umup", row._replace(output=row.output._replace(C=lambda s: 5.0)))
    assert weights(config)["head"].C == plan(config, 36).weights["head"].C == 5.0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_size_of_the_batch_is_in_backward_factors_alone(scheme: str) -> None:
    one, many = (plan(odd(scheme), batch_tokens) for batch_tokens in (1, 10_000))

    def forward(numbers: Plan) -> list[Any]:
        scales = [numbers.embedding, numbers.attention, numbers.gated_silu, numbers.loss]
        scales += [linear.scale for linear in numbers.linears.values()]
        return [numbers.score_scale, [s.y for s in scales], [(b.a, b.b) for b in numbers.branches]]

    assert forward(one) == forward(many)
    assert (one.loss.dx == many.loss.dx) == (one.linears["head"].scale.dw == many.linears["head"].scale.dw)
    assert (one.loss.dx != many.loss.dx) == scheme.startswith("umup")


def test_a_plan_has_what_every_op_of_umup_is_called_with() -> None:
    """Tables 1 and 4 by hand at α = 1: D = 16, F = 44, V = 19, K = 8, s = 12, L = 6 branches, b = 36."""
    p = plan(ModelConfig(**SIZE, fp8="fp8"), 36)
    assert p.embedding == Scale(y=1.0, dw=sqrt(19 / 36))
    assert p.linears["layer1.q"].scale == Scale(y=1 / 4, dx=1 / 4, dw=1 / 6)
    assert p.linears["layer1.down"].scale == pytest.approx(Scale(y=44**-0.5, dx=44**-0.5, dw=1 / 6), rel=1e-15)
    assert p.linears["head"].scale == Scale(y=1 / 16, dx=1 / 4, dw=1 / 6)
    assert p.score_scale == 1 / 8
    sigma = sqrt(log(12) / 12) ** (1 - 1 / (1 + 4 * 8))
    assert p.attention == pytest.approx(Scale(y=1 / sigma, dx=1 / sigma), rel=1e-15)
    assert p.gated_silu == pytest.approx(Scale(y=8**0.25, dx=8**0.25), rel=1e-15)  # √(1/√2 · 1/2)
    for l, branch in enumerate(p.branches, start=1):  # noqa: E741 - at α_res = 1 all r_l² are 1/L: τ_l = 1/(L + l - 1)
        a, b = sqrt(1 / (6 + l)), sqrt((5 + l) / (6 + l))
        assert branch == pytest.approx(ResidualScale(a, b, dbranch=1.0, dbase=a), rel=1e-14)
    assert p.loss == pytest.approx(Scale(dx=36 * 19 / sqrt(18)), rel=1e-15)
    assert p.linears.keys() == p.weights.keys() - {"embedding"}
    assert {name: linear.fp8 for name, linear in p.linears.items()} == {
        name: parse_recipe("fp8")[name.rpartition(".")[2]] for name in p.linears
    }


def test_a_weighted_plan_is_differentiated_as_weight_times_the_loss() -> None:
    p = plan(odd("umup"), 37)
    assert p.weighted(0.25).loss == p.loss._replace(dx=p.loss.dx / 4)
    assert p.weighted(0.25)._replace(loss=p.loss) == p
    constants, weighted = gradient_constants(p), gradient_constants(p.weighted(0.25))
    assert weighted == pytest.approx({name: c / 4 for name, c in constants.items()}, rel=1e-15)


# ---- gradient constants ----


@pytest.mark.parametrize("scheme", ["sp", "mup", "mup-table2", "mup-table3"])
def test_plain_schemes_have_true_gradients(scheme: str) -> None:
    assert set(gradient_constants(plan(odd(scheme), 36)).values()) == {1.0}


@pytest.mark.parametrize("scheme", ["umup", "umup-iclr"])
def test_gradient_constants_by_hand(scheme: str) -> None:
    """From the loss down: b V/(α √(V-1)) at the logits, A'/A of the readout before the trunk, 1/a in a branch."""
    c, b = odd(scheme), 37
    D, F, V = c.width, c.ffn_dim, c.vocab_size
    at_logits = b * V / sqrt(V - 1) / c.alpha_loss_softmax
    in_trunk = at_logits * D * {"umup": D**-0.5, "umup-iclr": V**-0.5}[scheme]  # A is 1/D
    alpha_res = c.alpha_res * {"umup": 1, "umup-iclr": sqrt(2)}[scheme]
    ratio, L = c.alpha_res_attn_ratio, 6
    ffn = alpha_res * sqrt(2 / (ratio**2 + 1))
    attn = ratio * ffn
    # of the second layer: of r_0² = 1 and the first layer's two branches (eq. 12)
    tau_attn = attn**2 / L / (1 + (attn**2 + ffn**2) / L)
    tau_ffn = ffn**2 / L / (1 + (2 * attn**2 + ffn**2) / L)
    a_attn, a_ffn = (sqrt(tau / (tau + 1)) for tau in (tau_attn, tau_ffn))
    expected = {
        "embedding": in_trunk * sqrt(V / b),
        "head": at_logits * b**-0.5 * D,
        "layer1.k": in_trunk / a_attn * b**-0.5 * sqrt(D),
        "layer1.o": in_trunk / a_attn * b**-0.5 * sqrt(D),
        "layer1.up": in_trunk / a_ffn * b**-0.5 * sqrt(D),
        "layer1.down": in_trunk / a_ffn * b**-0.5 * sqrt(F),
    }
    found = gradient_constants(plan(c, b))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-13)
    assert list(found) == list(weights(c))
    for kind in ("q", "k", "v"):
        assert found[f"layer1.{kind}"] == found["layer1.k"]


@pytest.mark.parametrize(
    ("planted", "moved"),
    [
        (lambda p: {"attention": p.attention._replace(dx=2 * p.attention.dx)}, "q k v"),
        (lambda p: {"gated_silu": p.gated_silu._replace(dx=2 * p.gated_silu.dx)}, "gate up"),
        (lambda p: {"loss": p.loss._replace(dx=2 * p.loss.dx)}, "embedding q k v o gate up down head"),
        (lambda p: {"linears": p.linears | {"layer1.o": doubled(p.linears["layer1.o"])}}, "layer1.q layer1.k layer1.v"),
        (lambda p: {"linears": p.linears | {"head": doubled(p.linears["head"])}}, "embedding q k v o gate up down"),
        (lambda p: {"embedding": p.embedding._replace(dw=2 * p.embedding.dw)}, "embedding"),
        (lambda p: {"branches": tuple(s._replace(dbranch=2) for s in p.branches)}, "q k v o gate up down"),
    ],
    ids=["attention", "gated_silu", "loss", "o", "head", "embedding", "branches"],
)
def test_a_backward_factor_is_in_the_constants_of_all_weights_behind_it(planted: Any, moved: str) -> None:
    p = plan(odd("umup"), 37)
    before, after = gradient_constants(p), gradient_constants(p._replace(**planted(p)))
    ratio = {name: after[name] / c for name, c in before.items()}
    hit = {name for name in before if {name, name.rpartition(".")[2]} & set(moved.split())}
    assert ratio == pytest.approx({name: 2.0 if name in hit else 1.0 for name in before}, rel=1e-15)


def doubled(linear: Linear) -> Linear:
    return linear._replace(scale=linear.scale._replace(dx=2 * linear.scale.dx))


# ---- weights ----


def test_the_paper_preset_has_llama_shapes() -> None:
    paper = ModelConfig(width=256, layers=4, head_dim=64, vocab_size=32000)
    shapes = {name: w.shape for name, w in weights(paper).items()}
    assert shapes["embedding"] == shapes["head"] == (32000, 256)
    assert shapes["layer3.q"] == shapes["layer0.o"] == (256, 256)
    assert shapes["layer0.gate"] == shapes["layer0.up"] == (704, 256)
    assert shapes["layer0.down"] == (256, 704)
    assert len(shapes) == 2 + 4 * 7


def test_branches_alternate_attention_and_ffn() -> None:
    a = [scale.a for scale in plan(ModelConfig(**SIZE, alpha_res_attn_ratio=4.0), 36).branches]
    assert len(a) == 6
    assert np.all(np.array(a[0::2]) > 2 * np.array(a[1::2]))
