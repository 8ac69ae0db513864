"""Checks of the ops' arguments. Each raises a ValueError of one line: the op, what it was given, and the mend."""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import isfinite
from typing import Any, TypeVar

import numpy as np

from microumup.backend import Array, xp_of

Factors = TypeVar("Factors", bound=Any)  # a NamedTuple of numbers

_read_ids: ContextVar[bool] = ContextVar("read_ids", default=True)


@contextmanager
def ids_not_read() -> Iterator[None]:
    """Within it, ids on a GPU are not held against the vocabulary, for which the host would wait: where the same was
    done before they went there, or where a kernel makes NaN of what is out of range. On a CPU they always are."""
    token = _read_ids.set(False)
    try:
        yield
    finally:
        _read_ids.reset(token)


def arrays(op: str, **given: Any) -> None:
    """Raise ValueError for anything but numpy and cupy arrays; other frameworks' are arrays only to themselves."""
    for name, array in given.items():
        if not isinstance(array, np.ndarray) and type(array).__module__.partition(".")[0] != "cupy":
            kind = f"{type(array).__module__}.{type(array).__qualname__}".removeprefix("builtins.")
            raise ValueError(f"{op}: {name} is a {kind}; pass a numpy or cupy array, as np.asarray({name})")


def plain(op: str, **numbers: Any) -> Any:
    """The number, or all of them, as Python's own floats: with those an array keeps its dtype, while a float64 of NumPy
    makes float64 of it. Raises ValueError for anything but finite real numbers."""
    for name, value in numbers.items():
        if type(value) is not float:
            try:
                numbers[name] = real(value)
            except (TypeError, ValueError, OverflowError):
                kind = f"{str(value)[:40]!r} of {type(value).__name__}"
                raise ValueError(f"{op}: {name} is {kind}; pass a real number, as 1.5") from None
        if not isfinite(numbers[name]):
            raise ValueError(f"{op}: {name} is {numbers[name]}; pass a finite number")
    return tuple(numbers.values()) if len(numbers) > 1 else next(iter(numbers.values()))


def real(value: Any) -> float:
    """A real number of any kind as Python's own. Raises TypeError, ValueError or OverflowError for anything else."""
    if np.iscomplexobj(value):  # which numpy would make real with a warning
        raise TypeError
    return float(operator.pos(value))


def factors(op: str, scale: Factors) -> Factors:
    """The factors of a Scale or ResidualScale, made `plain`."""
    if all(type(factor) is float and isfinite(factor) for factor in scale):  # as in training, where this is hot
        return scale
    return type(scale)(*plain(op, **scale._asdict()))


def floats(op: str, **given: Array) -> None:
    """Raise ValueError unless all are float32, or all float64."""
    first = next(iter(given.values()))
    usual = all(type(a) is np.ndarray and a.dtype == first.dtype and a.ndim and a.size for a in given.values())
    if usual and first.dtype.char in "fd":
        return  # as in training, where this is hot
    arrays(op, **given)
    dtypes = {array.dtype.char for array in given.values()}
    if len(dtypes) > 1 or not dtypes <= {"f", "d"}:
        names = [f"{name} is {array.dtype}" for name, array in given.items()]
        raise ValueError(f"{op}: {', '.join(names)}; use float32, or float64, for all of them")
    for name, array in given.items():
        if array.ndim == 0:
            raise ValueError(f"{op}: {name} has shape (), a single number; give it one axis or more")
        if array.size == 0:
            raise ValueError(f"{op}: {name} is empty, shape {array.shape}; pass one element or more")


def same(op: str, **given: Array) -> None:
    """Raise ValueError unless all have one shape and one dtype."""
    floats(op, **given)
    if len({array.shape for array in given.values()}) > 1:
        shapes = " but ".join(f"{name} is {array.shape}" for name, array in given.items())
        raise ValueError(f"{op}: {shapes}; they go element by element, so their shapes have to be equal")


def linear(x: Array, w: Array, scale: Factors) -> Factors:
    """The plain scale. Raises ValueError unless x (..., D_in) and w (D_out, D_in) go together."""
    floats("linear", x=x, w=w)
    if w.ndim != 2 or x.shape[-1] != w.shape[1]:
        hint = ", did you pass w.T?" if w.ndim == 2 and x.shape[-1] == w.shape[0] else ""
        raise ValueError(f"linear: x has D_in={x.shape[-1]} but w is {w.shape}; w is (fan_out, fan_in){hint}")
    return factors("linear", scale)


