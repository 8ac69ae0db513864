"""Run directories: where a run writes, which run that is, and how it goes on after whatever happens to it.

config.json               every option, of the command too, and checksums of the texts: which run it is
metrics.jsonl             a line a step
checkpoint.safetensors    to resume from
tokenizer.json            of a BPE; bytes need none
scales.jsonl              if asked for
result.json               when the run is finished
.lock                     held by the process that writes, and let go of when that ends, however it does
"""

import hashlib
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

from microumup import __version__, checkpoint, files, older
from microumup.config import TrainConfig
from microumup.cpu import Arrays
from microumup.data import Corpus
from microumup.plan import weights
from microumup.records import Command, Record, is_of_step


class RunDir:
    """A run directory that this process, and no other, writes to until it is closed.

    `step` updates are behind it, each with its record of metrics in `records`, in so many `seconds`; `state` is the
    checkpoint's, None where there is none. Within `with`, Ctrl-C and SIGTERM raise KeyboardInterrupt, with the signal's
    number in `asked`: after a checkpoint while there are updates to save; else, and the second time, at once.
    """

    def __init__(self, path: Path, config: TrainConfig, corpus: Corpus, command: Command, record: Record) -> None:
        self.path, self.config, self.corpus, self.command = path, config, corpus, command
        self.checkpoint, self.metrics = path / "checkpoint.safetensors", path / "metrics.jsonl"
        self.state: Arrays | None = None
        self.step, self.seconds, self.records = 0, 0.0, list[Record]()
        self.asked, self._busy, self._saved = 0, False, monotonic()  # busy: who asks to stop waits for save_if_due
        self._logs, self._handlers = {self.metrics: self.records}, dict[int, Any]()
        self._lock = files.lock(path)
        try:
            self._go_on(record) if "id" in record else self._begin(record)  # read_config's has one
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls, out: Path | None, config: TrainConfig, corpus: Corpus, command: Command = Command(), **more: object
    ) -> "RunDir":
        """The new run directory `out`, or runs/DATE-TIME-SCHEME-wWIDTH, with a config.json in it that says `more` too.

        Raises ValueError when `out` exists and is not empty: nothing is ever overwritten.
        """
        if out:
            _check_empty(out)
            out.mkdir(parents=True, exist_ok=True)
        else:
            name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.scheme}-w{config.width}"
            out = files.new_directory(Path("runs") / name)
        known = {"texts": [source._asdict() for source in corpus.sources], "tokenizer": corpus.tokenizer.sha256}
        return cls(out, config, corpus, command, {"version": __version__, **asdict(command), **known, **more})

    @classmethod
    def resume(cls, path: Path, corpus: Corpus) -> "RunDir":
        """The run in `path`, to go on from its checkpoint; nothing is written before it is entered.

        Raises ValueError, saying what to do, when it is finished or written to, when something in it is damaged or does
        not fit together, and when `corpus` is not what it began with.
        """
        config, command, record = read_config(path)
        return cls(path, config, corpus, command, record)

    def _begin(self, record: Record) -> None:
        _check_empty(self.path)  # another may have been faster
        content = files.sealed(asdict(self.config) | {"run": record})
        files.write_json(self.path / "config.json", content)
        self.id = content["crc32"]

    def _go_on(self, record: Record) -> None:
        unfinished(self.path)  # and stays so, as the lock is ours
        self.id = record["id"]
        if "assumed" in record:
            files.note(record["assumed"])
        _check_corpus(self.path, self.corpus, record)
        if self.checkpoint.exists():
            self.state, info = load_checkpoint(self.path, self.config, self.id)
            self.step, self.seconds = info["step"], info["seconds"]
        mend = "restore it, or delete the checkpoint to begin at step 0"
        if len(metrics := read_metrics(self.path)) < self.step:
            raise ValueError(f"{self.metrics} has {len(metrics)} lines and the checkpoint {self.step} updates; {mend}")
        self.records = self._logs[self.metrics] = metrics[: self.step]
        if every := self.command.log_scales:
            path, steps = self.path / "scales.jsonl", range(self.step)
            self._logs[path] = [look for look in files.read_lines(path, self.id) if look["step"] in steps]
            looks = {step for step in steps if step % every == 0 or step == self.config.steps - 1}
            if looks - {look["step"] for look in self._logs[path]}:
                raise ValueError(f"{path} lacks lines; {mend}")

    def __enter__(self) -> "RunDir":
        """Begin to write: away with what was logged behind the checkpoint, and with what a kill has left."""
        try:
            if threading.current_thread() is threading.main_thread():
                self._handlers = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
            for left in self.path.glob(".*.tmp"):
                left.unlink(missing_ok=True)
            for path, records in self._logs.items():
                files.write_lines(path, records, self.id)
            self.corpus.tokenizer.save(self.path)
        except BaseException:
            self.close()
            raise
        return self

    def _ask(self, number: int, _: FrameType | None) -> None:
        at_once, self.asked = self.asked or not self._busy, number
        if at_once:
            raise KeyboardInterrupt
        with suppress(OSError):  # print is not for a handler: it may have interrupted another
            os.write(2, b"\nmicroumup: stopping after a checkpoint; once more stops at once\n")

    def close(self, *_: object) -> None:
        """Let go of the directory, and of the signals."""
        self._lock.release()
        while self._handlers:  # a second time there is nothing to do
            signal.signal(*self._handlers.popitem())

    __exit__ = close

    def log(self, records: list[Record]) -> None:
        """Append lines of metrics."""
        files.append(self.metrics, *records, owner=self.id)
        self._busy = True

    def save_if_due(self, state: Callable[[], Arrays], step: int, seconds: float) -> None:
        """Write a checkpoint after `step` updates if one is due; if asked to stop, do, and raise KeyboardInterrupt."""
        last, minutes, every = step == self.config.steps, self.command.save_minutes, self.command.save_every
        due = monotonic() - self._saved >= 60 * minutes or (every and step // every > self.step // every)
        if not (due or last or self.asked):
            return
        files.to_disk(*self.path.glob("*.jsonl"))  # a checkpoint is never ahead of what was logged
        info = {"step": step, "seconds": seconds, "microumup": __version__, "config": self.id}
        checkpoint.save(self.checkpoint, state(), info)
        self.step, self._saved, self._busy = step, monotonic(), not last
        if self.asked:
            raise KeyboardInterrupt

    def finish(self, result: Record) -> None:
        """Write result.json: nothing is left to resume."""
        files.write_json(self.path / "result.json", files.sealed(result, self.id))


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        resumable = (out / "config.json").exists() and not (out / "result.json").exists()
        mend = f"continue it with --resume {out}, or name another" if resumable else "name another"
        raise ValueError(f"--out: {out} exists and is not an empty directory; {mend}")


def _check_corpus(run_dir: Path, corpus: Corpus, record: Record) -> None:
    for now, then in zip(corpus.sources, record["texts"], strict=False):  # none of an older version
        if now[1:] != then:
            raise ValueError(f"{now.name} has changed since {run_dir} began; restore it, or begin a new run")
    saved, then = run_dir / "tokenizer.json", record.get("tokenizer")
    if then is None and saved.exists():  # of an older version
        then = hashlib.sha256(files.read_bytes(saved)).hexdigest()
    if then not in (None, corpus.tokenizer.sha256):
        raise ValueError(f"{saved}: now another BPE is learned from the text; go on with the library's version of then")


# ---- Reading ----


def read_config(run_dir: Path) -> tuple[TrainConfig, Command, Record]:
    """Config and command of the run in a directory, and its record of texts. Raises ValueError where there is none.

    In it are the config's checksum, `id`, size and checksum of its `texts`, and what is `assumed` for an older version.
    """
    path = run_dir / "config.json"
    if not path.exists():
        inside = [f"; name one of those in it, as {found.parent}" for found in sorted(run_dir.glob("*/config.json"))]
        raise ValueError(f"{run_dir} holds no run, there is no config.json in it{''.join(inside[-1:])}")
    try:
        options = files.read_record(path)
        id, record = files.sealed(options)["crc32"], dict(options.pop("run", {}))
        texts = [(text["size"], text["sha256"]) for text in record.get("texts", [])]
        options, assumed = older.completed(options, recorded=bool(record))
        config = TrainConfig(**options | {name: tuple(options[name]) for name in ("text", "valid")})
        command = Command(**{f.name: record[f.name] for f in fields(Command) if f.name in record})
    except (ValueError, KeyError, TypeError) as error:
        what = f"not a config of microumup {__version__} ({files.one_line(error)})"
        raise ValueError(f"{path} is {what}; restore it") from None
    if not record:
        assumed += ["no more --log-scales"] * (run_dir / "scales.jsonl").exists()
        record = {"assumed": f"{path} is of an older version; assumed: {', '.join([*assumed, 'texts as they were'])}"}
    return config, command, record | {"id": id, "texts": texts}


def load_config(run_dir: Path) -> TrainConfig:
    """The config of a run. Raises ValueError when there is none."""
    return read_config(run_dir)[0]


def unfinished(run_dir: Path) -> TrainConfig:
    """The config of a run that has no result yet. Raises ValueError, naming --resume, when it has, or is none."""
    try:
        config = load_config(run_dir)
    except ValueError as error:
        raise ValueError(f"--resume: {error}") from None
    if (run_dir / "result.json").exists():
        raise ValueError(f"--resume: the run in {run_dir} is finished; see its result.json")
    return config


def identity(run_dir: Path) -> str:
    """The checksum of the config in a run directory, which goes into that of each of its lines; "" without a config."""
    return str(read_config(run_dir)[2]["id"]) if (run_dir / "config.json").exists() else ""


def load_checkpoint(run_dir: Path, config: TrainConfig, id: str) -> tuple[Arrays, Record]:
    """Arrays and info of a run's checkpoint. Raises ValueError unless they are of this config, with checksum `id`."""
    path, kinds = run_dir / "checkpoint.safetensors", ("params", "m", "v")[: 3 if config.optimizer == "adamw" else 1]
    shapes = {f"{kind}/{name}": w.shape for kind in kinds for name, w in weights(config).items()}
    arrays, info = checkpoint.load(path, shapes)
    step, seconds = info.get("step"), info.get("seconds")
    if type(step) is not int or not 0 <= step <= config.steps or type(seconds) is not float or not 0 <= seconds < 1e12:
        raise ValueError(f"{path} has {step} updates of {config.steps}; restore it, or delete it to begin at step 0")
    model, its = {**older.RETIRED, **asdict(config)}, info.get("model", {})  # its: of an older version
    fits = isinstance(its, dict) and all(model.get(name) == value for name, value in its.items())
    if not fits or info.get("config", id) != id:
        raise ValueError(f"{path} is of another run than config.json; restore the one or the other")
    return arrays, info


def read_metrics(run_dir: Path) -> list[Record]:
    """The metrics of a run, a record a step. Raises ValueError for a step that is damaged, missing or there twice."""
    path = run_dir / "metrics.jsonl"
    records = files.read_lines(path, identity(run_dir))
    for step, record in enumerate(records):
        if not is_of_step(step, record):
            raise ValueError(f"{path}: line {step + 1} is not of step {step}; restore it, or cut it and all behind it")
    return records
