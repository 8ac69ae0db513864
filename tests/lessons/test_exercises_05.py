from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest

from microumup.lab.figures.rules import taus_as_printed
from microumup.multipliers import residual_multipliers, residual_taus


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("05") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 05 1"):
        graded("05")


def as_printed(branches: int, alpha: float, ratio: float) -> Any:
    return residual_multipliers(taus_as_printed(branches, alpha, ratio))


def without_roots(branches: int, alpha: float, ratio: float) -> Any:
    return [(a * a, b * b) for a, b in residual_multipliers(residual_taus(branches, alpha, ratio))]


def plain(branches: int, alpha: float, ratio: float) -> Any:
    f = alpha * sqrt(2 / (ratio**2 + 1))
    return [((f, ratio * f)[place % 2] / sqrt(branches), 1.0) for place in range(1, branches + 1)]


def by_layers(branches: int, alpha: float, ratio: float) -> Any:
    return residual_multipliers(residual_taus(branches, sqrt(2) * alpha, ratio))


def without_depth(branches: int, alpha: float, ratio: float) -> Any:
    return residual_multipliers(residual_taus(branches, sqrt(branches) * alpha, ratio))


def ffn_first(branches: int, alpha: float, ratio: float) -> Any:
    return residual_multipliers(residual_taus(branches, alpha, 1 / ratio))


def without_the_root(branches: int, alpha: float, ratio: float) -> Any:
    return residual_multipliers(residual_taus(branches, alpha * sqrt((ratio**2 + 1) / 2), ratio))


def exchanged(branches: int, alpha: float, ratio: float) -> Any:
    return [(b, a) for a, b in residual_multipliers(residual_taus(branches, alpha, ratio))]


def including_itself(branches: int, alpha: float, ratio: float) -> Any:
    return residual_multipliers([tau / (tau + 1) for tau in residual_taus(branches, alpha, ratio)])


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (as_printed, r"a \(\d+ branches.*that is eq. \(22\) as printed"),
        (without_roots, "take the roots"),
        (plain, "the trunk has to shrink"),
        (by_layers, "L counts branches, two a layer"),
        (without_depth, "1/√L is missing in r_l"),
        (ffn_first, "attention comes first"),
        (without_the_root, r"the root of 2/\(ratio² \+ 1\) is missing"),
        (exchanged, "a and b are exchanged"),
        (including_itself, "the sum ends before branch l, at l - 1"),
        (lambda branches, alpha, ratio: [0.5] * branches, "expected .*pairs"),
        (lambda branches, alpha, ratio: residual_multipliers(residual_taus(branches - 1, alpha, ratio)), "pairs for"),
        (lambda branches, alpha, ratio: None, "expected a list of pairs"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], mistake: Callable[..., Any], hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        raise AssertionError(graded("05", mistake))
