from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

FACTOR = 1.5**-0.5


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("13") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 13 1"):
        graded("13")


def forward(factor: Any = FACTOR) -> Callable[..., Any]:
    return lambda x: (factor * np.maximum(x, 0) ** 2, x)


def backward(factor: float = 2 * FACTOR) -> Callable[..., Any]:
    return lambda dy, x: (dy * factor * np.maximum(x, 0),)


def writes_to_dy(dy: Any, x: Any) -> Any:
    dy *= 2 * FACTOR * np.maximum(x, 0)
    return (dy,)


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        ((forward(1.0), backward()), "y .*Likely: it has no factor"),
        ((forward(1.25**-0.5), backward()), "makes the standard deviation 1"),
        ((forward(1.5**0.5), backward()), "multiplied by the RMS"),
        ((forward(1 / 1.5), backward()), "divided by the mean square"),
        ((forward(3**-0.5), backward()), "negative x give 0 too"),
        ((lambda x: (FACTOR * x**2, x), backward()), "negative x are squared as well"),
        ((lambda x: FACTOR * np.maximum(x, 0) ** 2, backward()), "expected a tuple y, saved"),
        ((forward(np.array(FACTOR)), backward()), "keep the factor a plain Python float"),
        ((forward(), backward(2.0)), "dx.*forward's factor is missing"),
        ((forward(), backward(2 * FACTOR**2)), "forward's factor is in it twice"),
        ((forward(), backward(FACTOR)), "the 2 of the derivative is missing"),
        ((forward(), backward(2**0.5)), "unit-scale on its own"),
        ((forward(), lambda dy, x: (2 * FACTOR * x * dy,)), "where x is negative the derivative is 0"),
        ((forward(), lambda dy, x: 2 * FACTOR * np.maximum(x, 0) * dy), "a tuple of one gradient"),
        ((forward(), writes_to_dy), "dy was written to"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], pair: tuple[Any, Any], hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        raise AssertionError(graded("13", *pair))
