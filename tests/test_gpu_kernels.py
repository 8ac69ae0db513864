"""Each pair of `gpu.py` against its readable one: its kernels run by the processor, and on a device if there is one."""

import cuda_on_cpu
import cupy_double
import numpy as np
import pytest
from cupy_double import counts

from microumup import checks, gpu, ops, optim
from microumup.backend import to_device, to_host
from microumup.config import ModelConfig
from microumup.data import batch
from microumup.engine import Tensor, backpropagate, using
from microumup.fp8 import E4M3, E5M2, LinearFormats
from microumup.model import init_params, loss
from microumup.ops import ResidualScale, Scale
from microumup.optim import AdamW
from microumup.plan import plan

SCALE = Scale(y=0.7, dx=1.3, dw=0.4)  # three factors, none of them 1 and no two alike
RESIDUAL = ResidualScale(a=0.6, b=0.8, dbranch=1.4, dbase=0.3)
FP8 = LinearFormats(x=E5M2, w=E4M3, dy=E4M3)
ROUNDING = 1e-6  # float32 has 6e-8; sums of up to 700 are made in another order, exp and tanh by another library


def normal(*shape, seed=0, size=1.0):
    return (size * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


def outcome(kernels, op, arrays, settings, dy, *, where="cpu", lay=lambda x: x):
    """y and every gradient, on the host."""
    arrays = [lay(to_device(a, where)) for a in arrays]
    leaves = [Tensor(a) if a.dtype.kind == "f" else a for a in arrays]
    with using(kernels):
        y = getattr(ops, op)(*leaves, **settings)
    backpropagate(y, lay(to_device(dy, where)) if dy.ndim else to_device(dy, where))
    assert all(g.dtype == y.data.dtype for g in (x.grad for x in leaves if isinstance(x, Tensor)))
    return [to_host(a) for a in (y.data, *(x.grad for x in leaves if isinstance(x, Tensor)))]


def cotangent(op, arrays, settings):
    shape = getattr(ops, op)(*arrays, **settings).data.shape
    return normal(*shape, seed=9) if shape else np.asarray(0.6, np.float32)


def assert_equal(case, *, lay=lambda x: x, dy=None):
    """That y and every gradient of the two pairs are the same up to rounding, the readable one's in float64."""
    op, arrays, settings = CASES[case]
    dy = cotangent(op, arrays, settings) if dy is None else dy
    wide = [a.astype(np.float64) if a.dtype.kind == "f" and "FP8" not in case else a for a in arrays]
    expected = outcome({}, op, wide, settings, dy if "FP8" in case else dy.astype(np.float64))
    found = outcome(gpu.KERNELS, op, arrays, settings, dy, where="gpu", lay=lay)
    # Where what is cast was rounded differently before, one of a hundred goes to the other neighbour, 1/16 away.
    allowed = 1e-3 if case == "head, FP8" else ROUNDING
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == np.float32
        assert np.linalg.norm(a - b) <= allowed * np.linalg.norm(a)


QKV = normal(2, 50, 32), normal(2, 50, 32, seed=1), normal(2, 50, 32, seed=2)
IDS = np.random.default_rng(3).integers(0, 50, (4, 70)) // 2 * 2  # odd ones never occur
HEAD = normal(4, 70, 24), normal(50, 24, seed=1)
LOSS_SCALE = Scale(y=0.5, dx=3.0)

CASES = {
    "linear, factors into w": ("linear", [normal(3, 40, 16), normal(24, 16)], {"scale": SCALE}),
    "linear, factors into x": ("linear", [normal(1, 3, 16), normal(500, 16)], {"scale": SCALE}),
    "linear, factors into y": ("linear", [normal(1, 3, 900), normal(2, 900)], {"scale": SCALE}),
    "linear, plain": ("linear", [normal(3, 40, 16), normal(24, 16)], {}),
    "linear, FP8": ("linear", [normal(3, 40, 16, size=9), normal(24, 16)], {"scale": SCALE, "fp8": FP8}),
    "embedding": ("embedding", [IDS, normal(50, 24)], {"scale": SCALE}),
    "rms_norm": ("rms_norm", [normal(3, 70, 24)], {"eps": 0.1}),
    "rms_norm, wide": ("rms_norm", [normal(3, 5, 700)], {}),
    "rope": ("rope", [normal(2, 9, 24)], {"head_dim": 8, "base": 100.0, "start": 3}),
    "attention": ("attention", QKV, {"head_dim": 16, "score_scale": 0.3, "scale": SCALE}),
    "attention, few queries": ("attention", [QKV[0][:, :7], *QKV[1:]], {"head_dim": 8, "scale": SCALE}),
    "attention, one query": ("attention", [QKV[0][:, :1], *QKV[1:]], {"head_dim": 8, "scale": SCALE}),
    "gated_silu": ("gated_silu", [normal(3, 70, 24), normal(3, 70, 24, seed=1)], {"alpha": 1.7, "scale": SCALE}),
    "residual_add": ("residual_add", [normal(3, 70, 24), normal(3, 70, 24, seed=1)], {"scale": RESIDUAL}),
    "head": ("linear_cross_entropy", [*HEAD, IDS], {"alpha": 1.7, "scale": SCALE, "loss_scale": LOSS_SCALE}),
    "head, FP8": (
        "linear_cross_entropy", [*HEAD, IDS], {"fp8": FP8, "scale": SCALE, "loss_scale": Scale(y=0.5, dx=280)}
    ),
}  # fmt: skip


def test_every_pair_has_a_case():
    assert {getattr(ops, op) for op, *_ in CASES.values()} == set(gpu.KERNELS)


@pytest.mark.parametrize("case", CASES)
def test_a_pair_is_its_readable_one(device, case):
    assert_equal(case)


LAYOUTS = {
    "transposed": lambda x: x if x.ndim < 2 else x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "every other": lambda x: x.reshape(*x.shape, 1).repeat(2, axis=-1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["linear, FP8", *(case for case in CASES if "," not in case)])
def test_how_arrays_lie_in_memory_does_not_matter(device, case, layout):
    def lay(x):  # the double has no repeat; what it wraps has
        return cupy_double.ndarray(LAYOUTS[layout](x._host)) if device is cupy_double.cupy else LAYOUTS[layout](x)

    assert_equal(case, lay=lay)


@pytest.mark.parametrize("elements", [1, 300, 4000])  # a query at a time; some; a sequence
def test_attention_in_parts_is_attention_at_once(double, monkeypatch, elements):
    monkeypatch.setattr(gpu, "SCORES", elements)
    assert_equal("attention")
    assert_equal("attention, few queries")


@pytest.mark.parametrize("case", ["head", "head, FP8"])
@pytest.mark.parametrize("elements", [9, 50, 1000, 50 * 280])  # one token at a time, even if larger; 20; all
def test_the_head_in_chunks_is_the_head_at_once(double, monkeypatch, elements, case):
    monkeypatch.setattr(gpu, "LOGITS", elements)
    assert_equal(case)


@pytest.mark.parametrize("dy", [1.0, 0.5, 2.0**-8])  # of the last hardly anything is left by the cast
def test_the_head_casts_what_linear_casts(double, dy):
    assert_equal("head, FP8", dy=np.asarray(dy, np.float32))


@pytest.mark.parametrize("case", ["head", "head, FP8", "attention"])
def test_no_array_is_larger_than_a_chunk_or_an_operand(double, monkeypatch, case):
    op, arrays, settings = CASES[case]
    for name in ("SCORES", "LOGITS"):
        monkeypatch.setattr(gpu, name, 2000)
    sizes = []
    original = cupy_double.ndarray.__init__
    monkeypatch.setattr(
        cupy_double.ndarray, "__init__", lambda x, host: (original(x, host), sizes.append(x._host.size))[0]
    )
    outcome(gpu.KERNELS, op, arrays, settings, cotangent(op, arrays, settings), where="gpu")
    assert max(sizes) <= max(a.size for a in arrays)  # 14,000 logits and 10,000 scores would be more
    assert len(sizes) > 20


def test_large_logits_and_scores_do_not_overflow(double):
    q, k, v = (to_device(100 * x, "gpu") for x in QKV)
    y, saved = gpu.attention_forward(q, k, v, head_dim=16)
    assert np.isfinite(to_host(y)).all()
    assert all(np.isfinite(to_host(d)).all() for d in gpu.attention_backward(y, saved))
    x, w, ids = (to_device(a, "gpu") for a in (1000 * HEAD[0], HEAD[1], IDS))
    value, ((dx, dw), *_) = gpu.linear_cross_entropy_forward(x, w, ids)
    assert all(np.isfinite(to_host(a)).all() for a in (value, dx, dw))


def test_the_first_query_gets_a_gradient_of_exactly_zero(device):
    """It sees one key only. A rest of rounding would count as flushed to zero wherever FP8's range is looked at."""
    y, saved = gpu.attention_forward(*(to_device(x, "gpu") for x in QKV), head_dim=16)
    assert not to_host(gpu.attention_backward(y, saved)[0])[:, 0].any()


def test_it_repeats_to_the_bit(device):
    for case in ("embedding", "head", "attention", "rms_norm"):
        op, arrays, settings = CASES[case]
        first, second = (
            outcome(gpu.KERNELS, op, arrays, settings, cotangent(op, arrays, settings), where="gpu") for _ in range(2)
        )
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


# ---- Ids outside the vocabulary ----


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint64])
@pytest.mark.parametrize("bad", [-1, 50, 2**31, 2**63 + 2])
def test_an_id_outside_the_vocabulary_makes_nan(device, bad, dtype):
    if not np.iinfo(dtype).min <= bad <= np.iinfo(dtype).max:
        return
    ids = IDS.astype(dtype)
    ids[1, 2] = bad
    ids, x, w = (to_device(a, "gpu") for a in (ids, *HEAD))
    y, saved = gpu.embedding_forward(ids, w)
    wrong = np.zeros((4, 70), bool)
    wrong[1, 2] = True
    assert np.array_equal(np.isnan(to_host(y)).all(-1), wrong)
    assert np.array_equal(np.isnan(to_host(y)).any(-1), wrong)
    assert np.isfinite(to_host(gpu.embedding_backward(x, saved)[1])).all()  # whom it belongs to nobody knows
    value, ((dx, _), *_) = gpu.linear_cross_entropy_forward(x, w, ids)
    assert np.isnan(to_host(value))
    assert np.array_equal(np.isnan(to_host(dx)).all(-1), wrong.ravel())


