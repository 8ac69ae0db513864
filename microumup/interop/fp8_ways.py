"""Other ways to round to FP8 and to multiply in it: as `ways.py`, for the ops fp8_decode, fp8_round and linear_fp8."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from microumup.backend import Array
from microumup.fp8 import FORMATS, Format, quantize
from microumup.interop.cases import FLOAT8, Arrays
from microumup.interop.ways import Try, Way, Ways


def float8(name: str, dtype: Any) -> Way:
    """FP8 of another dtype, where the format is `name`."""

    def way(t: Try) -> Arrays:
        if t.s["format"] != name:
            return {}
        if t.op == "fp8_decode":
            return {"value": t.i["code"].view(dtype).astype(np.float32)}
        x, most = t.i["x"], float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        return {"saturating": np.clip(x, -most, most).astype(dtype).astype(np.float32),
                "nonsaturating": x.astype(dtype).astype(np.float32)}  # fmt: skip

    return way


def rounded(how: Callable[[Array], Array], formats: dict[str, Format] = FORMATS) -> Way:
    """Another rounding of |x|/step to whole numbers, in other formats of these names."""

    def way(t: Try) -> Arrays:
        fmt, x = formats[t.s["format"]], t.i["x"]
        size = np.where(np.isfinite(x), np.abs(x), 1.0).astype(np.float64)
        step = 2.0 ** (np.floor(np.log2(np.maximum(size, fmt.min_normal))) - fmt.mantissa_bits)
        y = np.where(np.isfinite(x), how(size / step) * step, np.abs(x))
        past = np.nan if fmt.name == "e4m3" else np.inf
        found = {"saturating": np.minimum(y, fmt.max), "nonsaturating": np.where(y > fmt.max, past, y)}
        return {name: np.copysign(a, x).astype(np.float32) for name, a in found.items()}

    return way


def toward_zero(y: Array) -> Array:
    """To the nearest whole number, ties to the smaller."""
    return np.ceil(y - 0.5)


FNUZ = {
    "e4m3": Format("e4m3", 3, -7, 240.0, 2.0**-7, 2.0**-10), "e5m2": Format("e5m2", 2, -15, 57344.0, 2.0**-15, 2.0**-17)
}  # fmt: skip


def flushed(t: Try) -> Arrays:
    """No number between 0 and the smallest normal one."""
    least = t.s["min_normal"]
    return {name: np.where(np.abs(a) < least, np.copysign(np.float32(0), a), a) for name, a in t.right.items()}


def no_subnormals(t: Try) -> Arrays:
    """The same, but x goes to the nearer of the two."""
    x, least = t.i["x"], np.float32(t.s["min_normal"])
    near = np.copysign(np.rint(np.abs(x) / least) * least, x)
    return {name: np.where(np.abs(x) < least, near, a) for name, a in t.right.items()}


def max_480(t: Try) -> Arrays:
    """E4M3 whose code of NaN is the number 480."""
    if t.s["format"] != "e4m3":
        return {}
    x = np.float32(480) * np.where(np.arange(256) < 128, 1, -1) if "code" in t.i else t.i["x"]
    past = (np.abs(x) > 464) & (np.isnan(t.right["value"]) if "code" in t.i else True)
    return {name: np.where(past, np.copysign(np.float32(480), x), a) for name, a in t.right.items()}


def before_cast(tensor: str, *outputs: str) -> Way:
    """A factor that is put on an operand before its cast, not on the product."""

    def way(t: Try) -> Arrays:
        found = dict(t.right)
        for name in outputs:
            moved = {tensor: (t.i[tensor] * np.float32(t.scale[name])).astype(np.float32)}
            found[name] = t.again(moved, {name: 1.0})[name]
        return found

    return way


def per_tensor(t: Try) -> Arrays:
    """Every operand scaled so that its largest element is max, and back."""
    cast: Arrays = {}
    for name, a in t.i.items():
        fmt = FORMATS[t.s["formats"][name]]
        back = np.float32(np.abs(a).max() / fmt.max)
        cast[name] = quantize(a / back, fmt) * back
    return t.again(cast, formats=dict.fromkeys(t.i, "none"))


FLOAT8S: Ways = (
    ("E4M3 with infinities, max 240 instead of 448", float8("e4m3", ml_dtypes.float8_e4m3)),
    ("E4M3 of bias 8 (fnuz), max 240 instead of 448", float8("e4m3", ml_dtypes.float8_e4m3fnuz)),
    ("E5M2 of bias 16 (fnuz)", float8("e5m2", ml_dtypes.float8_e5m2fnuz)),
    ("E5M2 in place of E4M3", float8("e4m3", ml_dtypes.float8_e5m2)),
    ("E4M3 in place of E5M2", float8("e5m2", ml_dtypes.float8_e4m3fn)),
    ("max 480: the code of NaN is taken for a number", max_480),
    ("subnormals are flushed to zero", flushed),
    ("the sign of zero is lost", lambda t: {n: np.where(a == 0, np.float32(0), a) for n, a in t.right.items()}),
)

FP8_WAYS: dict[str, Ways] = {
    "fp8_decode": FLOAT8S,
    "fp8_round": (
        *FLOAT8S,
        ("ties go away from zero, not to the even neighbour", rounded(lambda y: np.floor(y + 0.5))),
        ("ties go toward zero, not to the even neighbour", rounded(toward_zero)),
        ("a bias larger by 1 (fnuz), E4M3's max 240 instead of 448; and ties go toward zero",
         rounded(toward_zero, FNUZ)),
        ("it rounds toward zero, not to the nearest", rounded(np.floor)),
        ("subnormals are flushed to zero", no_subnormals),
        ("past max there is NaN or infinity, where it should saturate",
         lambda t: t.right | {"saturating": t.right["nonsaturating"]}),
        ("past max it saturates, where a plain cast has NaN or infinity",
         lambda t: t.right | {"nonsaturating": t.right["saturating"]}),
    ),
    "linear_fp8": (
        ("nothing is cast", lambda t: t.again(formats=dict.fromkeys(t.i, "none"))),
        *((f"{name} is {f'cast to {fmt.upper()}' if fmt in FLOAT8 else 'not cast'}",
           lambda t, n=name, f=fmt: t.again(formats=t.s["formats"] | {n: f}))
          for name in ("dy", "x", "w") for fmt in ("none", *FLOAT8)),
        ("the factor is on x before its cast, not after the matmul", before_cast("x", "y")),
        ("the factor is on w before its cast, not after the matmul", before_cast("w", "y", "dx")),
        ("the factor is on dy before its cast, not after the matmul", before_cast("dy", "dx", "dw")),
        ("operands are scaled to their largest element (per-tensor scaling)", per_tensor),
    ),
}  # fmt: skip
