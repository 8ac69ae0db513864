"""The double of CuPy: what it refuses, what it counts, and where it differs from NumPy as CuPy does."""

import math

import cupy_double
import ml_dtypes
import numpy as np
import pytest
from cupy_double import counts, memory

# ---- NumPy-only habits that raise ----

MISSING = (
    "errstate",
    "block",
    "insert",
    "unstack",
    "vecdot",
    "nditer",
    "memmap",
    "einsum_path",
    "spacing",
    "longdouble",
)
MISSING_METHODS = ("setflags", "__index__", "__imatmul__", "__contains__", "resize", "newbyteorder", "ctypes")
REFUSED = {
    "numpy operand": lambda xp, x: x + np.ones(3, np.float32),
    "numpy operand first": lambda xp, x: np.ones(3, np.float32) * x,
    "in place into numpy": lambda xp, x: np.ones(3, np.float32).__iadd__(x) is NotImplemented and fail(),
    "list operand": lambda xp, x: xp.maximum(x, [1.0, 2.0, 3.0]),
    "numpy's function": lambda xp, x: np.exp(x),
    "numpy's product": lambda xp, x: np.dot(x, x),
    "implicit copy down": lambda xp, x: np.asarray(x),
    "written into numpy": lambda xp, x: np.zeros(3, np.float32).__setitem__(slice(None), x),
    "where=": lambda xp, x: xp.exp(x, where=x > 0),
    "where= of a sum": lambda xp, x: x.sum(where=x > 0),
    "initial=": lambda xp, x: x.max(initial=0),
    "axes of argmax": lambda xp, x: xp.argmax(x, axis=0, keepdims=True, out=x),
    "order= of einsum": lambda xp, x: xp.einsum("i->", x, order="C"),
    "kind of sort": lambda xp, x: xp.argsort(x, kind="quicksort"),
    "device= of zeros": lambda xp, x: xp.zeros(3, device="cpu"),
    "like= of arange": lambda xp, x: xp.arange(3, like=x),
    "out= in a tuple": lambda xp, x: xp.exp(x, out=(x,)),
    "dtype by name in view": lambda xp, x: x.view("uint32, 2"),
    "size from the device": lambda xp, x: xp.zeros(x.sum()),
    "range from the device": lambda xp, x: range(xp.argmax(x)),
    "slice from the device": lambda xp, x: x[: xp.argmax(x)],
    "index of a list": lambda xp, x: [1, 2, 3][xp.argmax(x)],
    "numpy index": lambda xp, x: x[np.array([0, 1])],
    "list index": lambda xp, x: x[[0, 1]],
    "index out of range": lambda xp, x: x[xp.asarray(np.array([3]))],
    "written twice": lambda xp, x: x.__setitem__(xp.asarray(np.array([1, 1])), 0.0),
    "numpy written": lambda xp, x: x.__setitem__(slice(None), np.ones(3, np.float32)),
    "concatenate with numpy": lambda xp, x: xp.concatenate((x, np.ones(3, np.float32))),
    "stack of numbers": lambda xp, x: xp.stack((1.0, 2.0)),
    "matmul with numpy": lambda xp, x: x @ np.ones(3, np.float32),
    "a list where an array is": lambda xp, x: xp.sum([1.0, 2.0]),
    "searchsorted of numbers": lambda xp, x: xp.searchsorted(x, [1.0]),
    "item of a place": lambda xp, x: x.item(0),
    "numpy's out": lambda xp, x: xp.exp(x, out=np.ones(3, np.float32)),
    "float64 into integers": lambda xp, x: xp.arange(3).__iadd__(x),
    "reduceat of a product": lambda xp, x: xp.multiply.reduceat(x, xp.arange(2)),
    "ufunc.at": lambda xp, x: xp.add.at(x, xp.arange(2), 1.0),  # CuPy adds floats in any order
    "float8": lambda xp, x: x.astype(ml_dtypes.float8_e4m3fn),
    "float8 up": lambda xp, x: xp.asarray(np.ones(3, ml_dtypes.float8_e5m2)),
    "strings up": lambda xp, x: xp.asarray(np.array(["a"])),
    "objects up": lambda xp, x: xp.asarray(np.array([None])),
    "hash": lambda xp, x: {x},
    **{name: lambda xp, x, name=name: getattr(xp, name) for name in MISSING},
    **{name: lambda xp, x, name=name: getattr(x, name) for name in MISSING_METHODS},
}


