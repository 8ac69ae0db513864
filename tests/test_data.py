"""Text in, batches out. Where texts come from is a matter of test_corpora."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from test_corpora import load_text, write

from microumup import data
from microumup.corpora import ByteTokenizer
from microumup.data import batch, load_corpus, windows

# ---- Which corpora there are ----


def test_shortest_text_gives_each_split_one_window(tmp_path):
    # 100 blocks of 2 bytes: the validation split has 10 tokens, so a window of 9 + 1
    path = write(tmp_path / "a.txt", b"ab" * 100)
    corpus = load_text(path, seq_len=9)
    assert len(corpus.valid) == 10
    with pytest.raises(
        ValueError, match=rf"^--text {path}: too short, .* 10 tokens .* seq_len \+ 1 = 11; .*--seq-len$"
    ):
        load_text(path, seq_len=10)


def test_unknown_corpus_is_named():
    with pytest.raises(ValueError, match=r"^--corpus shakespeare: unknown; use sotu, wikitext-103, or --text FILE$"):
        load_corpus("shakespeare", seq_len=8)


@pytest.mark.parametrize("vocab_size", [-1, 0, 255, 65537])
def test_impossible_vocabulary_is_named(vocab_size):
    with pytest.raises(ValueError, match=rf"^--vocab-size {vocab_size}: take 256 for bytes, or up to 65536 for BPE$"):
        load_corpus(vocab_size=vocab_size, seq_len=8)


def test_import_takes_only_numpy():
    tree = ast.parse(Path(data.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"numpy", "microumup"}


# ---- Tokenizers ----


@pytest.mark.parametrize("text", ["", "The Union", "Zürich, 日本, 🙂\r\n\t"])
def test_bytes_decode_to_the_text(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text).tobytes() == text.encode()


def test_bytes_of_a_cut_character_decode_to_the_replacement():
    ids = ByteTokenizer().encode("aü")[:-1].astype(np.int64)
    assert ByteTokenizer().decode(ids) == "a\N{REPLACEMENT CHARACTER}"


# ---- Batches ----


TOKENS = np.arange(100, dtype=np.uint8)


def test_batch_targets_are_the_next_tokens():
    inputs, targets = batch(TOKENS, seq_len=7, batch_size=5, seed=0, step=3)
    assert inputs.shape == targets.shape == (5, 7)
    assert inputs.dtype == targets.dtype == np.int64
    assert (targets == inputs + 1).all()  # as TOKENS counts up
    assert (np.diff(inputs, axis=1) == 1).all()


def test_batch_depends_on_seed_and_step_alone():
    def first(seed, step):
        return batch(np.arange(10_000), seq_len=4, batch_size=8, seed=seed, step=step)[0].tolist()

    assert first(0, 5) == first(0, 5)
    assert len({str(first(seed, step)) for seed in range(3) for step in range(3)}) == 9


def test_batch_is_pinned():
    # a resumed run must see the batches of the version that began it
    inputs, _ = batch(np.arange(10_000), seq_len=2, batch_size=6, seed=1, step=2)
    assert inputs[:, 0].tolist() == [6431, 4483, 9382, 4307, 879, 4199]


def test_batch_draws_every_window_and_no_other():
    # 6 windows in 12 tokens; that 400 fair draws miss one of them has the probability 6 (5/6)^400 = 1e-31
    inputs, targets = batch(np.arange(12), seq_len=6, batch_size=400, seed=0, step=0)
    assert set(inputs[:, 0].tolist()) == {0, 1, 2, 3, 4, 5}
    assert targets.max() == 11


def test_the_only_window_is_drawn():
    inputs, targets = batch(np.arange(5), seq_len=4, batch_size=2, seed=0, step=0)
    assert inputs.tolist() == [[0, 1, 2, 3]] * 2
    assert targets.tolist() == [[1, 2, 3, 4]] * 2


def test_windows_are_disjoint_and_reach_both_ends():
    batches = list(windows(TOKENS, seq_len=4, batch_size=3, count=8))  # 24 of the 24 that fit
    assert len(batches) == 8
    targets = np.concatenate([targets for _, targets in batches])
    assert all((targets == inputs + 1).all() for inputs, targets in batches)
    assert len(set(targets.ravel().tolist())) == targets.size == 96
    assert batches[0][0][0, 0] == 0
    assert targets.max() == 99


def test_windows_are_spread_evenly():
    starts = np.concatenate(
        [inputs[:, 0] for inputs, _ in windows(np.arange(100_000), seq_len=8, batch_size=5, count=4)]
    )
    gaps = np.diff(starts)
    assert len(starts) == 20
    assert gaps.max() - gaps.min() <= 1
    assert starts[-1] + 8 == 99_999


def test_windows_repeat():
    one, two = (list(windows(TOKENS, seq_len=4, batch_size=3, count=2)) for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(("length", "expected"), [(100, 4), (50, 2), (49, 2), (48, 1), (25, 1), (24, 1), (5, 1)])
def test_windows_of_a_short_text_are_fewer_but_never_none(length, expected):
    batches = list(windows(TOKENS[:length], seq_len=4, batch_size=6, count=4))
    assert len(batches) == expected
    assert all(inputs.shape == targets.shape == (6, 4) for inputs, targets in batches)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_len": 0}, "^seq_len: 0 is below 1$"),
        ({"batch_size": -2}, "^batch_size: -2 is below 1$"),
        ({"seq_len": 100}, r"^tokens: shape \(100,\) has no window of seq_len \+ 1 = 101; give more text$"),
        ({"tokens": TOKENS[None]}, r"^tokens: shape \(1, 100\) has no window"),
    ],
)
def test_bad_sizes_are_named(changed, message):
    options = {"tokens": TOKENS, "seq_len": 4, "batch_size": 2} | changed
    tokens = options.pop("tokens")
    with pytest.raises(ValueError, match=message):
        batch(tokens, **options, seed=0, step=0)
    with pytest.raises(ValueError, match=message):
        windows(tokens, **options, count=1)  # at the call, before the first batch is asked for


def test_bad_count_is_named():
    with pytest.raises(ValueError, match=r"^count: -1 is below 1$"):
        windows(TOKENS, seq_len=4, batch_size=2, count=-1)


@pytest.mark.parametrize("length", [100, 99, 98, 97, 26, 25, 6, 5])
def test_a_count_of_0_takes_every_token_but_the_first_as_a_target_once(length):
    batches = list(windows(TOKENS[:length], seq_len=4, batch_size=6, count=0))
    assert np.concatenate([targets.ravel() for _, targets in batches]).tolist() == TOKENS[1:length].tolist()
    assert np.concatenate([inputs.ravel() for inputs, _ in batches]).tolist() == TOKENS[: length - 1].tolist()
    assert all(len(inputs) <= 6 and inputs.shape[1] <= 4 for inputs, _ in batches)
