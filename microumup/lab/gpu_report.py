"""A page about a GPU, to paste into an issue: does all of this run there, is it right, and how fast is it?

    device    versions, and the device
    tests     all tests marked gpu, in a checkout with pytest
    ops       every op on the device, plain and by kernels, against NumPy
    vectors   the golden vectors, through both
    losses    20 losses of every scheme, on the CPU and on the device
    fp8       the bits of a million numbers rounded to each format, subnormal ones too
    default   the default run
    paper     50 steps of the paper's preset, on random tokens where its corpus is not there
    speed     a step of both, plain and by kernels, against the ledger's estimate

Each part runs in a process of its own, and may take its time: one that crashes or hangs is a line of the page. The page
is written anew behind every part, and never over another file. Half an hour is plenty.
"""

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from microumup import __version__, cli, files
from microumup.backend import choose_device
from microumup.lab import gpu_parts
from microumup.lab.gpu_parts import PARTS, fenced, table
from microumup.limits import check_least

LAST_LINES = 15  # of what a part that crashed has said


class Outcome(NamedTuple):
    """What became of a part: passed, failed, crashed, or took too long."""

    name: str
    verdict: str
    seconds: float
    text: str
    numbers: dict[str, Any]


def command(name: str) -> list[str]:
    """The command that runs one part."""
    return [sys.executable, "-X", "faulthandler", "-m", "microumup", "gpu-report", "--run-part", name]


def spawn(name: str, limit: float) -> Outcome:
    """Run a part in a process of its own, and whatever it starts with it; after `limit` seconds they all end."""
    began = perf_counter()
    process = subprocess.Popen(
        command(name), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        with suppress(OSError, AttributeError, subprocess.TimeoutExpired):
            process.send_signal(signal.SIGUSR1)  # it says where it is
            process.wait(1)
        _end(process)
        out, error = process.communicate()
        return Outcome(name, "took too long", perf_counter() - began, _last(out, error), {})
    except BaseException:  # Ctrl-C: what was started must not outlive us
        _end(process)
        raise
    seconds = perf_counter() - began
    try:
        found = json.loads(out.rstrip().rpartition("\n")[2])
        verdict = "passed" if found["passed"] and process.returncode == 0 else "failed"
        return Outcome(name, verdict, seconds, found["text"], found["numbers"])
    except (ValueError, TypeError, KeyError):
        why = f"Ended with {process.returncode}.\n\n{_last(out, error)}"
        return Outcome(name, "crashed", seconds, why, {})


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and all of its group."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _last(*texts: str) -> str:
    """The last lines of what was printed, its home directory left out: the page is for others."""
    lines = "\n".join(texts).replace(str(Path.home()), "~").strip().splitlines()
    return fenced(lines[-LAST_LINES:] or ["It said nothing."])


# ---- The page ----
def free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, … that does not exist."""
    numbered = (path.with_stem(f"{path.stem}-{i}") for i in count(2))
    return path if not os.path.lexists(path) else next(p for p in numbered if not os.path.lexists(p))


def page(outcomes: Sequence[Outcome], asked: Sequence[str]) -> str:
    """The report in Markdown, of the parts that are done."""
    facts = next((outcome.numbers for outcome in outcomes if outcome.name == "device"), {})
    passed = sum(outcome.verdict == "passed" for outcome in outcomes)
    rows = [(o.name, PARTS[o.name].what, o.verdict, f"{o.seconds:.0f} s") for o in outcomes]
    rows += [(name, PARTS[name].what, "not run", "") for name in asked[len(outcomes) :]]
    lines = [
        f"# microumup {__version__} on {facts.get('device', 'a GPU')}",
        f"Made by `microumup gpu-report` on {datetime.now(UTC):%Y-%m-%d}. {passed} of {len(asked)} parts passed.",
        table(("part", "", "result", "time"), *rows),
    ]
    for o in outcomes:
        lines += [f"## {o.name}: {PARTS[o.name].what}", *[f"**{o.verdict}**"] * (o.verdict != "passed"), o.text]
    return "\n\n".join(lines) + "\n"


def report(asked: Sequence[str], out: Path, limit: int, say: Callable[..., None]) -> list[Outcome]:
    """What became of the parts that were asked for; the page is at `out`, whole after each of them."""
    outcomes: list[Outcome] = []
    for name in asked:
        say(f"{name}: {PARTS[name].what} …", flush=True)
        outcomes.append(o := spawn(name, limit or PARTS[name].limit))
        say(f"{name}: {o.verdict}, {o.seconds:.0f} s", flush=True)
        files.write_atomically(out, lambda temporary: temporary.write_bytes(page(outcomes, asked).encode()))
    return outcomes


# ---- The command ----
def main(argv: list[str] | None = None) -> int:
    """The command `gpu-report`."""
    parser = cli.Parser(
        "gpu-report", f"{__doc__}\nEnds with 1 when a part did not pass, with 2 where there is no GPU.",
        examples="  microumup gpu-report\n  microumup gpu-report --parts device ops fp8 --out ops.md",
    )  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME",
                        help=f"which to run: {', '.join(PARTS)} (default: all)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("gpu-report.md"), metavar="FILE",
                        help="the page; the name gets a number if there is such a file (%(default)s)")  # fmt: skip
    parser.add_argument("--limit", type=cli.whole, default=0, metavar="N",
                        help="seconds that a part may take (default: its own, 1 to 15 minutes)")  # fmt: skip
    parser.add_argument("--run-part", choices=PARTS, help=argparse.SUPPRESS)  # in this process: what `spawn` starts
    cli.shared(parser, "quiet", json="the verdict and the numbers of each part, and where the page is")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        check_least(args, limit=0)
        try:
            choose_device("gpu")
        except ValueError as error:  # whose option, and way out, are those of other commands
            problem = str(error).removeprefix("--device gpu: ").removesuffix(", or use --device cpu")
            raise ValueError(f"no GPU to report of: {problem}") from None
    if args.run_part:
        if hasattr(faulthandler, "register"):
            faulthandler.register(signal.SIGUSR1, file=2)
        found = gpu_parts.run(args.run_part)
        print(files.to_json(found._asdict()))
        return 0
    say = cli.say(args.quiet)
    with cli.bad_input(parser):
        if not args.out.parent.is_dir():
            raise ValueError(f"--out: there is no folder {args.out.parent}; make it, or name another file")
        out, asked = free(args.out), list(dict.fromkeys(args.parts))
        outcomes = report(asked, out, args.limit, say)
    passed = all(outcome.verdict == "passed" for outcome in outcomes)
    say(f"\n{page(outcomes, asked)}\nthe page: {out}; please paste it into an issue")
    parts = {o.name: {"verdict": o.verdict, "seconds": round(o.seconds, 1), "numbers": o.numbers} for o in outcomes}
    cli.json_line(args, {"page": str(out), "passed": passed, "parts": parts})
    return 0 if passed else 1
