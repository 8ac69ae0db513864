"""CuPy without a GPU: a module made of NumPy that refuses what CuPy refuses.

`install(monkeypatch)` puts it in CuPy's place. Its arrays are closed to NumPy, its results are arrays even where
NumPy gives a scalar, and it has no name and no parameter that CuPy 14.2 lacks: test_gpu.py compares it with the real
one wherever that is installed. Most of CuPy is left out; when the package needs a name, add it to a table here.

Where CuPy would silently do something else than NumPy, the double raises: an index array out of range (CuPy wraps
it), an element written twice (CuPy leaves either value), a list or numpy array as an index (a hidden upload).
`counts` says how often the host waited for the device ("syncs") and sent it an array ("uploads").
"""

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import cuda_on_cpu
import numpy as np

counts: Counter[str] = Counter()
cupy = ModuleType("cupy")


def install(monkeypatch) -> ModuleType:
    """The double as `sys.modules["cupy"]` until the test ends, with its counts at 0."""
    counts.clear()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


class ndarray:  # noqa: N801 - CuPy's name
    """A numpy array out of NumPy's reach."""

    __module__ = "cupy"  # where microumup.backend.xp_of looks
    __slots__ = ("_host",)
    __hash__ = None
    __array_ufunc__ = None  # np.float32(2) * x ends up in our __rmul__

    def __init__(self, host) -> None:
        if host.dtype.char not in "?bBhHiIlLqQefdFD":
            raise ValueError(f"Unsupported dtype {host.dtype}")  # ml_dtypes' float8 among them
        self._host = host

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        return _device(self._host[_index(index)])

    def __setitem__(self, index, value):
        index = _index(index)
        written = np.arange(self.size).reshape(self.shape)[index]
        if np.unique(written).size < written.size:
            raise IndexError("an element is written twice; which of the values CuPy leaves there is undefined")
        self._host[index] = _operand(value)

    def __matmul__(self, other):
        if not isinstance(other, ndarray):
            raise TypeError(f"Unsupported type {type(other)}")
        return _device(self._host @ other._host)

    def get(self):
        counts["syncs"] += 1
        return self._host.copy()


def _device(result):
    """A result of NumPy as CuPy would give it: 0-d arrays for scalars."""
    return tuple(map(_device, result)) if isinstance(result, tuple) else ndarray(np.asarray(result))


def _argument(x):
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return x._host if isinstance(x, ndarray) else x


def _operand(x):
    if not isinstance(x, ndarray | int | float | complex | np.number | np.bool):
        raise TypeError(f"Unsupported type {type(x)}")
    return _argument(x)


def _index(index):
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, ndarray):
            if part.dtype == bool:
                counts["syncs"] += 1  # the True have to be counted first
        elif not (part is None or part is Ellipsis or isinstance(part, int | np.integer | slice)):
            raise TypeError(f"CuPy uploads an index that is a {type(part)}; upload it yourself, once")
    return tuple(map(_argument, parts))


class ufunc:  # noqa: N801 - CuPy's name
    """An elementwise function: no lists, no numpy arrays, no `where`."""

    __module__ = "cupy"

    def __init__(self, name: str) -> None:
        self._numpy = getattr(np, name)

    def __call__(self, *args, out=None, dtype=None, casting="same_kind"):
        inputs, out = args[: self._numpy.nin], args[self._numpy.nin] if len(args) > self._numpy.nin else out
        if not isinstance(out, ndarray | None):
            raise TypeError("Output arguments type must be cupy.ndarray")
        with np.errstate(all="ignore"):  # a GPU gives no warnings
            y = self._numpy(*map(_operand, inputs), out=_argument(out), dtype=dtype, casting=casting)
        return _device(y) if out is None else out

    def reduceat(self, array, indices, axis=0, dtype=None):
        """As CuPy does it: differences of one cumulative sum, with the rounding errors of all that came before."""
        if self._numpy is not np.add:
            raise NotImplementedError("only add.reduceat is supported")
        assert array.ndim == 2
        assert axis == 0
        counts["uploads"] += 1  # the end of the last segment
        starts, ends = indices._host, np.append(indices._host[1:], len(array))
        total = np.cumsum(array._host, axis=0, dtype=dtype)
        total = np.concatenate((np.zeros_like(total[:1]), total))
        return _device(np.where((starts < ends)[:, None], total[ends] - total[starts], array._host[starts]))


def _function(name: str, parameters: list[str]):
    """NumPy's function with no parameters but CuPy's. Its first argument is an array, or a sequence of arrays."""

    def function(first, *rest, **options):
        if len(rest) >= len(parameters) or not options.keys() <= set(parameters):
            raise TypeError(f"cupy.{name}() takes {', '.join(parameters)}, but not {rest} {options}")
        several = isinstance(first, tuple | list)
        if not all(isinstance(x, ndarray) for x in (first if several else (first,))):
            raise TypeError(f"cupy.{name}() takes CuPy's arrays, not {type(first)}")
        if name == "flatnonzero" or (name == "where" and not rest):
            counts["syncs"] += 1  # the size of the result
        if name == "argsort":
            if {*rest[1:], options.get("kind")} - {None, "stable"}:
                raise ValueError("kind can only be None or 'stable'")
            rest, options = rest[:1], options | {"kind": "stable"}
        hosts = [x._host for x in first] if several else first._host
        with np.errstate(all="ignore"):
            y = getattr(np, name)(hosts, *map(_argument, rest), **{key: _argument(x) for key, x in options.items()})
        return _device(y) if options.get("out") is None else options["out"]

    return function


