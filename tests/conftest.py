import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

# Before numpy is imported, as microumup/__init__.py does it for a command: two BLAS threads on a busy machine wait for
# each other most of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cuda_on_cpu
import cupy_double
import numpy as np
import pytest
import small_runs

from microumup.corpora import ByteTokenizer
from microumup.data import Corpus

Refused = Callable[[Callable[[list[str]], int], list[str]], str]

LESSONS = Path(__file__).resolve().parent.parent / "lessons"
for folder in (LESSONS, LESSONS / "exercises"):  # where `import lesson` and `import grading` find theirs
    sys.path.append(str(folder))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """`refused(main, argv)`: the one line that a command says why with, after it ended with 2 and printed nothing."""

    def refused(main: Callable[[list[str]], int], argv: list[str]) -> str:
        capsys.readouterr()  # what went before is of no interest
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("microumup ")
        assert error.count("\n") == 1
        return error

    return refused


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy without a GPU."""
    return cupy_double.install(monkeypatch)


@pytest.fixture
def cupy() -> Any:
    """CuPy itself."""
    module = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        devices = module.cuda.runtime.getDeviceCount()
    except module.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"CuPy finds no usable driver: {error}")
    if not devices:
        pytest.skip("CuPy finds no GPU")
    return module


@pytest.fixture(params=["double", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """CuPy without a GPU, then CuPy itself."""
    if request.param == "double" and not cuda_on_cpu.COMPILER:
        pytest.skip("kernels run on a CPU only where there is g++")
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """A text that can be learned in a few steps, without reading the shipped one."""
    text = "the people of the united states. " * 400
    tokens = np.frombuffer(text.encode(), np.uint8)
    return Corpus("test", tokens[:12_000], tokens[12_000:], ByteTokenizer())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the people of the united states. " * 200)
    return path


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a text for short sweeps; a part of what names a run, so one for all tests of a module."""
    path = tmp_path_factory.mktemp("text") / "people.txt"
    path.write_text("the people of the united states. " * 100)
    return str(path)


@pytest.fixture
def half(tmp_path: Path, text: Path) -> Path:
    """A run that was killed after 10 of 12 updates, with a checkpoint of 8."""
    small_runs.killed(small_runs.options(tmp_path / "half", text, "--log-scales", "3"))
    return tmp_path / "half"


@pytest.fixture
def graded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`graded("02")`: what the grader of exercise 02 says of the shipped solution; `graded("02", f)`: of f.

    Empty when it has nothing to say, which is to pass.
    """
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

    return graded
