"""Speed of a training step: against PyTorch and unit-scaling, and against its own matrix products alone.

All programs train the same Llama on the same random batch from the same weights. First their losses and gradients are
compared: without agreement there is no ratio. Then they take turns in one process, and a ratio is the median over the
turns, so that a machine whose speed drifts slows all alike. PyTorch's AdamW runs both ways, plain and fused; a ratio is
to the faster.

    A   4 layers of width  64, sequences of 128, 16 in a batch, 256 tokens
    B   width 128
    C   width 256, sequences of 256, 8 in a batch
    D   width 256, sequences of 256, 4 in a batch, 32,000 tokens
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

import ml_dtypes
import numpy as np

from microumup import cli, fused
from microumup.backend import Array
from microumup.config import PRESETS, TrainConfig
from microumup.corpora import BYTES, ByteTokenizer
from microumup.data import Corpus, batch
from microumup.fp8 import E4M3, E5M2, Format, quantize
from microumup.lab import ledger, roofline
from microumup.lab.roofline import GPUS
from microumup.lab.tables import text_table
from microumup.lab.twins import TWINS, Twin, load_peer
from microumup.lab.workers import bar, run_all
from microumup.limits import check_least
from microumup.model import init_params
from microumup.trainer import Trainer

Program = Callable[[], Any]
Shape = dict[str, Any]

CONFIGS: dict[str, Shape] = {
    "A": {"width": 64, "layers": 4, "head_dim": 16, "seq_len": 128, "batch_size": 16},
    "B": {"width": 128, "layers": 4, "head_dim": 32, "seq_len": 128, "batch_size": 16},
    "C": {"width": 256, "layers": 4, "head_dim": 64, "seq_len": 256, "batch_size": 8},
    "D": {"width": 256, "layers": 4, "head_dim": 64, "seq_len": 256, "batch_size": 4, "vocab_size": 32_000},
}
TINY: Shape = {"width": 16, "layers": 1, "head_dim": 16, "seq_len": 16, "batch_size": 16}
WIDTHS = (32, 64, 128, 256, 512)
OURS = "umup"  # the scheme whose step is held against its own matrix products
FUSED = ", fused AdamW"
PRODUCTS = "its matrix products alone"
AGREEMENT = 1e-4  # of float32 losses and gradients over 4 layers; they agree to some 1e-6
FP8_SHAPES: Sequence[Shape] = (
    {"width": 64, "layers": 2, "head_dim": 16, "seq_len": 64, "batch_size": 16},
    {"width": 256, "layers": 2, "head_dim": 16, "seq_len": 32, "batch_size": 16},
    CONFIGS["C"],
)


# ---- Programs: each a function that takes a whole training step on one and the same batch ----
def new_program(name: str, shape: Shape, threads: int) -> Program:
    """Our step in the scheme `name`, or that of the peer `name`, whose AdamW is fused if FUSED stands behind it."""
    peer = name.removesuffix(FUSED)
    if peer in TWINS:
        return new_twin(peer, shape, threads, fused=name != peer).step
    return partial(new_trainer(shape, threads, scheme=name).update, 0)


def new_trainer(shape: Shape, threads: int, **options: Any) -> Trainer:
    """A Trainer of `shape` on random tokens."""
    config = TrainConfig(**shape, threads=threads, **options)
    tokens = random_tokens(config)
    return Trainer(config, Corpus("random tokens", tokens, tokens, ByteTokenizer()))


def new_twin(peer: str, shape: Shape, threads: int, *, fused: bool = False) -> Twin:
    """The peer, with the weights and the batch of our step."""
    c = TrainConfig(**shape, scheme=TWINS[peer].scheme)
    first = batch(random_tokens(c), seq_len=c.seq_len, batch_size=c.batch_size, seed=c.seed, step=0)
    return TWINS[peer](c, init_params(c, c.seed), first, fused=fused, threads=threads)


def random_tokens(config: TrainConfig) -> Array:
    """The text that all programs train on."""
    dtype = np.uint8 if config.vocab_size <= BYTES else np.uint16
    return np.random.default_rng(0).integers(0, config.vocab_size, 2**17, dtype=dtype)


def our_loss_and_gradients(shape: Shape, threads: int, scheme: str) -> tuple[float, dict[str, Array]]:
    """Loss and true gradient of each weight, as a training step makes them of the batch on whatever path it goes.

    A step of SGD takes s · η times the gradient from a weight. At so large an η nothing is left beside it.
    """
    t = new_trainer(shape, threads, scheme=scheme, optimizer="sgd", lr=2.0**40, weight_decay=0.0, steps=1, warmup=1.0)
    before = {name: w.copy() for name, w in t.params.items()}
    loss, _, s = t.update(0)
    return loss, {name: (w - t.params[name]) / (s * t.config.eta) for name, w in before.items()}


def disagreement(ours: tuple[float, dict[str, Array]], theirs: tuple[float, dict[str, Array]]) -> tuple[str, float]:
    """Name of what differs most, the loss or the gradient of a weight, and by how much of its size."""
    pairs: dict[str, tuple[Any, Any]] = {"the loss": (ours[0], theirs[0])}
    pairs |= {f"the gradient of {name}": (ours[1][name], gradient) for name, gradient in theirs[1].items()}
    off = {what: float(np.linalg.norm(a - b) / np.linalg.norm(b)) for what, (a, b) in pairs.items()}
    return max(off.items(), key=lambda found: np.inf if np.isnan(found[1]) else found[1])


# ---- Time and memory ----
def take_turns(
    programs: dict[str, Program], rounds: int, *, progress: bool = False, what: str = ""
) -> dict[str, Array]:
    """Seconds of each program in each of `rounds` turns, after one of warm-up. Every other turn goes backwards."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in bar(range(rounds + 1), progress=progress, desc=what):
        for name in list(programs)[:: 1 if turn % 2 else -1]:
            start = perf_counter()
            programs[name]()
            times[name].append(perf_counter() - start)
    return {name: np.array(seconds[1:]) for name, seconds in times.items()}


