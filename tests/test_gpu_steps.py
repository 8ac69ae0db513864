"""What a training step asks of a GPU, counted on the double of CuPy: no wait, one upload, and so many launches.

LAUNCHES says how many launches an update is, whatever the sizes: those of a network without layers, and those of each
layer. They go down where code gets better; then they, and the README, are to say so.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_on_cpu
import cupy_double
import numpy as np
import pytest
from cupy_double import compute_types, counts, memory

from microumup import trainer as module
from microumup.backend import to_host
from microumup.config import TrainConfig
from microumup.trainer import Trainer, train

SMALL: dict[str, Any] = {"width": 16, "head_dim": 8, "seq_len": 16, "batch_size": 4, "layers": 2}
SGD = {"optimizer": "sgd", "lr": 1.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {}, "sgd": SGD, "adamw, clip": {"clip": 0.1}, "sgd, clip": SGD | {"clip": 0.1}, "fp8": {"fp8": "fp8"},
    "sgd, fp8": SGD | {"fp8": "fp8"}, "micro-batches": {"micro_batch": 1}, "unequal ones": {"micro_batch": 3},
    "loss scale": {"loss_scale": 64.0, "decay": "coupled"}, "sp": {"scheme": "sp"},
    "mup, fp8": {"scheme": "mup", "fp8": "fp8"},
}  # fmt: skip
LAUNCHES = {
    ("plain", "adamw", "none"): (101, 285), ("plain", "sgd", "none"): (73, 187), ("plain", "adamw", "fp8"): (122, 432),
    ("fast", "adamw", "none"): (35, 115), ("fast", "sgd", "none"): (41, 136), ("fast", "adamw", "fp8"): (40, 136),
}  # fmt: skip


@pytest.fixture(params=["plain", pytest.param("fast", marks=pytest.mark.skipif(
    not cuda_on_cpu.COMPILER, reason="kernels run on a CPU only where there is g++"))])  # fmt: skip
def kernels(request: pytest.FixtureRequest) -> str:
    return request.param


def steps(trainer: Trainer, n: int = 3) -> Counter[str]:
    """What each of n steps was counted to ask for: the same of all, but for what the first one leaves for them."""
    found = []
    for step in range(n + 1):
        counts.clear()
        trainer.launch(step)
        found.append(+counts)
    assert found[1:] == [found[1]] * n
    return found[1]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_waits_for_nothing_and_sends_one_array(double, corpus, kernels, options):
    trainer = Trainer(TrainConfig(**SMALL | OPTIONS[options], kernels=kernels), corpus, "gpu")
    found = steps(trainer)
    assert found["syncs"] == 0
    assert found["uploads"] == 1  # inputs and targets
    counts.clear()
    assert len(trainer.look()) == 4
    assert counts["syncs"] == 1
    assert counts["uploads"] <= 1  # where the numbers lie that it joins, if they are more than eight


def test_the_first_step_sends_the_angles_of_rope_too(double, corpus, kernels):
    trainer = Trainer(TrainConfig(**SMALL | {"seq_len": 14}, kernels=kernels), corpus, "gpu")
    counts.clear()
    trainer.launch(0)
    assert counts["uploads"] <= 2
    assert counts["syncs"] == 0


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("optimizer", "fp8"), [("adamw", "none"), ("sgd", "none"), ("adamw", "fp8")])
def test_a_step_is_so_many_launches(double, corpus, kernels, optimizer, fp8, layers):
    options = (SGD if optimizer == "sgd" else {}) | {"fp8": fp8, "layers": layers, "kernels": kernels}
    base, layer = LAUNCHES[kernels, optimizer, fp8]
    assert steps(Trainer(TrainConfig(**SMALL | options), corpus, "gpu"))["launches"] == base + layer * layers


def test_the_readme_says_how_many_launches_the_default_is():
    fast, plain = (base + TrainConfig().layers * layer for base, layer in (
        LAUNCHES[kernels, "adamw", "none"] for kernels in ("fast", "plain")
    ))  # fmt: skip
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert f"a default step is {fast} launches ({plain} with `--kernels plain`) and one upload" in " ".join(
        readme.split()
    )


def test_sizes_do_not_change_how_many_launches_a_step_is(double, corpus):
    options = {"kernels": "plain", "layers": 1}
    small, large = (
        steps(Trainer(TrainConfig(**SMALL | options | sizes), corpus, "gpu"), n=1)
        for sizes in ({}, {"width": 32, "batch_size": 6, "seq_len": 24})
    )
    assert small == large


def test_a_micro_batch_is_a_forward_and_a_backward_more(double, corpus, kernels):
    """The update is one, so two of them are less than twice as much."""
    whole, halves, quarters = (
        steps(Trainer(TrainConfig(**SMALL | {"micro_batch": size}, kernels=kernels), corpus, "gpu"), n=1)["launches"]
        for size in (4, 2, 1)
    )
    assert whole < halves < quarters
    assert quarters - halves == 2 * (halves - whole)
    assert halves < 2 * whole


PLANTED = {
    "float(loss)": lambda out: float(out.data),
    "if the loss": lambda out: None if np.isfinite(out.data.item()) else 1 / 0,
    "print": lambda out: f"{out.data}",
    "a mask": lambda out: out.data.reshape(1)[out.data.reshape(1) > 0],
    "how many": lambda out: cupy_double.cupy.flatnonzero(out.data.reshape(1)),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_a_wait_in_a_step_is_seen(double, corpus, monkeypatch, plant):
    before = module.loss

    def loss(*args):
        out = before(*args)
        PLANTED[plant](out)
        return out

    monkeypatch.setattr(module, "loss", loss)
    assert steps(Trainer(TrainConfig(**SMALL), corpus, "gpu"), n=1)["syncs"] == 1


def test_an_upload_in_a_step_is_seen(double, corpus, monkeypatch):
    before = module.batch
    monkeypatch.setattr(
        module, "batch", lambda *args, **sizes: [double.asarray(a).get() for a in before(*args, **sizes)]
    )
    assert steps(Trainer(TrainConfig(**SMALL), corpus, "gpu"), n=1)["uploads"] == 3


@pytest.mark.parametrize(("log_every", "looks"), [(None, 2), (1, 12), (5, 3), (50, 1)])
def test_a_run_waits_once_a_look(double, corpus, monkeypatch, log_every, looks):
    """Between two looks, ten steps apart on a GPU unless it is said otherwise, and at the end."""
    monkeypatch.setattr(Trainer, "validate", lambda self: 1.0)
    before = module.Command
    monkeypatch.setattr(module, "Command", lambda: before(**{"log_every": log_every} if log_every else {}))
    counts.clear()
    record = train(TrainConfig(**SMALL, steps=12), corpus, device="gpu")[1]
    assert counts["syncs"] == looks
    assert record["loss_final"] > 0


def test_a_token_outside_the_vocabulary_is_refused_before_it_goes_up(double, corpus):
    wrong = replace(corpus, train=corpus.train.astype(np.uint16) + 200)
    trainer = Trainer(TrainConfig(**SMALL), wrong, "gpu")
    counts.clear()
    with pytest.raises(
        ValueError, match=r"^train: the corpus's tokens hold id \d+, outside \[0, 256\), the vocabulary$"
    ):
        trainer.launch(0)
    assert counts["uploads"] == 0


@pytest.mark.parametrize("options", ["adamw", "sgd, clip", "unequal ones"])
def test_a_run_on_the_double_is_that_of_numpy(double, corpus, options):
    """Of readable ops, to the bit, but for the embedding's gradient, whose sums are made in another way."""
    config = TrainConfig(**SMALL | OPTIONS[options], steps=6, kernels="plain")
    here, there = (train(config, corpus, device=device)[0] for device in ("cpu", "gpu"))
    for name, w in there.params.items():
        # one unit in the last place of a weight of size 1, six times
        np.testing.assert_allclose(to_host(w), here.params[name], rtol=0, atol=1e-6)


