from collections.abc import Callable
from typing import Any

import pytest


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("02") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 02 1"):
        graded("02")


def unit_linear(y: Callable[..., float], dx: Callable[..., float], dw: Callable[..., float]) -> Callable[..., Any]:
    """An answer with these factors, each a function of fan_in, fan_out, B, T and the readout's 1 or ½."""

    def answer(x: Any, w: Any, dy: Any, *, readout: bool) -> Any:
        (fan_out, fan_in), (B, T, _) = w.shape, x.shape
        sizes = fan_in, fan_out, B, T, 1.0 if readout else 0.5
        products = x @ w.T, dy @ w, dy.reshape(-1, fan_out).T @ x.reshape(-1, fan_in)
        return tuple(factor(*sizes) * product for factor, product in zip((y, dx, dw), products, strict=True))

    return answer


def right_y(i: int, o: int, B: int, T: int, power: float) -> float:
    return i**-power


def right_dx(i: int, o: int, B: int, T: int, power: float) -> float:
    return i**-0.5


def right_dw(i: int, o: int, B: int, T: int, power: float) -> float:
    return (B * T) ** -0.5


def overwrites_x(x: Any, w: Any, dy: Any, *, readout: bool) -> Any:
    x *= 2.0
    return unit_linear(right_y, right_dx, right_dw)(x / 2, w, dy, readout=readout)


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (unit_linear(lambda i, o, B, T, p: 1.0, right_dx, right_dw), "Likely: it has no factor"),
        (unit_linear(lambda i, o, B, T, p: i**-0.5, right_dx, right_dw), "the readout has 1/fan_in forward"),
        (unit_linear(lambda i, o, B, T, p: o**-p, right_dx, right_dw), "fan_out was taken for fan_in"),
        (unit_linear(right_y, right_y, right_dw), "that is the true derivative of y; the readout's dx"),
        (unit_linear(right_y, lambda i, o, B, T, p: o**-0.5, right_dw), "but u-µP takes 1"),
        (unit_linear(right_y, right_dx, right_y), "that is the true derivative of y; dw has a factor of its own"),
        (unit_linear(right_y, right_dx, lambda i, o, B, T, p: B**-0.5), "b counts tokens, B · T, not sequences"),
        (unit_linear(right_y, right_dx, lambda i, o, B, T, p: 1 / (B * T)), "the mean over the tokens"),
        (unit_linear(right_y, right_dx, lambda i, o, B, T, p: 3 * (B * T) ** -0.5), "yours is 3 times"),
        (overwrites_x, "x was written to"),
        (lambda x, w, dy, readout: None, "expected a tuple"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], mistake: Callable[..., Any], hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        raise AssertionError(graded("02", mistake))
