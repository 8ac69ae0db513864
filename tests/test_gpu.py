"""The GPU path: on the double of CuPy everywhere, on CuPy itself where there is a device (`pytest -m gpu`)."""

import numpy as np
import pytest
from cupy_double import counts

from microumup.backend import scatter_add, to_device, to_host
from microumup.config import ModelConfig, TrainConfig
from microumup.engine import Tensor, backpropagate
from microumup.fp8 import FORMATS, quantize
from microumup.generate import generate
from microumup.model import init_params, loss
from microumup.optim import SGD, AdamW
from microumup.parametrization import SCHEMES
from microumup.plan import gradient_constants, plan

SMALL = {"width": 16, "head_dim": 8, "seq_len": 16, "batch_size": 4, "layers": 2}


def one_step(scheme, fp8, device):
    """The loss of one training step, the gradients, and the weights after a step of AdamW and of SGD from there."""
    config = ModelConfig(scheme=scheme, fp8=fp8, width=16, layers=2, head_dim=8, seq_len=16, vocab_size=64)
    tokens, targets = np.random.default_rng(0).integers(config.vocab_size, size=(2, 4, config.seq_len))
    params = {name: Tensor(to_device(w, device), name) for name, w in init_params(config).items()}
    numbers = plan(config, tokens.size)
    out = loss(params, to_device(tokens, device), to_device(targets, device), numbers)
    backpropagate(out)
    grads = {name: t.grad for name, t in params.items()}
    after = {}
    for kind in ("adamw", "sgd"):
        arrays = {name: t.data.copy() for name, t in params.items()}
        if kind == "adamw":
            optimizer = AdamW(arrays, {name: w.C for name, w in numbers.weights.items()}, lr=0.5, weight_decay=2**-13)
        else:
            optimizer = SGD(arrays, gradient_constants(numbers), lr=0.5, weight_decay=2**-13)
        optimizer.step(grads, 1.0)
        after[kind] = {name: to_host(w) for name, w in arrays.items()}
    return float(out.data), {name: to_host(g) for name, g in grads.items()}, after


# ---- The double ----


@pytest.mark.parametrize("fp8", ["none", "fp8"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_step_on_the_double_gives_the_bits_of_numpy(double, scheme, fp8):
    value, grads, after = one_step(scheme, fp8, "cpu")
    value_gpu, grads_gpu, after_gpu = one_step(scheme, fp8, "gpu")
    assert value_gpu == value
    for name, grad in grads.items():
        assert np.abs(grad).max() > 0 or fp8 != "none", name  # µP's small gradients may all be flushed in FP8
        # Only scatter_add makes its sums in another way; in float32 that is a few units in the last place of a row.
        tolerance = 1e-6 * np.abs(grad).max(axis=-1, keepdims=True) if name == "embedding" else 0
        assert (np.abs(grads_gpu[name] - grad) <= tolerance).all(), name
        for kind in after if name != "embedding" else ():
            np.testing.assert_array_equal(after_gpu[kind][name], after[kind][name], err_msg=f"{kind}, {name}")


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_on_the_double_gives_the_tokens_of_numpy(double, use_cache):
    numbers = plan(TrainConfig(**SMALL), 1)
    on_cpu = init_params(numbers.config)
    on_gpu = {name: to_device(w, "gpu") for name, w in on_cpu.items()}
    tokens = generate(on_cpu, numbers, [1, 2, 3], 20, use_cache=use_cache)  # more than seq_len
    counts.clear()
    assert generate(on_gpu, numbers, [1, 2, 3], 20, use_cache=use_cache) == tokens
    # Of each token: the check of its ids, and its logits down; itself and RoPE's angles up.
    assert counts["syncs"] <= 20 * 3
    assert counts["uploads"] <= 20 * 2


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_quantize_on_the_double_gives_the_bits_of_numpy(double, fmt):
    x = np.concatenate((np.random.default_rng(0).standard_normal(1000) * 2.0**-6, [0.0, -0.0, np.inf, -np.inf, np.nan]))
    x = (x * 1e4).astype(np.float32)
    on_gpu = to_device(x, "gpu")
    counts.clear()
    rounded = quantize(on_gpu, fmt)
    assert counts == {"launches": 7}  # nothing goes up or down
    assert rounded.get().tobytes() == quantize(x, fmt).tobytes()


# ---- A device ----


@pytest.mark.gpu
@pytest.mark.parametrize("fp8", ["none", "fp8"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_step_on_a_device_is_near_that_of_numpy(cupy, scheme, fp8):
    value, grads, after = one_step(scheme, fp8, "cpu")
    value_gpu, grads_gpu, after_gpu = one_step(scheme, fp8, "gpu")
    # float32 sums in another order: some 1e-6. Before a cast that moves a few values to the neighbour, 1/16 away.
    rough = 1e-5 if fp8 == "none" else 1e-2
    assert value_gpu == pytest.approx(value, rel=rough)
    for name, grad in grads.items():
        assert np.linalg.norm(grads_gpu[name] - grad) <= rough * np.linalg.norm(grad), name
        # AdamW's first step is about the sign of the gradient: it flips where the gradient is as good as 0.
        for kind, least in (("adamw", 10 * rough**0.5), ("sgd", rough)):
            moved = np.linalg.norm(after_gpu[kind][name] - after[kind][name])
            assert moved <= least * np.linalg.norm(after[kind][name]), (kind, name)


@pytest.mark.gpu
def test_generation_on_a_device_gives_the_tokens_of_numpy(cupy):
    numbers = plan(TrainConfig(**SMALL), 1)
    on_cpu = init_params(numbers.config)
    on_gpu = {name: to_device(w, "gpu") for name, w in on_cpu.items()}
    # Logits differ by some 1e-6, so a draw falls to the other side of a boundary once in 10^5 tokens.
    assert generate(on_gpu, numbers, [1, 2, 3], 20) == generate(on_cpu, numbers, [1, 2, 3], 20)


@pytest.mark.gpu
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_quantize_on_a_device_gives_the_bits_of_numpy(cupy, fmt):
    bits = np.random.default_rng(0).integers(2**32, size=1_000_000, dtype=np.uint32)
    x = np.concatenate((bits.view(np.float32), np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)))
    cpu, gpu = quantize(x, fmt), quantize(to_device(x, "gpu"), fmt).get()
    np.testing.assert_array_equal(np.isnan(gpu), np.isnan(cpu))  # a NaN's own bits are nobody's business
    number = ~np.isnan(cpu)
    np.testing.assert_array_equal(gpu[number].view(np.uint32), cpu[number].view(np.uint32))


@pytest.mark.gpu
def test_scatter_add_on_a_device_is_exact_and_repeats(cupy):
    rng = np.random.default_rng(0)
    index, values = rng.integers(50, size=5000), rng.standard_normal((5000, 32)).astype(np.float32)
    expected = np.zeros((60, 32))
    np.add.at(expected, index, values)
    first, *others = (scatter_add(60, to_device(index, "gpu"), to_device(values, "gpu")).get() for _ in range(5))
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-5)  # about 100 terms of size 1 in float32
    assert all(other.tobytes() == first.tobytes() for other in others)
