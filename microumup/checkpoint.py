"""Checkpoints: named arrays and a few numbers in one safetensors file, written whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from microumup.backend import Array, to_host


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then rename it: `path` is never half written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def save(path: Path, arrays: dict[str, Array], info: dict[str, Any]) -> None:
    """Write `arrays`, copied to the host if they live on a GPU, and `info`, anything JSON can hold."""
    host = {name: np.ascontiguousarray(to_host(array)) for name, array in arrays.items()}  # safetensors assumes it
    write_atomically(path, lambda temporary: save_file(host, temporary, metadata={"info": json.dumps(info)}))


def load(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the info that `save` wrote. Raises ValueError when `path` holds no checkpoint."""
    try:
        with safe_open(path, framework="numpy") as file:
            info = json.loads((file.metadata() or {})["info"])
            return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no checkpoint here") from None
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path}: not a checkpoint of microumup ({error})") from None
