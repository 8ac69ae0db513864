"""The way exercises are graded: `pytest -m lesson02 lessons`.

Each exercise NN has a stub exNN.py, and a grader test_exNN.py with

    def grade(*functions): ...      raises AssertionError, by `compare` and `require`, at the first thing that is wrong
    def test_exercise(): solve("NN", grade, "name of a function", ...)

A stub that still raises NotImplementedError is skipped. With LESSON_SOLUTIONS=lessons/solutions in the environment
exNN.py is taken from there instead.
"""

import os
from collections.abc import Callable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
SOLUTIONS = HERE.parent / "solutions"


def load(number: str, folder: Path | None = None) -> Any:
    """The module exNN of the reader, or of `folder`."""
    folder = folder or Path(os.environ.get("LESSON_SOLUTIONS", HERE))
    path = folder / f"ex{number}.py"
    spec = spec_from_file_location(f"ex{number}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solve(number: str, grade: Callable[..., None], *names: str) -> None:
    """Grade the functions of that name in exNN.py; skip where one is not written yet."""
    module = load(number)
    for name in names:
        if not hasattr(module, name):
            pytest.fail(f"ex{number}.py has no function {name}; keep the name that the stub gives it", pytrace=False)
    verdict = ""
    try:
        grade(*(getattr(module, name) for name in names))
    except NotImplementedError:
        pytest.skip(f"exercise {number} is not solved yet; hints: python lessons/hint.py {number} 1")
    except AssertionError as wrong:
        verdict = f"exercise {number}: {wrong}"
    if verdict:  # not where it is caught, or pytest would print both
        pytest.fail(verdict, pytrace=False)


def require(holds: object, message: str) -> None:
    """Raise AssertionError with the message alone, where pytest would add what an assert looked at."""
    if not holds:
        raise AssertionError(message)


def compare(
    what: str, yours: Any, expected: Any, *, mistakes: Mapping[str, Any] | None = None, tolerance: float = 1e-6
) -> None:
    """Raise AssertionError unless `yours` is `expected`, with where, what and the mistake that was likely made.

    what: the result and the inputs, like "dw (x 3 x 5, w 2 x 5)". mistakes: what a hint says -> the value that this
    mistake would give. tolerance: how much may be off, as a share of the largest element expected.
    """
    right = np.asarray(expected)
    if yours is None:
        raise AssertionError(f"{what}: yours is None; does the function return its result?")
    found = np.asarray(yours)
    if found.dtype.kind not in "fiu":
        raise AssertionError(f"{what}: yours is {type(yours).__name__}, expected an array of floats {right.shape}")
    likely = [hint for hint, value in (mistakes or {}).items() if _same(found, np.asarray(value), tolerance)]
    if found.shape != right.shape:
        if found.ndim == 2 and _same(found.T, right, tolerance):
            likely.insert(0, "it is transposed")
        raise AssertionError(f"{what}: yours has shape {found.shape}, expected {right.shape}{_hint(likely)}")
    if _same(found, right, tolerance):
        return
    off = np.abs(found.astype(float) - right)
    off = np.where(np.isfinite(off), off, np.inf)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(off)), off.shape))
    place = f"{what}[{', '.join(map(str, index))}]" if index else what
    likely += _general(found, right, tolerance)
    raise AssertionError(f"{place}: yours {found[index]:.6g}, expected {right[index]:.6g}{_hint(likely)}")


def _same(found: Any, right: Any, tolerance: float) -> bool:
    if found.shape != right.shape:
        return False
    size = float(np.max(np.abs(right), initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.abs(found - right) <= tolerance * size))  # NaN is never within


def _general(found: Any, right: Any, tolerance: float) -> list[str]:
    """Mistakes that need no knowledge of the exercise."""
    if not np.all(np.isfinite(found)):
        return ["it holds NaN or infinity"]
    if not np.any(found):
        return ["it is all zeros"]
    if found.ndim == 2 and found.shape[0] == found.shape[1] and _same(found.T, right, tolerance):
        return ["it is transposed"]
    ratio = float(np.vdot(right, found) / np.vdot(right, right)) if np.any(right) else 0.0
    if ratio and _same(found / ratio, right, 10 * tolerance):
        sign = "its sign is wrong" if ratio < 0 else "a factor is missing, or one too many"
        return [f"{sign}: yours is {ratio:.6g} times what is expected, everywhere"]
    return []


def _hint(likely: list[str]) -> str:
    return f". Likely: {likely[0]}" if likely else ""
