"""Grader of exercise 02: `unit_linear` against the package's linear, with the factors of its Plan, on random arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grading import compare, require, solve

from microumup import ops
from microumup.config import ModelConfig
from microumup.plan import plan

pytestmark = pytest.mark.lesson02

TRANSPOSED_SCALE = "fan_out was taken for fan_in; w is (fan_out, fan_in)"


def grade(unit_linear: Callable[..., Any]) -> None:
    """Raise AssertionError at the first of y, dx and dw that is wrong, of three hidden weights and the readout."""
    rng = np.random.default_rng()
    B, T, D = (int(n) for n in (rng.integers(2, 5), rng.integers(5, 9), 4 * rng.integers(2, 6)))
    V = D + int(rng.integers(3, 20))
    numbers = plan(ModelConfig(width=D, head_dim=2, vocab_size=V, layers=1), B * T)
    for name in ("layer0.q", "layer0.up", "layer0.down", "head"):
        readout, (fan_out, fan_in) = name == "head", numbers.weights[name].shape
        x, w, dy = (rng.standard_normal(shape) for shape in ((B, T, fan_in), (fan_out, fan_in), (B, T, fan_out)))
        given = [array.copy() for array in (x, w, dy)]
        yours = unit_linear(x, w, dy, readout=readout)
        require(
            isinstance(yours, tuple) and len(yours) == 3, f"yours is {type(yours).__name__}, expected a tuple y, dx, dw"
        )
        for argument, array, before in zip(("x", "w", "dy"), (x, w, dy), given, strict=True):
            require(np.array_equal(array, before), f"{argument} was written to; make new arrays")
        kind = "the readout" if readout else "a hidden weight"
        of = f"of {kind} (x {B} x {T} x {fan_in}, w {fan_out} x {fan_in})"
        plain_y, saved = ops.linear_forward(x, w)
        plain_dx, plain_dw = ops.linear_backward(dy, saved)
        y, saved = ops.linear_forward(x, w, scale=numbers.linears[name].scale)
        dx, dw = ops.linear_backward(dy, saved)
        none = "it has no factor"
        forward = fan_in**-1 if readout else fan_in**-0.5
        compare(f"y {of}", yours[0], y, mistakes={
            none: plain_y,
            "the readout has 1/fan_in forward, unlike a hidden weight" if readout else
            "1/fan_in is the readout's factor; a hidden weight has 1/√fan_in":
                plain_y * (fan_in**-0.5 if readout else fan_in**-1),
            TRANSPOSED_SCALE: plain_y * (fan_out**-1 if readout else fan_out**-0.5),
        })  # fmt: skip
        compare(f"dx {of}", yours[1], dx, mistakes={
            none: plain_dx,
            "that is the true derivative of y; the readout's dx has 1/√fan_in (App. A.4)": plain_dx * fan_in**-1,
            "1/√fan_out would give dx scale 1, but u-µP takes 1/√fan_in": plain_dx * fan_out**-0.5,
        })  # fmt: skip
        compare(f"dw {of}", yours[2], dw, mistakes={
            none: plain_dw,
            "that is the true derivative of y; dw has a factor of its own, 1/√b": plain_dw * forward,
            "b counts tokens, B · T, not sequences": plain_dw * B**-0.5,
            "b counts tokens, B · T, not positions": plain_dw * T**-0.5,
            "that is the mean over the tokens, 1/b; the factor is 1/√b": plain_dw / (B * T),
        })  # fmt: skip


def test_exercise() -> None:
    solve("02", grade, "unit_linear")
