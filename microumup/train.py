"""`python -m microumup.train`: the options of a run, its directory, and what is said of it."""

import argparse
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from microumup import cli
from microumup.backend import choose_device
from microumup.config import PRESETS, TrainConfig
from microumup.corpora import BYTES
from microumup.cpu import cores
from microumup.data import Corpus, load_corpus
from microumup.devices import use_tf32
from microumup.diverged import Diverged
from microumup.engine import Tensor
from microumup.generate import generate
from microumup.limits import check_least, check_memory, option_name
from microumup.plan import weights
from microumup.ranges import casts_or_fp8, log_scales
from microumup.run_config import Command, unfinished
from microumup.run_dir import RunDir
from microumup.token_files import PREPARED
from microumup.trainer import train

Tune = Callable[[Path, TrainConfig], tuple[float, dict[str, Any]]]  # η for a config from a sweep, and its record
WORK_PER_THREAD = 1 << 15  # tokens · width: 512 tokens at width 64; with less, threads wait for the interpreter


def suitable_threads(config: TrainConfig) -> int:
    """A thread for each core that gets WORK_PER_THREAD or more of a batch, and a sequence or more."""
    c = config
    return max(1, min(cores(), c.batch_size, c.batch_size * c.seq_len * c.width // WORK_PER_THREAD))


def main(argv: list[str] | None = None, tune: Tune | None = None) -> int:
    """The command `train`; `tune` is what --from-sweep calls."""
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
    parser.add_argument("--preset", choices=PRESETS, metavar="NAME", help=sizes)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: a new one under runs/)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR, with its options")
    cli.shared(parser, "device", "quiet", json="the result")
    parser.add_rare(
        parser.add_argument("--from-sweep", type=Path, metavar="DIR", help="η by transfer, from this sweep"),
        parser.add_argument("--save-minutes", type=cli.number, metavar="X", help="between checkpoints at most (5)"),
        parser.add_argument("--save-every", type=cli.whole, metavar="N", help="steps between checkpoints, if sooner"),
        parser.add_argument("--log-every", type=cli.whole, metavar="N",
                            help="steps between two waits for the device's losses (1 on a CPU, 10 on a GPU)"),
        parser.add_argument("--eval-every", type=cli.whole, metavar="N",
                            help="steps between two validations, for metrics.jsonl and curve (default: the end alone)"),
        parser.add_argument("--log-scales", type=cli.whole, metavar="EVERY", help="steps between two looks "
                            "at the range of every x, w and dy, for the command scales (default: none)"),
    )  # fmt: skip
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    with cli.bad_input(parser):
        device = choose_device(args.device)
        run = _resumed(args, device, say) if args.resume else _new(args, device, say, tune)
    try:
        with run:
            return _train(run, device, args, say)
    except Diverged as error:
        parser.complain(str(error))
        return 1
    except KeyboardInterrupt:
        parser.complain(f"interrupted; continue with --resume {run.path}")
        return 128 + (run.stop.signal or signal.SIGINT)
    except OSError as error:
        if error.filename is None:  # not the run's: standard output is gone
            raise
        parser.complain(f"{error}; mend it and continue with --resume {run.path}")
        return 1


def _new(args: argparse.Namespace, device: str, say: Callable[..., None], tune: Tune | None) -> RunDir:
    given = cli.given(args, TrainConfig)
    config = TrainConfig(**PRESETS[args.preset or "tiny"] | given)
    text, valid = (tuple(map(os.path.abspath, paths)) for paths in (config.text, config.valid))
    config = replace(config, text=text, valid=valid)  # the same from another directory
    if device == "cpu" and "threads" not in given:
        config = replace(config, threads=suitable_threads(config))
    command = Command(**{name: value for name in Command._fields if (value := getattr(args, name)) is not None})
    if args.from_sweep:
        if "lr" in given:
            raise ValueError("--lr: --from-sweep finds it; leave out the one or the other")
        if tune is None:
            raise ValueError(
                "--from-sweep: is read by microumup train; write that in place of python -m microumup.train"
            )
        lr, origin = tune(args.from_sweep, config)
        config, command = replace(config, lr=lr), command._replace(from_sweep=origin)
    check_least(command, save_every=1, save_minutes=0, log_scales=0, log_every=0, eval_every=0)
    check_memory(config)
    use_tf32(config.tf32, device)
    return RunDir.create(args.out, config, _corpus(config, say), command)


def _resumed(args: argparse.Namespace, device: str, say: Callable[..., None]) -> RunDir:
    other = [name for name in ("preset", "out", *Command._fields) if getattr(args, name) is not None]
    if given := [*cli.given(args, TrainConfig), *other]:
        raise ValueError(f"--resume: takes its options from the run; leave out {', '.join(map(option_name, given))}")
    config = unfinished(args.resume)
    use_tf32(config.tf32, device)
    run = RunDir.resume(args.resume, _corpus(config, say))
    say(f"continuing at step {run.step:,} of {run.config.steps:,}")
    return run


def _corpus(config: TrainConfig, say: Callable[..., None]) -> Corpus:
    if config.vocab_size > BYTES and (config.text or config.corpus != PREPARED):
        say(f"learning {config.vocab_size:,} tokens from the text, which takes a while; once, then they are cached")
    c = config
    return load_corpus(c.corpus, text=c.text, valid=c.valid, vocab_size=c.vocab_size, seq_len=c.seq_len)


def _train(run: RunDir, device: str, args: argparse.Namespace, say: Callable[..., None]) -> int:
    c, corpus = run.config, run.corpus
    count = sum(prod(w.shape) for w in weights(c).values())
    say(
        f"{c.scheme}, {c.layers} layers of width {c.width}, {count:,} parameters; lr {c.eta:g}, seed {c.seed}; {device}"
    )
    say(f"{corpus.name}, {len(corpus.train):,} training tokens; {c.steps} steps of {c.batch_size} x {c.seq_len} tokens")
    say(f"writing to {run.path}")

    def watch(step: int, losses: list[Tensor]) -> None:
        log_scales(run.path, step, losses, casts_or_fp8(c))

    trainer, result = train(
        c, corpus, run, device=device, quiet=args.quiet, watch=watch, watch_every=run.command.log_scales
    )
    result["run_dir"] = str(run.path)
    run.finish(result)
    first, final, valid = (result[f"loss_{which}"] for which in ("first", "final", "valid"))
    say(f"loss {first:.3f} -> {final:.3f} nats per token (mean of the last 5 % of steps)")
    say(f"validation {valid:.3f} nats per token, {result['bits_per_byte']:.3f} bits per byte")
    if c.clip:
        say(f"gradients clipped in {result['clipped']:.1%} of the steps")
    say(f"{result['seconds']:.1f} s, {result['tokens_per_second']:,} tokens/s")
    if not args.quiet:
        prompt = corpus.tokenizer.encode("\n")
        sample = generate(trainer.params, trainer.plan, prompt, 300, temperature=0.5, seed=c.seed)
        say(f"\n--- a sample; more with: microumup generate {run.path}\n{corpus.tokenizer.decode(sample)}\n---")
    cli.json_line(args, result)
    return 0


if __name__ == "__main__":
    cli.run(main)
