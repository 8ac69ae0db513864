"""Every op against a direct formula or a property it has to have; the gradients are gradcheck's matter.

Tolerances: float64 against float64 1e-12, a few roundings of 1e-16; float32 against float64 1e-5, a hundred of 6e-8.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microumup import fused, ops
from microumup.engine import Tensor, backpropagate, using
from microumup.fp8 import E4M3, E5M2, LinearFormats, quantize
from microumup.lab.gradcheck import cases
from microumup.ops import ResidualScale, Scale

CASES = cases()
SIZES = st.integers(1, 4)
few = settings(deadline=None, max_examples=25)


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def forward(op, *arrays, **options):
    return op(*arrays, **options).data


def close(found, expected, tolerance=1e-12):
    assert found.shape == np.shape(expected)
    assert np.allclose(found, expected, rtol=tolerance, atol=tolerance)


def case_name(case):
    fast = "fused." if case.forward.__module__ == fused.__name__ else ""
    return fast + op_name(case.forward) + "".join(f"-{v}" for v in case.settings.values())


def op_name(forward):
    return forward.__name__.removesuffix("_forward")


def scaled(case):
    return case.settings | ({"scale": case.scale} if case.scale else {})


def as_dtype(arrays, dtype):
    return [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]


every_pair = pytest.mark.parametrize("case", CASES, ids=case_name)


# ---- What holds for every op ----


@every_pair
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_dtype_stays_what_it_is(case, dtype):
    y, saved = case.forward(*as_dtype(case.arrays, dtype), **scaled(case))
    gradients = case.backward(np.ones_like(y), saved)
    assert {y.dtype, *(g.dtype for g in gradients if g is not None)} == {np.dtype(dtype)}


@every_pair
def test_float32_is_float64_rounded(case):
    exact, saved = case.forward(*case.arrays, **scaled(case))
    dy = np.asarray(draw(*exact.shape, seed=1))
    exact_gradients = case.backward(dy, saved)
    y, saved = case.forward(*as_dtype(case.arrays, np.float32), **scaled(case))
    close(y, exact, 1e-5)
    for gradient, exact_gradient in zip(case.backward(dy.astype(np.float32), saved), exact_gradients, strict=True):
        if gradient is not None:
            size = np.abs(exact_gradient).max()  # rms_norm of x of size 1e-3 has gradients of size 1e3
            close(gradient / size, exact_gradient / size, 1e-5)


@every_pair
def test_integer_arrays_get_none_and_float_arrays_get_their_shape(case):
    y, saved = case.forward(*case.arrays, **case.settings)
    shapes = [None if g is None else g.shape for g in case.backward(np.ones_like(y), saved)]
    assert shapes == [a.shape if a.dtype.kind == "f" else None for a in case.arrays]


@every_pair
def test_nothing_that_is_passed_in_is_written_to(case):
    """Inputs and dy are read-only here, so writing raises; and a second run sees the same, saved arrays included."""
    arrays = [a.copy() for a in case.arrays]
    y, _ = case.forward(*arrays, **scaled(case))
    dy = np.asarray(draw(*y.shape, seed=1))
    for a in (*arrays, dy):
        a.flags.writeable = False
    first, saved = case.forward(*arrays, **scaled(case))
    gradients = [g.copy() for g in case.backward(dy, saved) if g is not None]
    again = [g for g in case.backward(dy, saved) if g is not None]
    second, _ = case.forward(*arrays, **scaled(case))
    assert np.array_equal(first, second)
    assert all(map(np.array_equal, gradients, again))


@every_pair
def test_how_arrays_lie_in_memory_does_not_matter(case):
    spread = [np.repeat(a, 2, axis=-1)[..., ::2] for a in case.arrays]
    y, saved = case.forward(*case.arrays, **case.settings)
    spread_y, spread_saved = case.forward(*spread, **case.settings)
    dy = np.asarray(draw(*y.shape, seed=1))
    spread_dy = np.repeat(dy, 2, axis=-1)[..., ::2] if dy.ndim else dy
    close(spread_y, y)
    for found, expected in zip(case.backward(spread_dy, spread_saved), case.backward(dy, saved), strict=True):
        if expected is not None:
            close(found, expected)


@every_pair
def test_the_op_is_its_pair(case):
    y, saved = case.forward(*case.arrays, **scaled(case))
    dy = np.asarray(draw(*y.shape, seed=1))
    gradients = case.backward(dy, saved)
    op = getattr(ops, op_name(case.forward))
    inputs = [Tensor(a) if a.dtype.kind == "f" else a for a in case.arrays]
    with using({op: (case.forward, case.backward)} if case.forward.__module__ == fused.__name__ else {}):
        out = op(*inputs, **scaled(case))
    backpropagate(out, dy)
    assert np.array_equal(out.data, y)
    for x, gradient in zip(inputs, gradients, strict=True):
        assert gradient is None or np.array_equal(x.grad, gradient)


@pytest.mark.parametrize("scale", [Scale(), ResidualScale()], ids=["Scale", "ResidualScale"])
def test_factors_are_1_by_default(scale):
    assert set(scale) == {1.0}


# ---- linear ----


@few
@given(st.lists(SIZES, max_size=3), SIZES, SIZES)
def test_linear_is_the_sum_over_the_last_axis_for_any_leading_axes(leading, d_in, d_out):
    x, w = draw(*leading, d_in), draw(d_out, d_in)
    close(forward(ops.linear, x, w), np.einsum("...i,oi->...o", x, w))


FORMATS = {
    "x": LinearFormats(x=E4M3),
    "w": LinearFormats(w=E5M2),
    "dy": LinearFormats(dy=E5M2),
    "all, x like no other": LinearFormats(x=E5M2, w=E4M3, dy=E4M3),
    "all, w like no other": LinearFormats(x=E4M3, w=E5M2, dy=E4M3),
    "all, dy like no other": LinearFormats(x=E4M3, w=E4M3, dy=E5M2),
}


@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
def test_all_three_matmuls_take_what_was_cast(formats):
    """The cast is of the unit-scale x, w and dy: the factors come after the matmul."""
    x, w, dy = (3 * draw(*shape).astype(np.float32) for shape in ((7, 6), (5, 6), (7, 5)))
    cast_x, cast_w, cast_dy = (a if f is None else quantize(a, f) for a, f in zip((x, w, dy), formats, strict=True))
    y, saved = ops.linear_forward(x, w, fp8=formats, scale=Scale(y=0.3, dx=0.7, dw=1.3))
    dx, dw = ops.linear_backward(dy, saved)
    assert np.array_equal(y, cast_x @ cast_w.T * np.float32(0.3))
    assert np.array_equal(dx, cast_dy @ cast_w * np.float32(0.7))
    assert np.array_equal(dw, cast_dy.T @ cast_x * np.float32(1.3))


@pytest.mark.parametrize("position", [0, 1], ids=["x", "w"])
def test_the_gradient_passes_a_saturated_element_unchanged(position):
    """The element goes from 1 to 10,000, cast to 448: were the cast's slope 0 there, its gradient would vanish."""
    dy = draw(4, 3).astype(np.float32)

    def gradient(element):
        arrays = [np.ones((4, 2), dtype=np.float32), np.ones((3, 2), dtype=np.float32)]
        arrays[position][0, 0] = element
        y, saved = ops.linear_forward(*arrays, fp8=LinearFormats(x=E4M3, w=E4M3))
        assert np.abs(y).max() == (449 if element == 1e4 else 2)
        return ops.linear_backward(dy, saved)[position][0, 0]

    assert gradient(1e4) == gradient(1.0) != 0


