"""The kernels of `cuda.py`: their bits, their launches, and mistakes planted in them."""

import cuda_on_cpu
import numpy as np
import pytest
from test_gpu_kernels import assert_equal, normal

from microumup import cuda, fp8, fused, gpu
from microumup.backend import to_device, to_host
from microumup.fp8 import FORMATS

# ---- Bits ----


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_quantize_gives_the_bits_of_numpy(device, fmt):
    bits = np.random.default_rng(0).integers(2**32, size=1_000_000, dtype=np.uint32)
    near = np.ldexp(normal(100_000), np.arange(-25, 25).repeat(2000))
    # Everything that lies in the middle between two values of fmt, and its neighbours: ties and almost ties.
    middles = np.arange(0, 32, 0.5, dtype=np.float32) * np.float32(2.0) ** np.arange(-20, 16, dtype=np.float32)[:, None]
    ties = np.concatenate([np.nextafter(middles, np.float32(to)) for to in (-1e9, 1e9)] + [middles]).ravel()
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, -1e-38], np.float32)
    x = np.concatenate((bits.view(np.float32), near, ties, -ties, special))
    assert (np.abs(x[:1_000_000]) < 2.0**-126).sum() > 1000  # subnormals, which a device does not see
    expected, found = fp8.quantize(x, fmt), to_host(gpu.quantize(to_device(x, "gpu"), fmt))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))  # a NaN's own bits are nobody's business
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(found[number].view(np.uint32), expected[number].view(np.uint32))


def updated(rule, arrays, where="cpu", **settings):
    given = [to_device(a.copy(), where) for a in arrays]
    found = rule(*given, **settings)
    assert all(a is b for a, b in zip(found, (given[0], *given[2:]), strict=True)), "not in place"
    assert to_host(given[1]).tobytes() == arrays[1].tobytes()
    return [to_host(a) for a in found]


def moments(n, size=1.0):
    w, g, m = (normal(n, seed=seed, size=s) for seed, s in enumerate((1.0, size, size)))
    return w, g, m, normal(n, seed=3, size=size) ** 2


