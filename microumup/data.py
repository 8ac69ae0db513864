"""Text in, batches out: corpora, tokenizers, the train/validation split.

Legend: B windows in a batch, T = seq_len tokens in a window. A split is a 1-D array of tokens, uint8 for bytes and
uint16 for BPE. Nothing here has state: a batch is a function of (tokens, seed, step), so a resumed run sees the
batches that it would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from microumup import token_files
from microumup.backend import Array
from microumup.corpora import BYTES, Source, Tokenizer

# ---- Batches ----


def batch(tokens: Array, *, seq_len: int, batch_size: int, seed: int, step: int) -> tuple[Array, Array]:
    """The training batch of a step: inputs and targets, each int64 (B, T); a target is the token after its input.

    The B windows start at places drawn, by (seed, step) alone, uniformly from all that leave room for T + 1 tokens.
    Raises ValueError when no window fits or a size is below 1.
    """
    _check_sizes(tokens, seq_len, batch_size)
    starts = np.random.default_rng((seed, step)).integers(len(tokens) - seq_len, size=batch_size)  # (B,)
    return _cut(tokens, starts, seq_len)


def windows(tokens: Array, *, seq_len: int, batch_size: int, count: int) -> Iterator[tuple[Array, Array]]:
    """`count` batches like those of `batch`, spread evenly over the tokens: always the same, for validation.

    No target comes twice: a text too short for that gives fewer batches. There is always one, in which windows
    overlap if they must. With a count of 0 every token but the first is a target once, and the last windows are fewer
    and shorter. Raises ValueError when no window fits or a size is below 1.
    """
    _check_sizes(tokens, seq_len, batch_size, count or 1)
    disjoint = (len(tokens) - 1) // seq_len  # as many windows fit without a target in common
    if count == 0:
        return _every_window(tokens, seq_len, batch_size, disjoint)
    count = max(1, min(count, disjoint // batch_size))
    number = np.arange(count * batch_size)
    starts = number * (len(tokens) - seq_len - 1) // max(1, len(number) - 1)
    return (_cut(tokens, rows, seq_len) for rows in starts.reshape(count, batch_size))


def _every_window(tokens: Array, seq_len: int, batch_size: int, whole: int) -> Iterator[tuple[Array, Array]]:
    for i in range(0, whole, batch_size):
        yield _cut(tokens, np.arange(i, min(i + batch_size, whole)) * seq_len, seq_len)
    if rest := len(tokens) - 1 - whole * seq_len:
        yield _cut(tokens, np.array([whole * seq_len]), rest)


def _cut(tokens: Array, starts: Array, seq_len: int) -> tuple[Array, Array]:
    rows = tokens[starts[:, None] + np.arange(seq_len + 1)]  # (B, T + 1)
    return rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)


def _check_sizes(tokens: Array, seq_len: int, batch_size: int, count: int = 1) -> None:
    for name, value in (("seq_len", seq_len), ("batch_size", batch_size), ("count", count)):
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")
    if tokens.ndim != 1 or len(tokens) <= seq_len:
        raise ValueError(f"tokens: shape {tokens.shape} has no window of seq_len + 1 = {seq_len + 1}; give more text")


# ---- Corpora ----


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens to train on, tokens to validate on, and the tokenizer that made both."""

    name: str
    train: Array  # (tokens,), uint8 or uint16
    valid: Array
    tokenizer: Tokenizer
    sources: tuple[Source, ...] = ()  # the texts that all of it follows from

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes of the validation text over its tokens."""
        if self.tokenizer.vocab_size == BYTES:
            return 1.0
        return len(self.tokenizer.decode(self.valid).encode()) / len(self.valid)


def load_corpus(
    name: str = "sotu", *, text: Sequence[Path | str] = (), valid: Sequence[Path | str] = (), vocab_size: int = BYTES,
    seq_len: int,
) -> Corpus:  # fmt: skip
    """Read the corpus `name`, `sotu` or `wikitext-103`, or the UTF-8 files `text` instead, and tokenize it.

    The files `valid` are held out, and all of the text is trained on; without them `corpora.split` holds out 5 %.
    `vocab_size` 256 is raw bytes; larger is a byte-level BPE of that size, learned from the training split and cached
    with the tokens in $MICROUMUP_CACHE (default ~/.cache/microumup). `wikitext-103` keeps its own splits, and has to
    lie there already: `microumup data prepare` makes it. Raises ValueError, which names the option and the file, for a
    text that is missing, unreadable, empty, binary or without a window of seq_len + 1 tokens in each split; for an
    unknown name, a damaged cache, a vocabulary too large for the text, a missing extra.
    """
    option, name, tokens = token_files.load(name, text, valid, vocab_size)
    corpus = Corpus(name, *tokens)
    for which, split in ((option, corpus.train), ("--valid" if valid else option, corpus.valid)):
        if len(split) <= seq_len:
            part = "" if valid else "the validation split (5 %) of "
            found = f"{part}it has {len(split)} tokens and a window needs seq_len + 1 = {seq_len + 1}"
            raise ValueError(f"{which}: too short, {found}; give a longer text or a smaller --seq-len")
    return corpus
