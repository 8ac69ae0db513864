"""Each fast pair against its readable one, forward and backward."""

import numpy as np
import pytest

from microumup import cpu, fused, ops
from microumup.config import ModelConfig
from microumup.engine import Tensor, backpropagate, using
from microumup.fp8 import E4M3, LinearFormats
from microumup.model import init_params, loss
from microumup.ops import Scale
from microumup.optim import adamw
from microumup.plan import plan
from microumup.ranges import linear_ranges

SCALE = Scale(y=0.7, dx=1.3, dw=0.4)  # three factors, none of them 1 and no two alike
ROUNDING = {"float32": 1e-6, "float64": 1e-13}  # the order of additions and of factors differs


def normal(*shape, seed=0, size=1.0):
    return (size * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


def outcome(kernels, op, arrays, settings, dy):
    """y and every gradient."""
    leaves = [Tensor(a) if a.dtype.kind == "f" else a for a in arrays]
    with using(kernels):
        y = getattr(ops, op)(*leaves, **settings)
    backpropagate(y, dy)
    return [y.data, *(x.grad for x in leaves if isinstance(x, Tensor))]


def both(op, arrays, settings, dy):
    """The readable outcome and the fast one."""
    return [outcome(kernels, op, arrays, settings, dy) for kernels in ({}, fused.KERNELS)]


def assert_equal(op, arrays, settings, dtype="float64"):
    """That y and every gradient of the two pairs are the same, up to rounding."""
    arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
    before = [a.copy() for a in arrays]
    shape = getattr(ops, op)(*arrays, **settings).data.shape
    dy = normal(*shape, seed=9).astype(dtype) if shape else np.asarray(0.6, dtype)[()]
    for a, b in zip(*both(op, arrays, settings, dy), strict=True):
        assert np.linalg.norm(a - b) <= ROUNDING[dtype] * np.linalg.norm(a)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True)), "an input was written to"


QKV = normal(2, 150, 32), normal(2, 150, 32, seed=1), normal(2, 150, 32, seed=2)  # 150: three blocks, the last partial
IDS = np.random.default_rng(3).integers(0, 50, (4, 70))
HEAD = normal(4, 70, 24), normal(50, 24, seed=1)

