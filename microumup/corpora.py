"""Sources of texts, and BPE tokens: the shipped corpus, files of your own, WikiText-103; the library `tokenizers`.

The last two need the extra `data`; bytes of the shipped text, or of your own, do not.
"""

import hashlib
import importlib
import lzma
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from microumup import checkpoint
from microumup.backend import Array, install_hint
from microumup.cpu import available_memory

SOTU_SHA256 = "7619dbf74e613458aaef2a1efdf4c3a7a096939c20e390467e415be9634eb85b"
SOTU_FOLDERS = (Path(__file__).parent / "_data", Path(__file__).parent.parent / "data")  # in a wheel, in a checkout

WIKITEXT_REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"
WIKITEXT_SHA256 = {  # of the files of the Hugging Face dataset Salesforce/wikitext, wikitext-103-raw-v1
    "train-00000-of-00002": "74da360f23826045b3e6ac6375411fdb15f003030aa74f2596ed08b857cb9212",
    "train-00001-of-00002": "ba090ac30dbf5461e8dcbdd1a1b8e6f3cf9c2c756d64f0c1220450acd514f720",
    "validation-00000-of-00001": "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c",
}


class Source(NamedTuple):
    """A text that a corpus was made of: who has the same checksum trains on the same."""

    name: str
    size: int  # bytes
    sha256: str


def source(name: object, content: bytes) -> Source:
    """The Source of a text."""
    return Source(str(name), len(content), hashlib.sha256(content).hexdigest())


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

    def encode_pieces(self, pieces: Iterable[str]) -> Array:
        """The tokens of all pieces in one array, encoded on all cores."""
        tokens, rest = [np.empty(0, np.uint16)], iter(pieces)
        while group := list(islice(rest, 64)):  # a few at a time, as the library's records of them are bulky
            tokens += [np.array(piece.ids, np.uint16) for piece in self._bpe.encode_batch(group)]
        return np.concatenate(tokens)

    def decode(self, ids: ArrayLike) -> str:
        return str(self._bpe.decode(np.asarray(ids).tolist(), skip_special_tokens=False))

    def save(self, directory: Path) -> None:
        content = self._saved.encode()
        checkpoint.write_atomically(directory / "tokenizer.json", lambda temporary: temporary.write_bytes(content))


def train_bpe(text: bytes, vocab_size: int) -> BpeTokenizer:
    """Learn a BPE of exactly `vocab_size` from UTF-8 text. Raises ValueError when the text has too few pairs for it."""
    library = extra("tokenizers", f"--vocab-size {vocab_size}")
    byte_level = library.pre_tokenizers.ByteLevel
    bpe = library.Tokenizer(library.models.BPE())
    bpe.pre_tokenizer = byte_level(add_prefix_space=False)
    bpe.decoder = library.decoders.ByteLevel()
    options = {"vocab_size": vocab_size, "initial_alphabet": byte_level.alphabet(), "show_progress": False}
    bpe.train_from_iterator(_pieces(text), library.trainers.BpeTrainer(**options))
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
        content = checkpoint.read_bytes(path)
        if sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError("its checksum is another")
        return BpeTokenizer(library.Tokenizer.from_str(content.decode()), content.decode())
    except BaseException as error:  # the library raises bare Exception for what it cannot read, and may panic
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        problem = checkpoint.one_line(error)
        raise ValueError(f"{path}: not a tokenizer ({problem}); restore it from the run that made it") from None


def tokenize(train: bytes, valid: bytes, vocab_size: int) -> tuple[Array, Array, BpeTokenizer]:
    """Both splits tokenized, mapped from the cache; put there first if need be. Raises ValueError for a damaged one."""
    cache = cache_folder()
    digest = hashlib.sha256(train)
    digest.update(b"\0" + valid)
    folder = cache / f"tokens-{vocab_size}-{digest.hexdigest()[:16]}"
    if not folder.exists():
        tokenizer = train_bpe(train, vocab_size)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                made = Path(temporary) / "tokens"
                made.mkdir()
                tokenizer.save(made)
                np.save(made / "train.npy", tokenizer.encode_pieces(_pieces(train)))
                np.save(made / "valid.npy", tokenizer.encode_pieces(_pieces(valid)))
                sums = {path.name: (path.stat().st_size, _sha256(path)) for path in made.iterdir()}
                checkpoint.write_json(made / "sums.json", checkpoint.sealed(sums))
                if not folder.exists():  # another process may have been faster; what it made is the same
                    made.replace(folder)
        except OSError as error:
            raise ValueError(
                f"MICROUMUP_CACHE: cannot write to {cache} ({error.strerror or error}); set it to another"
            ) from error
    try:
        sums = checkpoint.read_record(folder / "sums.json")
        for name in ("tokenizer.json", "train.npy", "valid.npy"):
            size, sha256 = sums[name]
            found = (folder / name).stat()  # whose size is known before anything is read
            if not S_ISREG(found.st_mode) or found.st_size != size or _sha256(folder / name) != sha256:
                raise ValueError(f"{name} is another")
        splits = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("train", "valid")]
        return splits[0], splits[1], load_bpe(folder / "tokenizer.json")
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(
            f"{folder} is damaged ({checkpoint.one_line(error)}); delete it, it is made again from the text"
        ) from None


def cache_folder() -> Path:
    """Folder in which tokens are kept. Raises ValueError for a user without a home who names no other place."""
    try:
        return Path(os.environ.get("MICROUMUP_CACHE") or "~/.cache/microumup").expanduser()
    except RuntimeError:
        raise ValueError("MICROUMUP_CACHE: there is no home directory to keep tokens in; set it to a folder") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_WORD_BEGIN = re.compile(rb"[ \n](?=[!-~])")


def _pieces(text: bytes, size: int = 1 << 16) -> Iterator[str]:
    """`text` in pieces of about `size` bytes, as the whole at once would take the BPE much memory.

    Each begins with a space or newline before a visible ASCII character. There the BPE ends a token anyway, without
    looking further, so the pieces have the tokens of the whole.
    """
    start = 0
    while start < len(text):
        found = _WORD_BEGIN.search(text, start + size)
        end = found.start() if found else len(text)
        yield text[start:end].decode()
        start = end


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
        content = checkpoint.read_bytes(path, available_memory() // 4)
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


def read_wikitext(split_name: str) -> bytes:
    """The text of a split, `train` or `validation`. Raises ValueError when it cannot be had, or is damaged."""
    option = "--corpus wikitext-103"
    hub, parquet = extra("huggingface_hub", option), extra("pyarrow.parquet", option)
    lines: list[bytes] = []
    for name, sha256 in WIKITEXT_SHA256.items():
        if not name.startswith(split_name):
            continue
        where = {"repo_id": "Salesforce/wikitext", "repo_type": "dataset", "revision": WIKITEXT_REVISION}
        try:
            path = Path(hub.hf_hub_download(filename=f"wikitext-103-raw-v1/{name}.parquet", **where))
        except Exception as error:  # its types, and those of the HTTP client beneath, differ between versions
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(
                f"{option}: cannot download {name} ({problem}); check the network, or use --corpus sotu or --text FILE"
            ) from error
        with path.open("rb") as file:
            verify(option, path, hashlib.file_digest(file, "sha256").hexdigest(), sha256)
        for rows in parquet.ParquetFile(path).iter_batches(columns=["text"]):
            lines += rows.column(0).cast("binary").to_pylist()  # each ends in its own newline
    return b"".join(lines)


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
