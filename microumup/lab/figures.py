"""The paper's figures: run at a scale of your choice, drawn, and judged in numbers.

A figure is data: what the paper shows, which runs it takes (recipes.py), what is claimed of them (claims.py) and how
they are drawn (drawings.py). Runs are kept in a store that all figures share, so that none is made twice and all can be
resumed. Each figure leaves NAME.csv, a row per run; NAME.png and NAME.svg; and NAME.json with the verdicts. Claims and
pictures see nothing but the CSV: --redraw makes them anew without a single run.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup import __version__, checkpoint, cli
from microumup.backend import choose_device
from microumup.config import check_least
from microumup.lab import claims, drawings, recipes, results_page, rules
from microumup.lab.claims import HOLDS, NOT_JUDGED, Claim, Data, Row, Rows, together
from microumup.lab.recipes import SCALES, Known, Recipe, Scale, id_of
from microumup.lab.search import Record
from microumup.lab.sweep import (
    Crashed,
    Job,
    check_out,
    estimate_seconds,
    flops,
    load_results,
    sweep,
)
from microumup.lab.tables import read_table, write_table

PACKAGE = Path(__file__).parent.parent


def _nothing(record: Record) -> Row:
    return {}


class Figure(NamedTuple):
    """One of the paper's figures or rules."""

    name: str
    title: str
    shows: str  # what the paper says; the picture's title when it holds
    claims: Callable[[Data], list[Claim]]
    draw: Callable[[Data], Any]
    recipe: Recipe | None = None  # the runs; without one, `compute` makes the rows
    columns: tuple[str, ...] = ()  # the options that tell its runs apart
    measure: Callable[[Record], Row] = _nothing  # what else of a run is kept in its row
    steps: Callable[[Record], list[str]] | None = None  # of which steps the ranges of all tensors are kept
    compute: Callable[[], Rows] | None = None


# ---------------------------------------------------------------------------------------------------------------------
# From runs to rows


def flushed(record: Record) -> Row:
    """The share of all elements of all dy that a cast to FP8 would turn into zeros before the first step."""
    dy = [r for name, r in record["ranges"].get("0", {}).items() if name.endswith(".dy")]
    total = sum(r["size"] for r in dy)
    return {"flushed": round(sum(r["underflow"] * r["size"] for r in dy) / total, 6) if total else None}


def ending_rms(record: Record) -> Row:
    """RMS at the last step of the three tensors that Fig. 9 follows."""
    last = f"layer{record['config']['layers'] - 1}.down"
    names = {"rms_head_w": "head.w", "rms_down_x": f"{last}.x", "rms_down_dy": f"{last}.dy"}
    end = record["ranges"].get(str(record["config"]["steps"] - 1), {})  # none of a run that diverged
    return {column: end[name]["rms"] if end else None for column, name in names.items()}


def first_and_last(record: Record) -> list[str]:
    """Of the steps that a run looked at its tensors."""
    steps = list(record["ranges"])
    return steps if len(steps) < 2 else [steps[0], steps[-1]]


MUP_SEARCHED, UMUP_SEARCHED = (tuple(recipes.TABLE6_RANGES[line]) for line in (recipes.MUP_SMALL, recipes.UMUP))
SEARCHED = tuple(dict.fromkeys(("lr", *MUP_SEARCHED, *UMUP_SEARCHED, "seed", "vocab_size")))

