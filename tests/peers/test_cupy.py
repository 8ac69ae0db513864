"""The double of CuPy against CuPy itself, which can be imported and looked at where there is no GPU."""

import inspect
import re
from typing import Any

import cupy_double
import numpy as np
import pytest
from test_double import MISSING, MISSING_METHODS

from microumup import cuda, devices

real = pytest.importorskip("cupy", reason="needs CuPy: pip install 'microumup[gpu-check]'")


def parameters(function: Any) -> list[str]:
    """Names of the parameters, by the signature or, where compiled code has none, by the first line of its docs."""
    try:
        found = list(inspect.signature(function).parameters)
    except ValueError:
        line = re.search(r"\((.*)\)", function.__doc__.splitlines()[0])
        assert line
        found = [re.sub(r"=.*", "", text).split()[-1].lstrip("*") for text in line[1].split(", ") if text != r"\*"]
    return found[1:] if found[0] == "self" else found


def test_it_has_no_name_that_cupy_lacks() -> None:
    public = {name for name in vars(cupy_double.cupy) if not name.startswith("__")}
    assert not {name for name in public if not hasattr(real, name)}
    assert not {name for name in dir(cupy_double.ndarray) if not hasattr(real.ndarray, name)} - {"_host"}
    assert len(public) > 60


def test_it_has_the_names_within_names() -> None:
    for path in ("cuda.runtime.getDeviceCount", "cuda.Device.compute_capability", "add.reduceat"):
        found = real
        for name in path.split("."):
            found = getattr(found, name)
    linalg, ours = real._core._routines_linalg, cupy_double.cupy._core._routines_linalg
    for name in vars(ours):
        assert hasattr(linalg, name), name
    assert (ours.COMPUTE_TYPE_DEFAULT, ours.COMPUTE_TYPE_TF32) == (
        linalg.COMPUTE_TYPE_DEFAULT,
        linalg.COMPUTE_TYPE_TF32,
    )


@pytest.mark.parametrize("name", sorted(cupy_double.UFUNCS.split()))
def test_a_function_of_elements_takes_what_it_takes(name: str) -> None:
    assert isinstance(getattr(real, name), real.ufunc)
    known = parameters(getattr(real, name))
    assert {"out", "casting", "dtype"} <= set(known)
    assert not {"where", "subok", "order", "signature"} & set(known)
    assert getattr(real, name).nin == getattr(np, name).nin


@pytest.mark.parametrize("name", sorted({**cupy_double.FUNCTIONS, **cupy_double.CREATION}))
def test_a_function_takes_what_it_takes(name: str) -> None:
    ours = {**cupy_double.FUNCTIONS, **cupy_double.CREATION}[name].split()
    assert parameters(getattr(real, name))[: len(ours)] == ours


@pytest.mark.parametrize("name", sorted(cupy_double.METHODS))
def test_a_method_takes_what_it_takes(name: str) -> None:
    ours = cupy_double.METHODS[name].split()
    assert parameters(getattr(real.ndarray, name))[: len(ours)] == ours


def test_a_kernel_takes_what_it_takes() -> None:
    assert {"code", "name", "options"} <= set(parameters(real.RawKernel.__init__) + re.findall(
        r"(\w+)[,=]", real.RawKernel.__doc__.splitlines()[0]))  # fmt: skip
    assert real.RawKernel("KERNEL", "name", cuda.OPTIONS)  # compiled at its first launch only


@pytest.mark.parametrize("name", MISSING)
def test_what_it_refuses_for_want_of_a_function_cupy_lacks(name: str) -> None:
    assert hasattr(np, name)
    assert not hasattr(real, name)


@pytest.mark.parametrize("name", MISSING_METHODS)
def test_what_it_refuses_for_want_of_a_method_cupy_lacks(name: str) -> None:
    assert not hasattr(real.ndarray, name)


def test_tf32_is_off_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs no device: the package's own call of it, and CuPy's answer."""
    monkeypatch.setattr(devices, "to_device", lambda *_: None)
    monkeypatch.setattr(devices, "xp_of", lambda _: real)
    linalg = real._core._routines_linalg
    linalg.set_compute_type(np.float32, linalg.COMPUTE_TYPE_FP32)
    devices.use_tf32(False, "gpu")
    assert linalg.get_compute_type(np.float32) == linalg.COMPUTE_TYPE_DEFAULT


@pytest.mark.parametrize(("option", "known"), [("where", False), ("dtype", True), ("axis", True)])
def test_the_comparison_sees_what_is_not_there(option: str, known: bool) -> None:
    """Or it would compare nothing with nothing."""
    assert (option in parameters(real.sum)) is known
    assert (option in parameters(real.ndarray.sum)) is known
