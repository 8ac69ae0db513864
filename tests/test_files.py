"""Files that are whole or not there, and records that know when they were changed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microumup import files


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.write_json(path, {"new": object()})

    def half(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, half)
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_what_is_renamed_is_on_the_disk_and_so_is_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        did.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        did.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    files.write_json(tmp_path / "c.json", {})
    assert did == [f"sync .c.json.{os.getpid()}.tmp", "replace", f"sync {tmp_path.name}"]


def test_json_is_json(tmp_path: Path) -> None:
    content = {
        "a": float("nan"),
        "b": [np.float32(1.5), np.int64(2), (float("-inf"),)],
        "c": np.bool(True),
        "µ": "\udcff",
    }
    text = files.to_json(content)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, 2, [None]], "c": True, "µ": "\udcff"}
    text.encode("ascii")


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
                                               lambda x: st.lists(x) | st.dictionaries(st.text(), x))))  # fmt: skip
def test_a_sealed_record_comes_back_and_no_other_does(record: dict[str, Any]) -> None:
    record.pop("crc32", None)
    text = files.to_json(files.sealed(record, "owner"))
    assert files.unsealed(text, "owner") == json.loads(files.to_json(record))
    with pytest.raises(ValueError, match="checksum"):
        files.unsealed(text, "another")
    with pytest.raises(ValueError, match="checksum"):
        files.unsealed(files.to_json(files.sealed(record, "owner") | {"more": 1.5e-7}), "owner")


def test_a_checksum_under_the_name_of_another_value_is_no_older_version_s() -> None:
    """Its key written over by that of the loss, it was the loss, of a record that nobody checked."""
    text = files.to_json(files.sealed({"loss": 1.5, "seed": 0}))
    for name in ("loss", "valid", ""):
        with pytest.raises(ValueError, match="checksum"):
            files.unsealed(text.replace("crc32", name))


def test_a_checksum_that_has_moved_elsewhere_is_no_older_version_s() -> None:
    """Two lines of a record swapped, that of the checksum with one of an object in it, were accepted unchecked."""
    moved = {"loss": 1.5, "config": {"width": 8, "crc32": "0123abcd"}, "seed": 0}
    with pytest.raises(ValueError, match="checksum"):
        files.unsealed(json.dumps(moved), "owner")
    assert files.unsealed('{"loss": 1.5}', "owner") == {"loss": 1.5}


@pytest.mark.parametrize("content", [b"", b"3", b"[1]", b"{", b"\xff", b"[" * 10**5, b"9" * 10**4, b"null"])
def test_what_is_no_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        files.read_record(tmp_path / "r.json")
    assert len(str(error.value)) < 250
    assert "\n" not in str(error.value)


def test_a_line_that_has_no_room_is_an_error_and_half_of_it_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    files.append(path, {"step": 0})
    with pytest.raises(OSError, match=r"No space left.*/dev/full"):
        files.append(Path("/dev/full"), {"step": 1})
    files.append(path, {"step": 1}, {"step": 2})
    os.truncate(path, path.stat().st_size - 5)
    assert files.read_lines(path) == [{"step": 0}, {"step": 1}]