# ---- embedding ----


def test_embedding_picks_rows():
    w = draw(5, 3)
    close(forward(ops.embedding, np.array([[4, 0, 4]]), w), [[w[4], w[0], w[4]]])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_embedding_adds_up_the_gradients_of_a_repeated_token(dtype):
    tokens, w, dy = np.array([[4, 0, 4], [0, 4, 1]], dtype=dtype), draw(5, 3), draw(2, 3, 3)
    expected = np.zeros_like(w)
    np.add.at(expected, tokens, dy)
    _, saved = ops.embedding_forward(tokens, w)
    close(ops.embedding_backward(dy, saved)[1], expected)


# ---- rms_norm ----


@few
@given(st.lists(SIZES, max_size=3), SIZES)
def test_rms_norm_has_rms_1(leading, d):
    y = forward(ops.rms_norm, draw(*leading, d), eps=0.0)
    close(np.sqrt(np.mean(y**2, axis=-1)), np.ones(leading))


def test_rms_norm_adds_eps_to_the_mean_square():
    close(forward(ops.rms_norm, np.array([[3.0, 4.0]]), eps=0.5), np.array([[3.0, 4.0]]) / np.sqrt(13))


def test_rms_norm_keeps_the_direction_and_forgets_the_size():
    x = draw(2, 3, 4)
    close(forward(ops.rms_norm, 1e3 * x, eps=0.0), forward(ops.rms_norm, x, eps=0.0))


