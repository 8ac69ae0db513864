"""The checker passes what is right. Above all, it rejects what is wrong: a bug is planted in every test but a few."""

import inspect
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from microumup import fused, ops
from microumup.config import ModelConfig
from microumup.engine import primitive
from microumup.lab import gradcheck
from microumup.lab.gradcheck import cases, check_factors, check_model, check_pair, tiny_config
from microumup.multipliers import UnitScaled
from microumup.ops import ResidualScale, Scale
from microumup.parametrization import SCHEMES
from microumup.plan import gradient_constants, weights

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((2, 3, 6)), RNG.standard_normal((6, 6))  # square, so that a transposed gradient fits
Q, K, V = RNG.standard_normal((3, 2, 4, 6))
GATE, SKIP = RNG.standard_normal((2, 2, 3, 6))
TARGETS = RNG.integers(6, size=(2, 3))
TOKENS = np.array([[1, 4, 1]])
S = Scale(y=1.7, dx=0.6, dw=2.3)
R = ResidualScale(a=1.7, b=0.6, dbranch=2.3, dbase=0.4)


def wrong(results):
    return [r.name.split(" (")[0] for r in results if not r.passed]


def case_name(case):
    return case.forward.__name__.removesuffix("_forward") + "".join(f"-{v}" for v in case.settings.values())


# ---------------------------------------------------------------------------------------------------------------------
# What is right passes


@pytest.mark.parametrize("case", cases(), ids=case_name)
def test_every_pair_is_right(case):
    results = check_pair(case.forward, case.backward, case.arrays, **case.settings)
    assert results
    assert max(r.error for r in results) < 1e-9  # far inside the tolerance: the differences are no close call
    assert all(r.passed for r in results)


@pytest.mark.parametrize("case", [c for c in cases() if c.scale], ids=case_name)
def test_every_factor_is_right(case):
    assert wrong(check_factors(*case[:3], case.scale, case.expected, **case.settings)) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_parameter_is_right(scheme):
    results = check_model(tiny_config(scheme))
    assert [r.name.split()[1] for r in results] == list(weights(tiny_config(scheme)))
    assert wrong(results) == []


def test_all_elements_instead_of_random_directions_agree():
    config = ModelConfig(width=4, head_dim=2, layers=1, vocab_size=5, seq_len=3, norm_eps=0.0)
    assert wrong(check_model(config, sample=10**6)) == []


def test_no_pair_of_ops_is_left_out():
    checked = {case.forward.__name__ for case in cases()} | {case.backward.__name__ for case in cases()}
    functions = [name for name, _ in inspect.getmembers(ops, inspect.isfunction)]
    assert checked == {name for name in functions if name.endswith(("_forward", "_backward"))}
    assert set(fused.KERNELS.values()) <= {case[:2] for case in cases()}


def test_every_op_that_takes_a_scale_has_its_factors_checked():
    checked = {case.forward for case in cases() if case.scale}
    assert checked == {c.forward for c in cases() if "scale" in inspect.signature(c.forward).parameters}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_tiny_model_leaves_no_alpha_at_one(scheme):
    config = tiny_config(scheme)
    values = [getattr(config, name) for name in SCHEMES[scheme].hyperparameters]
    assert all(value != 1.0 for value in values if isinstance(value, float))


def test_float32_arrays_are_checked_in_float64():
    arrays = [X.astype(np.float32), W.astype(np.float32)]
    results = check_pair(ops.linear_forward, ops.linear_backward, arrays)
    results += check_factors(ops.linear_forward, ops.linear_backward, arrays, S, [S.y, S.dx, S.dw])
    assert wrong(results) == []


# ---------------------------------------------------------------------------------------------------------------------
# (1) A wrong backward is rejected, and no more than the gradient that is wrong


def changed(backward, position, change):
    """`backward` with the gradient at `position` changed."""

    def planted(dy, saved):
        gradients = list(backward(dy, saved))
        gradients[position] = change(gradients[position])
        return tuple(gradients)

    return planted