def fail():
    raise TypeError("numpy leaves it to us, and we refuse")


@pytest.fixture
def x(double):
    array = double.asarray(np.array([1, 2, 3], np.float32))
    counts.clear()
    return array


@pytest.mark.parametrize("mistake", REFUSED)
def test_the_double_refuses(double, x, mistake):
    with pytest.raises((TypeError, ValueError, IndexError, AttributeError, NotImplementedError)):
        REFUSED[mistake](double, x)


# ---- Habits that make the host wait, or that send something up, unseen ----

WAITS = {
    "if": lambda xp, x: 1 if x.any() else 0,
    "if ==": lambda xp, x: 1 if x[0] == 1 else 0,
    "while": lambda xp, x: [None for _ in iter(lambda: bool(x[0] > 0), True)],
    "not": lambda xp, x: not xp.isfinite(x).all(),
    "and": lambda xp, x: x[0] and x[1],
    "assert": lambda xp, x: fail() if not (x == x).all() else None,
    "float": lambda xp, x: float(x.sum()),
    "int": lambda xp, x: int(x.max()),
    "math": lambda xp, x: math.sqrt(x[2]),
    "item": lambda xp, x: x[0].item(),
    "tolist": lambda xp, x: x.tolist(),
    "get": lambda xp, x: x.get(),
    "print": lambda xp, x: str(x),
    "format": lambda xp, x: f"{x[0]:.3f}",
    "repr": lambda xp, x: f"{x!r}",
    "max of Python": lambda xp, x: max(x[0], x[1]),
    "in": lambda xp, x: any(value == 1 for value in x),
    "mask as an index": lambda xp, x: x[x > 1],
    "written by a mask": lambda xp, x: x.__setitem__(x > 1, 0.0),
    "flatnonzero": lambda xp, x: xp.flatnonzero(x),
    "nonzero": lambda xp, x: xp.nonzero(x),
    "argwhere": lambda xp, x: xp.argwhere(x),
    "unique": lambda xp, x: xp.unique(x),
    "where of one": lambda xp, x: xp.where(x > 1),
}


@pytest.mark.parametrize("habit", WAITS)
def test_the_double_counts_a_wait(double, x, habit):
    WAITS[habit](double, x)
    assert counts["syncs"] >= 1
    assert counts["uploads"] == 0


UPLOADS = {
    "an array": (lambda xp, x: xp.asarray(np.ones(3)), 1),
    "a list": (lambda xp, x: xp.asarray([1.0, 2.0]), 1),
    "nine arrays joined": (lambda xp, x: xp.concatenate([x] * 9), 1),
    "nine numbers stacked": (lambda xp, x: xp.stack([x[0]] * 9), 1),
    "nine of different sizes": (lambda xp, x: xp.concatenate([x] * 8 + [x[:2]]), 3),
    "the end of the last segment": (lambda xp, x: xp.add.reduceat(x[:, None], xp.arange(2)), 1),
}


@pytest.mark.parametrize("habit", UPLOADS)
def test_the_double_counts_an_upload(double, x, habit):
    function, uploads = UPLOADS[habit]
    function(double, x)
    assert counts["uploads"] == uploads
    assert counts["syncs"] == 0


def test_there_are_25_habits_and_more():
    assert len(REFUSED) >= 50
    assert len(WAITS) >= 20