def test_rms_norms_gradient_has_no_part_along_x():
    x = draw(2, 3, 4)
    _, saved = ops.rms_norm_forward(x, eps=0.0)
    (dx,) = ops.rms_norm_backward(draw(2, 3, 4, seed=1), saved)
    close((dx * x).sum(axis=-1), np.zeros((2, 3)))


# ---- rope ----


def test_rope_turns_neighbours_by_their_angle():
    x = draw(1, 3, 8)
    y = forward(ops.rope, x, head_dim=4, base=100.0, start=5)
    for t in range(3):
        for head in range(2):
            for i in range(2):
                angle = (5 + t) * 100.0 ** (-2 * i / 4)
                at = slice(4 * head + 2 * i, 4 * head + 2 * i + 2)
                turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                close(y[0, t, at], turn @ x[0, t, at])


def test_rope_leaves_position_0_alone():
    x = draw(2, 1, 8)
    close(forward(ops.rope, x, head_dim=4), x)


def test_rope_keeps_the_size_of_every_pair():
    x = draw(2, 5, 8)
    pairs, turned = x.reshape(2, 5, 4, 2), forward(ops.rope, x, head_dim=4).reshape(2, 5, 4, 2)
    close(np.linalg.norm(turned, axis=-1), np.linalg.norm(pairs, axis=-1))


@few
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_what_q_and_k_make_of_each_other_depends_on_their_distance_alone(q_at, k_at, shift):
    q, k = draw(1, 1, 4), draw(1, 1, 4, seed=1)

    def score(shift):
        turned = (forward(ops.rope, x, head_dim=4, start=at + shift) for x, at in ((q, q_at), (k, k_at)))
        return np.vdot(*turned)

    assert abs(score(shift) - score(0)) < 1e-10  # angles of up to 2000 are themselves rounded to 2e-13


def test_rope_continues_where_the_cache_ends():
    x = draw(2, 5, 8)
    close(forward(ops.rope, x[:, 3:], head_dim=4, start=3), forward(ops.rope, x, head_dim=4)[:, 3:])


def test_ropes_backward_turns_back():
    x = draw(2, 5, 8)
    close(ops.rope_backward(*ops.rope_forward(x, head_dim=4))[0], x)


# ---- attention ----


def attention_one_query_at_a_time(q, k, v, *, head_dim, score_scale):
    y = np.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = k.shape[1] - q.shape[1] + t + 1
            for at in range(0, q.shape[2], head_dim):
                head = slice(at, at + head_dim)
                weights = np.exp(score_scale * k[b, :seen, head] @ q[b, t, head])
                y[b, t, head] = weights @ v[b, :seen, head] / weights.sum()
    return y


@few
@given(SIZES, SIZES, st.integers(0, 3), SIZES, SIZES)
def test_attention_is_the_weighted_mean_of_what_a_query_may_see(batch, queries, cached, heads, head_dim):
    q = draw(batch, queries, heads * head_dim)
    k, v = (draw(batch, cached + queries, heads * head_dim, seed=seed) for seed in (1, 2))
    expected = attention_one_query_at_a_time(q, k, v, head_dim=head_dim, score_scale=0.7)
    close(forward(ops.attention, q, k, v, head_dim=head_dim, score_scale=0.7), expected)


def test_attentions_weights_sum_to_1():
    q, k = draw(2, 5, 8), draw(2, 7, 8)
    close(forward(ops.attention, q, k, np.ones_like(k), head_dim=4), np.ones_like(q))


def test_attention_sees_no_future():
    arrays = [draw(2, 5, 8, seed=seed) for seed in range(3)]
    before = forward(ops.attention, *arrays, head_dim=4)
    for position in range(3):
        changed = [a.copy() for a in arrays]
        changed[position][:, 3:] += 100
        after = forward(ops.attention, *changed, head_dim=4)
        assert np.array_equal(after[:, :3], before[:, :3])
        assert not np.allclose(after[:, 3:], before[:, 3:])


