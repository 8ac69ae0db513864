"""What the parts of `chaos` share: counting, children that may be killed, and the runs that are done things to."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from microumup import checkpoint, files, train
from microumup.__main__ import COMMANDS
from microumup.run_dir import read_metrics

COLUMNS = ("tried", "kills", "refused", "resumed", "lost", "wrong", "tracebacks", "cut")
SIZES = ["--width", "8", "--head-dim", "4", "--layers", "1", "--seq-len", "8", "--batch-size", "2", "--threads", "1"]
STEPS = 24
MEMORY = 6 << 30  # bytes that a child may have


class Cut(BaseException):
    """A case took too long."""


class Chaos:
    def __init__(self, base: Path, rng: random.Random, keep: Path | None = None) -> None:
        self.base, self.rng, self.keep = base, rng, keep
        self.kind, self.tally, self.notes = "", Counter[tuple[str, str]](), list[str]()
        self.text, self.pristine = base / "text.txt", base / "pristine"

    def count(self, column: str, number: int = 1) -> None:
        self.tally[self.kind, column] += number

    def fault(self, column: str, what: str) -> None:
        """Count what must not be, and say it at once."""
        self.count(column)
        print(f"{self.kind}: {column}: {what}", flush=True)
        if self.keep:
            self.keep.mkdir(parents=True, exist_ok=True)
            with (self.keep / "faults.txt").open("a") as file:
                file.write(f"{self.kind}: {column}: {what}\n")

    def options(self, run: Path, *more: str, bpe: bool = False) -> list[str]:
        vocabulary = ["--vocab-size", "270"] if bpe else []
        return [*SIZES, "--steps", str(STEPS), "--save-every", "5", "--log-scales", "7", "--text", str(self.text),
                "--quiet", "--out", str(run), *vocabulary, *more]  # fmt: skip

    def prepare(self) -> None:
        """The text, and of each kind of run one that is finished and one that was cut off at step 13 of 24."""
        peers = ("torch", "unit_scaling") if find_spec("torch") else ()  # an import that is cut ends the process
        for module in (*(module for module, _ in COMMANDS.values()), *peers):
            with contextlib.suppress(ImportError):
                import_module(module)  # once, not in each child
        words = random.Random(7).choices(
            ["people", "states", "of", "the", "united", "congress", "naïve", "law"], k=4000
        )
        self.text.write_text(" ".join(words))
        os.environ["MICROUMUP_CACHE"] = str(self.base / "cache")
        self.pristine.mkdir()
        for name, more in {"plain": [], "bpe": ["bpe"], "other": ["--seed", "5"]}.items():
            whole, half = self.pristine / name, self.pristine / f"{name}-half"
            argv = self.options(whole, *([] if "bpe" in more else more), bpe="bpe" in more)
            assert child(lambda argv=argv: train.main(argv), 60).status == 0
            argv[argv.index("--out") + 1] = str(half)
            child(lambda argv=argv: killed_at(13, argv), 60)
            assert (half / "checkpoint.safetensors").exists()
            assert not (half / "result.json").exists()

    def fresh(self, name: str) -> Path:
        path = self.base / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def judge(self, run: Path, like: str, what: str) -> None:
        """Count a finished run as resumed, or as wrong where its bits are not those of the undisturbed one."""
        try:
            same = bits(run) == bits(self.pristine / like)
        except ValueError as error:
            self.fault("wrong", f"{what}: {error}")
            return
        if same:
            self.count("resumed")
        else:
            self.fault("wrong", f"{what}: other bits")

    def tidy(self, outcome: "Outcome", what: str) -> None:
        if outcome.error and "Traceback" in outcome.error:
            self.fault("tracebacks", f"{what}\n{outcome.error[-1500:]}")
        elif strange := [line for line in outcome.error.splitlines() if line and not line.startswith("microumup")]:
            self.fault("tracebacks", f"{what}: no sentence of ours: {strange[0][:300]}")


class Outcome:
    def __init__(self, status: int | None, out: str, error: str, value: Any = None) -> None:
        self.status, self.out, self.error, self.value = status, out, error, value  # status None: killed or cut


def killed_at(step: int, argv: list[str]) -> None:
    """A training that is killed when it logs a step."""
    append = files.append

    def dies(path: Path, *records: Any, owner: str = "") -> None:
        if any(record["step"] == step for record in records):
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, *records, owner=owner)

    files.append = dies
    train.main(argv)


def begin(work: Callable[[], Any], folder: Path | None = None) -> tuple[int, Path]:
    """Fork a child that does the work, ends with what it returns as its status, and leaves its output in files."""
    output = Path(os.environ["MICROUMUP_CACHE"]).parent / f"child-{time.monotonic_ns()}"
    output.mkdir(parents=True)
    if pid := os.fork():
        return pid, output
    status = 70
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(output / name, os.O_CREAT | os.O_WRONLY), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        if folder:
            os.chdir(folder)
        value = work()
        (output / "value").write_bytes(pickle.dumps(value))
        status = value if isinstance(value, int) else 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def end(pid: int, output: Path, seconds: float, kill: int = signal.SIGKILL) -> Outcome:
    """Wait so long for a child, then send it the signal."""
    deadline, sent = time.monotonic() + seconds, False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, kill if not sent else signal.SIGKILL)
            deadline, sent = time.monotonic() + 20, True
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    value = None
    if code >= 0 and (output / "value").exists():  # who was killed may have left half of it
        value = pickle.loads((output / "value").read_bytes())
    out, error = (
        (output / name).read_text(errors="replace") if (output / name).exists() else "" for name in ("out", "err")
    )
    shutil.rmtree(output, ignore_errors=True)
    return Outcome(code if code >= 0 else None, out, error, value)


def child(work: Callable[[], Any], seconds: float, kill: int = signal.SIGKILL, folder: Path | None = None) -> Outcome:
    return end(*begin(work, folder), seconds, kill)


Found = list[tuple[str, str]]  # a column to count in, and in words what a fault is


def both(chaos: Chaos, work: Callable[[int], Found], seconds: float, folder: Path | None = None) -> None:
    """Count what two children find that work side by side, each from a seed of its own."""
    seeds = [chaos.rng.randrange(1 << 30) for _ in range(2)]
    children = [begin(lambda seed=seed: work(seed), folder) for seed in seeds]
    for seed, each in zip(seeds, children, strict=True):
        outcome = end(*each, seconds)
        if outcome.value is None:
            chaos.fault("tracebacks", f"seed {seed}: the child ended with {outcome.status}: {outcome.error[-2000:]}")
        for column, what in outcome.value or ():
            if what and column != "cut":
                chaos.fault(column, what)
            else:
                chaos.count(column)
                chaos.notes += [f"cut: {what}"] if what and chaos.keep else []


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise Cut in this process after so many seconds."""

    def cut(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.05)  # again, should somebody take it for an error of his own
        raise Cut

    signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def call(main: Callable[[list[str]], int], argv: list[str], seconds: float = 20) -> Outcome:
    """A command within this process: its status, what it printed, and the traceback it ended in, if it did."""
    out, error, status = io.StringIO(), io.StringIO(), None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), at_most(seconds):
            status = main(argv)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Cut:
        return Outcome(None, out.getvalue(), "")
    except MemoryError:  # `cli.run` says so in one line
        status = 1
    except BaseException:
        error.write(traceback.format_exc())
        status = 70
    return Outcome(status, out.getvalue(), error.getvalue())


def bits(run: Path) -> Any:
    """All of a finished run that has to be the same, however often it was killed: weights, losses, ranges, results."""
    arrays, info = checkpoint.load(run / "checkpoint.safetensors")
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    metrics = [(r["step"], r["loss"], r["lr"], r["grad_norm"]) for r in read_metrics(run)]
    scales = {r["step"]: r["tensors"] for r in map(json.loads, (run / "scales.jsonl").read_text().splitlines())}
    result = json.loads((run / "result.json").read_text())
    losses = {name: value for name, value in result.items() if name.startswith("loss")}
    tokenizer = run / "tokenizer.json"
    return digest.hexdigest(), info["step"], metrics, scales, losses, tokenizer.exists() and tokenizer.read_bytes()
