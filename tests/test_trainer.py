import json
import tracemalloc
from dataclasses import replace
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microumup import fused, model
from microumup.backend import Array
from microumup.config import TrainConfig
from microumup.data import Corpus, load_corpus, windows
from microumup.diverged import Diverged
from microumup.engine import Kernels, Tensor, tape
from microumup.model import loss
from microumup.optim import AdamW, adamw
from microumup.ranges import linear_ranges
from microumup.records import Command
from microumup.run_dir import RunDir, read_metrics
from microumup.trainer import Trainer, train

SMALL = TrainConfig(width=16, head_dim=8, layers=1, seq_len=16, batch_size=4, steps=40)


# ---- the default run ----

# The loss at step 0, 10, … 90 of the command `train` without options, by the readable ops on one thread, in float32.
PINNED = [
    5.552297592, 5.155330658, 3.887048244, 3.090586185, 2.999383688, 2.873281002, 2.734281540, 2.601271868,
    2.644868374, 2.476884365,
]  # fmt: skip
# Another order of additions is all that may differ, and 90 steps do not amplify it: 2 or 3 threads, 1 or 2 BLAS
# threads, the fused pairs and update, kernels of OpenBLAS and NumPy for AVX-512, for AVX2 or for neither changed
# these losses by 2e-7 of themselves at most, the last bit or two of a float32.
SAME = 1e-6


@pytest.fixture(scope="module")
def shipped() -> Corpus:
    return load_corpus(seq_len=TrainConfig().seq_len)


def every_tenth_loss(corpus: Corpus, kernels: Kernels, threads: int) -> list[float]:
    trainer = Trainer(TrainConfig(threads=threads), corpus)
    trainer.kernels = kernels
    assert isinstance(trainer.optimizer, AdamW)
    trainer.optimizer.rule = fused.adamw if kernels else adamw
    return [trainer.update(step)[0] for step in range(91)][::10]


@pytest.mark.parametrize(
    ("kernels", "threads"), [({}, 1), (fused.KERNELS, 1), (fused.KERNELS, 2)], ids=["ops", "fused", "two threads"]
)
def test_ten_losses_of_the_default_run_are_pinned(shipped: Corpus, kernels: Kernels, threads: int) -> None:
    assert every_tenth_loss(shipped, kernels, threads) == pytest.approx(PINNED, rel=SAME)


def test_a_step_runs_by_the_fused_pairs_and_leaves_the_ops_as_they_are(corpus: Corpus) -> None:
    assert Trainer(SMALL, corpus).kernels is fused.KERNELS
    seen = []

    def kernel(op: Any, pair: Any) -> Any:
        return lambda *arrays, **settings: seen.append(op.__name__) or pair[0](*arrays, **settings), pair[1]

    trainer = Trainer(SMALL, corpus)
    trainer.kernels = {op: kernel(op, pair) for op, pair in fused.KERNELS.items()}
    trainer.update(0)
    assert set(seen) == {op.__name__ for op in fused.KERNELS}
    seen.clear()
    loss(trainer.params, *next(windows(corpus.valid, seq_len=16, batch_size=2, count=1)), trainer.plan)
    assert seen == []


# ---- any run ----


@pytest.mark.parametrize("options", [{}, {"scheme": "sp"}, {"scheme": "mup", "base_width": 16}, {"fp8": "fp8"}])
def test_a_model_learns(corpus: Corpus, options: dict[str, Any]) -> None:
    options = options if "scheme" not in options else options | {"lr": 2**-5}
    small = {"width": 16, "head_dim": 8, "seq_len": 16, "batch_size": 4, "steps": 60}
    _, result = train(TrainConfig(**small | options), corpus)
    assert abs(result["loss_first"] - log(256)) < 1.5  # nothing known yet: uniform but for the logits' std of up to 1
    assert result["loss_final"] < 2.2  # the letters alone have an entropy of 2.5 nats
    assert result["loss_valid"] < 2.2


def test_sgd_learns(corpus: Corpus) -> None:
    _, result = train(replace(SMALL, optimizer="sgd", lr=4.0, steps=60), corpus)
    assert result["loss_final"] < result["loss_first"] - 1


def test_the_result_has_what_the_readme_promises(corpus: Corpus, tmp_path: Path) -> None:
    with RunDir.create(tmp_path, SMALL, corpus) as run:
        _, result = train(SMALL, corpus, run)
    assert set(result) == {
        "scheme", "width", "steps", "tokens", "loss_first", "loss_final", "loss_valid", "bits_per_byte", "seconds",
        "tokens_per_second",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))
    assert set(lines[0]) == {"step", "loss", "lr", "tokens_per_second", "grad_norm", "crc32"}
    assert result["tokens"] == 40 * 4 * 16
    assert result["loss_first"] == lines[0]["loss"]
    assert result["loss_final"] == (lines[-2]["loss"] + lines[-1]["loss"]) / 2  # 5 % of 40
    assert max(line["lr"] for line in lines) == 1.5


