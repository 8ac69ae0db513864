"""Text from a trained model: `python -m microumup generate RUN_DIR --prompt "The people "`."""

from collections.abc import Sequence
from dataclasses import fields
from math import inf
from pathlib import Path

import numpy as np

from microumup import cli, corpora, ops
from microumup.backend import Array, choose_device, to_device, to_host, xp_of
from microumup.config import ModelConfig, TrainConfig
from microumup.corpora import BYTES, ByteTokenizer, Tokenizer
from microumup.diverged import Diverged, check_finite
from microumup.limits import check_least
from microumup.model import Cache, trunk
from microumup.plan import Plan, plan, weights
from microumup.run_dir import load_checkpoint, read_config


def generate(
    params: dict[str, Array], plan: Plan, prompt: Sequence[int] | Array, count: int, *,
    temperature: float = 1.0, top_k: int = 0, seed: int = 0, use_cache: bool = True,
) -> list[int]:  # fmt: skip
    """`count` tokens that continue `prompt` (at least one token). The same seed gives the same tokens.

    Each is drawn from softmax(α_loss-softmax · logits / temperature), of the `top_k` likeliest tokens alone if top_k
    is not 0; temperature 0 takes the likeliest. The model sees at most its seq_len tokens: when they are full, the
    latest half is kept and the cache is built anew. Without the cache the same tokens come out, in more time.
    """
    tokens, start, cache = list(map(int, prompt)), 0, Cache()
    if not 0 <= temperature < inf:
        raise ValueError(f"--temperature: {temperature} is no finite number of 0 or more")
    if not tokens:
        raise ValueError("--prompt: is empty; give at least one character to continue")
    rng, config, xp = np.random.default_rng(seed), plan.config, xp_of(params["embedding"])
    for _ in range(count):
        if len(tokens) - start > config.seq_len:
            start, cache = len(tokens) - config.seq_len // 2, Cache()
        new = tokens[start + cache.length :] if use_cache else tokens[start:]
        last = trunk(params, xp.asarray(np.array([new])), plan, cache if use_cache else None).data[0, -1:]  # (1, D)
        logits = to_host(ops.linear(last, params["head"], **plan.linears["head"]._asdict()).data[0])  # (V,)
        check_finite(None, "largest logit", float(abs(logits).max()), config)
        tokens.append(_draw(config.alpha_loss_softmax * logits.astype(np.float64), temperature, top_k, rng))
    return tokens[len(tokens) - count :]


def _draw(logits: Array, temperature: float, top_k: int, rng: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        unlikely = np.argsort(-logits, kind="stable")[top_k:]  # of equals the first are kept
        logits = logits.copy()
        logits[unlikely] = -np.inf
    with np.errstate(over="ignore"):  # -∞ is as good as what a tiny temperature makes
        p = np.exp((logits - logits.max()) / temperature).cumsum()
    return int(np.searchsorted(p, rng.random() * p[-1], side="right"))


def load_model(run_dir: Path) -> tuple[TrainConfig, dict[str, Array], int]:
    """Config and params of a run's checkpoint, and the number of its updates. Raises ValueError when there is none."""
    config, _, record = read_config(run_dir)
    arrays, info = load_checkpoint(run_dir, config, record["id"])
    return config, {name: arrays[f"params/{name}"] for name in weights(config)}, info["step"]


def load_tokenizer(run_dir: Path) -> Tokenizer:
    """The tokenizer of a run: bytes, or the BPE in its `tokenizer.json`.

    Raises ValueError when that file is missing or not the run's, or the extra `data` is missing.
    """
    config, _, record = read_config(run_dir)
    if config.vocab_size == BYTES:
        return ByteTokenizer()
    return corpora.load_bpe(run_dir / "tokenizer.json", record.get("tokenizer"))


def load_run(run_dir: Path, device: str = "cpu") -> tuple[Plan, dict[str, Array], Tokenizer]:
    """The model of a run directory: plan, params and tokenizer.

    Raises ValueError when there is none, and Diverged when its weights are no numbers any more.
    """
    config, arrays, step = load_model(run_dir)
    for name, w in arrays.items():
        check_finite(step, f"largest element of {name}", float(abs(w).max()), config)
    params = {name: to_device(w, device) for name, w in arrays.items()}
    model = ModelConfig(**{f.name: getattr(config, f.name) for f in fields(ModelConfig)})
    return plan(model, batch_tokens=1), params, load_tokenizer(run_dir)  # nothing is differentiated


def main(argv: list[str] | None = None) -> int:
    """The command `generate`."""
    parser = cli.Parser(
        "generate",
        "Let a trained model continue a text. The same seed gives the same continuation.",
        operands="RUN_DIR",
        examples='  microumup generate runs/mine --prompt "The people of" --temperature 0.5',
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run directory that train wrote")
    parser.add_argument("--prompt", default="\n", help="text to continue (default: a new line)")
    parser.add_argument("--tokens", type=cli.whole, default=400, metavar="N", help="tokens to add (default: 400)")
    parser.add_argument(
        "--temperature", type=cli.number, default=0.8, metavar="X",
        help="below 1 safer, above 1 wilder, 0 always the likeliest (default: 0.8)",
    )  # fmt: skip
    parser.add_argument(
        "--top-k", type=cli.whole, default=0, metavar="N", help="of the N likeliest only (default: all)"
    )
    cli.shared(parser, "device", seed="of the draws", json="prompt, text, tokens, seed; and print nothing else")
    args = parser.parse_args(argv)
    settings = {"temperature": args.temperature, "top_k": args.top_k, "seed": args.seed}
    with cli.bad_input(parser):
        check_least(args, tokens=1, temperature=0, top_k=0, seed=0)
        try:
            numbers, params, tokenizer = load_run(args.run_dir, choose_device(args.device))
            tokens = generate(params, numbers, tokenizer.encode(args.prompt), args.tokens, **settings)
        except Diverged as error:
            parser.complain(f"{args.run_dir} {error}")
            return 1
    text = tokenizer.decode(tokens)
    cli.say(args.json)(args.prompt + text)
    cli.json_line(args, {"prompt": args.prompt, "text": text, "tokens": len(tokens), "seed": args.seed})
    return 0


if __name__ == "__main__":
    cli.run(main)