def test_micro_batches_need_less_memory(double, corpus, kernels):
    """The activations of one sequence, not of eight, beside weights, moments and gradients."""
    peaks = {}
    for size in (8, 1):
        sizes = SMALL | {"batch_size": 8, "seq_len": 64, "micro_batch": size, "kernels": kernels}
        trainer = Trainer(TrainConfig(**sizes), corpus, "gpu")
        trainer.launch(0)
        held = memory.now
        memory.start()
        trainer.launch(1)
        peaks[size] = memory.peak - held
    assert peaks[1] < peaks[8] / 4


def test_nothing_is_left_of_a_step_but_its_loss_and_norm(double, corpus, kernels):
    trainer = Trainer(TrainConfig(**SMALL, kernels=kernels), corpus, "gpu")
    trainer.launch(0)
    before = memory.now
    trainer.launch(1)
    assert memory.now - before == 2 * 512
    trainer.look()
    assert memory.now == before - 2 * 512


@pytest.mark.parametrize("tf32", [True, False])
def test_a_trainer_says_how_products_are_made(double, corpus, tf32):
    compute_types["f"] = -1
    Trainer(TrainConfig(**SMALL, tf32=tf32), corpus, "gpu")
    assert compute_types == {"f": 7 if tf32 else 1}


def test_a_trainer_on_a_cpu_has_no_tf32(corpus):
    with pytest.raises(ValueError, match=r"^--tf32: is for a GPU"):
        Trainer(TrainConfig(**SMALL, tf32=True), corpus)
