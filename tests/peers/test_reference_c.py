"""A program in C (umup.c) reads the golden vectors and writes its outputs; `vectors check` judges them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from microumup.interop.vectors import main, write

CC = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(CC is None, reason="there is no C compiler: cc, gcc or clang")
OPS = (
    "linear",
    "readout",
    "embedding",
    "rms_norm",
    "rope",
    "attention",
    "gated_silu",
    "cross_entropy",
    "residual",
    "adamw",
)
CHECK = ["--scheme", "umup", "--only", *(f"{op}.*float64" for op in OPS)]


def outputs_of(directory: Path, *flags: str) -> Path:
    """Vectors, with the outputs of umup.c built with these flags."""
    write(directory)
    program = directory / "umup"
    assert CC
    source = Path(__file__).parent / "umup.c"
    subprocess.run([CC, "-O2", *flags, "-o", program, source, "-lm"], check=True, capture_output=True)
    subprocess.run([program, directory], check=True)
    return directory


def test_a_program_in_c_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(outputs_of(tmp_path)), *CHECK]) == 0
    assert "78 of 78 outputs are right" in capsys.readouterr().out


def test_the_wrong_fan_in_c_is_rejected_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(outputs_of(tmp_path, "-DWRONG_FAN")), *CHECK]) == 1
    out = capsys.readouterr().out
    assert "likely cause: y: the factor is fan_out^-1/2, not fan_in^-1/2 (3 of 3 failures)" in out
    assert "likely cause: y: the factor is 1/fan_out, not 1/fan_in (3 of 3 failures)" in out
    assert "72 of 78 outputs are right" in out
