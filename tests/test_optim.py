from math import isclose

import numpy as np
import pytest

from microumup import cpu, fused, parametrization
from microumup.config import ModelConfig
from microumup.cpu import Threads
from microumup.engine import Tensor, backpropagate
from microumup.model import init_params, loss
from microumup.multipliers import UnitScaled
from microumup.ops import ResidualScale, Scale
from microumup.optim import SGD, AdamW, adamw, schedule
from microumup.plan import gradient_constants, plan

RNG = np.random.default_rng(0)
SHAPES = {"a": (3, 4), "b": (5,)}
GRADS = [{name: RNG.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(10)]


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def test_schedule_warms_up_to_1_and_falls_to_a_tenth() -> None:
    values = [schedule(step, 100, 25) for step in range(100)]
    assert values[0] == 1 / 25
    assert values[24] == max(values) == 1.0
    assert isclose(values[61], 0.1 + 0.45 * (1 + np.cos(np.pi * 37 / 75)))
    assert isclose(values[99], 0.1)
    assert np.all(np.diff(values[:25]) > 0)
    assert np.all(np.diff(values[24:]) < 0)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 0), (5, 5)])
def test_schedule_has_a_value_at_its_ends(steps: int, warmup: int) -> None:
    assert all(0 < schedule(step, steps, warmup) <= 1 for step in range(steps))


def test_adamw_is_the_textbook_update() -> None:
    params, lr_factors = start(), {"a": 1.0, "b": 0.5}
    optimizer = AdamW(params, lr_factors, lr=0.1, weight_decay=0.01, betas=(0.9, 0.99), eps=1e-3)
    w, m, v = start(), dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0)
    for t, grads in enumerate(GRADS, start=1):
        s = 1 / t
        optimizer.step(grads, s)
        for name in SHAPES:
            m[name] = 0.9 * m[name] + 0.1 * grads[name]
            v[name] = 0.99 * v[name] + 0.01 * grads[name] ** 2
            update = (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.99**t)) + 1e-3)
            w[name] = w[name] - s * 0.1 * lr_factors[name] * update - s * 0.01 * w[name]
            assert params[name] == pytest.approx(w[name], rel=1e-12)


def test_weight_decay_depends_on_neither_the_learning_rate_nor_its_factor() -> None:
    zero = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for lr, factor in ((0.1, 1.0), (10.0, 0.25)):
        params = start()
        AdamW(params, dict.fromkeys(SHAPES, factor), lr=lr, weight_decay=0.01).step(zero, s=0.5)
        for name, w in start().items():
            assert params[name] == pytest.approx(w * (1 - 0.5 * 0.01), rel=1e-15)


@pytest.mark.parametrize(
    ("decay", "share"),
    [("independent", 0.5 * 0.01), ("fully-independent", 0.01), ("coupled", 0.5 * 0.2 * 0.25 * 0.01)],
)
def test_the_three_readings_of_weight_decay(decay: str, share: float) -> None:
    params = start()
    zero = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    AdamW(params, dict.fromkeys(SHAPES, 0.25), lr=0.2, weight_decay=0.01, decay=decay).step(zero, s=0.5)
    for name, w in start().items():
        assert params[name] == pytest.approx(w * (1 - share), rel=1e-15)


@pytest.mark.parametrize(("decay", "kept"), [("independent", True), ("fully-independent", True), ("coupled", False)])
def test_coupled_decay_breaks_the_abc_symmetry(decay: str, kept: bool) -> None:
    theta, moved_w = 8.0, {name: w / 8.0 for name, w in start().items()}
    plain_w = start()
    settings = {"lr": 0.1, "weight_decay": 0.1, "eps": 0.0, "decay": decay}
    plain = AdamW(plain_w, dict.fromkeys(SHAPES, 1.0), **settings)
    moved = AdamW(moved_w, dict.fromkeys(SHAPES, 1 / theta), **settings)
    for grads in GRADS:
        plain.step(grads, 1.0)
        moved.step({name: theta * g for name, g in grads.items()}, 1.0)
    assert all(np.allclose(theta * moved_w[name], plain_w[name], rtol=1e-12) for name in SHAPES) == kept


