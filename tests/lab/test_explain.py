import json
import re
from dataclasses import replace
from math import log, prod, sqrt
from typing import Any

import numpy as np
import pytest
from conftest import Refused
from test_plan import odd

from microumup.config import PRESETS, ModelConfig, TrainConfig
from microumup.engine import Tensor, backpropagate, tape
from microumup.files import to_json
from microumup.fp8 import FORMATS, LinearFormats
from microumup.lab.explain import Branch, Ledger, Parameter, explain, hints, main, report
from microumup.lab.scales import fresh_loss, measured_rms
from microumup.model import init_params, loss
from microumup.ops import ResidualScale, Scale
from microumup.optim import SGD, AdamW
from microumup.parametrization import SCHEMES, Weight
from microumup.plan import Linear, Plan, plan, weights

# D 16, F 44, V 64, T 8, K 4, L 4; b = 2 · 8 = 16 tokens in a batch
SMALL = TrainConfig(width=16, layers=2, head_dim=4, seq_len=8, vocab_size=64, batch_size=2, steps=100, lr=2.0)
MUP = replace(SMALL, scheme="mup", base_width=8, base_layers=1, sigma_init=0.5, alpha_emb=3.0, lr=0.25)
SP = replace(SMALL, scheme="sp", lr=0.125)


def by_name(rows: list) -> dict:
    return {row.name: row for row in rows}


# ---------------------------------------------------------------------------------------------------------------------
# Numbers worked out by hand