def test_with_a_cache_queries_are_the_last_positions():
    q, k, v = (draw(2, 7, 8, seed=seed) for seed in range(3))
    close(forward(ops.attention, q[:, 4:], k, v, head_dim=4), forward(ops.attention, q, k, v, head_dim=4)[:, 4:])


def test_attention_takes_scores_past_the_range_of_exp():
    q = k = 100 * draw(1, 3, 2).astype(np.float32)
    y = forward(ops.attention, q, k, draw(1, 3, 2).astype(np.float32), head_dim=2)
    assert np.isfinite(y).all()


# ---- gated_silu ----


@pytest.mark.parametrize("alpha", [0.125, 1.0, 8.0])
def test_gated_silu_is_its_formula(alpha):
    x_in, x_gate = draw(3, 4), draw(3, 4, seed=1)
    close(forward(ops.gated_silu, x_in, x_gate, alpha=alpha), x_in * x_gate / (1 + np.exp(-alpha * x_gate)))


def test_gated_silu_takes_gates_past_the_range_of_exp():
    gate = np.array([-1e4, 1e4], dtype=np.float32)
    assert np.array_equal(forward(ops.gated_silu, np.ones(2, dtype=np.float32), gate), [0, 1e4])


# ---- residual ----


def test_a_residual_layer_is_a_branch_plus_b_skip():
    branch, skip = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    close(forward(ops.residual_add, branch, skip, scale=ResidualScale(a=0.6, b=0.8)), 0.6 * branch + 0.8 * skip)
    close(forward(ops.residual_split, skip, scale=ResidualScale(a=0.6, b=0.8)), skip)


def test_the_branch_sees_dy_itself_and_a_waits_at_the_split():
    """App. B: dR = a · (gradient through f) + b · dy, with f(R) = 3 R here."""
    scale, dy, x = ResidualScale(a=0.6, b=0.8, dbranch=1.0, dbase=0.6), draw(2, 3, 4, seed=1), Tensor(draw(2, 3, 4))
    f = ops.linear(ops.residual_split(x, scale=scale), Tensor(3 * np.eye(4)))
    backpropagate(ops.residual_add(f, x, scale=scale), dy, keep=True)
    close(f.grad, dy)
    close(x.grad, 0.6 * 3 * dy + 0.8 * dy)


# ---- cross_entropy ----


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_cross_entropy_is_the_mean_of_minus_log_p(alpha):
    logits, targets = draw(2, 3, 5), np.array([[0, 4, 2], [2, 1, 1]])
    p = np.exp(alpha * logits) / np.exp(alpha * logits).sum(axis=-1, keepdims=True)
    expected = -np.mean([np.log(p[b, t, targets[b, t]]) for b in range(2) for t in range(3)])
    close(forward(ops.cross_entropy, logits, targets, alpha=alpha), expected)


def test_cross_entropy_of_equal_logits_is_log_v():
    close(forward(ops.cross_entropy, np.full((2, 3, 5), 7.0), np.zeros((2, 3), dtype=int)), np.log(5))


def test_cross_entropys_gradient_is_p_minus_onehot_over_n():
    logits, targets = draw(2, 3, 5), np.array([[0, 4, 2], [2, 1, 1]])
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    _, saved = ops.cross_entropy_forward(logits, targets)
    close(ops.cross_entropy_backward(np.ones(()), saved)[0], (p - np.eye(5)[targets]) / 6)


def test_cross_entropy_takes_logits_past_the_range_of_exp():
    logits = np.array([[1e4, 0.0]], dtype=np.float32)
    close(forward(ops.cross_entropy, logits, np.array([1])), 1e4)


# ---- Bad input: a ValueError that begins with the op's name and says what was got ----

X, W = draw(2, 3, 8), draw(5, 8)
TOKENS = np.zeros((2, 3), dtype=int)

