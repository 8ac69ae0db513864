"""Exercise 07, solved."""

import numpy as np

from microumup.backend import Array


def adamw_step(
    w: Array, g: Array, m: Array, v: Array, t: int, lr: float, decay: float, beta1: float, beta2: float, eps: float
) -> tuple[Array, Array, Array]:
    """The next w, m and v."""
    m = beta1 * m + (1 - beta1) * g  # a new array: never m *= beta1
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return (1 - decay) * w - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