def median_ms(times: dict[str, Array]) -> dict[str, float]:
    """Milliseconds of each program, the median over its turns."""
    return {name: 1000 * float(np.median(seconds)) for name, seconds in times.items()}


def ratio(ours: Array, theirs: Array) -> tuple[float, float, float]:
    """Ratio of two programs' times: the median and both quartiles of the ratios turn by turn."""
    of_turns = (ours / theirs).tolist()
    low, middle, high = quantiles(of_turns, n=4) if len(of_turns) > 1 else of_turns * 3
    return middle, low, high


def peak_growth(program: str, shape: Shape, threads: int) -> float | None:
    """MiB that three steps of a program need at most, beyond what its own process has when all is imported; None where
    there is no /proc, that is elsewhere than on Linux."""
    return run_all(partial(_grow, program, shape), [threads], 1)[0]


def _grow(program: str, shape: Shape, threads: int) -> float | None:
    if not Path("/proc/self/status").exists():
        return None
    new_program(program, TINY, threads)()  # what is only imported by a step
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of importing is not that of a step
    before = _kib("VmRSS")
    step = new_program(program, shape, threads)
    for _ in range(3):
        step()
    return (_kib("VmHWM") - before) / 1024


def _kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key)))


# ---- What is measured, as `--json` puts it out ----
class Disagreement(Exception):
    """A peer computes something else than we do."""


def check(peer: str, shape: Shape, threads: int) -> float:
    """Largest difference of a peer's loss and gradients from ours. Raises Disagreement beyond AGREEMENT."""
    ours = our_loss_and_gradients(shape, threads, TWINS[peer].scheme)
    what, size = disagreement(ours, new_twin(peer, shape, threads).loss_and_gradients())
    if not size <= AGREEMENT:
        raise Disagreement(f"{peer} and we do not compute the same: {what} differs by {size:.1e} of it")
    return size


