"""CuPy without a GPU: a module made of NumPy that refuses what CuPy refuses.

`install(monkeypatch)` puts it in CuPy's place. Its arrays are closed to NumPy, its results are arrays even where
NumPy gives a scalar, and it has no name and no parameter that CuPy 14.2 lacks: tests/peers/test_cupy.py compares it
with the real one. Most of CuPy is left out; when the package needs a name, add it to a table here.

Where CuPy would silently do something else than NumPy, the double raises: an index array out of range (CuPy wraps
it), an element written twice (CuPy leaves either value), a list or numpy array as an index (a hidden upload).

`counts` says what a GPU would have been asked for:

    syncs      waits of the host: for numbers of the device, or for how many there are (flatnonzero, a mask as an index)
    uploads    arrays sent to it, also those that CuPy sends unasked: where more than eight arrays are joined, for one
    launches   kernels started: one for a call that computes or copies, those of its parts for one that is composed,
               none for a view. CuPy starts a few more, as to make an operand of a product contiguous

`memory` holds the bytes of all arrays that are alive, `now` and at their `peak`, each rounded up to CuPy's unit of 512.
What a library takes for itself on the way, to sort or to multiply, is not in it.
"""

import sys
import weakref
from collections import Counter
from types import ModuleType, SimpleNamespace

import cuda_on_cpu
import numpy as np

counts: Counter[str] = Counter()
cupy = ModuleType("cupy")


def install(monkeypatch, devices: int = 1) -> ModuleType:
    """The double as `sys.modules["cupy"]` until the test ends, with its counts at 0 and so many devices."""
    counts.clear()
    memory.start()
    compute_types.clear()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: devices)
    return cupy


