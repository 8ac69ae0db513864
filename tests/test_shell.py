"""Terminals, pipes, disks and users of every kind: help and JSON never fail for them, and nothing is a traceback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_runs

from microumup import cli, train
from microumup.__main__ import COMMANDS

PYTHON = [sys.executable]


def microumup(*argv: str, python: list[str] | None = None, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | settings.pop("env", {})
    command = [*(python or PYTHON), "-m", "microumup", *argv]
    return subprocess.run(command, capture_output="stdout" not in settings, timeout=120, env=environment, **settings)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16"])
@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["train", "--help-all"], ["explain", "--json"]])
def test_an_encoding_is_no_reason_to_fail(encoding: str, argv: list[str]) -> None:
    done = microumup(*argv, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0
    assert done.stderr == b""
    assert len(done.stdout) > 300


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help-all"], ["explain", "--json"], ["--version"]])
def test_a_full_disk_behind_stdout_is_said_in_one_line(argv: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = microumup(*argv, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == b"microumup: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("argv", ["train --help-all", "explain --layers 100", "--help"])
def test_a_reader_that_is_gone_is_no_error_of_ours(argv: str) -> None:
    shell = f"{sys.executable} -m microumup {argv} | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=120)
    assert done.returncode in (0, 1)  # 0 where all of it had been read before
    assert done.stderr == b""


@pytest.mark.parametrize("closed", ["2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_lead_nowhere(closed: str, tmp_path: Path, text: Path) -> None:
    """A file that was opened in place of a closed stream got what was meant for that."""
    run = tmp_path / "run"
    argv = " ".join(small_runs.options(run, text))
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m microumup train {argv} {closed}"], timeout=120)
    assert done.returncode == 0
    assert (run / "result.json").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 12
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m microumup train --width 3 {closed}"], timeout=120)
    assert done.returncode == 2


@pytest.mark.parametrize("columns", ["0", "1", "-3", "x", "1000000"])
@pytest.mark.parametrize("argv", [["train", "--help"], ["--help"]])
def test_a_terminal_of_no_width_has_its_help(columns: str, argv: list[str]) -> None:
    assert microumup(*argv, env={"COLUMNS": columns}).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_without_docstrings_every_command_has_its_help(name: str) -> None:
    done = microumup(name, "--help", python=[*PYTHON, "-OO"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"microumup {name}".encode() in done.stdout


def test_without_docstrings_and_asserts_a_run_is_the_same(tmp_path: Path, text: Path) -> None:
    lines = []
    for python in (PYTHON, [*PYTHON, "-OO"]):
        run = tmp_path / f"run{len(lines)}"
        assert microumup("train", *small_runs.options(run, text), python=python).returncode == 0
        lines.append([line.partition("tokens_per")[0] for line in (run / "metrics.jsonl").read_text().splitlines()])
    assert lines[0] == lines[1]


def test_a_foreign_backend_of_matplotlib_does_not_matter(tmp_path: Path, text: Path) -> None:
    pytest.importorskip("matplotlib")
    assert train.main(small_runs.options(tmp_path / "run", text)) == 0
    done = microumup(
        "curve", str(tmp_path / "run"), "--plot", str(tmp_path / "c.png"), env={"MPLBACKEND": "module://none"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "c.png").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_whom_nobody_knows_can_train(tmp_path: Path, text: Path) -> None:
    """Without a home, without an entry in passwd."""
    for folder in (tmp_path, *tmp_path.parents):
        if "pytest-of-" in str(folder):
            folder.chmod(0o777)
    code = (
        "import filelock, os, sys; from microumup import cli, train; os.environ.pop('HOME', 0); "
        "os.setgroups([]); os.setgid(54321); os.setuid(54321); cli.run(lambda: train.main(sys.argv[1:]))"
    )
    command = [*PYTHON, "-c", code, *small_runs.options(tmp_path / "run", text)]
    done = subprocess.run(command, capture_output=True, cwd="/", timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_value_that_begins_with_a_dash_is_explained(refused: Any, half: Path) -> None:
    from microumup.generate import main

    error = refused(main, [str(half), "--prompt", "-x"])
    assert error == "microumup generate: --prompt: expected one argument; if it begins with a -, write --prompt=-…\n"
    assert main([str(half), "--prompt=-x", "--tokens", "1"]) == 0


def test_texts_given_twice_are_both_taken(tmp_path: Path, text: Path) -> None:
    """The second one was alone."""
    from microumup.run_dir import load_config

    more = tmp_path / "more.txt"
    more.write_text("more of the people. " * 100)
    assert train.main([*small_runs.options(tmp_path / "run", text), "--text", str(more)]) == 0
    assert load_config(tmp_path / "run").text == (str(text), str(more))


def test_no_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def large() -> int:
        raise MemoryError("Unable to allocate\n1 TiB")

    with pytest.raises(SystemExit) as end:
        cli.run(large)
    assert end.value.code == 1
    assert capsys.readouterr().err == "microumup: not enough memory (Unable to allocate 1 TiB); take smaller sizes\n"
