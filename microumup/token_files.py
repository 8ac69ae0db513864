"""Token files: a text as numbers on the disk, made once, mapped into memory, and known by checksums.

tokenizer.json     of a BPE; bytes need none
train.bin          the tokens of the training split, uint16 (uint8 for bytes), and nothing else
valid.bin          of the validation split
manifest.json      what they were made of and by what, with size and sha256 of each; written last
progress.json      while they are made: how far that is

A folder is filled under another name and renamed, so one that is there is whole. Who is killed at it leaves the other
folder, and the next goes on in it: each split grows by a group of pieces at a time, and progress.json follows it.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

import numpy as np
from tqdm import tqdm

from microumup import __version__, corpora, files
from microumup.backend import Array
from microumup.corpora import BYTES, BpeTokenizer, ByteTokenizer, Source, Tokenizer

LARGEST_VOCABULARY = 2**16  # as many as uint16 can name
GROUP = 64  # pieces of text that are in memory at a time: 4 MiB, and some 60 MiB as the library's records
PREPARED = "wikitext-103"  # the corpus that is only used from token files, and the preset's vocabulary of it
PREPARED_VOCABULARY = 32_000

Text = Callable[[], Iterable[bytes]]  # a text in parts, from the beginning at every call
Bar = Callable[..., Any]  # a progress bar, made as tqdm makes them
NO_BAR: Bar = partial(tqdm, disable=True)


class Tokens(NamedTuple):
    """Both splits of a text, and what made them."""

    train: Array  # (tokens,), uint8 or uint16, mapped from the file
    valid: Array
    tokenizer: Tokenizer = ByteTokenizer()
    sources: tuple[Source, ...] = ()  # what they were made of, and the token files themselves


def load(
    name: str, text: Sequence[Path | str], valid: Sequence[Path | str], vocab_size: int
) -> tuple[str, str, Tokens]:
    """The option that names the text, the name of the corpus, and its Tokens, as `data.load_corpus` says."""
    check_vocabulary(vocab_size)
    option = f"--corpus {name}"
    if not text and name == PREPARED:
        tokens = prepared(vocab_size)
        if valid:
            held_out, more = corpora.read_texts("--valid", valid)
            bpe = tokens.tokenizer if isinstance(tokens.tokenizer, BpeTokenizer) else None
            tokens = tokens._replace(valid=encode(held_out, bpe), sources=(*tokens.sources, *more))
        return option, name, tokens
    if text:
        option, name = "--text " + " ".join(map(str, text)), "+".join(Path(path).name for path in text)
        whole, sources = corpora.read_texts("--text", text)
    elif name == "sotu":
        whole = corpora.read_sotu()
        sources = (Source(name, len(whole), corpora.SOTU_SHA256),)
    else:
        raise ValueError(f"{option}: unknown; use sotu, wikitext-103, or --text FILE")
    train, held_out = corpora.split(whole)
    if valid:
        held_out, more = corpora.read_texts("--valid", valid)
        train, sources = whole, (*sources, *more)
    tokens = Tokens(encode(train), encode(held_out)) if vocab_size == BYTES else tokenize(train, held_out, vocab_size)
    return option, name, tokens._replace(sources=sources)


def check_vocabulary(vocab_size: int) -> None:
    """Raise ValueError for a vocabulary that token files cannot hold."""
    if not BYTES <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(f"--vocab-size {vocab_size}: take {BYTES} for bytes, or up to {LARGEST_VOCABULARY} for BPE")


# ---- Where they lie ----


def tokenize(train: bytes, valid: bytes, vocab_size: int) -> Tokens:
    """Both splits of a text as tokens of a BPE, mapped from the cache; put there first if need be.

    Raises ValueError for a damaged cache, or one that cannot be written to.
    """
    cache, sources = corpora.cache_folder(), [corpora.source("train", train), corpora.source("valid", valid)]
    digest = hashlib.sha256("".join(source.sha256 for source in sources).encode()).hexdigest()[:16]
    folder = cache / f"bpe-{vocab_size}-{digest}"
    if not folder.exists():
        with writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                made = Path(temporary) / "tokens"
                make(made, sources, {"train": lambda: [train], "valid": lambda: [valid]}, vocab_size)
                if not folder.exists():  # another process may have been faster; what it made is the same
                    made.replace(folder)
    return read(folder, "delete it, it is made again from the text")


def prepared_folder(vocab_size: int) -> Path:
    """Folder of the token files of PREPARED."""
    return corpora.cache_folder() / PREPARED / str(vocab_size)


def prepared(vocab_size: int) -> Tokens:
    """The tokens of PREPARED. Raises ValueError, naming the command that makes them, if they are missing or damaged."""
    folder, more = prepared_folder(vocab_size), f" --vocab-size {vocab_size}" * (vocab_size != PREPARED_VOCABULARY)
    mend = f"run: microumup data prepare {PREPARED}{more}"
    if not folder.exists():
        what = "bytes" if vocab_size == BYTES else f"{vocab_size:,} tokens"
        raise ValueError(f"--corpus {PREPARED}: its text in {what} is not on this machine yet ({folder}); {mend}")
    return read(folder, mend)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an OSError, a full disk above all, into a ValueError that says where, and what to do."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise ValueError(
            f"MICROUMUP_CACHE: cannot write to {folder} ({why}); make room there, or set it to another folder"
        ) from error


# ---- Reading ----


def read(folder: Path, mend: str) -> Tokens:
    """The token files in a folder. Raises ValueError, with the mend, where one is missing or was changed.

    Every file is read once, a quarter of a megabyte at a time, for its checksum: that takes no memory, and less than
    two seconds for each gigabyte, which is what it costs to know that no token was flipped. A file whose size is
    another is not read at all.
    """
    try:
        manifest = files.read_record(folder / "manifest.json")
        dtype = np.dtype({"uint8": "u1", "uint16": "<u2"}[manifest["dtype"]])
        for name, (size, sha256) in manifest["files"].items():
            found = (folder / name).stat()
            if not S_ISREG(found.st_mode) or found.st_size != size or file_sha256(folder / name) != sha256:
                raise ValueError(f"{name} is another")
        train, valid = (_map(folder / f"{split}.bin", dtype) for split in ("train", "valid"))
        tokenizer = corpora.load_bpe(folder / "tokenizer.json") if dtype == np.uint16 else ByteTokenizer()
        made = [
            Source(f"{folder.parent.name}/{folder.name}/{name}", *known) for name, known in manifest["files"].items()
        ]
        return Tokens(train, valid, tokenizer, (*(Source(**known) for known in manifest["sources"]), *made))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"{folder} is damaged ({files.one_line(error)}); {mend}") from None


def _map(path: Path, dtype: Any) -> Array:
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r")


def file_sha256(path: Path) -> str:
    """The checksum of a file, of which a small part at a time is in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- Making ----


