"""Texts and caches of tokens that are damaged, endless or somebody else's."""

import hashlib
import os
from pathlib import Path

import pytest
from test_corpora import SENTENCES, load_text, write

from microumup.data import load_corpus


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers", reason="BPE needs the extra `data`")
    monkeypatch.setenv("MICROUMUP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


DAMAGES = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "huge": lambda path: os.truncate(path, 1 << 42),
    "a pickle": lambda path: path.write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "tokenizer.json", "manifest.json"])
def test_a_damaged_cache_is_named_with_the_mend(tmp_path, cache, name, damage):
    """A flipped token was trained on; a cut file ended in a traceback."""
    path = write(tmp_path / "a.txt", SENTENCES)
    load_text(path, vocab_size=300)
    [file] = cache.rglob(name)
    DAMAGES[damage](file)
    with pytest.raises(
        ValueError, match=rf"^{file.parent} is damaged \(.*\); delete it, it is made again from the text$"
    ):
        load_text(path, vocab_size=300)


def test_without_a_home_the_cache_asks_for_one(tmp_path, cache, monkeypatch):
    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MICROUMUP_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ValueError, match=r"^MICROUMUP_CACHE: there is no home directory"):
        load_text(write(tmp_path / "a.txt", SENTENCES), vocab_size=300)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_text_without_an_end_is_refused(path):
    with pytest.raises(ValueError, match=rf"^--text {path}: cannot be read \(it is no regular file\)"):
        load_text(Path(path))


def test_a_corpus_knows_what_it_was_made_of(tmp_path):
    paths = [write(tmp_path / name, SENTENCES) for name in "ab"]
    sources = load_corpus(text=paths, seq_len=8).sources
    assert [source.name for source in sources] == list(map(str, paths))
    assert sources[0][1:] == sources[1][1:] == (len(SENTENCES.encode()), hashlib.sha256(SENTENCES.encode()).hexdigest())
