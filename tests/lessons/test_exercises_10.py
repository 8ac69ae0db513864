from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("10") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 10 1"):
        graded("10")


def e4m3(
    largest: float = 448, lowest: int = -6, bits: int = 3, whole: Callable[..., Any] = np.rint
) -> Callable[..., Any]:
    """An answer that may differ in the largest number, the least exponent, the mantissa's bits and the rounding."""

    def answer(x: Any) -> Any:
        x = np.clip(x, np.float32(-largest), np.float32(largest))
        step = np.exp2(np.maximum(np.frexp(x)[1] - 1, lowest) - bits).astype(np.float32)
        with np.errstate(invalid="ignore"):
            return whole(x / step) * step

    return answer


def flushes(x: Any) -> Any:
    return np.where(np.abs(x) < 2**-6, np.float32(0), e4m3()(x))


def forgets_the_sign_of_zero(x: Any) -> Any:
    return e4m3()(x) + np.float32(0)


def writes_to_x(x: Any) -> Any:
    np.clip(x, -1, 1, out=x)
    return e4m3()(x)


def away(n: Any) -> Any:
    return np.copysign(np.floor(np.abs(n) + np.float32(0.5)), n)


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (e4m3(whole=away), "ties go away from zero"),
        (e4m3(whole=lambda n: np.floor(n + np.float32(0.5))), "ties go up"),
        (e4m3(whole=np.trunc), "it rounds towards zero"),
        (e4m3(bits=2), "2 bits of mantissa are E5M2's"),
        (e4m3(bits=4), "4 bits of mantissa"),
        (e4m3(largest=240), "the largest is 240"),
        (e4m3(largest=np.inf), "what lies past 448 is not set to 448"),
        (e4m3(lowest=-60), "the step goes on to shrink"),
        (flushes, "numbers below 2.-6 became 0"),
        (forgets_the_sign_of_zero, "the sign of zero is lost"),
        (writes_to_x, "x was written to"),
        (lambda x: e4m3()(x).astype(np.float64), "expected float32"),
        (lambda x: None, "yours is None"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], mistake: Callable[..., Any], hint: str) -> None:
    for _ in range(3):  # the grader's numbers are random
        with pytest.raises(AssertionError, match=hint):
            raise AssertionError(graded("10", mistake))
