"""Grader of exercise 06: `umup_row` against the package's table, for weights of random shapes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grading import compare, require, solve

from microumup.parametrization import SCHEMES, Shape, weight

pytestmark = pytest.mark.lesson06
SIZES = (11, 13, 17, 23, 37, 53, 71, 97, 131, 179, 233)  # primes: no mistake gives by chance what another one does


def grade(umup_row: Callable[..., Any]) -> None:
    """Raise AssertionError at the first number that is wrong."""
    rng = np.random.default_rng()
    for type, in_branch in (("hidden", False), ("hidden", True), ("output", False), ("input", False)):
        fan_in, fan_out = (int(n) for n in rng.choice(SIZES, size=2, replace=False))
        branches = 2 * int(rng.integers(2, 12))
        row = umup_row(type, fan_in, fan_out, branches, in_branch)
        require(
            isinstance(row, tuple) and len(row) == 3,
            f"yours is {row!r}, expected a tuple of three numbers: √B, A and C",
        )
        right = weight(SCHEMES["umup"], type, Shape(fan_in, fan_out, fan_in, branches, branches, in_branch))
        place = "in one of" if in_branch else "outside of"
        where = f"{type}, fan_in {fan_in}, fan_out {fan_out}, {place} {branches} branches"
        expected, likely = (right.init_std, right.A, right.C), mistakes(type, fan_in, fan_out, branches, in_branch)
        for name, found, number, wrong in zip(("√B", "A", "C"), row, expected, likely, strict=True):
            require(
                isinstance(found, (int, float, np.floating)), f"{name} ({where}): yours is {found!r}, expected a number"
            )
            compare(f"{name} ({where})", float(found), number, mistakes=wrong)


def mistakes(type: str, fan_in: int, fan_out: int, branches: int, in_branch: bool) -> tuple[dict[str, float], ...]:
    """What √B, A and C become by likely mistakes, each with its hint."""
    depth = branches**-0.5 if in_branch else 1.0
    swapped = "fan_in was taken for fan_out"
    of_std = {"that is SP's √B; u-µP has this factor in A": fan_in**-0.5}
    of_A = {
        "input": {
            "an embedding sums up nothing: one row of it is picked out": fan_in**-0.5,
            swapped: fan_out**-0.5,
        },
        "hidden": {
            "that is the readout's; terms of random signs add up to √fan_in": 1 / fan_in,
            "√B is 1 now, so A has to do what SP's √B did": 1.0,
            swapped: fan_out**-0.5,
        },
        "output": {
            "that is a hidden weight's; the readout is a mean over fan_in": fan_in**-0.5,
            swapped: 1 / fan_out,
        },
    }
    of_C = {
        "input": {
            "that is µP's; u-µP has the embedding's rule of App. A.3": 1.0,
            "fan_in was taken for fan_out; an embedding's fan_in is the vocabulary": fan_in**-0.5,
        },
        "hidden": {
            "that is A C, how far a step moves A w; divide by A": depth / fan_in,
            "every weight has the same C; a hidden weight's step has to shrink with fan_in": depth,
            swapped: fan_out**-0.5 * depth,
        },
        "output": {
            "A is 1/fan_in already, so a change by fan_in terms needs nothing more": fan_in**-0.5,
            "A was forgotten: A C fan_in is the change": 1 / fan_in,
        },
    }
    if in_branch:
        of_C["hidden"] |= {
            "the branches are missing in C of a weight that lies in one": fan_in**-0.5,
            "depth counts branches, two a layer; here layers were counted": (fan_in * branches / 2) ** -0.5,
            "the branches enter by the root of their number": fan_in**-0.5 / branches,
        }
    elif type == "hidden":
        of_C["hidden"] |= {"the branches count for weights in branches alone": (fan_in * branches) ** -0.5}
    return of_std, of_A[type], of_C[type]


def test_exercise() -> None:
    solve("06", grade, "umup_row")
