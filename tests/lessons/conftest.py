import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

LESSONS = Path(__file__).resolve().parents[2] / "lessons"
for folder in (LESSONS, LESSONS / "exercises"):  # where `import lesson` and `import grading` find theirs
    sys.path.append(str(folder))

Graded = Callable[..., str]


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> Graded:
    """`graded("02")`: what the grader says of the shipped solution; `graded("02", f, …)`: of these functions.

    Empty when it has nothing to say, which is to pass.
    """
    import grading

    monkeypatch.setenv("LESSON_SOLUTIONS", str(LESSONS / "solutions"))

    def graded(number: str, *functions: Callable[..., Any]) -> str:
        grader = import_module(f"test_ex{number}")
        try:
            if functions:
                grader.grade(*functions)
            else:
                grader.test_exercise()
        except (AssertionError, pytest.fail.Exception) as wrong:
            return str(wrong)
        return ""

    assert grading.SOLUTIONS == LESSONS / "solutions"
    return graded
