"""Table 4: the factors of every op under Unit Scaling, and the residual multipliers of App. C and D.

    op                      forward                                     backward
    linear                  A                                           dx: A, the readout fan_in^-1/2   dw: b^-1/2
    embedding               A                                           dw: √(V/b)
    attention               1/log_interpolate(1/(1 + 4K/α²), 1, √(log s/s))      dq, dk, dv: the same
    gated_silu              1/log_interpolate(1/(1 + 1/α²), 1/√2, 1/2)           both: the same
    residual                a f(R) + b R,                               the branch sees dy itself;
                            a = √(τ/(τ+1)), b = √(1/(τ+1))              a waits at its base
    cross_entropy           1                                           dlogits = (p - onehot) V/√(V-1)
    rms_norm, rope          1                                           1

A is the weight's multiplier from Table 1 (`parametrization.py`), which says √B and C too: the std it is drawn with and
its factor on the learning rate. α is the multiplier before a non-homogeneous op, b the number of tokens in a batch, K
the head dim, V the vocabulary, s the training sequence length: frozen with the model, never the length of the input at
hand, or the same text would get other logits in a longer input. The three factors of a linear:

    hidden y    y_j = x_1 w_j1 + x_2 w_j2 + …, a sum of fan_in terms;
                each is a product of two independent numbers of scale 1, and has variance 1;
                variances add up to fan_in, so fan_in^-1/2 brings y back to scale 1
    readout y   the same sum at initialization, but every update of Adam moves w along the sign of x;
                then all terms have one sign, and add up to ~ fan_in, not to its root;
                1/fan_in keeps that finite at every width (hidden weights have C for it, the readout's is 1)
    dw          dw_ji = dy_1j x_1i + dy_2j x_2i + …, a sum over the b tokens of a batch;
                its terms are independent at initialization, each of variance 1;
                b^-1/2 brings it back to scale 1, and nothing but this weight's own update sees it

Everything is a plain float made of shapes and α's. A forward and a backward factor may differ only where the edge is
the single way to the loss (the cut-edge rule): then every gradient behind it is the true one times one known constant.
"""

from collections.abc import Sequence
from math import exp, log, sqrt

from microumup.ops import ResidualScale, Scale


class Plain:
    """Factors of a model that is not unit-scaled: the multiplier A, and backward the true gradient."""

    @staticmethod
    def linear(A: float, A_backward: float, batch_tokens: int) -> Scale:
        return Scale(y=A, dx=A, dw=A)

    @staticmethod
    def embedding(A: float, vocab_size: int, batch_tokens: int) -> Scale:
        return Scale(y=A, dw=A)

    @staticmethod
    def attention(alpha_attn_softmax: float, head_dim: int, seq_len: int) -> Scale:
        return Scale()

    @staticmethod
    def gated_silu(alpha_ffn_act: float) -> Scale:
        return Scale()

    @staticmethod
    def residual(a: float, b: float) -> ResidualScale:
        return ResidualScale(a=a, b=b, dbranch=a, dbase=1.0)

    @staticmethod
    def cross_entropy(alpha_loss_softmax: float, vocab_size: int, batch_tokens: int) -> Scale:
        return Scale()


class UnitScaled(Plain):
    """Table 4, row by row."""

    @staticmethod
    def linear(A: float, A_backward: float, batch_tokens: int) -> Scale:
        return Scale(y=A, dx=A_backward, dw=batch_tokens**-0.5)

    @staticmethod
    def embedding(A: float, vocab_size: int, batch_tokens: int) -> Scale:
        return Scale(y=A, dw=sqrt(vocab_size / batch_tokens))

    @staticmethod
    def attention(alpha_attn_softmax: float, head_dim: int, seq_len: int) -> Scale:
        factor = 1 / attention_sigma(alpha_attn_softmax, head_dim, seq_len)
        return Scale(y=factor, dx=factor)

    @staticmethod
    def gated_silu(alpha_ffn_act: float) -> Scale:
        factor = 1 / gated_silu_sigma(alpha_ffn_act)
        return Scale(y=factor, dx=factor)

    @staticmethod
    def residual(a: float, b: float) -> ResidualScale:
        return ResidualScale(a=a, b=b, dbranch=1.0, dbase=a)

    @staticmethod
    def cross_entropy(alpha_loss_softmax: float, vocab_size: int, batch_tokens: int) -> Scale:
        # the op's own dlogits is α/b · (p - onehot), so this leaves V/√(V-1) of it: no 1/b, no α
        return Scale(dx=batch_tokens / alpha_loss_softmax * vocab_size / sqrt(vocab_size - 1))


def log_interpolate(weight: float, upper: float, lower: float) -> float:
    """A value from `lower` at weight 0 to `upper` at weight 1, straight on a logarithmic scale (App. B)."""
    return exp(weight * log(upper) + (1 - weight) * log(lower))


def attention_sigma(alpha_attn_softmax: float, head_dim: int, seq_len: int) -> float:
    """Modelled std of causal attention's output for unit-scale q, k, v (App. B).

    A mean over positions: the first token copies its own v at full size, the last averages s of them. For uniform
    attention the exact value is √(H_s/s), H_s = 1 + 1/2 + … + 1/s; it is 5 % above the model at s = 256 and 10 %
    at s = 16. `seq_len` has to be at least 2.
    """
    weight = 1 / (1 + 4 * head_dim / alpha_attn_softmax**2)
    return log_interpolate(weight, 1.0, sqrt(log(seq_len) / seq_len))


def gated_silu_sigma(alpha_ffn_act: float) -> float:
    """Modelled std of gated_silu's output for unit-scale inputs (App. B); within 1 % for α in [1/8, 8]."""
    return log_interpolate(1 / (1 + 1 / alpha_ffn_act**2), 1 / sqrt(2), 1 / 2)


def residual_multipliers(taus: Sequence[float]) -> list[tuple[float, float]]:
    """(a, b) of every branch from its τ, the ratio of variances of branch and skip (eq. 8)."""
    return [(sqrt(tau / (tau + 1)), sqrt(1 / (tau + 1))) for tau in taus]


def residual_taus(branches: int, alpha_res: float, alpha_res_attn_ratio: float) -> list[float]:
    """τ_l = r_l² / Σ_{i<l} r_i² (eq. 12) of branches l = 1 … L, attention where l is odd, FFN where it is even.

    r_0 = 1 and r_l = α̂/√L, with α̂_f = α_res √(2/(ρ²+1)) and α̂_a = ρ α̂_f (eqs. 23, 24). Multiplied out:

        attention   τ = α̂_a² / (L +       k α̂_a² + k α̂_f²),   k = ⌊(l-1)/2⌋
        FFN         τ = α̂_f² / (L + (k+1) α̂_a² + k α̂_f²)

    The paper's eq. (22) prints these without the squares and with 1/√L on τ instead of on r; as printed, Lemma C.1
    fails, and σ(residual)/σ(embedding) is not α_res. Eq. (12) is what its proof uses, and what stands here.
    """
    ratio = alpha_res_attn_ratio
    alpha_f = alpha_res * sqrt(2 / (ratio**2 + 1))
    alpha_a = ratio * alpha_f
    taus, variance = [], 1.0  # variance = Σ_{i<l} r_i², from r_0 = 1
    for l in range(1, branches + 1):  # noqa: E741 - the paper's index of a branch
        r_squared = (alpha_a if l % 2 else alpha_f) ** 2 / branches
        taus.append(r_squared / variance)
        variance += r_squared
    return taus