class Memory:
    """Bytes of the arrays that are alive. Views share those of their base, which lives as long as any of them."""

    def __init__(self) -> None:
        self.now, self.peak, self._owners = 0, 0, {}

    def start(self) -> None:
        """Forget the peak."""
        self.peak = self.now

    def add(self, host: np.ndarray) -> None:
        while isinstance(host.base, np.ndarray):
            host = host.base
        if (key := id(host)) not in self._owners:
            size = -(-host.nbytes // 512) * 512

            def free(_, key=key, size=size):
                del self._owners[key]
                self.now -= size

            self._owners[key] = weakref.ref(host, free)
            self.now += size
            self.peak = max(self.peak, self.now)


memory = Memory()


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
        memory.add(host)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        y = _device(self._host[_index(index)])
        counts["launches"] += _is_new(y, self)
        return y

    def __setitem__(self, index, value):
        index = _index(index)
        written = np.arange(self.size).reshape(self.shape)[index]
        if np.unique(written).size < written.size:
            raise IndexError("an element is written twice; which of the values CuPy leaves there is undefined")
        there = self._host[index]
        self._host[index] = _operand(value)
        in_place = isinstance(value, ndarray) and value._host.__array_interface__ == there.__array_interface__
        counts["launches"] += not in_place  # in `x[i] += y` the value lies there already, and CuPy sees that

    def __matmul__(self, other):
        if not isinstance(other, ndarray):
            raise TypeError(f"Unsupported type {type(other)}")
        counts["launches"] += 1
        with np.errstate(all="ignore"):
            return _device(self._host @ other._host)

    def get(self):
        counts["syncs"] += 1
        return self._host.copy()


def _device(result):
    """A result of NumPy as CuPy would give it: 0-d arrays for scalars."""
    return tuple(map(_device, result)) if isinstance(result, tuple) else ndarray(np.asarray(result))


def _is_new(y, *inputs) -> bool:
    """Whether the elements of y are written for it: it is no view of one of the inputs, and has any."""
    return y.size > 0 and not any(np.may_share_memory(y._host, x._host) for x in inputs)


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
    whole = () if any(part is Ellipsis for part in parts) else (Ellipsis,)  # or NumPy would copy a single element
    return (*map(_argument, parts), *whole)


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
        counts["launches"] += 1
        return _device(y) if out is None else out

    def reduceat(self, array, indices, axis=0, dtype=None):
        """As CuPy does it: differences of one cumulative sum, with the rounding errors of all that came before."""
        if self._numpy is not np.add:
            raise NotImplementedError("only add.reduceat is supported")
        assert array.ndim == 2
        assert axis == 0
        counts["uploads"] += 1  # the end of the last segment
        counts["launches"] += 10  # two appends, a cumulative sum, a mask, three takes, a difference and a choice
        starts, ends = indices._host, np.append(indices._host[1:], len(array))
        total = np.cumsum(array._host, axis=0, dtype=dtype)
        total = np.concatenate((np.zeros_like(total[:1]), total))
        return _device(np.where((starts < ends)[:, None], total[ends] - total[starts], array._host[starts]))


def _call(name: str, parameters: list[str], rest: tuple, options: dict):
    """The arguments after the array by name, none of which CuPy lacks."""
    if len(rest) > len(parameters) or not options.keys() <= set(parameters[len(rest) :]):
        raise TypeError(f"cupy's {name} takes {', '.join(parameters) or 'nothing'}, but not {rest} {options}")
    return dict(zip(parameters, rest, strict=False)) | options


def _function(name: str, parameters: list[str]):
    """NumPy's function with no parameters but CuPy's. Its first argument is an array, or a sequence of arrays."""
    first_name, *others = parameters

    def function(first, *rest, **options):
        options = _call(name, others, rest, options)
        arrays = tuple(first) if first_name == "tup" and isinstance(first, tuple | list) else (first,)
        given = *arrays, *(options[key] for key in ("v", "out") if options.get(key) is not None)
        if not all(isinstance(x, ndarray) for x in given):
            raise TypeError(f"cupy.{name}() takes CuPy's arrays, not {[type(x).__name__ for x in given]}")
        if name == "argsort":
            if options.get("kind") not in (None, "stable"):
                raise ValueError("kind can only be None or 'stable'")
            options["kind"] = "stable"
        if name in COUNTED or (name == "where" and "x" not in options):
            counts["syncs"] += 1
        unnamed = [options.pop(key) for key in others if key in options and name in UNNAMED]
        with np.errstate(all="ignore"):
            y = getattr(np, name)(
                [x._host for x in arrays] if first_name == "tup" else first._host,
                *map(_argument, unnamed),
                **{key: _argument(x) for key, x in options.items()},
            )
        y = _device(y) if options.get("out") is None else options["out"]
        if first_name == "tup":
            _count_joined(arrays)
        elif any(_is_new(x, first) for x in (y if isinstance(y, tuple) else (y,))):
            counts["launches"] += LAUNCHES.get(name, 1)
        return y

    return function


def _count_joined(arrays) -> None:
    """CuPy joins up to eight arrays one by one, and more of one type by one kernel that it tells where they lie."""
    if len(arrays) <= 8 or len({x.dtype for x in arrays}) > 1:
        counts["launches"] += len(arrays)
    else:
        alike = all(x.shape == arrays[0].shape and x.flags.c_contiguous for x in arrays)
        counts["uploads"] += 1 if alike else 3  # else also how long they are, and their strides
        counts["launches"] += 1


def _asarray(a, dtype=None):
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype, copy=False)
    counts["uploads"] += 1
    return ndarray(np.array(a, dtype))


def _creation(name: str, parameters: list[str]):
    def function(*args, **options):
        _call(name, parameters, args, options)
        counts["launches"] += name != "empty"
        return ndarray(getattr(np, name)(*args, **options))

    return function


def _einsum(subscripts, *operands, dtype=None, optimize=False):
    counts["launches"] += 1
    return _device(np.einsum(subscripts, *map(_operand, operands), dtype=dtype, optimize=optimize))


