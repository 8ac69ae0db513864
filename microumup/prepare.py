"""`python -m microumup data prepare`: WikiText-103 downloaded, checked and tokenized, for `train --preset paper`.

Whatever stops it, the same command goes on where it was: half a download grows, half a split of tokens too, and what
comes out are the same bytes. The text, half a gigabyte, is read from the downloaded files in small parts, never whole.
"""

import argparse
import errno
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from microumup import cli, corpora, files, token_files
from microumup.corpora import BYTES, Source, extra
from microumup.data import Corpus, load_corpus
from microumup.token_files import NO_BAR, PREPARED, PREPARED_VOCABULARY, Bar, writing

REPOSITORY = {  # of the Hugging Face hub, where a revision never changes
    "repo_id": "Salesforce/wikitext", "repo_type": "dataset", "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
}  # fmt: skip
FILES = {  # of its folder wikitext-103-raw-v1, by split
    "train": (
        Source(
            "train-00000-of-00002.parquet", 156_987_808,
            "74da360f23826045b3e6ac6375411fdb15f003030aa74f2596ed08b857cb9212",
        ),
        Source(
            "train-00001-of-00002.parquet", 157_088_770,
            "ba090ac30dbf5461e8dcbdd1a1b8e6f3cf9c2c756d64f0c1220450acd514f720",
        ),
    ),
    "valid": (
        Source(
            "validation-00000-of-00001.parquet", 657_209,
            "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c",
        ),
    ),
}  # fmt: skip
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # what a disk refuses, and no network does
AGAIN = "run the same command again, it goes on from there"


def main(argv: list[str] | None = None) -> int:
    """The command `data`."""
    parser = cli.Parser(
        "data",
        "Make a text ready for training, once. WikiText-103, which the paper trains on: download it (315 MB), learn\n"
        "32,000 tokens from it and write the text in them; about a quarter of an hour. Stopped anywhere, the same\n"
        "command goes on. Needs the extra `data`, and room in $MICROUMUP_CACHE (default ~/.cache/microumup): 0.6 GB.",
        operands="prepare {wikitext-103,sotu}",
        examples="  microumup data prepare wikitext-103                      for train --preset paper\n"
        "  microumup data prepare sotu --vocab-size 1000            the shipped text, in 1,000 tokens\n"
        "  microumup data prepare --text a.txt --vocab-size 4000    a text of your own",
    )
    parser.add_argument("action", choices=("prepare",), metavar="prepare", help="the one thing that is done to data")
    shipped, named = (PREPARED, "sotu"), f"{{{PREPARED},sotu}}"  # the name, or an error would speak of a "corpus"
    words = "the text, if it is not in a --text"
    parser.add_argument("corpus", nargs="?", choices=shipped, metavar=named, help=words)
    parser.add_argument("--text", nargs="+", default=[], type=Path, metavar="FILE", help="your own UTF-8 text files")
    vocabulary = f"tokens of the BPE; {BYTES} are bytes (default: {PREPARED_VOCABULARY} for {PREPARED})"
    parser.add_argument("--vocab-size", type=cli.whole, metavar="N", help=vocabulary)
    cli.shared(parser, "quiet", json="tokens of each split, sources with checksums, and what to run next")
    args = parser.parse_args(argv)
    say = cli.say(args.quiet)
    try:
        with cli.bad_input(parser):
            corpus = _prepare(args, say)
    except KeyboardInterrupt:
        parser.complain(f"interrupted; {AGAIN}")
        return 130
    following = _next(args)
    train, valid = len(corpus.train), len(corpus.valid)
    say(
        f"{corpus.name}: {train:,} tokens to train on and {valid:,} to validate, of a vocabulary of {args.vocab_size:,}"
    )
    say(f"next: {following}")
    cli.json_line(args, {
        "corpus": corpus.name, "vocab_size": args.vocab_size, "train_tokens": train,
        "valid_tokens": valid, "sources": corpus.sources, "tokenizer": corpus.tokenizer.sha256,
        "cache": str(corpora.cache_folder()), "next": following,
    })  # fmt: skip
    return 0


def _prepare(args: argparse.Namespace, say: Callable[..., None]) -> Corpus:
    if bool(args.text) == bool(args.corpus):
        raise ValueError(f"prepare: name one text, {PREPARED}, sotu or --text FILE")
    if args.vocab_size is None and args.corpus != PREPARED:
        raise ValueError("--vocab-size: say how many tokens to learn from the text; bytes need no preparing")
    args.vocab_size = PREPARED_VOCABULARY if args.vocab_size is None else args.vocab_size
    token_files.check_vocabulary(args.vocab_size)
    if args.corpus == PREPARED:
        prepare_wikitext(args.vocab_size, quiet=args.quiet, say=say)
    return load_corpus(args.corpus or "", text=args.text, vocab_size=args.vocab_size, seq_len=1)


def _next(args: argparse.Namespace) -> str:
    if args.corpus == PREPARED and args.vocab_size == PREPARED_VOCABULARY:
        return "microumup train --preset paper"
    text = f"--text {' '.join(map(str, args.text))}" if args.text else f"--corpus {args.corpus}"
    return f"microumup train {text} --vocab-size {args.vocab_size}"