FIGURES = {
    figure.name: figure
    for figure in (
        Figure(
            "fig1-left", "Learning rate over width",
            "µP's and u-µP's best learning rate stays where it is over width, SP's does not",
            claims.fig1_left, drawings.fig1_left, recipes.fig1_left, ("base_width", "width", "lr", "seed"),
        ),
        Figure(
            "fig1-right", "FP8 by a plain cast", "u-µP trains in FP8 by a plain cast, µP does not",
            claims.fig1_right, drawings.fig1_right, recipes.fig1_right, ("width", "steps", "fp8", "seed", "vocab_size"),
            measure=flushed,
        ),
        Figure(
            "fig2-left", "µP's embedding learning rate over width",
            "µP's best embedding learning rate shrinks with width",
            claims.fig2_left, drawings.fig2_left, recipes.fig2_left, ("width", "eta_emb", "seed"),
        ),
        Figure(
            "fig2-right", "Hyperparameters searched one by one, and at random",
            "u-µP needs little more than its learning rate, and its optima combine",
            claims.fig2_right, drawings.fig2_right, recipes.fig2_right, SEARCHED,
        ),
        Figure(
            "fig3", "RMS of every linear's tensors", "u-µP's tensors start near RMS 1 and stay in E4M3's range",
            claims.fig3, drawings.fig3, recipes.fig3, ("width", "lr", "seed"), steps=first_and_last,
        ),
        Figure(
            "fig4", "u-µP's embedding learning rate over width",
            "with its rule u-µP's best embedding learning rate stays where it is over width",
            claims.fig4, drawings.fig4, recipes.fig4, ("width", "eta_emb", "seed"),
        ),
        Figure(
            "fig5", "u-µP with its embedding rule and without", "without its embedding rule u-µP's loss is worse",
            claims.fig5, drawings.fig5, recipes.fig5, ("width", "lr", "seed"),
        ),
        Figure(
            "fig6", "Learning rate over steps, batch size and depth",
            "the best learning rate moves little over steps and batch size, and u-µP is best when deep",
            claims.fig6, drawings.fig6, recipes.fig6, ("steps", "batch_size", "layers", "lr", "seed"),
        ),
        Figure(
            "fig7", "What FP8 costs", "u-µP trains in FP8; µP only if its gradients are scaled up",
            claims.fig7, drawings.fig7, recipes.fig7, ("width", "steps", "fp8", "loss_scale", "seed", "vocab_size"),
            measure=flushed,
        ),
        Figure(
            "fig8", "RMS along training", "the head's weight and the last FFN-down input grow most",
            claims.fig8, drawings.fig8, recipes.fig8, ("width", "lr", "seed"),
            steps=lambda record: list(record["ranges"]),
        ),
        Figure(
            "fig9", "What moves the RMS at the end of training",
            "only the learning rate moves the RMS at the end of training",
            claims.fig9, drawings.fig9, recipes.fig9,
            ("lr", "width", "layers", "steps", "batch_size", *UMUP_SEARCHED, "seed"), measure=ending_rms,
        ),
        Figure(
            "fig10", "How µP's hyperparameters are coupled", "µP's hyperparameters are coupled",
            claims.fig10, drawings.coupling, recipes.fig10, ("lr", *MUP_SEARCHED, "seed", "vocab_size"),
        ),
        Figure(
            "fig11", "How u-µP's hyperparameters are coupled", "u-µP's hyperparameters are coupled less than µP's",
            claims.fig11, drawings.coupling, recipes.fig11, ("lr", *UMUP_SEARCHED, "seed", "vocab_size"),
        ),
        Figure(
            "table1", "Table 1, measured on models", "models do what Table 1 says, over width and over depth",
            claims.table1, drawings.table1, compute=rules.table1,
        ),
        Figure(
            "table4", "Table 4, measured op by op", "every op puts out and passes back the scale that Table 4 implies",
            claims.table4, drawings.table4, compute=rules.table4,
        ),
        Figure(
            "lemma-c1", "Lemma C.1",
            "the rescaled residual network is the original one; with eq. (22) as printed it is not",
            claims.lemma_c1, drawings.lemma_c1, compute=rules.lemma_c1,
        ),
        Figure(
            "eq22", "Eq. (22) as printed", "α_res is the ratio it is called; with eq. (22) as printed it is not",
            claims.eq22, drawings.eq22, compute=rules.eq22,
        ),
    )
}  # fmt: skip


def row(figure: Figure, scale: Scale, record: Record) -> Row:
    """A run as a row of NAME.csv."""
    config = record["config"]
    found = {"line": scale.line(config)} | {name: config[name] for name in figure.columns}
    return found | figure.measure(record) | {k: record[k] for k in ("loss", "diverged", "seconds", "version")}


def range_rows(figure: Figure, scale: Scale, record: Record) -> Rows:
    """A row of NAME-ranges.csv for each tensor, at each step that the figure keeps."""
    return [
        {"line": scale.line(record["config"]), "seed": record["config"]["seed"], "step": int(step), "tensor": name}
        | {k: float(f"{r[k]:.4g}") if r[k] is not None else None for k in ("rms", "absmax", "underflow", "saturated")}
        for step in (figure.steps(record) if figure.steps else ())
        for name, r in record["ranges"][step].items()
    ]


def write_rows(path: Path, rows: Rows) -> None:
    """A table of `rows`, which all have the same keys."""
    write_table(path, list(rows[0]), [list(row.values()) for row in rows])


def read_rows(path: Path) -> Rows:
    """What `write_rows` wrote. Raises ValueError when it did not."""
    with suppress(ValueError):
        if rows := read_table(path):
            return rows
    raise ValueError(f"{path} is not a table of a figure; make it anew without --redraw")


