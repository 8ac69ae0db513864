"""A figure as data, and its way from runs to files: NAME.csv, NAME.png and NAME.svg, NAME.json with the verdicts.

Claims and pictures see nothing but the CSV, so both can be made anew without a single run.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from microumup import files
from microumup.lab import pictures
from microumup.lab.figures import look
from microumup.lab.figures.judging import HOLDS, NOT_JUDGED, Claim, together
from microumup.lab.figures.rows import Data, Row, Rows
from microumup.lab.figures.settings import Run, Setting, id_of
from microumup.lab.search import Record
from microumup.lab.tables import read_table, write_table

Known = dict[str, Record]  # records by run id

# A recipe gets the setting and what is already known of its runs, for a search goes on from what it has found; it is
# asked again until it names nothing new.
Recipe = Callable[[Setting, Known], Iterable[Run]]


class Figure(NamedTuple):
    """One of the paper's figures or rules."""

    name: str
    title: str
    shows: str  # what the paper says; the picture's title when it holds
    prose: str  # what it means, for the page
    claims: Callable[[Data], Iterable[Claim]]
    draw: Callable[[Data], Any]
    recipe: Recipe | None = None  # the runs; without one, `compute` makes the rows
    columns: tuple[str, ...] = ()  # the options that tell its runs apart
    role: str = ""  # the column of the runs' roles, where they have several
    measure: Callable[[Record], Row] = lambda record: {}  # what else of a run is kept in its row
    steps: Callable[[Record], list[str]] | None = None  # of which steps the ranges of all tensors are kept
    compute: Callable[[], Rows] | None = None

    @property
    def tables(self) -> list[str]:
        """The names of its CSVs."""
        return [f"{self.name}.csv", *([f"{self.name}-ranges.csv"] if self.steps else [])]


def row(figure: Figure, run: Run, record: Record) -> Row:
    """A run as a row of NAME.csv."""
    labels = {"line": run.line} | ({figure.role: run.role} if figure.role else {})
    options = {name: record["config"][name] for name in figure.columns}
    found = {name: record[name] for name in ("loss", "diverged", "seconds", "version")}
    return labels | options | figure.measure(record) | found


def range_rows(figure: Figure, run: Run, record: Record) -> Rows:
    """A row of NAME-ranges.csv for each tensor, at each step that the figure keeps."""
    return [
        {"line": run.line, "seed": record["config"]["seed"], "step": int(step), "tensor": name}
        | {k: float(f"{r[k]:.4g}") if r[k] is not None else None for k in ("rms", "absmax", "underflow", "saturated")}
        for step in (figure.steps(record) if figure.steps else ())
        for name, r in record["ranges"][step].items()
    ]


def data_of(figure: Figure, setting: Setting, known: Known) -> Data:
    """The rows of both tables, from the records of all its runs."""
    if figure.compute:
        return Data(figure.compute(), [])
    assert figure.recipe
    pairs = [(run, known[id_of(run.job)]) for run in figure.recipe(setting, known)]
    ranges = [r for pair in pairs for r in range_rows(figure, *pair)]
    return Data([row(figure, *pair) for pair in pairs], ranges)


def write_data(figure: Figure, data: Data, out: Path) -> None:
    """Write the tables. All rows of a table have the same keys."""
    for name, rows in zip(figure.tables, data, strict=False):
        write_table(out / name, list(rows[0]), [list(row.values()) for row in rows])


def read_data(figure: Figure, out: Path) -> Data:
    """Read what `write_data` wrote. Raises ValueError when it is not there, or is something else."""

    def read(path: Path) -> Rows:
        if not path.exists():
            raise ValueError(f"{path} is not there to be redrawn; leave out --redraw, and it is made")
        with suppress(ValueError):
            if rows := read_table(path):
                return rows
        raise ValueError(f"{path} is not a table of a figure; make it anew without --redraw")

    return Data(*[*(read(out / name) for name in figure.tables), []][:2])


def finish(figure: Figure, out: Path, *, judged: bool = True, made: Row | None = None) -> Row:
    """Make the verdicts and the picture from the tables: the content of NAME.json, beside NAME.png and NAME.svg.

    `made` says how the runs were made; without it, what an earlier NAME.json says of it stays.
    """
    path = out / f"{figure.name}.json"
    data = read_data(figure, out)
    found = [claim if judged else claim._replace(verdict=NOT_JUDGED) for claim in figure.claims(data)]
    verdict = together([claim.verdict for claim in found])
    if made is None:
        made = files.read_json(path, dict).get("made", {}) if path.exists() else {}
    picture, names = figure.draw(data), [f"{figure.name}.png", f"{figure.name}.svg"]
    look.entitle(picture, figure.shows if verdict == HOLDS else figure.title)
    for name in names:
        pictures.save(picture, out / name)
    result = {
        "name": figure.name, "title": figure.title, "shows": figure.shows, "verdict": verdict,
        "claims": [as_json(claim) for claim in found], "made": made, "files": [*names, *figure.tables],
    }  # fmt: skip
    files.write_json(path, result)
    return result


def as_json(claim: Claim) -> Row:
    """The claim with its numbers rounded to what is meaningful; JSON has no infinity."""

    def number(value: Any) -> Any:
        return float(f"{value:.4g}") if isinstance(value, float) and isfinite(value) else None

    kept = (str, int)  # words, and counts of seeds
    return {name: value if isinstance(value, kept) else number(value) for name, value in claim._asdict().items()}


def account(records: Sequence[Record], sessions: Sequence[Row]) -> Row:
    """Account of how a figure's runs were made: how many, how long, the options that all share, and by what."""
    configs = [record["config"] for record in records]
    shared = {k: v for k, v in configs[0].items() if all(c[k] == v for c in configs)} if configs else {}
    seconds = round(sum(record["seconds"] for record in records))
    return {"runs": len(records), "cpu_seconds": seconds, "options": shared, "sessions": list(sessions)}
