"""FP8 by a plain cast (App. E.2): the two formats, rounding to them, and which tensor of a linear goes where.

    format   bits: sign, exponent, mantissa   max     min normal   min subnormal   after max comes
    E4M3           1     4         3          448     2^-6         2^-9            NaN; it has no infinity
    E5M2           1     5         2          57344   2^-14        2^-16           infinity

A linear takes part in three matmuls: y = x Wᵀ forward, dx = dy W and dw = dyᵀ x backward. Their operands,
x, w and dy, are rounded to FP8 just before they are multiplied; the products stay float32. Nothing is scaled
on the way: u-µP starts all three at scale 1, inside E4M3's range, and there they stay. Only the inputs of the
attention output and FFN down projections grow much, so these two go to E5M2, which has more range.
As in the paper, FP8 is simulated: values are rounded to those it has, but kept and multiplied as float32.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from microumup.backend import Array, xp_of
from microumup.cpu import BLOCK, blocks


class Format(NamedTuple):
    """The limits of a floating point format."""

    name: str
    mantissa_bits: int  # the stored ones, without the leading 1
    min_exponent: int  # log2 of min_normal
    max: float
    min_normal: float
    min_subnormal: float  # also the spacing of all values up to 2 * min_normal


def _format(name: str, dtype: Any) -> Format:
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # ml_dtypes leaves it without types
    limits = info.max, info.smallest_normal, info.smallest_subnormal
    return Format(name, info.nmant, info.minexp, *map(float, limits))


E4M3 = _format("e4m3", ml_dtypes.float8_e4m3fn)
E5M2 = _format("e5m2", ml_dtypes.float8_e5m2)
FORMATS = {"e4m3": E4M3, "e5m2": E5M2}

EXPONENT_BITS = 0x7F800000  # of a float32: x with only these bits is 2^⌊log2|x|⌋


def quantize(x: Array, fmt: Format) -> Array:
    """The values of fmt nearest to x, ties to the even one. x float32 of any shape -> float32, same shape.

    What lies past ±max, infinity too, becomes ±max; subnormals, zero's sign and NaN are kept: bit for bit a
    clip to ±max, then ml_dtypes' cast there and back. Raises ValueError for an x that is not float32 and for an
    unknown format.
    """
    if not hasattr(fmt, "mantissa_bits"):
        raise ValueError(f"quantize: fmt is {fmt!r}; pass E4M3 or E5M2, or look it up in FORMATS")
    if (dtype := getattr(x, "dtype", type(x))) != np.float32:
        raise ValueError(f"quantize: x is {dtype}; pass float32, x.astype(np.float32)")
    xp = xp_of(x)
    out = xp.empty(x.shape, dtype=np.float32)
    spacing = xp.empty(min(x.size, BLOCK) if xp is np else x.size, dtype=np.float32)
    with np.errstate(invalid="ignore"):  # a signaling NaN would warn
        for y, x_i in blocks(out, xp.ascontiguousarray(x)):
            xp.clip(x_i, -fmt.max, fmt.max, out=y)
            _spacing(y, fmt, out=(step := spacing[: y.size]))
            y /= step  # exact, by a power of two. Neighbours in fmt are now 1 apart,
            xp.rint(y, out=y)  # and rint rounds to nearest, ties to even, and keeps the sign of zero
            y *= step
    return out


def _spacing(y: Array, fmt: Format, *, out: Array) -> None:
    """out = the distance between neighbours in fmt at y: 2^(max(⌊log2|y|⌋, min_exponent) − mantissa_bits)."""
    xp = xp_of(y)
    xp.bitwise_and(y.view(np.uint32), EXPONENT_BITS, out=out.view(np.uint32))
    xp.maximum(out, fmt.min_normal, out=out)  # subnormals are spaced like the smallest normals
    out *= 2.0**-fmt.mantissa_bits


class LinearFormats(NamedTuple):
    """Formats that the operands of a linear are rounded to; None leaves one float32."""

    x: Format | None = None
    w: Format | None = None
    dy: Format | None = None


TENSORS = LinearFormats._fields
LINEARS = ("q", "k", "v", "o", "gate", "up", "down", "head")
RECIPES: dict[str, dict[str, LinearFormats]] = {
    "none": dict.fromkeys(LINEARS, LinearFormats()),
    "fp8": dict.fromkeys(LINEARS, LinearFormats(x=E4M3, w=E4M3, dy=E4M3))  # App. E.2
    | dict.fromkeys(("o", "down"), LinearFormats(x=E5M2, w=E4M3, dy=E4M3)),
    "fp8-iclr": dict.fromkeys(LINEARS, LinearFormats(x=E4M3, w=E4M3, dy=E5M2))  # the paper as published later
    | dict.fromkeys(("o", "down", "head"), LinearFormats()),
}


def parse_recipe(text: str) -> dict[str, LinearFormats]:
    """The formats of every linear: a recipe's name (else `none`), then overrides, the later ones winning.

    `fp8`, `fp8,all.dy=e5m2`, `fp8,head.all=none`, `down.x=e5m2`. Raises ValueError on what does not exist.
    """
    items = text.replace(" ", "").split(",")
    recipe = dict(_pick(RECIPES, "none" if "=" in items[0] else items.pop(0), "recipe", text))
    for item in items:
        target, _, format_name = item.partition("=")
        site, _, tensor = target.partition(".")
        sites = _pick({name: (name,) for name in LINEARS} | {"all": LINEARS}, site, "linear", text)
        tensors = _pick({name: (name,) for name in TENSORS} | {"all": TENSORS}, tensor, "tensor", text)
        fmt = _pick(FORMATS | {"none": None}, format_name, "format", text)
        recipe |= {site: recipe[site]._replace(**dict.fromkeys(tensors, fmt)) for site in sites}
    return recipe


def _pick(choices: dict[str, Any], name: str, what: str, text: str) -> Any:
    if name not in choices:
        raise ValueError(f"--fp8 {text}: there is no {what} {name!r}; choose from {', '.join(choices)}")
    return choices[name]
