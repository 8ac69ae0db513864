"""FP8 by a plain cast: what it costs u-µP, and what it does to µP, with the runs and criteria of Fig. 1 (right).

Each scheme is trained in float32 and with every linear's x, w and dy cast to FP8, from the same seeds. Why the two
differ is in the last column: at initialization µP's gradients dy are so small that E4M3 turns them into zeros.
"""

from pathlib import Path

from microumup import cli
from microumup.lab.figures.figure import data_of
from microumup.lab.figures.fp8 import FIG1_RIGHT, MUP_FAILS, PLAIN, UMUP_TRAINS_LONG, pairs, show_gap
from microumup.lab.figures.rows import Row, loss_of
from microumup.lab.figures.settings import LAPTOP
from microumup.lab.figures.store import collect, wanted
from microumup.lab.sweep import load_results
from microumup.lab.tables import text_table
from microumup.limits import check_least

ALLOWED, RUINED = UMUP_TRAINS_LONG.high, MUP_FAILS.low
STORE = Path("runs") / "figures"  # that of the command figures: what one has run the other need not


def main(argv: list[str] | None = None) -> int:
    """The command `fp8-gap`."""
    ends = f"Ends with 0 when u-µP's gap is at most {ALLOWED} nats and µP's at least {RUINED:g} for every seed, else 1."
    parser = cli.Parser("fp8-gap", f"{__doc__}\n{ends}", examples="  microumup fp8-gap --seeds 1    in half a minute")
    cli.shared(parser, "workers", "quiet", seeds="seeds 0 … N - 1", json="passed, gaps, flushed, runs")
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    setting = LAPTOP._replace(seeds_of={"casts": args.seeds})
    with cli.bad_input(parser):
        check_least(args, seeds=1, workers=1)
        left = wanted([FIG1_RIGHT], setting, {}).keys() - load_results(STORE).keys()
        size = f"width {setting.fp8_widths[-1]}, {setting.usual['steps']} steps, in {args.workers} processes"
        work = f"training {len(left)} models of {size}; kept" if left else "all models are trained, and kept"
        say(f"{work} in {STORE}", flush=True)  # it takes a minute or more, and without a terminal no bar says so
        known, errors = collect([FIG1_RIGHT], setting, STORE, workers=args.workers, progress=not args.quiet)
    for id, error in errors.items():
        parser.complain(f"run {id} failed: {error}")
    if errors:
        return 1
    rows = data_of(FIG1_RIGHT, setting, known).runs
    found = {name: pairs(rows, experiment) for name, experiment in zip(("umup", "mup"), PLAIN, strict=True)}
    gaps = {name: [loss_of(cast) - loss_of(plain) for plain, cast in runs] for name, runs in found.items()}
    # of the float32 runs: in FP8 the gradients behind a flushed one are zeros before any cast, and would not count
    flushed = {name: sum(plain["flushed"] for plain, _ in runs) / len(runs) for name, runs in found.items()}
    passed = max(gaps["umup"]) <= ALLOWED and min(gaps["mup"]) >= RUINED
    say(table(found, gaps, flushed))
    verdict = "holds" if passed else "does not hold"
    say(f"\n{verdict}: u-µP within {ALLOWED} nats of its float32 loss, µP at least {RUINED:g} above its own")
    columns = ("fp8", "seed", "loss", "flushed")  # loss: None if it diverged
    each = [(name, run) for name, runs in found.items() for pair in runs for run in pair]
    listed = [{"scheme": name} | {column: run[column] for column in columns} for name, run in each]
    cli.json_line(args, {"passed": passed, "gaps": gaps, "flushed": flushed, "runs": listed})
    return 0 if passed else 1


def table(found: dict[str, list[tuple[Row, Row]]], gaps: dict[str, list[float]], flushed: dict[str, float]) -> str:
    """The losses and gaps of every seed, a line a scheme; of a ruined one no digits that another machine would not
    find."""
    lines = [["", "float32", "FP8", "FP8 - float32", "dy flushed to 0 at init"]]
    for name, runs in found.items():
        cells = []
        for pair, gap in zip(runs, gaps[name], strict=True):
            losses = zip((run["loss"] for run in pair), (3, 3 if gap < RUINED else 0), strict=True)
            cells.append([*("diverged" if x is None else f"{x:.{digits}f}" for x, digits in losses), show_gap(gap)])
        lines.append([name, *map(", ".join, zip(*cells, strict=True)), f"{flushed[name]:.4f}"])
    return text_table(lines, "<>>>>", gap="   ")
