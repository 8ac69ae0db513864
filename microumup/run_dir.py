"""Run directories: where a run writes, and which run that is.

config.json               every option
metrics.jsonl             a line a step
checkpoint.safetensors    to resume from
tokenizer.json            of a BPE; bytes need none
scales.jsonl              if asked for
result.json               when the run is finished
"""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from microumup import __version__, checkpoint
from microumup.config import TrainConfig


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
        options = json.loads(path.read_text())
        return TrainConfig(**options | {"text": tuple(options["text"])})
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a config of microumup {__version__} ({error})") from None
