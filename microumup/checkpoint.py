"""Files that are whole or not there, and know when they were changed: checkpoints in safetensors, records in JSON.

What is written goes to a temporary file beside its place, onto the disk, and only then takes the place of the old one.
A checkpoint holds a checksum of all that is in it, a record one of itself; who reads them is told of a flipped bit.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from importlib import import_module
from io import FileIO
from itertools import count
from math import isfinite, prod
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from microumup.backend import Array, to_host
from microumup.fp8 import Format

try:
    import fcntl
except ImportError:  # on Windows
    fcntl, msvcrt = None, import_module("msvcrt")  # type: ignore[assignment]

LARGEST_RECORD = 1 << 26  # bytes of a JSON file that is read, 64 MiB: no more memory than that for a file gone wrong
LARGEST_LOG = 1 << 32  # of one that has a line a step: ten million steps


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then rename it: who opens `path` finds the old content or the
    new, whole, after a power cut too. Its permissions are those of any new file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors replaces the file by one for its owner alone
        to_disk(temporary)
        temporary.replace(path)
        to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise OSError(number, reason, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_directory(path: Path) -> Path:
    """Make the directory `path`, or one called after it where others have made that: nobody else has made it."""
    for number in count(1):
        new = path.with_name(f"{path.name}-{number}") if number > 1 else path
        with suppress(FileExistsError):
            new.mkdir(parents=True)
            break
    return new


class Lock:
    """A lock on a directory until it is released, or this process ends, however it does.

    Raises ValueError when another process has it.
    """

    def __init__(self, directory: Path) -> None:
        self._file = (directory / ".lock").open("ab")
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                note(f"{directory}: its file system has no locks ({error.strerror}); see that nobody else writes here")
                return
            self.release()
            raise ValueError(f"{directory}: another process is writing here; wait for it, or name another") from None

    def release(self) -> None:
        """Let go of it."""
        self._file.close()


# ---- Records ----


def to_json(content: object, indent: int | None = None) -> str:
    """`content` as JSON: numbers of numpy as plain ones, null for what is not finite, objects for tuples and classes
    whose parts have names, a format as its name."""
    return json.dumps(_plain(content), indent=indent, allow_nan=False)


def _plain(x: Any) -> Any:
    if type(x) in (str, int, bool) or (type(x) is float and isfinite(x)):  # most of what there is
        return x
    if isinstance(x, Format):
        return x.name
    x = x.item() if isinstance(x, np.generic) else vars(x) if is_dataclass(x) else x
    x = x._asdict() if hasattr(x, "_asdict") else x
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    return None if isinstance(x, float) and not isfinite(x) else x


def sealed(record: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    """The record with a checksum of itself and of its owner's name, `crc32`, as `unsealed` expects it."""
    return dict(record) | {"crc32": _crc32(record, owner)}


def _crc32(record: Mapping[str, Any], owner: str) -> str:
    canonical = json.dumps(_plain(record), sort_keys=True)  # the same of what was written and of what is read
    return f"{crc32((owner + canonical).encode()):08x}"


