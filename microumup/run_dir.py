"""Run directories: where a run writes, and which run that is.

config.json               every option
metrics.jsonl             a line a step
checkpoint.safetensors    to resume from
tokenizer.json            of a BPE; bytes need none
scales.jsonl              if asked for
result.json               when the run is finished
"""

import json
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from microumup import __version__, checkpoint, corpora
from microumup.config import ModelConfig, TrainConfig, option_name
from microumup.cpu import Arrays
from microumup.data import ByteTokenizer, Tokenizer

RETIRED = {"tied_embeddings": False}  # options that are no more, with the value that says the same as their absence


def without_retired(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a config that an older version may have written, without those that are no more.

    Raises ValueError where one of these has another value than the only one that ever ran.
    """
    for name, only in RETIRED.items():
        if name in options and options[name] != only:
            raise ValueError(f"{option_name(name)}: {options[name]} cannot be loaded; the option was only ever {only}")
    return {name: options[name] for name in options if name not in RETIRED}


class RunDir:
    """A run directory while its run is on."""

    def __init__(self, path: Path) -> None:
        self.checkpoint, self.metrics = path / "checkpoint.safetensors", path / "metrics.jsonl"

    def resume(self) -> tuple[Arrays, int, float, list[float]] | None:
        """State, number of updates, seconds and losses up to the checkpoint, after which metrics are cut; or None."""
        if not self.checkpoint.exists():
            self.metrics.write_text("")
            return None
        state, info = checkpoint.load(self.checkpoint)
        lines = self.metrics.read_text().splitlines()[: info["step"]]
        self.metrics.write_text("".join(line + "\n" for line in lines))
        return state, info["step"], info["seconds"], [json.loads(line)["loss"] for line in lines]

    def log(self, line: dict[str, Any]) -> None:
        """Append a line of metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, state: Arrays, config: TrainConfig, step: int, seconds: float) -> None:
        """Write a checkpoint of the state after `step` updates."""
        model = {f.name: getattr(config, f.name) for f in fields(ModelConfig)}
        info = {"model": model, "step": step, "seconds": seconds, "microumup": __version__}
        checkpoint.save(self.checkpoint, state, info)


def new_run_dir(out: Path | None, config: TrainConfig) -> Path:
    """Make the run directory `out`, or runs/DATE-TIME-SCHEME-wWIDTH, and write config.json into it.

    Raises ValueError when `out` exists and is not empty: nothing is ever overwritten.
    """
    if out is None:
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.scheme}-w{config.width}"
        taken = sum(1 for _ in Path("runs").glob(f"{stem}*"))
        out = Path("runs") / (f"{stem}-{taken + 1}" if taken else stem)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        unfinished = (out / "config.json").exists() and not (out / "result.json").exists()
        mend = f"continue it with --resume {out}, or name another" if unfinished else "name another"
        raise ValueError(f"--out: {out} exists and is not an empty directory; {mend}")
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(out / "config.json", asdict(config))
    return out


def load_config(run_dir: Path) -> TrainConfig:
    """The config of a run. Raises ValueError when there is none."""
    path = run_dir / "config.json"
    if not path.exists():
        raise ValueError(f"{run_dir} holds no run, there is no config.json in it")
    try:
        options = without_retired(json.loads(path.read_text()))
        return TrainConfig(**options | {"text": tuple(options["text"])})
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a config of microumup {__version__} ({error})") from None


def load_tokenizer(run_dir: Path) -> Tokenizer:
    """The tokenizer saved in a run directory: the BPE in its `tokenizer.json`, or bytes if there is none.

    Raises ValueError when that file is no tokenizer, or the extra `data` is missing.
    """
    path = run_dir / "tokenizer.json"
    if not path.exists():
        return ByteTokenizer()
    return corpora.load_bpe(path)