REFUSED = [
    (ops.linear_forward, [X, W[:, :7]], {}, r"x has D_in=8 but w is \(5, 7\); w is \(fan_out, fan_in\)$"),
    (ops.linear_forward, [X, W.T], {}, r"x has D_in=8 but w is \(8, 5\).*, did you pass w.T\?"),
    (ops.linear_forward, [X, W[0]], {}, r"x has D_in=8 but w is \(8,\)"),
    (ops.embedding_forward, [TOKENS - 1, W], {}, r"tokens hold id -1, outside \[0, 5\)"),
    (ops.embedding_forward, [TOKENS + 5, W], {}, r"tokens hold id 5, outside \[0, 5\)"),
    (ops.embedding_forward, [TOKENS * 1.0, W], {}, "tokens are float64; token ids are integers"),
    (ops.embedding_forward, [TOKENS > 0, W], {}, "tokens are bool; token ids are integers"),
    (ops.embedding_forward, [TOKENS[:, :0], W], {}, r"tokens are empty, shape \(2, 0\)"),
    (ops.embedding_forward, [TOKENS, W[:, 0]], {}, r"w is \(5,\)"),
    (ops.rope_forward, [X], {"head_dim": 3}, r"x is \(2, 3, 8\), need \(B, T, D\) with D a multiple of head_dim=3"),
    (ops.rope_forward, [X], {"head_dim": 0}, "multiple of head_dim=0"),
    (ops.rope_forward, [X[0]], {"head_dim": 4}, r"x is \(3, 8\), need \(B, T, D\)"),
    (ops.rope_forward, [X[..., :6]], {"head_dim": 3}, "head_dim=3 is odd"),
    (ops.attention_forward, [X, X, X], {"head_dim": 3}, "multiple of head_dim=3"),
    (ops.attention_forward, [X, X, X[:, :2]], {"head_dim": 4}, r"k \(2, 3, 8\), v \(2, 2, 8\)"),
    (ops.attention_forward, [X, X[:, :2], X[:, :2]], {"head_dim": 4}, "S >= T"),
    (ops.attention_forward, [X, X[:1], X[:1]], {"head_dim": 4}, r"q is \(2, 3, 8\), k \(1, 3, 8\)"),
    (ops.attention_forward, [X, X[..., :4], X[..., :4]], {"head_dim": 4}, r"q is \(2, 3, 8\), k \(2, 3, 4\)"),
    (ops.attention_forward, [X, X[0], X[0]], {"head_dim": 4}, r"q is \(2, 3, 8\), k \(3, 8\)"),
    (ops.attention_forward, [X[0], X, X], {"head_dim": 4}, r"q is \(3, 8\)"),
    (ops.gated_silu_forward, [X, X[..., :1]], {}, r"x_in is \(2, 3, 8\) but x_gate is \(2, 3, 1\)"),
    (ops.residual_add_forward, [X, X[..., :1]], {}, r"branch is \(2, 3, 8\) but skip is \(2, 3, 1\)"),
    (ops.cross_entropy_forward, [X, TOKENS[:1]], {}, r"logits are \(2, 3, 8\) but targets \(1, 3\)"),
    (ops.cross_entropy_forward, [X, TOKENS - 1], {}, r"targets hold id -1, outside \[0, 8\)"),
    (ops.cross_entropy_forward, [X, TOKENS + 8], {}, r"targets hold id 8, outside \[0, 8\)"),
    (ops.cross_entropy_forward, [X, TOKENS * 1.0], {}, "targets are float64; token ids are integers"),
]


def starts_with_the_name_of(forward):
    name = op_name(forward)  # of the head it is that of the half which is wrong
    return "^(linear|cross_entropy): .*" if name == "linear_cross_entropy" else f"^{name}: .*"


@pytest.mark.parametrize(("op", "arrays", "options", "message"), REFUSED)
def test_a_misfit_is_refused(op, arrays, options, message):
    with pytest.raises(ValueError, match=starts_with_the_name_of(op) + message):
        op(*arrays, **options)


@every_pair
@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.complex128])
def test_other_dtypes_are_refused(case, dtype):
    arrays = as_dtype(case.arrays, dtype)
    with pytest.raises(ValueError, match=starts_with_the_name_of(case.forward) + f" is {np.dtype(dtype)}"):
        case.forward(*arrays, **case.settings)


SEVERAL = [
    (c, i) for c in CASES for i, a in enumerate(c.arrays)
    if a.dtype.kind == "f" and sum(b.dtype.kind == "f" for b in c.arrays) > 1
]  # fmt: skip


@pytest.mark.parametrize(("case", "position"), SEVERAL, ids=[f"{case_name(c)}-{i}" for c, i in SEVERAL])
def test_mixed_dtypes_are_refused(case, position):
    arrays = list(case.arrays)
    arrays[position] = arrays[position].astype(np.float32)
    with pytest.raises(ValueError, match=starts_with_the_name_of(case.forward) + "use float32, or float64, for all"):
        case.forward(*arrays, **case.settings)