def test_moving_a_factor_from_init_to_multiplier_leaves_adams_trajectory() -> None:
    """The abc-symmetry: A θ, std / θ, C / θ. The gradient of w is θ times larger, which Adam at ε = 0 does not see."""
    theta = 8.0  # a power of two: exact
    plain, moved = start(), {name: w / theta for name, w in start().items()}
    settings = {"lr": 0.1, "weight_decay": 0.01, "eps": 0.0}
    one = AdamW(plain, dict.fromkeys(SHAPES, 1.0), **settings)
    two = AdamW(moved, dict.fromkeys(SHAPES, 1 / theta), **settings)
    for grads in GRADS:
        one.step(grads, 1.0)
        two.step({name: theta * g for name, g in grads.items()}, 1.0)
        for name in SHAPES:
            assert theta * moved[name] == pytest.approx(plain[name], rel=1e-13)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_adam_does_not_see_a_constant_factor_of_the_gradient(eps: float) -> None:
    one, two = start(), start()
    settings = {"lr": 0.1, "eps": eps}
    for params, factor in ((one, 1.0), (two, 1000.0)):
        optimizer = AdamW(params, dict.fromkeys(SHAPES, 1.0), **settings)
        for grads in GRADS:
            optimizer.step({name: factor * g for name, g in grads.items()}, 1.0)
    # ε = 1e-8 against gradients that may be as small as 1e-2 and a few steps of lr 0.1
    assert all(one[name] == pytest.approx(two[name], abs=1e-12 if eps == 0 else 5e-6) for name in SHAPES)


class TrueGradients(UnitScaled):
    """u-µP's forward factors, and backward factors equal to them: what finite differences would give."""

    @staticmethod
    def linear(A: float, A_backward: float, batch_tokens: int) -> Scale:
        return Scale(A, A, A)

    @staticmethod
    def embedding(A: float, vocab_size: int, batch_tokens: int) -> Scale:
        return Scale(y=A, dw=A)

    @staticmethod
    def residual(a: float, b: float) -> ResidualScale:
        return ResidualScale(a, b, dbranch=a, dbase=1.0)

    @staticmethod
    def cross_entropy(alpha_loss_softmax: float, vocab_size: int, batch_tokens: int) -> Scale:
        return Scale()


def sgd_run(config: ModelConfig) -> dict[str, np.ndarray]:
    params = init_params(config, 0, np.float64)
    numbers = plan(config, 24)
    optimizer = SGD(params, gradient_constants(numbers), lr=0.5, weight_decay=0.01)
    tokens = np.random.default_rng(0).integers(0, 11, (5, 2, 13))
    for batch in tokens:
        tensors = {name: Tensor(w, name) for name, w in params.items()}
        backpropagate(loss(tensors, batch[:, :-1], batch[:, 1:], numbers))
        optimizer.step({name: t.grad for name, t in tensors.items() if t.grad is not None}, 1.0)
    return params