# ---------------------------------------------------------------------------------------------------------------------
# The store


def collect(figures: Sequence[Figure], scale: Scale, store: Path, **how: Any) -> tuple[Known, dict[str, str]]:
    """Make every run that the figures miss, as one sweep after the other until they ask for nothing new.

    The records by id, and the errors of the runs that crashed. `how` goes to `sweep`.
    """
    check_out(store)
    known, errors = load_results(store), dict[str, str]()
    while missing := {id: job for id, job in wanted(figures, scale, known).items() if id not in known.keys() | errors}:
        (store / "results").mkdir(parents=True, exist_ok=True)
        note_session(store)
        try:
            sweep(list(missing.values()), store, **how)
        except Crashed as error:
            errors |= error.errors
        known = load_results(store)
    return known, errors


def wanted(figures: Iterable[Figure], scale: Scale, known: Known) -> dict[str, Job]:
    """All runs that can be named by now, by id."""
    jobs = (job for figure in figures if figure.recipe for job in figure.recipe(scale, known))
    return {id_of(job): job for job in jobs}


class Supposed(dict[str, Record]):
    """Records of all runs there could be, for a look ahead: how many a search will make does not depend on them."""

    def __contains__(self, id: object) -> bool:
        return True

    def __missing__(self, id: str) -> Record:
        return {"loss": 0.0}


