"""Every lesson keeps its form; the quick ones run here, all of them in .ci/run."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))
NAMES = [script.stem for script in LESSONS]
QUICK = ("01_tape", "02_linear", "03_cut_edge", "05_residual")
TITLES = (
    "Predict", "The naive way", "The paper's row", "Our code", "Check", "Figure", "What would fool you", "Exercise",
    "Recap",
)  # fmt: skip
every_lesson = pytest.mark.parametrize("script", LESSONS, ids=NAMES)


def prose(script: Path) -> str:
    """The text of a lesson's markdown cells."""
    cells = re.split(r"^# %%", script.read_text("utf-8"), flags=re.MULTILINE)
    return "\n".join(re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in cells if cell.startswith(" [markdown]"))


def test_they_are_numbered_without_a_gap() -> None:
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(len(NAMES))]


@every_lesson
def test_it_is_short(script: Path) -> None:
    assert len(script.read_text("utf-8").splitlines()) < 200


@every_lesson
def test_it_has_its_parts_in_order(script: Path) -> None:
    text = prose(script).replace("## Our code, and the check\n", "## Our code\n## Check\n")
    titles = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert [title for title in titles if title in TITLES] == list(TITLES)


@every_lesson
def test_it_opens_and_ends_as_all_do(script: Path) -> None:
    text = prose(script)
    assert re.search(rf"^# {script.stem[:2]} · ", text, flags=re.MULTILINE)
    assert "minutes" in text.split("## Predict")[0]
    end = text.split("## Recap")[1]
    assert "Answers" in end
    assert re.search(r"[Tt]he way on", end)


@every_lesson
def test_a_prediction_is_asked_for_and_answered(script: Path) -> None:
    code = script.read_text("utf-8")
    for call in ("lesson.guess(", "lesson.answer(", "lesson.show(", "lesson.claim", "lesson.save("):
        assert call in code, call


@every_lesson
def test_its_links_lead_somewhere(script: Path) -> None:
    check_links(script, prose(script))


@pytest.mark.parametrize("name", ["README", "notation", "glossary"])
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    page = ROOT / "lessons" / f"{name}.md"
    check_links(page, page.read_text("utf-8"))


def check_links(source: Path, text: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        file, _, place = target.partition("#")
        path = source.parent / file if file else source
        assert path.exists(), f"{source.name}: {target}"
        if place and path.suffix == ".md":
            assert place in anchors(path), f"{source.name}: {target}"


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_readme_names_every_lesson_and_its_minutes() -> None:
    table = (ROOT / "lessons" / "README.md").read_text("utf-8")
    for script in LESSONS:
        row = re.search(rf"^\| \[{script.stem[:2]} · .*\]\({script.name}\) \| (\d+) \|", table, flags=re.MULTILINE)
        assert row, script.name
        opening = prose(script).split("## Predict")[0]
        assert re.search(rf"\b{row[1]} minutes", opening), f"{script.name}: the README says {row[1]} minutes"


@pytest.mark.parametrize("name", [name for name in QUICK if name in NAMES])
def test_it_runs_and_leaves_a_figure(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("LESSON_RUNS", str(tmp_path))
    script = ROOT / "lessons" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--guess", "3.2"])
    runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Your prediction of 3.2 is" in printed
    assert "FAIL" not in printed


def test_as_a_command_it_goes_on_without_a_prediction(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "lessons/01_tape.py"], cwd=ROOT, stdin=subprocess.DEVNULL, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": path, "LESSON_RUNS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Read lessons/01_tape.py along: ")
    assert "No prediction; make one with: python lessons/01_tape.py --guess NUMBER" in done.stdout
