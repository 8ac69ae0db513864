"""The training loop.

A run is a function of its config: batches and initial weights are drawn from the seed and the step alone, so a run that
was cut off and resumed ends in the same bits as one that was not.
"""

from collections.abc import Callable
from math import sqrt
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from microumup import fused
from microumup.backend import Array, to_device, xp_of
from microumup.config import TrainConfig
from microumup.cpu import Arrays, Threads, keep_freed_memory
from microumup.data import Corpus, batch, windows
from microumup.diverged import check_finite
from microumup.engine import Tensor, backpropagate, using
from microumup.model import evaluate, init_params, loss
from microumup.optim import SGD, AdamW, adamw, schedule
from microumup.plan import gradient_constants, plan
from microumup.run_dir import RunDir

Result = dict[str, Any]
Watch = Callable[[int, list[Tensor]], None]


class Trainer:
    """Weights, optimizer and corpus of a run. `update(step)` is the whole of training."""

    def __init__(self, config: TrainConfig, corpus: Corpus, device: str = "cpu") -> None:
        c = self.config = config
        self.corpus, self.device, self.threads = corpus, device, Threads(c.threads)
        keep_freed_memory()
        self.kernels = fused.KERNELS if device == "cpu" else {}  # a GPU gains nothing from blocks that fit a cache
        self.plan = plan(c, batch_tokens=c.batch_size * c.seq_len).weighted(c.loss_scale)
        self.params = {name: to_device(w, device) for name, w in init_params(c, c.seed).items()}
        settings: dict[str, Any] = {"lr": c.eta, "weight_decay": c.weight_decay, "decay": c.decay}
        if c.optimizer == "adamw":
            lr_factors = {name: w.C for name, w in self.plan.weights.items()}
            rule = fused.adamw if self.kernels else adamw
            self.optimizer: AdamW | SGD = AdamW(self.params, lr_factors, rule=rule, **settings, threads=self.threads)
        else:
            self.optimizer = SGD(self.params, gradient_constants(self.plan), **settings, threads=self.threads)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # the loss itself is looked at
    def update(self, step: int, *, watch: Watch | None = None) -> tuple[float, float, float]:
        """One step: the loss before it, the gradient's norm as the optimizer sees it, and the schedule's value.

        `watch(step, losses)` is called before the weights change, with the whole tape and its gradients kept; there is
        a loss for each thread, the mean over its share of the batch. Raises Diverged.
        """
        c, s = self.config, schedule(step, self.config.steps, round(self.config.warmup * self.config.steps))
        tokens, targets = batch(self.corpus.train, seq_len=c.seq_len, batch_size=c.batch_size, seed=c.seed, step=step)

        def gradients(i: int) -> tuple[Tensor, float, Arrays]:
            """Loss of a thread's share of the batch, and its part in the batch's loss and gradients."""
            share = self.threads.share(c.batch_size, i)
            ids, hits = (to_device(a[share], self.device) for a in (tokens, targets))
            part = len(ids) / c.batch_size
            leaves = {name: Tensor(w, name) for name, w in self.params.items()}
            with using(self.kernels):
                out = loss(leaves, ids, hits, self.plan.weighted(part))
            check_finite(step, "loss", value := float(out.data), c)
            backpropagate(out, keep=watch is not None)
            grads = {name: xp_of(t.grad).ascontiguousarray(t.grad) for name, t in leaves.items() if t.grad is not None}
            return out, part * value, grads

        def add_up(name: str, first: Array, *others: Array) -> Any:
            """Add the other threads' gradients to the first's; the sum of its squares."""
            for other in others:
                first += other
            return xp_of(first).vdot(first, first)

        losses, parts, grads = zip(*self.threads.run(gradients), strict=True)
        if watch:
            watch(step, list(losses))
        norm = sqrt(sum(float(sum(of_thread)) for of_thread in self.threads.over(add_up, *grads)))
        check_finite(step, "gradient's norm", norm, c)
        self.optimizer.step(grads[0], s)
        return sum(parts), norm, s

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def validate(self, batches: int = 32) -> float:
        """Mean loss over `batches` batches spread evenly over the validation text."""
        c, losses = self.config, []
        for pair in windows(self.corpus.valid, seq_len=c.seq_len, batch_size=c.batch_size, count=batches):
            tokens, targets = (to_device(a, self.device) for a in pair)
            losses.append(evaluate(self.params, tokens, targets, self.plan))
        return sum(losses) / len(losses)

    def state(self) -> Arrays:
        """Arrays that a checkpoint keeps: params/NAME, and m/NAME and v/NAME of AdamW."""
        groups = {"params": self.params, **self.optimizer.moments}
        return {f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()}

    def load_state(self, state: Arrays, updates: int) -> None:
        """Go on from a checkpoint, with so many updates behind it."""
        for group, arrays in {"params": self.params, **self.optimizer.moments}.items():
            arrays |= {name: to_device(state[f"{group}/{name}"], self.device) for name in arrays}
        self.optimizer.updates = updates


def train(
    config: TrainConfig, corpus: Corpus, run: RunDir | None = None, *, device: str = "cpu", quiet: bool = True,
    watch: Watch | None = None, watch_every: int = 0,
) -> tuple[Trainer, Result]:  # fmt: skip
    """Train to the end, and say how it went; with a `run` from its checkpoint on, else nothing is written.

    `watch` is called every `watch_every` steps and at the last one. Raises Diverged when the loss, a gradient or the
    validation is no number any more, and KeyboardInterrupt once a run that was asked to stop has its checkpoint.
    """
    c, trainer, losses, start, before = config, Trainer(config, corpus, device), list[float](), 0, 0.0
    tokens_per_step = c.batch_size * c.seq_len
    if run and run.state:
        start, before, losses = run.step, run.seconds, run.losses
        trainer.load_state(run.state, start)
    began = last = perf_counter()
    with tqdm(total=c.steps, initial=start, disable=True if quiet else None, unit="step", dynamic_ncols=True) as bar:
        for step in range(start, c.steps):
            watched = watch if watch_every and (step % watch_every == 0 or step == c.steps - 1) else None
            value, norm, s = trainer.update(step, watch=watched)
            losses.append(value)
            now = perf_counter()
            speed, last = tokens_per_step / (now - last), now
            if run:
                line = {"step": step, "loss": value, "lr": s * c.eta, "grad_norm": norm}
                run.log(line | {"tokens_per_second": round(speed)})
                run.save_if_due(trainer.state, step + 1, before + now - began)
            bar.set_postfix_str(f"loss {value:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update()
    seconds = before + perf_counter() - began
    tail, valid = losses[-max(1, round(0.05 * c.steps)) :], trainer.validate()
    check_finite(c.steps, "validation loss", valid, c)
    return trainer, {
        "scheme": c.scheme, "width": c.width, "steps": c.steps, "tokens": c.steps * tokens_per_step,
        "loss_first": losses[0], "loss_final": sum(tail) / len(tail), "loss_valid": valid,
        "seconds": round(seconds, 3), "tokens_per_second": round(c.steps * tokens_per_step / seconds),
    }  # fmt: skip