def bench(name: str, peers: Sequence[str], threads: int, rounds: int, *, progress: bool) -> dict[str, Any]:
    """A config against peers and its own products. Raises Disagreement where a peer computes something else."""
    shape = CONFIGS[name]
    schemes = list(dict.fromkeys([OURS, *(TWINS[peer].scheme for peer in peers)]))
    checked = bar(peers, progress=progress, desc=f"config {name}, agreement")
    agreement = {peer: check(peer, shape, threads) for peer in checked}
    calls = ledger.count_step(lambda: new_program(OURS, shape, threads))
    names = [*schemes, *(peer + adamw for peer in peers for adamw in ("", FUSED))]
    programs = {program: new_program(program, shape, threads) for program in names}
    programs[PRODUCTS] = ledger.products_alone(calls)
    times = take_turns(programs, rounds, progress=progress, what=f"config {name}, time")

    step_ms = median_ms(times)
    fastest = {peer: min((peer, peer + FUSED), key=step_ms.__getitem__) for peer in peers}
    ratios = {peer: ratio(times[TWINS[peer].scheme], times[fastest[peer]]) for peer in peers}
    gemm_ratio, *gemm_spread = ratio(times[OURS], times[PRODUCTS])
    measured = bar([*schemes, *fastest.values()], progress=progress, desc=f"config {name}, memory")
    return {
        "config": name, "threads": threads, "rounds": rounds, "agreement": agreement, "step_ms": step_ms,
        "fastest": fastest,
        "ratio_to": {peer: middle for peer, (middle, *_) in ratios.items()},
        "ratio_to_spread": {peer: quartiles for peer, (_, *quartiles) in ratios.items()},
        "umup_over_sp": ratio(times["umup"], times["sp"])[0] if "sp" in times else None,
        "gemm_ratio": gemm_ratio, "gemm_ratio_spread": gemm_spread, "gemm_share": 1 / gemm_ratio,
        "gemm_gflops": sum(call.gemm_flops for call in calls) / step_ms[PRODUCTS] / 1e6,
        "peak_growth_mib": {program: peak_growth(program, shape, threads) for program in measured},
    }  # fmt: skip


def by_width(threads: int, rounds: int, *, progress: bool) -> dict[str, float]:
    """Milliseconds of our step at WIDTHS; all else is config A's."""
    programs = {str(width): new_program(OURS, CONFIGS["A"] | {"width": width}, threads) for width in WIDTHS}
    return median_ms(take_turns(programs, rounds, progress=progress, what="widths"))


def by_pair(name: str, threads: int, rounds: int, *, progress: bool) -> dict[str, float]:
    """Share of a step that each pair of `fused.py` gains: the readable pair's step over ours, less 1; by op."""
    programs: dict[str, Program] = {}
    for op in (None, *fused.KERNELS):
        trainer = new_trainer(CONFIGS[name], threads)
        trainer.kernels = {other: pair for other, pair in fused.KERNELS.items() if other is not op}
        programs[op.__name__ if op else ""] = partial(trainer.update, 0)
    times = take_turns(programs, rounds, progress=progress, what=f"config {name}, pairs")
    return {op: ratio(seconds, times[""])[0] - 1 for op, seconds in times.items() if op}


def count(name: str) -> dict[str, Any]:
    """The ledger of a config's step, on one thread."""
    new_step = partial(new_program, OURS, CONFIGS[name], 1)
    return {"rows": ledger.totals(ledger.count_step(new_step)), "memory": ledger.memory(new_step)}


def compare(name: str, ours: Program, theirs: Program, rounds: int) -> dict[str, Any]:
    """Median times when the two take turns, and their ratio with its quartiles."""
    times = take_turns({"ours_ms": ours, "theirs_ms": theirs}, rounds)
    return {"name": name} | median_ms(times) | dict(zip(("ratio", "low", "high"), ratio(*times.values()), strict=True))