def _asarray(a, dtype=None):
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype, copy=False)
    counts["uploads"] += 1
    return ndarray(np.array(a, dtype))


def _einsum(subscripts, *operands, dtype=None, optimize=False):
    return _device(np.einsum(subscripts, *map(_operand, operands), dtype=dtype, optimize=optimize))


UFUNCS = """
    absolute add bitwise_and bitwise_or bitwise_xor copysign divide equal exp floor floor_divide greater greater_equal
    invert isfinite isnan less less_equal log maximum minimum multiply negative not_equal power remainder rint sqrt
    square subtract tanh
"""
CREATION = "arange empty full ones zeros"  # no parameter of theirs is an array: a 0-d one is no size
FUNCTIONS = {
    **dict.fromkeys(("any", "all", "max", "min"), "a axis out keepdims"),
    **dict.fromkeys(("argmax", "argmin", "count_nonzero"), "a axis"),
    **dict.fromkeys(("concatenate", "stack"), "tup axis out"),
    **dict.fromkeys(("mean", "sum"), "a axis dtype out keepdims"),
    **dict.fromkeys(("ones_like", "zeros_like"), "a dtype order"),
    "argsort": "a axis kind",
    "ascontiguousarray": "a dtype",
    "clip": "a a_min a_max out",
    "empty_like": "prototype dtype order",
    "flatnonzero": "a",
    "triu": "m k",
    "vdot": "a b",
    "where": "condition x y",
}
CONSTANTS = "bool_ float32 float64 inf int32 int64 nan newaxis uint8 uint16 uint32"
METHODS = """
    all any argmax argmin argsort astype clip conj copy max mean min ravel reshape sum swapaxes transpose view
"""
ATTRIBUTES = "T dtype flags itemsize nbytes ndim shape size"
READINGS = {  # what makes the host wait. There is no __index__: an array is no size and no range
    "__bool__": bool, "__int__": int, "__float__": float, "__complex__": complex, "__repr__": repr, "__str__": str,
    "__format__": format, "item": np.ndarray.item, "tolist": np.ndarray.tolist,
}  # fmt: skip
OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
}  # fmt: skip
OTHER_OPERATORS = {  # that have no reflected and no in-place form
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
    "neg": "negative", "abs": "absolute", "invert": "invert",
}  # fmt: skip


def _operator(function, *, reflected=False, in_place=False):
    if in_place:
        return lambda x, y: function(x, y, out=x)
    return (lambda x, y: function(y, x)) if reflected else (lambda *operands: function(*operands))


def _method(name):
    return lambda x, *args, **options: _device(getattr(x._host, name)(*args, **options))


def _attribute(name):
    def read(x):
        value = getattr(x._host, name)
        return _device(value) if isinstance(value, np.ndarray) else value

    return property(read)


def _reading(convert):
    return lambda x, *args: convert(x.get(), *args)


class RawKernel(cuda_on_cpu.RawKernel):
    """A kernel in CUDA, which needs a C++ compiler here."""

    __module__ = "cupy"

    def __call__(self, grid, block, args, *, shared_mem=0):
        counts["launches"] += 1
        super().__call__(grid, block, args, shared_mem=shared_mem)


def _build() -> None:
    for name in CONSTANTS.split():
        setattr(cupy, name, getattr(np, name))
    for name in UFUNCS.split():
        setattr(cupy, name, ufunc(name))
    for name in CREATION.split():
        setattr(cupy, name, lambda *args, _numpy=getattr(np, name), **options: ndarray(_numpy(*args, **options)))
    for name, parameters in FUNCTIONS.items():
        setattr(cupy, name, _function(name, parameters.split()))
    cupy.asarray, cupy.einsum, cupy.ndarray, cupy.ufunc, cupy.RawKernel = _asarray, _einsum, ndarray, ufunc, RawKernel
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 1))

    for name in METHODS.split():
        setattr(ndarray, name, getattr(cupy, name) if name in FUNCTIONS else _method(name))
    for name in ATTRIBUTES.split():
        setattr(ndarray, name, _attribute(name))
    for name, convert in READINGS.items():
        setattr(ndarray, name, _reading(convert))
    for name, function in OPERATORS.items():
        setattr(ndarray, f"__{name}__", _operator(getattr(cupy, function)))
        setattr(ndarray, f"__r{name}__", _operator(getattr(cupy, function), reflected=True))
        setattr(ndarray, f"__i{name}__", _operator(getattr(cupy, function), in_place=True))
    for name, function in OTHER_OPERATORS.items():
        setattr(ndarray, f"__{name}__", _operator(getattr(cupy, function)))


_build()
