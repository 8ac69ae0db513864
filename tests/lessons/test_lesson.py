"""What the lessons share: predictions, claims, sources, hints."""

import re
import sys
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("matplotlib")

Run = pytest.MonkeyPatch


@pytest.fixture
def lesson() -> ModuleType:
    import lesson

    return lesson


def test_a_prediction_is_taken_from_the_command_line(lesson: ModuleType, monkeypatch: Run) -> None:
    monkeypatch.setattr(sys, "argv", ["05_residual.py", "--guess", "2e-3"])
    assert lesson.guess("how much?") == 0.002


def test_its_name_is_the_book_s_or_the_script_s_or_jupyter_s(lesson: ModuleType, monkeypatch: Run) -> None:
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py"])
    assert lesson.name() == "lesson"
    monkeypatch.setenv("JPY_SESSION_NAME", "/lessons/04_scale_models.ipynb")
    assert lesson.name() == "04_scale_models"
    monkeypatch.setattr(sys, "argv", ["lessons/05_residual.py"])
    assert lesson.name() == "05_residual"
    monkeypatch.setenv("LESSON_NAME", "06_parametrizations")
    assert lesson.name() == "06_parametrizations"


@pytest.mark.parametrize("needed", ["microumup", "matplotlib"])
def test_a_package_that_is_missing_is_a_line_before_anything_runs(
    lesson: ModuleType, monkeypatch: Run, capsys: pytest.CaptureFixture, needed: str
) -> None:
    monkeypatch.setattr(lesson, "find_spec", lambda name: None if name == needed else object())
    with pytest.raises(SystemExit, match="2"):
        lesson.ready()
    error = capsys.readouterr().err
    assert error.startswith(f"the lessons need {needed}, which ")
    assert "pip install -e '.[lessons]'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--help"], 0, "usage: python lessons/05_residual.py [--guess NUMBER]\n"),
        (["--gues", "3"], 2, "--gues is no option; usage: python"),
        (["--guess=3"], 2, "--guess=3 is no option; usage: python"),
    ],
)
def test_what_is_no_option_of_a_lesson_is_not_passed_over(
    lesson: ModuleType, monkeypatch: Run, capsys: pytest.CaptureFixture, words: list[str], status: int, says: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["lessons/05_residual.py", *words])
    monkeypatch.setattr(lesson, "SCRIPT", Path("lessons/05_residual.py"))
    with pytest.raises(SystemExit, match=str(status)):
        lesson.ready()
    printed = capsys.readouterr()
    assert says in (printed.err if status else printed.out)


def test_without_a_terminal_there_is_none(lesson: ModuleType, monkeypatch: Run, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["05_residual.py"])
    monkeypatch.setattr("sys.stdin", None)
    assert lesson.guess("how much?", "nats") is None
    assert "how much? [nats]" in capsys.readouterr().out


