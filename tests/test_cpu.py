"""What exists for a processor's sake: cut and shared work is the whole work, and products are the product."""

from threading import get_ident
from types import SimpleNamespace

import numpy as np
import pytest

from microumup import cpu
from microumup.cpu import (
    Threads,
    blocks,
    cores,
    keep_freed_memory,
    pieces,
    product,
    product_over_rows,
    small_product,
    times,
)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


# ---- Blocks and threads ----


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_share_is_worked_off_once_and_in_a_thread_of_its_own(n):
    threads = Threads(n)
    found = threads.run(lambda i: (i, get_ident()))
    assert [i for i, _ in found] == list(range(n))
    assert found[0][1] == get_ident()
    assert (found[-1][1] == get_ident()) == (n == 1)


@pytest.mark.parametrize(("size", "n"), [(16, 1), (16, 3), (2, 5), (0, 2)])
def test_shares_are_all_of_it_without_overlap_and_nearly_equal(size, n):
    shares = [range(size)[Threads(n).share(size, i)] for i in range(n)]
    assert [j for share in shares for j in share] == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


NAMES = {"a": (3, 4), "b": (5,), "none": (0,), "large": (300, 700)}  # the last of several blocks


@pytest.mark.parametrize("n", [1, 2, 3])
def test_blocks_of_all_arrays_are_dealt_to_all_threads_in_turn(n):
    ones, twos = ({name: np.full(shape, value) for name, shape in NAMES.items()} for value in (1.0, 2.0))

    def add(name, one, two):
        assert one.ndim == two.ndim == 1
        assert np.shares_memory(one, ones[name])
        one += two
        return name, one.size, get_ident()

    done = Threads(n).over(add, ones, twos)
    assert len(done) == n
    assert all((a == 3).all() for a in ones.values())  # every element once
    assert all((a == 2).all() for a in twos.values())
    sizes = {name: sum(size for part in done for found, size, _ in part if found == name) for name in NAMES}
    assert sizes == {name: a.size for name, a in ones.items()}
    assert max(map(len, done)) - min(map(len, done)) <= 1
    assert max(size for part in done for _, size, _ in part) <= cpu.BLOCK < ones["large"].size
    assert all(len({thread for _, _, thread in part}) == 1 for part in done)


def test_an_array_that_blocks_would_copy_is_refused():
    """What is written to a flat copy of it would be lost."""
    x = np.zeros((3, 4))
    for other in (x.T, x[:, ::2], np.asfortranarray(np.ones((3, 4)))):
        with pytest.raises(
            ValueError, match=r"^blocks: an array is not C-contiguous; pass np\.ascontiguousarray of it$"
        ):
            blocks(np.ascontiguousarray(other), other)


@pytest.mark.parametrize(("shape", "size", "expected"), [((5, 4), 7, [7, 7, 6]), ((5, 4), 100, [20]), ((0, 3), 2, [])])
def test_blocks_are_flat_views_of_all_of_it(monkeypatch, shape, size, expected):
    monkeypatch.setattr(cpu, "BLOCK", size)
    x = np.arange(float(np.prod(shape))).reshape(shape)
    found = list(blocks(x, x + 1))
    assert [len(a) for a, _ in found] == expected
    for a, b in found:
        assert np.shares_memory(a, x)
        assert np.array_equal(b, a + 1)
    assert [value for a, _ in found for value in a] == list(range(x.size))


@pytest.mark.parametrize(("size", "rows"), [(1, [1] * 6), (8, [2, 2, 2]), (16, [4, 2]), (1000, [6])])
def test_pieces_are_whole_rows(size, rows):
    x, y = np.arange(24.0).reshape(2, 3, 4), np.arange(6.0).reshape(2, 3, 1)
    found = list(pieces(x, y, size=size))
    assert [len(a) for a, _ in found] == [len(b) for _, b in found] == rows
    assert np.array_equal(np.concatenate([a for a, _ in found]), x.reshape(6, 4))
    assert np.array_equal(np.concatenate([b for _, b in found]), y.reshape(6, 1))
    assert all(np.shares_memory(a, x) for a, _ in found)


def test_what_a_share_raises_is_raised_in_the_caller():
    def work(i):
        if i == 1:
            raise ValueError("share 1")

    with pytest.raises(ValueError, match="share 1"):
        Threads(3).run(work)