def test_readable_ops_refuse_it_unless_ids_are_known(double):
    ids, w = to_device(np.array([[1, 50]]), "gpu"), to_device(HEAD[1], "gpu")
    with pytest.raises(ValueError, match=r"tokens hold id 50, outside \[0, 50\)"):
        ops.embedding(ids, w)
    with checks.ids_not_read():
        counts.clear()
        checks.ids("embedding", "tokens", ids, 50)
        assert counts["syncs"] == 0
        with pytest.raises(ValueError, match="id 50"):
            checks.ids("embedding", "tokens", np.array([[1, 50]]), 50)  # on the host to look costs nothing


# ---- What no kernel takes ----


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize("case", [case for case in CASES if "FP8" not in case])
def test_float64_and_numpy_run_the_readable_pair(double, case, where):
    op, arrays, settings = CASES[case]
    dy = cotangent(op, arrays, settings)
    if where == "gpu":
        arrays, dy = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays], dy.astype(np.float64)
    expected = outcome({}, op, arrays, settings, dy, where=where)
    cuda_on_cpu.counts.clear()
    for a, b in zip(expected, outcome(gpu.KERNELS, op, arrays, settings, dy, where=where), strict=True):
        assert a.tobytes() == b.tobytes()
    assert not cuda_on_cpu.counts


