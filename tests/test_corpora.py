"""Where texts come from, the shipped corpus and files of one's own, and BPE."""

import hashlib
import lzma
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from microumup import corpora
from microumup.backend import install_hint
from microumup.data import load_corpus

REPOSITORY = Path(__file__).parent.parent
SENTENCES = "".join(
    f"The {i}th citizen of Zürich said: “the state of the union, {i * i}, is strong.”\n" for i in range(300)
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MICROUMUP_CACHE", str(folder))
    return folder


@pytest.fixture
def tokenizers():
    return pytest.importorskip("tokenizers", reason="BPE needs the extra `data`")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def load_text(*paths, seq_len=8, **options):
    return load_corpus(text=paths, seq_len=seq_len, **options)


# ---- A held-out text ----


def test_with_a_held_out_text_all_of_the_other_is_trained_on(tmp_path):
    text, first, second = (write(tmp_path / name, f"{name} " * 30) for name in ("text", "first", "second"))
    corpus = load_text(text, valid=[first, str(second)])
    assert bytes(corpus.train) == text.read_bytes()
    assert bytes(corpus.valid) == first.read_bytes() + b"\n\n" + second.read_bytes()
    assert [source.name for source in corpus.sources] == [str(text), str(first), str(second)]
    whole = load_corpus(valid=[first], seq_len=8)
    assert len(whole.train) == sum(map(len, (load_corpus(seq_len=8).train, load_corpus(seq_len=8).valid)))


def test_a_bpe_is_learned_from_what_is_trained_on_and_its_loss_is_per_byte(tmp_path, tokenizers, monkeypatch):
    monkeypatch.setenv("MICROUMUP_CACHE", str(tmp_path / "cache"))
    text, held_out = write(tmp_path / "text", SENTENCES), write(tmp_path / "held out", SENTENCES[:500] + "é")
    corpus = load_text(text, valid=[held_out], vocab_size=300)
    assert corpus.tokenizer.decode(corpus.train) == SENTENCES
    assert corpus.bytes_per_token == len(held_out.read_bytes()) / len(corpus.valid) > 1
    assert load_text(text).bytes_per_token == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        (b"\xff", "not UTF-8"),
        ("short", "too short, it has 5 tokens and a window needs seq_len [+] 1 = 9"),
    ],
)
def test_a_held_out_text_that_is_none_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"^--valid.*: {message}"):
        load_text(write(tmp_path / "text", SENTENCES), valid=[write(tmp_path / "held out", content)])


# ---- The default corpus ----


