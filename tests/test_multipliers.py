from math import isclose, log, sqrt

import numpy as np
import pytest

from microumup.multipliers import (
    Plain,
    UnitScaled,
    attention_sigma,
    gated_silu_sigma,
    log_interpolate,
    residual_multipliers,
    residual_taus,
)
from microumup.ops import ResidualScale, Scale, attention, gated_silu


def test_log_interpolate_runs_from_lower_to_upper() -> None:
    assert isclose(log_interpolate(0.0, 8.0, 2.0), 2.0)
    assert isclose(log_interpolate(1.0, 8.0, 2.0), 8.0)
    assert isclose(log_interpolate(0.5, 8.0, 2.0), 4.0)


def test_table4_linear() -> None:
    assert UnitScaled.linear(A=1 / 8, A_backward=1 / 8, batch_tokens=100) == Scale(y=1 / 8, dx=1 / 8, dw=1 / 10)


def test_table4_readout_has_its_own_backward_multiplier() -> None:
    assert UnitScaled.linear(A=1 / 64, A_backward=1 / 8, batch_tokens=100) == Scale(y=1 / 64, dx=1 / 8, dw=1 / 10)


def test_table4_embedding() -> None:
    assert UnitScaled.embedding(A=1.0, vocab_size=400, batch_tokens=100) == Scale(y=1.0, dw=2.0)


@pytest.mark.parametrize("alpha", [0.25, 1.0, 4.0])
def test_table4_attention(alpha: float) -> None:
    weight = 1 / (1 + 4 * 16 / alpha**2)
    sigma = sqrt(log(256) / 256) ** (1 - weight)  # the upper end is 1
    scale = UnitScaled.attention(alpha, head_dim=16, seq_len=256)
    assert np.allclose(scale[:2], 1 / sigma, rtol=1e-14)


@pytest.mark.parametrize("alpha", [0.25, 1.0, 4.0])
def test_table4_gated_silu(alpha: float) -> None:
    weight = 1 / (1 + 1 / alpha**2)
    sigma = sqrt(0.5) ** weight * 0.5 ** (1 - weight)
    assert np.allclose(UnitScaled.gated_silu(alpha)[:2], 1 / sigma, rtol=1e-14)


def test_table4_residual_delays_a_to_the_base_of_the_branch() -> None:
    assert UnitScaled.residual(0.6, 0.8) == ResidualScale(a=0.6, b=0.8, dbranch=1.0, dbase=0.6)


def test_table4_cross_entropy_takes_out_the_batch_and_alpha() -> None:
    b, V, alpha = 40, 17, 0.5
    assert isclose(UnitScaled.cross_entropy(alpha, V, b).dx * alpha / b, V / sqrt(V - 1), rel_tol=1e-15)


def test_plain_factors_give_true_gradients() -> None:
    assert Plain.linear(0.3, 0.7, 100) == Scale(0.3, 0.3, 0.3)
    assert Plain.embedding(0.3, 400, 100) == Scale(y=0.3, dw=0.3)
    assert Plain.attention(1.0, 16, 256) == Plain.gated_silu(1.0) == Plain.cross_entropy(2.0, 17, 40) == Scale()
    residual = Plain.residual(0.6, 1.0)
    assert residual.dbranch * residual.dbase == residual.a


@pytest.mark.parametrize("alpha", [1 / 8, 1 / 2, 1.0, 2.0, 8.0])
def test_gated_silu_sigma_models_the_output_of_unit_inputs(alpha: float) -> None:
    x_in, x_gate = np.random.default_rng(0).standard_normal((2, 1_000_000))
    measured = gated_silu(x_in, x_gate, alpha=alpha).data.std()
    assert abs(measured / gated_silu_sigma(alpha) - 1) < 0.01 + 0.003  # the model's error, and three sampling errors


@pytest.mark.parametrize(("seq_len", "error"), [(16, 0.10), (256, 0.05)])
def test_attention_sigma_lies_below_the_uniform_limit_by_what_the_docstring_says(seq_len: int, error: float) -> None:
    harmonic = sum(1 / n for n in range(1, seq_len + 1))
    model = attention_sigma(1e-6, 16, seq_len)
    assert round(sqrt(harmonic / seq_len) / model - 1, 2) == error


def test_attention_sigma_is_a_mean_over_positions() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 64, 256, 16))
    y = attention(q, k, v, head_dim=16, score_scale=1 / 16).data / attention_sigma(1.0, 16, 256)
    rms = np.sqrt(np.mean(y * y, axis=(0, 2)))
    assert abs(rms[0] - 6.7) < 0.5  # 1024 numbers of a normal distribution: 2 % apart, three times
    assert abs(rms[-32:].mean() - 0.43) < 0.03


