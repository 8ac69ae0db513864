"""Which GPUs there are, and how they multiply: on the double of CuPy."""

from types import SimpleNamespace

import cupy_double
import pytest
from cupy_double import compute_types

from microumup.devices import use_tf32, visible

# ---- TF32 ----


def test_products_are_in_float32_unless_tf32_is_asked_for_and_again_after_it(double):
    kinds = double._core._routines_linalg
    for on in (False, True, False):  # as the runs of a sweep in one process
        use_tf32(on, "gpu")
        assert compute_types == {"f": kinds.COMPUTE_TYPE_TF32 if on else kinds.COMPUTE_TYPE_DEFAULT}


@pytest.mark.parametrize("device", ["cpu", "an old GPU"])
def test_tf32_is_refused_where_there_is_none(monkeypatch, double, device):
    monkeypatch.setattr(double.cuda, "Device", lambda: SimpleNamespace(compute_capability="75"))
    device = "gpu" if "GPU" in device else device
    use_tf32(False, device)
    with pytest.raises(ValueError, match=r"^--tf32: is for a GPU of compute capability 8\.0 or more; leave it out$"):
        use_tf32(True, device)
    assert 7 not in compute_types.values()


# ---- Which ----


@pytest.mark.parametrize(
    ("seen", "names"),
    [(None, ["0", "1"]), ("", ["0", "1"]), ("2, 5", ["2", "5"]), ("GPU-8a,GPU-3c", ["GPU-8a", "GPU-3c"])],
)
def test_devices_are_counted_among_those_that_this_process_sees(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, names: list[str]
) -> None:
    cupy_double.install(monkeypatch, devices=2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert visible([0, 1]) == names
    assert visible([1]) == names[1:]
