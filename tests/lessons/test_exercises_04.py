from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest

from microumup.multipliers import gated_silu_sigma, log_interpolate


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("04") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 04 1"):
        graded("04")


def of_sigma(forward: Callable[[float], float], backward: Callable[[float], float] | None = None) -> Callable[..., Any]:
    """An answer that divides by these scales, functions of α."""

    def answer(x_in: Any, x_gate: Any, dy: Any, alpha: float) -> Any:
        y, dx_in, dx_gate = right(x_in, x_gate, dy, alpha)
        own, back = (gated_silu_sigma(alpha) / f(alpha) for f in (forward, backward or forward))
        return own * y, back * dx_in, back * dx_gate

    return answer


def right(x_in: Any, x_gate: Any, dy: Any, alpha: float) -> tuple[Any, Any, Any]:
    gate, factor = 1 / (1 + np.exp(-alpha * x_gate)), 1 / gated_silu_sigma(alpha)
    slope = gate + x_gate * alpha * gate * (1 - gate)
    return factor * x_in * x_gate * gate, factor * dy * x_gate * gate, factor * dy * x_in * slope


def weight(alpha: float) -> float:
    return 1 / (1 + 1 / alpha**2)


def gate_held_fixed(x_in: Any, x_gate: Any, dy: Any, alpha: float) -> Any:
    y, dx_in, _ = right(x_in, x_gate, dy, alpha)
    return y, dx_in, dx_in * x_in / x_gate


def slope_without_alpha(x_in: Any, x_gate: Any, dy: Any, alpha: float) -> Any:
    gate, factor = 1 / (1 + np.exp(-alpha * x_gate)), 1 / gated_silu_sigma(alpha)
    return *right(x_in, x_gate, dy, alpha)[:2], factor * dy * x_in * (gate + x_gate * gate * (1 - gate))


def sigmoid_without_alpha(x_in: Any, x_gate: Any, dy: Any, alpha: float) -> Any:
    own = gated_silu_sigma(1.0) / gated_silu_sigma(alpha)
    return tuple(own * result for result in right(x_in, x_gate, dy, 1.0))


def overwrites_dy(x_in: Any, x_gate: Any, dy: Any, alpha: float) -> Any:
    found = right(x_in, x_gate, dy, alpha)
    dy *= 2
    return found


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (of_sigma(lambda alpha: 1.0), r"y \(alpha 1,.*Likely: it has no factor"),
        (of_sigma(gated_silu_sigma, lambda alpha: 1.0), "dx_in .*no factor; forward and backward have the same"),
        (of_sigma(lambda alpha: 1 / gated_silu_sigma(alpha)), "the op is divided by its scale"),
        (of_sigma(lambda alpha: log_interpolate(weight(alpha), 1 / 2, 1 / sqrt(2))), "the ends are exchanged"),
        (
            of_sigma(lambda alpha: log_interpolate(1 - weight(alpha), 1 / sqrt(2), 1 / 2)),
            r"or the weight is 1/\(1 \+ alpha²\)",
        ),
        (of_sigma(lambda alpha: log_interpolate(1 / (1 + 1 / alpha), 1 / sqrt(2), 1 / 2)), "alpha is not squared"),
        (of_sigma(lambda alpha: weight(alpha) / sqrt(2) + (1 - weight(alpha)) / 2), "mix the logarithms"),
        (gate_held_fixed, "dx_gate .*only the term in which the sigmoid is held fixed"),
        (slope_without_alpha, "the sigmoid's slope lacks alpha"),
        (sigmoid_without_alpha, "alpha is missing in the sigmoid"),
        (overwrites_dy, "dy was written to"),
        (lambda x_in, x_gate, dy, alpha: None, "expected a tuple"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], mistake: Callable[..., Any], hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        raise AssertionError(graded("04", mistake))
