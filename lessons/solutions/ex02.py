"""Exercise 02, solved."""

from microumup.backend import Array


def unit_linear(x: Array, w: Array, dy: Array, *, readout: bool) -> tuple[Array, Array, Array]:
    """y, dx and dw of a linear in u-µP: of the readout, or of a hidden weight."""
    fan_out, fan_in = w.shape
    rows, dy_rows = x.reshape(-1, fan_in), dy.reshape(-1, fan_out)  # a row per token: (B T, D_in), (B T, D_out)
    y = (1 / fan_in if readout else fan_in**-0.5) * (x @ w.T)
    dx = fan_in**-0.5 * (dy @ w)  # the readout's too
    dw = len(rows) ** -0.5 * (dy_rows.T @ rows)
    return y, dx, dw
