"""The training loop.

A run is a function of its config: batches and initial weights are drawn from the seed and the step alone, so a run that
was cut off and resumed ends in the same bits as one that was not.

The norm of a gradient, and what --clip compares with it, is of the effective gradient: the loss's by A·w, the weight
with its multiplier, which is g / (c_W A). Schemes that are one network by abc-symmetry have one such norm, while those
of their w differ by A, and what backpropagation gives by c_W too.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from microumup import checks, devices, fused, gpu, records
from microumup.backend import Array, to_device, to_host, xp_of
from microumup.config import TrainConfig
from microumup.cpu import Arrays, Threads, keep_freed_memory
from microumup.data import Corpus, batch, windows
from microumup.diverged import check_finite
from microumup.engine import Tensor, backpropagate, using
from microumup.model import evaluate, init_params, loss
from microumup.optim import SGD, AdamW, adamw, schedule
from microumup.plan import gradient_constants, plan
from microumup.records import Command, Record
from microumup.run_dir import RunDir

SAMPLE = 32  # batches that a split of the text is validated on; a text of its own is on all of it

Seen = tuple[float, float, float]  # of a step: the loss before it, the effective gradient's norm, the schedule's s
Watch = Callable[[int, list[Tensor]], None]


class Trainer:
    """Weights, optimizer and corpus of a run. `launch(step)` is the whole of training, `update(step)` waits for it."""

    def __init__(self, config: TrainConfig, corpus: Corpus, device: str = "cpu") -> None:
        c = self.config = config
        self.corpus, self.device, self.threads = corpus, device, Threads(c.threads)
        devices.use_tf32(c.tf32, device)
        keep_freed_memory()
        fast = c.kernels == "fast" and (fused if device == "cpu" else gpu)
        self.kernels = fast.KERNELS if fast else {}
        self.plan = plan(c, batch_tokens=c.batch_size * c.seq_len).weighted(c.loss_scale)
        self.params = {name: to_device(w, device) for name, w in init_params(c, c.seed).items()}
        settings: dict[str, Any] = {"lr": c.eta, "weight_decay": c.weight_decay, "decay": c.decay}
        constants = gradient_constants(self.plan)  # c_W
        self.per_effective = {name: constants[name] * w.A for name, w in self.plan.weights.items()}
        if c.optimizer == "adamw":
            lr_factors = {name: w.C for name, w in self.plan.weights.items()}
            settings |= {"rule": fast.adamw if fast else adamw, "betas": (c.beta1, c.beta2), "eps": c.adam_eps}
            self.optimizer: AdamW | SGD = AdamW(self.params, lr_factors, **settings, threads=self.threads)
        else:
            self.optimizer = SGD(self.params, constants, **settings, threads=self.threads)
        self._unseen: list[tuple[int, float, Array, Array]] = []  # step, s, loss, norm

    def update(self, step: int, *, watch: Watch | None = None) -> Seen:
        """One step, and what is seen of it. Raises Diverged."""
        self.launch(step, watch=watch)
        return self.look()[-1]

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # `look` finds what is no number
    def launch(self, step: int, *, watch: Watch | None = None) -> None:
        """One step, without a wait for a GPU: while it works, the host goes on to the next batch.

        `watch(step, losses)` is called before the weights change, with the whole tape and its gradients kept; there is
        a loss for each micro-batch of each thread, the mean over its tokens.
        """
        c, s = self.config, schedule(step, self.config.steps, round(self.config.warmup * self.config.steps))
        pair = batch(self.corpus.train, seq_len=c.seq_len, batch_size=c.batch_size, seed=c.seed, step=step)
        checks.ids("train", "the corpus's tokens", both := np.stack(pair), c.vocab_size)
        tokens = to_device(both, self.device)  # (2, B, T), inputs and targets in one transfer

        def gradients(i: int) -> tuple[list[Tensor], Any, Arrays]:
            """Losses of the micro-batches in a thread's share of the batch, and its part in the loss and gradients."""
            share, losses, value = self.threads.share(c.batch_size, i), list[Tensor](), list[Array]()
            leaves = {name: Tensor(w, name) for name, w in self.params.items()}
            for start in range(share.start, share.stop, size := c.micro_batch or c.batch_size):
                ids, hits = tokens[:, start : min(start + size, share.stop)]
                part = len(ids) / c.batch_size
                with using(self.kernels), checks.ids_not_read():  # they were, above
                    losses.append(out := loss(leaves, ids, hits, self.plan.weighted(part)))
                value.append(part * out.data)
                backpropagate(out, keep=watch is not None)  # adds to what the leaves have
            grads = {name: xp_of(t.grad).ascontiguousarray(t.grad) for name, t in leaves.items() if t.grad is not None}
            return losses, sum(value), grads

        def add_up(name: str, first: Array, *others: Array) -> Array:
            """Add the other threads' gradients to the first's; the sum of the effective gradient's squares."""
            for other in others:
                first += other
            return xp_of(first).vdot(first, first) / self.per_effective[name] / self.per_effective[name]

        losses, parts, grads = zip(*self.threads.run(gradients), strict=True)
        if watch:
            watch(step, [out for of_thread in losses for out in of_thread])
        norm = xp_of(tokens).sqrt(sum(part for of_thread in self.threads.over(add_up, *grads) for part in of_thread))
        if c.clip:
            kept = xp_of(norm).minimum(c.clip / norm, 1)
            for g in grads[0].values():
                g *= kept
        self.optimizer.step(grads[0], s)
        self._unseen.append((step, s, sum(parts), norm))

    def look(self) -> list[Seen]:
        """What is seen of each step since the last look: the one wait for a GPU. Raises Diverged."""
        unseen, self._unseen = self._unseen, []
        numbers = to_host(xp_of(unseen[0][-1]).stack([number for _, _, *two in unseen for number in two]))
        seen = []
        for (step, s, *_), (value, norm) in zip(unseen, numbers.reshape(-1, 2).tolist(), strict=True):
            check_finite(step, "loss", value, self.config)
            check_finite(step, "gradient's norm", norm, self.config)
            seen.append((value, norm, s))
        return seen

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def validate(self, batches: int | None = None) -> float:
        """Mean loss over so many batches spread evenly over the validation text, or over all of a --valid text."""
        c, total, count = self.config, 0.0, 0
        batches = batches or (0 if c.valid else SAMPLE)
        for pair in windows(self.corpus.valid, seq_len=c.seq_len, batch_size=c.batch_size, count=batches):
            tokens, targets = to_device(np.stack(pair), self.device)
            total += tokens.size * evaluate(self.params, tokens, targets, self.plan)
            count += tokens.size
        return total / count

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
) -> tuple[Trainer, Record]:  # fmt: skip
    """Train to the end, and say how it went; with a `run` from its checkpoint on, else nothing is written.

    `watch` is called every `watch_every` steps and at the last one. Raises Diverged when the loss, a gradient or the
    validation is no number any more, and KeyboardInterrupt once a run that was asked to stop has its checkpoint.
    """
    c, trainer, log, start, before = config, Trainer(config, corpus, device), list[Record](), 0, 0.0
    if run and run.state:
        start, before, log = run.step, run.seconds, run.records
        trainer.load_state(run.state, start)
    command = run.command if run else Command()
    look_every = command.log_every or (1 if device == "cpu" else 10)
    began = last = perf_counter()
    with tqdm(total=c.steps, initial=start, disable=True if quiet else None, unit="step", dynamic_ncols=True) as bar:
        for step in range(start, c.steps):
            final = step == c.steps - 1
            trainer.launch(step, watch=watch if watch_every and (step % watch_every == 0 or final) else None)
            validates = command.eval_every and (step + 1) % command.eval_every == 0
            if (step + 1) % look_every and not (validates or final):
                continue
            seen, now = trainer.look(), perf_counter()
            speed, last = c.batch_size * c.seq_len * len(seen) / (now - last), now
            new = [records.of_step(c, i, *values, speed) for i, values in enumerate(seen, start=len(log))]
            if validates:
                new[-1] |= records.of_validation(c, corpus, step + 1, trainer.validate())
            log += new
            if run:
                run.log(new)
                run.save_if_due(trainer.state, step + 1, before + now - began)
            bar.set_postfix_str(f"loss {seen[-1][0]:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update(len(seen))
    seconds = before + perf_counter() - began
    validation = records.validation_in(log[-1]) or records.of_validation(c, corpus, c.steps, trainer.validate())
    return trainer, records.of_run(c, log, validation, seconds)
