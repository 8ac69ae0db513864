"""Everything that one training step does, counted while it does it: FLOPs, bytes moved, calls of NumPy, memory.

For the time of a step the arrays are of a class that hears of every NumPy function called on them, and NumPy's
functions that make arrays make such. What is counted:

    gemm FLOPs    2 m n k of every product of two matrices, by matmul or dot, whoever asks for it
    other FLOPs   one for each element that any other ufunc, or reduction, goes over: exp counts as one, a copy as none
    bytes         of every operand, read, and of every result, written: what would cross the bus if there were no cache
    calls         of NumPy's functions, casts, copies and indexing with arrays; a view is none
    memory        what Python's `tracemalloc` says is alive at most, weights and optimizer included; it is told of every
                  array's data. Counted in a step of its own, with plain arrays

Each is put down to the op whose `*_forward` or `*_backward` called, as the call stack says, or else to the function of
the package that did. Arrays that were made before are not heard of unless they meet one that is: so the step counted
is that of a Trainer made for it.
"""

import sys
import threading
import tracemalloc
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from traceback import walk_stack
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.lib.stride_tricks import as_strided

from microumup.backend import Array
from microumup.cpu import Threads

MAKERS = ("empty", "zeros", "ones", "full", "array", "asarray", "ascontiguousarray", "arange", "frombuffer", "eye")
PRODUCTS = ("matmul", "dot")
MESSENGERS = (__name__, "microumup.lab.shapes", "microumup.cuda")  # modules that do nothing of their own
COPIERS = ("astype", "copy", "reshape", "ravel", "flatten")  # methods of arrays, always or when they have to


class Place(NamedTuple):
    """Place of an operand in memory: enough to make another that lies in the same way."""

    start: int  # address of its first byte, that of its first element, as no stride is negative here
    end: int  # behind its last
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    dtype: Any


class Call(NamedTuple):
    """One call of a NumPy function: by whom, how much of it, and for a product of matrices its two operands and out."""

    op: str
    function: str
    gemm_flops: int
    other_flops: int
    bytes: int
    thread: int
    places: Sequence[Place] = ()


