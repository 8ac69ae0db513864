"""The paper's figures: run at a size of your choice, drawn, and judged in numbers.

Each leaves NAME.csv, a row per run; NAME.png and NAME.svg; and NAME.json with the verdicts. Runs are kept in a store
that all figures share: none is made twice, and what was stopped goes on. --redraw makes verdicts and pictures anew from
the tables, without a single run; where you have made none, from those of the clone.
Ends with 0 when everything ran, whatever the verdicts; with 1 when runs failed.
"""

import shutil
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from microumup import cli
from microumup.backend import install_hint
from microumup.lab.figures import adam, coupling, fp8, horizons, page, rules, scales, search, width
from microumup.lab.figures.figure import Figure, Known, account, data_of, finish, read_data, write_data
from microumup.lab.figures.judging import amount
from microumup.lab.figures.rows import Row
from microumup.lab.figures.settings import SETTINGS, Setting
from microumup.lab.figures.store import Supposed, collect, sessions_of, wanted
from microumup.lab.sweep import estimate_seconds, flops, load_results
from microumup.lab.tables import text_table
from microumup.lab.workers import shared_out
from microumup.limits import check_least

MODULES = (width, fp8, search, scales, horizons, coupling, rules, adam)
ORDER = ("fig1-left", "fig1-right", "fig2-left", "fig2-right", *(f"fig{i}" for i in range(3, 12)), "table1", "table4")
FIGURES = {figure.name: figure for module in MODULES for figure in module.FIGURES}
FIGURES = {name: FIGURES[name] for name in dict.fromkeys((*ORDER, *FIGURES))}  # as in the paper

CLONE = Path(__file__).parents[3]
DOCS = CLONE / "docs" / "figures"  # where the committed ones are, in a clone
GPU, GPU_FLOPS, UTILISATION = "H100 in float32", 67e12, 0.3  # FLOP/s at its peak, and the share of it that is assumed

EXAMPLES = """  microumup figures list
  microumup figures fig1-left fig5     the learning rate over width
  microumup figures all --dry-run      what it would take
  microumup figures all --redraw       from the CSVs, without a run"""


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = cli.Parser("figures", __doc__ or "", operands="list | all | NAME…", examples=EXAMPLES)
    parser.add_argument("names", nargs="+", metavar="NAME", help="of figures; all; or list, to see their names")
    parser.add_argument(
        "--scale", choices=["laptop", "overnight", "paper"], default="laptop", help="how large (default: laptop)"
    )
    flag: dict[str, Any] = {"action": "store_true"}
    directory: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    runs = "the store (default: runs/figures, with --quick runs/figures-quick; at another scale, with its name)"
    parser.add_argument("--quick", **flag, help="a few runs of a few steps, to see that everything works")
    parser.add_argument("--redraw", **flag, help="verdicts and pictures from the CSVs that are there")
    parser.add_argument("--dry-run", **flag, help="only say what there is to run, and what it costs")
    parser.add_argument("--out", **directory, help="for tables and pictures (default: pictures/ in the store)")
    parser.add_argument("--docs", **flag, help="renew docs/figures and docs/results.md of this clone")
    parser.add_argument("--runs", **directory, help=runs)
    cli.shared(parser, "workers", "cluster", "device", "devices", "quiet", json="figures, their claims and files")
    parser.set_defaults(device="cpu")
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    with cli.bad_input(parser):
        check_least(args, workers=0)
        if args.names == ["list"]:
            say(text_table([[figure.name, figure.shows] for figure in FIGURES.values()], "<<"))
            cli.json_line(args, {"figures": [{"name": f.name, "shows": f.shows} for f in FIGURES.values()]})
            return 0
        figures = named(args.names)
        if args.quick and args.scale != "laptop":
            raise ValueError(f"--quick: is a scale of its own; leave out --scale {args.scale}")
        setting = SETTINGS["quick" if args.quick else args.scale]
        store = args.runs or Path("runs") / ("figures" if setting.name == "laptop" else f"figures-{setting.name}")
        out = choose_out(args.out, store, setting, docs=args.docs)
        if args.dry_run:
            return dry_run(figures, setting, store, args)
        if find_spec("matplotlib") is None:  # before hours of work
            raise ValueError(f"pictures need matplotlib, {install_hint('plot')}; sweep makes runs without it")
        known, errors = Known(), dict[str, str]()
        if args.redraw:
            for figure in figures:
                if not args.out and setting.name == "laptop":
                    take_committed(figure, out)
                read_data(figure, out)  # all, before any is written
        else:
            device, workers = shared_out(args)
            how = {"workers": workers, "cluster": args.cluster, "progress": not args.quiet}
            try:
                known, errors = collect(figures, setting, store, device=device, **how)
            except KeyboardInterrupt:
                parser.complain(f"interrupted; {store} keeps what is done, go on with the same command")
                return 130
        out.mkdir(parents=True, exist_ok=True)
        results, incomplete = [], []
        for figure in figures:
            made = None
            if not args.redraw:
                ids = wanted([figure], setting, known)
                if ids.keys() - known.keys():
                    incomplete.append(figure.name)
                    continue
                write_data(figure, data_of(figure, setting, known), out)
                made = account([known[id] for id in ids], sessions_of(store))
            results.append(finish(figure, out, judged=setting.name != "quick", made=made))
            say(text(results[-1]))
        if setting.name == "laptop":
            page.write((out.parent if args.docs else out) / "results.md", out, list(FIGURES.values()))
    for id, error in errors.items():
        parser.complain(f"run {id} failed: {error}")
    if incomplete:
        parser.complain(f"not drawn, for want of runs: {', '.join(incomplete)}")
    say(f"in {out}: " + ", ".join(file for result in results for file in result["files"]))
    shown = ("name", "verdict", "claims", "files")
    cli.json_line(args, {"figures": [{key: result[key] for key in shown} for result in results]})
    return 1 if errors or incomplete else 0


