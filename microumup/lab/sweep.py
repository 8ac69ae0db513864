"""Many trainings: every combination of some options, in processes or on a dask cluster, resumable.

A run is named by a hash of its config, and its result is a file of that name, written whole or not at all: what is
there is never trained again, whoever was killed. A run that diverges is a result, one that crashes is tried again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import lru_cache
from math import inf, lcm, prod
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from microumup import __version__, cli, files
from microumup.backend import choose_device
from microumup.config import PRESETS, TrainConfig
from microumup.corpora import ByteTokenizer, Source, read_text, source
from microumup.data import Corpus, load_corpus
from microumup.devices import use_tf32
from microumup.diverged import Diverged, check_finite
from microumup.lab import search
from microumup.lab.optima import ending
from microumup.lab.search import OPTIONS, Record
from microumup.lab.tables import to_line, write_table
from microumup.lab.workers import bar, connect, new_seats, shared_out, work_off
from microumup.limits import check_least, check_memory, option_name
from microumup.older import NEWER, RETIRED
from microumup.plan import weights
from microumup.ranges import linear_ranges
from microumup.trainer import Trainer, train

MEASURED = ("loss", "loss_valid", "diverged", "seconds", "version")  # the last columns of a table


class Job(NamedTuple):
    """A run to be made."""

    config: TrainConfig
    ranges_every: int = 0  # look at the FP8 range of every x, w and dy so often, and at the last step; 0: never


class Crashed(Exception):
    """Some runs ended with an error each time they were tried. `errors` has a line for each, by id; all other runs are
    done and kept."""

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("; ".join(f"run {id} crashed: {error}" for id, error in errors.items()))
        self.errors = errors


# ---- One run ----
def plain(config: TrainConfig) -> dict[str, Any]:
    """The options of a run as JSON has them. It has one thread: there are as many runs at once as there are cores."""
    options = asdict(config) | {"threads": 1}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}


def run_id(job: Job) -> str:
    """12 hexadecimal digits that name the run: the same in every process, whatever the order of the fields.

    What is in a text counts, not where it lies. Raises ValueError for one that cannot be read.
    """
    # with the options that are no more, and without newer ones that say nothing: a run made before keeps its name
    c = job.config
    silent = {name for name in NEWER if getattr(c, name) == getattr(TrainConfig, name)}
    texts = {name: [source.sha256 for source in sources(getattr(c, name))] for name in ("text", "valid")}
    config = {name: value for name, value in (plain(c) | RETIRED | texts).items() if name not in silent}
    content = {"config": config, "ranges_every": job.ranges_every}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def sources(text: tuple[str, ...]) -> tuple[Source, ...]:
    """The Source of each text, read once in each process unless it changes."""
    there = [Path(path).stat() if Path(path).exists() else None for path in text]
    return tuple(_source(path, s and (s.st_mtime_ns, s.st_size)) for path, s in zip(text, there, strict=True))


@lru_cache(maxsize=64)
def _source(path: str, changed: tuple[int, int] | None) -> Source:
    return source(path, read_text(Path(path)))


def corpus_of(config: TrainConfig) -> Corpus:
    """The corpus of a run, read once in each process unless it changes."""
    c, texts = config, config.text + config.valid
    return _corpus(c.corpus, c.text, c.valid, c.vocab_size, c.seq_len, sources(texts))


@lru_cache(maxsize=4)
def _corpus(
    name: str, text: tuple[str, ...], valid: tuple[str, ...], vocab_size: int, seq_len: int, _: tuple[Source, ...]
) -> Corpus:
    return load_corpus(name, text=text, valid=valid, vocab_size=vocab_size, seq_len=seq_len)


def run(job: Job, device: str = "cpu") -> Record:
    """Train in this process, and say how it went.

    id, config (every option), ranges_every, version; loss (`train`'s loss_final) and loss_valid in nats, None if the
    run diverged; diverged, diverged_at (the step, or None), seconds, tokens_per_second, device; ranges if they were
    asked for, by step and tensor. Everything is as JSON has it; None stands for what is not finite.
    """
    config = replace(job.config, threads=1)
    corpus = corpus_of(config)
    ranges: dict[str, Any] = {}

    def watch(step: int, loss: Any) -> None:
        ranges[str(step)] = {name: r._asdict() for name, r in linear_ranges(loss).items()}

    began = perf_counter()
    try:
        result = train(config, corpus, device=device, watch=watch, watch_every=job.ranges_every)[1]
        check_finite(config.steps, "loss", result["loss_final"] + result["loss_valid"], config)
        diverged_at, steps = None, config.steps
    except Diverged as error:
        diverged_at, steps = error.step, error.step or 0
        result = {"loss_final": None, "loss_valid": None, "seconds": round(perf_counter() - began, 3)}
    seconds = result["seconds"]
    record = {
        "id": run_id(job), "config": plain(config), "ranges_every": job.ranges_every, "version": __version__,
        "loss": result["loss_final"], "loss_valid": result["loss_valid"],
        "diverged": result["loss_final"] is None, "diverged_at": diverged_at, "seconds": seconds,
        "tokens_per_second": round(steps * config.batch_size * config.seq_len / max(seconds, 1e-3)), "device": device,
    } | ({"ranges": ranges} if job.ranges_every else {})  # fmt: skip
    return json.loads(files.to_json(record))


# ---- All runs ----
def sweep(
    jobs: Sequence[Job], out: Path, *, workers: int | Sequence[str], cluster: str | None = None, device: str = "cpu",
    progress: bool = True, retries: int = 2,
) -> list[Record]:  # fmt: skip
    """The records of all jobs, in order. What OUT/results has is not run again; the rest is, the longest first.

    Runs are as many processes as there are `workers`, each with one GPU if those are names of GPUs; in this process if
    that is 0; or tasks of the dask scheduler at `cluster`. Each leaves OUT/results/ID.json and a line in OUT/table.csv.
    Raises ValueError before anything is written when `out` holds something else, a text cannot be read, or there is no
    such cluster; ConnectionError when it goes; and Crashed at the end when runs failed, having been tried `retries`
    times more.
    """
    check_out(out)
    unique = {run_id(job): job for job in jobs}
    for job in unique.values():  # before hours of work; and a BPE vocabulary is learned once, not in every process
        check_memory(job.config)
        if device == "cpu":
            use_tf32(job.config.tf32, device)
        corpus_of(job.config)
    with ExitStack() as stack:
        client = stack.enter_context(connect(cluster)) if cluster else None
        results, table = out / "results", out / "table.csv"
        results.mkdir(parents=True, exist_ok=True)
        stack.callback(files.lock(out).release)
        for left in results.glob(".*.tmp"):  # by what was killed
            left.unlink(missing_ok=True)
        records = load_results(out)
        missing = {id: job for id, job in unique.items() if id not in records}
        columns = ("id", *varying([*(plain(job.config) for job in jobs), *(r["config"] for r in records.values())]))
        write_table(table, [*columns, *MEASURED], [row(r, columns) for r in records.values()])  # a kill may cost a row
        costs = {id: estimate_seconds(job) for id, job in missing.items()}
        meter = stack.enter_context(bar(
            progress=progress, total=sum(costs.values()), dynamic_ncols=True, smoothing=0,
            bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed}, {remaining} left",
        ))  # fmt: skip

        def tick() -> None:
            if client and client.status != "running":  # its futures would never come
                raise ConnectionError(f"--cluster: {cluster} is gone; what is done is kept, the same command goes on")
            meter.set_description_str(f"{sum(id in records for id in unique)}/{len(unique)} runs")

        def keep(id: str, record: Record) -> None:
            files.write_json(results / f"{id}.json", files.sealed(record))
            with table.open("a", encoding="utf-8") as file:
                file.write(to_line(row(record, columns)))
            records[id] = record
            meter.update(costs[id])

        tasks = {id: (id, missing[id], device) for id in sorted(missing, key=lambda id: -costs[id])}
        seats = [client.get_executor(pure=False)] * len(missing) if client else new_seats(workers, len(missing))
        errors = work_off(task, tasks, seats, keep=keep, tick=tick, retries=retries)
    if errors:
        raise Crashed(errors)
    return [records[run_id(job)] for job in jobs]


def task(id: str, job: Job, device: str) -> Record:
    """The record of the run `id`. Raises ValueError when a text of its is another by now."""
    record = run(job, choose_device(device))
    if record["id"] != id:
        raise ValueError("--text or --valid: changed while the sweep was on")
    return record


# ---- What is kept ----
def check_out(out: Path) -> None:
    """Raise ValueError when `out` is neither new, nor empty, nor a sweep's."""
    empty = not out.exists() or (out.is_dir() and all(path.name.startswith(".") for path in out.iterdir()))
    if not empty and not (out / "results").is_dir():
        raise ValueError(f"--out: {out} holds something else than a sweep; name another directory")


def read_record(path: Path) -> Record:
    """The record in a file. Raises ValueError when there is none, or a damaged one."""
    try:
        record = files.read_record(path)
        if lacks := {"id", "config", *MEASURED} - record.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacks))}")
        if record["id"] != path.stem or not isinstance(record["config"], dict):
            raise ValueError(f"it is of run {record['id']!s:.40}")
        for name in {"text", "valid"} & record["config"].keys():  # older versions kept them as they were typed
            record["config"][name] = [str(Path(text).absolute()) for text in record["config"][name]]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no result of a sweep ({error}); delete it, and the run is made again") from None
    return record