dlogits = 64 / sqrt(63)  # V/√(V-1)
trunk = 16 * dlogits * 4  # b, for the missing 1/b; the head's dx over y: 16^-1/2 over 1/16
PARAMETERS = {
    ("umup", "embedding"): Parameter(
        "embedding", "input", (64, 16), 64, 16, init_std=1, A=1, A_backward=None, dw=2, C=1 / 4, lr=0.5, decay=2**-13,
        gradient_constant=trunk * 2, sp_lr=0.5,
    ),
    ("umup", "layer0.q"): Parameter(  # C = 16^-1/2 · 4^-1/2; a² = 1/5, as τ = 1/4
        "layer0.q", "hidden", (16, 16), 16, 16, init_std=1, A=1 / 4, A_backward=1 / 4, dw=1 / 4, C=1 / 8, lr=1 / 4,
        decay=2**-13, gradient_constant=trunk * sqrt(5), sp_lr=1 / 16,
    ),
    ("umup", "layer1.down"): Parameter(  # C = 44^-1/2 · 4^-1/2; a² = 1/8, as τ = (1/4)/(1 + 3/4) = 1/7
        "layer1.down", "hidden", (16, 44), 44, 16, init_std=1, A=44**-0.5, A_backward=44**-0.5, dw=1 / 4,
        C=44**-0.5 / 2, lr=44**-0.5, decay=2**-13, gradient_constant=trunk * sqrt(8) * sqrt(44) / 4, sp_lr=1 / 44,
    ),
    ("umup", "head"): Parameter(
        "head", "output", (64, 16), 16, 64, init_std=1, A=1 / 16, A_backward=1 / 4, dw=1 / 4, C=1, lr=2, decay=2**-13,
        gradient_constant=16 * dlogits * 4, sp_lr=1 / 8,
    ),
    ("mup", "embedding"): Parameter(
        "embedding", "input", (64, 16), 64, 16, init_std=0.5, A=3, A_backward=None, dw=3, C=1, lr=0.25, decay=2**-13,
        gradient_constant=1, sp_lr=0.75,
    ),
    ("mup", "layer1.up"): Parameter(  # C = 8/16 · √(2/4)
        "layer1.up", "hidden", (44, 16), 16, 44, init_std=0.5 / 4, A=1, A_backward=1, dw=1, C=sqrt(1 / 8),
        lr=sqrt(1 / 8) / 4, decay=2**-13, gradient_constant=1, sp_lr=sqrt(1 / 8) / 4,
    ),
    ("mup", "head"): Parameter(
        "head", "output", (64, 16), 16, 64, init_std=0.5 * 8**-0.5, A=1 / 2, A_backward=1 / 2, dw=1 / 2, C=1, lr=0.25,
        decay=2**-13, gradient_constant=1, sp_lr=1 / 8,
    ),
    ("sp", "embedding"): Parameter(
        "embedding", "input", (64, 16), 64, 16, init_std=1, A=1, A_backward=None, dw=1, C=1, lr=0.125, decay=2**-13,
        gradient_constant=1, sp_lr=0.125,
    ),
    ("sp", "layer0.down"): Parameter(
        "layer0.down", "hidden", (16, 44), 44, 16, init_std=44**-0.5, A=1, A_backward=1, dw=1, C=1, lr=0.125,
        decay=2**-13, gradient_constant=1, sp_lr=0.125,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("scheme", "name"), PARAMETERS)
def test_a_parameter_by_hand(scheme: str, name: str) -> None:
    config = {"umup": SMALL, "mup": MUP, "sp": SP}[scheme]
    found, expected = by_name(explain(config).parameters)[name], PARAMETERS[scheme, name]
    assert found[:5] == expected[:5]
    assert (found.A_backward is None) == (name == "embedding")
    found, expected = (row._replace(A_backward=row.A_backward or 0.0) for row in (found, expected))
    assert found[5:] == pytest.approx(expected[5:], rel=1e-14)


def test_the_branches_of_umup_by_hand() -> None:
    """At α_res = 1 and L = 4 each r_l² is 1/4, and the embedding has 1 of the 2 that the squares add up to."""
    for l, (name, branch) in enumerate(by_name(explain(SMALL).branches).items()):  # noqa: E741
        tau = 1 / (4 + l)
        a = sqrt(tau / (1 + tau))
        expected = (a, sqrt(1 / (1 + tau)), tau, 1.0, a, 1 / 8)
        assert name == ("layer0.attn", "layer0.ffn", "layer1.attn", "layer1.ffn")[l]
        assert branch[1:] == pytest.approx(expected, rel=1e-14)


def test_the_branches_of_mup_by_hand() -> None:
    """√(base_L/L) = √(2/4); the plain backward has a where the gradient enters the branch, 1 where it leaves."""
    for branch in explain(MUP).branches:
        assert branch[1:6] == pytest.approx((sqrt(1 / 2), 1, 1 / 2, sqrt(1 / 2), 1), rel=1e-14)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(scheme=scheme, width=128, layers=1, head_dim=16, seq_len=64, **hyperparameters)
        for scheme, hyperparameters in (
            ("sp", {}),
            ("mup", {"sigma_init": 2.0, "alpha_emb": 0.5, "base_width": 32, "alpha_attn_softmax": 2.0}),
            ("mup-table2", {"sigma_init": 0.5, "base_layers": 4}),
            ("umup", {"alpha_res": 2.0, "alpha_res_attn_ratio": 2.0, "alpha_ffn_act": 0.5}),
        )
    ],
    ids=lambda config: config.scheme,
)
def test_shares_are_those_of_a_new_model(config: TrainConfig) -> None:
    """Over the embedding's. One layer: from the second on tokens are related, which App. B does not model."""
    rms = measured_rms(fresh_loss(config, 16))
    attn, ffn = explain(config).branches
    embedding = (ffn.b * attn.b * rms["embedding.y"]) ** 2
    for branch, name, skip, tolerance in (
        (attn, "layer0.o", ffn.b, 0.3),  # σ is up to 11 % above its model at s = 64, so its square 23 %
        (ffn, "layer0.down", 1.0, 0.08),  # the model is within 1 %, and a draw of weights has some noise
    ):
        measured = (branch.a * rms[f"{name}.y"] * skip) ** 2 / embedding
        assert branch.share / (1 - attn.share - ffn.share) == pytest.approx(measured, rel=tolerance), name


def test_the_ops_by_hand() -> None:
    sigma_attention = sqrt(log(8) / 8) ** (16 / 17)  # K = 4: weight 1/(1 + 16) of log 1, the rest of log √(log s/s)
    sigma_silu = 2**-0.75  # half way from 1/√2 to 1/2 in logarithms
    expected = (1 / 4, 1 / sigma_attention, 1 / sigma_silu, dlogits)
    assert explain(SMALL).ops == pytest.approx(expected, rel=1e-14)
    assert explain(SP).ops == pytest.approx((1 / 2, 1, 1, 1 / 16), rel=1e-14)
    alphas = replace(MUP, alpha_attn_softmax=3.0, alpha_loss_softmax=5.0)
    assert explain(alphas).ops == pytest.approx((3 / 4, 1, 1, 5 / 16), rel=1e-14)
    # u-µP has no α in dlogits
    assert explain(replace(SMALL, alpha_loss_softmax=5.0)).ops[3] == pytest.approx(dlogits, rel=1e-14)


