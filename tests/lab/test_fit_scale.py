"""Rules are fitted to what they were made of, the paper's own come out, and the printed code runs."""

import json
import subprocess
import sys
from math import log, sqrt

import numpy as np
import pytest
from conftest import Refused

from microumup.engine import Tensor, backpropagate, primitive
from microumup.lab import fit_cases, gradcheck
from microumup.lab.fit_scale import FORMS, Measured, Rule, Subject, code, fit, limits, load, main, measure, report
from microumup.multipliers import attention_sigma, gated_silu_sigma

ALPHAS = [2.0**octave for octave in range(-3, 4)]
WORKED = ("gelu", "relu_squared", "softcapped_attention", "grouped_query_attention")


# ---------------------------------------------------------------------------------------------------------------------
# The fit


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_a_rule_of_the_family_is_found_again(form) -> None:
    true = Rule(form, 2.0**0.5, 0.9, 0.7, 0.0)
    sizes = [{"head_dim": K, "seq_len": s} for K in (8, 64) for s in (16, 256)]
    made = [Measured(a, n, {"y": true(a, n)}) for a in (*ALPHAS, 2.0**6) for n in sizes]
    found = fit(made)
    assert found.form is form
    assert found.error < 0.01  # three digits
    assert (found.c, found.upper, found.lower) == pytest.approx((true.c, true.upper, true.lower), rel=0.01)


def test_what_is_not_of_the_family_is_not_called_a_fit() -> None:
    made = [Measured(a, {}, {"y": 1 + abs(log(a))}) for a in ALPHAS]
    assert fit(made).error > 0.2


def test_gated_silu_comes_out_as_in_the_paper() -> None:
    """c = 1, upper 1/√2, lower 1/2 (App. B), within what the sample and the model leave: 0.3 % and 1 %."""
    rule = fit(measure(fit_cases.gated_silu, ALPHAS))
    assert rule.error < 0.01
    assert rule.c == pytest.approx(1, rel=0.1)
    assert (rule.upper, rule.lower) == pytest.approx((1 / sqrt(2), 1 / 2), rel=0.015)
    for alpha in ALPHAS:
        assert rule(alpha, {}) == pytest.approx(gated_silu_sigma(alpha), rel=0.015)


def test_attention_comes_out_as_in_the_paper() -> None:
    """Its form, with c ∝ K and √(log s/s); the numbers within the 10 % of App. B's model."""
    measured = measure(fit_cases.attention, ALPHAS)
    rule = fit(measured)
    assert rule.form is FORMS[3]
    assert rule.error < 0.08
    for m in measured:
        if m.alpha <= 4:
            paper = attention_sigma(m.alpha, m.sizes["head_dim"], m.sizes["seq_len"])
            assert rule(m.alpha, m.sizes) == pytest.approx(paper, rel=0.13)


# ---------------------------------------------------------------------------------------------------------------------
# Worked cases


def scale(name: str, alpha: float) -> dict:
    return measure(getattr(fit_cases, name), [alpha])[0].rms


def test_gelu_by_hand() -> None:
    """α → 0 is x/2, α → ∞ a ReLU of RMS √(1/2); exactly, at α = 1, E[(x Φ(x))²] = 1/3 + 1/(2π√3)."""
    assert scale("gelu", 2.0**-10)["y"] == pytest.approx(1 / 2, rel=0.01)
    assert scale("gelu", 2.0**10)["y"] == pytest.approx(sqrt(1 / 2), rel=0.01)
    assert scale("gelu", 1.0)["y"] == pytest.approx(sqrt(1 / 3 + 1 / (2 * np.pi * sqrt(3))), rel=0.01)


def test_relu_squared_by_hand() -> None:
    """E[max(x, 0)^4] = 3/2, and the gradient's 4 E[max(x, 0)²] = 2."""
    assert scale("relu_squared", 1.0) == pytest.approx({"y": sqrt(3 / 2), "dx": sqrt(2)}, rel=0.02)


@pytest.mark.parametrize("name", ["softcapped_attention", "grouped_query_attention"])
def test_the_pairs_of_worked_cases_pass_gradcheck(name: str) -> None:
    group = {"group": 2} if name.startswith("grouped") else {"cap": 0.8}
    rng = np.random.default_rng(0)
    k = (2, 5, 4 if "group" in group else 8)
    arrays = [rng.standard_normal(shape) for shape in ((2, 5, 8), k, k)]
    forward, backward = (getattr(fit_cases, f"{name}_{half}") for half in ("forward", "backward"))
    settings = {"alpha": 1.7, "seq_len": 5, "head_dim": 2, **group}
    assert all(r.passed for r in gradcheck.check_pair(forward, backward, arrays, **settings))