def embedding(tokens: Array, w: Array, scale: Factors) -> Factors:
    """The plain scale. Raises ValueError unless tokens are ids of rows of w (V, D)."""
    floats("embedding", w=w)
    if w.ndim != 2:
        raise ValueError(f"embedding: w is {w.shape}; it is (V, D), a row per token of the vocabulary")
    ids("embedding", "tokens", tokens, len(w))
    return factors("embedding", scale)


def rms_norm(x: Array, eps: float) -> float:
    """The plain eps. Raises ValueError for an x that is no array of floats."""
    floats("rms_norm", x=x)
    return float(plain("rms_norm", eps=eps))


def rope(x: Array, head_dim: int, base: float) -> float:
    """The plain base. Raises ValueError unless x (B, T, D) consists of heads of an even size."""
    floats("rope", x=x)
    heads("rope", "x", x, head_dim)
    if head_dim % 2:
        raise ValueError(f"rope: head_dim={head_dim} is odd; pairs of elements are turned, so it has to be even")
    return float(plain("rope", base=base))


def heads(op: str, name: str, x: Array, head_dim: int) -> None:
    """Raise ValueError unless x (B, T, D) consists of heads of that size."""
    if x.ndim != 3 or head_dim < 1 or x.shape[-1] % head_dim:
        raise ValueError(f"{op}: {name} is {x.shape}, need (B, T, D) with D a multiple of head_dim={head_dim}")


def attention(q: Array, k: Array, v: Array, head_dim: int, score_scale: float, scale: Factors) -> tuple[float, Factors]:
    """The plain score_scale and scale. Raises ValueError unless q (B, T, D), k and v (B, S, D) go together."""
    floats("attention", q=q, k=k, v=v)
    heads("attention", "q", q, head_dim)
    B, T, D = q.shape
    if k.shape != v.shape or k.ndim != 3 or (k.shape[0], k.shape[2]) != (B, D) or k.shape[1] < T:
        shapes = f"q is {q.shape}, k {k.shape}, v {v.shape}"
        raise ValueError(f"attention: {shapes}; need (B, T, D) and (B, S, D) with S >= T")
    return plain("attention", score_scale=score_scale), factors("attention", scale)


def gated_silu(x_in: Array, x_gate: Array, alpha: float, scale: Factors) -> tuple[float, Factors]:
    """The plain alpha and scale. Raises ValueError unless both arrays have one shape and dtype."""
    same("gated_silu", x_in=x_in, x_gate=x_gate)
    return plain("gated_silu", alpha=alpha), factors("gated_silu", scale)


def residual(op: str, scale: Factors, **given: Array) -> Factors:
    """The plain scale. Raises ValueError unless all arrays have one shape and dtype."""
    same(op, **given)
    return factors(op, scale)


def cross_entropy(logits: Array, hits: Array, alpha: float, scale: Factors) -> tuple[float, Factors]:
    """The plain alpha and scale. Raises ValueError unless there is a target for each row of logits (..., V)."""
    floats("cross_entropy", logits=logits)
    targets(hits, logits.shape[:-1], logits.shape[-1])
    return plain("cross_entropy", alpha=alpha), factors("cross_entropy", scale)


def targets(hits: Array, shape: tuple[int, ...], vocab_size: int) -> None:
    """Raise ValueError unless there is a target in [0, V) for each of the tokens, whose array has that shape."""
    arrays("cross_entropy", targets=hits)
    if hits.shape != shape:
        logits = (*shape, vocab_size)
        raise ValueError(f"cross_entropy: logits are {logits} but targets {hits.shape}; one target per token")
    ids("cross_entropy", "targets", hits, vocab_size)


def ids(op: str, name: str, x: Array, vocab_size: int) -> None:
    """Raise ValueError unless all are integers in [0, V). Needed before any indexing: numpy would wrap a negative one,
    cupy any that is out of range. See `ids_not_read`."""
    arrays(op, **{name: x})
    if x.dtype.kind not in "iu":
        raise ValueError(f"{op}: {name} are {x.dtype}; token ids are integers")
    if x.size == 0:
        raise ValueError(f"{op}: {name} are empty, shape {x.shape}")
    if xp_of(x) is not np and not _read_ids.get():
        return
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise ValueError(f"{op}: {name} hold id {bad}, outside [0, {vocab_size}), the vocabulary")
