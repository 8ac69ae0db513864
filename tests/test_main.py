import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from microumup.__main__ import COMMANDS


def microumup(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "microumup", *argv], capture_output=True, text=True, check=False)


def test_without_arguments_it_lists_every_command_a_line_each() -> None:
    done = microumup()
    assert done.returncode == 0
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", done.stdout, re.MULTILINE)


def test_an_unknown_command_is_named_in_one_line() -> None:
    done = microumup("trian")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "microumup: there is no command 'trian'; did you mean train?\n"
    assert microumup("xyz").stderr == f"microumup: there is no command 'xyz'; choose from {', '.join(COMMANDS)}\n"


@pytest.mark.parametrize("argv", [["help"], ["help", "curve"], ["fp8_gap", "--help"], ["fit-scale", "--help"]])
def test_help_is_found_where_it_is_looked_for(argv: list[str]) -> None:
    done = microumup(*argv)
    assert done.returncode == 0
    assert done.stdout.startswith({"help": "microumup 0"}.get(argv[-1], "usage: microumup "))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        import_module(COMMANDS[name][0]).main(["--help"])
    assert end.value.code == 0
    assert f"usage: microumup {name}" in capsys.readouterr().out


def test_train_is_also_a_module_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "microumup.train", "--steps", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "microumup train: --steps: 0 is too small; the least is 1\n"


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    import json
    import signal
    import time

    run = tmp_path / "run"
    options = ["--width", "16", "--steps", "100000", "--out", str(run), "--quiet", "--save-every", "20"]
    process = subprocess.Popen([sys.executable, "-m", "microumup.train", *options], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (run / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith(f"microumup train: interrupted; continue with --resume {run}\n")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 20
