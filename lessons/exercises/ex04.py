"""Exercise 04: the gated SiLU, unit-scaled.

Write `unit_gated_silu`. Graded by: pytest -m lesson04 lessons
Hints: python lessons/hint.py 04 1  (then 2, then 3)
"""

from microumup.backend import Array


def unit_gated_silu(x_in: Array, x_gate: Array, dy: Array, alpha: float) -> tuple[Array, Array, Array]:
    """y, and the gradients dx_in and dx_gate, of the gated SiLU in u-µP; dy is the gradient of y. All have one shape.

    In slow and obvious loops, for every element, with e = 2.71828...:

        gate = 1 / (1 + e to the power of (-alpha * x_gate))                        the sigmoid
        y = factor * x_in * x_gate * gate
        dx_in = factor * dy * (what x_in * x_gate * gate changes by per change of x_in)
        dx_gate = factor * dy * (what it changes by per change of x_gate, which is in it twice)

    where factor is one over the modelled scale (App. B):

        weight = 1 / (1 + 1 / alpha squared)
        log of scale = weight * log of (1 / root of 2) + (1 - weight) * log of (1 / 2)

    Write to none of the arrays that you are given.
    """
    raise NotImplementedError