def one_element_off(gradient):
    gradient = gradient.copy()
    gradient.flat[np.abs(gradient).argmax()] *= 1.01
    return gradient


CHANGES = {
    "sign": np.negative,
    "transposed": lambda g: g.swapaxes(-1, -2),
    "1 %": lambda g: 1.01 * g,
    "1e-6": lambda g: (1 + 1e-6) * g,
    "one element": one_element_off,
    "zero": np.zeros_like,
    "NaN": lambda g: g * np.nan,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_wrong_weight_gradient_is_rejected(change):
    planted = changed(ops.linear_backward, 1, change)
    assert wrong(check_pair(ops.linear_forward, planted, [X, W])) == ["linear dw"]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_wrong_gradient_is_seen_along_random_directions_too(change):
    """Also one element of 1,600 that is 1 % off: a sample of 64 elements would mostly miss it."""
    x, w = np.random.default_rng(1).standard_normal((2, 40, 40))
    assert wrong(check_pair(ops.linear_forward, changed(ops.linear_backward, 1, change), [x, w])) == ["linear dw"]


def rms_norm_without_projection(dy, saved):
    return (dy * saved[1],)


def gated_silu_without_the_sigmoids_slope(dy, saved):
    x_in, x_gate, sigmoid, _, _ = saved
    return dy * sigmoid * x_gate, dy * sigmoid * x_in


def attention_without_the_row_sum(dy, saved):
    qh, kh, vh, p, score_scale, _ = saved
    dyh = dy.reshape(*dy.shape[:2], -1, qh.shape[-1]).swapaxes(1, 2)
    dscores = score_scale * p * (dyh @ vh.swapaxes(-1, -2))
    heads = dscores @ kh, dscores.swapaxes(-1, -2) @ qh, p.swapaxes(-1, -2) @ dyh
    return tuple(d.swapaxes(1, 2).reshape(dy.shape) for d in heads)


def cross_entropy_without_the_onehot(dy, saved):
    p, _, shape, alpha, _ = saved
    return (dy * alpha / len(p) * p).reshape(shape), None


def rope_without_the_conjugate(dy, saved):
    return (ops._rotate(dy, saved),)


@pytest.mark.parametrize(
    ("forward", "backward", "arrays", "settings", "names"),
    [
        (ops.rms_norm_forward, rms_norm_without_projection, [X], {}, ["dx"]),
        (ops.gated_silu_forward, gated_silu_without_the_sigmoids_slope, [X, GATE], {"alpha": 2.0}, ["dx_gate"]),
        (ops.attention_forward, attention_without_the_row_sum, [Q, K, V], {"head_dim": 3}, ["dq", "dk"]),
        (ops.cross_entropy_forward, cross_entropy_without_the_onehot, [X, TARGETS], {}, ["dlogits"]),
        (ops.rope_forward, rope_without_the_conjugate, [X], {"head_dim": 2}, ["dx"]),
    ],
    ids=["rms_norm", "gated_silu", "attention", "cross_entropy", "rope"],
)
def test_a_missing_term_is_rejected(forward, backward, arrays, settings, names):
    assert [name.split()[1] for name in wrong(check_pair(forward, backward, arrays, **settings))] == names


def test_rms_norm_that_forgets_eps_is_rejected():
    """At eps = 1e-6 a backward without it is 1e-6 off for x of size 1, and O(1) off for x of size 1e-3."""

    def planted(dy, saved):
        y, inverse_rms = saved
        y = y / np.sqrt(np.mean(y * y, axis=-1, keepdims=True))
        return ops.rms_norm_backward(dy, (y, inverse_rms))

    assert wrong(check_pair(ops.rms_norm_forward, planted, [1e-3 * X], eps=1e-6)) == ["rms_norm dx"]


def test_embedding_that_forgets_to_add_up_repeated_tokens_is_rejected():
    def planted(dy, saved):
        tokens, vocab_size, _ = saved
        dw = np.zeros((vocab_size, dy.shape[-1]))
        dw[tokens.ravel()] = dy.reshape(-1, dy.shape[-1])
        return None, dw

    assert wrong(check_pair(ops.embedding_forward, planted, [TOKENS, W])) == ["embedding dw"]


def test_a_factor_left_at_its_u_mup_value_is_no_plain_pair():
    assert wrong(check_pair(ops.linear_forward, ops.linear_backward, [X, W], scale=Scale(dw=0.5))) == ["linear dw"]


@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (lambda dy, saved: (dy,), "linear: backward returned 1 gradients for 2 inputs"),
        (lambda dy, saved: (dy @ saved[1], np.zeros((6, 5))), r"linear: the gradient of input 1 is float64 \(6, 5\)"),
        (lambda dy, saved: (dy @ saved[1], None), "linear: the gradient of input 1 is None"),
    ],
)
def test_gradients_of_the_wrong_number_or_shape_are_named(backward, message):
    with pytest.raises(ValueError, match=message):
        check_pair(ops.linear_forward, backward, [X, W])