def test_sgd_follows_the_true_gradient_of_umup(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(width=16, head_dim=8, seq_len=12, vocab_size=11, alpha_loss_softmax=2.0)
    compensated = sgd_run(config)
    row = parametrization.SCHEMES["umup"]
    monkeypatch.setitem(parametrization.SCHEMES, "umup", row._replace(factors=TrueGradients))
    assert set(gradient_constants(plan(config, 24)).values()) == {1.0}
    true = sgd_run(config)
    moved = max(np.abs(true[name] - w).max() for name, w in init_params(config, 0, np.float64).items())
    assert moved > 0.1
    assert all(compensated[name] == pytest.approx(true[name], abs=1e-12) for name in true)


def test_moments_and_updates_continue_where_they_were_saved() -> None:
    params = start()
    optimizer = AdamW(params, dict.fromkeys(SHAPES, 1.0), lr=0.1)
    for grads in GRADS[:5]:
        optimizer.step(grads, 1.0)
    copy = {name: w.copy() for name, w in params.items()}
    resumed = AdamW(copy, dict.fromkeys(SHAPES, 1.0), lr=0.1)
    resumed.moments = {kind: {name: a.copy() for name, a in of.items()} for kind, of in optimizer.moments.items()}
    resumed.updates = optimizer.updates
    for grads in GRADS[5:]:
        optimizer.step(grads, 1.0)
        resumed.step(grads, 1.0)
    assert all(np.array_equal(params[name], copy[name]) for name in SHAPES)


def test_sgd_has_no_moments() -> None:
    assert SGD(start(), dict.fromkeys(SHAPES, 1.0), lr=0.1).moments == {}
    assert AdamW(start(), dict.fromkeys(SHAPES, 1.0), lr=0.1).moments.keys() == {"m", "v"}


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_shares_of_threads_and_blocks_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, optimizer: type[AdamW] | type[SGD], threads: int
) -> None:
    alone, shared = start(), start()
    factors, settings = {"a": 1.0, "b": 0.5}, {"lr": 0.1, "weight_decay": 0.01}
    one, many = optimizer(alone, factors, **settings), optimizer(shared, factors, **settings, threads=Threads(threads))
    for grads in GRADS:
        one.step(grads, 0.7)
    monkeypatch.setattr(cpu, "BLOCK", 2)
    for grads in GRADS:
        many.step(grads, 0.7)
    assert one.updates == many.updates == len(GRADS)
    assert all(np.array_equal(w, shared[name]) for name, w in alone.items())


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
@pytest.mark.parametrize("which", ["weight", "gradient"])
def test_a_weight_that_cannot_be_cut_into_blocks_in_place_is_refused(
    optimizer: type[AdamW] | type[SGD], which: str
) -> None:
    weight, gradient = np.ones((3, 4)), np.ones((3, 4))
    if which == "weight":
        weight = np.asfortranarray(weight)
    else:
        gradient = np.ones((4, 3)).T
    step = optimizer({"w": weight}, {"w": 1.0}, lr=0.1).step
    with pytest.raises(ValueError, match="blocks: an array is not C-contiguous"):
        step({"w": gradient}, 1.0)
    assert (weight == 1).all()


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("t", [1, 2, 1000])
def test_adamw_is_its_formula_and_writes_to_nothing(t: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(t)
    w, g, m = (np.asarray(rng.standard_normal(shape)) for _ in range(3))
    v = np.asarray(rng.uniform(0.1, 2.0, shape))
    arrays = [w, g, m, v]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    found = adamw(w, g, m, v, t=t, lr=0.3, decay=0.02, betas=(0.8, 0.95), eps=1e-3)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
    assert not any(np.shares_memory(a, b) for a in found for b in arrays)
    # Kingma & Ba's algorithm 1 and Loshchilov & Hutter's line 12, element by element, in Python's floats
    for i in np.ndindex(shape):
        w_i, g_i, m_i, v_i = (float(a[i]) for a in arrays)
        m_i = 0.8 * m_i + (1 - 0.8) * g_i
        v_i = 0.95 * v_i + (1 - 0.95) * g_i**2
        m_hat, v_hat = m_i / (1 - 0.8**t), v_i / (1 - 0.95**t)
        w_i = w_i - 0.02 * w_i - 0.3 * m_hat / (v_hat**0.5 + 1e-3)
        # of numbers of size 1 to 10; a few roundings of 1.1e-16 in another order
        assert [float(a[i]) for a in found] == pytest.approx([w_i, m_i, v_i], rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_rule_that_writes_in_place_does_the_same(decay: float) -> None:
    plain, fast = start(), start()
    settings = {"lr": 0.1, "weight_decay": decay, "betas": (0.9, 0.99), "eps": 1e-3}
    one = AdamW(plain, {"a": 1.0, "b": 0.5}, **settings)
    two = AdamW(fast, {"a": 1.0, "b": 0.5}, **settings, rule=fused.adamw)
    for grads in GRADS:
        before = {name: g.copy() for name, g in grads.items()}
        one.step(grads, 0.7)
        two.step(grads, 0.7)
        assert all(np.array_equal(grads[name], g) for name, g in before.items())
    for here, there in ((plain, fast), *((one.moments[kind], two.moments[kind]) for kind in "mv")):
        assert all(there[name] == pytest.approx(w, rel=1e-13) for name, w in here.items())


def test_adamw_has_no_state_of_its_own() -> None:
    arrays = [GRADS[i]["a"] ** 2 for i in range(4)]
    settings = {"t": 3, "lr": 0.1, "decay": 0.01}
    first, second = (adamw(*arrays, **settings) for _ in range(2))
    assert all(map(np.array_equal, first, second))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adamw_keeps_the_dtype(dtype: type) -> None:
    arrays = [GRADS[i]["a"].astype(dtype) ** 2 for i in range(4)]
    assert {a.dtype for a in adamw(*arrays, t=3, lr=0.1, decay=0.01)} == {np.dtype(dtype)}
