"""From rows to files and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import World, data, records

from microumup.lab.figures import figure as module
from microumup.lab.figures.command import FIGURES, main
from microumup.lab.figures.figure import account, finish, read_data, write_data
from microumup.lab.figures.rows import Data, Rows


def only(rows: Rows, out: Path) -> Data:
    """`rows` as the table of Fig. 5, read back."""
    write_data(FIGURES["fig5"], Data(rows, []), out)
    return read_data(FIGURES["fig5"], out)


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"line": "µP, a", "lr": 2**-5.5, "width": 32, "loss": 1.25, "diverged": False},
        {"line": "e5", "lr": 1e-7, "width": 64, "loss": None, "diverged": True},
    ]
    found = only(rows, tmp_path).runs
    assert found == rows
    assert [type(row["width"]) for row in found] == [int, int]


@pytest.mark.parametrize("content", ["", "a,b\n", "a,b\n1\n", "a,b\n1,2,3\n"])
def test_what_is_no_table_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "fig5.csv").write_text(content)
    with pytest.raises(ValueError, match=r"fig5\.csv is not a table of a figure"):
        read_data(FIGURES["fig5"], tmp_path)


@pytest.mark.parametrize("name", FIGURES)
def test_claims_are_the_same_from_the_tables_and_before(name: str, tmp_path: Path) -> None:
    found = data(FIGURES[name], World())
    write_data(FIGURES[name], found, tmp_path)
    assert list(FIGURES[name].claims(read_data(FIGURES[name], tmp_path))) == list(FIGURES[name].claims(found))
    assert all(path.stat().st_size < 300_000 for path in tmp_path.iterdir())  # they are committed


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize("name", FIGURES)
def test_redrawing_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    write_data(FIGURES[name], data(FIGURES[name], World()), tmp_path)

    def draw() -> dict[str, bytes]:
        assert main([name, "--redraw", "--out", str(tmp_path), "--quiet"]) == 0
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".png"}

    first = draw()
    assert {f"{name}.csv", f"{name}.json", f"{name}.svg", "results.md"} <= set(first)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert draw() == first


def test_a_picture_s_title_does_not_say_what_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module.look, "entitle", lambda figure, text: seen.append(text))
    figure = FIGURES["fig2-left"]
    for world in (World(), World(emb_drift=dict.fromkeys(World().emb_drift, 0.0))):
        write_data(figure, data(figure, world), tmp_path)
        finish(figure, tmp_path)
    assert seen == [figure.shows, figure.title]


@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_says_what_is_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = FIGURES[name].draw(data(FIGURES[name], World()))
    captions = " ".join(legend.get_title().get_text() for legend in picture.legends).split()
    assert len(captions) > 4
    bands = any(ax.collections for ax in picture.axes if not ax.images)
    assert ("band:" in captions) == bands or name in ("fig10", "fig11")


def test_markers_lie_on_the_drawn_curves() -> None:
    """A parabola's minimum is lower than the lines between points: such a marker hangs below its curve."""
    picture = FIGURES["fig1-left"].draw(data(FIGURES["fig1-left"], World()))
    checked = 0
    for ax in picture.axes:
        curves = [line.get_xydata() for line in ax.lines if len(line.get_xdata()) > 1]
        for line in (line for line in ax.lines if len(line.get_xdata()) == 1):
            x, y = np.log2(line.get_xdata()[0]), line.get_ydata()[0]
            heights = [np.interp(x, np.log2(curve[:, 0]), curve[:, 1]) for curve in curves]
            assert min(abs(height - y) for height in heights) < 1e-12
            checked += 1
    assert checked == 15  # four lines at three widths, three of them at a fourth


def test_redrawing_keeps_what_is_known_of_how_the_runs_were_made(tmp_path: Path) -> None:
    figure, sessions = FIGURES["fig2-left"], [{"commit": "abc"}]
    made = account(list(records(figure, World()).values()), sessions)
    assert (made["runs"], made["cpu_seconds"], made["sessions"]) == (48, 48, sessions)
    assert made["options"]["steps"] == 512
    write_data(figure, data(figure, World()), tmp_path)
    finish(figure, tmp_path, made=made)
    finish(figure, tmp_path)
    assert json.loads((tmp_path / "fig2-left.json").read_text())["made"] == made


def test_options_that_all_runs_share() -> None:
    found = [{"config": {"width": 32, "lr": lr}, "seconds": 1.0} for lr in (1.0, 2.0)]
    assert account(found, [])["options"] == {"width": 32}
