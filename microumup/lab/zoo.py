"""The bug zoo: which check catches which mistake. The mistakes are in `mistakes.py`.

Five checks look at a model with a mistake planted in it, each from another side:

    gradcheck   is every gradient the true one, times the predicted constant?
    scale       does every tensor start at the RMS expected of umup without the mistake, within 0.8 … 1.25?
    coord       do activations, and what updates do to them, go with width and depth as they should?
    late        do updates, and weight decay in them, keep their relative size over width throughout a training?
    transfer    is the best η of a short training at width 64 that of width 16, within 2/3 of an octave, and its
                validation loss at most 0.05 nats above that of umup without the mistake?

Late and transfer take minutes and are run when asked for. The table is held against what is known of every mistake.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache, partial
from math import inf, log, nan
from operator import itemgetter
from typing import Any

import numpy as np

from microumup import cli
from microumup.config import ModelConfig, TrainConfig
from microumup.lab import gradcheck, late
from microumup.lab.coordcheck import coordcheck
from microumup.lab.expected import expected_rms
from microumup.lab.mistakes import ZOO, Mistake, planted
from microumup.lab.scales import fresh_loss, measured_rms
from microumup.lab.sweep import Job, run
from microumup.lab.workers import run_all
from microumup.limits import check_least
from microumup.parametrization import SCHEMES


# ---- The checks: each finds something to say about a mistake, or nothing ----
def furthest(off: Sequence[tuple[float, str]]) -> str:
    """Finding of a check: the words on what is furthest off, and of how many. Nothing where nothing is."""
    return f"{max(off, key=itemgetter(0))[1]}, furthest off of {len(off)}" if off else ""


def by_gradcheck(mistake: Mistake) -> str:
    """Finding of gradcheck's three parts."""
    with planted(mistake):
        results = gradcheck.check_ops()
        results += gradcheck.check_model(replace(gradcheck.tiny_config("umup"), layers=1), sample=4)
    kinds = ("error", "error", "1 - cosine")
    failed = [(r.error, r.name.split(" (")[0], kinds[r.part - 1]) for r in results if not r.passed]
    return furthest([(error, f"{name}, {kind} {error:.1g}") for error, name, kind in failed])


def by_scale(mistake: Mistake) -> str:
    """RMS of every tensor of a new model; those to expect are worked out before anything is planted."""
    config = ModelConfig()
    expected = expected_rms(config)
    with planted(mistake):
        measured = measured_rms(fresh_loss(config, 16))
    off = {name: measured[name] / rms for name, rms in expected.items() if not 0.8 <= measured[name] / rms <= 1.25}
    return furthest([(abs(log(x)), f"{name} at {x:.2g} of its RMS") for name, x in off.items()])


def by_coord(mistake: Mistake) -> str:
    """A coordinate check over two widths, with as many heads in both, and one over two depths."""
    config, off = ModelConfig(seq_len=16), []
    with planted(mistake):
        over = [coordcheck(config, widths=(64, 256), heads=4, steps=2), coordcheck(config, depths=(2, 16), steps=2)]
    for axis, r in [(report.axis, r) for report in over for r in report.failed]:
        expected = " … ".join(f"{slope:g}" for slope in dict.fromkeys(r.expected))
        off.append((r.off, f"{r.measure} of {r.tensor} as {axis}^{round(r.slope, 2) + 0:.2f}, not {expected}"))
    return furthest(off)


def by_late(mistake: Mistake) -> str:
    """A late check of independent decay, over two widths."""
    steps = 64
    config = TrainConfig(
        seq_len=late.SEQ_LEN, batch_size=late.BATCH_SIZE, steps=steps, weight_decay=late.DECAY_IN_ALL / steps,
        lr=late.PART_OF_LR * SCHEMES["umup"].typical_lr,
    )  # fmt: skip
    with planted(mistake):
        wrong = late.failed(late.late(config, widths=(32, 128)).rows["independent"])
    found = [(r.off, f"{r.measure} of {r.tensor} as width^{r.slope:.2f}, {r.step} % into the run") for r in wrong]
    return furthest(found)


# Training on the shipped text, short and narrow. Octaves are powers of 2: η = 2^octave. A parabola through five of
# them is not moved much by a training that had luck: umup's bottom then moves by 0.1 octaves from seed to seed.
WIDTHS = (16, 64)
STEPS, SEQ_LEN = 256, 32
MOST_OCTAVES, MOST_NATS = 2 / 3, 0.05


def valid_loss(width: int, octave: int) -> float:
    """Validation loss of a model trained at η = 2^octave; infinite when it diverged."""
    loss = run(Job(TrainConfig(width=width, seq_len=SEQ_LEN, steps=STEPS, lr=2.0**octave)))["loss_valid"]
    return inf if loss is None else float(loss)


def best(loss_at: Callable[[int], float], start: int = 1) -> tuple[float, float]:
    """Octave and loss at the bottom of the valley that `start` lies in. Infinite where every training diverges."""
    loss_at, at = cache(loss_at), start
    while (lower := min((at, at - 1, at + 1), key=loss_at)) != at:
        at = lower
    if loss_at(at) == inf:
        return nan, inf
    octaves = range(at - 2, at + 3)
    # a wall, where training breaks down, is no part of the valley
    a, b, c = np.polyfit(octaves, [min(loss_at(octave), loss_at(at) + 0.4) for octave in octaves], 2)
    return float(-b / (2 * a)), float(c - b * b / (4 * a))