def note_session(store: Path) -> None:
    """Write down with what the runs that follow are made."""
    path = store / "sessions.json"
    sessions = json.loads(path.read_text()) if path.exists() else []
    checkpoint.write_json(path, [*sessions, {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"} | provenance()])


def provenance() -> dict[str, Any]:
    """This version of the code, its commit if it runs in a clone, and the machine."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True)
        commit += "-dirty" if changed.stdout else ""
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {
        "microumup": __version__, "commit": commit, "python": platform.python_version(),
        "numpy": np.__version__, "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# One figure's files


def write_tables(figure: Figure, scale: Scale, records: Sequence[Record], out: Path) -> None:
    """NAME.csv, and NAME-ranges.csv if the figure looks at tensors."""
    runs = figure.compute() if figure.compute else [row(figure, scale, record) for record in records]
    write_rows(out / f"{figure.name}.csv", runs)
    if figure.steps:
        write_rows(
            out / f"{figure.name}-ranges.csv", [r for record in records for r in range_rows(figure, scale, record)]
        )


def read_data(figure: Figure, out: Path) -> Data:
    """What the figure's tables hold. Raises ValueError when they are not there."""
    tables = [out / f"{figure.name}.csv", *([out / f"{figure.name}-ranges.csv"] if figure.steps else [])]
    for path in tables:
        if not path.exists():
            raise ValueError(f"{path} is not there to be redrawn; leave out --redraw, and it is made")
    runs, ranges = (*map(read_rows, tables), [])[:2]
    return Data(runs, ranges)


def finish(
    figure: Figure, out: Path, *, judged: bool, sessions: list[dict[str, Any]] | None, common: Row | None
) -> Row:
    """From the tables the verdicts and the picture: NAME.json, NAME.png and NAME.svg. What NAME.json holds.

    Without `sessions`, which say how the runs were made, what an earlier NAME.json says of it stays.
    """
    path = out / f"{figure.name}.json"
    data = read_data(figure, out)
    found = [claim if judged else claim._replace(verdict=NOT_JUDGED) for claim in figure.claims(data)]
    verdict = together([claim.verdict for claim in found])
    made = json.loads(path.read_text())["made"] if path.exists() else {}
    if sessions is not None:
        seconds = sum(run["seconds"] for run in data.runs) if figure.recipe else 0
        made = {"runs": len(data.runs), "cpu_seconds": round(seconds), "options": common, "sessions": sessions}
    tables = [f"{figure.name}.csv", *([f"{figure.name}-ranges.csv"] if figure.steps else [])]
    pictures = [f"{figure.name}.png", f"{figure.name}.svg"]
    picture = figure.draw(data)
    drawings.entitle(picture, figure.shows if verdict == HOLDS else figure.title)
    drawings.save(picture, [out / name for name in pictures])
    result = {
        "name": figure.name, "title": figure.title, "shows": figure.shows, "verdict": verdict,
        "claims": [as_json(claim) for claim in found], "made": made, "files": [*pictures, *tables],
    }  # fmt: skip
    checkpoint.write_json(path, result)
    return result


def as_json(claim: Claim) -> Row:
    """The claim with its numbers rounded to what is meaningful; JSON has no infinity."""

    def number(value: Any) -> Any:
        return float(f"{value:.4g}") if isinstance(value, float) and isfinite(value) else None

    return {name: value if isinstance(value, str) else number(value) for name, value in claim._asdict().items()}


# ---------------------------------------------------------------------------------------------------------------------
# The command

CLONE = PACKAGE.parent
PICTURES = CLONE / "docs" / "figures"  # where the committed ones are, in a clone
GPU, GPU_FLOPS, UTILISATION = "H100 in float32", 67e12, 0.3  # FLOP/s at its peak, and the share of it that is assumed


def main(argv: list[str] | None = None) -> int:
    """The command `figures`."""
    parser = cli.Parser(
        "figures", f"{__doc__}\nEnds with 0 when everything ran, whatever the verdicts; with 1 when runs failed.",
        operands="list | all | NAME…",
        examples="  microumup figures list\n  microumup figures fig1-left fig5     the learning rate over width\n"
        "  microumup figures all --dry-run      what it would take\n"
        "  microumup figures all --redraw       from the CSVs, without a run",
    )  # fmt: skip
    in_clone = (CLONE / "pyproject.toml").exists() and (CLONE / "docs").is_dir()
    default_out = PICTURES if in_clone else Path("figures")
    cores = os.cpu_count() or 1
    parser.add_argument("names", nargs="+", metavar="NAME", help="of figures; all; or list, to see their names")
    parser.add_argument("--scale", choices=["laptop", "paper"], default="laptop", help="how large (default: laptop)")
    parser.add_argument("--quick", action="store_true", help="a few runs of a few steps, to see that everything works")
    parser.add_argument("--redraw", action="store_true", help="verdicts and pictures from the CSVs that are there")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to run, and what it costs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for tables and pictures (default: docs/figures in a "
                        "clone, else figures; with --quick, pictures in the store)")  # fmt: skip
    parser.add_argument("--runs", type=Path, metavar="DIR", help="the store (default: runs/figures, with --quick "
                        "runs/figures-quick; at another scale, with its name)")  # fmt: skip
    parser.add_argument("--workers", type=cli.whole, default=cores, metavar="N", help=f"processes (default: {cores})")
    parser.add_argument(
        "--cluster", metavar="ADDRESS", help="of a dask scheduler, tcp://HOST:PORT; instead of processes"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="auto, cpu or gpu (default: cpu)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors, and --json's line")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON: figures, their claims and files")
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    with cli.bad_input(parser):
        check_least(args, workers=0)
        if args.names == ["list"]:
            return list_figures(say, args.json)
        figures = [FIGURES[name] for name in named(args.names)]
        if args.quick and args.scale != "laptop":
            raise ValueError(f"--quick: is a scale of its own; leave out --scale {args.scale}")
        scale = SCALES["quick" if args.quick else args.scale]
        store = args.runs or Path("runs") / ("figures" if scale.name == "laptop" else f"figures-{scale.name}")
        out = args.out or (default_out if scale.name == "laptop" else store / "pictures")
        if args.quick and out.resolve() == PICTURES.resolve():
            raise ValueError(f"--out: {out} is for pictures that say something; with --quick, name another directory")
        if args.dry_run:
            return dry_run(figures, scale, store, say, args.json)
        if find_spec("matplotlib") is None:  # before hours of work
            raise ValueError(
                "pictures need matplotlib, pip install 'microumup[plot]'; to have the runs alone use sweep"
            )
        errors: dict[str, str] = {}
        known: Known = {}
        if args.redraw:
            for figure in figures:
                read_data(figure, out)  # all, before any is written
        else:
            device = choose_device(args.device)
            how = {"workers": args.workers, "cluster": args.cluster, "device": device, "progress": not args.quiet}
            try:
                known, errors = collect(figures, scale, store, **how)
            except KeyboardInterrupt:
                print(f"microumup figures: interrupted; {store} keeps what is done, go on with the same command",
                      file=sys.stderr)  # fmt: skip
                return 130
        out.mkdir(parents=True, exist_ok=True)
        results, incomplete = [], []
        for figure in figures:
            sessions = common = None
            if not args.redraw:
                ids = wanted([figure], scale, known)
                if any(id not in known for id in ids):
                    incomplete.append(figure.name)
                    continue
                records = [known[id] for id in ids]
                write_tables(figure, scale, records, out)
                sessions, common = sessions_of(store), shared_options(records)
            results.append(finish(figure, out, judged=scale.name != "quick", sessions=sessions, common=common))
            say(text(results[-1]))
        if scale.name == "laptop":
            results_page.write(out, [figure.name for figure in FIGURES.values()])
    for id, error in errors.items():
        print(f"microumup figures: run {id} failed: {error}", file=sys.stderr)
    if incomplete:
        print(f"microumup figures: not drawn, for want of runs: {', '.join(incomplete)}", file=sys.stderr)
    say(f"in {out}: " + ", ".join(file for result in results for file in result["files"]))
    if args.json:
        shown = ("name", "verdict", "claims", "files")
        print(json.dumps({"figures": [{key: result[key] for key in shown} for result in results]}))
    return 1 if errors or incomplete else 0


def named(names: Sequence[str]) -> list[str]:
    """The figures that are meant, in their order. Raises ValueError for one that does not exist."""
    for name in names:
        if name not in FIGURES and name != "all":
            raise ValueError(f"there is no figure {name!r}; choose from all, {', '.join(FIGURES)}")
    return [name for name in FIGURES if name in names or "all" in names]


def list_figures(say: Callable[..., None], as_line: bool) -> int:
    """Every figure and what the paper shows in it."""
    for figure in FIGURES.values():
        say(f"{figure.name:12}{figure.shows}")
    if as_line:
        print(json.dumps({"figures": [{"name": f.name, "shows": f.shows} for f in FIGURES.values()]}))
    return 0


def dry_run(figures: Sequence[Figure], scale: Scale, store: Path, say: Callable[..., None], as_line: bool) -> int:
    """What there is to run: of each figure, without what those above it make, and in all."""
    done, seen, table = load_results(store), set[str](), []
    for figure in figures:
        jobs = {id: job for id, job in wanted([figure], scale, Supposed()).items() if id not in seen}
        seen |= set(jobs)
        left = {id: job for id, job in jobs.items() if id not in done}
        line: dict[str, Any] = {"name": figure.name, "runs": len(jobs), "done": len(jobs) - len(left)}
        line["flops"] = sum(flops(job.config) * job.config.steps for job in left.values())
        if scale.name == "paper":
            line["gpu_hours"] = line["flops"] / (GPU_FLOPS * UTILISATION) / 3600
        else:
            line["cpu_seconds"] = sum(map(estimate_seconds, left.values()))
        table.append(line)
    total: dict[str, Any] = {"name": "in all"} | {key: sum(line[key] for line in table) for key in list(table[0])[1:]}
    say(f"{'':12}{'runs':>7}{'done':>7}{'FLOPs left':>12}{'GPU hours' if scale.name == 'paper' else 'CPU time':>12}")
    for line in (*table, total):
        cost = f"{line['gpu_hours']:.1f}" if scale.name == "paper" else f"{line['cpu_seconds'] / 60:.1f} min"
        say(f"{line['name']:12}{line['runs']:7}{line['done']:7}{line['flops']:12.2g}{cost:>12}")
    if scale.name == "paper":
        say(f"hours of an {GPU} ({GPU_FLOPS:.3g} FLOP/s at its peak), of which {UTILISATION:.0%} are used")
    else:
        say("a run that several figures need counts for the first; CPU time by timing steps here and now")
    if as_line:
        print(json.dumps({"scale": scale.name, "figures": table, "total": total}))
    return 0


def sessions_of(store: Path) -> list[dict[str, Any]]:
    """With what the runs in the store were made; sessions that differ in the date alone are one."""
    path = store / "sessions.json"
    sessions: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    different = {json.dumps({k: v for k, v in s.items() if k != "date"}): s for s in reversed(sessions)}
    return list(different.values())[::-1]


def shared_options(records: Sequence[Record]) -> Row:
    """The options that are the same in all runs: what the columns of a CSV leave out."""
    configs = [record["config"] for record in records]
    return {k: v for k, v in configs[0].items() if all(c[k] == v for c in configs)} if configs else {}


def text(result: Row) -> str:
    """The verdicts on a figure, a line a claim."""
    lines = [f"{result['name']}, {result['shows']}: {result['verdict']}"]
    for claim in result["claims"]:
        value, low, high = (claims.amount(claim[key], claim["unit"]) for key in ("effect", "low", "high"))
        interval = "" if claim["low"] in (None, claim["effect"]) else f" [{low}, {high}]"
        asked = claim["criterion"] and f", asked: {claim['criterion']}"
        lines.append(f"  {claim['verdict']:27} {claim['claim']}: {value}{interval} {claim['unit']}".rstrip() + asked)
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
