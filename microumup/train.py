"""`python -m microumup.train`: the options of a run, its directory, and what is said of it."""

import json
import sys
from dataclasses import replace
from math import prod
from pathlib import Path

from microumup import checkpoint, cli
from microumup.backend import choose_device
from microumup.config import PRESETS, TrainConfig, check_least, option_name
from microumup.cpu import cores
from microumup.data import BYTES, load_corpus
from microumup.engine import Tensor
from microumup.generate import generate
from microumup.plan import weights
from microumup.ranges import casts_or_fp8, log_scales
from microumup.run_dir import load_config, new_run_dir
from microumup.trainer import Diverged, train

WORK_PER_THREAD = 1 << 15  # tokens · width: 512 tokens at width 64; with less, threads wait for the interpreter


def suitable_threads(config: TrainConfig) -> int:
    """A thread for each core that gets WORK_PER_THREAD or more of a batch, and a sequence or more."""
    c = config
    return max(1, min(cores(), c.batch_size, c.batch_size * c.seq_len * c.width // WORK_PER_THREAD))


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

    count = sum(prod(w.shape) for w in weights(config).values())
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
        prompt = corpus.tokenizer.encode("\n")
        sample = generate(trainer.params, trainer.plan, prompt, 300, temperature=0.5, seed=c.seed)
        say(f"\n--- a sample; more with: microumup generate {run_dir}\n{corpus.tokenizer.decode(sample)}\n---")
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    cli.run(main)
