"""Grader of exercise 10: `to_e4m3` against the package's quantize, on numbers of every kind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grading import compare, require, solve

from microumup.fp8 import E4M3, E5M2, quantize

pytestmark = pytest.mark.lesson10


def rounded(
    x: Any, largest: float = 448, lowest: int = -6, bits: int = 3, to_whole: Callable[..., Any] = np.rint
) -> Any:
    """E4M3 as one may get it wrong."""
    x = np.clip(x, -largest, largest).astype(np.float64)
    step = 2.0 ** (np.maximum(np.frexp(x)[1] - 1, lowest) - bits)
    return to_whole(x / step) * step


def away(n: Any) -> Any:
    """The nearest whole number; ties away from zero."""
    return np.copysign(np.floor(np.abs(n) + 0.5), n)


def grade(to_e4m3: Callable[..., Any]) -> None:
    """Raise AssertionError at the first kind of number that is rounded wrongly, from the ordinary to the rare."""
    rng = np.random.default_rng()
    values = np.float32([m * 2.0**e / 8 for e in range(-6, 9) for m in range(8, 16)][:-1])  # the last code is NaN
    subnormal = np.float32([m * 2.0**-9 for m in range(1, 8)])
    every = np.concatenate([subnormal, values])
    shape = tuple(int(n) for n in rng.integers(2, 5, size=3))
    inputs = {
        "ordinary numbers": rng.standard_normal(shape),
        "numbers of E4M3 itself": rng.permutation(np.concatenate([values, -values])),
        "halves between neighbours": rng.permutation((every[1:] + every[:-1]) / 2)
        * rng.choice([-1, 1], len(every) - 1),
        "subnormal numbers, below 2^-6": rng.uniform(-(2**-6), 2**-6, size=64),
        "numbers past 240": rng.choice([-1, 1], 8) * rng.uniform(264, 440, 8),
        "numbers past 448": np.array([449.0, -465.0, 1e6, -1e30, np.inf, -np.inf]),
        "zeros": np.array([0.0, 2**-11, 1e-30]),
    }
    for kind, values in inputs.items():
        x = values.astype(np.float32)
        given = x.copy()
        yours = to_e4m3(x)
        require(np.array_equal(x, given), "x was written to; make a new array")
        right = quantize(given, E4M3)
        bits = {
            "2 bits of mantissa are E5M2's; E4M3 has 3": rounded(given, bits=2),
            "that is E5M2; E4M3 has 3 bits of mantissa": quantize(given, E5M2),
            "4 bits of mantissa; E4M3 has 3 (frexp's m is between 1/2 and 1, so its exponent is one too large)":
                rounded(given, bits=4),
            "the step is twice too large: frexp's m is between 1/2 and 1, so its exponent is one too large":
                rounded(given, bits=2, lowest=-7),
        }  # fmt: skip
        others = {
            "it rounds towards zero, as trunc and astype(int) do; take the nearest": rounded(given, to_whole=np.trunc),
            "it rounds down; take the nearest": rounded(given, to_whole=np.floor),
            "ties go away from zero; of two that are as near take the even one": rounded(given, to_whole=away),
            "ties go up, as floor(x + 0.5) sends them; take the even one":
                rounded(given, to_whole=lambda n: np.floor(n + 0.5)),
            "numbers below 2^-6 became 0; E4M3 has subnormal numbers, 2^-9 apart":
                np.where(np.abs(given) < 2**-6, 0, right),
            "below 2^-6 the step goes on to shrink; all numbers there are 2^-9 apart": rounded(given, lowest=-60),
            "the largest is 240 as in IEEE's formats; E4M3 goes to 448": rounded(given, largest=240),
            "what lies past 448 is not set to 448": rounded(given, largest=np.inf),
        }  # fmt: skip
        if kind == "numbers past 448" and yours is not None and not np.all(np.isfinite(yours)):
            raise AssertionError(f"{kind}: yours has NaN or infinity. Likely: what lies past 448 is not set to 448")
        compare(f"{kind}, y", yours, right, mistakes=bits | others, tolerance=0)
        dtype = np.asarray(yours).dtype
        require(
            dtype == np.float32, f"{kind}: yours is {dtype}, expected float32. Likely: step is float64; make it float32"
        )
    zero = to_e4m3(np.float32([-0.0, -(2**-11), -1e-30]))
    require(
        bool(np.all(np.signbit(zero))),
        "y of -0.0, -2^-11 and -1e-30: yours is +0.0, expected -0.0. Likely: the sign of zero is lost; rint keeps it, "
        "np.floor(x + 0.5) and np.where(..., 0, ...) do not",
    )


def test_exercise() -> None:
    solve("10", grade, "to_e4m3")
