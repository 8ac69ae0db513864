"""FP8 by a plain cast: what it costs u-µP, and what it does to µP (the paper's Figs. 1, right, and 7, on a laptop).

Each scheme is trained in float32 and with every linear's x, w and dy cast to FP8, from the same seeds. Why the two
differ is in the last column: at initialization µP's gradients dy are so small that E4M3 turns them into zeros.
"""

import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from microumup import cli
from microumup.config import TrainConfig, check_least
from microumup.data import load_corpus
from microumup.diverged import Diverged
from microumup.lab.workers import run_all
from microumup.ranges import linear_ranges
from microumup.trainer import train

RECIPE: dict[str, Any] = {
    "width": 64,
    "layers": 2,
    "head_dim": 16,
    "seq_len": 32,
    "batch_size": 16,
    "steps": 512,
    "warmup": 0.25,
}
SCHEMES: dict[str, dict[str, Any]] = {
    "umup": {"scheme": "umup", "lr": 2**0.5},
    "mup": {"scheme": "mup", "lr": 2**-6, "base_width": 32, "base_layers": 2},
}
ALLOWED_GAP, RUINED_GAP = 0.04, 1.0  # nats: u-µP ends at most the first above its float32 loss, µP at least the second


class Run(NamedTuple):
    """One training: its final loss, None if it diverged, and the share of all dy that a cast would zero at init."""

    scheme: str
    fp8: str
    seed: int
    loss: float | None
    flushed: float


def run(job: tuple[str, str, int]) -> Run:
    """Train a scheme by RECIPE, in float32 (`none`) or with the casts of `fp8`, from a seed."""
    scheme, fp8, seed = job
    config = TrainConfig(**RECIPE, **SCHEMES[scheme], fp8=fp8, seed=seed)
    corpus = load_corpus(config.corpus, seq_len=config.seq_len)
    flushed: list[float] = []

    def watch(step: int, loss: Any) -> None:
        dy = {name: r for name, r in linear_ranges(loss).items() if name.endswith(".dy")}
        flushed.append(sum(r.underflow * r.size for r in dy.values()) / sum(r.size for r in dy.values()))

    try:
        loss = train(config, corpus, watch=watch, watch_every=config.steps)[1]["loss_final"]
    except Diverged:
        loss = None
    return Run(scheme, fp8, seed, loss, flushed[0])


def gaps(runs: Sequence[Run], scheme: str) -> list[float]:
    """Loss in FP8 minus loss in float32, seed by seed, in nats; infinite where FP8 diverged."""
    losses = {(r.fp8, r.seed): np.inf if r.loss is None else r.loss for r in runs if r.scheme == scheme}
    return [losses["fp8", seed] - losses["none", seed] for fp8, seed in sorted(losses) if fp8 == "fp8"]


def main(argv: list[str] | None = None) -> int:
    """The command `fp8-gap`."""
    parser = cli.Parser("fp8-gap", f"{__doc__}\nEnds with 0 when u-µP's gap is at most {ALLOWED_GAP} nats and µP's at "
                        f"least {RUINED_GAP:g}, for every seed; else with 1.")  # fmt: skip
    parser.add_argument("--seeds", type=cli.whole, default=3, metavar="N", help="seeds 0 … N - 1 (default: 3)")
    cores = os.cpu_count() or 1
    parser.add_argument("--workers", type=cli.whole, default=cores, metavar="N", help=f"processes (default: {cores})")
    parser.add_argument("--quiet", action="store_true", help="print no table")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON: passed, gaps, flushed, runs")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        check_least(args, seeds=1, workers=1)
    jobs = [(scheme, fp8, seed) for scheme in SCHEMES for seed in range(args.seeds) for fp8 in ("none", "fp8")]
    runs = run_all(run, jobs, args.workers, progress=not args.quiet, unit="run")
    found = {scheme: gaps(runs, scheme) for scheme in SCHEMES}
    # of the float32 runs: in FP8 the gradients behind a flushed one are zeros before any cast, and would not count
    flushed = {scheme: float(np.mean([r.flushed for r in runs if r[:2] == (scheme, "none")])) for scheme in SCHEMES}
    passed = max(found["umup"]) <= ALLOWED_GAP and min(found["mup"]) >= RUINED_GAP
    say = cli.say(args.quiet)
    say(f"{'':6}{'float32':>24}{'FP8':>24}{'FP8 - float32':>24}{'dy flushed to 0 at init':>26}")
    for scheme in SCHEMES:
        plain, cast = ([r.loss for r in runs if r[:2] == (scheme, fp8)] for fp8 in ("none", "fp8"))
        columns = [[f"{loss:.3f}" if loss else "diverged" for loss in losses] for losses in (plain, cast)]
        columns.append([f"{gap:+.3f}" for gap in found[scheme]])
        say(f"{scheme:6}" + "".join(f"{', '.join(column):>24}" for column in columns) + f"{flushed[scheme]:>26.4f}")
    verdict = "holds" if passed else "does not hold"
    say(f"\n{verdict}: u-µP within {ALLOWED_GAP} nats of its float32 loss, µP at least {RUINED_GAP:g} above its own")
    if args.json:
        finite = {scheme: [gap if np.isfinite(gap) else None for gap in values] for scheme, values in found.items()}
        rows = [r._asdict() for r in runs]
        print(json.dumps({"passed": passed, "gaps": finite, "flushed": flushed, "runs": rows}))
    return 0 if passed else 1


if __name__ == "__main__":
    cli.run(main)
