"""Exercise 05, solved."""

from math import sqrt


def branch_multipliers(branches: int, alpha_res: float, alpha_res_attn_ratio: float) -> list[tuple[float, float]]:
    """(a, b) of every branch, for R' = a f(R) + b R: a network whose trunk keeps scale 1."""
    ffn = alpha_res * sqrt(2 / (alpha_res_attn_ratio**2 + 1))
    attention = alpha_res_attn_ratio * ffn
    multipliers, before = [], 1.0  # before = r_0² + … + r_{l-1}²
    for place in range(1, branches + 1):
        r_squared = (attention if place % 2 else ffn) ** 2 / branches
        tau = r_squared / before
        multipliers.append((sqrt(tau / (tau + 1)), sqrt(1 / (tau + 1))))
        before += r_squared
    return multipliers