@pytest.mark.parametrize("kind", ["float64", "numpy", "strided"])
def test_an_update_of_other_arrays_is_the_readable_one(double, kind):
    settings = {"t": 3, "lr": 0.3, "decay": 0.02}
    given = [abs(normal(20, 3, seed=seed)).astype("float64" if kind == "float64" else "float32") for seed in range(4)]
    given = given if kind == "numpy" else [to_device(a, "gpu") for a in given]
    given = [a.T for a in given] if kind == "strided" else given
    for a, b in zip(gpu.adamw(*given, **settings), optim.adamw(*given, **settings), strict=True):
        assert to_host(a).tobytes() == to_host(b).tobytes()


def test_quantize_refuses_what_fp8_refuses(double):
    x = to_device(normal(3), "gpu")
    with pytest.raises(ValueError, match="quantize: x is float64"):
        gpu.quantize(x.astype(np.float64), E4M3)
    with pytest.raises(ValueError, match="quantize: fmt is 'e4m3'"):
        gpu.quantize(x, "e4m3")


# ---- A whole training ----


@pytest.mark.parametrize("fp8", ["none", "fp8"])
@pytest.mark.parametrize("scheme", ["sp", "mup", "umup"])
def test_a_whole_model_has_the_loss_and_the_gradients_of_the_readable_one(device, scheme, fp8):
    config = ModelConfig(scheme=scheme, width=32, layers=2, head_dim=8, seq_len=40, fp8=fp8)
    ids, found = np.random.default_rng(0).integers(0, 256, (2, 3, 40)), []
    for kernels, where in (({}, "cpu"), (gpu.KERNELS, "gpu")):
        leaves = {name: Tensor(to_device(w, where), name) for name, w in init_params(config).items()}
        with using(kernels):
            out = loss(leaves, *(to_device(a, where) for a in ids), plan(config, ids[0].size))
        backpropagate(out)
        found.append((float(out.data), {name: to_host(t.grad) for name, t in leaves.items()}))
    (loss_a, grads_a), (loss_b, grads_b) = found
    assert loss_b == pytest.approx(loss_a, rel=ROUNDING)
    # Layers pass rounding on, and a cast enlarges it where a value lies between two FP8 numbers.
    allowed = 1e-5 if fp8 == "none" else 0.05
    for name, a in grads_a.items():
        assert np.linalg.norm(a - grads_b[name]) <= allowed * np.linalg.norm(a), name