def unsealed(text: str | bytes, owner: str = "") -> dict[str, Any]:
    """The record in a JSON text, without its checksum. One of an older version has none, and is taken as it is.

    Raises ValueError, without naming a file, when it is no record or was changed.
    """
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("it is no record")
    carries = "crc32" in record or "crc32" in str(record)  # one that is elsewhere by now is no older version's
    if carries and record.pop("crc32", None) != _crc32(record, owner):
        raise ValueError("its checksum is another, it was changed")
    return record


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file that `write_json(path, sealed(…))` wrote. Raises ValueError, without naming the file."""
    try:
        return unsealed(read_bytes(path))
    except ValueError as error:
        raise ValueError(one_line(error)) from None


def read_json(path: Path, kind: type) -> Any:
    """The JSON in a file, a list or a dict. Raises ValueError, naming the file and the mend, for anything else."""
    try:
        if not isinstance(content := json.loads(read_bytes(path)), kind):
            raise ValueError(f"it is no {kind.__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); restore it, or delete it") from None
    return content


def read_lines(path: Path, owner: str = "") -> list[dict[str, Any]]:
    """The records in a file that has one a line, none if there is no such file. Half a line at its end is left out, and
    said. Raises ValueError, naming the line, for one that is damaged."""
    records: list[dict[str, Any]] = []
    try:
        *lines, half = read_bytes(path, LARGEST_LOG).split(b"\n") if path.exists() else [b""]
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        try:
            records.append(unsealed(line, owner + path.name))
            if type(records[-1].get("step")) is not int:
                raise ValueError("it is of no step")
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is damaged ({one_line(error)}); restore it") from None
    if half:
        note(f"{path} ends in half a line, as a full disk or a kill leaves it; it is left out")
    return records


def line(record: Mapping[str, Any], owner: str = "") -> bytes:
    """The record, sealed, as a line of a file."""
    return (to_json(sealed(record, owner)) + "\n").encode()


def write_line(file: FileIO, record: Mapping[str, Any], owner: str = "") -> None:
    """Write the record as a line. Raises OSError where there is no room for all of it."""
    content = line(record, owner + Path(str(file.name)).name)  # a line of another file is not one of this
    try:
        if file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]], owner: str = "") -> None:
    """Write a file of these records."""
    content = b"".join(line(record, owner + path.name) for record in records)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def append(path: Path, record: Mapping[str, Any], owner: str = "") -> None:
    """Add the record as a line to a file."""
    with path.open("ab", buffering=0) as file:
        write_line(file, record, owner)


def note(text: str) -> None:
    """Say on the error output what is no error."""
    print(f"microumup: {text}", file=sys.stderr)


def read_bytes(path: Path, largest: int = LARGEST_RECORD) -> bytes:
    """The content of a regular file of at most so many bytes. Raises ValueError, also where it cannot be read."""
    try:
        size = path.stat().st_size
        if not path.is_file() or size > largest:
            kind = "Is a directory" if path.is_dir() else "it is no regular file"
            raise ValueError(f"{size:,} bytes are too many" if path.is_file() else kind)
        return path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def one_line(error: BaseException) -> str:
    """Text of an error, cut to a line's length."""
    text = re.sub(r"\s+", " ", str(error) or type(error).__name__)
    return text if len(text) <= 200 else text[:200] + "…"


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON."""
    write_atomically(path, lambda temporary: temporary.write_text(to_json(content, indent=2) + "\n"))


# ---- Checkpoints ----


def save(path: Path, arrays: dict[str, Array], info: dict[str, Any]) -> None:
    """Write `arrays`, copied to the host if they live on a GPU, and `info`, anything JSON can hold."""
    host = {name: np.ascontiguousarray(to_host(array)) for name, array in arrays.items()}  # safetensors assumes it
    text = to_json(info)
    metadata = {"info": text, "sha256": _sha256(host, text)}
    write_atomically(path, lambda temporary: save_file(host, temporary, metadata=metadata))


def _sha256(arrays: dict[str, Array], info: str) -> str:
    digest = hashlib.sha256(info.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\0{name} {array.dtype.str} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def load(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the info that `save` wrote; where `shapes` are given, float32 arrays of these names and shapes.

    Raises ValueError when `path` holds no checkpoint, another one than that, or one that was changed. Nothing is read
    before names and shapes are known to fit.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no checkpoint here")
    damaged = f"{path}: not a checkpoint of microumup"
    if shapes is not None and path.stat().st_size > 4 * sum(map(prod, shapes.values())) + LARGEST_RECORD:
        raise ValueError(f"{damaged} of this config (it is too large); delete it to begin at step 0")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            info = json.loads(metadata["info"])
            names = list(file.keys())
            found = {
                name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) for name in names
            }
            if shapes is not None:
                _check_shapes(path, found, {name: ("F32", shape) for name, shape in shapes.items()})
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, TypeError, RecursionError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{damaged} ({one_line(error)}); delete it to begin at step 0") from None
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