@pytest.mark.parametrize("branches", [2, 4, 8, 24, 64])
@pytest.mark.parametrize(("alpha_res", "ratio"), [(1.0, 1.0), (0.5, 2.0), (3.0, 0.25)])
def test_residual_taus_equal_the_closed_form(branches: int, alpha_res: float, ratio: float) -> None:
    f = alpha_res * sqrt(2 / (ratio**2 + 1))
    a = ratio * f
    for l, tau in enumerate(residual_taus(branches, alpha_res, ratio), start=1):  # noqa: E741
        k = (l - 1) // 2
        closed = a**2 / (branches + k * (a**2 + f**2)) if l % 2 else f**2 / (branches + (k + 1) * a**2 + k * f**2)
        assert isclose(tau, closed, rel_tol=1e-13)


@pytest.mark.parametrize("branches", [4, 8, 24, 64])
@pytest.mark.parametrize(("alpha_res", "ratio"), [(1.0, 1.0), (0.5, 2.0), (3.0, 0.25)])
def test_alpha_res_and_its_ratio_are_what_they_are_called(branches: int, alpha_res: float, ratio: float) -> None:
    """The share of each branch, and of the embedding, in the variance of the last residual."""
    skip, shares = 1.0, []
    for a, b in residual_multipliers(residual_taus(branches, alpha_res, ratio)):
        skip *= b * b
        shares = [s * b * b for s in shares] + [a * a]
    assert isclose(sqrt(sum(shares) / skip), alpha_res, rel_tol=1e-12)
    assert isclose(sqrt(sum(shares[0::2]) / sum(shares[1::2])), ratio, rel_tol=1e-12)
    assert isclose(skip + sum(shares), 1.0, rel_tol=1e-12)


def taus_as_printed(branches: int, alpha_res: float, ratio: float) -> list[float]:
    """Eq. (22), letter for letter."""
    f = alpha_res * sqrt(2 / (ratio**2 + 1))
    a = ratio * f
    taus = []
    for l in range(1, branches + 1):  # noqa: E741
        k = (l - 1) // 2
        taus.append((a / (1 + k * a + k * f) if l % 2 else f / (1 + (k + 1) * a + k * f)) / sqrt(branches))
    return taus


def residual_networks(taus: list[float], alpha_res: float, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Two pre-norm networks of the same blocks: eqs. (1, 2) with r_l, and eqs. (9, 10) with τ_l, the latter times
    √Σ r_i². Lemma C.1 says that they are equal."""
    rng, branches = np.random.default_rng(0), len(taus)
    f = alpha_res * sqrt(2 / (ratio**2 + 1))
    weights = rng.standard_normal((branches, 32, 32)) / sqrt(32)
    plain = scaled = rng.standard_normal((8, 32))
    variance = 1.0
    for l, (a, b) in enumerate(residual_multipliers(taus), start=1):  # noqa: E741

        def block(x: np.ndarray, l: int = l) -> np.ndarray:  # noqa: E741 - zero-homogeneous: it normalizes first
            return np.tanh(x / np.sqrt(np.mean(x * x, -1, keepdims=True)) @ weights[l - 1])

        r = (ratio * f if l % 2 else f) / sqrt(branches)
        plain = r * block(plain) + plain
        scaled = a * block(scaled) + b * scaled
        variance += r * r
    return plain, scaled * sqrt(variance)


@pytest.mark.parametrize(("alpha_res", "ratio"), [(1.0, 1.0), (2.0, 0.5), (0.25, 4.0)])
@pytest.mark.parametrize("branches", [2, 8, 24])
def test_lemma_c1(branches: int, alpha_res: float, ratio: float) -> None:
    plain, scaled = residual_networks(residual_taus(branches, alpha_res, ratio), alpha_res, ratio)
    assert np.abs(plain - scaled).max() < 1e-12


@pytest.mark.parametrize("branches", [8, 24])
def test_lemma_c1_fails_with_eq_22_as_printed(branches: int) -> None:
    plain, scaled = residual_networks(taus_as_printed(branches, 1.0, 1.0), 1.0, 1.0)
    assert np.abs(plain - scaled).max() > 0.1


@pytest.mark.parametrize(("branches", "measured"), [(4, 1.21), (8, 1.19), (24, 1.05), (64, 0.89)])
def test_eq_22_as_printed_misses_alpha_res(branches: int, measured: float) -> None:
    skip = np.prod([b * b for _, b in residual_multipliers(taus_as_printed(branches, 1.0, 1.0))])
    assert round(sqrt((1 - skip) / skip), 2) == measured