def test_the_same_run_ends_in_the_same_bits_and_another_seed_in_others(corpus: Corpus) -> None:
    losses = [train(replace(SMALL, seed=seed), corpus)[1]["loss_final"] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


class KilledError(Exception):
    pass


def test_a_run_that_was_killed_and_resumed_ends_in_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    command = Command(save_every=10)
    with RunDir.create(whole, SMALL, corpus, command) as run:
        expected, result = train(SMALL, corpus, run)

    def kill(step: int, _: Tensor) -> None:
        if step == 25:
            raise KilledError

    with pytest.raises(KilledError), RunDir.create(resumed, SMALL, corpus, command) as run:
        train(SMALL, corpus, run, watch=kill, watch_every=1)
    assert len((resumed / "metrics.jsonl").read_text().splitlines()) == 25
    with RunDir.resume(resumed, corpus) as run:
        trainer, again = train(SMALL, corpus, run)
    assert all(np.array_equal(trainer.params[name], w) for name, w in expected.params.items())
    for key in ("loss_first", "loss_final", "loss_valid"):
        assert again[key] == result[key]
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("scheme", ["umup", "sp"])
@pytest.mark.parametrize("threads", [2, 3])  # 3: shares of 1, 1 and 2 sequences
def test_threads_change_nothing_but_rounding(corpus: Corpus, scheme: str, threads: int) -> None:
    config = replace(SMALL, scheme=scheme, lr=2**-6)
    one, many = Trainer(config, corpus), Trainer(replace(config, threads=threads), corpus)
    for step in range(3):  # of which each enlarges what the one before left
        assert many.update(step) == pytest.approx(one.update(step), rel=1e-5)
    for name, w in one.params.items():
        assert np.linalg.norm(many.params[name] - w) <= 1e-5 * np.linalg.norm(w), name


def test_the_same_number_of_threads_gives_the_same_bits(corpus: Corpus) -> None:
    config = replace(SMALL, threads=2)
    first, second = (train(config, corpus) for _ in range(2))
    assert first[1]["loss_final"] == second[1]["loss_final"]
    assert all(np.array_equal(w, second[0].params[name]) for name, w in first[0].params.items())


def test_ranges_are_of_the_whole_batch_whatever_the_threads(corpus: Corpus) -> None:
    seen: list[Any] = []
    for threads in (1, 3):
        config = replace(SMALL, threads=threads)
        Trainer(config, corpus).update(0, watch=lambda _, losses: seen.append(linear_ranges(losses)))
    assert seen[0].keys() == seen[1].keys()
    for name, r in seen[0].items():
        assert seen[1][name] == (*r[:2], pytest.approx(r.rms, rel=1e-6), pytest.approx(r.absmax, rel=1e-6), *r[4:])


def test_a_summed_loss_has_the_gradients_of_the_mean_one_times_its_tokens(corpus: Corpus) -> None:
    tokens, grads = SMALL.batch_size * SMALL.seq_len, []

    def keep(_: int, losses: list[Tensor]) -> None:
        grads.append(tape(losses[0])[0].inputs[1].grad)

    seen = [Trainer(replace(SMALL, loss_scale=scale), corpus).update(0, watch=keep) for scale in (1.0, float(tokens))]
    assert seen[1][0] == seen[0][0]  # the loss itself is the mean
    assert seen[1][1] == pytest.approx(seen[0][1], rel=1e-6)  # so is the loss that the norm is of
    assert grads[1] == pytest.approx(tokens * grads[0], rel=1e-6)


# ---- the effective gradient ----
CLIP = 0.5


def effective_gradients(config: TrainConfig, corpus: Corpus) -> dict[str, Array]:
    """Of the first step, from what SGD, which divides by c_W, takes off the weights."""
    trainer = Trainer(replace(config, optimizer="sgd", lr=1.0, weight_decay=0.0, warmup=0.0), corpus)
    before = {name: w.copy() for name, w in trainer.params.items()}
    *_, s = trainer.update(0)
    return {name: (before[name] - w) / s / trainer.plan.weights[name].A for name, w in trainer.params.items()}


@pytest.mark.parametrize("scheme", ["umup", "mup", "sp"])
def test_the_norm_is_that_of_the_effective_gradient(corpus: Corpus, scheme: str) -> None:
    config = replace(SMALL, scheme=scheme, lr=1.0)
    true = np.sqrt(sum(np.sum(g**2) for g in effective_gradients(config, corpus).values()))
    # SGD's weights, of scale 1, keep 24 bits of a step that is 1e-3 of them or more
    assert Trainer(config, corpus).update(0)[1] == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("schemes", [("mup", "mup-table2")])
def test_schemes_that_are_the_same_network_clip_alike(corpus: Corpus, schemes: tuple[str, str]) -> None:
    """Their gradients differ by constants; a norm of the gradients as they are would clip one more."""
    configs = [replace(SMALL, scheme=s, width=32, base_width=16, lr=2**-6, clip=1.8, steps=20) for s in schemes]
    runs = [train(config, corpus) for config in configs]
    assert 0 < runs[0][1]["clipped"] == runs[1][1]["clipped"] < 1
    assert runs[0][1]["loss_final"] == pytest.approx(runs[1][1]["loss_final"], rel=1e-4)
    plain = [sum(float((g**2).sum()) for g in raw_gradients(config, corpus).values()) for config in configs]
    assert abs(plain[0] / plain[1] - 1) > 0.1


def raw_gradients(config: TrainConfig, corpus: Corpus) -> dict[str, Array]:
    trainer, grads = Trainer(config, corpus), {}
    trainer.optimizer.step = lambda g, s: grads.update(g)  # type: ignore[method-assign]
    trainer.update(0)
    return grads


def test_a_clipped_gradient_has_the_norm_that_was_asked_for(corpus: Corpus) -> None:
    config = replace(SMALL, clip=0.01)
    constants = Trainer(config, corpus).per_effective
    squares = [np.sum((g / constants[name]) ** 2) for name, g in raw_gradients(config, corpus).items()]
    assert np.sqrt(sum(squares)) == pytest.approx(0.01, rel=1e-5)  # of float32 sums
    free = raw_gradients(SMALL, corpus)
    assert all(np.array_equal(g, free[name]) for name, g in raw_gradients(replace(SMALL, clip=1e9), corpus).items())


def test_metrics_and_result_say_how_often_it_was_clipped(corpus: Corpus, tmp_path: Path) -> None:
    config = replace(SMALL, clip=CLIP)
    with RunDir.create(tmp_path, config, corpus) as run:
        _, result = train(config, corpus, run)
    clipped = [line["clipped"] for line in read_metrics(tmp_path)]
    assert clipped == [line["grad_norm"] > CLIP for line in read_metrics(tmp_path)]
    assert 0 < result["clipped"] == sum(clipped) / 40 < 1


# ---- micro-batches ----
@pytest.mark.parametrize("options", [{}, {"scheme": "sp", "lr": 2**-6}, {"threads": 2}, {"fp8": "fp8"}])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_micro_batches_change_nothing_but_rounding(corpus: Corpus, options: dict[str, Any], size: int) -> None:
    config = replace(SMALL, **options)
    whole, parts = (raw_gradients(replace(config, micro_batch=n), corpus) for n in (0, size))
    for name, g in whole.items():  # the same additions in another order; in FP8 the casts are the same casts
        assert np.linalg.norm(parts[name] - g) <= 2e-6 * np.linalg.norm(g), name


# ---- what is seen of steps ----
def test_steps_that_are_seen_later_are_the_same_steps(corpus: Corpus, tmp_path: Path) -> None:
    metrics = []
    for every in (1, 7, 100):
        with RunDir.create(tmp_path / str(every), SMALL, corpus, Command(log_every=every, save_every=9)) as run:
            train(SMALL, corpus, run)
        metrics.append([(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(run.path)])
        assert len(metrics[-1]) == 40
    assert metrics[0] == metrics[1] == metrics[2]


def test_a_run_that_is_looked_at_late_diverges_at_the_same_step(corpus: Corpus, tmp_path: Path) -> None:
    config, messages = replace(SMALL, scheme="sp", lr=1e39), []
    for every in (1, 30):
        run = RunDir.create(tmp_path / str(every), config, corpus, Command(log_every=every))
        with run, pytest.raises(Diverged) as error:
            train(config, corpus, run)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_the_constants_of_adam_are_options(corpus: Corpus) -> None:
    trainer = Trainer(replace(SMALL, beta1=0.5, beta2=0.75, adam_eps=1e-3), corpus)
    assert isinstance(trainer.optimizer, AdamW)
    assert (trainer.optimizer.betas, trainer.optimizer.eps) == ((0.5, 0.75), 1e-3)


def test_plain_kernels_are_the_ops(corpus: Corpus) -> None:
    trainer = Trainer(replace(SMALL, kernels="plain"), corpus)
    assert trainer.kernels == {}
    assert isinstance(trainer.optimizer, AdamW)
    assert trainer.optimizer.rule is adamw


# ---- validation ----
def test_a_text_that_is_held_out_is_validated_whole(corpus: Corpus) -> None:
    trainer = Trainer(replace(SMALL, valid=("there.txt",)), corpus)
    pairs = [(corpus.valid[i : i + 16][None], corpus.valid[i + 1 : i + 17][None]) for i in range(0, 1199, 16)]
    pairs = [(x[:, : y.shape[1]].astype(int), y.astype(int)) for x, y in pairs if y.size]
    losses = [float(loss(trainer.params, x, y, trainer.plan).data) for x, y in pairs]
    expected = np.average(losses, weights=[y.size for _, y in pairs])
    assert sum(y.size for _, y in pairs) == len(corpus.valid) - 1
    assert trainer.validate() == pytest.approx(expected, rel=1e-6)  # of float32


def test_validations_along_the_run_are_in_its_metrics(corpus: Corpus, tmp_path: Path) -> None:
    with RunDir.create(tmp_path, SMALL, corpus, Command(eval_every=16, log_every=10)) as run:
        _, result = train(SMALL, corpus, run)
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records if "loss_valid" in r] == [15, 31]
    assert records[15]["loss_valid"] > records[31]["loss_valid"] > result["loss_valid"]
    assert result["bits_per_byte"] == pytest.approx(result["loss_valid"] / log(2))  # a token is a byte


def test_sgd_divides_by_the_scale_of_the_loss(corpus: Corpus) -> None:
    config = replace(SMALL, optimizer="sgd", lr=1.0)
    plain, scaled = Trainer(config, corpus), Trainer(replace(config, loss_scale=64.0), corpus)
    for step in range(3):
        plain.update(step)
        scaled.update(step)
    assert all(np.array_equal(w, scaled.params[name]) for name, w in plain.params.items())  # 64 is a power of two


def test_watching_a_step_does_not_change_it(corpus: Corpus) -> None:
    plain, watched, seen = Trainer(SMALL, corpus), Trainer(SMALL, corpus), []
    for step in range(3):
        assert plain.update(step) == watched.update(
            step, watch=lambda step, losses: seen.append((step, losses[0].grad))
        )
    assert [step for step, grad in seen if grad is not None] == [0, 1, 2]
    assert all(np.array_equal(plain.params[name], w) for name, w in watched.params.items())


def test_divergence_names_the_step_and_what_to_try(corpus: Corpus) -> None:
    message = r"the loss is (nan|inf) at step \d+; try a lower --lr"
    with pytest.raises(Diverged, match=message):
        train(replace(SMALL, scheme="sp", lr=1e39), corpus)


@pytest.mark.parametrize("options", [{"loss_scale": 512.0}, {"threads": 2}], ids=["summed", "threads"])
def test_fp8_casts_the_gradients_of_what_is_differentiated(corpus: Corpus, options: dict[str, Any]) -> None:
    """The readable ops cast dy as it arrives; so must the fast ones, whatever stands between the loss and its mean."""
    config = replace(SMALL, scheme="mup", base_width=16, base_layers=1, lr=2**-6, fp8="fp8", **options)
    fast, readable = Trainer(config, corpus), Trainer(config, corpus)
    readable.kernels = {}
    norms = [trainer.update(0)[1] for trainer in (fast, readable)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)  # of values between two FP8 numbers a few round the other way


# ---- validation ----


def test_validation_is_the_mean_loss_over_windows_of_the_text(corpus: Corpus) -> None:
    trainer = Trainer(SMALL, corpus)
    pairs = list(windows(corpus.valid, seq_len=16, batch_size=4, count=5))
    losses = [float(loss(trainer.params, *pair, trainer.plan).data) for pair in pairs]
    assert len({round(value, 3) for value in losses}) > 1
    assert trainer.validate(batches=5) == pytest.approx(sum(losses) / 5, rel=1e-6)  # of float32


def test_validation_never_holds_the_logits_of_a_batch(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    V, N = 8_192, 4 * 64
    monkeypatch.setattr(model, "LOGITS", 8 * V)
    trainer = Trainer(replace(SMALL, vocab_size=V, seq_len=64), corpus)
    trainer.validate(batches=1)  # what a first call keeps, as the angles of RoPE, is not of interest
    tracemalloc.start()
    try:
        trainer.validate(batches=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * N * V / 4, f"{peak:,} bytes, where the logits of a batch have {4 * N * V:,}"


def test_a_validation_after_the_last_step_is_made_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    made, validate = [], Trainer.validate
    monkeypatch.setattr(Trainer, "validate", lambda self: made.append(1) or validate(self))
    results = []
    for every in (0, 20):
        made.clear()
        run = SimpleNamespace(command=Command(eval_every=every), state=None, log=len, save_if_due=lambda *_: None)
        results.append(train(SMALL, corpus, run)[1]["loss_valid"])  # type: ignore[arg-type]
        assert len(made) == (2 if every else 1)
    assert results[0] == results[1]
