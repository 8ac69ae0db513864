from collections.abc import Callable
from typing import Any

import pytest


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("01") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 01 1"):
        graded("01")


def walk(tape: list[Any], dy: Any, order: Any, join: Callable[[Any, Any], Any]) -> list[Any]:
    d: list[Any] = [None] * len(tape)
    d[-1] = dy
    for i in order:
        if tape[i].backward is not None and d[i] is not None:
            for place, part in zip(tape[i].inputs, tape[i].backward(d[i], tape[i].saved), strict=True):
                d[place] = part if d[place] is None else join(d[place], part)
    return d


def overwrites(tape: list[Any], dy: Any) -> list[Any]:
    return walk(tape, dy, reversed(range(len(tape))), lambda before, part: part)


def begins_with_ones(tape: list[Any], dy: Any) -> list[Any]:
    return walk(tape, 0 * dy + 1, reversed(range(len(tape))), lambda before, part: before + part)


def adds_in_place(tape: list[Any], dy: Any) -> list[Any]:
    def join(before: Any, part: Any) -> Any:
        before += part
        return before

    return walk(tape, dy, reversed(range(len(tape))), join)


def oldest_first(tape: list[Any], dy: Any) -> list[Any]:
    return walk(tape, dy, range(len(tape)), lambda before, part: before + part)


def path_by_path(tape: list[Any], dy: Any) -> list[Any]:
    d: list[Any] = [None] * len(tape)

    def visit(i: int, part: Any) -> None:
        d[i] = part if d[i] is None else d[i] + part
        if tape[i].backward is not None:
            for place, further in zip(tape[i].inputs, tape[i].backward(part, tape[i].saved), strict=True):
                visit(place, further)

    visit(len(tape) - 1, dy)
    return d


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (overwrites, "a part replaced the one before"),
        (begins_with_ones, "began with ones instead of dy"),
        (adds_in_place, r"\+= writes into an array"),
        (oldest_first, "begin at the youngest"),
        (path_by_path, r"was called \d times"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], mistake: Callable[..., Any], hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        raise AssertionError(graded("01", mistake))
