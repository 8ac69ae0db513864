import numpy as np
import pytest
from test_corpora import SENTENCES, write

from microumup import corpora
from microumup.data import ByteTokenizer
from microumup.run_dir import load_tokenizer

# ---- Tokenizers ----


def test_a_run_directory_without_tokenizer_is_bytes(tmp_path):
    ByteTokenizer().save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


def test_a_saved_bpe_is_the_same(tmp_path):
    pytest.importorskip("tokenizers", reason="BPE needs the extra `data`")
    tokenizer = corpora.train_bpe(SENTENCES.encode(), 300)
    tokenizer.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded = load_tokenizer(tmp_path)
    text = SENTENCES[:200] + "日本 🙂"
    assert loaded.vocab_size == 300
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded.decode(loaded.encode(text).astype(np.int64)) == text
    assert loaded.encode("").dtype == np.uint16
    assert len(loaded.encode("")) == 0


def test_a_damaged_tokenizer_is_named(tmp_path):
    pytest.importorskip("tokenizers", reason="BPE needs the extra `data`")
    write(tmp_path / "tokenizer.json", "{}")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/tokenizer.json: not a tokenizer \("):
        load_tokenizer(tmp_path)
