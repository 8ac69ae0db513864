"""Exercise 13: an op that the paper does not have, ReLU².

Write `relu_squared_forward` and `relu_squared_backward`. Graded by: pytest -m lesson13 lessons
Hints: python lessons/hint.py 13 1  (then 2, then 3)
"""

from typing import Any

from microumup.backend import Array


def relu_squared_forward(x: Array) -> tuple[Array, Any]:
    """y = factor · max(x, 0)², and all that backward needs. x of any shape; y has the same.

    The factor is one number, the same for every x: it makes y unit-scale (RMS 1, not standard deviation 1) when the
    elements of x are independent, normal, of mean 0 and RMS 1. Work it out on paper, or measure it to six digits.

    In slow and obvious loops:

        for every element x:
            y = factor * x * x if x > 0 else 0
    """
    raise NotImplementedError


def relu_squared_backward(dy: Array, saved: Any) -> tuple[Array]:
    """The gradient of x, in a tuple, for the gradient dy of y. Write to no array that is not yours.

    The op will stand in a residual branch, so by the cut-edge rule no factor of its own is free here: it is the true
    derivative of what forward does.

    In slow and obvious loops:

        for every element x and its dy:
            dx = dy * (the derivative of factor * max(x, 0)^2 at x)
    """
    raise NotImplementedError