def test_the_totals_by_hand() -> None:
    layers = 2 * (4 * 16 * 16 + 3 * 16 * 44)
    flops = 2 * (layers + 64 * 16) + 2 * 2 * 8 * 16
    count = layers + 2 * 64 * 16
    assert explain(SMALL).totals == (count, layers, flops, 3 * flops, 16, 1600, 12 * count)
    assert explain(replace(SMALL, optimizer="sgd")).totals.memory_bytes == 4 * count


# ---------------------------------------------------------------------------------------------------------------------
# Held against what runs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameters_are_those_of_the_model(scheme: str) -> None:
    config = replace(SMALL, scheme=scheme)
    ledger, params = explain(config), init_params(config)
    assert {p.name: p.shape for p in ledger.parameters} == {name: w.shape for name, w in params.items()}
    assert ledger.totals.parameters == sum(w.size for w in params.values())
    ends = params["embedding"].size + params["head"].size
    assert ledger.totals.parameters - ledger.totals.parameters_in_layers == ends


def test_flops_are_those_of_the_tape_with_half_of_attention() -> None:
    config = TrainConfig(width=32, layers=3, head_dim=8, seq_len=24, vocab_size=50, batch_size=2)
    linears = attention = 0
    for node in tape(fresh_loss(config, 2)):
        if node.op == "linear":
            linears += 2 * node.data.size * node.inputs[1].data.shape[1]
        if node.op == "attention":
            (batch, queries, width), keys = node.data.shape, node.inputs[1].data.shape[1]
            attention += 2 * 2 * batch * queries * keys * width  # q kᵀ and p v, all keys
    assert explain(config).totals.flops_per_token * 2 * 24 == linears + attention / 2


def gradients(config: TrainConfig, params: dict) -> dict:
    # each token once, so that no row of the embedding is without gradient
    tokens = np.random.default_rng(0).permutation(config.vocab_size).reshape(2, -1)
    tensors = {name: Tensor(w, name) for name, w in params.items()}
    backpropagate(loss(tensors, tokens, tokens[::-1], plan(config, tokens.size)))
    return {name: t.grad for name, t in tensors.items()}