def test_at_a_terminal_it_asks_until_it_has_a_number(lesson: ModuleType, monkeypatch: Run) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    answers = iter(["about two", "2"])
    monkeypatch.setattr(sys, "argv", ["05_residual.py"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    assert lesson.guess("how much?") == 2


@pytest.mark.parametrize("words", [["--guess"], ["--guess", "three"]])
def test_a_prediction_that_is_no_number_is_refused(lesson: ModuleType, monkeypatch: Run, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["05_residual.py", *words])
    with pytest.raises(SystemExit, match=r"is no number; write it like --guess 3\.2"):
        lesson.guess("how much?")


@pytest.mark.parametrize(
    ("guess", "measured", "verdict"),
    [
        (4.0, 1.0, "4 times too large"),
        (1.0, 4.0, "4 times too small"),
        (-1.01, -1.0, "right"),
        (1.0, -1.0, "off by 2"),
        (0.5, 0.0, "off by 0.5"),
        (1.0, inf, "off by inf"),
    ],
)
def test_the_answer_says_by_what_factor_it_was_off(
    lesson: ModuleType, capsys: pytest.CaptureFixture, guess: float, measured: float, verdict: str
) -> None:
    lesson.answer(guess, measured, "because")
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "check",
    [
        lambda lesson, value: lesson.claim("RMS of y", value, 2.0, within=0.01),
        lambda lesson, value: lesson.claim("RMS of y", value, 2.0, within=0.02, relative=False),
        lambda lesson, value: lesson.claim_least("RMS of y", value, 2.0),
        lambda lesson, value: lesson.claim_most("RMS of y", -value, -2.0),
    ],
)
def test_a_claim_holds_or_is_an_error_that_names_it(
    lesson: ModuleType, check: Callable[[ModuleType, float], None], capsys: pytest.CaptureFixture
) -> None:
    check(lesson, 2.0)
    assert "ok" in capsys.readouterr().out
    for wrong in (1.9, nan):
        with pytest.raises(AssertionError, match=r"RMS of y: measured -?(1\.9|nan), expected"):
            check(lesson, wrong)


def test_show_prints_functions_and_constants_with_their_place(
    lesson: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    from microumup import ops, parametrization

    lesson.show(ops.linear_backward, (parametrization, "UMUP"))
    printed = capsys.readouterr().out
    assert "# microumup/ops.py:" in printed
    assert "def linear_backward(dy: Array, saved: Saved)" in printed
    assert "UMUP = Scheme(" in printed
    with pytest.raises(ValueError, match="assigns no GONE"):
        lesson.show((parametrization, "GONE"))


def test_rms(lesson: ModuleType) -> None:
    assert lesson.rms(np.array([3.0, -3.0], np.float32)) == 3.0
    assert lesson.rms(np.array([np.inf, 1.0])) == inf


HINTS = sorted(Path(__file__).resolve().parents[2].joinpath("lessons/exercises/hints").glob("*.md"))


@pytest.mark.parametrize("page", HINTS, ids=lambda page: page.stem)
def test_an_exercise_has_three_hints_a_stub_a_grader_and_an_answer(page: Path) -> None:
    import hint

    assert len(hint.hints(page)) == 3
    assert all(hint.hints(page))
    exercises = page.parent.parent
    for path in (f"ex{page.stem}.py", f"test_ex{page.stem}.py", f"../solutions/ex{page.stem}.py"):
        assert (exercises / path).exists()
    stub = (exercises / f"ex{page.stem}.py").read_text("utf-8")
    assert "raise NotImplementedError" in stub
    assert f"pytest -m lesson{page.stem} lessons" in stub
    assert not re.search(r"^\s*(from|import) (ex\d|solutions|grading|lesson)", stub, flags=re.MULTILINE)


def test_the_lessons_that_promise_an_exercise_have_one() -> None:
    assert {page.stem for page in HINTS} >= {"01", "02", "03", "04", "05", "06", "07", "10", "13"}


def test_hint_prints_one_and_says_what_comes_next(capsys: pytest.CaptureFixture) -> None:
    import hint

    assert hint.main(["1", "2"]) == 0
    assert "python lessons/hint.py 01 3" in capsys.readouterr().out
    assert hint.main(["01", "3"]) == 0
    assert "lessons/solutions/ex01.py" in capsys.readouterr().out
    assert hint.main(["77", "1"]) == 2
    assert "NN is one of 01" in capsys.readouterr().err


def test_a_grader_says_what_is_wrong() -> None:
    import grading

    right = np.arange(6.0).reshape(2, 3) + 1
    for wrong, said in [
        (None, "yours is None"),
        ("text", "yours is str"),
        (right.T, r"shape \(3, 2\), expected \(2, 3\)\. Likely: it is transposed"),
        (
            2 * right,
            r"dw\[1, 2\]: yours 12, expected 6\. Likely: a factor is missing, or one too many: yours is 2 times",
        ),
        (-right, "its sign is wrong"),
        (0 * right, "it is all zeros"),
        (right * nan, "NaN or infinity"),
        (right + 1, "Likely: one was added"),
        (right + np.eye(2, 3), r"dw\[0, 0\]: yours 2, expected 1$"),
    ]:
        with pytest.raises(AssertionError, match=said):
            grading.compare("dw", wrong, right, mistakes={"one was added": right + 1})
    grading.compare("dw", right * (1 + 1e-9), right)
