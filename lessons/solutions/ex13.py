"""Exercise 13, solved."""

from typing import Any

import numpy as np

from microumup.backend import Array

# E[y²] = E[max(x, 0)⁴] = E[x⁴]/2, as half of all x are positive; and E[x⁴] = 3 for a standard normal x
FACTOR = (3 / 2) ** -0.5


def relu_squared_forward(x: Array) -> tuple[Array, Any]:
    """y = factor · max(x, 0)², and all that backward needs."""
    positive = np.maximum(x, 0)
    return FACTOR * positive * positive, positive


def relu_squared_backward(dy: Array, saved: Any) -> tuple[Array]:
    """The gradient of x, in a tuple, for the gradient dy of y."""
    # y = FACTOR · max(x, 0)²
    return (dy * (2 * FACTOR) * saved,)