UPDATED = TrainConfig(width=16, layers=2, head_dim=4, seq_len=8, vocab_size=16, batch_size=2, weight_decay=0.0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_step_of_adam_moves_the_effective_matrix_by_the_sp_learning_rate(scheme: str) -> None:
    hps = {"base_width": 4, "base_layers": 1, "sigma_init": 0.5, "alpha_emb": 3.0}
    known = SCHEMES[scheme].hyperparameters
    config = replace(UPDATED, scheme=scheme, lr=2.0, eta_emb=4.0, **{name: hps[name] for name in hps if name in known})
    params, table = init_params(config, dtype=np.float64), weights(config)
    before = {name: table[name].A * w.copy() for name, w in params.items()}
    grads = gradients(config, params)
    AdamW(params, {name: w.C for name, w in table.items()}, lr=config.eta, eps=0.0).step(grads, s=1.0)
    for p in explain(config).parameters:
        moved = before[p.name] - table[p.name].A * params[p.name]
        # w is about 1 and moves by no less than 0.01: what is left of the step has 13 digits
        assert np.allclose(moved, p.sp_lr * np.sign(grads[p.name]), rtol=1e-12, atol=0), p.name


def test_sp_with_those_learning_rates_takes_the_same_steps() -> None:
    """At base depth `mup` differs from `sp` by attention's 1/K alone; α makes it 1/√K, and then W is the same."""
    config = replace(UPDATED, scheme="mup-table2", base_width=4, base_layers=2, sigma_init=0.5, alpha_attn_softmax=2.0)
    sp = replace(UPDATED, scheme="sp")
    table, rates = weights(config), {p.name: p.sp_lr for p in explain(config).parameters}
    params = init_params(config, dtype=np.float64)
    effective = {name: table[name].A * w for name, w in params.items()}
    ours = AdamW(params, {name: w.C for name, w in table.items()}, lr=config.eta, eps=0.0)
    theirs = AdamW(effective, rates, lr=1.0, eps=0.0)
    for _ in range(3):
        ours.step(gradients(config, params), s=1.0)
        theirs.step(gradients(sp, effective), s=1.0)
    for name, w in effective.items():
        # three steps of Adam at ε = 0 blow rounding up by 1/|g|; a rate that is 1e-6 off shows
        assert np.allclose(table[name].A * params[name], w, rtol=1e-9, atol=1e-9), name


def test_a_step_of_sgd_moves_the_effective_matrix_by_the_sp_learning_rate() -> None:
    """The gradient of W is that of w over A c_W."""
    config = replace(UPDATED, optimizer="sgd", lr=0.5)
    params, table, ledger = init_params(config, dtype=np.float64), weights(config), explain(config)
    before = {name: w.copy() for name, w in params.items()}
    grads = gradients(config, params)
    SGD(params, {p.name: p.gradient_constant for p in ledger.parameters}, lr=0.5).step(grads, s=1.0)
    for p in ledger.parameters:
        A = table[p.name].A
        assert p.lr == 0.5
        moved = A * (before[p.name] - params[p.name])
        step = p.sp_lr * grads[p.name] / (A * p.gradient_constant)
        assert np.abs(step).max() > 1e-7, p.name
        # w is at most 5, where one rounding is 9e-16; A is at most 1
        assert np.allclose(moved, step, rtol=0, atol=2e-15), p.name


@pytest.mark.parametrize(("optimizer", "factor"), [("adamw", 1 / 8), ("sgd", 1.0)])
@pytest.mark.parametrize("decay", ["independent", "fully-independent", "coupled"])
def test_weight_decay_is_what_the_optimizer_takes(optimizer: str, factor: float, decay: str) -> None:
    config = replace(SMALL, optimizer=optimizer, decay=decay, weight_decay=0.25)
    q = by_name(explain(config).parameters)["layer0.q"]
    assert q.decay == pytest.approx(0.25 * (2.0 * factor if decay == "coupled" else 1.0), rel=1e-15)
    w = {"layer0.q": np.ones((2, 2))}
    step = AdamW if optimizer == "adamw" else SGD
    factors = {"layer0.q": q.C if optimizer == "adamw" else q.gradient_constant}
    step(w, factors, lr=2.0, weight_decay=0.25, decay=decay).step({"layer0.q": np.zeros((2, 2))}, s=1.0)
    assert np.allclose(1 - w["layer0.q"], q.decay, rtol=1e-15)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def lines(config: TrainConfig) -> list[str]:
    return report(config, explain(config)).splitlines()


def test_equal_layers_are_one_line() -> None:
    names = [line.split()[0] for line in lines(SP) if line]
    folded = ["layer0-1.q,k,v,o", "layer0-1.gate,up", "layer0-1.down"]
    start = names.index("embedding")
    assert names[start : start + 5] == ["embedding", *folded, "head"]
    assert names[names.index("branch") :][1:3] == ["layer0-1.attn", "layer0-1.ffn"]


def test_layers_that_differ_are_not() -> None:
    """u-µP's a, and with it c_W, falls from branch to branch."""
    names = {line.split()[0] for line in lines(SMALL) if line}
    kinds = ("q,k,v,o", "gate,up", "down", "attn", "ffn")
    assert {f"layer{layer}.{kind}" for layer in (0, 1) for kind in kinds} <= names


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [*PRESETS.values(), PRESETS["paper"] | {"width": 4096, "layers": 32, "head_dim": 128}])
def test_the_report_has_120_columns_and_they_are_aligned(scheme: str, size: dict) -> None:
    text = lines(TrainConfig(**size, scheme=scheme))
    assert max(map(len, text)) <= 120
    rows = [line for line in text if re.match(r"(parameter|branch|embedding|head|layer\d\S+) .*\S$", line)]
    split = next(i for i, row in enumerate(rows) if row.startswith("branch"))
    for table in (rows[:split], rows[split:]):
        assert len(table) > 2
        assert len({len(row) for row in table}) == 1


def test_nothing_is_hinted_at_a_default() -> None:
    for scheme in SCHEMES:
        for preset in PRESETS.values():
            config = TrainConfig(**preset, scheme=scheme)
            assert hints(config, explain(config)) == []


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"lr": 0.1}, "--lr 0.1 is 15 times below 1.5, the default of umup"),
        ({"lr": 1.5, "scheme": "sp"}, "--lr 1.5 is 192 times above 0.00781, the default of sp"),
        ({"warmup": 0.009}, "--warmup: 9 updates, and Adam's m averages over 10"),
        ({"weight_decay": 0.1}, "--weight-decay: a step takes 0.1 of a weight"),
        ({"batch_size": 1}, "--steps: 0.48 tokens per parameter are few"),
    ],
)
def test_a_hint_is_given_where_the_numbers_ask_for_it(options: dict, hint: str) -> None:
    config = TrainConfig(**options)
    found = hints(config, explain(config))
    assert len(found) == 1
    assert found[0].startswith(hint)
    assert f"\nhint: {found[0]}" in report(config, explain(config))