LAUNCHES = {
    "elementwise": (lambda xp, x: xp.exp(x), 1),
    "an operator": (lambda xp, x: 2 * x, 1),
    "in place": (lambda xp, x: x.__iadd__(1), 1),
    "a reduction": (lambda xp, x: x.sum(), 1),
    "a product": (lambda xp, x: x @ x, 1),
    "a contraction": (lambda xp, x: xp.einsum("i,i->", x, x), 1),
    "a copy": (lambda xp, x: x.copy(), 1),
    "another type": (lambda xp, x: x.astype(np.float64), 1),
    "the same type": (lambda xp, x: x.astype(np.float32, copy=False), 0),
    "no room": (lambda xp, x: xp.empty(3), 0),
    "zeros": (lambda xp, x: xp.zeros(3), 1),
    "eight arrays joined": (lambda xp, x: xp.concatenate([x] * 8), 8),
    "nine arrays joined": (lambda xp, x: xp.concatenate([x] * 9), 1),
    "an element, a view": (lambda xp, x: x[0], 0),
    "a slice": (lambda xp, x: x[1:], 0),
    "elements picked": (lambda xp, x: x[xp.arange(2)], 2),
    "a slice written": (lambda xp, x: x.__setitem__(slice(1), 0.0), 1),
    "another shape": (lambda xp, x: x.reshape(3, 1).swapaxes(0, 1).transpose(), 0),
    "another shape, copied": (lambda xp, x: x[:, None].reshape(3, 1).T[::-1].reshape(3), 0),
    "dense already": (lambda xp, x: xp.ascontiguousarray(x), 0),
    "made dense": (lambda xp, x: xp.ascontiguousarray(x[::2]), 1),
    "flattened in another order": (lambda xp, x: xp.stack([x, x]).T.ravel(), 3),
    "a triangle": (lambda xp, x: xp.triu(xp.ones((3, 3))), 3),
}


@pytest.mark.parametrize("call", LAUNCHES)
def test_the_double_counts_launches(double, x, call):
    function, launches = LAUNCHES[call]
    function(double, x)
    assert counts["launches"] == launches


# ---- Memory ----


def test_memory_is_that_of_the_arrays_that_are_alive(double):
    before = memory.now
    x = double.zeros(1024, dtype=np.float32)
    assert memory.now - before == 4096
    view = x.reshape(32, 32)[3:].T
    assert memory.now - before == 4096  # of the same
    number = x.sum()
    assert memory.now - before == 4096 + 512  # CuPy's unit
    del x, number
    assert memory.now - before == 4096  # the view needs it
    del view
    assert memory.now == before


def test_the_peak_holds_what_was_there_for_a_moment(double):
    x = double.zeros(1024, dtype=np.float32)
    memory.start()
    before = memory.now
    x = x * 2 + 1  # x, its double, and one more; then the double goes, and x
    assert memory.peak - before == 2 * 4096
    assert memory.now == before
    memory.start()
    x += 1
    assert memory.peak == before


# ---- Where it is another NumPy ----


def test_the_double_gives_arrays_where_numpy_gives_scalars(double):
    x = double.asarray(np.array([1, 2, 3], np.float32))
    for y in (x.sum(), x[0], double.vdot(x, x), x.max() * 2, double.count_nonzero(x), np.float32(2) * x.mean()):
        assert type(y) is double.ndarray
        assert y.shape == ()


def test_the_double_promotes_like_numpy_2(double):
    x = double.asarray(np.ones(3, np.float32))
    assert (x * 2.5).dtype == (2 * x).dtype == np.float32
    assert (x * np.float64(2)).dtype == (np.float64(2) * x).dtype == np.float64


def test_it_is_there_until_the_test_ends():
    with pytest.MonkeyPatch.context() as patch:
        cupy = cupy_double.install(patch, devices=3)
        assert cupy.cuda.runtime.getDeviceCount() == 3
    assert cupy_double.cupy.cuda.runtime.getDeviceCount() == 1