def load_results(out: Path) -> dict[str, Record]:
    """Every record in OUT/results, by id. Raises ValueError for a file that is none."""
    return {path.stem: read_record(path) for path in sorted((out / "results").glob("*.json"))}


def varying(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The options that are not the same in all configs, in the order of `train --help`."""
    return [name for name in OPTIONS if len({json.dumps(config.get(name)) for config in configs}) > 1]


def row(record: Record, columns: Sequence[str]) -> list[Any]:
    """A row of a table: `columns`, each an option or a key of the record, and what was measured."""
    return [record["config"].get(name, record.get(name)) for name in columns] + [record[name] for name in MEASURED]


# ---- What a run costs ----
SHAPE = ("width", "layers", "head_dim", "seq_len", "vocab_size", "batch_size", "fp8", "optimizer")
SAMPLE = 1e10  # FLOPs of a step that is timed, at most: a fraction of a second
VALIDATION = 32 / 3  # steps that cost as much: 32 batches, forward only


def flops(config: TrainConfig) -> float:
    """FLOPs of a step: 6 for each weight of a matmul and token, and attention's two products of (T, T) and (T, K)."""
    c = config
    matmuls = sum(prod(w.shape) for name, w in weights(c).items() if name != "embedding")
    return 6.0 * matmuls * c.batch_size * c.seq_len + 12.0 * c.layers * c.batch_size * c.seq_len**2 * c.width


def estimate_seconds(job: Job) -> float:
    """CPU time of a run here, from timed steps of its shape, or of a smaller one if that would take long."""
    shape = TrainConfig(lr=2**-10, **{name: getattr(job.config, name) for name in SHAPE})
    return _step_seconds(shape) * (job.config.steps + VALIDATION)


@lru_cache(maxsize=256)
def _step_seconds(shape: TrainConfig) -> float:
    sample = shape
    for name, unit in (("batch_size", 1), ("layers", 1), ("width", lcm(4, shape.head_dim))):
        while flops(sample) > SAMPLE and (units := getattr(sample, name) // unit) > 1:
            sample = replace(sample, **{name: units // 2 * unit})
    tokens = np.random.default_rng(0).integers(0, sample.vocab_size, 10 * sample.seq_len).astype(np.uint16)
    trainer = Trainer(sample, Corpus("random tokens", tokens, tokens, ByteTokenizer()))
    times: list[float] = []
    while len(times) < 2 or sum(times) < 0.05:  # seconds
        began = perf_counter()
        trainer.update(0)
        times.append(perf_counter() - began)
    return min(times) * flops(shape) / flops(sample)


# ---- The command ----
def main(argv: list[str] | None = None) -> int:
    """The command `sweep`."""
    parser = cli.Parser(
        "sweep", __doc__ or "", operands="--grid OPTION=VALUES … --out DIR",
        examples="  microumup sweep --grid lr=2^-2:2^3:2^0.5 --grid width=32,64,128 --seeds 3 --out runs/lr\n"
        "  microumup sweep --grid lr=2^-2:2^3:2 --grid alpha-res=2^-3:2^3:2 --independent --out runs/search\n"
        "  microumup sweep --grid scheme=sp,umup --grid lr=2^-9:2^2:2 --random 20 --out runs/random",
    )  # fmt: skip
    cli.add_options(parser, TrainConfig)
    parser.add_argument("--grid", action="append", default=[], metavar="OPTION=VALUES", help="an option of train and "
                        "its values: 32,64,128, or from:to:factor, or from:to:+step; again for more")  # fmt: skip
    cli.shared(parser, seeds="of each point")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--random", type=cli.whole, default=inf, metavar="N", help="N random points, instead of all")
    how.add_argument("--independent", action="store_true", help="the lr first, then each other option alone, then all "
                     "best values together, instead of all combinations")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="keeps every run; given again, goes on")
    cli.shared(parser, "workers", "cluster", "device", "devices", "quiet", json="what the tables say")
    parser.set_defaults(seeds=1, device="cpu")
    parser.add_argument("--retries", type=cli.whole, default=2, metavar="N", help="of a run that crashes (default: 2)")
    parser.add_argument("--log-scales", type=cli.whole, default=0, metavar="EVERY", help="steps between two looks at "
                        "the range of every x, w and dy, kept with the result (default: none)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say how many runs it is and how long they take")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="train's; other options override it")
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    with cli.bad_input(parser):
        check_least(args, random=1, seeds=1, workers=1, retries=0, log_scales=0)
        device, workers = shared_out(args)
        if not args.grid:
            raise ValueError("--grid: name an option to sweep, as lr=2^-2:2^3:2^0.5")
        axes = [search.parse_grid(text) for text in args.grid]
        options = cli.given(args, TrainConfig)
        asked = Counter([*(name for name, _ in axes), *options])
        if twice := [name for name, count in asked.items() if count > 1]:
            raise ValueError(f"{option_name(twice[0])}: is there twice; name it once, with all its values in --grid")
        names = [name for name, _ in axes if name != "seed"]
        base = PRESETS[args.preset] | options
        if args.random < inf:
            points = search.draw(args.grid, args.random)
            configs = [c for point in points for c in search.with_seeds(base | point, args.seeds)]
        elif args.independent:
            if "lr" not in names:
                raise ValueError("--independent: needs --grid lr=…, which is searched first")
            around = ("lr", dict(axes)["lr"][:3])
            configs = [c for axis in (*axes, around) for c in search.grid(base, [axis], args.seeds)]
        else:
            configs = search.grid(base, axes, args.seeds)
        unique = {run_id(job): job for config in configs for job in [Job(config, args.log_scales)]}
        check_out(args.out)
        before = load_results(args.out)

    if args.dry_run:
        seconds = sum(estimate_seconds(job) for id, job in unique.items() if id not in before)
        runs, done = len(unique), len(unique.keys() & before.keys())
        at_most = "at most " if args.independent else ""  # the best lr is not known, so not what is done at it either
        say(f"{at_most}{runs} runs, {done} of them done; the rest takes about {show_time(seconds)} of CPU time, "
            f"{show_time(seconds / args.workers)} with {args.workers} workers")  # fmt: skip
        cli.json_line(args, {"runs": runs, "done": done, "cpu_seconds": round(seconds, 1)})
        return 0

    def train_all(configs: list[TrainConfig]) -> list[Record]:
        return sweep(
            [Job(config, args.log_scales) for config in configs], args.out, workers=workers, cluster=args.cluster,
            device=device, progress=not args.quiet, retries=args.retries,
        )  # fmt: skip

    stages: list[search.Stage] = []
    crashed: dict[str, str] = {}
    try:
        with cli.bad_input(parser):
            if args.independent:
                stages = search.independent(base, axes, args.seeds, train_all)
            else:
                train_all(configs)
    except Crashed as crash:
        crashed = crash.errors
    except KeyboardInterrupt:
        done = len(load_results(args.out).keys() - before.keys())
        parser.complain(f"interrupted; {done} more runs are done, the same command goes on")
        return 130
    kept = {} if args.independent else load_results(args.out)
    found = search.ranked([kept[id] for id in unique if id in kept], names)
    if found:
        say(f"{search.summary(found)}\n")
    if stages:
        say(f"{search.account(stages)}\n")
    say(f"every run: {args.out / 'table.csv'}")
    gridded = [kept[id] for id in unique if id in kept] if "lr" in names and args.random == inf else []
    lines, models = ending(gridded, names, args.out)
    for line in lines:
        say(line)
    for id, error in crashed.items():
        parser.complain(f"run {id} crashed: {error}")
    cli.json_line(args, {
        "table": str(args.out / "table.csv"), "points": [search.as_json(p) for p in found],
        "search": [{"stage": stage, **search.as_json(p)} for stage, p in stages], "optima": models,
        "crashed": crashed,
    })  # fmt: skip
    return 1 if crashed else 0


def show_time(seconds: float) -> str:
    """`90 s`, `12 min` or `3.5 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
