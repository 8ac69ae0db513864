from math import isclose

import numpy as np
import pytest

from microumup import optim, parametrization
from microumup.config import ModelConfig
from microumup.cpu import Threads
from microumup.engine import Tensor, backpropagate
from microumup.model import init_params, loss
from microumup.multipliers import UnitScaled
from microumup.ops import ResidualScale, Scale
from microumup.optim import SGD, AdamW, schedule
from microumup.plan import gradient_constants

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
    optimizer = SGD(params, gradient_constants(config, 24), lr=0.5, weight_decay=0.01)
    tokens = np.random.default_rng(0).integers(0, 11, (5, 2, 13))
    for batch in tokens:
        tensors = {name: Tensor(w, name) for name, w in params.items()}
        backpropagate(loss(tensors, batch[:, :-1], batch[:, 1:], config))
        optimizer.step({name: t.grad for name, t in tensors.items() if t.grad is not None}, 1.0)
    return params


def test_sgd_follows_the_true_gradient_of_umup(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(width=16, head_dim=8, seq_len=12, vocab_size=11, alpha_loss_softmax=2.0)
    compensated = sgd_run(config)
    row = parametrization.SCHEMES["umup"]
    monkeypatch.setitem(parametrization.SCHEMES, "umup", row._replace(ops=TrueGradients))
    assert set(gradient_constants(config, 24).values()) == {1.0}
    true = sgd_run(config)
    moved = max(np.abs(true[name] - w).max() for name, w in init_params(config, 0, np.float64).items())
    assert moved > 0.1
    assert all(compensated[name] == pytest.approx(true[name], abs=1e-12) for name in true)


def test_state_continues_where_it_was_saved() -> None:
    params = start()
    optimizer = AdamW(params, dict.fromkeys(SHAPES, 1.0), lr=0.1)
    for grads in GRADS[:5]:
        optimizer.step(grads, 1.0)
    copy = {name: w.copy() for name, w in params.items()}
    resumed = AdamW(copy, dict.fromkeys(SHAPES, 1.0), lr=0.1)
    resumed.load_state({name: a.copy() for name, a in optimizer.state().items()}, optimizer.updates)
    for grads in GRADS[5:]:
        optimizer.step(grads, 1.0)
        resumed.step(grads, 1.0)
    assert all(np.array_equal(params[name], copy[name]) for name in SHAPES)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_shares_of_threads_and_blocks_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, optimizer: type[AdamW] | type[SGD], threads: int
) -> None:
    alone, shared = start(), start()
    one, many = (optimizer(params, {"a": 1.0, "b": 0.5}, lr=0.1, weight_decay=0.01) for params in (alone, shared))
    for grads in GRADS:
        one.step(grads, 0.7)
    monkeypatch.setattr(optim, "BLOCK", 2)
    for grads in GRADS:
        many.step(grads, 0.7, Threads(threads))
    assert one.updates == many.updates == len(GRADS)
    assert all(np.array_equal(w, shared[name]) for name, w in alone.items())
