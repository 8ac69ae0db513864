"""Runs as small as they can be, and what is done to them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microumup import trainer
from microumup.config import TrainConfig
from microumup.data import Corpus
from microumup.run_dir import RunDir
from microumup.train import main

Refused = Callable[[Callable[[list[str]], int], list[str]], str]

SIZES = ["--width", "8", "--head-dim", "4", "--layers", "1", "--seq-len", "8", "--batch-size", "2", "--threads", "1"]


class KilledError(BaseException):
    pass


def options(out: Path, text: Path, *more: str) -> list[str]:
    return [*SIZES, "--steps", "12", "--save-every", "4", "--text", str(text), "--out", str(out), "--quiet", *more]


def made(out: Path | None, config: TrainConfig, corpus: Corpus) -> Path:
    """A run that has been entered, and not begun."""
    with RunDir.create(out, config, corpus) as run:
        return run.path


def killed(argv: list[str], at: int = 10) -> None:
    """A training that ends, as killed, before update `at`."""

    def launch(self: trainer.Trainer, step: int, **kwargs: Any) -> Any:
        if step == at:
            raise KilledError
        return before(self, step, **kwargs)

    before = trainer.Trainer.launch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "launch", launch)
        with pytest.raises(KilledError):
            main(argv)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def refuses(refused: Refused, run: Path, *words: str, argv: list[str] | None = None) -> None:
    """Resuming is refused in one line with these words, and nothing is written."""
    before = content(run)
    error = refused(main, argv or ["--resume", str(run)])
    assert all(word in error for word in words), error
    assert content(run) == before


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file as a person would, who knows nothing of its checksum."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