def test_errstate_of_the_caller_holds_in_every_thread():
    def overflow(i):
        return np.float32(1e38) * np.float32(10)

    with np.errstate(over="ignore"):
        assert Threads(2).run(overflow) == [np.inf, np.inf]
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        Threads(2).run(overflow)


def test_there_is_at_least_one_core():
    assert cores() >= 1


# ---- Memory ----


def test_freed_memory_is_kept_where_the_system_lets_us(monkeypatch):
    asked = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *option: asked.append(option)))
    keep_freed_memory()
    assert asked == [(-1, 1 << 30), (-3, 1 << 25)]


@pytest.mark.parametrize("error", [OSError, AttributeError, TypeError])
def test_elsewhere_memory_stays_as_it_is(monkeypatch, error):
    def refuse(name):
        raise error

    monkeypatch.setattr("ctypes.CDLL", refuse)
    keep_freed_memory()


# ---- Products ----


KERNELS = {"kernels for small products": 10**6, "none": 0}  # what OpenBLAS has on this machine shall not matter


@pytest.mark.parametrize("small", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("factor", [1.0, 0.7])
@pytest.mark.parametrize(
    ("N", "K", "M"),
    [(300, 16, 24), (256, 64, 64), (7, 64, 64), (300, 30, 2000), (300, 100, 700), (2, 900, 3), (3, 16, 50_000)],
)
def test_a_product_in_groups_of_rows_is_the_product(monkeypatch, N, K, M, factor, small):
    monkeypatch.setattr(cpu, "SMALL", small)
    a, b = normal(N, K), normal(M, K, seed=1).T
    before = a.copy(), b.copy()
    np.testing.assert_allclose(product(a, b, factor), factor * (a @ b), rtol=0, atol=1e-12)
    assert all(np.array_equal(x, y) for x, y in zip((a, b), before, strict=True))


@pytest.mark.parametrize("small", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize(("N", "M", "K"), [(384, 20, 16), (300, 20, 16), (128, 20, 16), (256, 300, 200)])
def test_a_product_over_rows_in_groups_is_the_product(monkeypatch, N, M, K, small):
    monkeypatch.setattr(cpu, "SMALL", small)
    a, b = normal(N, M), normal(N, K, seed=1)
    np.testing.assert_allclose(product_over_rows(a, b), a.T @ b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_small_product_is_what_it_is_called(monkeypatch, dtype):
    """None of them has more than SMALL multiplications: beyond, OpenBLAS packs each group, which is slower by half."""
    monkeypatch.setattr(cpu, "SMALL", 10**6)
    sizes = []
    matmul = np.matmul

    def counted(a, b, **settings):
        sizes.append(a.shape[-2] * a.shape[-1] * b.shape[-1])
        assert b.ctypes.data % 64 == 0
        return matmul(a, b, **settings)

    monkeypatch.setattr(np, "matmul", counted)
    for K, M in ((16, 24), (64, 64), (64, 176), (128, 352), (250, 250)):
        product(normal(512, K).astype(dtype), normal(K, M).astype(dtype), 0.7)
    assert len(sizes) == 10
    assert max(sizes) <= 10**6


@pytest.mark.parametrize(
    ("simd", "blas", "small"),
    [
        (["AVX2", "X86_V4"], "scipy-openblas", 10**6),  # NumPy 2.4
        (["AVX2", "AVX512_SKX"], "openblas64", 10**6),  # NumPy 2.0
        (["AVX2", "X86_V3"], "scipy-openblas", 0),
        (["X86_V4"], "mkl", 0),
        ([], "accelerate", 0),
    ],
)
def test_small_products_are_known_by_processor_and_library(monkeypatch, simd, blas, small):
    found = {"SIMD Extensions": {"found": simd}, "Build Dependencies": {"blas": {"name": blas}}}
    monkeypatch.setattr(np, "show_config", lambda mode: found)
    assert small_product() == small


def test_a_numpy_that_says_nothing_of_itself_has_no_kernels_for_small_products(monkeypatch):
    monkeypatch.setattr(np, "show_config", lambda mode: {})
    assert small_product() == 0


def test_no_pass_is_made_over_what_is_multiplied_by_1():
    x = normal(3)
    assert times(x, 1) is times(x, 1.0) is x
    assert np.array_equal(times(x, 0.5), x / 2)
