"""The RMS that every tensor of `umup` starts at on random tokens, worked out from shapes alone.

Unit Scaling aims at 1, and most tensors are there. The others depart from it by what follows from the rules:

    logits               D^-1/2                       the readout's A is 1/fan_in
    head's dx            √(V/D)                       its backward factor is fan_in^-1/2 (App. A.4), not fan_out^-1/2
    down's dx            √(D/F) = 0.60 of dy          A is fan_in^-1/2 in both directions
    gate's and up's dx   √(F/D) = 1.66 of dy          which is 0.60 after down; the sum of both is √2
    attention's y, dv    √(H_s/s)/σ, of dy            σ is a model; H_s = 1 + 1/2 + … + 1/s is exact for the mean
    dq, dk               α/√K √((H_s - Q_s)/s)/σ      of dy; Q_s = 1 + 1/4 + … + 1/s²
    a trunk's gradient   √(a² branch² + b² skip²)

The rows on attention hold for tokens that have nothing in common. From layer 1 on they do have: each got the average of
those before it added, nearly the same one as its neighbour. An average of such vectors is larger: with two layers,
attention's y in layer 1 is 1.8 at s = 64 and 2.9 at s = 256. So one number per tensor is not enough, and what is
followed here is a matrix M (s, s): the mean over features of the product of a tensor's vectors at two positions of a
sequence. Its diagonal is the mean square at every position. Weights are independent of what they meet, which
makes the rules short:

    linear               (gain)² M                    A² times the number of terms in the sum
    rms_norm             M/(ρ ρᵀ), ρ = √diagonal      forward the diagonal becomes 1; backward by the same ρ
    attention            P M Pᵀ/σ², back Pᵀ M P/σ²    P[n, m] = 1/n for m <= n: scores of std α/√K count as equal
    f(gate)              Σ_k f_k² M^k                 f_k: coefficients of f in Hermite polynomials
    weight's gradient    √(mean_n Σ_m M_dy M_x)       a mean over tokens; √b keeps it independent of their number

Measured RMS are within 1 to 6 % of it on the whole, single ones within 20 %, up to 30 % where s is far larger than D;
as long as α/√K stays below 1/2, for then attention is nearly uniform.
"""

from collections.abc import Callable
from math import factorial, sqrt

import numpy as np
from numpy.polynomial import hermite_e, polynomial

from microumup.backend import Array
from microumup.config import ModelConfig
from microumup.multipliers import attention_sigma, gated_silu_sigma
from microumup.plan import plan, weights


def expected_rms(config: ModelConfig) -> dict[str, float]:
    """RMS at initialization of every tensor that `scales.measured_rms` measures, by the same names.

    For tokens and targets drawn uniformly; any number of sequences of seq_len tokens. Raises ValueError for a scheme
    other than umup.
    """
    if config.scheme != "umup":
        raise ValueError(f"--scheme {config.scheme}: expected scales are known for umup alone")
    c, D, F, V, s = config, config.width, config.ffn_dim, config.vocab_size, config.seq_len
    branches = plan(c, batch_tokens=s).branches
    average = np.tril(np.ones((s, s))) / np.arange(1, s + 1)[:, None]  # P
    attention_variance = attention_sigma(c.alpha_attn_softmax, c.head_dim, s) ** 2
    silu, silu_slope = _silu_products(c.alpha_ffn_act)
    silu_variance = gated_silu_sigma(c.alpha_ffn_act) ** 2
    rms = dict.fromkeys(_names(c), 1.0)

    def note(M: Array, names: str, layer: str = "", *, x: Array | None = None) -> None:
        mean_square = (np.trace(M) if x is None else (M * x).sum()) / s  # with x that of dw, where M is of dy
        rms.update({layer + name: sqrt(mean_square) for name in names.split()})

    # Forward. R is the trunk's matrix; of every branch what backward needs is kept: its normalized input, the squares
    # it was normalized by, and its output.
    same_token = np.eye(s) + (1 - np.eye(s)) / V  # two tokens are the same one, and so is their row, once in V
    R, kept = same_token, []
    for l in range(c.layers):  # noqa: E741
        layer, attn, ffn = f"layer{l}.", *branches[2 * l : 2 * l + 2]
        note(R, "attn_split.y", layer)
        x, squares = _normalized(R)
        y = average @ x @ average.T / attention_variance
        note(y, "attention.y o.x o.y", layer)
        kept.append((x, squares, y))
        R = attn.a**2 * y + attn.b**2 * R
        note(R, "attn_add.y ffn_split.y", layer)
        x, squares = _normalized(R)
        y = x * silu(x) / silu_variance
        note(y, "gated_silu.y down.x down.y", layer)
        kept.append((x, squares, y))
        R = ffn.a**2 * y + ffn.b**2 * R
        note(R, "ffn_add.y", layer)
    rms["head.y"] = D**-0.5

    # Backward. G is the matrix of the trunk's gradient.
    dx = V / D * np.eye(s)  # dlogits has scale 1 and, the targets being random, nothing in common between positions
    note(dx, "head.dx final_norm.dy")
    G = dx / _normalized(R)[1]
    for l in reversed(range(c.layers)):  # noqa: E741
        layer, attn, ffn = f"layer{l}.", *branches[2 * l : 2 * l + 2]
        x, squares, y = kept[2 * l + 1]
        note(G, "ffn_add.dy down.dy", layer)
        note(G, "down.dw", layer, x=y)
        dh = D / F * G
        note(dh, "down.dx gated_silu.dy", layer)
        d_up, d_gate = dh * silu(x) / silu_variance, dh * x * silu_slope(x) / silu_variance
        for name, dy in (("up", d_up), ("gate", d_gate)):
            note(dy, f"{name}.dy", layer)
            note(F / D * dy, f"{name}.dx", layer)
            note(dy, f"{name}.dw", layer, x=x)
        dx = F / D * (d_up + d_gate)
        note(dx, "ffn_norm.dy", layer)
        note(dx / squares, "ffn_split.dy", layer)
        G = ffn.a**2 * dx / squares + ffn.b**2 * G

        x, squares, y = kept[2 * l]
        note(G, "attn_add.dy o.dy o.dx attention.dy", layer)
        note(G, "o.dw", layer, x=y)
        dv = average.T @ G @ average / attention_variance
        note(dv, "v.dy v.dx", layer)
        note(dv, "v.dw", layer, x=x)
        dq, dk = (np.diag(variance) / attention_variance for variance in _score_gradients(c, x, G, average))
        note(dq, "q_rope.dy q.dy q.dx q.dw k.dw", layer)
        note(dk, "k_rope.dy k.dy k.dx", layer)
        dx = dq + dk + dv
        note(dx, "attn_norm.dy", layer)
        note(dx / squares, "attn_split.dy", layer)
        G = attn.a**2 * dx / squares + attn.b**2 * G
    note(G, "embedding.dy")
    note(G, "embedding.dw", x=same_token)
    return rms


