"""Every op and every fused pair, at any memory layout: as the readable pair on a copy in C order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microumup import cpu, fused, ops
from microumup.backend import Array
from microumup.cpu import Threads
from microumup.engine import Tensor, backpropagate
from microumup.fp8 import E4M3, E5M2, LinearFormats
from microumup.ops import ResidualScale, Scale
from microumup.optim import SGD, AdamW

FP8 = LinearFormats(E4M3, E4M3, E5M2)
SCALE = Scale(y=0.5, dx=0.7, dw=1.3)
NAMES = r"^(linear|cross_entropy|embedding|rms_norm|rope|attention|gated_silu|residual_(split|add)):"
RESIDUAL = ResidualScale(a=0.6, b=0.8, dbranch=1.0, dbase=0.6)

Make = Callable[[np.random.Generator, int, int, int], tuple[list[Array], dict[str, Any]]]


def floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def ids(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(7, size=shape)


# Inputs and settings of each op, of any B, T and D = 4 d
CASES: dict[str, tuple[Any, Make]] = {
    "linear": (ops.linear, lambda r, B, T, d: ([floats(r, B, T, 4 * d), floats(r, 6, 4 * d)], {"scale": SCALE})),
    "linear in fp8": (
        ops.linear, lambda r, B, T, d: ([floats(r, B, T, 4 * d), floats(r, 6, 4 * d)], {"scale": SCALE, "fp8": FP8}),
    ),
    "embedding": (ops.embedding, lambda r, B, T, d: ([ids(r, B, T), floats(r, 7, 4 * d)], {"scale": SCALE})),
    "rms_norm": (ops.rms_norm, lambda r, B, T, d: ([floats(r, B, T, 4 * d)], {})),
    "rope": (ops.rope, lambda r, B, T, d: ([floats(r, B, T, 4 * d)], {"head_dim": 4})),
    "attention": (
        ops.attention,
        lambda r, B, T, d: (
            [floats(r, B, T, 4 * d) for _ in "qkv"], {"head_dim": 4, "score_scale": 0.5, "scale": SCALE}
        ),
    ),
    "attention of large heads": (
        ops.attention, lambda r, B, T, d: ([floats(r, B, T, 64) for _ in "qkv"], {"head_dim": 64, "scale": SCALE}),
    ),
    "gated_silu": (
        ops.gated_silu, lambda r, B, T, d: ([floats(r, B, T, 4 * d) for _ in "xg"], {"alpha": 1.5, "scale": SCALE}),
    ),
    "residual_split": (ops.residual_split, lambda r, B, T, d: ([floats(r, B, T, 4 * d)], {"scale": RESIDUAL})),
    "residual_add": (
        ops.residual_add, lambda r, B, T, d: ([floats(r, B, T, 4 * d) for _ in "fx"], {"scale": RESIDUAL}),
    ),
    "cross_entropy": (
        ops.cross_entropy, lambda r, B, T, d: ([floats(r, B, T, 7), ids(r, B, T)], {"alpha": 1.5, "scale": SCALE}),
    ),
    "linear_cross_entropy": (
        ops.linear_cross_entropy,
        lambda r, B, T, d: (
            [floats(r, B, T, 4 * d), floats(r, 7, 4 * d), ids(r, B, T)],
            {"alpha": 1.5, "scale": SCALE, "loss_scale": SCALE._replace(y=1.0)},
        ),
    ),
}  # fmt: skip


def fortran(x: Array) -> Array:
    return np.asfortranarray(x)


def swapped(x: Array) -> Array:
    """Its first two axes the other way round in memory."""
    return np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1) if x.ndim > 1 else x


def strided(x: Array) -> Array:
    """Every second element of a larger array, the rest of which is NaN or nonsense."""
    large = np.full([2 * n for n in x.shape], 99 if x.dtype.kind == "i" else np.nan, x.dtype)
    view = large[tuple(slice(0, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def backwards(x: Array) -> Array:
    """Negative strides."""
    turned = tuple(slice(None, None, -1) for _ in x.shape)
    return np.ascontiguousarray(x[turned])[turned]


def unaligned(x: Array) -> Array:
    """One byte off."""
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def frozen(x: Array) -> Array:
    """May not be written to."""
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {f.__name__: f for f in (np.ascontiguousarray, fortran, swapped, strided, backwards, unaligned, frozen)}
HALVES = [
    (name, kind) for name, (op, _) in CASES.items() for kind in ("ops", "fused") if kind == "ops" or op in fused.KERNELS
]


def halves(op: Any, kind: str) -> tuple[Any, Any]:
    name = op.__name__
    pair = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
    return fused.KERNELS[op] if kind == "fused" else pair


@pytest.mark.parametrize(("name", "kind"), HALVES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_layout_changes_no_value(name: str, kind: str, data: st.DataObject) -> None:
    """Forward and backward, with each input and dy in a layout of its own; sizes of one among them."""
    op, make = CASES[name]
    sizes = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40)))
    arrays, options = make(np.random.default_rng(data.draw(st.integers(0, 99))), *sizes)
    draw = st.sampled_from(sorted(LAYOUTS))
    laid = [LAYOUTS[data.draw(draw, label="layout")](x) for x in arrays]
    before = [x.copy() for x in laid]
    forward, backward = halves(op, kind)
    plain_forward, plain_backward = halves(op, "ops")
    y, saved = plain_forward(*arrays, **options)
    found, found_saved = forward(*laid, **options)
    assert found.dtype == y.dtype == np.float32
    np.testing.assert_allclose(found, y, rtol=2e-5, atol=2e-5)
    dy = np.asarray(floats(np.random.default_rng(1), *y.shape)) if y.shape else np.ones((), np.float32)
    gradients = plain_backward(dy, saved)
    own = backward(LAYOUTS[data.draw(draw, label="dy")](dy) if y.shape else dy, found_saved)
    for gradient, mine, x in zip(gradients, own, arrays, strict=True):
        assert (gradient is None) == (mine is None)
        if gradient is not None:
            assert (mine.shape, mine.dtype) == (x.shape, x.dtype)
            tolerance = 2e-5 if "fp8" not in name else 1e-2  # a rounding may decide where a cast goes
            # what is small where others are large is the difference of such as they, and rounded as they are
            largest = max(1.0, float(np.abs(gradient).max()))
            np.testing.assert_allclose(mine, gradient, rtol=tolerance, atol=tolerance * largest)
    assert all(np.array_equal(x, was) for x, was in zip(laid, before, strict=True))  # inputs are never written to


@pytest.mark.parametrize("shape", [(), (0, 3, 8), (2, 0, 8), (2, 3, 0), (0,)])
@pytest.mark.parametrize(("name", "kind"), HALVES)
def test_a_single_number_and_nothing_at_all_are_refused_by_name(name: str, kind: str, shape: tuple[int, ...]) -> None:
    """They went through some ops, ended others in a traceback of NumPy, and a pair and its fused one differed."""
    op, make = CASES[name]
    arrays, options = make(np.random.default_rng(0), 2, 3, 2)
    for i, x in enumerate(arrays):
        if name == "embedding" and i == 0 and shape == ():
            continue  # one token is fine
        odd = [*arrays[:i], np.zeros(shape, x.dtype), *arrays[i + 1 :]]
        with pytest.raises(
            ValueError, match=r"^(linear|cross_entropy|embedding|rms_norm|rope|attention|gated_|residual_)"
        ):
            halves(op, kind)[0](*odd, **options)


NUMBERS = [np.float64(0.7), np.float32(0.7), np.float16(0.7), np.int64(2), np.array(0.7), 2, True]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize(("name", "kind"), HALVES)
def test_a_number_of_any_kind_changes_no_dtype(name: str, kind: str, number: Any) -> None:
    """A factor that is a float64 of NumPy made float64 of a float32 op."""
    op, make = CASES[name]
    arrays, options = make(np.random.default_rng(0), 2, 3, 2)
    for key in options.keys() & {"alpha", "score_scale"}:
        options[key] = number
    for key in options.keys() & {"scale", "loss_scale"}:
        options[key] = type(options[key])(*[number] * len(options[key]))
    options |= {"eps": np.float64(1e-6)} if name == "rms_norm" else {}
    options |= {"base": np.float64(1e4)} if name == "rope" else {}
    forward, backward = halves(op, kind)
    y, saved = forward(*arrays, **options)
    assert y.dtype == np.float32
    gradients = backward(np.ones_like(y), saved)
    assert {g.dtype for g in gradients if g is not None} == {np.dtype(np.float32)}


@pytest.mark.parametrize("number", [1j, float("nan"), float("inf"), "1", None, np.complex64(1), np.ones(2)])
@pytest.mark.parametrize(("name", "kind"), HALVES)
def test_what_is_no_finite_number_is_refused(name: str, kind: str, number: Any) -> None:
    op, make = CASES[name]
    arrays, options = make(np.random.default_rng(0), 2, 3, 2)
    option = next((key for key in ("alpha", "score_scale") if key in options), None)
    for key, value in [(option, number), ("scale", options.get("scale") and options["scale"]._replace(**{
        "a" if "residual" in name else "y": number})), *([("eps", number)] if name == "rms_norm" else []),
        *([("base", number)] if name == "rope" else [])]:  # fmt: skip
        if key and value is not None and (key in options or key in ("eps", "base")):
            with pytest.raises(ValueError, match=r"pass a (real|finite) number"):
                halves(op, kind)[0](*arrays, **options | {key: value})


@pytest.mark.parametrize("layout", [fortran, swapped, strided, backwards])
def test_adamw_updates_a_weight_of_any_layout_or_refuses_it(layout: Any) -> None:
    """It did nothing, silently, to a weight that was not in C order."""
    rng = np.random.default_rng(0)
    w, g = floats(rng, 6, 8), floats(rng, 6, 8)
    with pytest.raises(ValueError, match="not C-contiguous"):
        AdamW({"w": layout(w)}, {"w": 1.0}, lr=0.1).step({"w": g}, 1.0)
    with pytest.raises(ValueError, match="not C-contiguous"):
        SGD({"w": layout(w)}, {"w": 1.0}, lr=0.1).step({"w": g}, 1.0)
    kept = w.copy()
    AdamW({"w": w}, {"w": 1.0}, lr=0.1).step({"w": g}, 1.0)
    assert not np.any(w == kept)


def test_blocks_of_an_array_that_would_be_copied_are_refused() -> None:
    with pytest.raises(ValueError, match="not C-contiguous"):
        list(cpu.blocks(np.zeros((3, 4), order="F")))
    assert [part.size for _, *views in [("w", *b) for b in cpu.blocks(np.zeros((3, 4)))] for part in views] == [12]
    assert list(cpu.blocks(np.zeros((0, 4)))) == []
    assert Threads(1).over(lambda name, x: x.size, {"w": np.zeros((0, 4))}) == [[]]


def test_a_tape_of_odd_layouts_has_the_gradients_of_a_plain_one() -> None:
    rng = np.random.default_rng(0)
    x, w = floats(rng, 2, 3, 8), floats(rng, 5, 8)
    found = []
    for layout in (np.ascontiguousarray, fortran, strided):
        leaves = Tensor(layout(x)), Tensor(layout(w))
        backpropagate(ops.linear(ops.rms_norm(leaves[0]), leaves[1]), np.ones((2, 3, 5), np.float32))
        found.append([leaf.grad for leaf in leaves])
    for grads in found[1:]:
        for a, b in zip(found[0], grads, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