def train(kernels, rule, corpus, where, fp8="none"):
    """The losses of ten steps."""
    config = ModelConfig(width=16, layers=2, head_dim=8, seq_len=16, fp8=fp8)
    numbers = plan(config, 4 * 16)
    params = {name: to_device(w, where) for name, w in init_params(config).items()}
    optimizer = AdamW(params, {name: w.C for name, w in numbers.weights.items()}, lr=0.5, rule=rule)
    losses = []
    for step in range(10):
        pair = batch(corpus.train, seq_len=16, batch_size=4, seed=0, step=step)
        tokens, targets = (to_device(a, where) for a in pair)
        leaves = {name: Tensor(w, name) for name, w in params.items()}
        counts.clear()
        with using(kernels):
            out = loss(leaves, tokens, targets, numbers)
        backpropagate(out)
        optimizer.step({name: leaf.grad for name, leaf in leaves.items()}, 1.0)
        assert counts["syncs"] == 0
        assert counts["uploads"] <= (step == 0)  # RoPE's angles, once for all
        losses.append(out.data)
    return [float(value) for value in losses]


@pytest.mark.parametrize("fp8", ["none", "fp8"])
def test_training_has_the_losses_of_the_readable_ops_and_never_waits(double, corpus, fp8):
    expected = train({}, optim.adamw, corpus, "cpu", fp8)
    found = train(gpu.KERNELS, gpu.adamw, corpus, "gpu", fp8)
    assert expected[-1] < expected[0] - 0.5
    # Adam's first steps follow the sign of a gradient, also of one as good as 0: rounding grows, and more by casts.
    np.testing.assert_allclose(found, expected, rtol=1e-4 if fp8 == "none" else 1e-2)
