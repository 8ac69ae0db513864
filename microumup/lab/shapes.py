"""CuPy without a GPU and without data: arrays that know their shape, so that a step of any size can be counted.

Within `installed()` what the package imports as cupy are the functions here. Training runs as it does on a GPU, line by
line, but no number exists: what is read back is 0. Each call is put down as it is made, and memory along with it.

    launches    a call that computes or copies is one, or as many as LAUNCHES says; a view is none
    bytes       of every operand, read, and of every result, written
    FLOPs       2 m n k of a product of matrices; one for each element that anything else goes over
    kernels     their array arguments count once, those IN_PLACE twice; FLOPS_PER_ELEMENT for each element of the
                largest, but SQUARE times N² where every token is compared with every other
    memory      an array lives as long as it, or a view of it, is referred to, and takes a multiple of CuPy's UNIT. What
                CuPy's pool keeps of what was freed, and the workspaces of its libraries, come on top
    copies      CuPy multiplies batches of matrices only if they are C-contiguous: all others it copies first
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.lib.stride_tricks import as_strided

from microumup.lab.ledger import Call, caller

UNIT = 512
LAUNCHES = {"argsort": 2, "cumsum": 2, "triu": 2}  # of what CuPy composes; what it joins is a launch for each array
IN_PLACE = {"softmax_forward": (0,), "softmax_backward": (1,), "cross_entropy": (0,), "adamw": (0, 2, 3)}  # arguments
FLOPS_PER_ELEMENT = 10  # of a kernel, about; its bytes take longer anyway
SQUARE = {"places_by_token": 6}

ATTRIBUTES = ("shape", "dtype", "ndim", "size", "nbytes", "flags", "strides")
OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power"}
REDUCTIONS = ("sum", "mean", "max", "min")
READINGS = {"__int__": int, "__float__": float, "__bool__": bool, "item": np.ndarray.item, "tolist": np.ndarray.tolist}
VIEWS = ("swapaxes", "transpose", "view")
OTHER_METHODS: dict[str, Any] = {
    "T": property(lambda x: x.transpose()),
    "ravel": lambda x: x.reshape(-1),
    "copy": lambda x: x.astype(x.dtype),
    "conj": lambda x: _ufunc("conjugate")(x) if x.dtype.kind == "c" else x,
}


class Meter:
    """Launches, syncs and uploads since `clear`, bytes alive now and at most since then."""

    def __init__(self, *, copies: bool = True) -> None:
        self.copies, self.live = copies, 0
        self.clear()

    def clear(self) -> None:
        """Begin anew, with what is alive now."""
        self.calls: list[Call] = []
        self.syncs = self.uploads = 0
        self.peak = self.live

    def note(self, function: str, *arrays: Any, gemm: int = 0, other: int = 0, launches: int = 1) -> None:
        """Put launches down to the op that asks for them; what they do to the first. Not all `arrays` need be some."""
        moved, op = sum(x.nbytes for x in arrays if isinstance(x, ndarray)), caller()
        self.calls.append(Call(op, function, gemm, other, moved, 0))
        self.calls.extend([Call(op, function, 0, 0, 0, 0)] * (launches - 1))


_meter: list[Meter] = []  # of the innermost `installed`


class Memory:
    """What one array was given, until its last view is gone."""

    def __init__(self, nbytes: int) -> None:
        self.meter, self.nbytes = _meter[-1], -(-nbytes // UNIT) * UNIT
        self.meter.live += self.nbytes
        self.meter.peak = max(self.meter.peak, self.meter.live)

    def __del__(self) -> None:
        self.meter.live -= self.nbytes


class ndarray:  # noqa: N801 - CuPy's name
    """Shape, strides and dtype of `_like`, an array of NumPy whose memory is not there, so that nobody may read it."""

    __module__ = "cupy"  # where xp_of looks for the functions that fit it
    __slots__ = ("_like", "_memory")
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None  # np.float32(2) * x ends up in our __rmul__

    def __init__(self, like: Any, memory: Memory) -> None:
        self._like, self._memory = like, memory

    def __getattr__(self, name: str) -> Any:
        if name in ATTRIBUTES:
            return getattr(self._like, name)
        raise AttributeError(f"{name} is nothing that an array without data has")

    def __len__(self) -> int:
        return len(self._like)

    def __getitem__(self, index: Any) -> "ndarray":
        parts = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(part, ndarray) for part in parts):
            return self._view(self._like[(*parts, *[...] * (... not in parts))])  # without ... it might be a number
        if not all(isinstance(part, ndarray) and part.dtype.kind in "iu" for part in parts):
            raise NotImplementedError("an index of an array without data is of arrays of integers, or has no array")
        taken = np.broadcast_shapes(*(part.shape for part in parts))
        result = _new((*taken, *self.shape[len(parts) :]), self.dtype)
        _meter[-1].note("take", *parts, result, result)  # reads as much as it writes
        return result

    def __setitem__(self, index: Any, value: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, ndarray) for part in parts):
            _meter[-1].note("put", *parts, value, value)
        elif not (isinstance(value, ndarray) and _same(value, target := self[index])):  # x[i] += y has put it there
            _meter[-1].note("put", value, target)

    def __matmul__(self, other: "ndarray") -> "ndarray":
        a, b = self, other
        if max(a.ndim, b.ndim) > 2 and _meter[-1].copies:
            a, b = _ascontiguousarray(a), _ascontiguousarray(b)
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        result = _new((*batch, *a.shape[-2:-1], *b.shape[-1:] * (b.ndim > 1)), np.result_type(a.dtype, b.dtype))
        flops = 2 * result.size * a.shape[-1]
        matrices = min(a.ndim, b.ndim) > 1 and min(*a.shape[-2:], b.shape[-1]) > 1
        _meter[-1].note("matmul", a, b, result, **{"gemm" if matrices else "other": flops})
        return result

    def _view(self, like: Any) -> "ndarray":
        return ndarray(like, self._memory)

    def reshape(self, *shape: Any) -> "ndarray":
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        try:
            return self._view(np.reshape(self._like, shape, copy=False))
        except ValueError:  # its elements do not lie in that order
            return self.astype(self.dtype).reshape(shape)

    def astype(self, dtype: Any, copy: bool = True) -> "ndarray":
        return self if not copy and self.dtype == dtype else _result("copy", (self,), self.shape, dtype, other=0)

    def get(self) -> Any:
        """Zeros, and a wait for the device."""
        _meter[-1].syncs += 1
        return np.zeros(self.shape, self.dtype)


def _new(shape: Any, dtype: Any) -> ndarray:
    """An array over new memory, C-contiguous."""
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else tuple(map(int, shape))
    strides = list(accumulate(shape[:0:-1], int.__mul__, initial=dtype.itemsize))[::-1] if shape else []
    like = as_strided(np.zeros(1, dtype), shape, strides, writeable=False)
    return ndarray(like, Memory(like.nbytes))


def _result(
    function: str,
    operands: Sequence[Any],
    shape: Any,
    dtype: Any,
    *,
    out: Any = None,
    other: int = -1,
    launches: int = 0,
) -> Any:
    """What a call returns, in `out` if given; its FLOPs are `other`, or one for each element that it goes over."""
    result = _new(shape, dtype) if out is None else out
    sizes = [x.size for x in (*operands, result) if isinstance(x, ndarray)]
    flops, launches = max(sizes) if other < 0 else other, launches or LAUNCHES.get(function, 1)
    _meter[-1].note(function, *operands, result, other=flops, launches=launches)
    return result


def _same(x: ndarray, y: ndarray) -> bool:
    """True where both are the same elements."""
    lies_at, other = ((z._memory, z._like.__array_interface__["data"][0], z.shape, z.strides) for z in (x, y))
    return lies_at == other


# ---- Functions ----
def _ufunc(name: str) -> Callable[..., ndarray]:
    ufunc = getattr(np, name)

    def call(*args: Any, out: Any = None) -> ndarray:
        inputs, out = args[: ufunc.nin], args[ufunc.nin] if len(args) > ufunc.nin else out
        kinds = [x.dtype if isinstance(x, (ndarray, np.generic)) else type(x) for x in inputs]
        shape = np.broadcast_shapes(*(getattr(x, "shape", ()) for x in inputs))
        return _result(name, inputs, shape, ufunc.resolve_dtypes((*kinds, None))[-1], out=out)

    return call


def _reduction(name: str) -> Callable[..., ndarray]:
    def call(x: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        axes = range(x.ndim) if axis is None else {i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,))}
        shape = [1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes]
        return _result(name, (x,), shape, dtype or x.dtype, out=out)

    return call


def _asarray(x: Any, dtype: Any = None) -> ndarray:
    if isinstance(x, ndarray):
        return x if dtype is None else x.astype(dtype, copy=False)
    _meter[-1].uploads += 1
    return _new(np.shape(x), dtype or np.asarray(x).dtype)


def _ascontiguousarray(x: ndarray, dtype: Any = None) -> ndarray:
    return x.astype(dtype or x.dtype, copy=not x.flags.c_contiguous)


def _concatenate(arrays: Sequence[ndarray]) -> ndarray:
    return _joined("concatenate", arrays, (sum(map(len, arrays)), *arrays[0].shape[1:]))


def _joined(function: str, arrays: Sequence[ndarray], shape: tuple[int, ...]) -> ndarray:
    """All arrays in one, of one type. CuPy joins up to eight one by one, and more by a kernel told where they lie."""
    _meter[-1].uploads += len(arrays) > 8
    launches = len(arrays) if len(arrays) <= 8 else 1
    return _result(function, arrays, shape, arrays[0].dtype, other=0, launches=launches)


class RawKernel:
    """A kernel in CUDA, by its name."""

    __module__ = "cupy"

    def __init__(self, source: str, name: str, options: tuple[str, ...] = ()) -> None:
        self.name = name

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any]) -> None:
        largest = max(x.size for x in args if isinstance(x, ndarray))
        flops = SQUARE[self.name] * args[0].size ** 2 if self.name in SQUARE else FLOPS_PER_ELEMENT * largest
        _meter[-1].note(self.name, *args, *(args[i] for i in IN_PLACE.get(self.name, ())), other=flops)


FUNCTIONS: dict[str, Any] = {
    **{name: _reduction(name) for name in REDUCTIONS},
    "asarray": _asarray, "ascontiguousarray": _ascontiguousarray, "RawKernel": RawKernel, "ndarray": ndarray,
    "concatenate": _concatenate, "stack": lambda arrays: _joined("stack", arrays, (len(arrays), *arrays[0].shape)),
    "empty": lambda shape, dtype=float: _new(shape, dtype),
    "empty_like": lambda x, dtype=None: _new(x.shape, dtype or x.dtype),
    "arange": lambda *args, dtype=int: _result("arange", (), len(range(*args)), dtype, other=0),
    "argsort": lambda x, axis=-1, kind=None: _result("argsort", (x,), x.shape, int),
    "cumsum": lambda x, axis=None, dtype=None: _result("cumsum", (x,), x.shape, dtype or x.dtype),
    "diff": lambda x, axis: x[1:] - x[:-1],  # over the first axis, the only one that is asked for
    "searchsorted": lambda x, values: _result("searchsorted", (x, values), values.shape, int),
    "clip": lambda x, low, high, out=None: _result("clip", (x,), x.shape, x.dtype, out=out),
    "triu": lambda x, k=0: _result("triu", (x,), x.shape, x.dtype, other=0),
    "vdot": lambda x, y: _result("vdot", (x, y), (), x.dtype),
    "cuda": SimpleNamespace(
        runtime=SimpleNamespace(getDeviceCount=lambda: 1), Device=lambda: SimpleNamespace(compute_capability="90")
    ),
    "_core": SimpleNamespace(_routines_linalg=SimpleNamespace(
        set_compute_type=lambda *_: None, COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7
    )),
}  # fmt: skip


def _complete() -> None:
    for name in ("zeros", "ones", "full"):
        FUNCTIONS[name] = lambda shape, *_, dtype=float, f=name: _result(f, (), shape, dtype, other=0)
        FUNCTIONS[f"{name}_like"] = lambda x, *_, dtype=None, f=name: _result(f, (), x.shape, dtype or x.dtype, other=0)
    for name in (*REDUCTIONS, "clip"):
        setattr(ndarray, name, FUNCTIONS[name])
    for name in VIEWS:
        setattr(ndarray, name, lambda x, *args, f=name: x._view(getattr(x._like, f)(*args)))
    for name, method in OTHER_METHODS.items():
        setattr(ndarray, name, method)
    for name, convert in READINGS.items():
        setattr(ndarray, name, lambda x, f=convert: f(x.get()))
    for name, function in OPERATORS.items():
        setattr(ndarray, f"__{name}__", lambda x, y, f=_ufunc(function): f(x, y))
        setattr(ndarray, f"__r{name}__", lambda x, y, f=_ufunc(function): f(y, x))
        setattr(ndarray, f"__i{name}__", lambda x, y, f=_ufunc(function): f(x, y, out=x))


_complete()


def _of_numpy(name: str) -> Any:
    """The ufunc of this name for arrays without data, or NumPy's constant or dtype."""
    there = getattr(np, name)
    if callable(there) and not isinstance(there, (np.ufunc, type)):
        raise AttributeError(f"cupy.{name} is not counted; add it to FUNCTIONS in {__name__}")
    return _ufunc(name) if isinstance(there, np.ufunc) else there


@contextmanager
def installed(*, copies: bool = True) -> Iterator[Meter]:
    """The functions here as cupy, and the Meter that hears of them. Without `copies`, those of products are left out.

    Raises AttributeError for a function of CuPy that is not there.
    """
    cupy = ModuleType("cupy")  # a new one each time: caches of the package go by it
    cupy.__dict__.update(FUNCTIONS, __getattr__=_of_numpy)
    _meter.append(Meter(copies=copies))
    try:
        with patch.dict(sys.modules, cupy=cupy):
            yield _meter[-1]
    finally:
        _meter.pop()