# ---------------------------------------------------------------------------------------------------------------------
# (2) A factor in the wrong place is rejected


def planted_linear(scale_of):
    """linear, but with another Scale made of the one it was given."""

    def linear_forward(x, w, *, scale=Scale()):
        return ops.linear_forward(x, w, scale=scale_of(scale))

    return linear_forward


@pytest.mark.parametrize(
    ("scale_of", "names"),
    [
        (lambda s: s._replace(y=1.0), ["linear y"]),
        (lambda s: s._replace(y=s.y**2), ["linear y"]),
        (lambda s: s._replace(dx=s.y), ["linear dx"]),
        (lambda s: s._replace(dw=s.dx), ["linear dw"]),
        (lambda s: s._replace(dw=s.dw * s.dx), ["linear dw"]),
        (lambda s: s._replace(dx=1.01 * s.dx - 0.01), ["linear dx"]),
    ],
    ids=["y left out", "y squared", "dx is y", "dw is dx", "dw touched by dx", "dx not linear"],
)
def test_a_misplaced_factor_is_rejected(scale_of, names):
    results = check_factors(planted_linear(scale_of), ops.linear_backward, [X, W], S, [S.y, S.dx, S.dw])
    assert wrong(results) == names


def test_a_split_that_forgets_the_delayed_factor_is_rejected():
    results = check_factors(ops.residual_split_forward, lambda dy, saved: (dy,), [X], R, [1.0, R.dbase])
    assert wrong(results) == ["residual_split dx"]


@pytest.mark.parametrize(
    ("backward", "names"),
    [
        (lambda dy, s: (dy * s.a, dy * s.b), ["residual_add dbranch"]),  # a twice: here, and at the split
        (lambda dy, s: (dy * s.dbranch, dy * s.a), ["residual_add dskip"]),
        (lambda dy, s: (dy * s.dbranch * s.dbase, dy * s.b), ["residual_add dbranch"]),
    ],
)
def test_an_add_with_a_misplaced_gradient_factor_is_rejected(backward, names):
    case = next(c for c in cases() if c.forward is ops.residual_add_forward)
    assert wrong(check_factors(case.forward, backward, case.arrays, R, case.expected)) == names


@pytest.mark.parametrize("swap", [{"a": R.b, "b": R.a}, {"a": 1.0}, {"b": 1.0}], ids=["swapped", "no a", "no b"])
def test_an_add_with_a_misplaced_forward_factor_is_rejected(swap):
    case = next(c for c in cases() if c.forward is ops.residual_add_forward)

    def residual_add_forward(branch, skip, *, scale=ResidualScale()):
        used = scale._replace(**swap) if scale == R else scale
        return ops.residual_add_forward(branch, skip, scale=used)[0], scale

    results = check_factors(residual_add_forward, case.backward, case.arrays, R, case.expected)
    assert wrong(results) == ["residual_add y"]


