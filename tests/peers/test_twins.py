"""The programs that `bench` holds ours against compute what we do, step after step."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'microumup[peers]'")
pytest.importorskip("unit_scaling", reason="needs unit-scaling: pip install 'microumup[peers]'")

from microumup.lab.bench import Disagreement, check, new_twin  # noqa: E402
from microumup.lab.twins import TWINS, Twin, UnitScalingTwin  # noqa: E402
from microumup.plan import gradient_constants, plan, weights  # noqa: E402

SHAPE: dict[str, Any] = {"width": 32, "layers": 3, "head_dim": 8, "seq_len": 12, "batch_size": 4, "vocab_size": 300}


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("peer", TWINS)
def test_a_twin_computes_what_we_do(peer: str, threads: int) -> None:
    assert check(peer, SHAPE, threads) < 1e-5  # float32, some hundred terms a sum
    assert torch.get_num_threads() == threads


PLANTED = {
    "no RoPE": (Twin, "rope", lambda self, x: x),
    "one head of all": (Twin, "heads", lambda self, x: x.unsqueeze(1)),
    "another constant": (Twin, "gradient_constant", lambda self, name: 1.001 if name == "layer2.k" else 1.0),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_mistake_in_a_twin_is_found(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    owner, name, wrong = PLANTED[mistake]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(Disagreement, match="torch and we do not compute the same: the "):
        check("torch", SHAPE, 1)


def test_unit_scaling_departs_from_us_in_up_and_gate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = new_twin("unit-scaling", SHAPE, 1)
    _, accounted_for = twin.loss_and_gradients()
    monkeypatch.setattr(UnitScalingTwin, "gradient_constant", lambda self, name: 1.0)
    _, raw = twin.loss_and_gradients()
    constants = gradient_constants(plan(twin.config, twin.tokens.numel()))
    for name, grad in raw.items():
        known = sqrt(11 / 4) if name.endswith((".up", ".gate")) else 1.0
        np.testing.assert_allclose(grad / (constants[name] * known), accounted_for[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("peer", TWINS)
def test_a_step_is_one_of_adamw(peer: str, fused: bool) -> None:
    twin = new_twin(peer, SHAPE, 1, fused=fused)
    before = {name: w.detach().clone() for name, w in twin.weights.items()}
    losses = [twin.step()]
    group_of = {parameter: group for group in twin.optimizer.param_groups for parameter in group["params"]}
    for name, w in twin.weights.items():
        lr, decay = group_of[w]["lr"], group_of[w]["weight_decay"]
        # Adam's first step is as long as its learning rate, but for ε; weights are up to 4, in float32
        expected = before[name] * (1 - lr * decay) - lr * w.grad / (w.grad.abs() + 1e-8)
        np.testing.assert_allclose(w.detach(), expected, rtol=0, atol=1e-6, err_msg=name)
        assert float((w.detach() - before[name]).abs().max()) > 0.5 * lr
    losses += [twin.step() for _ in range(2)]
    assert losses[0] > losses[1] > losses[2]


def test_learning_rates_of_the_unit_scaling_twin_are_ours() -> None:
    twin = new_twin("unit-scaling", SHAPE, 1)
    rate = {parameter: group["lr"] for group in twin.optimizer.param_groups for parameter in group["params"]}
    ours = {name: w.C for name, w in weights(twin.config).items()}
    assert {name: rate[w] / rate[twin.weights["head"]] for name, w in twin.weights.items()} == pytest.approx(
        {name: C / ours["head"] for name, C in ours.items()}
    )
