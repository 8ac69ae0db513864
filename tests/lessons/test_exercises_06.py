from collections.abc import Callable
from typing import Any

import pytest

Row = tuple[float, float, float]


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("06") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 06 1"):
        graded("06")


def row(type: str, fan_in: int, fan_out: int, branches: int, in_branch: bool) -> Row:
    table = {"input": (1.0, fan_out**-0.5), "hidden": (fan_in**-0.5, fan_in**-0.5), "output": (1 / fan_in, 1.0)}
    A, C = table[type]
    return 1.0, A, C * branches**-0.5 if in_branch else C


def standard_init(type: str, fan_in: int, *rest: Any) -> Row:
    return fan_in**-0.5, 1.0, 1.0


def fans_swapped(type: str, fan_in: int, fan_out: int, *rest: Any) -> Row:
    return row(type, fan_out, fan_in, *rest)


def layers_counted(type: str, fan_in: int, fan_out: int, branches: int, in_branch: bool) -> Row:
    return row(type, fan_in, fan_out, branches // 2, in_branch)


def no_branches(type: str, fan_in: int, fan_out: int, branches: int, in_branch: bool) -> Row:
    return row(type, fan_in, fan_out, branches, False)


def mup_step(type: str, fan_in: int, *rest: Any) -> Row:
    std, A, C = row(type, fan_in, *rest)
    return std, A, C * A if type == "hidden" else C


def readout_like_hidden(type: str, fan_in: int, *rest: Any) -> Row:
    std, A, C = row(type, fan_in, *rest)
    return std, fan_in**-0.5 if type == "output" else A, C


def embedding_of_mup(type: str, fan_in: int, *rest: Any) -> Row:
    std, A, C = row(type, fan_in, *rest)
    return std, A, 1.0 if type == "input" else C


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (standard_init, r"√B \(hidden.*that is SP's √B"),
        (fans_swapped, r"A \(hidden.*fan_in was taken for fan_out"),
        (layers_counted, r"C \(hidden.*here layers were counted"),
        (no_branches, r"C \(hidden.*the branches are missing"),
        (mup_step, r"C \(hidden.*divide by A"),
        (readout_like_hidden, r"A \(output.*the readout is a mean"),
        (embedding_of_mup, r"C \(input.*that is µP's"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], mistake: Callable[..., Row], hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        raise AssertionError(graded("06", mistake))
