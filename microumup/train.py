"""The training loop, and `python -m microumup.train`.

A run directory holds config.json (every option), metrics.jsonl (a line a step), checkpoint.safetensors (to resume
from), scales.jsonl if asked for and, when it is finished, result.json. A run is a function of its config: batches and
initial weights are drawn from the seed and the step alone, so a run that was cut off and resumed ends in the same bits
as one that was not.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from math import isfinite, sqrt
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from microumup import __version__, checkpoint, cli, fused, ops
from microumup.backend import Array, choose_device, keep_freed_memory, to_device, xp_of
from microumup.data import BYTES, Corpus, batch, load_corpus, windows
from microumup.engine import Tensor, backpropagate
from microumup.fp8 import LinearFormats, parse_recipe
from microumup.generate import generate
from microumup.model import (
    ModelConfig,
    check_least,
    gradient_constants,
    init_params,
    loss,
    option,
    option_name,
    weights,
    without_retired,
)
from microumup.optim import DECAYS, SGD, AdamW, blocks, schedule
from microumup.parametrization import SCHEMES
from microumup.ranges import log_scales
from microumup.threads import Threads, cores

Result = dict[str, Any]
Arrays = dict[str, Array]
Watch = Callable[[int, list[Tensor]], None]

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},  # the defaults below
    "laptop": {"width": 128, "layers": 4, "head_dim": 32, "seq_len": 128, "batch_size": 16, "steps": 2000},
    "paper": {  # Table 6
        "width": 256, "layers": 4, "head_dim": 64, "seq_len": 256, "batch_size": 64, "steps": 8192,
        "corpus": "wikitext-103", "vocab_size": 32_000,
    },
}  # fmt: skip


WORK_PER_THREAD = 1 << 15  # tokens · width: 512 tokens at width 64; with less, threads wait for the interpreter

TYPICAL_LR = ", ".join(f"{row.typical_lr:.3g} for {name}" for name, row in SCHEMES.items())


@dataclass(frozen=True)
class TrainConfig(ModelConfig):
    """The training. A model and how it is trained; raises ValueError, naming the option, for what cannot be."""

    corpus: str = option("sotu", "sotu (State of the Union, shipped) or wikitext-103 (downloaded)")
    text: tuple[str, ...] = option((), "train on your own UTF-8 text files instead of a corpus", common=True)
    batch_size: int = option(16, "B, sequences in a batch", common=True)
    steps: int = option(1000, "updates", common=True)
    lr: float | None = option(
        None, f"η, peak of the global learning rate: 1.5, 2^1.5 or 2**-7 (default: {TYPICAL_LR})", common=True
    )
    warmup: float = option(2000 / 8192, "share of the steps in which the learning rate rises; then a cosine to 10 %")
    weight_decay: float = option(2**-13, "λ, share of a weight that a step at the peak takes away, whatever η; 2^-13")
    decay: str = option(
        "independent", "what λ is multiplied by: independent s(t), fully-independent 1, coupled s(t) η C"
    )
    optimizer: str = option("adamw", "adamw, or sgd (divides each gradient by its known constant; name an --lr)")
    loss_scale: float = option(
        1.0, "what is differentiated is this times the mean loss: batch size x seq len sums it, with gradients to match"
    )
    seed: int = option(0, "of the initial weights and the batches", common=True)
    threads: int = option(1, "that share a batch, equal ones give equal bits; the command train takes one per core")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, batch_size=1, steps=1, seed=0, threads=1)
        if self.threads > self.batch_size:
            raise ValueError(
                f"--threads: {self.threads} is more than --batch-size {self.batch_size}, nothing left for some"
            )
        if not (isfinite(self.loss_scale) and self.loss_scale > 0):
            raise ValueError(f"--loss-scale: {self.loss_scale} is not a positive finite number")
        for name in ("warmup", "weight_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{option_name(name)}: {getattr(self, name)} is no share; use 0 to 1")
        for name, known in (("optimizer", ("adamw", "sgd")), ("decay", tuple(DECAYS))):
            if getattr(self, name) not in known:
                raise ValueError(f"--{name}: {getattr(self, name)!r} is unknown; choose from {', '.join(known)}")
        if self.lr is None and self.optimizer == "sgd":
            raise ValueError("--lr: name one for --optimizer sgd; the schemes' defaults are AdamW's")
        if self.lr is None:
            object.__setattr__(self, "lr", SCHEMES[self.scheme].typical_lr)
        if not (isfinite(self.eta) and self.eta > 0):
            raise ValueError(f"--lr: {self.lr} is not a positive finite number")

    @property
    def eta(self) -> float:
        """η, with the scheme's default put in."""
        assert self.lr is not None
        return self.lr


