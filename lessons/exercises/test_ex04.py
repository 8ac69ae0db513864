"""Grader of exercise 04: `unit_gated_silu` against the package's gated_silu with its factor, on random arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grading import compare, require, solve

from microumup import ops
from microumup.multipliers import UnitScaled, log_interpolate

pytestmark = pytest.mark.lesson04

HALF, ROOT_HALF = 0.5, 0.5**0.5


def grade(unit_gated_silu: Callable[..., Any]) -> None:
    """Raise AssertionError at the first of y, dx_in and dx_gate that is wrong, for an α of 1 and two others."""
    rng = np.random.default_rng()
    for alpha in (1.0, *np.exp2(rng.uniform(0.5, 2, 2) * (-1, 1)).tolist()):
        shape = tuple(rng.integers(2, 6, size=3).tolist())
        x_in, x_gate, dy = rng.standard_normal((3, *shape))
        given = [array.copy() for array in (x_in, x_gate, dy)]
        yours = unit_gated_silu(x_in, x_gate, dy, alpha)
        kind = type(yours).__name__
        require(isinstance(yours, tuple) and len(yours) == 3, f"yours is {kind}, expected a tuple y, dx_in, dx_gate")
        for name, array, before in zip(("x_in", "x_gate", "dy"), (x_in, x_gate, dy), given, strict=True):
            require(np.array_equal(array, before), f"{name} was written to; make new arrays")

        scale = UnitScaled.gated_silu(alpha)
        y, saved = ops.gated_silu_forward(x_in, x_gate, alpha=alpha, scale=scale)
        dx_in, dx_gate = ops.gated_silu_backward(dy, saved)
        right = 1 / scale.y
        weight = 1 / (1 + 1 / alpha**2)
        factors = {
            "it has no factor": 1.0,
            "the op is divided by its scale, not multiplied": right,
            "the ends are exchanged, or the weight is 1/(1 + alpha²): a large alpha gives 1/√2, a small one 1/2":
                1 / log_interpolate(weight, HALF, ROOT_HALF),
            "alpha is not squared in the weight": 1 / log_interpolate(1 / (1 + 1 / alpha), ROOT_HALF, HALF),
            "mix the logarithms of both ends, not the ends": 1 / (weight * ROOT_HALF + (1 - weight) * HALF),
        }  # fmt: skip
        # where α is 1 some of these make no difference: those are no hint
        factors = {hint: factor * right for hint, factor in factors.items() if abs(factor * right - 1) > 1e-6}
        gate = 1 / (1 + np.exp(-alpha * x_gate))
        plain = 1 / (1 + np.exp(-x_gate))
        slope = alpha * gate * (1 - gate)
        mistakes = {
            "y": {
                "alpha is missing in the sigmoid": scale.y * x_in * x_gate * plain,
                "x_gate itself is missing: it is x_gate · sigmoid": scale.y * x_in * gate,
                "x_in and x_gate are exchanged": scale.y * x_in * x_gate / (1 + np.exp(-alpha * x_in)),
            },
            "dx_in": {
                "alpha is missing in the sigmoid": scale.y * dy * x_gate * plain,
                "dy is missing": dx_in / dy,
                "that is dx_gate": dx_gate,
            },
            "dx_gate": {
                "only the term in which the sigmoid is held fixed": scale.y * dy * x_in * gate,
                "only the term in which x_gate itself is held fixed": scale.y * dy * x_in * x_gate * slope,
                "the sigmoid's slope lacks alpha, by the chain rule":
                    scale.y * dy * x_in * (gate + x_gate * slope / alpha),
                "the sigmoid's slope is gate · (1 - gate)": scale.y * dy * x_in * (gate + x_gate * alpha * gate),
                "x_gate is missing in the second term": scale.y * dy * x_in * (gate + slope),
                "dy is missing": dx_gate / dy,
            },
        }  # fmt: skip
        for name, found, expected in zip(("y", "dx_in", "dx_gate"), yours, (y, dx_in, dx_gate), strict=True):
            wrong = {hint: value for hint, value in mistakes[name].items() if not np.allclose(value, expected)}
            wrong |= {
                f"{hint}{'' if name == 'y' else '; forward and backward have the same factor'}": factor * expected
                for hint, factor in factors.items()
            }
            compare(f"{name} (alpha {alpha:.3g}, shape {shape})", found, expected, mistakes=wrong)


def test_exercise() -> None:
    solve("04", grade, "unit_gated_silu")