def prepare_wikitext(vocab_size: int, *, quiet: bool = True, say: Callable[..., None] = cli.say(True)) -> None:
    """Leave WikiText-103 as token files where `token_files.prepared` finds them.

    Raises ValueError in a line where an extra is missing, a file cannot be had or is another than it was, the disk
    refuses, or another process is at it. What is done by then is kept, and gone on from.
    """
    for module in ("huggingface_hub", "pyarrow.parquet", "tokenizers"):  # before a long download
        extra(module, f"data prepare {PREPARED}")
    folder = token_files.prepared_folder(vocab_size)
    bar = partial(tqdm, disable=True if quiet else None, unit="B", unit_scale=True, dynamic_ncols=True)
    with writing(corpora.cache_folder()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = files.lock(folder.parent)
        try:
            if folder.exists() and _damaged(folder, say):
                shutil.rmtree(folder)
            if folder.exists():
                say(f"{folder} is there already, and whole")
                return
            fetched = {split: [download(file, folder.parent, bar) for file in of] for split, of in FILES.items()}
            sources = [file for of in FILES.values() for file in of]
            say(f"reading {sum(file.size for file in sources):,} bytes of {PREPARED}")
            texts = {split: partial(read_parquet, paths) for split, paths in fetched.items()}
            begun = folder.with_name(f".{folder.name}.begun")
            token_files.make(begun, sources, texts, vocab_size, bar)
            begun.replace(folder)
            files.to_disk(folder.parent)
            say(f"wrote {folder}; the downloads beside it are only needed for another --vocab-size")
        finally:
            lock.release()


def _damaged(folder: Path, say: Callable[..., None]) -> bool:
    try:
        token_files.read(folder, "it is made again")
    except ValueError as error:
        say(str(error))
        return True
    return False


def read_parquet(paths: list[Path]) -> Iterator[bytes]:
    """The text of parquet files, a few thousand lines at a time. Each line ends in its own newline."""
    parquet = extra("pyarrow.parquet", f"data prepare {PREPARED}")
    for path in paths:
        with parquet.ParquetFile(path) as file:
            for rows in file.iter_batches(batch_size=4096, columns=["text"]):
                yield b"".join(rows.column(0).cast("binary").to_pylist())


# ---- Downloading ----


def download(file: Source, folder: Path, bar: Bar = NO_BAR) -> Path:
    """A file of the dataset in `folder`, whole and with the checksum it should have; the rest of it, if half is there.

    Raises ValueError when it cannot be had, keeping what came of it, and when it is another than it should be.
    """
    path, part = folder / file.name, folder / f".{file.name}.part"
    if path.exists():
        if found := _differs(path, file):
            raise ValueError(f"{path} is damaged ({found}); delete it and run again")
        return path
    resumed = _size(part) > 0
    while (had := _size(part)) < file.size:  # as long as something comes
        problem = _fetch(file, part, bar)
        if _size(part) <= had:
            raise ValueError(
                f"{file.name}: {had:,} of {file.size:,} bytes are here ({problem}); check the network, and {AGAIN}; "
                f"or put the file into {folder} yourself"
            )
    if found := _differs(part, file):
        part.unlink()
        if resumed:  # the first half may have been at fault
            return download(file, folder, bar)
        raise ValueError(f"{file.name}: what came is not it, and is deleted ({found}); check HF_ENDPOINT, run again")
    files.to_disk(part)
    part.replace(path)
    files.to_disk(folder)
    return path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(file: Source, part: Path, bar: Bar) -> str:
    """Add what is missing to a part of a file. The reason why that ended early, if it did.

    The hub's own download to its cache forgets half a file when the process ends, so this takes the function beneath
    it, which can begin in the middle. Size and checksum being known, nothing has to be asked of the server before.
    """
    hub, file_download = extra("huggingface_hub", file.name), extra("huggingface_hub.file_download", file.name)
    utils = extra("huggingface_hub.utils", file.name)
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()  # it warns of each of its attempts
    url = hub.hf_hub_url(filename=f"wikitext-103-raw-v1/{file.name}", **REPOSITORY)
    with part.open("ab") as opened, bar(total=file.size, initial=opened.tell(), desc=file.name) as progress:
        sizes = {"resume_size": opened.tell(), "expected_size": file.size}
        try:
            file_download.http_get(url, _Watched(opened, progress), headers=utils.build_hf_headers(), **sizes)
        except Exception as error:  # its types, and those of the HTTP client beneath, differ between versions
            if isinstance(error, OSError) and error.errno in DISK:
                raise
            return f"{type(error).__name__}: {files.one_line(error)}"
    return "the server ended"


class _Watched:
    """A file that moves a bar along while it is written to."""

    def __init__(self, file: BinaryIO, bar: Any) -> None:
        self._file, self._bar = file, bar

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: bytes) -> int:
        written = self._file.write(content)
        self._file.flush()  # what came is kept, whatever comes next
        self._bar.update(self._file.tell() - self._bar.n)  # back too, where the server began anew
        return written


def _differs(path: Path, file: Source) -> str:
    """Size or checksum of a file, and what it should be; empty where it is what it should be."""
    if (size := path.stat().st_size) != file.size:
        return f"{size:,} bytes, expected {file.size:,}"
    found = token_files.file_sha256(path)
    return f"sha256 {found}, expected {file.sha256}" if found != file.sha256 else ""


if __name__ == "__main__":
    cli.run(main)