@pytest.mark.parametrize("options", [{"lr": 1.5 / 7.9}, {"lr": 1.5 * 7.9}, {"lr": 1e-4, "optimizer": "sgd"}])
def test_a_hint_is_not_given_where_they_do_not(options: dict) -> None:
    config = TrainConfig(**options)
    assert hints(config, explain(config)) == []


# ---------------------------------------------------------------------------------------------------------------------
# The plan in JSON


def from_json(found: dict[str, Any], config_type: type[ModelConfig] = ModelConfig) -> Plan:
    """The Plan that was given to `to_json`. It goes by the types' own fields: what is missing or too much raises."""

    def formats(names: dict[str, str | None]) -> LinearFormats:
        return LinearFormats(**{tensor: name and FORMATS[name] for tensor, name in names.items()})

    def lists_as_tuples(x: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in x.items()}

    scales = {name: Scale(**found[name]) for name in ("embedding", "attention", "gated_silu", "loss")}
    rest = {
        "config": config_type(**lists_as_tuples(found["config"])),
        "weights": {name: Weight(**lists_as_tuples(w)) for name, w in found["weights"].items()},
        "linears": {name: Linear(Scale(**x["scale"]), formats(x["fp8"])) for name, x in found["linears"].items()},
        "branches": tuple(ResidualScale(**branch) for branch in found["branches"]),
    }
    return Plan(**found | scales | rest)


@pytest.mark.parametrize("fp8", ["none", "fp8", "fp8-iclr", "fp8,head.all=none,q.dy=e5m2"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_json_keeps_all_of_a_plan(scheme: str, fp8: str) -> None:
    numbers = plan(odd(scheme, fp8=fp8), batch_tokens=37)
    found = from_json(json.loads(to_json(numbers)))
    assert found == numbers == plan(odd(scheme, fp8=fp8), batch_tokens=37)  # and to_json has changed nothing
    assert list(found.weights) == list(numbers.weights)  # dicts are equal in any order; a file keeps this one


def test_the_commands_json_is_the_plan_losslessly(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"lr": 2**0.3, "alpha_res": 1 / 3, "alpha_ffn_act": 0.1, "fp8": "fp8-iclr", "seed": 3}
    argv = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*argv, "--text", "/a.txt", "/b.txt", "--quiet", "--json"]) == 0
    found = from_json(json.loads(capsys.readouterr().out)["plan"], TrainConfig)
    assert found == plan(TrainConfig(**options, text=("/a.txt", "/b.txt")), 16 * 64)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_json_has_the_whole_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--layers", "3", "--scheme", "mup", "--lr", "2^-6", "--json", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found, expected = json.loads(out), explain(TrainConfig(layers=3, scheme="mup", lr=2**-6))
    assert set(found) == set(Ledger._fields)
    for part, row in (("parameters", Parameter), ("branches", Branch)):
        assert all(list(line) == list(row._fields) for line in found[part])
    assert [p["name"] for p in found["parameters"]] == list(weights(TrainConfig(layers=3, scheme="mup")))
    assert [tuple(p["shape"]) for p in found["parameters"]] == [p.shape for p in expected.parameters]
    assert sum(prod(p["shape"]) for p in found["parameters"]) == found["totals"]["parameters"]
    assert [p["sp_lr"] for p in found["parameters"]] == [p.sp_lr for p in expected.parameters]
    assert [p["A_backward"] for p in found["parameters"]][:2] == [None, 1.0]
    assert found["branches"] == [b._asdict() for b in expected.branches]
    assert (found["ops"], found["totals"]) == (expected.ops._asdict(), expected.totals._asdict())


def test_the_command_prints_the_report_of_the_preset_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "laptop", "--layers", "2"]) == 0
    config = TrainConfig(**PRESETS["laptop"] | {"layers": 2})
    assert capsys.readouterr().out == report(config, explain(config)).rstrip() + "\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--width", "60"], "--width: 60 is not a multiple of --head-dim 16"),
        (["--scheme", "mupp"], "--scheme: 'mupp' is unknown"),
        (["--scheme", "sp", "--alpha-res", "2"], "--alpha-res: not a hyperparameter of --scheme sp"),
        (["--lr", "fast"], "'fast' is not a number"),
        (["--preset", "huge"], "--preset: invalid choice: 'huge'"),
    ],
)
def test_bad_input_is_named_in_one_line(argv: list[str], message: str, refused: Refused) -> None:
    error = refused(main, argv)
    assert error.startswith("microumup explain: ")
    assert message in error
