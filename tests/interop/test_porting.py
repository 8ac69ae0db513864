"""docs/porting.md: its code runs, its tables are those of the package."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from microumup.__main__ import COMMANDS
from microumup.interop.cases import PAIRS, RUNS
from microumup.interop.judge import TOLERANCES
from microumup.lab import explain

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "porting.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def run(code: str, directory: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True)


def test_the_example_with_a_mistake_says_what_the_guide_says(tmp_path: Path) -> None:
    done = run(blocks("python")[0], tmp_path)
    assert done.returncode == 1
    said = done.stderr.partition("AssertionError: not as u-µP has it:\n")[2]
    assert said == blocks("")[0]


def test_the_first_example_without_its_mistake_passes(tmp_path: Path) -> None:
    assert run(blocks("python")[0].replace("w.shape[0] ** -0.5", "w.shape[1] ** -0.5"), tmp_path).returncode == 0


@pytest.mark.parametrize(("number", "framework"), [(1, "torch"), (2, "jax")])
def test_an_example_in_a_framework_passes(number: int, framework: str, tmp_path: Path) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    assert f"import {framework}" in blocks("python")[number]
    done = run(blocks("python")[number], tmp_path)
    assert "9 of 9 outputs are right" in done.stdout, done.stderr


def test_a_plan_becomes_pytorch_s_groups_that_the_doctor_finds_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    done = run(blocks("python")[3], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "groups.json").read_text())["groups"]) == 16
    (command,) = [block for block in blocks("sh") if "--against" in block]
    monkeypatch.chdir(tmp_path)
    assert explain.main(shlex.split(command)[2:]) == 0
    assert "every number is as it should be" in capsys.readouterr().out


def test_the_file_of_groups_in_the_guide_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "groups.json").write_text(blocks("json")[0])
    assert explain.main(["--width", "64", "--layers", "2", "--against", str(tmp_path / "groups.json")]) == 1
    assert "broken rules:\n  there is no output weight" in (out := capsys.readouterr().out)
    assert out.count("blocks.0") == 0  # the one weight it has is right


def test_the_commands_exist_and_the_c_program_passes(tmp_path: Path) -> None:
    for block in blocks("sh"):
        for line in block.splitlines():
            if line.startswith("microumup"):
                assert shlex.split(line)[1] in COMMANDS
    (block,) = [block for block in blocks("sh") if "umup.c" in block]
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    script = block.replace("microumup vectors", f"{sys.executable} -m microumup vectors")
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "34 of 34 outputs are right" in done.stdout


def test_the_c_of_the_guide_is_the_program_s() -> None:
    (code,) = blocks("c")
    assert code in (ROOT / "tests" / "peers" / "umup.c").read_text()


def test_the_ops_named_exist() -> None:
    (sentence,) = re.findall(r"Ops are (.*?) and some more", GUIDE, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", sentence))
    assert named <= {*PAIRS, *RUNS}
    assert len(named) == 13


def test_the_tolerances_are_those_of_the_package() -> None:
    rows = re.findall(r"^\| ([a-z0-9 ]+) \| ([\d.e-]+) \|", GUIDE, re.MULTILINE)
    assert {name: float(most) for name, most in rows} == {name: t.most for name, t in TOLERANCES.items()}


@pytest.mark.parametrize("path", re.findall(r"`((?:tests|data|microumup|docs)/[\w/.]+)`", GUIDE))
def test_what_it_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("anchor", re.findall(r"\]\(#([^)]+)\)", GUIDE))
def test_its_anchors_exist(anchor: str) -> None:
    headings = [
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", GUIDE, re.MULTILINE)
    ]
    assert anchor in headings
