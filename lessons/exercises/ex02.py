"""Exercise 02: a linear's three products, each with its factor.

Write `unit_linear`. Graded by: pytest -m lesson02 lessons
Hints: python lessons/hint.py 02 1  (then 2, then 3)
"""

from microumup.backend import Array


def unit_linear(x: Array, w: Array, dy: Array, *, readout: bool) -> tuple[Array, Array, Array]:
    """y, dx and dw of a linear in u-µP: of the readout, or of a hidden weight.

    x (B, T, D_in) is its input and w (D_out, D_in) its weight; dy (B, T, D_out) is the gradient of its output. The
    results are y (B, T, D_out), dx (B, T, D_in) and dw (D_out, D_in). Write to none of the arrays that you are given.

    In slow and obvious loops, but for the three factors, which are yours to fill in (they depend on the shapes alone):

        for every sequence n and position t:
            for every output j:
                y[n, t, j] = factor_y * (x[n, t, 0] * w[j, 0] + x[n, t, 1] * w[j, 1] + ...)
            for every input i:
                dx[n, t, i] = factor_dx * (dy[n, t, 0] * w[0, i] + dy[n, t, 1] * w[1, i] + ...)
        for every output j and input i:
            dw[j, i] = factor_dw * (the sum of dy[n, t, j] * x[n, t, i] over all n and t)
    """
    raise NotImplementedError
