from pathlib import Path

import numpy as np
import pytest

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