class Diverged(Exception):
    """The loss became NaN or infinite. `step` is the update it was found at; the message says what to try."""

    def __init__(self, step: int, value: float, config: TrainConfig) -> None:
        super().__init__(
            f"the loss is {value} at step {step}; try a lower --lr than {config.eta:g} or a longer --warmup"
        )
        self.step = step


class Trainer:
    """What a run has in hand: the weights, the optimizer, the corpus. `update(step)` is the whole of training."""

    def __init__(self, config: TrainConfig, corpus: Corpus, device: str = "cpu") -> None:
        self.config, self.corpus, self.device = config, corpus, device
        self.params = {name: to_device(w, device) for name, w in init_params(config, config.seed).items()}
        constants = gradient_constants(config, config.batch_size * config.seq_len)
        constants = {name: config.loss_scale * c_w for name, c_w in constants.items()}
        lr_factors = {name: w.C for name, w in weights(config).items()}
        settings: dict[str, Any] = {"lr": config.eta, "weight_decay": config.weight_decay, "decay": config.decay}
        keep_freed_memory()
        self.threads = Threads(config.threads)
        self.ops = fused if device == "cpu" else ops  # a GPU gains nothing from blocks that fit a core's cache
        self.optimizer: AdamW | SGD
        if config.optimizer == "adamw":
            self.optimizer = AdamW(self.params, lr_factors, **settings)
        else:
            self.optimizer = SGD(self.params, constants, **settings)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # the loss itself is looked at
    def update(self, step: int, *, watch: Watch | None = None) -> tuple[float, float, float]:
        """One step: the loss before it, the gradient's norm as the optimizer sees it, and the schedule's value.

        `watch(step, losses)` is called before the weights change, with the whole tape and its gradients kept; there is
        a loss for each thread, the mean over its share of the batch.
        """
        c = self.config
        tokens, targets = batch(self.corpus.train, seq_len=c.seq_len, batch_size=c.batch_size, seed=c.seed, step=step)
        parts = self.threads.run(lambda i: self._gradients(i, tokens, targets, step, keep=watch is not None))
        if watch:
            watch(step, [loss for loss, _, _ in parts])
        s = schedule(step, c.steps, round(c.warmup * c.steps))
        grads = [grads for _, _, grads in parts]
        norm = sqrt(sum(self.threads.run(lambda i: self._add_up(i, grads))))
        self.optimizer.step(grads[0], s, self.threads)
        return sum(part for _, part, _ in parts), norm, s

    def _gradients(
        self, i: int, tokens: Array, targets: Array, step: int, *, keep: bool
    ) -> tuple[Tensor, float, Arrays]:
        """The i-th thread's share of the batch: its mean loss, and its part in the batch's loss and gradients."""
        c, share = self.config, self.threads.share(self.config.batch_size, i)
        params = {name: Tensor(w, name) for name, w in self.params.items()}
        ids, hits = (to_device(a[share], self.device) for a in (tokens, targets))
        part = len(ids) / c.batch_size
        out = loss(params, ids, hits, c, batch_tokens=tokens.size, weight=part * c.loss_scale, ops=self.ops)
        if not isfinite(value := float(out.data)):
            raise Diverged(step, value, c)
        backpropagate(out, keep=keep)
        grads = {name: t.grad for name, t in params.items() if t.grad is not None}
        # blocks of them are added to in place, through flat views
        return out, part * value, {name: xp_of(g).ascontiguousarray(g) for name, g in grads.items()}

    def _add_up(self, i: int, grads: list[Arrays]) -> float:
        """Add all threads' gradients to the first's, and their squares up, over every n-th block of the weights."""
        squares = []
        for _, (first, *others) in self.threads.deal(blocks(*grads), i):
            for other in others:
                first += other
            squares.append(xp_of(first).vdot(first, first))
        return float(sum(squares))  # float once: on a GPU each one waits

    def validate(self, batches: int = 32) -> float:
        """Mean loss over `batches` batches spread evenly over the validation text."""
        c, losses = self.config, []
        for tokens, targets in windows(self.corpus.valid, seq_len=c.seq_len, batch_size=c.batch_size, count=batches):
            out = loss(self.params, to_device(tokens, self.device), to_device(targets, self.device), c)
            losses.append(float(out.data))
        return sum(losses) / len(losses)

    def save(self, path: Path, step: int, seconds: float) -> None:
        """A checkpoint of the state after `step` updates."""
        arrays = {f"params/{name}": w for name, w in self.params.items()} | self.optimizer.state()
        model = {f.name: getattr(self.config, f.name) for f in fields(ModelConfig)}
        checkpoint.save(path, arrays, {"model": model, "step": step, "seconds": seconds, "microumup": __version__})

    def load(self, path: Path) -> tuple[int, float]:
        """Continue from a checkpoint: the number of updates behind it, and the seconds they took."""
        arrays, info = checkpoint.load(path)
        arrays = {name: to_device(array, self.device) for name, array in arrays.items()}
        for name in self.params:
            self.params[name] = arrays[f"params/{name}"]
        self.optimizer.load_state(arrays, info["step"])
        return info["step"], info["seconds"]


