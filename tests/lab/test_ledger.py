from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from microumup.config import TrainConfig
from microumup.data import Corpus
from microumup.lab import ledger
from microumup.lab.ledger import Call, Counted, count_step, counting, memory, products_alone, totals
from microumup.plan import weights
from microumup.trainer import Trainer

TINY: dict[str, Any] = {"width": 16, "layers": 3, "head_dim": 4, "seq_len": 8, "batch_size": 4, "vocab_size": 128}


@pytest.fixture
def new_step(corpus: Corpus) -> Callable[..., Callable[[], Any]]:
    return lambda **options: partial(Trainer(TrainConfig(**TINY | options), corpus).update, 0)


def gemm_flops(calls: list[Call], *, attention: bool) -> int:
    return sum(call.gemm_flops for call in calls if (call.op == "attention") is attention)


@pytest.mark.parametrize("scheme", ["sp", "umup"])
@pytest.mark.parametrize("threads", [1, 2])
def test_linears_do_6_flops_per_parameter_and_token(new_step: Any, scheme: str, threads: int) -> None:
    config = TrainConfig(**TINY)
    params = sum(int(np.prod(w.shape)) for name, w in weights(config).items() if name != "embedding")
    calls = count_step(lambda: new_step(scheme=scheme, threads=threads))
    assert gemm_flops(calls, attention=False) == 6 * params * config.batch_size * config.seq_len


@pytest.mark.parametrize("seq_len", [8, 80])
def test_attention_does_12_flops_per_pair_of_tokens_and_feature(new_step: Any, seq_len: int) -> None:
    # two products forward, four backward; the causal half of all pairs is needed, a block of 64 takes all
    config = TrainConfig(**TINY | {"seq_len": seq_len})
    per_pair = 12 * config.layers * config.batch_size * config.width
    flops = gemm_flops(count_step(lambda: new_step(seq_len=seq_len)), attention=True)
    if seq_len <= 64:
        assert flops == per_pair * seq_len**2
    else:
        assert per_pair * seq_len * (seq_len + 1) / 2 <= flops < per_pair * seq_len**2


def test_a_step_is_the_same_one_while_it_is_counted(new_step: Any) -> None:
    expected = new_step()()
    with counting() as calls:
        assert new_step()() == expected
    assert calls


def test_nothing_is_left_behind(new_step: Any) -> None:
    makers = {name: getattr(np, name) for name in ledger.MAKERS}
    trainers = []

    def one_more() -> Any:
        trainers.append(new_step())
        return trainers[-1]

    count_step(one_more)
    assert {name: getattr(np, name) for name in ledger.MAKERS} == makers
    step = new_step()  # after it: what the package keeps, as the angles of RoPE, has to be plain
    before = len(Counted.calls)
    step()
    assert len(Counted.calls) == before


@pytest.mark.parametrize(
    ("run", "function", "gemm", "other", "moved"),
    [
        (lambda x: x @ np.ones((4, 5)), "matmul", 2 * 3 * 4 * 5, 0, 8 * (12 + 20 + 15)),
        (lambda x: np.dot(x, np.ones((4, 5)), out=np.empty((3, 5))), "dot", 2 * 3 * 4 * 5, 0, 8 * (12 + 20 + 15)),
        (lambda x: x @ np.ones(4), "matmul", 0, 2 * 3 * 4, 8 * (12 + 4 + 3)),
        (lambda x: np.exp(x), "exp", 0, 12, 8 * 24),
        (lambda x: np.multiply(x, 2, out=x), "multiply", 0, 12, 8 * 24),
        (lambda x: x.sum(axis=1), "add.reduce", 0, 12, 8 * 15),
        (lambda x: np.vdot(x, x), "vdot", 0, 12, 8 * 25),
        (lambda x: x.T.reshape(-1), "reshape", 0, 0, 8 * 24),
        (lambda x: x[np.array([2, 0])], "take", 0, 0, 8 * 16),
        (lambda x: x.__setitem__(0, np.ones(4)), "put", 0, 0, 8 * 8),
    ],
)
def test_a_call(run: Callable[[Any], Any], function: str, gemm: int, other: int, moved: int) -> None:
    with counting() as calls:
        x = np.ones((3, 4))
        run(x)
    assert [(c.function, c.gemm_flops, c.other_flops, c.bytes) for c in calls] == [(function, gemm, other, moved)]


def test_a_view_moves_nothing_and_an_update_of_a_slice_is_one_call() -> None:
    with counting() as calls:
        x = np.zeros((3, 4))
        x.T, x[1:], x.reshape(-1), np.swapaxes(x, 0, 1)
        x[1:] += 1
    assert [(c.function, c.bytes) for c in calls] == [("add", 8 * 16)]


def test_rows_add_up_to_the_total() -> None:
    calls = [Call("a", "exp", 0, 5, 40, 1), Call("b", "matmul", 7, 0, 90, 1), Call("a", "exp", 0, 1, 8, 2)]
    rows = [tuple(row.values()) for row in totals(calls)]
    assert rows == [("b", 1, 7, 0, 90), ("a", 2, 0, 6, 48), ("total", 3, 7, 6, 138)]
    assert list(totals(calls)[0]) == ["op", "calls", "gemm_flops", "other_flops", "bytes"]


def test_every_op_of_the_model_has_a_row(new_step: Any) -> None:
    ops = {row["op"] for row in totals(count_step(new_step))}
    assert {"embedding", "rms_norm", "rope", "linear", "attention", "gated_silu", "residual_add"} <= ops


def test_memory_is_that_of_arrays_in_the_second_step() -> None:
    def new_step() -> Callable[[], Any]:
        kept, needed = np.zeros(2**17), iter((2**20, 2**18))  # 1 MiB; 8 MiB more at first, then 2
        return lambda: np.zeros(next(needed)).sum() + kept[0]

    found = memory(new_step)
    assert found["held"] == pytest.approx(2**20, rel=0.01)  # and some Python objects
    assert found["peak"] == pytest.approx(3 * 2**20, rel=0.01)


@pytest.mark.parametrize("threads", [1, 2])
def test_products_alone_are_those_of_the_step(new_step: Any, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    calls = count_step(lambda: new_step(threads=threads))
    done: list[tuple[Any, ...]] = []
    product = np.matmul

    def matmul(a: Any, b: Any, out: Any) -> None:
        product(a, b, out=out)
        done.append(tuple((x.shape, x.strides, x.dtype) for x in (a, b, out)))

    monkeypatch.setattr(np, "matmul", matmul)
    products_alone(calls)()
    expected = [tuple((p.shape, p.strides, p.dtype) for p in c.places) for c in calls if c.places]
    assert sorted(map(str, done)) == sorted(map(str, expected))
    assert len(done) > 50


def test_operands_lie_as_they_lay_and_outputs_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with counting() as calls:
        x = np.zeros((4, 6), np.float32)
        y = x @ x.T  # (4, 4)
        x[1:, ::2] @ y[1:]  # (3, 3) (3, 4)
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: done.append((a, b, out)))
    products_alone(calls)()
    (a, b, out), (c, d, other_out) = done
    assert a.ctypes.data == b.ctypes.data
    assert c.ctypes.data - a.ctypes.data == 6 * 4  # a row further on
    assert not any(np.shares_memory(one, another) for one in (out, other_out) for another in (a, b, c, d))
    assert all(np.std(operand) > 0.3 for operand in (a, b, c, d))  # numbers, not zeros
