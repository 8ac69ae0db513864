"""What is counted on arrays without data is what is counted on arrays with data."""

import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import cupy_double
import numpy as np
import pytest

from microumup import cuda, ops
from microumup.backend import choose_device, to_device
from microumup.config import TrainConfig
from microumup.data import Corpus
from microumup.lab import ledger, shapes
from microumup.lab.ledger import Call
from microumup.lab.roofline import Step, count_step
from microumup.lab.sweep import flops
from microumup.trainer import Trainer

SMALL: dict[str, Any] = {"width": 16, "layers": 3, "head_dim": 4, "seq_len": 8, "batch_size": 6, "steps": 10}


def on_the_double(config: TrainConfig, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Step:
    """What the double counts of a step. Of its calls it knows only how many they are."""
    ops.turns.cache_clear()  # or RoPE's angles would be those of another test
    cupy_double.install(monkeypatch)
    before = cupy_double.memory.now
    trainer = Trainer(config, corpus, "gpu")
    trainer.launch(0)
    cupy_double.counts.clear()
    cupy_double.memory.start()
    held = cupy_double.memory.now - before
    trainer.launch(1)
    counts, peak = cupy_double.counts, cupy_double.memory.peak - before
    return Step([Any] * counts["launches"], counts["syncs"], counts["uploads"], held, peak)


@pytest.mark.parametrize("kernels", ["fast", "plain"])
@pytest.mark.parametrize(
    "options",
    [{}, {"fp8": "fp8"}, {"micro_batch": 2}, {"clip": 1.0}, {"optimizer": "sgd", "lr": 1.0}, {"scheme": "sp"}],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_a_step_is_that_on_the_double(
    kernels: str, options: Any, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**SMALL | options, kernels=kernels)
    expected, found = on_the_double(config, corpus, monkeypatch), count_step(config, copies=False)
    assert len(found.calls) == len(expected.calls)
    assert found[1:] == expected[1:]  # syncs, uploads, and bytes held and at the peak


NAMES = {"add.reduce": "sum", "maximum.reduce": "max", "reshape": "copy"}  # NumPy's, of the same work
UNLIKE = {
    "where",
    "full",
    "triu",
    "conjugate",
}  # NumPy's mask is made by other calls; it is not heard when it conjugates
OPS = (
    "linear", "attention", "rope", "gated_silu", "residual_add", "residual_split", "optim.adamw",
    "optim.AdamW.step.update", "engine.Tensor.accumulate",
)  # fmt: skip


def work(calls: list[Call]) -> Counter[Any]:
    """Calls by op and function, with their FLOPs and bytes, and how often each comes."""
    named = (call._replace(function=NAMES.get(call.function, call.function)) for call in calls)
    return Counter(call[:5] for call in named if call.op in OPS and call.function not in UNLIKE and call.bytes)


@pytest.mark.parametrize("fp8", ["none", "fp8"])
def test_flops_and_bytes_of_every_call_are_those_on_numpy(fp8: str, corpus: Corpus) -> None:
    config = TrainConfig(**SMALL, kernels="plain", fp8=fp8)
    on_numpy = work(ledger.count_step(lambda: partial(Trainer(config, corpus).update, 0)))
    assert work(count_step(config, copies=False).calls) == on_numpy
    assert {op for op, *_ in on_numpy} == set(OPS)


@pytest.mark.parametrize("scheme", ["sp", "umup"])
def test_products_are_6_flops_per_parameter_and_token_and_those_of_attention(scheme: str) -> None:
    config = TrainConfig(**SMALL, scheme=scheme)
    again = 2 * config.layers * config.batch_size * config.seq_len**2 * config.width  # q kᵀ, which kernels do not keep
    for kernels, more in (("plain", 0), ("fast", again)):
        calls = count_step(replace(config, kernels=kernels)).calls
        assert sum(call.gemm_flops for call in calls) == flops(config) + more


def test_a_micro_batch_lowers_the_peak_and_not_what_is_held() -> None:
    config = TrainConfig(**SMALL | {"batch_size": 64, "seq_len": 32})
    for kernels in ("plain", "fast"):
        whole, half, eighth = (count_step(replace(config, kernels=kernels, micro_batch=size)) for size in (64, 32, 8))
        assert whole.held == half.held == eighth.held
        # activations are nearly all of the peak here, and go with the sequences; gradients and a few arrays do not
        assert half.peak < 0.55 * whole.peak
        assert eighth.peak < 0.2 * whole.peak


def test_kernels_in_place_are_those_that_read_what_they_write() -> None:
    found = {}
    for name, source in cuda.SOURCES.items():
        parameters, body = re.search(rf"KERNEL {name}\((.*?)\) {{(.*?)\n}}", source, re.DOTALL).groups()
        for i, parameter in enumerate(parameters.split(",")):
            written = re.fullmatch(r"\s*(?:float|long long) \*(\w+)", parameter)  # not const
            stored = written and len(re.findall(rf"\b{written[1]}\[[^]]*\] = ", body))
            if written and len(re.findall(rf"\b{written[1]}\[", body)) > stored:
                found[name] = (*found.get(name, ()), i)
    assert found == shapes.IN_PLACE
    assert shapes.SQUARE.keys() <= cuda.SOURCES.keys()


# ---- One call ----
CALLS = [
    (lambda xp, x: x + 1, "add", 0, 12, 96),
    (lambda xp, x: 2.0 * x, "multiply", 0, 12, 96),
    (lambda xp, x: xp.exp(x, out=x), "exp", 0, 12, 96),
    (lambda xp, x: x.__imul__(x[:, :1]), "multiply", 0, 12, 96 + 12),
    (lambda xp, x: x.sum(axis=-1, keepdims=True), "sum", 0, 12, 48 + 12),
    (lambda xp, x: x @ x.T, "matmul", 2 * 3 * 3 * 4, 0, 48 + 48 + 36),
    (lambda xp, x: x @ x[0], "matmul", 0, 2 * 3 * 4, 48 + 16 + 12),
    (lambda xp, x: xp.ascontiguousarray(x.T), "copy", 0, 0, 96),
    (lambda xp, x: x.T.reshape(-1), "copy", 0, 0, 96),
    (lambda xp, x: x[xp.empty(2, dtype=np.int64)], "take", 0, 0, 16 + 64),
    (lambda xp, x: x.__setitem__(0, x[1]), "put", 0, 0, 32),
    (lambda xp, x: xp.zeros_like(x), "zeros", 0, 0, 48),
    (lambda xp, x: xp.vdot(x, x), "vdot", 0, 12, 100),
    (lambda xp, x: cuda.each("quantize", 12, x, x, 1.0, 1.0, 1.0), "quantize", 0, 120, 96),
    (lambda xp, x: cuda.rows("softmax_backward", 3, 4, x, x, 1.0, 4), "softmax_backward", 0, 120, 144),
]


@pytest.mark.parametrize(
    ("run", "function", "gemm", "other", "moved"), CALLS, ids=lambda x: x if type(x) is str else ""
)
def test_a_call(run: Any, function: str, gemm: int, other: int, moved: int) -> None:
    with shapes.installed() as meter:
        run(sys.modules["cupy"], to_device(np.ones((3, 4), np.float32), "gpu"))
    assert [call[1:5] for call in meter.calls] == [(function, gemm, other, moved)]


def test_a_view_and_memory_without_content_launch_nothing() -> None:
    with shapes.installed() as meter:
        x = sys.modules["cupy"].empty((3, 4), dtype=np.float32)
        (
            x.T,
            x[1:],
            x[0],
            x.reshape(2, -1),
            x.ravel(),
            x.swapaxes(0, 1),
            x.view(np.uint32),
            x.astype(np.float32, copy=False),
        )
        assert meter.calls == []
        x[1:] += 1
        assert [call.function for call in meter.calls] == ["add"]  # and nothing is put back


def test_batches_of_matrices_that_do_not_lie_in_order_are_copied_first() -> None:
    with shapes.installed() as meter:
        x = sys.modules["cupy"].empty((2, 3, 4, 5), dtype=np.float32)
        y = x @ x.swapaxes(-1, -2)
    assert y.shape == (2, 3, 4, 4)
    assert [call.function for call in meter.calls] == ["copy", "matmul"]


def test_memory_lives_as_long_as_a_view_of_it() -> None:
    with shapes.installed() as meter:
        x = sys.modules["cupy"].empty((1 << 10, 1 << 20), dtype=np.float64)  # 8 GiB, which nobody has to have
        part = x[5:, 3]
        del x
        assert meter.live == meter.peak == 1 << 33
        del part
        assert (meter.live, meter.peak) == (0, 1 << 33)
        meter.clear()
        assert meter.peak == 0
        y = sys.modules["cupy"].empty(3, dtype=bool)
        assert meter.live == 512
        assert len(y) == 3


def test_numbers_read_back_are_zeros_and_a_wait_each() -> None:
    with shapes.installed() as meter:
        x = to_device(np.ones(3, np.float32), "gpu")
        assert (float(x.sum()), int(x[0]), x.tolist(), x.get().tolist()) == (0.0, 0, [0.0] * 3, [0.0] * 3)
        assert (meter.syncs, meter.uploads) == (4, 1)


def test_numbers_of_python_leave_the_dtype_alone_and_those_of_numpy_do_not() -> None:
    with shapes.installed():
        x = to_device(np.ones(3, np.float32), "gpu")
        assert (x * 2.5).dtype == (2 / x).dtype == x.mean().dtype == np.float32
        assert (x * np.float64(2)).dtype == np.float64
        assert sys.modules["cupy"].not_equal(x, 1).dtype == bool


def test_it_is_cupy_only_within_and_refuses_what_it_does_not_count() -> None:
    before = sys.modules.get("cupy")
    with shapes.installed():
        assert choose_device("auto") == "gpu"
        with pytest.raises(AttributeError, match=r"cupy\.linspace is not counted; add it"):
            sys.modules["cupy"].linspace(0, 1)
        with pytest.raises(AttributeError, match="diagonal"):
            to_device(np.ones((3, 3)), "gpu").diagonal()
    assert sys.modules.get("cupy") is before
