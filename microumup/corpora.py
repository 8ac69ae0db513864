"""Texts, the shipped one and files of your own, and BPE tokens, by the library `tokenizers` of the extra `data`."""

import hashlib
import importlib
import lzma
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from microumup import files
from microumup.backend import Array, install_hint
from microumup.cpu import available_memory

BYTES = 256  # the vocabulary of raw bytes; a larger one is a BPE
SOTU_SHA256 = "7619dbf74e613458aaef2a1efdf4c3a7a096939c20e390467e415be9634eb85b"
SOTU_FOLDERS = (Path(__file__).parent / "_data", Path(__file__).parent.parent / "data")  # in a wheel, in a checkout


class Source(NamedTuple):
    """A text that a corpus was made of: who has the same checksum trains on the same."""

    name: str
    size: int  # bytes
    sha256: str


def source(name: object, content: bytes) -> Source:
    """The Source of a text."""
    return Source(str(name), len(content), hashlib.sha256(content).hexdigest())


class Tokenizer(Protocol):
    """Turns text into token ids below `vocab_size` and back. `save` leaves in a folder what `load_tokenizer` reads, of
    the checksum `sha256`, None if it leaves nothing."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def sha256(self) -> str | None: ...
    def encode(self, text: str) -> Array: ...
    def decode(self, ids: ArrayLike) -> str: ...
    def save(self, directory: Path) -> None: ...


class ByteTokenizer:
    """A token is a byte of the UTF-8 text. Bytes that are no UTF-8 decode to the replacement character."""

    vocab_size, sha256 = BYTES, None

    def encode(self, text: str) -> Array:
        return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)  # a command line's bytes, of any kind

    def decode(self, ids: ArrayLike) -> str:
        return bytes(np.asarray(ids).tolist()).decode(errors="replace")

    def save(self, directory: Path) -> None:
        """Bytes need no file: that there is none says bytes."""


class BpeTokenizer:
    """Byte-level BPE, by the library `tokenizers`: any text can be encoded, and decodes to itself."""

    def __init__(self, library_tokenizer: Any, saved: str = "") -> None:
        self._bpe, self._saved = library_tokenizer, saved or library_tokenizer.to_str()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self._saved.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return int(self._bpe.get_vocab_size())

    def encode(self, text: str) -> Array:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("--prompt: a byte in it is no UTF-8; a BPE knows text alone") from None
        return self.encode_pieces([text])

    def encode_pieces(self, pieces: list[str]) -> Array:
        """The tokens of all pieces in one array, encoded on all cores. No more than a few: the library's records of
        them are bulky."""
        tokens = [np.array(piece.ids, np.uint16) for piece in self._bpe.encode_batch_fast(pieces)]
        return np.concatenate([np.empty(0, np.uint16), *tokens])

    def decode(self, ids: ArrayLike) -> str:
        return str(self._bpe.decode(np.asarray(ids).tolist(), skip_special_tokens=False))

    def save(self, directory: Path) -> None:
        content = self._saved.encode()
        files.write_atomically(directory / "tokenizer.json", lambda temporary: temporary.write_bytes(content))


def train_bpe(text: Iterable[bytes], vocab_size: int) -> BpeTokenizer:
    """Learn a BPE of exactly `vocab_size` from UTF-8 text, which may come in parts; the same text makes the same BPE.

    Raises ValueError when the text has too few pairs for it.
    """
    library = extra("tokenizers", f"--vocab-size {vocab_size}")
    byte_level = library.pre_tokenizers.ByteLevel
    bpe = library.Tokenizer(library.models.BPE())
    bpe.pre_tokenizer = byte_level(add_prefix_space=False)
    bpe.decoder = library.decoders.ByteLevel()
    options = {"vocab_size": vocab_size, "initial_alphabet": byte_level.alphabet(), "show_progress": False}
    parts = (piece.decode() for piece in pieces(text))
    bpe.train_from_iterator(parts, library.trainers.BpeTrainer(**options))
    if (found := bpe.get_vocab_size()) != vocab_size:
        raise ValueError(
            f"--vocab-size {vocab_size}: the text has only {found} tokens; ask for that, or give more text"
        )
    return BpeTokenizer(bpe)


def load_bpe(path: Path, sha256: str | None = None) -> BpeTokenizer:
    """The tokenizer in a file that `BpeTokenizer.save` wrote, of that checksum if one is known.

    Raises ValueError when there is none in it, or another.
    """
    library = extra("tokenizers", str(path))
    try:
        content = files.read_bytes(path)
        if sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError("its checksum is another")
        return BpeTokenizer(library.Tokenizer.from_str(content.decode()), content.decode())
    except BaseException as error:  # the library raises bare Exception for what it cannot read, and may panic
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        problem = files.one_line(error)
        raise ValueError(f"{path}: not a tokenizer ({problem}); restore it from the run that made it") from None


def cache_folder() -> Path:
    """Folder in which tokens are kept. Raises ValueError for a user without a home who names no other place."""
    try:
        return Path(os.environ.get("MICROUMUP_CACHE") or "~/.cache/microumup").expanduser()
    except RuntimeError:
        raise ValueError("MICROUMUP_CACHE: there is no home directory to keep tokens in; set it to a folder") from None


_WORD_BEGIN = re.compile(rb"[ \n](?=[!-~])")


def pieces(text: Iterable[bytes], size: int = 1 << 16) -> Iterator[bytes]:
    """A text, which comes in any parts, in pieces of about `size` bytes: the BPE takes much memory for a long one.

    Each begins with a space or newline before a visible ASCII character. There the BPE ends a token anyway, without
    looking further, so the pieces have the tokens of the whole; and they are the same whatever parts the text came in.
    """
    rest = b""
    for part in text:
        rest, start = rest + part, 0
        while found := _WORD_BEGIN.search(rest, start + size):
            yield rest[start : found.start()]
            start = found.start()
        rest = rest[start:]
    if rest:
        yield rest


# ---- Texts ----


def split(text: bytes) -> tuple[bytes, bytes]:
    """Cut UTF-8 text into a training and a validation split (5 %).

    Of 100 equal blocks the 11th, 31st, 51st, 71st and 91st validate. A corpus often runs through time, as the State of
    the Union does from 1790 to 2021: its last 5 % would measure how well the past predicts the present, five blocks
    spread over it measure the whole. Few long blocks, so that few windows straddle a seam; cut between characters
    and before there are tokens, so that the splits are the same text whatever the vocabulary.
    """
    cuts = [len(text) * i // 100 for i in range(101)]
    for i, cut in enumerate(cuts):
        while cut < len(text) and text[cut] & 0b1100_0000 == 0b1000_0000:  # inside a character
            cut += 1
        cuts[i] = cut
    blocks = [text[start:end] for start, end in pairwise(cuts)]
    return b"".join(block for i, block in enumerate(blocks) if i % 20 != 10), b"".join(blocks[10::20])


def read_text(path: Path, option: str = "--text") -> bytes:
    """The content of a UTF-8 text file that `option` names. Raises ValueError for one that is missing, unreadable,
    empty or binary."""
    try:
        content = files.read_bytes(path, available_memory() // 4)
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {path}: not UTF-8 at byte {error.start}; convert it to UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{option} {path}: cannot be read ({error}); give a UTF-8 text file") from error
    if not content.strip():
        raise ValueError(f"{option} {path}: empty; give a UTF-8 text file")
    if b"\0" in content:
        raise ValueError(f"{option} {path}: binary, it holds a NUL byte; give a UTF-8 text file")
    return content


def read_texts(option: str, paths: Sequence[Path | str]) -> tuple[bytes, tuple[Source, ...]]:
    """The texts of an option, an empty line between two, and the Source of each. Raises ValueError as `read_text`."""
    texts = [read_text(Path(path), option) for path in paths]
    return b"\n\n".join(texts), tuple(source(path, text) for path, text in zip(paths, texts, strict=True))


def read_sotu() -> bytes:
    """The shipped corpus. Raises ValueError where it is missing or damaged."""
    paths = [folder / "sotu.txt.xz" for folder in SOTU_FOLDERS]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise ValueError(f"--corpus sotu: neither {' nor '.join(map(str, paths))} exists; reinstall microumup")
    try:
        content = lzma.decompress(path.read_bytes())
    except lzma.LZMAError:
        content = b""  # whose checksum is wrong
    verify("--corpus sotu", path, hashlib.sha256(content).hexdigest(), SOTU_SHA256)
    return content


def verify(option: str, path: Path, found: str, expected: str) -> None:
    """Raise ValueError where the checksum of a file, sha256, is not the expected one."""
    if found != expected:
        raise ValueError(
            f"{option}: {path} is damaged (sha256 {found}, expected {expected}); delete it and get it anew"
        )


def extra(module: str, option: str) -> Any:
    """Import a module of the extra `data`. Raises ValueError, naming the option that needs it, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{option}: needs {module.partition('.')[0]}; {install_hint('data')}") from error