def test_sotu_is_what_its_readme_says():
    corpus = load_corpus(seq_len=64)
    text = (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")
    packed = (REPOSITORY / "data" / "sotu.txt.xz").read_bytes()
    assert corpora.SOTU_SHA256 in text
    assert hashlib.sha256(packed).hexdigest() in text
    assert f"{len(packed):,} bytes" in text
    assert f"{len(corpus.train) + len(corpus.valid):,} bytes" in text
    whole = lzma.decompress(packed).decode()
    assert len(set(whole)) == 98
    assert whole.count("\n\n") + 1 == 233


def test_entropies_are_what_the_readme_says():
    corpus = np.frombuffer(corpora.read_sotu(), np.uint8).astype(np.int64)
    totals = [0.0]  # of blocks of 0, 1, 2, 3 bytes; longer ones take seconds
    keys = np.zeros_like(corpus)
    for length in (1, 2, 3):
        keys = keys[: len(corpus) - length + 1] * 256 + corpus[length - 1 :]
        counts = np.bincount(keys)
        p = counts[counts > 0] / len(keys)
        totals.append(float(-(p * np.log(p)).sum()))
    row = " | ".join(f"{entropy:.3f}" for entropy in np.diff(totals))
    assert f"| entropy | {row} |" in (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")


def test_sotu_loads_as_bytes():
    corpus = load_corpus(seq_len=64)
    assert corpus.name == "sotu"
    assert corpus.train.dtype == corpus.valid.dtype == np.uint8
    assert (len(corpus.train), len(corpus.valid)) == (10_223_418, 538_074)
    assert corpus.tokenizer.vocab_size == 256
    assert corpus.tokenizer.decode(corpus.train[:16]) == "Fellow-Citizens "


def test_sotu_is_found_in_a_wheel_first(tmp_path, monkeypatch):
    text = SENTENCES.encode()
    write(tmp_path / "sotu.txt.xz", lzma.compress(text))
    monkeypatch.setattr(corpora, "SOTU_FOLDERS", (tmp_path, corpora.SOTU_FOLDERS[1]))
    monkeypatch.setattr(corpora, "SOTU_SHA256", hashlib.sha256(text).hexdigest())
    corpus = load_corpus(seq_len=8)
    assert len(corpus.train) + len(corpus.valid) == len(text)


def test_the_wheel_holds_the_corpus_where_data_looks_first():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    place = corpora.SOTU_FOLDERS[0].relative_to(REPOSITORY).as_posix() + "/sotu.txt.xz"
    assert included["data/sotu.txt.xz"] == place


def test_sotu_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "SOTU_FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(ValueError, match=r"^--corpus sotu: .*a/sotu.txt.xz nor .*b/sotu.txt.xz"):
        load_corpus(seq_len=8)


@pytest.mark.parametrize(
    "content",
    [lzma.compress(b"another text"), lzma.compress(b"cut short")[:-9], b"no xz at all"],
    ids=["other", "cut", "no xz"],
)
def test_sotu_damaged_is_refused(tmp_path, monkeypatch, content):
    write(tmp_path / "sotu.txt.xz", content)
    monkeypatch.setattr(corpora, "SOTU_FOLDERS", (tmp_path,))
    with pytest.raises(
        ValueError, match=r"^--corpus sotu: .*sotu.txt.xz is damaged \(sha256 [0-9a-f]{64}, expected 7619"
    ):
        load_corpus(seq_len=8)


def test_build_script_refuses_another_tarball(tmp_path):
    wrong = write(tmp_path / "wrong.tgz", b"not it")
    script = REPOSITORY / "data" / "build_sotu.py"
    command = [sys.executable, str(script), str(wrong), "--out", str(tmp_path / "out.xz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "wrong.tgz has sha256" in done.stderr
    assert not (tmp_path / "out.xz").exists()


# ---- The split ----


def test_split_is_five_blocks_of_a_hundred_spread_over_the_text():
    train, valid = corpora.split(bytes(range(100)) * 2)  # block i is bytes 2i, 2i + 1
    whole = bytes(range(100)) * 2
    expected = b"".join(whole[2 * i : 2 * i + 2] for i in (10, 30, 50, 70, 90))
    assert valid == expected
    assert train == b"".join(whole[2 * i : 2 * i + 2] for i in range(100) if i not in (10, 30, 50, 70, 90))


@pytest.mark.parametrize("text", ["", "ü", "日本語。" * 321, "a" + "🙂é" * 777 + "é"])
def test_split_cuts_no_character(text):
    train, valid = corpora.split(text.encode())
    assert sorted(train.decode() + valid.decode()) == sorted(text)


# ---- One's own text ----


def test_text_files_are_joined_and_named(tmp_path):
    first, second = write(tmp_path / "a.txt", SENTENCES), write(tmp_path / "b.txt", SENTENCES.upper())
    corpus = load_text(first, second)
    assert corpus.name == "a.txt+b.txt"
    assert len(corpus.train) + len(corpus.valid) == len((SENTENCES + "\n\n" + SENTENCES.upper()).encode())
    train, valid = corpora.split((SENTENCES + "\n\n" + SENTENCES.upper()).encode())
    assert corpus.train.tobytes() == train
    assert corpus.valid.tobytes() == valid


def test_text_wins_over_the_name(tmp_path):
    assert load_corpus("no such corpus", text=[write(tmp_path / "a.txt", SENTENCES)], seq_len=8).name == "a.txt"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b" \n\t\n" * 1000, "empty"),
        (b"some text\0" * 1000, "binary"),
        (b"good text " * 100 + b"\xff\xfe", "not UTF-8 at byte 1000"),
        ("Zürich ".encode("latin-1") * 1000, "not UTF-8 at byte 1"),
    ],
)
def test_bad_text_is_named(tmp_path, content, problem):
    good, bad = write(tmp_path / "good.txt", SENTENCES), write(tmp_path / "bad.txt", content)
    with pytest.raises(ValueError, match=rf"^--text {bad}: {problem}[^\n]*$"):
        load_text(good, bad)


def test_missing_text_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^--text .*/no.txt: cannot be read \(No such file or directory\)"):
        load_text(tmp_path / "no.txt")


def test_directory_as_text_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"^--text {tmp_path}: cannot be read \(Is a directory\)"):
        load_text(tmp_path)


