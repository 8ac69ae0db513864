from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Step = Callable[..., Any]


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("07") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 07 1"):
        graded("07")


def step(
    w: Any, g: Any, m: Any, v: Any, t: int, lr: float, decay: float, beta1: float, beta2: float, eps: float,
    *, corrected: bool = True, coupled: bool = False, inside: bool = False, in_gradient: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    """A right step, or one with a mistake."""
    g = g + decay * w if in_gradient else g
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if corrected else (m, v)
    below = np.sqrt(v_hat + eps) if inside else np.sqrt(v_hat) + eps
    share = 0.0 if in_gradient else lr * decay if coupled else decay
    return (1 - share) * w - lr * m_hat / below, m, v


def uncorrected(*args: Any) -> Any:
    return step(*args, corrected=False)


def eps_under_the_root(*args: Any) -> Any:
    return step(*args, inside=True)


def coupled(*args: Any) -> Any:
    return step(*args, coupled=True)


def l2_in_the_gradient(*args: Any) -> Any:
    return step(*args, in_gradient=True)


def returns_the_corrected_mean(w: Any, g: Any, m: Any, v: Any, t: int, *rest: float) -> Any:
    w, m, v = step(w, g, m, v, t, *rest)
    return w, m / (1 - rest[2] ** t), v


def writes_into_m(w: Any, g: Any, m: Any, v: Any, t: int, *rest: float) -> Any:
    new = step(w, g, m, v, t, *rest)
    m *= rest[2]
    return new


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (uncorrected, r"w after update 1.*the corrections are missing"),
        (eps_under_the_root, "eps stands under the root"),
        (coupled, "which is coupled decay"),
        (l2_in_the_gradient, "the decay was put into the gradient"),
        (returns_the_corrected_mean, r"m after update 1.*it was returned with its correction"),
        (writes_into_m, r"m was changed.*make a new array"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], mistake: Step, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        raise AssertionError(graded("07", mistake))