def make(
    folder: Path, sources: Iterable[Source], texts: Mapping[str, Text], vocab_size: int, bar: Bar = NO_BAR
) -> None:  # fmt: skip
    """Fill a folder with the token files of the texts `train` and `valid`, going on from wherever a kill has left it.

    `sources` say which texts these are; `bar` makes progress bars, as tqdm does. In the end the files are the same
    bytes, however often it was killed: the BPE repeats bit for bit, and the pieces of a text have the tokens of the
    whole. Raises ValueError when the text has too few pairs for the vocabulary, OSError when it cannot write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):  # by what was killed
        left.unlink()
    versions = {"microumup": __version__}
    if vocab_size > BYTES:
        versions["tokenizers"] = corpora.extra("tokenizers", f"--vocab-size {vocab_size}").__version__
    of = {
        "vocab_size": vocab_size, "dtype": "uint16" if vocab_size > BYTES else "uint8",
        "sources": [source._asdict() for source in sources],
        "versions": versions,
    }  # fmt: skip
    state, bpe = _begun(folder, of), None
    if vocab_size > BYTES:
        if "tokenizer" not in state:
            size = sum(map(len, texts["train"]()))
            with bar(total=size, desc="reading for the BPE") as read_so_far:
                corpora.train_bpe(_watched(texts["train"](), read_so_far), vocab_size).save(folder)
            state["tokenizer"] = file_sha256(folder / "tokenizer.json")
            files.write_json(folder / "progress.json", files.sealed(state))
        bpe = corpora.load_bpe(folder / "tokenizer.json", state["tokenizer"])
    for split, text in texts.items():
        _encode(folder, split, text, bpe, state, bar)
    names = [*["tokenizer.json"] * (bpe is not None), *(f"{split}.bin" for split in texts)]
    made = {name: [(folder / name).stat().st_size, file_sha256(folder / name)] for name in names}
    files.write_json(folder / "manifest.json", files.sealed(of | {"files": made}))
    (folder / "progress.json").unlink(missing_ok=True)
    files.to_disk(folder)


def _begun(folder: Path, of: Mapping[str, Any]) -> dict[str, Any]:
    """How far one that was killed has come, if it was at the same and its BPE is still what it was."""
    with suppress(ValueError, KeyError, OSError):
        state = files.read_record(folder / "progress.json")
        learned = state.get("tokenizer")
        if state["of"] == of and learned in (None, file_sha256(folder / "tokenizer.json")):
            return state
    return {"of": of}


def _encode(folder: Path, split: str, text: Text, bpe: BpeTokenizer | None, state: dict[str, Any], bar: Bar) -> None:
    """Write a split's tokens, a GROUP of pieces at a time; after each they are on the disk, and `state` beside them."""
    path = folder / f"{split}.bin"
    with path.open("r+b" if path.exists() else "w+b") as file:
        done = state.get(split, {})
        if not done or _crc32(file, done["size"]) != done["crc32"]:
            done = {"pieces": 0, "read": 0, "size": 0, "crc32": 0}
        file.seek(done["size"])
        file.truncate()
        groups = islice(corpora.pieces(text()), done["pieces"], None)
        with bar(total=sum(map(len, text())), initial=done["read"], desc=f"encoding {split}") as encoded:
            while group := list(islice(groups, GROUP)):
                size = sum(map(len, group))
                tokens = _tokens(group, bpe)
                file.write(tokens)
                file.flush()
                os.fsync(file.fileno())
                done = {
                    "pieces": done["pieces"] + len(group), "read": done["read"] + size,
                    "size": done["size"] + len(tokens), "crc32": crc32(tokens, done["crc32"]),
                }  # fmt: skip
                state[split] = done
                files.write_json(folder / "progress.json", files.sealed(state))
                encoded.update(size)


def encode(text: bytes, bpe: BpeTokenizer | None = None) -> Array:
    """The tokens of a text, in memory: its bytes, without a copy, where there is no BPE."""
    if bpe is None:
        return np.frombuffer(text, np.uint8)
    pieces = corpora.pieces([text])
    return np.frombuffer(
        b"".join(_tokens(group, bpe) for group in iter(lambda: list(islice(pieces, GROUP)), [])), "<u2"
    )


def _tokens(group: list[bytes], bpe: BpeTokenizer | None) -> bytes:
    if bpe is None:
        return b"".join(group)
    return bpe.encode_pieces([piece.decode() for piece in group]).astype("<u2").tobytes()


def _crc32(file: BinaryIO, size: int) -> int | None:
    """The checksum of the first `size` bytes of a file; None where it is shorter."""
    found = 0
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        found, size = crc32(part, found), size - len(part)
    return None if size else found


def _watched(text: Iterable[bytes], bar: Any) -> Iterator[bytes]:
    for part in text:
        yield part
        bar.update(len(part))