CASES = {
    "linear, factors into w": ("linear", [normal(3, 40, 16), normal(24, 16)], {"scale": SCALE}),
    "linear, many rows": ("linear", [normal(3, 128, 16), normal(24, 16)], {"scale": SCALE}),
    "linear, factors into x": ("linear", [normal(1, 3, 16), normal(500, 16)], {"scale": SCALE}),
    "linear, factors into y": ("linear", [normal(1, 3, 900), normal(2, 900)], {"scale": SCALE}),
    "linear, FP8": (
        "linear", [normal(3, 40, 16), normal(24, 16)], {"scale": SCALE, "fp8": LinearFormats(E4M3, E4M3, E4M3)}
    ),
    "rms_norm": ("rms_norm", [normal(3, 700, 24)], {"eps": 0.1}),
    "gated_silu": ("gated_silu", [normal(3, 700, 24), normal(3, 700, 24, seed=1)], {"alpha": 1.7, "scale": SCALE}),
    "attention": ("attention", QKV, {"head_dim": 16, "score_scale": 0.3, "scale": SCALE}),
    "attention, one block": ("attention", [x[:, :40] for x in QKV], {"head_dim": 8, "score_scale": 0.3}),
    "attention, few queries": ("attention", [QKV[0][:, :7], *QKV[1:]], {"head_dim": 16, "scale": SCALE}),
    "attention, large scores": ("attention", [30 * QKV[0], *QKV[1:]], {"head_dim": 16, "score_scale": 0.3}),
    "head": ("linear_cross_entropy", [*HEAD, IDS], {"alpha": 1.7, "scale": SCALE, "loss_scale": Scale(y=0.5, dx=3.0)}),
    "head, large logits": ("linear_cross_entropy", [100 * HEAD[0], HEAD[1], IDS], {}),
    "head, FP8": (
        "linear_cross_entropy", [*HEAD, IDS], {"fp8": LinearFormats(E4M3, E4M3, E4M3), "loss_scale": Scale(dx=280)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", [case for case in CASES if "FP8" not in case])
def test_a_fast_pair_is_its_readable_one(case, dtype):
    if "large scores" in case and dtype == "float32":
        pytest.skip("scores in the thousands lose what exp makes much of; float64 shows that the pairs are equal")
    assert_equal(*CASES[case], dtype)


def test_a_linear_casts_the_same():
    assert_equal(*CASES["linear, FP8"], "float32")  # only factors differ, which come after the casts


@pytest.mark.parametrize("dy", [1.0, 0.5, 2.0**-8])  # of the last hardly anything is left by the cast
def test_the_head_casts_what_linear_casts(dy):
    op, arrays, settings = CASES["head, FP8"]
    for a, b in zip(
        *both(op, arrays, settings, np.float32(dy)), strict=True
    ):  # one dy of a hundred may round the other way, by 1/16 of itself
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(a)


@pytest.mark.parametrize("logits", [50, 1000, 50 * 280])
def test_the_head_in_chunks_is_the_head_at_once(monkeypatch, logits):
    monkeypatch.setattr(fused, "LOGITS", logits)  # one token at a time, 20, all
    assert_equal(*CASES["head"])


@pytest.mark.parametrize("block", [1, 1000, 10**9])
@pytest.mark.parametrize("case", ["rms_norm", "gated_silu", "head"])
def test_the_size_of_a_block_does_not_matter(monkeypatch, case, block):
    monkeypatch.setattr(fused, "BLOCK", block)
    monkeypatch.setattr(cpu, "BLOCK", block)
    assert_equal(*CASES[case])


def test_scores_that_are_too_large_for_exp_are_shifted():
    q, k, v = (100 * x for x in QKV)
    y, saved = fused.attention_forward(q, k, v, head_dim=16)
    assert np.isfinite(y).all()
    assert all(np.isfinite(d).all() for d in fused.attention_backward(y, saved))


def test_the_first_query_gets_a_gradient_of_exactly_zero():
    """It sees one key only. A rest of rounding would count as flushed to zero wherever FP8's range is looked at."""
    for queries in (0, 100):
        y, saved = fused.attention_forward(QKV[0][:, queries:], *QKV[1:], head_dim=16)
        dq = fused.attention_backward(y, saved)[0]
        assert (not dq[:, 0].any()) == (queries == 0)
        assert dq[:, 1:].all()


def test_every_pair_has_a_case_and_the_names_of_its_op():
    assert {op.__name__ for op in fused.KERNELS} == {op for op, _, _ in CASES.values()}
    for op, (forward, backward) in fused.KERNELS.items():
        assert forward.__name__ == f"{op.__name__}_forward"
        assert backward.__name__ == f"{op.__name__}_backward"
        assert getattr(ops, op.__name__) is op


# ---------------------------------------------------------------------------------------------------------------------
# How arrays lie in memory


def reversed_axes(a):
    """The values of a, its last two axes the other way round in memory."""
    return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)


def sliced(a):
    """The values of a, each of them beside a NaN."""
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan if a.dtype.kind == "f" else -1, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def backwards(a):
    """The values of a, all axes with negative strides."""
    every = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[every])[every]


def cut_out(a):
    """The values of a, as the middle of a larger array."""
    wide = np.full([n + 2 for n in a.shape], np.nan if a.dtype.kind == "f" else -1, a.dtype)
    middle = (slice(1, -1),) * a.ndim
    wide[middle] = a
    return wide[middle]


def broadcast(a):
    """The first sequence of a for all of the batch: a stride of 0. A weight stays what it is."""
    return np.broadcast_to(a[:1], a.shape) if a.ndim == 3 else a


LAYOUTS = {
    "Fortran order": np.asfortranarray, "transposed": reversed_axes, "sliced": sliced, "negative strides": backwards,
    "cut out": cut_out, "broadcast": broadcast,
}  # fmt: skip
LAID_OUT = [case for case in CASES if "large" not in case]


def dirty():
    """Leave NaN in the memory that numpy is about to give out again: what nobody wrote to has to show."""
    junk = [np.full(n, np.nan, dtype) for n in (1 << k for k in range(4, 18)) for dtype in (np.float32, np.float64)]
    del junk


@pytest.mark.parametrize("which", ["inputs", "dy", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", LAID_OUT)
def test_how_arrays_lie_in_memory_does_not_matter(case, layout, which):
    op, arrays, settings = CASES[case]
    dtype, lay, rounding = ("float32", LAYOUTS[layout], 2e-6) if "FP8" in case else ("float64", LAYOUTS[layout], 1e-13)
    arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
    if layout == "broadcast":
        arrays = [np.ascontiguousarray(broadcast(a)) for a in arrays]
    shape = getattr(ops, op)(*arrays, **settings).data.shape
    dy = normal(*shape, seed=9).astype(dtype) if shape else np.asarray(0.6, dtype)[()]
    dy = np.ascontiguousarray(broadcast(dy)) if shape and layout == "broadcast" else dy
    plain = outcome({}, op, arrays, settings, dy)  # how the readable pair takes layouts is a matter of test_ops
    laid = [lay(a) for a in arrays] if which != "dy" else arrays
    laid_dy = lay(dy) if which != "inputs" and dy.ndim else dy
    assert all(np.array_equal(a, b) for a, b in zip([*arrays, dy], [*laid, laid_dy], strict=True))
    dirty()
    for a, b in zip(plain, outcome(fused.KERNELS, op, laid, settings, laid_dy), strict=True):
        assert np.linalg.norm(a - b) <= rounding * np.linalg.norm(a)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3])
@pytest.mark.parametrize("t", [1, 2, 1000, 100_000])
def test_the_fast_update_is_the_readable_one_in_place(t, eps, decay, dtype):
    w, g, m = (normal(700, seed=seed).astype(dtype) for seed in range(3))
    v = (normal(700, seed=3) ** 2 + 1e-3).astype(dtype)
    settings = {"t": t, "lr": 0.3, "decay": decay, "betas": (0.9, 0.99), "eps": eps}
    expected, before = adamw(w, g, m, v, **settings), g.copy()
    found = fused.adamw(w, g, m, v, **settings)
    assert all(a is b for a, b in zip(found, (w, m, v), strict=True))
    assert np.array_equal(g, before)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype == np.dtype(dtype)
        assert np.linalg.norm(a - b) <= ROUNDING[dtype] * np.linalg.norm(a)


@pytest.mark.parametrize("fp8", ["none", "fp8"])
@pytest.mark.parametrize("scheme", ["sp", "mup", "umup"])
def test_a_whole_model_has_the_loss_gradients_and_ranges_of_the_readable_one(scheme, fp8):
    config = ModelConfig(scheme=scheme, width=32, layers=2, head_dim=8, seq_len=40, fp8=fp8)
    params, ids = init_params(config), np.random.default_rng(0).integers(0, 256, (2, 3, 40))
    found = []
    for kernels in ({}, fused.KERNELS):
        leaves = {name: Tensor(w, name) for name, w in params.items()}
        with using(kernels):
            out = loss(leaves, *ids, plan(config, ids[0].size))
        backpropagate(out, keep=True)
        found.append((float(out.data), {name: t.grad for name, t in leaves.items()}, linear_ranges(out)))
    (loss_a, grads_a, ranges_a), (loss_b, grads_b, ranges_b) = found
    assert loss_b == pytest.approx(loss_a, rel=1e-6)
    # Layers pass rounding on, and a cast enlarges it where a value lies between two FP8 numbers.
    allowed = 1e-5 if fp8 == "none" else 0.05
    for name, a in grads_a.items():
        assert np.linalg.norm(a - grads_b[name]) <= allowed * np.linalg.norm(a), name
    assert ranges_a.keys() == ranges_b.keys()
    for name, a in ranges_a.items():
        assert ranges_b[name].rms == pytest.approx(a.rms, rel=allowed), name