def train(
    config: TrainConfig, corpus: Corpus, run_dir: Path | None = None, *, device: str = "cpu", quiet: bool = True,
    save_every: int = 250, watch: Watch | None = None, watch_every: int = 0,
) -> tuple[Trainer, Result]:  # fmt: skip
    """Train to the end, and say how it went. With a `run_dir` that holds a checkpoint, continue from there.

    Without a run directory nothing is written. `watch` is called every `watch_every` steps and at the last one.
    Raises Diverged when the loss is no number any more.
    """
    c, trainer, losses, start, before = config, Trainer(config, corpus, device), [], 0, 0.0
    tokens_per_step = c.batch_size * c.seq_len
    saved = run_dir / "checkpoint.safetensors" if run_dir else None
    metrics = run_dir / "metrics.jsonl" if run_dir else None
    if saved and metrics and saved.exists():
        start, before = trainer.load(saved)
        lines = metrics.read_text().splitlines()[:start]
        losses = [json.loads(line)["loss"] for line in lines]
        metrics.write_text("".join(line + "\n" for line in lines))
    began = last = perf_counter()
    bar = tqdm(total=c.steps, initial=start, disable=True if quiet else None, unit="step", dynamic_ncols=True)
    log = metrics.open("a" if start else "w", buffering=1) if metrics else None
    try:
        for step in range(start, c.steps):
            watched = watch if watch_every and (step % watch_every == 0 or step == c.steps - 1) else None
            value, norm, s = trainer.update(step, watch=watched)
            losses.append(value)
            now = perf_counter()
            speed, last = tokens_per_step / (now - last), now
            if log:
                line = {
                    "step": step,
                    "loss": value,
                    "lr": s * c.eta,
                    "grad_norm": norm,
                    "tokens_per_second": round(speed),
                }
                log.write(json.dumps(line) + "\n")
            if saved and ((step + 1) % save_every == 0 or step + 1 == c.steps):
                trainer.save(saved, step + 1, before + now - began)
            bar.set_postfix_str(f"loss {value:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update()
    finally:
        bar.close()
        if log:
            log.close()
    seconds = before + perf_counter() - began
    tail = losses[-max(1, round(0.05 * c.steps)) :]
    return trainer, {
        "scheme": c.scheme, "width": c.width, "steps": c.steps, "tokens": c.steps * tokens_per_step,
        "loss_first": losses[0], "loss_final": sum(tail) / len(tail), "loss_valid": trainer.validate(),
        "seconds": round(seconds, 3), "tokens_per_second": round(c.steps * tokens_per_step / seconds),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The command


def new_run_dir(out: Path | None, config: TrainConfig) -> Path:
    """Make the run directory `out`, or runs/DATE-TIME-SCHEME-wWIDTH, and write config.json into it.

    Raises ValueError when `out` exists and is not empty: nothing is ever overwritten.
    """
    if out is None:
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{config.scheme}-w{config.width}"
        taken = sum(1 for _ in Path("runs").glob(f"{stem}*"))
        out = Path("runs") / (f"{stem}-{taken + 1}" if taken else stem)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        unfinished = (out / "config.json").exists() and not (out / "result.json").exists()
        mend = f"continue it with --resume {out}, or name another" if unfinished else "name another"
        raise ValueError(f"--out: {out} exists and is not an empty directory; {mend}")
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(out / "config.json", asdict(config))
    return out


def load_config(run_dir: Path) -> TrainConfig:
    """The config of a run. Raises ValueError when there is none."""
    path = run_dir / "config.json"
    if not path.exists():
        raise ValueError(f"{run_dir} holds no run, there is no config.json in it")
    try:
        options = without_retired(json.loads(path.read_text()))
        return TrainConfig(**options | {"text": tuple(options["text"])})
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a config of microumup {__version__} ({error})") from None


def suitable_threads(config: TrainConfig) -> int:
    """A thread for each core that gets WORK_PER_THREAD or more of a batch, and a sequence or more."""
    c = config
    return max(1, min(cores(), c.batch_size, c.batch_size * c.seq_len * c.width // WORK_PER_THREAD))


def casts_or_fp8(config: ModelConfig) -> dict[str, LinearFormats]:
    """What the model casts to, or would in FP8 if it casts nothing: the formats to hold its scales against."""
    return parse_recipe("fp8" if config.fp8 == "none" else config.fp8)


def main(argv: list[str] | None = None) -> int:
    """The command `train`."""
    parser = cli.Parser(
        "train",
        "Train a Llama on text. Without options: u-µP on State of the Union addresses, under a minute on a laptop.",
        examples="  microumup train --width 128             twice as wide at the same learning rate\n"
        "  microumup train --fp8 fp8               every linear's x, w and dy cast to FP8\n"
        "  microumup train --scheme sp --lr 2^-7   the standard parametrization\n"
        "  microumup train --text my_novel.txt     on a text of your own",
    )
    cli.add_options(parser, TrainConfig)
    sizes = "tiny: under a minute (default), laptop: minutes, paper: Table 6, for a GPU; other options override it"
    parser.add_argument("--preset", choices=PRESETS, default="tiny", metavar="NAME", help=sizes)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: a new one under runs/)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR, with its options")
    cli.shared(parser, "device", "quiet", json="the result")
    parser.add_rare(
        parser.add_argument("--save-every", type=cli.whole, default=250, metavar="N", help="between checkpoints (250)"),
        parser.add_argument("--log-scales", type=cli.whole, default=0, metavar="EVERY", help="steps between two looks "
                            "at the range of every x, w and dy, for the command scales (default: none)"),
    )  # fmt: skip
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    with cli.bad_input(parser):
        options = cli.given(args, TrainConfig)
        check_least(args, save_every=1, log_scales=0)
        if args.resume and (options or args.out):
            extra = ", ".join(map(option_name, (*options, *(["out"] if args.out else []))))
            raise ValueError(f"--resume: takes its options from the run; leave out {extra}")
        if args.resume and not (args.resume / "config.json").exists():
            raise ValueError(f"--resume: {args.resume} holds no run, there is no config.json in it")
        if args.resume and (args.resume / "result.json").exists():
            raise ValueError(f"--resume: the run in {args.resume} is finished; see its result.json")
        device = choose_device(args.device)
        options = PRESETS[args.preset] | options
        config = load_config(args.resume) if args.resume else TrainConfig(**options)
        if device == "cpu" and not args.resume and "threads" not in options:
            config = replace(config, threads=suitable_threads(config))
        text = [Path(path) for path in config.text]
        if config.vocab_size > BYTES:
            say(f"learning {config.vocab_size:,} tokens from the text, which takes a while; once, then they are cached")
        corpus = load_corpus(config.corpus, text=text, vocab_size=config.vocab_size, seq_len=config.seq_len)
        run_dir = args.resume or new_run_dir(args.out, config)
        if not args.resume:
            corpus.tokenizer.save(run_dir)

    count = sum(int(np.prod(w.shape)) for w in weights(config).values())
    c = config
    say(
        f"{c.scheme}, {c.layers} layers of width {c.width}, {count:,} parameters; lr {c.eta:g}, seed {c.seed}; {device}"
    )
    say(f"{corpus.name}, {len(corpus.train):,} training tokens; {c.steps} steps of {c.batch_size} x {c.seq_len} tokens")
    say(f"writing to {run_dir}")

    def watch(step: int, losses: list[Tensor]) -> None:
        log_scales(run_dir, step, losses, casts_or_fp8(config))

    try:
        trainer, result = train(
            config, corpus, run_dir, device=device, quiet=args.quiet, save_every=args.save_every,
            watch=watch, watch_every=args.log_scales,
        )  # fmt: skip
    except Diverged as error:
        print(f"microumup train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"microumup train: interrupted; continue with --resume {run_dir}", file=sys.stderr)
        return 130
    result["run_dir"] = str(run_dir)
    checkpoint.write_json(run_dir / "result.json", result)
    first, final, valid = (result[f"loss_{which}"] for which in ("first", "final", "valid"))
    say(f"loss {first:.3f} -> {final:.3f} nats per token (mean of the last 5 % of steps), validation {valid:.3f}")
    say(f"{result['seconds']:.1f} s, {result['tokens_per_second']:,} tokens/s")
    if not args.quiet:
        sample = generate(trainer.params, config, corpus.tokenizer.encode("\n"), 300, temperature=0.5, seed=config.seed)
        say(f"\n--- a sample; more with: microumup generate {run_dir}\n{corpus.tokenizer.decode(sample)}\n---")
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    cli.run(main)