def test_too_few_expected_factors_are_named():
    with pytest.raises(ValueError, match="check_factors: expected has 2 factors; pass one each for y, dx, dw"):
        check_factors(ops.linear_forward, ops.linear_backward, [X, W], S, [S.y, S.dx])


# ---------------------------------------------------------------------------------------------------------------------
# (3) A model with wrong factors is rejected

UMUP = tiny_config("umup")
ONE_LAYER = replace(UMUP, layers=1)


def plant(monkeypatch, op, change):
    """Have Table 4 give `change` of the factors it gives for `op`."""
    original = getattr(UnitScaled, op)
    monkeypatch.setattr(UnitScaled, op, staticmethod(lambda *args: change(original(*args))))


def test_an_unequal_factor_in_a_branch_shows_as_a_cosine(monkeypatch):
    """dx of gated_silu left at 1 where y has 1/σ: a constant cannot mend the sum of branch and skip."""
    plant(monkeypatch, "gated_silu", lambda s: s._replace(dx=1.0))
    results = {r.name.split()[1]: r for r in check_model(UMUP)}
    assert 0.9 < 1 - max(r.error for r in results.values()) < 0.98
    assert not results["embedding"].passed
    assert results["head"].passed  # no gated_silu lies between it and the loss: only what is wrong is blamed
    assert results["layer1.down"].passed


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("attention", lambda s: s._replace(dx=1.0)),
        ("residual", lambda s: s._replace(dbase=1.0)),
        ("residual", lambda s: s._replace(dbase=s.a**2)),
        ("residual", lambda s: s._replace(dbranch=s.a)),
        ("linear", lambda s: s._replace(dx=1.01 * s.dx)),
    ],
    ids=["attention dx", "no a at the split", "a twice at the split", "a at the add and the split", "linear dx"],
)
def test_unequal_factors_in_branches_are_rejected(monkeypatch, op, change):
    plant(monkeypatch, op, change)
    # not only a wrong constant, which the tolerance of 1e-9 would not take for one: the direction is off
    assert max(r.error for r in check_model(ONE_LAYER, sample=4)) > 1e-6


def test_the_delay_that_cancels_is_accepted(monkeypatch):
    """dbranch · dbase = a is all that true gradients need; gradient_constants follows where it is spent."""
    plant(monkeypatch, "residual", lambda s: s._replace(dbranch=2.0, dbase=s.a / 2))
    assert wrong(check_model(ONE_LAYER, sample=4)) == []


def test_unequal_factors_on_a_cut_edge_are_accepted(monkeypatch):
    plant(monkeypatch, "cross_entropy", lambda s: s._replace(dx=3.0))
    assert wrong(check_model(ONE_LAYER, sample=4)) == []


def test_a_wrong_backward_shows_in_the_model_too(monkeypatch):
    planted = changed(ops.gated_silu_backward, 1, np.negative)
    monkeypatch.setattr(ops, "gated_silu", primitive(ops.gated_silu_forward, planted))
    failed = wrong(check_model(ONE_LAYER, sample=4))
    assert "umup layer0.gate" in failed
    assert "umup layer0.up" not in failed


def constants_off_by(factor, plan):
    constants = gradient_constants(plan)
    return constants | {"layer0.up": factor * constants["layer0.up"]}


@pytest.mark.parametrize("factor", [1 + 2e-6, -1.0, np.sqrt(2)])
def test_a_wrong_predicted_constant_is_rejected(monkeypatch, factor):
    monkeypatch.setattr(gradcheck, "gradient_constants", partial(constants_off_by, factor))
    assert wrong(check_model(ONE_LAYER, sample=4)) == ["umup layer0.up"]


def test_a_model_in_fp8_is_refused():
    with pytest.raises(ValueError, match=r"check_model: config\.fp8 is 'fp8'"):
        check_model(ModelConfig(fp8="fp8"))
