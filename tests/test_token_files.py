"""Token files: made once, known by checksums, and the same bytes whatever interrupts their making."""

import errno
import os
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from test_corpora import SENTENCES, cache, load_text, tokenizers, write

from microumup import corpora, files, token_files

__all__ = ("cache", "tokenizers")  # fixtures

PARTS = [f"{SENTENCES[:6000]}{i} more.\n" for i in range(3)]

# ---- The cache of texts of one's own ----


def test_second_load_reads_the_cache(tmp_path, cache, tokenizers, monkeypatch):
    path = write(tmp_path / "a.txt", SENTENCES)
    first = load_text(path, vocab_size=300)
    monkeypatch.setattr(corpora, "train_bpe", None)  # would fail if called
    second = load_text(path, vocab_size=300)
    assert isinstance(second.train, np.memmap)
    assert second.train.tolist() == first.train.tolist()
    assert second.tokenizer.encode("the union").tolist() == first.tokenizer.encode("the union").tolist()
    files = {path.name for path in cache.rglob("*") if path.is_file()}
    assert files == {"manifest.json", "tokenizer.json", "train.bin", "valid.bin"}


def test_the_cache_knows_both_splits_and_the_vocabulary(tmp_path, cache, tokenizers):
    text = SENTENCES.encode()
    place = len(text) * 105 // 1000  # amid the first block that validates
    changed_valid = text[:place] + b"X" + text[place + 1 :]
    for content, vocab_size in ((text, 300), (text, 301), (b"X" + text[1:], 300), (changed_valid, 300)):
        load_text(write(tmp_path / "a.txt", content), vocab_size=vocab_size)
    assert len(list(cache.iterdir())) == 4


def test_a_failed_run_leaves_nothing_in_the_cache(tmp_path, cache, tokenizers, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match=r"MICROUMUP_CACHE: cannot write to .* \(No space left on device\); make room"):
        load_text(write(tmp_path / "a.txt", SENTENCES), vocab_size=300)
    assert list(cache.iterdir()) == []


def test_another_process_may_fill_the_cache_first(tmp_path, cache, tokenizers, monkeypatch):
    path, train_bpe = write(tmp_path / "a.txt", SENTENCES), corpora.train_bpe

    def slow(*args):
        monkeypatch.setattr(corpora, "train_bpe", train_bpe)
        load_text(path, vocab_size=300)  # the other process
        return train_bpe(*args)

    monkeypatch.setattr(corpora, "train_bpe", slow)
    assert load_text(path, vocab_size=300).tokenizer.vocab_size == 300
    assert len(list(cache.iterdir())) == 1


def test_an_unusable_cache_is_named(tmp_path, tokenizers, monkeypatch):
    path = write(tmp_path / "a.txt", SENTENCES)
    monkeypatch.setenv("MICROUMUP_CACHE", str(path / "below a file"))
    with pytest.raises(ValueError, match=r"^MICROUMUP_CACHE: cannot write to .*below a file \(Not a directory\)"):
        load_text(path, vocab_size=300)


# ---- What they are ----


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "u1"), (300, "<u2")])
def test_a_file_is_the_tokens_and_nothing_else(tmp_path, tokenizers, vocab_size, dtype):
    made(tmp_path / "made", vocab_size)
    tokens = token_files.read(tmp_path / "made", "")
    assert tokens.train.dtype == dtype
    assert (tmp_path / "made" / "train.bin").read_bytes() == tokens.train.tobytes()
    decode = tokens.tokenizer.decode if tokens.tokenizer else lambda ids: ids.tobytes().decode()
    assert decode(tokens.train) == "".join(PARTS)
    assert decode(tokens.valid) == PARTS[0]


def test_an_empty_split_is_no_tokens(tmp_path, tokenizers):
    texts = {"train": lambda: [SENTENCES.encode()], "valid": lambda: []}
    token_files.make(tmp_path / "made", [], texts, 300)
    assert token_files.read(tmp_path / "made", "").valid.shape == (0,)


def test_making_fits_in_little_memory_whatever_the_text(tmp_path, monkeypatch):
    """Bytes, of which tracemalloc sees all: a text four times as long takes no more."""
    peaks = []
    for parts in (8, 32):
        texts = {"train": lambda parts=parts: (SENTENCES.encode() * 50 for _ in range(parts)), "valid": lambda: []}
        tracemalloc.start()
        token_files.make(tmp_path / str(parts), [], texts, 256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


# ---- Killed ----


def made(folder, vocab_size=300, parts=PARTS):
    """Token files of a text that takes several groups of pieces."""
    texts = {"train": lambda: (part.encode() for part in parts), "valid": lambda: [parts[0].encode()]}
    token_files.make(folder, [corpora.source("text", "".join(parts).encode())], texts, vocab_size)


class Killed(BaseException):
    pass


def kill(monkeypatch, after):
    """Be killed when something is written to the disk, or a name changed, for the so manyth time."""
    count = iter(range(10**6))

    def counted(function):
        def called(*args, **options):
            if next(count) == after:
                raise Killed
            return function(*args, **options)

        return called

    for module, name in ((os, "fsync"), (os, "replace"), (Path, "replace"), (Path, "unlink")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_groups(monkeypatch):
    pieces = corpora.pieces
    monkeypatch.setattr(token_files, "GROUP", 2)
    monkeypatch.setattr(corpora, "pieces", lambda text, size=2048: pieces(text, size))


def test_killed_anywhere_the_bytes_are_the_same(tmp_path, tokenizers, small_groups, monkeypatch):
    monkeypatch.setattr(token_files, "GROUP", 4)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a real one takes most of the time
    made(tmp_path / "whole")
    for after in range(1000):
        folder = tmp_path / str(after)
        with monkeypatch.context() as patch, suppress(Killed):
            kill(patch, after)
            made(folder)
            break
        assert after == 0 or folder.exists()
        made(folder)
        assert content(folder) == content(tmp_path / "whole")
    assert after > 30  # so many places there are


def test_killed_again_and_again_it_comes_to_an_end(tmp_path, tokenizers, small_groups, monkeypatch):
    """Each time it lives for the same number of writes, and yet gets further: what is done is not done again."""
    made(tmp_path / "whole")
    lives = 0
    while not (tmp_path / "made" / "manifest.json").exists():
        lives += 1
        with monkeypatch.context() as patch, suppress(Killed):
            kill(patch, 8)
            made(tmp_path / "made")
    assert 3 < lives < 20
    made(tmp_path / "made")
    assert content(tmp_path / "made") == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["train.bin", "tokenizer.json", "progress.json"])
def test_leavings_that_were_changed_are_made_anew(tmp_path, tokenizers, small_groups, monkeypatch, name):
    made(tmp_path / "whole")
    with monkeypatch.context() as patch, suppress(Killed):
        kill(patch, 14)
        made(tmp_path / "made")
    path = tmp_path / "made" / name
    path.write_bytes(path.read_bytes()[:100] + b"?" + path.read_bytes()[101:] + b"?" * 100_000)
    made(tmp_path / "made")
    assert content(tmp_path / "made") == content(tmp_path / "whole")


def test_leavings_of_another_text_are_not_gone_on_from(tmp_path, tokenizers, small_groups, monkeypatch):
    with monkeypatch.context() as patch, suppress(Killed):
        kill(patch, 14)
        made(tmp_path / "made")
    assert files.read_record(tmp_path / "made" / "progress.json")["train"]["pieces"] > 0
    for name in ("made", "whole"):
        made(tmp_path / name, parts=[part.upper() for part in PARTS])
    assert content(tmp_path / "made") == content(tmp_path / "whole")
