"""`python -m microumup.train`: the options of a run, its directory, and what is said of it."""

import argparse
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from microumup import cli
from microumup.backend import choose_device
from microumup.config import PRESETS, TrainConfig
from microumup.corpora import BYTES
from microumup.cpu import cores
from microumup.data import load_corpus
from microumup.devices import use_tf32
from microumup.diverged import Diverged
from microumup.generate import generate
from microumup.limits import check_memory, option_name
from microumup.plan import weights
from microumup.ranges import casts_or_fp8, log_scales
from microumup.records import Command, Record, told
from microumup.run_dir import RunDir, unfinished
from microumup.token_files import PREPARED
from microumup.trainer import train

Tune = Callable[[Path, TrainConfig, bool], tuple[TrainConfig, Record]]  # η from a sweep, if none is given; its origin
WORK_PER_THREAD = 1 << 15  # tokens · width: 512 tokens at width 64; with less, threads wait for the interpreter


def suitable_threads(config: TrainConfig) -> int:
    """A thread for each core that gets WORK_PER_THREAD or more of a batch, and a sequence or more."""
    c = config
    return max(1, min(cores(), c.batch_size, c.batch_size * c.seq_len * c.width // WORK_PER_THREAD))


def untuned(*_: object) -> NoReturn:
    """Say who finds η in sweeps: this command is of the book, which knows none."""
    raise ValueError("--from-sweep: is read by microumup train; write that in place of python -m microumup.train")


def main(argv: list[str] | None = None, tune: Tune = untuned) -> int:
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
    cli.add_options(parser, Command)
    sizes = "tiny: under a minute (default), laptop: minutes, paper: Table 6, for a GPU; other options override it"
    parser.add_argument("--preset", choices=PRESETS, metavar="NAME", help=sizes)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: a new one under runs/)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR, with its options")
    cli.shared(parser, "device", "quiet", json="the result")
    tuned = parser.add_argument("--from-sweep", type=Path, metavar="DIR", help="η by transfer, from this sweep")
    parser.add_rare(tuned)
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    with cli.bad_input(parser):
        device = choose_device(args.device)
        run = _run(args, device, say, tune)
    try:
        with run:
            return _train(run, device, args, say)
    except Diverged as error:
        parser.complain(str(error))
        return 1
    except KeyboardInterrupt:
        parser.complain(f"interrupted; continue with --resume {run.path}")
        return 128 + (run.asked or signal.SIGINT)
    except OSError as error:
        if error.filename is None:  # not the run's: standard output is gone
            raise
        parser.complain(f"{error}; mend it and continue with --resume {run.path}")
        return 1


def _run(args: argparse.Namespace, device: str, say: Callable[..., None], tune: Tune) -> RunDir:
    """The run that was asked for, new or to be continued, with its corpus. Raises ValueError for what cannot be."""
    given, asked, record = cli.given(args, TrainConfig), cli.given(args, Command), dict[str, Any]()
    command = Command(**asked)
    if args.resume:
        others = [name for name in ("preset", "out", "from_sweep") if getattr(args, name) is not None]
        if words := ", ".join(map(option_name, [*given, *asked, *others])):
            raise ValueError(f"--resume: takes its options from the run; leave out {words}")
        c = unfinished(args.resume)
    else:
        c = TrainConfig(**PRESETS[args.preset or "tiny"] | given)
        if device == "cpu" and "threads" not in given:
            c = replace(c, threads=suitable_threads(c))
        if args.from_sweep:
            c, record["from_sweep"] = tune(args.from_sweep, c, "lr" in given)
        check_memory(c)
    use_tf32(c.tf32, device)  # or say so now
    if c.vocab_size > BYTES and (c.text or c.corpus != PREPARED):
        say(f"learning {c.vocab_size:,} tokens from the text, which takes a while; once, then they are cached")
    corpus = load_corpus(c.corpus, text=c.text, valid=c.valid, vocab_size=c.vocab_size, seq_len=c.seq_len)
    if not args.resume:
        return RunDir.create(args.out, c, corpus, command, **record)
    run = RunDir.resume(args.resume, corpus)
    say(f"continuing at step {run.step:,} of {run.config.steps:,}")
    return run


def _train(run: RunDir, device: str, args: argparse.Namespace, say: Callable[..., None]) -> int:
    c, corpus = run.config, run.corpus
    count = sum(prod(w.shape) for w in weights(c).values())
    say(
        f"{c.scheme}, {c.layers} layers of width {c.width}, {count:,} parameters; lr {c.eta:g}, seed {c.seed}; {device}"
    )
    say(f"{corpus.name}, {len(corpus.train):,} training tokens; {c.steps} steps of {c.batch_size} x {c.seq_len} tokens")
    say(f"writing to {run.path}")

    watch, every = partial(log_scales, run.path, recipe=casts_or_fp8(c)), run.command.log_scales
    trainer, result = train(c, corpus, run, device=device, quiet=args.quiet, watch=watch, watch_every=every)
    result["run_dir"] = str(run.path)
    run.finish(result)
    say(told(result))
    if not args.quiet:
        prompt = corpus.tokenizer.encode("\n")
        sample = generate(trainer.params, trainer.plan, prompt, 300, temperature=0.5, seed=c.seed)
        say(f"\n--- a sample; more with: microumup generate {run.path}\n{corpus.tokenizer.decode(sample)}\n---")
    cli.json_line(args, result)
    return 0


if __name__ == "__main__":
    cli.run(main)
