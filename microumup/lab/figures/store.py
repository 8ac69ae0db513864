"""The store of runs that all figures share, so that none is made twice and all can be resumed."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from microumup import __file__ as package
from microumup import __version__, files
from microumup.lab.figures.figure import Figure, Known
from microumup.lab.figures.rows import Row
from microumup.lab.figures.settings import Setting, id_of
from microumup.lab.search import Record
from microumup.lab.sweep import Crashed, Job, check_out, load_results, sweep


def collect(figures: Sequence[Figure], setting: Setting, store: Path, **how: Any) -> tuple[Known, dict[str, str]]:
    """Make every run that the figures miss, as one sweep after the other until they ask for nothing new.

    The records by id, and the errors of the runs that crashed. `how` goes to `sweep`.
    """
    check_out(store)
    known, errors = load_results(store), dict[str, str]()
    while jobs := [job for id, job in wanted(figures, setting, known).items() if id not in known and id not in errors]:
        (store / "results").mkdir(parents=True, exist_ok=True)
        note_session(store)
        try:
            sweep(jobs, store, **how)
        except Crashed as error:
            errors |= error.errors
        known = load_results(store)
    return known, errors


def wanted(figures: Iterable[Figure], setting: Setting, known: Known) -> dict[str, Job]:
    """All runs that can be named by now, by id."""
    runs = (run for figure in figures if figure.recipe for run in figure.recipe(setting, known))
    return {id_of(run.job): run.job for run in runs}


class Supposed(dict[str, Record]):
    """Records of all runs there could be, for a look ahead: how many a search will make does not depend on them."""

    def __contains__(self, id: object) -> bool:
        return True

    def __missing__(self, id: str) -> Record:
        return {"loss": 0.0}


def note_session(store: Path) -> None:
    """Write down by what the runs that follow are made: the version, its commit if it is a clone's, the machine."""
    git = ["git", "--no-optional-locks", "-C", str(Path(package).parent)]  # a kill would leave its lock
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True)
        commit += "-dirty" if changed.stdout else ""
    except (OSError, subprocess.CalledProcessError):
        commit = None
    session = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "microumup": __version__, "commit": commit,
        "python": platform.python_version(), "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }  # fmt: skip
    files.write_json(store / "sessions.json", [*sessions_of(store), session])


def sessions_of(store: Path) -> list[Row]:
    """Sessions in which the runs of the store were made; those that differ in the date alone are one."""
    path = store / "sessions.json"
    sessions = files.read_json(path, list) if path.exists() else []
    different = {json.dumps({k: v for k, v in s.items() if k != "date"}): s for s in reversed(sessions)}
    return list(different.values())[::-1]
