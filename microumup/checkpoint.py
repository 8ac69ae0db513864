"""Checkpoints: named arrays and a few numbers in one safetensors file, with a checksum of all that is in it."""

import errno
import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from microumup import files
from microumup.backend import to_host
from microumup.cpu import Arrays


def save(path: Path, arrays: Arrays, info: dict[str, Any]) -> None:
    """Write `arrays`, copied to the host if they live on a GPU, and `info`, anything JSON can hold."""
    host = {name: np.ascontiguousarray(to_host(array)) for name, array in arrays.items()}  # safetensors assumes it
    text = files.to_json(info)

    def write(temporary: Path) -> None:
        try:
            save_file(host, temporary, metadata={"info": text, "sha256": _sha256(host, text)})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from None

    files.write_atomically(path, write)


def _sha256(arrays: Arrays, info: str) -> str:
    digest = hashlib.sha256(info.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\0{name} {array.dtype.str} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def load(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the info that `save` wrote; where `shapes` are given, float32 arrays of these names and shapes.

    Raises ValueError when `path` holds no checkpoint, another one than that, or one that was changed. Nothing is read
    before names and shapes are known to fit.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no checkpoint here")
    damaged = f"{path}: not a checkpoint of microumup"
    if shapes is not None and path.stat().st_size > 4 * sum(map(prod, shapes.values())) + files.LARGEST_RECORD:
        raise ValueError(f"{damaged} of this config (it is too large); delete it to begin at step 0")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            info = json.loads(metadata["info"])
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
            if shapes is not None:
                _check_shapes(path, found, {name: ("F32", shape) for name, shape in shapes.items()})
            arrays = {name: file.get_tensor(name) for name in parts}
    except (SafetensorError, KeyError, TypeError, RecursionError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{damaged} ({files.one_line(error)}); delete it to begin at step 0") from None
    if not isinstance(info, dict) or (metadata.get("sha256") is None and "config" in info):
        raise ValueError(f"{damaged}, or a damaged one; delete it to begin at step 0")
    if metadata.get("sha256") not in (None, _sha256(arrays, metadata["info"])):  # an older version's has none
        raise ValueError(f"{path} is damaged, its checksum is another; delete it to begin at step 0")
    return arrays, info


def _check_shapes(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            has, needs = (f"{t[1]} of {t[0]}" if t else "nothing" for t in (found.get(name), expected.get(name)))
            raise ValueError(
                f"{path} does not fit its config.json: {name[:80]} is {has}, not {needs}; restore the one or the other"
            )