def fp8_programs() -> Iterator[tuple[str, Program, Program]]:
    """`quantize`, and clip with ml_dtypes' cast there and back, on 2^20 standard normal numbers; a training step with
    the recipe `fp8`, and one in float32."""
    x = np.random.default_rng(0).standard_normal(2**20, dtype=np.float32)

    def round_trip(fmt: Format, dtype: Any) -> Any:
        return np.clip(x, -fmt.max, fmt.max).astype(dtype).astype(np.float32)

    for fmt, dtype in ((E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2)):
        yield f"quantize to {fmt.name}, ml_dtypes", partial(quantize, x, fmt), partial(round_trip, fmt, dtype)
    for shape in FP8_SHAPES:
        fp8, plain = (partial(new_trainer(shape, 1, fp8=recipe).update, 0) for recipe in ("fp8", "none"))
        yield "FP8 step, float32: " + ", ".join(f"{key} {value}" for key, value in shape.items()), fp8, plain


# ---- The command ----
def main(argv: list[str] | None = None) -> int:
    """The command `bench`."""
    parser = cli.Parser(
        "bench", f"{__doc__}\nEnds with 1 when a peer computes something else.",
        examples="  microumup bench --config A B --vs torch\n"
        "  microumup bench --ledger --gpu h100 --preset paper\n"
        "  microumup bench --ledger --gpu rtx4090 --with batch-size=256 --with micro-batch=64",
    )  # fmt: skip
    add = parser.add_argument
    add("--config", nargs="+", choices=CONFIGS, metavar="NAME", help="A, B, C or D (default: A)")
    add("--vs", action="append", choices=TWINS, metavar="PEER", help="torch or unit-scaling; repeatable")
    add("--threads", type=cli.whole, default=1, metavar="N", help="of each program (1)")
    add("--rounds", type=cli.whole, default=15, metavar="N", help="turns to take the median of (15)")
    add("--widths", action="store_true", help="our step at widths 32 to 512 too, all else as in A")
    add("--pairs", action="store_true", help="what each pair of fused.py gains, of our step")
    add("--ledger", action="store_true", help="FLOPs, bytes, calls and memory of our step too, by op")
    add("--fp8", action="store_true", help="instead: what rounding to FP8 costs")
    add(
        "--gpu",
        choices=GPUS,
        help="with --ledger, instead: what a step of a preset asks of this GPU, launches, bytes, "
        "FLOPs, memory, and an estimate of its time; needs no GPU. Ends with 1 when it does not fit the memory",
    )
    add("--preset", choices=PRESETS, help="with --gpu: train's (default: paper)")
    add("--with", dest="options", action="append", default=[], metavar="OPTION=VALUE",
        help="with --gpu: an option of train, as micro-batch=16, fp8=fp8, tf32=on; repeatable")  # fmt: skip
    cli.shared(parser, "quiet", json="all that was measured")
    args = parser.parse_args(argv)
    say, progress = cli.say(args.quiet), not args.quiet
    with cli.bad_input(parser):
        check_least(args, rounds=1, threads=1)
        elsewhere = args.config or args.vs or args.widths or args.pairs or args.threads > 1
        if (args.preset or args.options) and not args.gpu:
            raise ValueError(f"{'--preset' if args.preset else '--with'}: is for --gpu; add --ledger --gpu h100")
        if args.gpu and (elsewhere or args.fp8 or not args.ledger):
            raise ValueError("--gpu: is for --ledger, with no option but --preset, --with, --quiet, --json")
        if args.gpu:
            return roofline.main(args.preset or "paper", args.gpu, args.options, args)
        if args.fp8 and (elsewhere or args.ledger):
            raise ValueError("--fp8: has shapes and peers of its own; give it no option but --rounds, --quiet, --json")
        peers = list(dict.fromkeys(args.vs or ()))
        for peer in peers:
            load_peer(peer)
        configs = list(dict.fromkeys(args.config or ["A"]))
        for name in configs:
            TrainConfig(**CONFIGS[name], threads=args.threads)
    if args.fp8:
        pairs = bar(fp8_programs(), progress=progress, total=2 + len(FP8_SHAPES), unit="comparison")
        comparisons = [compare(name, ours, theirs, args.rounds) for name, ours, theirs in pairs]
        found: dict[str, Any] = {"comparisons": comparisons}
        say(comparison_table(comparisons))
    else:
        benches = []
        for name in configs:
            try:
                b = bench(name, peers, args.threads, args.rounds, progress=progress)
            except Disagreement as error:
                parser.complain(f"config {name}: {error}")
                return 1
            benches.append(b)
            say(bench_table(b))
            if args.pairs:
                b["pairs"] = by_pair(name, args.threads, args.rounds, progress=progress)
                say("gain: " + ", ".join(f"{op} {gain:+.1%}" for op, gain in b["pairs"].items()))
            if args.ledger:
                b["ledger"] = count(name)
                say(ledger_table(**b["ledger"]))
        found = benches[0] if len(benches) == 1 else {"benches": benches}
        if args.widths:
            found["widths"] = by_width(args.threads, args.rounds, progress=progress)
            steps = (f"{ms:.1f} ms" for ms in found["widths"].values())
            say("\n" + text_table([["width", *found["widths"]], ["step", *steps]], "<" + ">" * len(WIDTHS)))
    cli.json_line(args, found)
    return 0


