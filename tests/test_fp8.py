import types
import warnings

import ml_dtypes
import numpy as np
import pytest

from microumup import cpu, fp8
from microumup.fp8 import (
    E4M3,
    E5M2,
    FORMATS,
    LINEARS,
    RECIPES,
    LinearFormats,
    parse_recipe,
    quantize,
)

DTYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
both_formats = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


@np.errstate(all="ignore")  # these may warn about NaN; `quantize` may not
def cast(x, fmt):
    """ml_dtypes' own rounding, there and back: the authority."""
    return x.astype(DTYPES[fmt.name]).astype(np.float32)


@np.errstate(all="ignore")
def reference(x, fmt):
    return cast(np.clip(x, -fmt.max, fmt.max), fmt)


def assert_same_bits(got, want):
    assert got.dtype == np.float32
    assert got.shape == want.shape
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert same.all(), f"{(~same).sum()} differ, first {got[~same][:3]} for {want[~same][:3]}"


def codes(fmt):
    return np.arange(256, dtype=np.uint8).view(DTYPES[fmt.name]).astype(np.float32)


def values(fmt):
    """All finite values of fmt, ascending, one zero."""
    return np.unique(codes(fmt)[np.isfinite(codes(fmt))])


def midpoints(fmt):
    """The middle of any two neighbours, max and what would follow it too, and a float32 ulp to each side."""
    positive = values(fmt)[values(fmt) >= 0]
    positive = np.append(positive, 2 * positive[-1] - positive[-2])
    middle = (positive[1:] + positive[:-1]) / 2
    near = np.concatenate([np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(np.inf))])
    return np.concatenate([near, -near])


def bfloat16_patterns():
    return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)


def random_patterns(count, seed=0):
    return np.random.default_rng(seed).integers(1 << 32, size=count, dtype=np.uint32).view(np.float32)


def test_the_limits_are_those_of_the_ocp_specification():
    assert E4M3 == ("e4m3", 3, -6, 448.0, 2.0**-6, 2.0**-9)
    assert E5M2 == ("e5m2", 2, -14, 57344.0, 2.0**-14, 2.0**-16)


@both_formats
def test_every_code_of_the_format_stays_as_it_is(fmt):
    x = codes(fmt)
    finite = ~np.isinf(x)
    assert_same_bits(quantize(x, fmt)[finite], x[finite])


@both_formats
def test_midpoints_and_their_float32_neighbours(fmt):
    assert_same_bits(quantize(midpoints(fmt), fmt), reference(midpoints(fmt), fmt))


@both_formats
def test_all_bfloat16_patterns(fmt):
    assert_same_bits(quantize(bfloat16_patterns(), fmt), reference(bfloat16_patterns(), fmt))


@both_formats
def test_ten_million_random_float32_patterns(fmt):
    for seed in range(10):
        x = random_patterns(10**6, seed)
        assert_same_bits(quantize(x, fmt), reference(x, fmt))


@both_formats
def test_a_million_values_within_the_range_of_the_format(fmt):
    # Of all float32 patterns only one in ten (E4M3) has an exponent where the rounding is not trivial.
    rng = np.random.default_rng(0)
    span = rng.uniform(np.log2(fmt.min_subnormal) - 2, np.log2(fmt.max) + 1, 10**6)
    x = (rng.choice([-1, 1], 10**6) * np.exp2(span)).astype(np.float32)
    assert_same_bits(quantize(x, fmt), reference(x, fmt))


@both_formats
def test_overflow_saturates_and_nan_stays(fmt):
    x = np.array([np.inf, -np.inf, 3e38, -3e38, fmt.max * 1.001, np.nan, -np.nan], dtype=np.float32)
    expected = np.array([fmt.max, -fmt.max, fmt.max, -fmt.max, fmt.max, np.nan, np.nan], dtype=np.float32)
    assert_same_bits(quantize(x, fmt), expected)


@both_formats
def test_what_underflows_keeps_its_sign(fmt):
    x = np.float32([0.0, -0.0, 1e-45, -1e-45, fmt.min_subnormal / 2, -fmt.min_subnormal / 2])
    assert_same_bits(quantize(x, fmt), np.float32([0.0, -0.0, 0.0, -0.0, 0.0, -0.0]))


@both_formats
def test_quantizing_twice_is_quantizing_once(fmt):
    once = quantize(random_patterns(10**5), fmt)
    assert_same_bits(quantize(once, fmt), once)


@both_formats
def test_no_floating_point_warning(fmt):
    signaling = np.uint32([0x7F800001, 0xFF800001]).view(np.float32)
    x = np.concatenate([bfloat16_patterns(), signaling])
    with warnings.catch_warnings(), np.errstate(all="warn"):
        warnings.simplefilter("error")
        quantize(x, fmt)


@pytest.mark.parametrize("size", [0, 1, cpu.BLOCK - 1, cpu.BLOCK, cpu.BLOCK + 1, 2 * cpu.BLOCK + 3])
def test_sizes_around_a_block(size):
    x = random_patterns(size)
    assert_same_bits(quantize(x, E4M3), reference(x, E4M3))


