import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_double import counts

from microumup import backend
from microumup.backend import choose_device, install_hint, scatter_add, to_device, to_host, xp_of


@pytest.fixture(params=["cpu", "gpu"])
def device(request, double):
    """Both kinds of arrays, those on the double of CuPy too."""
    return request.param


def plant(monkeypatch, get_device_count, zeros=np.zeros):
    runtime = SimpleNamespace(getDeviceCount=get_device_count)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), zeros=zeros))


def raising(error):
    def function(*_):
        raise error

    return function


# ---- Which module, which device ----


def test_xp_of_is_the_module_of_the_array(double):
    assert xp_of(np.ones(3)) is np
    assert xp_of(np.float32(1)) is np
    assert xp_of(double.ones(3)) is double


def test_cpu_never_looks_for_cupy(monkeypatch):
    plant(monkeypatch, raising(AssertionError("looked")))
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(("devices", "auto"), [(2, "gpu"), (0, "cpu")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch, devices, auto):
    plant(monkeypatch, lambda: devices)
    assert choose_device("auto") == auto


def test_gpu_where_there_is_one(double):
    assert choose_device("gpu") == "gpu"


UNUSABLE = {
    "no device": ((lambda: 0,), "CuPy finds no GPU"),
    "no driver": (
        (raising(RuntimeError("cudaErrorInsufficientDriver: too old\nmore")),),
        "cudaErrorInsufficientDriver",
    ),
    "no message": ((raising(RuntimeError),), r"CuPy cannot use a GPU \(RuntimeError\)"),
    "no compiler": ((lambda: 1, raising(ImportError("no nvrtc"))), r"CuPy cannot use a GPU \(no nvrtc\)"),
}


@pytest.mark.parametrize("why", ["no CuPy", *UNUSABLE])
def test_without_a_usable_gpu_auto_is_cpu_and_gpu_is_an_error_of_one_line(monkeypatch, why):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy raises
    reason = "CuPy is not installed"
    if why in UNUSABLE:
        planted, reason = UNUSABLE[why]
        plant(monkeypatch, *planted)
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match=reason) as error:
        choose_device("gpu")
    message = str(error.value)
    assert message.startswith("--device gpu: ")
    assert install_hint("gpu13") in message
    assert "\n" not in message


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match="--device: 'cuda' is not one of auto, cpu, gpu"):
        choose_device("cuda")


def test_in_a_clone_a_hint_says_where_to_install_from():
    clone = Path(backend.__file__).parent.parent
    assert (clone / "pyproject.toml").exists()  # the tests are run in one
    assert install_hint("plot") == f"pip install -e '.[plot]' in {clone}"


def test_elsewhere_a_hint_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "__file__", str(tmp_path / "site-packages" / "microumup" / "backend.py"))
    assert install_hint("plot") == "pip install 'microumup[plot]'"


def test_no_other_module_spells_out_how_to_install_something():
    package = Path(backend.__file__).parent
    spelled = [str(path.relative_to(package)) for path in package.rglob("*.py") if "pip install" in path.read_text()]
    assert sorted(spelled) == ["backend.py"]


# ---- Moving arrays ----


def test_on_the_cpu_nothing_is_copied():
    x = np.ones(3)
    assert to_device(x, "cpu") is x
    assert to_host(x) is x


def test_an_array_comes_back_from_the_device_as_it_went(double):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = to_device(x, "gpu")
    assert type(there) is double.ndarray
    assert to_device(there, "gpu") is there
    back = to_host(there)
    assert type(back) is np.ndarray
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)
    assert counts == {"uploads": 1, "syncs": 1}


# ---- scatter_add ----


@pytest.mark.parametrize("ids", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scatter_add_is_add_at(device, dtype, ids):
    rng = np.random.default_rng(0)
    index, values = rng.integers(5, 15, size=200).astype(ids), rng.standard_normal((200, 3)).astype(dtype)
    expected = np.zeros((20, 3))
    np.add.at(expected, index, values.astype(np.float64))
    out = to_host(scatter_add(20, to_device(index, device), to_device(values, device)))
    assert out.dtype == dtype
    # 20 terms a row, each sum rounded: 20 units in the last place of numbers up to 16 (float64: of all 200 terms)
    np.testing.assert_allclose(out, expected, rtol=0, atol=20 * 16 * np.finfo(dtype).eps)
    assert not out[:5].any()  # ids that do not occur
    assert not out[15:].any()


def test_scatter_add_of_a_single_token(device):
    out = scatter_add(3, to_device(np.array([1]), device), to_device(np.array([[2.0, 3.0]]), device))
    assert to_host(out).tolist() == [[0, 0], [2, 3], [0, 0]]


def test_scatter_add_rounds_no_row_worse_for_the_rows_beside_it(device):
    index = np.array([0, 1, 1, 2])
    values = np.array([[1e6], [0.125], [0.01], [-1e6]], np.float32)
    out = to_host(scatter_add(3, to_device(index, device), to_device(values, device)))
    assert out[1, 0] == pytest.approx(0.135, rel=1e-6)  # the difference of two sums near 1e6 would be 0.125 or 0.1875


def test_scatter_add_gives_the_same_bits_again(device):
    rng = np.random.default_rng(0)
    index, values = rng.integers(10, size=1000), rng.standard_normal((1000, 4)).astype(np.float32)
    first, second = (scatter_add(10, to_device(index, device), to_device(values, device)) for _ in range(2))
    assert to_host(first).tobytes() == to_host(second).tobytes()


def test_scatter_add_never_waits_for_a_gpu(double):
    index, values = to_device(np.array([3, 1, 3]), "gpu"), to_device(np.ones((3, 2), np.float32), "gpu")
    counts.clear()
    scatter_add(5, index, values)
    assert (counts["syncs"], counts["uploads"]) == (0, 0)