@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3])
@pytest.mark.parametrize("t", [1, 2, 1000, 100_000])
def test_the_update_has_the_bits_of_numpy(device, t, eps, decay):
    settings = {"t": t, "lr": 0.3, "decay": decay, "betas": (0.9, 0.99), "eps": eps}
    expected = updated(fused.adamw, arrays := moments(10_000), **settings)
    for a, b in zip(expected, updated(gpu.adamw, arrays, "gpu", **settings), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize(("size", "subnormal"), [(1e-12, ""), (1e-20, "v"), (1e-30, ""), (1e-38, "m"), (1e-40, "m")])
def test_what_subnormals_are_worth_to_the_update(double, monkeypatch, size, subnormal, flush):
    """size is that of g and m, and v its square: of 1e-20 subnormal, of 1e-30 zero in NumPy too."""
    monkeypatch.setattr(cuda_on_cpu, "FLUSH", flush)
    settings, arrays = {"t": 7, "lr": 0.3, "decay": 0.02}, moments(10_000, size)
    expected = dict(zip("wmv", updated(fused.adamw, arrays, **settings), strict=True))
    found = dict(zip("wmv", updated(gpu.adamw, arrays, "gpu", **settings), strict=True))
    differ = {name for name in "wmv" if found[name].tobytes() != expected[name].tobytes()}
    assert differ == (set(subnormal) if flush else set())  # the weights never
    for name in differ:
        assert np.abs(found[name] - expected[name]).max() <= 2 * 2.0**-126  # a flush on the way, one at the end


# ---- Launches ----


@pytest.mark.parametrize("threads", [1, 2, 32, 256])
def test_the_number_of_threads_does_not_matter(double, monkeypatch, threads):
    monkeypatch.setattr(cuda_on_cpu, "most_threads", threads)
    for case in ("rms_norm, wide", "attention, one query", "residual_add", "rope"):
        assert_equal(case)


def test_the_number_of_blocks_does_not_matter(double, monkeypatch):
    monkeypatch.setattr(cuda, "BLOCKS", 2)  # each of its 8 threads takes many elements
    for case in ("gated_silu", "residual_add", "embedding"):
        assert_equal(case)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_barrier_of_a_sum_is_needed(double, monkeypatch, which):
    twice = "KERNEL twice(float *x) { float sum = block_sum(*(x += threadIdx.x)); *x = block_sum(*x + sum); }"

    def run(preamble):
        monkeypatch.setitem(cuda.SOURCES, "twice", preamble + twice)
        x = double.asarray(np.arange(1, 9, dtype=np.float32))
        cuda.rows("twice", 1, 8, x)
        return to_host(x).tolist()

    assert run(cuda.PREAMBLE) == [9 * 36] * 8
    parts = cuda.PREAMBLE.split("__syncthreads();")
    assert len(parts) == 4
    parts[which : which + 2] = [parts[which] + parts[which + 1]]
    assert run("__syncthreads();".join(parts)) != [9 * 36] * 8


# ---- Planted mistakes: what stands in a kernel, behind its name for the first time, and what is put in its place ----

PLANTED = [
    ("quantize", "v < -largest ? -largest", "v < -largest ? largest"),
    ("quantize", "v > largest ? largest : v < -largest ? -largest : v", "fminf(fmaxf(v, -largest), largest)"),
    ("quantize", "rintf(v / step)", "(float)(int)(v / step)"),
    ("quantize", "(power > min_normal ? power : min_normal)", "power"),
    ("embedding_forward", "w[id * D + i] * scale", "w[id * D + i]"),
    ("places_by_token", "less += tokens[i] < id", "less += tokens[i] <= id"),
    ("embedding_backward", "begin + k", "begin"),
    ("embedding_backward", "sum * scale", "sum"),
    ("rms_norm_forward", "/ D + eps", "/ D"),
    ("rms_norm_forward", "block_sum(sum) / D", "(threadIdx.x ? sum : block_sum(sum)) / D"),  # a barrier for some
    ("rms_norm_backward", "- y[i] * mean", "- mean"),
    ("rope", "sign * turn", "turn"),
    ("rope", "ALONG(i, pairs)", "ALONG(i, pairs + 1)"),  # out of bounds
    ("softmax_forward", "S - T + 1 + ROW % T", "S - T + 2 + ROW % T"),
    ("softmax_forward", "/ sum * factor", "/ sum"),
    ("softmax_backward", "(dp[s] - sum)", "dp[s]"),
    ("softmax_backward", "p[s] * factor", "p[s]"),
    ("gated_silu_forward", "0.5f * alpha", "alpha"),
    ("gated_silu_forward", "EACH(i, n)", "EACH(i, n + 1)"),
    ("gated_silu_backward", "(1 - sigmoid) * alpha", "(1 - sigmoid)"),
    ("gated_silu_backward", "dy[i] * scale", "dy[i]"),
    ("residual_add_forward", "b * skip[i]", "a * skip[i]"),
    ("residual_add_backward", "dy[i] * of_branch", "dy[i] * b"),
    ("cross_entropy", "i == target ? factor", "i == target ? 1"),
    ("cross_entropy", "(z_target - largest)", "z_target"),
    ("cross_entropy", "*dy * factor", "factor"),
    ("adamw", "(g[i] - m[i])", "g[i]"),
    ("adamw", "(sqrtf(v[i]) + eps) * lr", "(sqrtf(v[i]) + eps)"),
    ("adamw", "sqrtf(v[i]) + eps", "sqrtf(v[i] + eps)"),
    ("adamw", "w[i] * keep", "w[i]"),
    ("adamw", "m[i] / (sqrtf(v[i]) + eps) * lr", "lr * m[i] / (sqrtf(v[i]) + eps)"),  # the same but for the last bit
    ("adamw", "w[i] * keep - m[i] / (sqrtf(v[i]) + eps) * lr",  # contracted, as without --fmad=false
     "__builtin_fmaf(w[i], keep, -m[i] / (sqrtf(v[i]) + eps) * lr)"),
]  # fmt: skip
CAUGHT_BY = {  # a case of the pairs; quantize and adamw are held to their bits
    "embedding_forward": "embedding", "places_by_token": "embedding", "embedding_backward": "embedding",
    "rms_norm_forward": "rms_norm", "rms_norm_backward": "rms_norm", "rope": "rope", "softmax_forward": "attention",
    "softmax_backward": "attention", "gated_silu_forward": "gated_silu", "gated_silu_backward": "gated_silu",
    "residual_add_forward": "residual_add", "residual_add_backward": "residual_add", "cross_entropy": "head, FP8",
}  # fmt: skip


def test_mistakes_are_planted_in_every_kernel():
    assert {kernel for kernel, *_ in PLANTED} == set(cuda.SOURCES)


@pytest.mark.parametrize(("kernel", "right", "wrong"), PLANTED)
def test_a_planted_mistake_is_caught(double, monkeypatch, kernel, right, wrong):
    before, name, text = cuda.SOURCES[kernel].partition(f"KERNEL {kernel}(")
    assert right in text
    monkeypatch.setitem(cuda.SOURCES, kernel, before + name + text.replace(right, wrong, 1))
    with pytest.raises(AssertionError):
        check(double, kernel)


def check(double, kernel):
    """Whatever is said of a kernel above, and in the tests of the pairs."""
    if kernel == "quantize":
        for fmt in FORMATS.values():
            test_quantize_gives_the_bits_of_numpy(double, fmt)
    elif kernel == "adamw":
        test_the_update_has_the_bits_of_numpy(double, 2, 1e-3, 0.02)
    else:
        assert_equal(CAUGHT_BY[kernel])