@both_formats
def test_x_is_left_alone(fmt):
    x = random_patterns(2 * cpu.BLOCK + 4).reshape(2, -1)
    before = x.copy()
    assert not np.shares_memory(quantize(x, fmt), x)
    assert_same_bits(x, before)


@pytest.mark.parametrize("view", [lambda x: x.T, lambda x: x[::2, ::3], lambda x: x[:, None, ::-1], lambda x: x[0, 0]])
def test_any_layout_of_x(view):
    x = view(random_patterns(400 * 300).reshape(400, 300))
    assert_same_bits(quantize(x, E4M3), reference(np.asarray(x), E4M3))


def test_only_what_cupy_offers_is_used_and_on_the_whole_array_at_once(monkeypatch):
    calls = []

    def recorded(name):
        return lambda *args, **kwargs: calls.append(name) or getattr(np, name)(*args, **kwargs)

    names = (
        "ascontiguousarray asarray bitwise_and clip copysign divide empty empty_like floor maximum multiply rint where"
    )
    cupy = types.SimpleNamespace(**{name: recorded(name) for name in names.split()})
    for module in (fp8, cpu):
        monkeypatch.setattr(module, "xp_of", lambda array: cupy)
    x = random_patterns(2 * cpu.BLOCK + 3)
    assert_same_bits(quantize(x, E4M3), reference(x, E4M3))
    assert calls.count("rint") == 1


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), "x is float64; pass float32"),
        (np.zeros(3, np.int32), "x is int32; pass float32"),
        (np.zeros(3, np.float16), "x is float16; pass float32"),
        ([1.0], "x is <class 'list'>; pass float32"),
    ],
)
def test_x_must_be_float32(x, message):
    with pytest.raises(ValueError, match=message):
        quantize(x, E4M3)


@pytest.mark.parametrize("fmt", ["e4m3", None])
def test_an_unknown_format_is_refused(fmt):
    with pytest.raises(ValueError, match=f"quantize: fmt is {fmt!r}; pass E4M3 or E5M2"):
        quantize(np.zeros(3, np.float32), fmt)


def test_the_recipes_of_the_paper():
    growing, cast_all = LinearFormats(E5M2, E4M3, E4M3), LinearFormats(E4M3, E4M3, E4M3)
    assert set(RECIPES["none"].values()) == {LinearFormats(None, None, None)}
    assert RECIPES["fp8"] == {
        "q": cast_all,
        "k": cast_all,
        "v": cast_all,
        "o": growing,
        "gate": cast_all,
        "up": cast_all,
        "down": growing,
        "head": cast_all,
    }
    published = {site: formats for site, formats in RECIPES["fp8-iclr"].items() if any(formats)}
    assert published == dict.fromkeys(["q", "k", "v", "gate", "up"], LinearFormats(E4M3, E4M3, E5M2))
    assert all(tuple(recipe) == LINEARS for recipe in RECIPES.values())


@pytest.mark.parametrize("name", RECIPES)
def test_parse_recipe_knows_every_name(name):
    assert parse_recipe(name) == RECIPES[name]


@pytest.mark.parametrize(
    ("text", "base", "changes"),
    [
        ("none,down.x=e5m2", "none", {"down": LinearFormats(x=E5M2)}),
        ("down.x=e5m2", "none", {"down": LinearFormats(x=E5M2)}),
        ("fp8, head.all = none", "fp8", {"head": LinearFormats()}),
        ("fp8,head.all=none,head.w=e5m2", "fp8", {"head": LinearFormats(w=E5M2)}),
        ("all.all=e4m3", "none", dict.fromkeys(LINEARS, LinearFormats(E4M3, E4M3, E4M3))),
        ("fp8,all.dy=e5m2", "fp8", {site: f._replace(dy=E5M2) for site, f in RECIPES["fp8"].items()}),
    ],
)
def test_parse_recipe_applies_overrides(text, base, changes):
    before = {name: dict(recipe) for name, recipe in RECIPES.items()}
    assert parse_recipe(text) == RECIPES[base] | changes
    assert before == RECIPES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp9", "no recipe 'fp9'; choose from none, fp8, fp8-iclr"),
        ("", "no recipe ''; choose from"),
        ("fp8,dwon.x=e5m2", "no linear 'dwon'; choose from q, k, v, o, gate, up, down, head, all"),
        ("fp8,none", "no linear 'none'; choose from"),
        ("down.y=e5m2", "no tensor 'y'; choose from x, w, dy, all"),
        ("down=e5m2", "no tensor ''; choose from"),
        ("down.x=fp8", "no format 'fp8'; choose from e4m3, e5m2, none"),
        ("none,down.x", "no format ''; choose from"),
    ],
)
def test_parse_recipe_names_what_does_not_exist(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_recipe(text)
    assert str(error.value).startswith(f"--fp8 {text}: there is ")
