"""What FP8 costs in time: rounding against ml_dtypes' casts, and a training step with it against one without.

The two sides of a ratio take turns in one process, and the ratio is the median over the turns: a machine whose speed
drifts slows both. One BLAS thread, unless OPENBLAS_NUM_THREADS says otherwise.
"""

import json
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from time import perf_counter
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tqdm import tqdm

from microumup import cli
from microumup.data import ByteTokenizer, Corpus
from microumup.fp8 import E4M3, E5M2, Format, quantize
from microumup.model import check_least
from microumup.train import TrainConfig, Trainer


class Comparison(NamedTuple):
    """Median times in milliseconds, and the median of the ratios ours/theirs with its quartiles."""

    name: str
    ours_ms: float
    theirs_ms: float
    ratio: float
    low: float
    high: float


def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> Comparison:
    """Run the two in turn, `rounds` times after one round of warm-up."""
    times = [(_time(ours), _time(theirs)) for _ in range(rounds + 1)][1:]
    ratios = [a / b for a, b in times]
    low, _, high = quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    a, b = (1000 * median(side) for side in zip(*times, strict=True))
    return Comparison(name, a, b, median(ratios), low, high)


def _time(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def bench_quantize(fmt: Format, dtype: Any, rounds: int) -> Comparison:
    """`quantize` against clip and ml_dtypes' cast there and back, on 2^20 standard normal numbers."""
    x = np.random.default_rng(0).standard_normal(2**20, dtype=np.float32)

    def round_trip() -> Any:
        return np.clip(x, -fmt.max, fmt.max).astype(dtype).astype(np.float32)

    return compare(f"quantize to {fmt.name}, ml_dtypes", lambda: quantize(x, fmt), round_trip, rounds)


def bench_step(shape: dict[str, Any], rounds: int) -> Comparison:
    """A training step with the recipe `fp8` against one in float32."""
    tokens = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    corpus = Corpus("random bytes", tokens, tokens, ByteTokenizer())
    fp8, plain = (Trainer(TrainConfig(**shape, fp8=recipe), corpus) for recipe in ("fp8", "none"))
    name = "FP8 step, float32: " + ", ".join(f"{key} {value}" for key, value in shape.items())
    return compare(name, lambda: fp8.update(0), lambda: plain.update(0), rounds)


SHAPES: Sequence[dict[str, Any]] = (
    {"width": 64, "layers": 2, "head_dim": 16, "seq_len": 64, "batch_size": 16},
    {"width": 256, "layers": 2, "head_dim": 16, "seq_len": 32, "batch_size": 16},
    {"width": 256, "layers": 4, "head_dim": 64, "seq_len": 256, "batch_size": 8},
)


def main(argv: list[str] | None = None) -> int:
    """The command `bench`."""
    parser = cli.Parser("bench", __doc__ or "")
    parser.add_argument("--rounds", type=cli.whole, default=15, metavar="N", help="turns to take the median of (15)")
    parser.add_argument("--quiet", action="store_true", help="print no table")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON, a list of all comparisons")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        check_least(args, rounds=1)
    jobs: list[Callable[[], Comparison]] = [
        lambda: bench_quantize(E4M3, ml_dtypes.float8_e4m3fn, args.rounds),
        lambda: bench_quantize(E5M2, ml_dtypes.float8_e5m2, args.rounds),
        *(lambda shape=shape: bench_step(shape, args.rounds) for shape in SHAPES),
    ]
    found = [job() for job in tqdm(jobs, disable=True if args.quiet else None)]
    say = cli.say(args.quiet)
    say(f"{'':88}{'ours':>10}{'theirs':>10}{'ratio':>8}  quartiles")
    for c in found:
        say(f"{c.name:88}{c.ours_ms:7.2f} ms{c.theirs_ms:7.2f} ms{c.ratio:8.3f}  {c.low:.3f} to {c.high:.3f}")
    if args.json:
        print(json.dumps({"comparisons": [c._asdict() for c in found]}))
    return 0


if __name__ == "__main__":
    cli.run(main)
