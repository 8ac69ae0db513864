import os
from pathlib import Path

import numpy as np
import pytest

from microumup import checkpoint, files

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
        files.write_json(tmp_path / "c.json", {})
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == ["0o644", "0o644"]
