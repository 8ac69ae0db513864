"""The README's code runs, its commands exist, and its numbers are those of the committed results."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from microumup import APPENDICES, CHAPTERS
from microumup.__main__ import COMMANDS
from microumup.cli import Parser
from microumup.config import TrainConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_prints_what_its_comment_says(code: str) -> None:
    expected = re.search(r"print\(.*\)  # (.*)", code)
    assert expected
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected[1]


def test_every_command_stands_in_the_readme_and_exists() -> None:
    named = set(re.findall(r"`microumup ([a-z0-9_-]+)", README))
    assert named == set(COMMANDS)


@pytest.mark.parametrize("options", re.findall(r"^R='(.*)'$|(?:microumup train )((?!`)--[^`&]*)", README, re.MULTILINE))
def test_the_options_of_train_exist(options: tuple[str, str]) -> None:
    from microumup import cli

    parser = Parser("train", "")
    cli.add_options(parser, TrainConfig)
    for name in ("--out", "--preset", "--resume", "--from-sweep", "--log-scales"):
        parser.add_argument(name)
    parser.parse_args([word for word in shlex.split(max(options)) if word != "$R"])


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", README))
def test_what_it_links_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", re.findall(r"`((?:tests|microumup)/[\w/.]+)`", README))
def test_the_files_it_names_are_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_speed_of_fp8_is_the_committed_result() -> None:
    comparisons = json.loads((ROOT / "docs" / "bench.json").read_text())["comparisons"]
    rounding = [round(1 / c["ratio"]) for c in comparisons if c["name"].startswith("quantize")]
    steps = [f"{c['ratio']:.2f}" for c in comparisons if "width 256" in c["name"]]
    assert f"Rounding is {min(rounding)} to {max(rounding)} times" in README
    assert f"{min(steps)} to {max(steps)} of one in float32" in README


def test_the_table_of_speed_is_the_committed_result() -> None:
    one, two = (json.loads((ROOT / "docs" / f"speed-{n}.json").read_text())["benches"] for n in (1, 2))
    for alone, both in zip(one, two, strict=True):
        assert (alone["threads"], both["threads"]) == (1, 2)
        memory = alone["peak_growth_mib"]
        ratios = [alone["ratio_to"]["torch"], alone["ratio_to"]["unit-scaling"], alone["gemm_ratio"]]
        ratios += [both["ratio_to"]["torch"]]
        ratios += [alone["step_ms"][p] / both["step_ms"][p] for p in ("umup", "its matrix products alone")]
        ratios += [memory["sp"] / memory[alone["fastest"]["torch"]]]
        cells = [f"{alone['step_ms']['umup']:.0f} ms", *(f"{ratio:.2f}" for ratio in ratios)]
        assert f"| {alone['config']} | {' | '.join(cells)} |" in README


def test_the_two_commands_set_themselves_up() -> None:
    commands = re.findall(
        r"^python3 -m venv \.venv && \.venv/bin/pip install .* && \.venv/bin/python -m (.+)$",
        README,
        re.MULTILINE,
    )
    assert commands == ["microumup.train", "pytest -n 2"]


@pytest.mark.parametrize(("kind", "names"), [("chapter", list(CHAPTERS)), ("appendix", list(APPENDICES))])
def test_it_lists_the_chapters_and_appendices_of_the_package(kind: str, names: list[str]) -> None:
    table = README.partition(f"| {kind} | |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)\.py` \| (.*) \|$", table, re.MULTILINE)
    assert [name for name, _ in rows] == names
    if kind == "appendix":
        assert dict(rows) == APPENDICES


def test_the_book_is_as_short_as_it_says() -> None:
    lines = sum(len((ROOT / "microumup" / f"{name}.py").read_text().splitlines()) for name in CHAPTERS)
    assert lines <= 1750
    longest = max(len(path.read_text().splitlines()) for path in (ROOT / "microumup").rglob("*.py"))
    assert longest <= 450
