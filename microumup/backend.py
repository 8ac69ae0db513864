"""The place where arrays live: NumPy on a CPU, CuPy on a GPU. The only module that imports cupy.

The rest of the package writes `xp = xp_of(x)` and calls `xp.exp`, `xp.zeros`, … : the same line runs on both.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # a numpy array, or a cupy array where there is a GPU


def install_hint(extra: str) -> str:
    """The command that gets the libraries of an extra, for the way in which this package itself is installed."""
    clone = Path(__file__).resolve().parent.parent
    if (clone / "pyproject.toml").exists():  # no index has the package that it is: say where to install it from
        return f"pip install -e '.[{extra}]' in {clone}"
    return f"pip install 'microumup[{extra}]'"


def xp_of(array: Array) -> Any:
    """Module whose functions fit `array`: `numpy` or `cupy`."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def choose_device(name: str) -> str:
    """Turn `auto`, `cpu` or `gpu` into `cpu` or `gpu`. `auto` is `gpu` where CuPy finds one.

    Raises ValueError when `gpu` is asked for and CuPy is missing, or finds no driver or no device.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"--device: {name!r} is not one of auto, cpu, gpu")
    problem = "it is not asked for" if name == "cpu" else _gpu_problem()
    if problem and name == "gpu":
        mend = f"{install_hint('gpu13')} (gpu13: CuPy for CUDA 13; gpu: for CUDA 12)"
        raise ValueError(f"--device gpu: {problem}; {mend}, or use --device cpu")
    return "cpu" if problem else "gpu"


def _gpu_problem() -> str:
    """Reason why no GPU can be used here, in a few words; empty when one can."""
    try:
        cupy = importlib.import_module("cupy")
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return "CuPy finds no GPU"
        cupy.zeros(1) + 1  # compiles a kernel, which needs more than a driver
    except ModuleNotFoundError:
        return "CuPy is not installed"
    except Exception as error:  # cupy has types of its own for a missing driver, library or compiler: any will do
        return f"CuPy cannot use a GPU ({(str(error) or type(error).__name__).splitlines()[0]})"
    return ""


def to_device(array: Array, device: str) -> Array:
    """`array` in the memory of `device` (`cpu` or `gpu`); no copy where it is already there."""
    return importlib.import_module("cupy").asarray(array) if device == "gpu" else to_host(array)


def to_host(array: Array) -> Array:
    """`array` as a numpy array; no copy where it already is one."""
    return array if isinstance(array, (np.ndarray, np.generic)) else array.get()


def scatter_add(rows: int, index: Array, values: Array) -> Array:
    """out[i] = the sum of values[j] over all j with index[j] == i. index (N,), values (N, D) -> out (rows, D).

    Sorting first gives the same bits on every run, as an atomic scatter-add on a GPU could not. There each sum is the
    difference of two cumulative ones, in float64: to learn how many ids occur, the host would wait for the device.
    """
    xp = xp_of(values)
    order = xp.argsort(index, kind="stable")
    ids, values = index[order], values[order]
    if xp is not np:
        total = xp.concatenate((xp.zeros((1, values.shape[1])), xp.cumsum(values, axis=0, dtype=np.float64)))
        return xp.diff(total[xp.searchsorted(ids, xp.arange(rows + 1))], axis=0).astype(values.dtype)
    starts = np.flatnonzero(np.concatenate((np.ones(1, dtype=bool), ids[1:] != ids[:-1])))
    out = np.zeros((rows, values.shape[1]), dtype=values.dtype)
    out[ids[starts]] = np.add.reduceat(values, starts, axis=0, dtype=np.float64)
    return out