class Counted(np.ndarray[Any, Any]):
    """An array that puts down in `calls` what is done with it, and what comes of that is Counted again."""

    __module__ = "numpy"  # where xp_of looks for the functions that fit it
    calls: list[Call]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **settings: Any) -> Any:
        inputs = tuple(map(_plain, inputs))
        if out is not None:
            settings["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*inputs, **settings)
        name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
        _note(name, inputs, result if method != "at" else inputs[0])
        if out is not None:
            return out[0] if len(out) == 1 else out
        return _counted(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        before = len(Counted.calls)
        result = super().__array_function__(function, types, args, kwargs)
        inputs = tuple(_arrays((args, [value for key, value in kwargs.items() if key != "out"])))
        # Those written in Python end in ufuncs, which have been heard of; those that only say what an array is, or give
        # another view of it, do nothing.
        silent = len(Counted.calls) == before and isinstance(result, (np.ndarray, np.generic))
        if silent and not any(np.may_share_memory(result, x) for x in inputs):
            _note(function.__name__, inputs, result)
        return _counted(result)

    def __getitem__(self, key: Any) -> Any:
        result = super().__getitem__(key)
        if isinstance(result, np.ndarray) and not np.may_share_memory(result, self):
            _note("take", (), (result, result))  # reads as much as it writes
        return result

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        target = super().__getitem__(key)
        if not (isinstance(value, np.ndarray) and np.may_share_memory(value, target)):  # x[i] += y has put it there
            _note("put", (value,), target)


def _heard(name: str) -> Callable[..., Any]:
    """A method of ndarray that puts down what it does, unless it is a view."""
    method = getattr(np.ndarray, name)

    def counted(self: Counted, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if not np.may_share_memory(result, self):
            _note(name, (self,), result)
        return result

    return counted


for _name in (*COPIERS, "argsort"):
    setattr(Counted, _name, _heard(_name))


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, Counted) else x


def _counted(x: Any) -> Any:
    return x.view(Counted) if type(x) is np.ndarray else x


def _arrays(x: Any) -> Iterator[Array]:
    """All arrays in nested tuples, lists and dicts."""
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, (tuple, list, dict)):
        for item in x.values() if isinstance(x, dict) else x:
            yield from _arrays(item)


def _note(function: str, inputs: tuple[Any, ...], result: Any) -> None:
    operands = list(map(_plain, _arrays(inputs)))
    results = list(map(_plain, _arrays(result))) or [np.asarray(result)]
    arrays = [*operands, *results]
    gemm = other = 0
    places: list[Place] = []
    if function in PRODUCTS:
        a, b = operands
        flops = 2 * results[0].size * a.shape[-1]
        # one with a vector, or with a matrix of a single row or column, is a sum or a scaling
        if min(a.ndim, b.ndim) > 1 and min(*a.shape[-2:], b.shape[-1]) > 1:
            gemm, places = flops, [Place(*byte_bounds(x), x.shape, x.strides, x.dtype) for x in arrays]
        else:
            other = flops
    elif function not in ("take", "put", "concatenate", *COPIERS):
        other = max(x.size for x in arrays)
    moved = sum(x.nbytes for x in arrays)
    Counted.calls.append(Call(caller(), function, gemm, other, moved, threading.get_ident(), places))


def caller() -> str:
    """The op, or else the nearest function of the package, that the call comes from."""
    nearest = ""
    for frame, _ in walk_stack(sys._getframe(2)):
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if module.startswith("microumup.") and module not in MESSENGERS:
            if name.endswith(("_forward", "_backward")):
                return name.rpartition("_")[0]
            nearest = nearest or f"{module.rpartition('.')[2]}.{frame.f_code.co_qualname}".replace(".<locals>", "")
    return nearest


@contextmanager
def counting() -> Iterator[list[Call]]:
    """Put down what is done with arrays that are made within."""
    Counted.calls = []

    def making(make: Any) -> Any:
        return lambda *args, **kwargs: _counted(make(*args, **kwargs))

    with patch.multiple(np, **{name: making(getattr(np, name)) for name in MAKERS}):
        yield Counted.calls


def count_step(new_step: Callable[[], Callable[[], Any]]) -> list[Call]:
    """Calls in the second step of a program that `new_step` makes: the buffers that it keeps are there by then."""
    new_step()()  # what the package keeps beyond a step, as RoPE's angles, are plain arrays, not Counted ones
    with counting() as calls:
        step = new_step()
        step()
        calls.clear()
        step()
    return calls


def totals(calls: list[Call]) -> list[dict[str, Any]]:
    """Sums of all calls of each op, the one that moves most bytes first; the last, `total`, is all of them."""
    rows: dict[str, Counter[str]] = {}
    for call in calls:
        for op in (call.op, "total"):
            row = rows.setdefault(op, Counter())
            row.update(calls=1, gemm_flops=call.gemm_flops, other_flops=call.other_flops, bytes=call.bytes)
    ordered = sorted(rows.items(), key=lambda item: (item[0] == "total", -item[1]["bytes"]))
    return [{"op": op, **row} for op, row in ordered]


def memory(new_step: Callable[[], Callable[[], Any]]) -> dict[str, int]:
    """Bytes alive before the second step of a program made by `new_step`, `held`, and at most within it, `peak`; both
    with weights, gradients' buffers and optimizer."""
    tracemalloc.start()
    try:
        step = new_step()
        step()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step()
        return {"held": held, "peak": tracemalloc.get_traced_memory()[1]}
    finally:
        tracemalloc.stop()


def products_alone(calls: list[Call]) -> Callable[[], Any]:
    """A program that does nothing but the products of matrices among `calls`, in their order and their threads.

    Operands lie as they lay: same shapes and strides, and those that shared memory share it, so that a cache has the
    same to do. Outputs are written elsewhere than inputs are read, or values would grow from run to run.
    """
    products = [call for call in calls if call.places]
    inputs = _arena([place for call in products for place in call.places[:2]])
    outputs = _arena([call.places[2] for call in products])
    by_thread: dict[int, list[Callable[[], Any]]] = {}
    for call in products:
        a, b, out = call.places
        product = partial(getattr(np, call.function), inputs(a), inputs(b), out=outputs(out))
        by_thread.setdefault(call.thread, []).append(product)
    shares = list(by_thread.values())

    def run(thread: int) -> None:
        for product in shares[thread]:
            product()

    return partial(Threads(len(shares)).run, run)


def _arena(places: list[Place]) -> Callable[[Place], Array]:
    """Memory for arrays that lie to each other as `places` do: a function from a place to its array."""
    spans: list[list[int]] = []  # from, to: each of places that overlap
    for place in sorted(places):
        if not spans or place.start >= spans[-1][1]:
            spans.append([place.start, 0])
        spans[-1][1] = max(spans[-1][1], place.end)
    rng = np.random.default_rng(0)
    buffers = [rng.standard_normal(-(-(end - start) // 4), dtype=np.float32).view(np.uint8) for start, end in spans]

    def array(place: Place) -> Array:
        i = bisect_right(spans, place.start, key=lambda span: span[0]) - 1
        head = buffers[i][place.start - spans[i][0] : place.end - spans[i][0]].view(place.dtype)
        return as_strided(head, place.shape, place.strides)

    return array
