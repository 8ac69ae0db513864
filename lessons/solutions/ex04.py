"""Exercise 04, solved."""

from math import exp, log, sqrt

import numpy as np

from microumup.backend import Array


def unit_gated_silu(x_in: Array, x_gate: Array, dy: Array, alpha: float) -> tuple[Array, Array, Array]:
    """y, and the gradients dx_in and dx_gate, of the gated SiLU in u-µP; dy is the gradient of y."""
    weight = 1 / (1 + 1 / alpha**2)
    factor = 1 / exp(weight * log(1 / sqrt(2)) + (1 - weight) * log(1 / 2))
    gate = 1 / (1 + np.exp(-alpha * x_gate))
    slope = gate + x_gate * alpha * gate * (1 - gate)  # of x_gate · gate: the product rule
    return factor * x_in * x_gate * gate, factor * dy * x_gate * gate, factor * dy * x_in * slope
