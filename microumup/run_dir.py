"""Run directories: where a run writes, which run that is, and how it goes on after whatever happens to it.

config.json               every option, of the command too, and checksums of the texts
metrics.jsonl             a line a step
checkpoint.safetensors    to resume from
tokenizer.json            of a BPE; bytes need none
scales.jsonl              if asked for
result.json               when the run is finished
.lock                     held by the process that writes, and let go of when that ends, however it does
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import datetime
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import Any

from microumup import __version__, checkpoint, corpora
from microumup.config import ModelConfig, TrainConfig
from microumup.corpora import BYTES, ByteTokenizer, Tokenizer
from microumup.cpu import Arrays
from microumup.data import Corpus
from microumup.plan import weights
from microumup.records import Record
from microumup.run_config import RETIRED, Command, identity, read_config, unfinished
from microumup.stop import Stop

FILES = ("checkpoint.safetensors", "metrics.jsonl", "scales.jsonl")


class RunDir:
    """A run directory that this process, and no other, writes to until it is closed.

    `step` updates are behind it, each with its record of metrics in `records`, in so many `seconds`; `state` is the
    checkpoint's, None where there is none.
    """

    def __init__(self, path: Path, config: TrainConfig, corpus: Corpus, command: Command = Command()) -> None:
        self.path, self.config, self.corpus, self.command = path, config, corpus, command
        self.checkpoint, self.metrics, self.scales = (path / name for name in FILES)
        self.state: Arrays | None = None
        self.step, self.seconds, self.records = 0, 0.0, list[Record]()
        self.stop, self._saved = Stop(), monotonic()
        self.id = ""  # the checksum of config.json
        self._logged: dict[Path, list[dict[str, Any]]] = {self.metrics: []}
        self._log: FileIO | None = None
        self._lock = checkpoint.Lock(path)

    @classmethod
    def create(cls, out: Path | None, config: TrainConfig, corpus: Corpus, command: Command = Command()) -> "RunDir":
        """The new run directory `out`, or runs/DATE-TIME-SCHEME-wWIDTH, with a config.json in it.

        Raises ValueError when `out` exists and is not empty: nothing is ever overwritten.
        """
        path = _make(out, config)
        run = cls(path, config, corpus, command)
        try:
            _check_empty(path)  # another may have been faster
            record = {"version": __version__, **command._asdict(), **_identity(corpus)}
            content = checkpoint.sealed(asdict(config) | {"run": record})
            checkpoint.write_json(path / "config.json", content)
            run.id = content["crc32"]
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def resume(cls, path: Path, corpus: Corpus) -> "RunDir":
        """The run in `path`, to go on from its checkpoint; nothing is written before it is entered.

        Raises ValueError, saying what to do, when it is finished or written to, when something in it is damaged or does
        not fit together, and when `corpus` is not what it began with.
        """
        config, command, record = read_config(path)
        run = cls(path, config, corpus, command)
        try:
            unfinished(path)  # and stays so, as the lock is ours
            if "assumed" in record:
                checkpoint.note(record["assumed"])
            _check_corpus(path, corpus, record)
            run.id = record["id"]
            run._read()
        except BaseException:
            run.close()
            raise
        return run

    def _read(self) -> None:
        if self.checkpoint.exists():
            self.state, info = load_checkpoint(self.path, self.config, self.id)
            self.step, self.seconds = info["step"], info["seconds"]
        metrics = read_metrics(self.path)
        if len(metrics) < self.step:
            found = f"{len(metrics)} lines and the checkpoint {self.step} updates"
            raise ValueError(f"{self.metrics} has {found}; restore it, or delete the checkpoint to begin at step 0")
        self.records = metrics[: self.step]
        self._logged = {self.metrics: metrics[: self.step]}
        if every := self.command.log_scales:
            scales = [record for record in checkpoint.read_lines(self.scales, self.id) if record["step"] < self.step]
            looks = {step for step in range(self.step) if step % every == 0 or step == self.config.steps - 1}
            if looks - {record["step"] for record in scales}:
                raise ValueError(f"{self.scales} lacks lines; restore it, or delete the checkpoint to begin at step 0")
            self._logged[self.scales] = scales

    def __enter__(self) -> "RunDir":
        """Begin to write: away with what was logged behind the checkpoint, and with what a kill has left.

        Ctrl-C and SIGTERM are from now on a wish to stop after a checkpoint; a second one stops at once.
        """
        self.stop.__enter__()
        try:
            for left in self.path.glob(".*.tmp"):
                left.unlink(missing_ok=True)
            for path, records in self._logged.items():
                checkpoint.write_lines(path, records, self.id)
            self._log = self.metrics.open("ab", buffering=0)
            self.corpus.tokenizer.save(self.path)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory, and of the signals."""
        self.stop.__exit__()
        if self._log:
            self._log.close()
        self._lock.release()

    def log(self, records: list[Record]) -> None:
        """Append lines of metrics."""
        assert self._log
        for record in records:
            checkpoint.write_line(self._log, record, self.id)
        self.stop.busy = True  # what asks to stop waits for save_if_due

    def save_if_due(self, state: Callable[[], Arrays], step: int, seconds: float) -> None:
        """Write a checkpoint of the state after `step` updates, if it is time for one, the last, or asked to stop.

        Raises KeyboardInterrupt after it when asked to stop.
        """
        last, (every, minutes, *_) = step == self.config.steps, self.command
        due = monotonic() - self._saved >= 60 * minutes or step // every > self.step // every
        if not (due or last or self.stop.signal):
            return
        assert self._log
        os.fsync(self._log.fileno())  # a checkpoint is never ahead of its metrics
        model = {f.name: getattr(self.config, f.name) for f in fields(ModelConfig)}
        info = {"model": model, "step": step, "seconds": seconds, "microumup": __version__, "config": self.id}
        checkpoint.save(self.checkpoint, state(), info)
        self.step, self._saved, self.stop.busy = step, monotonic(), not last
        if self.stop.signal:
            raise KeyboardInterrupt

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json: nothing is left to resume."""
        checkpoint.write_json(self.path / "result.json", checkpoint.sealed(result, self.id))


def _make(out: Path | None, config: TrainConfig) -> Path:
    if out is None:
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.scheme}-w{config.width}"
        return checkpoint.new_directory(Path("runs") / name)
    _check_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        resumable = (out / "config.json").exists() and not (out / "result.json").exists()
        mend = f"continue it with --resume {out}, or name another" if resumable else "name another"
        raise ValueError(f"--out: {out} exists and is not an empty directory; {mend}")


def _identity(corpus: Corpus) -> dict[str, Any]:
    return {"texts": [source._asdict() for source in corpus.sources], "tokenizer": corpus.tokenizer.sha256}


def _check_corpus(run_dir: Path, corpus: Corpus, record: dict[str, Any]) -> None:
    """Raise ValueError unless texts and tokenizer are those that the run began with."""
    for now, then in zip(corpus.sources, record.get("texts", []), strict=False):
        if now[1:] != (then["size"], then["sha256"]):
            raise ValueError(f"{now.name} has changed since {run_dir} began; restore it, or begin a new run")
    saved, then = run_dir / "tokenizer.json", record.get("tokenizer")
    if then is None and saved.exists():  # of an older version
        then = hashlib.sha256(checkpoint.read_bytes(saved)).hexdigest()
    if then not in (None, corpus.tokenizer.sha256):
        raise ValueError(f"{saved}: now another BPE is learned from the text; go on with the library's version of then")


# ---- Reading ----


def load_checkpoint(run_dir: Path, config: TrainConfig, id: str) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and info of a run's checkpoint. Raises ValueError unless they are of this config, with checksum `id`."""
    path, kinds = run_dir / "checkpoint.safetensors", ("params", "m", "v")[: 3 if config.optimizer == "adamw" else 1]
    shapes = {f"{kind}/{name}": w.shape for kind in kinds for name, w in weights(config).items()}
    arrays, info = checkpoint.load(path, shapes)
    step, seconds = info.get("step"), info.get("seconds")
    if type(step) is not int or not 0 <= step <= config.steps or type(seconds) not in (int, float):
        raise ValueError(f"{path} has {step} updates of {config.steps}; restore it, or delete it to begin at step 0")
    model = {**RETIRED, **asdict(config)}
    other = any(model.get(name) != value for name, value in info.get("model", {}).items())
    if other or info.get("config", id) != id:
        raise ValueError(f"{path} is of another run than config.json; restore the one or the other")
    return arrays, info


def load_model(run_dir: Path) -> tuple[TrainConfig, Arrays, int]:
    """Config and params of a run's checkpoint, and the number of its updates. Raises ValueError when there is none."""
    config, _, record = read_config(run_dir)
    arrays, info = load_checkpoint(run_dir, config, record["id"])
    return config, {name: arrays[f"params/{name}"] for name in weights(config)}, info["step"]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a record a step. Raises ValueError for a step that is damaged, missing or there twice."""
    path = run_dir / "metrics.jsonl"
    records = checkpoint.read_lines(path, identity(run_dir))
    for step, record in enumerate(records):
        if record["step"] != step or type(record.get("loss")) is not float:
            raise ValueError(f"{path}: line {step + 1} is not of step {step}; restore it, or cut it and all behind it")
    return records


def load_tokenizer(run_dir: Path) -> Tokenizer:
    """The tokenizer of a run: bytes, or the BPE in its `tokenizer.json`.

    Raises ValueError when that file is missing or not the run's, or the extra `data` is missing.
    """
    config, _, record = read_config(run_dir)
    if config.vocab_size == BYTES:
        return ByteTokenizer()
    return corpora.load_bpe(run_dir / "tokenizer.json", record.get("tokenizer"))
