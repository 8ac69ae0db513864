import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microumup import checkpoint

ARRAYS = {"params/a": np.arange(6, dtype=np.float32).reshape(2, 3), "m/a": np.zeros((0, 3))}


def test_arrays_and_info_come_back_as_they_went(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, ARRAYS, {"step": 3, "η": [1.5, None]})
    arrays, info = checkpoint.load(path)
    assert info == {"step": 3, "η": [1.5, None]}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def test_a_transposed_array_keeps_its_values(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": ARRAYS["params/a"].T}, {})
    assert np.array_equal(checkpoint.load(path)[0]["a"], ARRAYS["params/a"].T)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    checkpoint.write_json(path, {"old": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.write_json(path, {"new": object()})

    def half(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, half)
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.safetensors: there is no checkpoint here"):
        checkpoint.load(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("hello, this is no safetensors file")
    with pytest.raises(ValueError, match="text: not a checkpoint of microumup"):
        checkpoint.load(tmp_path / "text")


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"a": np.ones((3, 5), np.float32)}, {"step": 3})
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        message = ""
        try:
            arrays, info = checkpoint.load(path)
        except ValueError as error:
            message = str(error)
        if message:
            assert str(path) in message
            assert "delete it to begin at step 0" in message
        else:  # a space in the header, say
            assert info == {"step": 3}
            assert np.array_equal(arrays["a"], np.ones((3, 5), np.float32))


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    """safetensors made them the owner's alone."""
    before = os.umask(0o022)
    try:
        checkpoint.save(tmp_path / "c.safetensors", {"a": np.ones(3)}, {})
        checkpoint.write_json(tmp_path / "c.json", {})
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == ["0o644", "0o644"]


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
    checkpoint.write_json(tmp_path / "c.json", {})
    assert did == [f"sync .c.json.{os.getpid()}.tmp", "replace", f"sync {tmp_path.name}"]


def test_json_is_json(tmp_path: Path) -> None:
    content = {
        "a": float("nan"),
        "b": [np.float32(1.5), np.int64(2), (float("-inf"),)],
        "c": np.bool(True),
        "µ": "\udcff",
    }
    text = checkpoint.to_json(content)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, 2, [None]], "c": True, "µ": "\udcff"}
    text.encode("ascii")


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
                                               lambda x: st.lists(x) | st.dictionaries(st.text(), x))))  # fmt: skip
def test_a_sealed_record_comes_back_and_no_other_does(record: dict[str, Any]) -> None:
    record.pop("crc32", None)
    text = checkpoint.to_json(checkpoint.sealed(record, "owner"))
    assert checkpoint.unsealed(text, "owner") == json.loads(checkpoint.to_json(record))
    with pytest.raises(ValueError, match="checksum"):
        checkpoint.unsealed(text, "another")
    with pytest.raises(ValueError, match="checksum"):
        checkpoint.unsealed(checkpoint.to_json(checkpoint.sealed(record, "owner") | {"more": 1.5e-7}), "owner")


def test_a_checksum_that_has_moved_elsewhere_is_no_older_version_s() -> None:
    """Two lines of a record swapped, that of the checksum with one of an object in it, were accepted unchecked."""
    moved = {"loss": 1.5, "config": {"width": 8, "crc32": "0123abcd"}, "seed": 0}
    with pytest.raises(ValueError, match="checksum"):
        checkpoint.unsealed(json.dumps(moved), "owner")
    assert checkpoint.unsealed('{"loss": 1.5}', "owner") == {"loss": 1.5}


@pytest.mark.parametrize("content", [b"", b"3", b"[1]", b"{", b"\xff", b"[" * 10**5, b"9" * 10**4, b"null"])
def test_what_is_no_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        checkpoint.read_record(tmp_path / "r.json")
    assert len(str(error.value)) < 250
    assert "\n" not in str(error.value)


def test_a_line_that_has_no_room_is_an_error_and_half_of_it_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    checkpoint.append(path, {"step": 0})
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match=r"No space left.*full"):
        checkpoint.write_line(full, {"step": 1})
    with path.open("ab") as file:
        file.write(checkpoint.line({"step": 1}, path.name)[:-5])
    assert checkpoint.read_lines(path) == [{"step": 0}]