def by_transfer(found: Sequence[tuple[float, float]], healthy: Sequence[tuple[float, float]]) -> str:
    """Finding from what `best` says at both widths, with the mistake and without."""
    (narrow, _), (wide, loss), healthy_loss = *found, healthy[-1][1]
    findings = []
    if not abs(wide - narrow) <= MOST_OCTAVES:
        findings.append(f"best η 2^{narrow:.1f}, then 2^{wide:.1f}")
    if not loss <= healthy_loss + MOST_NATS:
        findings.append(f"{loss - healthy_loss:.2f} nats worse")
    return ", ".join(findings)


# ---- The command ----
CHECKS = {"gradcheck": by_gradcheck, "scale": by_scale, "coord": by_coord}  # quick ones
LOOKS = CHECKS | {"late": by_late}
ALL_CHECKS = (*LOOKS, "transfer")
Look = tuple[str, str, int]  # a mistake, a check, and the width where it is transfer
Findings = dict[str, dict[str, str]]  # by mistake and check; empty where the check did not catch it


def examine(names: Collection[str], checks: Collection[str], *, workers: int = 0, progress: bool = False) -> Findings:
    """Findings of each check in each mistake. In this process, or in as many others as there are `workers`."""
    jobs: list[Look] = [(name, check, 0) for check in checks if check in LOOKS for name in names]
    if "transfer" in checks:
        jobs += [(name, "transfer", width) for width in reversed(WIDTHS) for name in dict.fromkeys(("nothing", *names))]
    found = dict(zip(jobs, run_all(look, jobs, workers, progress=progress, unit="look"), strict=True))

    def finding(name: str, check: str) -> str:
        if check in LOOKS:
            return str(found[name, check, 0])
        return by_transfer(*([found[of, check, width] for width in WIDTHS] for of in (name, "nothing")))

    return {name: {check: finding(name, check) for check in checks} for name in names}


def look(job: Look) -> Any:
    """A finding, or what `best` says."""
    name, check, width = job
    if check in LOOKS:
        return LOOKS[check](ZOO[name])
    with planted(ZOO[name]):
        return best(partial(valid_loss, width))


def unexpected(findings: Findings) -> list[str]:
    """Findings that are not what the mistake says of itself, a line each."""
    return [
        f"{name} is {'' if text else 'not '}caught by {check}"
        for name, found in findings.items()
        for check, text in found.items()
        if bool(text) != (check in ZOO[name].caught_by.split())
    ]


def table(findings: Findings) -> str:
    """Mistakes by checks, as Markdown; then the mistakes that were not caught, and what was found in the others."""
    checks = list(next(iter(findings.values())))
    rows = [["mistake", "what it does", "what is right", *checks]]
    for name, found in findings.items():
        rows.append([name, ZOO[name].what, ZOO[name].rule, *("caught" if text else "-" for text in found.values())])
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * size for size in sizes])
    lines = ["| " + " | ".join(map(str.ljust, cells, sizes)) + " |" for cells in rows]
    caught = {name: "; ".join(f"{k}: {text}" for k, text in found.items() if text) for name, found in findings.items()}
    if missed := [name for name, texts in caught.items() if name != "nothing" and not texts]:
        lines += ["", f"Not caught by any of {', '.join(checks)}:", ""]
        lines += [f"- {name}: {ZOO[name].seen_by or 'by ' + ZOO[name].caught_by}" for name in missed]
    if any(caught.values()):
        lines += ["", "Found:", "", *(f"- {name}: {texts}" for name, texts in caught.items() if texts)]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command `zoo`: 0 when the checks catch what they should and no more, 1 when not, 2 on a bad argument."""
    parser = cli.Parser("zoo", __doc__ or "", operands="[NAME …]", examples=(
        "  microumup zoo                                      all mistakes, in half a minute\n"
        "  microumup zoo --list                               what they are called\n"
        "  microumup zoo hidden-lr-1 rope-sign --checks all   two of them, in every way"))  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="NAME", help="mistakes (default: all)")
    parser.add_argument("--list", action="store_true", help="print what there is, and check nothing")
    parser.add_argument("--checks", default=",".join(CHECKS), metavar="NAME,…", help="gradcheck, scale, coord, "
                        "late, transfer, or all (default: the first three)")  # fmt: skip
    cli.shared(parser, "quiet", workers="; 0: just this one", json="passed, what was found")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        checks = list(ALL_CHECKS) if args.checks == "all" else args.checks.split(",")
        for kind, given, known in (("--checks", checks, ALL_CHECKS), ("NAME", args.names, ZOO)):
            if wrong := [name for name in given if name not in known]:
                raise ValueError(f"{kind}: {wrong[0]!r} is unknown; choose from {', '.join(known)}")
        check_least(args, workers=0)
    say = cli.say(args.quiet)
    if args.list:
        say("\n".join(f"{name:20}{mistake.what}" for name, mistake in ZOO.items()))
        return 0
    findings = examine(args.names or ZOO, checks, workers=args.workers, progress=not args.quiet)
    say(table(findings))
    if wrong := unexpected(findings):
        parser.complain(f"not as expected: {'; '.join(wrong)}")
    cli.json_line(args, {"passed": not wrong, "found": findings})
    return 1 if wrong else 0