def _names(config: ModelConfig) -> list[str]:
    """Every tensor: of the linears, of the other ops of a layer, and what stands before and behind the layers."""
    ops = "attn_split attn_norm q_rope k_rope attention attn_add ffn_split ffn_norm gated_silu ffn_add"
    nodes = {name: "x w y dx dw dy" for name in weights(config) if name != "embedding"}
    nodes |= {f"layer{l}.{op}": "y dy" for l in range(config.layers) for op in ops.split()}  # noqa: E741
    nodes |= {"embedding": "w y dw dy", "final_norm": "y dy"}
    return [f"{name}.{tensor}" for name, tensors in nodes.items() for tensor in tensors.split()]


def _normalized(M: Array) -> tuple[Array, Array]:
    """M with a diagonal of 1, and what it was divided by."""
    rho = np.sqrt(np.diagonal(M))
    return M / np.outer(rho, rho), np.outer(rho, rho)


def _silu_products(alpha: float) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """E[f(u) f(v)] of standard normal u and v as a function of their correlation, for f = SiLU and its derivative.

    E[f(u) f(v)] = Σ_k f_k² correlation^k with f_k = E[f(u) He_k(u)]/√k!.
    """
    u, probability = hermite_e.hermegauss(100)
    degrees = range(31)
    he = hermite_e.hermevander(u, degrees[-1]) / np.sqrt([float(factorial(k)) for k in degrees])  # (u, k)
    probability = probability / probability.sum()
    sigmoid = 0.5 * np.tanh(0.5 * alpha * u) + 0.5  # as a tanh it cannot overflow

    def product(f: Array) -> Callable[[Array], Array]:
        squares = ((probability * f) @ he) ** 2
        return lambda correlation: polynomial.polyval(correlation, squares)

    return product(u * sigmoid), product(sigmoid + alpha * u * sigmoid * (1 - sigmoid))


def _score_gradients(config: ModelConfig, x: Array, G: Array, average: Array) -> tuple[Array, Array]:
    """Mean squares (s,) of dq and dk at every position, before 1/σ. x: the normalized input, G: attention's dy.

    The gradient of a score is dS_ij = P_ij (v_j - v̄_i)·dy_i, v̄_i the mean of v up to i, and dq_i = α/K Σ_j dS_ij k_j,
    dk_j = α/K Σ_i dS_ij q_i. Over W_v the mean of dS_ij dS_im is P_ij P_im K G_ii times x_jm centred up to i, and over
    W_k that of k_j k_m is x_jm, RoPE left aside. Where x_jm is not 0 by chance, as the tokens are the same or near in
    D dimensions, it is so in both factors, which adds 1/V + 1/D to the mean of the product.
    For tokens with nothing in common all this is α²/K G_ii (1/i)(1 - 1/i).
    """

    def mean_up_to(M: Array) -> Array:
        return np.asarray(((average @ M) * average).sum(axis=1))  # (s,), over all pairs of positions up to i

    by_chance = (1 - x) * (1 / config.vocab_size + 1 / config.width)
    row_means, mean = average @ x, mean_up_to(x)  # x_jm centred up to i: x_jm - row_means_ij - row_means_im + mean_i
    dq = np.diagonal(G) * (mean_up_to(x * x + by_chance) - 2 * (average * row_means**2).sum(axis=1) + mean**2)
    dS = average * np.sqrt(np.maximum(1 - 2 * row_means + mean[:, None], 0))  # its size, over √(K G_ii)
    dk = (dS * ((G * x) @ dS)).sum(axis=0)
    factor = config.alpha_attn_softmax**2 / config.head_dim
    return factor * dq, factor * dk
