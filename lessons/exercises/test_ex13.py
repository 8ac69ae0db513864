"""Grader of exercise 13: ReLU² against differences of itself, by the package's gradcheck, and against unit scale."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grading import compare, require, solve

from microumup.lab.gradcheck import check_pair

pytestmark = pytest.mark.lesson13

RIGHT = 1.5**-0.5  # E[max(x, 0)⁴] = 3/2
BY_STD = 1.25**-0.5  # and its mean is 1/2, so its variance is 3/2 - 1/4


def grade(forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    """Raise AssertionError at the first thing that is wrong, of y and of dx."""
    rng = np.random.default_rng()
    shape = tuple(int(n) for n in rng.integers(3, 6, size=3))
    x, dy = rng.standard_normal(shape), rng.standard_normal(shape)
    given = x.copy(), dy.copy()
    outcome = forward(x)
    require(isinstance(outcome, tuple) and len(outcome) == 2, "forward: expected a tuple y, saved")
    y, saved = outcome
    square = np.maximum(given[0], 0) ** 2
    compare(f"y (x {' x '.join(map(str, shape))})", y, RIGHT * square, tolerance=1e-4, mistakes={
        "it has no factor": square,
        "the factor makes the standard deviation 1; the matmul behind it feels the RMS": BY_STD * square,
        "it is multiplied by the RMS; divide by it": square / RIGHT,
        "it is divided by the mean square; the RMS is its root": square * RIGHT**2,
        "negative x give 0 too, which halves the mean square: E[max(x, 0)⁴] is half of E[x⁴]": square * 3**-0.5,
        "negative x are squared as well; max(x, 0) comes first": RIGHT * given[0] ** 2,
        "that is a ReLU, without its square": RIGHT * np.maximum(given[0], 0),
    })  # fmt: skip
    gradients = backward(dy, saved)
    require(
        isinstance(gradients, tuple) and len(gradients) == 1,
        f"backward: yours is {type(gradients).__name__}, expected a tuple of one gradient: return (dx,)",
    )
    true = 2 * RIGHT * np.maximum(given[0], 0) * given[1]
    compare("dx", gradients[0], true, tolerance=1e-4, mistakes={
        "forward's factor is missing; inside a branch both have it (the cut-edge rule)": true / RIGHT,
        "forward's factor is in it twice": true * RIGHT,
        "the 2 of the derivative is missing": true / 2,
        "dx was made unit-scale on its own, by another factor than forward's; inside a branch both are the same":
            true / (2 * RIGHT) * 2**0.5,
        "where x is negative the derivative is 0": 2 * RIGHT * given[0] * given[1],
        "dy is missing": true / given[1],
        "that is y times dy; the derivative of a square is twice its root": RIGHT * square * given[1],
    })  # fmt: skip
    for name, array, before in zip(("x", "dy"), (x, dy), given, strict=True):
        require(np.array_equal(array, before), f"{name} was written to; make new arrays")
    smooth = rng.standard_normal(40)
    smooth += np.copysign(0.01, smooth)  # differences say nothing right at 0
    (result,) = check_pair(forward, backward, [smooth])
    require(result.passed, f"gradcheck: dx differs from the differences of your own forward by {result.error:.2g}")
    single, _ = forward(np.float32([1.0, -1.0]))
    require(np.asarray(single).dtype == np.float32, "y of a float32 x is float64; keep the factor a plain Python float")


def test_exercise() -> None:
    solve("13", grade, "relu_squared_forward", "relu_squared_backward")
