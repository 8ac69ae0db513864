"""Files that are whole or not there, and know when they were changed.

What is written goes to a temporary file beside its place, onto the disk, and only then takes the place of the old one.
A record, an object of JSON, holds a checksum of itself; who reads it is told of a flipped bit.
"""

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from itertools import count
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from microumup.fp8 import Format

if TYPE_CHECKING:
    from filelock import BaseFileLock

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
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def to_disk(*paths: Path) -> None:
    """Wait until files, or the names in directories, are on the disk."""
    for path in paths:
        folder = path.is_dir()
        if folder and os.name == "nt":  # Windows opens no directories, and flushes only what it may write to
            continue
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
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


def lock(directory: Path) -> "BaseFileLock":
    """A lock on a directory until it is released, or this process ends, however it does.

    Raises ValueError when it is locked already, and OSError where nothing can be written. A file system without locks
    is said, and nothing is locked there.
    """
    from filelock import FileLock, Timeout  # what only reads has no use for it

    # without locks the library would make a file in place of one, which outlives a kill
    held = FileLock(directory / ".lock", timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        raise ValueError(f"{directory}: another process is writing here; wait for it, or name another") from None
    except OSError as error:
        if error.filename:  # it is no lock that is missing
            raise
        note(f"{directory}: its file system has no locks ({one_line(error)}); see that nobody else writes here")
    return held


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


# ---- JSON ----


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


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON."""
    write_atomically(path, lambda temporary: temporary.write_text(to_json(content, indent=2) + "\n"))


def read_json(path: Path, kind: type) -> Any:
    """The JSON in a file, a list or a dict. Raises ValueError, naming the file and the mend, for anything else."""
    try:
        text = read_bytes(path)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error}); see that it is there, and readable") from None
    try:
        if not isinstance(content := json.loads(text), kind):
            raise ValueError(f"it is no {kind.__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); restore it, or delete it") from None
    return content


# ---- Records ----


def sealed(record: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    """The record with a checksum of itself and of its owner's name, `crc32`, as `unsealed` expects it."""
    return dict(record) | {"crc32": _crc32(record, owner)}


def _crc32(record: Mapping[str, Any], owner: str) -> str:
    canonical = json.dumps(_plain(record), sort_keys=True)  # the same of what was written and of what is read
    return f"{crc32((owner + canonical).encode()):08x}"


def unsealed(text: str | bytes, owner: str = "") -> dict[str, Any]:
    """The record in a JSON text, without its checksum. One of an older version has none, and is taken as it is.

    Raises ValueError, in a line that names no file, when it is no record or was changed.
    """
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError("it is no record")
    except (ValueError, RecursionError) as error:
        raise ValueError(one_line(error)) from None
    if ("crc32" in record or _has_lost_it(record)) and record.pop("crc32", None) != _crc32(record, owner):
        raise ValueError("its checksum is another, it was changed")
    return record


def _has_lost_it(record: dict[str, Any]) -> bool:
    """Whether a record's checksum is elsewhere in it, or under another key: then it is no older version's."""
    return "crc32" in str(record) or any(re.fullmatch("[0-9a-f]{8}", x) for x in record.values() if isinstance(x, str))


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file that `write_json(path, sealed(…))` wrote. Raises ValueError, without naming the file."""
    return unsealed(read_bytes(path))


def append(path: Path, *records: Mapping[str, Any], owner: str = "") -> None:
    """Add each record, sealed, as a line to a file. Raises OSError where there is no room for all of them."""
    content = _lines(path, records, owner)
    try:
        with path.open("ab", buffering=0) as file:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_lines(path: Path, records: Iterable[Mapping[str, Any]], owner: str = "") -> None:
    """Write a file of these records."""
    write_atomically(path, lambda temporary: temporary.write_bytes(_lines(path, records, owner)))


def _lines(path: Path, records: Iterable[Mapping[str, Any]], owner: str) -> bytes:
    # a line of another file is not one of this
    return b"".join((to_json(sealed(record, owner + path.name)) + "\n").encode() for record in records)


def read_lines(path: Path, owner: str = "") -> list[dict[str, Any]]:
    """The records in a file that has one a line, none if there is no such file. Half a line at its end is left out, and
    said. Raises ValueError, naming the line, for one that is damaged."""
    records: list[dict[str, Any]] = []
    try:
        content = read_bytes(path, LARGEST_LOG) if path.exists() else b""
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    *lines, half = content.split(b"\n")
    carry = b'"crc32"' in content  # checksums: each line does, or none, of an older version
    for number, line in enumerate(lines, start=1):
        try:
            if carry and b'"crc32"' not in line:
                raise ValueError("it has no checksum")
            records.append(unsealed(line, owner + path.name))
            if type(records[-1].get("step")) is not int:
                raise ValueError("it is of no step")
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is damaged ({error}); restore it") from None
    if half:
        note(f"{path} ends in half a line, as a full disk or a kill leaves it; it is left out")
    return records


# ---- Saying it ----


def note(text: str) -> None:
    """Say on the error output what is no error."""
    print(f"microumup: {text}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """Text of an error, cut to a line's length."""
    text = re.sub(r"\s+", " ", str(error) or type(error).__name__)
    return text if len(text) <= 200 else text[:200] + "…"