def named(names: Sequence[str]) -> list[Figure]:
    """The figures that are meant, in their order. Raises ValueError for one that does not exist."""
    if wrong := [name for name in names if name not in (*FIGURES, "all")]:
        raise ValueError(f"there is no figure {wrong[0]!r}; choose from all, {', '.join(FIGURES)}")
    return [figure for name, figure in FIGURES.items() if name in names or "all" in names]


def choose_out(out: Path | None, store: Path, setting: Setting, *, docs: bool) -> Path:
    """The directory for tables and pictures: what is committed is only written when that is asked for."""
    if docs:
        if out or setting.name != "laptop":
            raise ValueError("--docs: is for the laptop's figures in docs/figures; leave out --out and the scale")
        if not (CLONE / "pyproject.toml").exists() or not DOCS.is_dir():
            raise ValueError("--docs: this is no clone of the repository; leave it out")
        return DOCS
    if out and out.resolve() == DOCS.resolve():
        raise ValueError(f"--out: {out} is what the repository tracks; name another directory, or renew it by --docs")
    return out or store / "pictures"


def take_committed(figure: Figure, out: Path) -> None:
    """Copy to `out` the committed tables of a figure that has none there, and what is known of how they were made."""
    if not (out / figure.tables[0]).exists() and (DOCS / figure.tables[0]).exists():
        out.mkdir(parents=True, exist_ok=True)
        for name in (*figure.tables, f"{figure.name}.json"):
            shutil.copy(DOCS / name, out / name)


def dry_run(figures: Sequence[Figure], setting: Setting, store: Path, args: Namespace) -> int:
    """Say what there is to run: of each figure, without what those above it make, and in all."""
    done, seen, table = load_results(store), set[str](), []
    say, paper = cli.say(args.quiet), setting.name == "paper"
    for figure in figures:
        jobs = {id: job for id, job in wanted([figure], setting, Supposed()).items() if id not in seen}
        seen |= set(jobs)
        left = [job for id, job in jobs.items() if id not in done]
        work = sum(flops(job.config) * job.config.steps for job in left)
        line: dict[str, Any] = {"name": figure.name, "runs": len(jobs), "done": len(jobs) - len(left), "flops": work}
        gpu_hours = {"gpu_hours": work / (GPU_FLOPS * UTILISATION) / 3600}
        table.append(line | (gpu_hours if paper else {"cpu_seconds": sum(map(estimate_seconds, left))}))
    total: dict[str, Any] = {"name": "in all"} | {key: sum(line[key] for line in table) for key in list(table[0])[1:]}
    rows = [["", "runs", "done", "FLOPs left", "GPU hours" if paper else "CPU time"]]
    for line in (*table, total):
        cost = f"{line['gpu_hours']:.1f}" if paper else f"{line['cpu_seconds'] / 60:.1f} min"
        rows.append([line["name"], str(line["runs"]), str(line["done"]), f"{line['flops']:.2g}", cost])
    say(text_table(rows, "<>>>>"))
    gpu = f"hours of an {GPU} ({GPU_FLOPS:.3g} FLOP/s at its peak), of which {UTILISATION:.0%} are used"
    hours = total.get("cpu_seconds", 0) / 2 / 3600
    cpu = "a run that several figures need counts for the first; CPU time by timing steps here and now"
    say(gpu if paper else f"{cpu}: two cores take half of it, {hours:.1f} hours")
    cli.json_line(args, {"scale": setting.name, "figures": table, "total": total})
    return 0


def text(result: Row) -> str:
    """The verdicts on a figure, a line a claim."""
    lines = [f"{result['name']}, {result['shows']}: {result['verdict']}"]
    for claim in result["claims"]:
        value, low, high = (amount(claim[key], claim["unit"]) for key in ("effect", "low", "high"))
        interval = "" if claim["low"] in (None, claim["effect"]) else f" [{low}, {high}]"
        asked = claim["criterion"] and f", asked: {claim['criterion']}"
        lines.append(f"  {claim['verdict']:27} {claim['claim']}: {value}{interval} {claim['unit']}".rstrip() + asked)
    return "\n".join(lines)
