"""Grader of exercise 05: `branch_multipliers` against the package's, for random depths and hyperparameters."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest
from grading import compare, require, solve

from microumup.lab.figures.rules import taus_as_printed
from microumup.multipliers import residual_multipliers, residual_taus

pytestmark = pytest.mark.lesson05


def taus(L: int, attention: float, ffn: float, *, depth: float = 0, late: bool = False) -> list[float]:
    """τ of all branches, with settings that may be wrong."""
    found, before = [], 1.0
    for place in range(1, L + 1):
        r_squared = (attention if place % 2 else ffn) ** 2 / (depth or L)
        found.append(r_squared / (before + (r_squared if late else 0)))
        before += r_squared
    return found


def grade(branch_multipliers: Callable[..., Any]) -> None:
    """Raise AssertionError at the first (a, b) that is wrong: at α's of 1 first, then at random ones."""
    rng = np.random.default_rng()
    for alpha, ratio in ((1.0, 1.0), *np.exp2(rng.uniform(0.5, 2, (2, 2)) * rng.choice([-1, 1], (2, 2))).tolist()):
        L = 2 * int(rng.integers(2, 8))
        yours = branch_multipliers(L, alpha, ratio)
        require(isinstance(yours, list | tuple), f"yours is {type(yours).__name__}, expected a list of pairs (a, b)")
        require(len(yours) == L, f"yours has {len(yours)} pairs for {L} branches")
        pairs, right = (np.array(p, dtype=float) for p in (yours, residual_multipliers(residual_taus(L, alpha, ratio))))
        require(pairs.shape == (L, 2), f"yours, as an array, has shape {pairs.shape}, expected {(L, 2)}: pairs (a, b)")
        f = alpha * sqrt(2 / (ratio**2 + 1))
        a = ratio * f
        wrong_taus = {
            "that is eq. (22) as printed; it lacks squares and has 1/√L on tau": taus_as_printed(L, alpha, ratio),
            "1/√L is missing in r_l": taus(L, a, f, depth=1),
            "L counts branches, two a layer": taus(L, a, f, depth=L / 2),
            "the square of 1/√L is 1/L, not 1/L²": taus(L, a, f, depth=L * L),
            "the sum ends before branch l, at l - 1": taus(L, a, f, late=True),
            "attention comes first: l = 1, 3, 5, ...": taus(L, f, a),
            "the root of 2/(ratio² + 1) is missing": taus(L, ratio * alpha, alpha),
            "the 2 under the root is missing": taus(L, a / sqrt(2), f / sqrt(2)),
            "tau is a ratio of variances, so r_l is squared": [sqrt(tau) for tau in residual_taus(L, alpha, ratio)],
        }
        wrong = {hint: np.array(residual_multipliers(tau)) for hint, tau in wrong_taus.items()}
        r = np.array([(a, f)[place % 2] / sqrt(L) for place in range(L)])
        wrong |= {
            "those are a² and b²; take the roots": right**2,
            "those are r_l and 1, the plain network; the trunk has to shrink": np.stack((r, np.ones(L)), axis=1),
            "a and b are exchanged": right[:, ::-1],
        }
        of = f"({L} branches, alpha_res {alpha:.3g}, alpha_res_attn_ratio {ratio:.3g})"
        for column, name in enumerate("ab"):
            # at a ratio of 1 some mistakes make no difference: those are no hint
            different = {
                hint: values[:, column] for hint, values in wrong.items() if np.abs(values - right).max() > 1e-6
            }
            compare(f"{name} {of}", pairs[:, column], right[:, column], mistakes=different)


def test_exercise() -> None:
    solve("05", grade, "branch_multipliers")