def test_a_cap_far_away_is_plain_attention() -> None:
    forward = fit_cases.softcapped_attention_forward
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 8, 16))
    capped, _ = forward(q, k, v, alpha=1.5, seq_len=8, head_dim=4, cap=1e6)
    plain = fit_cases._attention(Tensor(q), Tensor(k), Tensor(v), alpha=1.5, seq_len=8, head_dim=4).data
    np.testing.assert_allclose(capped, plain, atol=1e-9)


def test_a_shared_head_gets_the_root_of_its_group_more_gradient() -> None:
    """dv sums over G heads that have nothing in common: √G."""
    by_group = {m.sizes["group"]: m.rms["dx2"] for m in measure(fit_cases.grouped_query_attention, [1.0])
                if (m.sizes["seq_len"], m.sizes["head_dim"]) == (96, 16)}  # fmt: skip
    assert by_group[4] / by_group[1] == pytest.approx(2, rel=0.06)


@pytest.mark.parametrize("name", WORKED)
def test_a_worked_case_is_fitted_and_its_code_and_test_run(name: str, tmp_path) -> None:
    text, rule, measured = report(name, getattr(fit_cases, name), ALPHAS[::2])
    assert rule.error < {"gelu": 0.006, "relu_squared": 0.006}.get(name, 0.09)
    (tmp_path / "rule.py").write_text(source := code(name, rule, measured))
    assert text.endswith(source)
    run = [sys.executable, "-c", f"import rule; rule.test_{name}_sigma()"]
    subprocess.run(run, cwd=tmp_path, check=True)
    (tmp_path / "rule.py").write_text(source.replace("return ", "return 1.2 * "))  # a rule that is off, to be caught
    assert subprocess.run(run, cwd=tmp_path, capture_output=True).returncode == 1


def test_where_a_rule_stops_holding_is_said() -> None:
    """Attention's mean of tokens that share half of their variance has more than half of it left."""
    rule = fit(measure(fit_cases.attention, [1.0]))
    found = dict(limits(fit_cases.attention, rule, [1.0]))
    assert found["tokens that share half of their variance"] > 1.5
    assert abs(found["sequences of 4 tokens"] - 1) > 0.1
    gelu = fit(measure(fit_cases.gelu, ALPHAS))
    assert abs(dict(limits(fit_cases.gelu, gelu, ALPHAS))["tokens that share half of their variance"] - 1) < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Functions of one's own, and the command


def softplus(x, gate, *, alpha=1.0):
    return gate * np.log1p(np.exp(alpha * x))


def test_the_gradients_of_a_function_are_its_own() -> None:
    def forward(x, gate, *, alpha):
        return softplus(x, gate, alpha=alpha), (x, gate, alpha)

    def backward(dy, saved):
        x, gate, alpha = saved
        return dy * gate * alpha / (1 + np.exp(-alpha * x)), dy * np.log1p(np.exp(alpha * x))

    op = Subject(primitive(forward, backward), lambda rng: list(rng.standard_normal((2, 64, 2048))), {})
    by_hand, found = measure(op, [2.0])[0].rms, measure(softplus, [2.0])[0].rms
    assert list(found) == ["y", "dx", "dgate"]
    assert list(found.values()) == pytest.approx(list(by_hand.values()), rel=0.02)


def test_the_command_ends_with_the_code_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["microumup.lab.fit_cases:gelu", "--octaves", "2", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "def test_gelu_sigma() -> None:" in out
    found = json.loads(out[-1])
    assert found["error"] < 0.01
    assert [m["alpha"] for m in found["measured"]] == [0.25, 0.5, 1.0, 2.0, 4.0]


def averages(x):
    return x.mean(axis=0)


def nothing(*, alpha):
    return alpha


NUMBER = 3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gelu", "'gelu' is no module:function, as microumup.lab.fit_cases:gelu"),
        ("microumup.lab.fit_cases:gelo", "has no gelo"),
        ("nowhere:gelu", "No module named 'nowhere'"),
        ("test_fit_scale:NUMBER", "neither a function nor a Subject"),
        ("test_fit_scale:averages", "averages makes (1024,) of (64, 1024); what is not elementwise needs a Subject"),
        ("test_fit_scale:nothing", "nothing takes no array"),
    ],
)
def test_what_is_no_op_is_a_line(target: str, message: str, refused: Refused) -> None:
    assert message in refused(main, [target])


def test_other_bad_arguments_are_lines(refused: Refused) -> None:
    assert "--octaves: 0 is not between" in refused(main, ["microumup.lab.fit_cases:gelu", "--octaves", "0"])


def test_names_are_loaded() -> None:
    assert load("microumup.lab.fit_cases:gelu") == ("gelu", fit_cases.gelu)
    leaf = Tensor(np.ones(3))
    with pytest.raises(ValueError, match="cotangent"):
        backpropagate(fit_cases._gated(leaf, leaf, alpha=1.0))