def test_unreadable_text_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    write(tmp_path / "a.txt", SENTENCES)
    monkeypatch.setattr(Path, "read_bytes", refuse)  # chmod would not stop root
    with pytest.raises(ValueError, match=r"^--text .*/a.txt: cannot be read \(Permission denied\)"):
        load_text(tmp_path / "a.txt")


# ---- BPE ----


def test_bpe_corpus_decodes_to_the_text_of_the_byte_corpus(tmp_path, cache, tokenizers):
    path = write(tmp_path / "a.txt", SENTENCES)
    plain, bpe = load_text(path), load_text(path, vocab_size=300)
    assert bpe.tokenizer.vocab_size == 300
    assert bpe.train.dtype == bpe.valid.dtype == np.uint16
    assert bpe.train.max() == 299  # merges are learned in order, the last one is used somewhere
    for which in ("train", "valid"):
        text = getattr(plain, which).tobytes().decode()
        assert bpe.tokenizer.decode(getattr(bpe, which)) == text
        assert bpe.tokenizer.encode(text).tolist() == getattr(bpe, which).tolist()


def test_bpe_is_learned_from_the_training_split_alone(tmp_path, cache, tokenizers):
    # blocks of 100 bytes: `th` is the most frequent pair in the training split, `qz` in the whole
    blocks = [b"qz.a" * 25 if i % 20 == 10 else b"th" + b".a" * 49 for i in range(100)]
    path = write(tmp_path / "a.txt", b"".join(blocks))
    tokenizer = load_text(path, vocab_size=257).tokenizer
    assert len(tokenizer.encode("qz")) == 2
    assert len(tokenizer.encode("th")) == 1


def test_bpe_repeats_bit_for_bit(tmp_path, cache, tokenizers, monkeypatch):
    path = write(tmp_path / "a.txt", SENTENCES)
    first = load_text(path, vocab_size=400)
    monkeypatch.setenv("MICROUMUP_CACHE", str(tmp_path / "elsewhere"))
    second = load_text(path, vocab_size=400)
    assert first.train.tolist() == second.train.tolist()
    (one,), (two,) = cache.glob("*/tokenizer.json"), (tmp_path / "elsewhere").glob("*/tokenizer.json")
    assert one.read_bytes() == two.read_bytes()


def test_pieces_have_the_tokens_of_the_whole(tokenizers):
    text = SENTENCES + "a  b   c \n\n\n d\t\n e ' s don't 's\n's  \u00a0x \n\u00a0y 12 345" * 30
    content = text.encode()
    tokenizer = corpora.train_bpe([content], 500)
    whole = tokenizer.encode(text).tolist()
    for size in (1, 7, 64, 1000):
        pieces = list(corpora.pieces([content], size))
        assert b"".join(pieces) == content
        assert tokenizer.encode_pieces([piece.decode() for piece in pieces]).tolist() == whole
        for step in (1, 10, 333):  # whatever parts it comes in
            parts = [content[start : start + step] for start in range(0, len(content), step)]
            assert list(corpora.pieces(parts, size)) == pieces
    assert len(list(corpora.pieces([content], 64))) > 100


def test_too_large_a_vocabulary_for_the_text(tmp_path, cache, tokenizers):
    path = write(tmp_path / "a.txt", SENTENCES)
    with pytest.raises(ValueError, match=r"^--vocab-size 60000: the text has only \d+ tokens; .*$") as caught:
        load_text(path, vocab_size=60000)
    assert list(cache.iterdir()) == []
    possible = int(str(caught.value).split("only ")[1].split()[0])
    assert load_text(path, vocab_size=possible).tokenizer.vocab_size == possible


def test_a_missing_extra_is_a_hint(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # makes its import fail
    with pytest.raises(ValueError, match=rf"^--.*: needs tokenizers; {re.escape(install_hint('data'))}$"):
        load_corpus(vocab_size=300, seq_len=8)