def bench_table(b: dict[str, Any]) -> str:
    """A line for every program: its time, our time over its, its memory; and what follows from them."""
    shape = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in CONFIGS[b["config"]].items())
    over = {PRODUCTS: (OURS, b["gemm_ratio"], *b["gemm_ratio_spread"])}
    for peer, variant in b["fastest"].items():
        over[variant] = (TWINS[peer].scheme, b["ratio_to"][peer], *b["ratio_to_spread"][peer])
    rows = [["", "a step", "ours over it", "memory"]]
    for program, ms in b["step_ms"].items():
        ours = "{} {:.3f} ({:.3f} to {:.3f})".format(*over[program]) if program in over else ""
        mib = b["peak_growth_mib"].get(program)
        rows.append([program, f"{ms:.2f} ms", ours, "" if mib is None else f"{mib:.0f} MiB"])
    lines = [f"\nconfig {b['config']}: {shape}; threads {b['threads']}, {b['rounds']} turns"]
    lines += [text_table(rows, "<><>", gap="   ")]
    lines += [f"matrix products: {b['gemm_share']:.0%} of our step, {b['gemm_gflops']:.1f} GFLOP/s"]
    if b["umup_over_sp"]:
        lines += [f"the factors of u-µP: umup takes {b['umup_over_sp']:.3f} of the time of sp"]
    lines += [f"{peer}: loss and all gradients within {size:.1e} of ours" for peer, size in b["agreement"].items()]
    return "\n".join(lines)


def ledger_table(rows: list[dict[str, Any]], memory: dict[str, int]) -> str:
    """A line for every op, and memory."""
    lines = [["a step on one thread", "calls", "gemm MFLOP", "other MFLOP", "MB moved"]]
    for row in rows:
        millions = (f"{row[key] / 1e6:.1f}" for key in ("gemm_flops", "other_flops", "bytes"))
        lines.append([row["op"], str(row["calls"]), *millions])
    held, peak = (memory[key] / 2**20 for key in ("held", "peak"))
    alive = f"memory alive: {held:.1f} MiB between steps, {peak:.1f} MiB at most within one"
    return f"\n{text_table(lines, '<>>>>')}\n{alive}"


def comparison_table(comparisons: list[dict[str, Any]]) -> str:
    """A line for every comparison."""
    rows = [["", "ours", "theirs", "ratio", "quartiles"]]
    for c in comparisons:
        times = (f"{c[key]:.2f} ms" for key in ("ours_ms", "theirs_ms"))
        rows.append([c["name"], *times, f"{c['ratio']:.3f}", f"{c['low']:.3f} to {c['high']:.3f}"])
    return text_table(rows, "<>>>>")