UFUNCS = """
    absolute add bitwise_and bitwise_or bitwise_xor copysign divide equal exp floor floor_divide greater greater_equal
    invert isfinite isnan less less_equal log maximum minimum multiply negative not_equal power remainder rint sqrt
    square subtract tanh
"""
CREATION = {  # no parameter of theirs is an array: a 0-d one is no size
    "arange": "start stop step dtype",
    "empty": "shape dtype order",
    "full": "shape fill_value dtype order",
    "ones": "shape dtype order",
    "zeros": "shape dtype order",
}
COUNTED = ("flatnonzero", "nonzero", "argwhere", "unique")  # the size of what they give depends on what is there
LAUNCHES = dict.fromkeys(COUNTED, 3) | {"argsort": 2, "cumsum": 2, "triu": 2, "empty_like": 0}  # of all others 1
UNNAMED = ("vdot", "where")  # NumPy has other names for their parameters, or none
FUNCTIONS = {
    **dict.fromkeys(("any", "all", "max", "min"), "a axis out keepdims"),
    **dict.fromkeys(("argmax", "argmin", "count_nonzero"), "a axis"),
    **dict.fromkeys(("concatenate", "stack"), "tup axis out"),
    **dict.fromkeys(("mean", "sum"), "a axis dtype out keepdims"),
    **dict.fromkeys(("ones_like", "zeros_like"), "a dtype order"),
    **dict.fromkeys(COUNTED[:3], "a"),
    "diff": "a n axis",
    "argsort": "a axis kind",
    "ascontiguousarray": "a dtype",
    "clip": "a a_min a_max out",
    "empty_like": "prototype dtype order",
    "cumsum": "a axis dtype out",
    "searchsorted": "a v side",
    "triu": "m k",
    "unique": "ar",
    "vdot": "a b",
    "where": "condition x y",
}
CONSTANTS = "bool_ float32 float64 inf int32 int64 nan newaxis uint8 uint16 uint32"
METHODS = {
    **dict.fromkeys(("all", "any", "max", "min"), "axis out keepdims"),
    **dict.fromkeys(("mean", "sum"), "axis dtype out keepdims"),
    **dict.fromkeys(("argmax", "argmin"), "axis"),
    "argsort": "axis kind",
    "astype": "dtype order casting subok copy",
    "clip": "min max out",
    "conj": "",
    "copy": "order",
    "ravel": "order",
    "swapaxes": "axis1 axis2",
    "view": "dtype",
}
SHAPING = ("reshape", "transpose")  # methods that take any number of sizes
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


def _method(name: str, parameters: list[str]):
    def method(x, *args, **options):
        if name not in SHAPING:
            args, options = (), _call(name, parameters, args, options)
        elif options.keys() - {"order"}:
            raise TypeError(f"cupy's {name} does not take {options}")
        if name == "view" and not isinstance(options["dtype"], type | np.dtype):
            raise TypeError(f"data type {options['dtype']} not understood")
        rest = [options.pop(key) for key in ("axis1", "axis2") if key in options]  # which NumPy does not name
        with np.errstate(all="ignore"):
            y = _device(getattr(x._host, name)(*args, *rest, **options))
        counts["launches"] += _is_new(y, x)
        return y

    return method


def _attribute(name):
    def read(x):
        value = getattr(x._host, name)
        return _device(value) if isinstance(value, np.ndarray) else value

    return property(read)


def _reading(convert):
    return (lambda x, spec: format(x.get(), spec)) if convert is format else lambda x: convert(x.get())


compute_types: dict[str, int] = {}  # of products, by dtype


def _set_compute_type(dtype, compute_type):
    compute_types[np.dtype(dtype).char] = compute_type


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
    for name, parameters in CREATION.items():
        setattr(cupy, name, _creation(name, parameters.split()))
    for name, parameters in FUNCTIONS.items():
        setattr(cupy, name, _function(name, parameters.split()))
    cupy.asarray, cupy.einsum, cupy.ndarray, cupy.ufunc, cupy.RawKernel = _asarray, _einsum, ndarray, ufunc, RawKernel
    runtime = SimpleNamespace(getDeviceCount=lambda: 1)
    cupy.cuda = SimpleNamespace(runtime=runtime, Device=lambda: SimpleNamespace(compute_capability="90"))
    linalg = SimpleNamespace(set_compute_type=_set_compute_type, COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7)
    cupy._core = SimpleNamespace(_routines_linalg=linalg)

    for name, parameters in METHODS.items():
        same = FUNCTIONS.get(name) == f"a {parameters}"
        setattr(ndarray, name, getattr(cupy, name) if same else _method(name, parameters.split()))
    for name in SHAPING:
        setattr(ndarray, name, _method(name, []))
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
