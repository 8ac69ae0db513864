"""WikiText-103, prepared from a hub on this machine: downloaded, checked, tokenized; and whatever interrupts that."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused
from loopback_hub import Hub, serving

from microumup import corpora, files, prepare, token_files, train
from microumup.backend import install_hint
from microumup.corpora import Source
from microumup.data import load_corpus
from microumup.run_dir import RunDir

ROWS = {
    "train-00000-of-00002.parquet": ["", " = Title = \n", "", *(f" The {i} states of Zürich . \n" for i in range(400))],
    "train-00001-of-00002.parquet": [f" More {i * i} of “it” . \n" for i in range(400)],
    "validation-00000-of-00001.parquet": [" Some other text . \n"] * 100,
}
FIRST, SECOND, VALID = ROWS
VOCABULARY = 280
COMMAND = ["prepare", "wikitext-103", "--vocab-size", str(VOCABULARY), "--quiet"]

CHILD = """
import json, os, signal, sys
from huggingface_hub import constants
from microumup import checkpoint, cli, corpora, prepare, token_files
constants.DOWNLOAD_CHUNK_SIZE = 64
prepare.FILES = {k: [corpora.Source(*s) for s in v] for k, v in json.loads(sys.argv[1]).items()}
token_files.GROUP = 2
pieces = corpora.pieces
corpora.pieces = lambda text, size=1 << 10: pieces(text, size)
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
exec(sys.argv[2])
cli.run(lambda: prepare.main(sys.argv[3:]))
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with small files, which prepare takes for the real ones, and an empty cache."""
    arrow = pytest.importorskip("pyarrow", reason="WikiText needs the extra `data`")
    parquet = pytest.importorskip("pyarrow.parquet", reason="WikiText needs the extra `data`")
    for library in ("huggingface_hub", "tokenizers"):
        pytest.importorskip(library, reason="WikiText needs the extra `data`")
    hub, sources = Hub(), []
    for name, rows in ROWS.items():
        buffer = io.BytesIO()
        parquet.write_table(arrow.table({"text": rows}), buffer, row_group_size=100)
        hub.files[name] = buffer.getvalue()
        sources.append(corpora.source(name, hub.files[name]))
    monkeypatch.setattr(prepare, "FILES", {"train": sources[:2], "valid": sources[2:]})
    monkeypatch.setenv("MICROUMUP_CACHE", str(tmp_path / "cache"))
    with serving(hub):
        fresh_hub(monkeypatch, tmp_path, hub.url)
        yield hub


def fresh_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str) -> None:
    """Have huggingface_hub imported anew: it reads its settings from the environment only then."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)  # so that half a small file arrives
    monkeypatch.setattr(time, "sleep", lambda _: None)  # its client waits a second before it tries again


def child(before: str = "", command: list[str] = COMMAND) -> "subprocess.Popen[str]":
    """The command in a process of its own, with `before` run first."""
    argv = [sys.executable, "-c", CHILD, json.dumps(prepare.FILES), before, *command]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def folder() -> Path:
    return token_files.prepared_folder(VOCABULARY)


def content(path: Path) -> dict[str, bytes]:
    """Everything in the cache but the lock, by name."""
    found = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def text(*names: str) -> str:
    return "".join(row for name in names for row in ROWS[name])


# ---- As it should go ----


def test_it_downloads_each_file_once_and_keeps_the_splits(hub: Hub, tmp_path: Path) -> None:
    assert prepare.main(COMMAND) == 0
    assert hub.asked == [f"GET {name} 0" for name in ROWS]
    corpus = load_corpus("wikitext-103", vocab_size=VOCABULARY, seq_len=8)
    assert corpus.tokenizer.decode(corpus.train) == text(FIRST, SECOND)
    assert corpus.tokenizer.decode(corpus.valid) == text(VALID)
    assert corpus.tokenizer.vocab_size == VOCABULARY
    assert isinstance(corpus.train, np.memmap)
    assert corpus.train.dtype == np.uint16
    assert (folder() / "train.bin").read_bytes() == corpus.train.astype("<u2").tobytes()
    names = {"manifest.json", "tokenizer.json", "train.bin", "valid.bin"}
    assert set(content(tmp_path / "cache")) == {f"wikitext-103/{name}" for name in ROWS} | {
        f"wikitext-103/{VOCABULARY}/{name}" for name in names
    }


def test_a_second_time_nothing_is_done(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.main(COMMAND)
    before = content(tmp_path / "cache")
    hub.asked.clear()
    assert prepare.main(COMMAND[:-1]) == 0
    assert f"{folder()} is there already, and whole" in capsys.readouterr().out
    assert hub.asked == []
    assert content(tmp_path / "cache") == before


def test_another_vocabulary_needs_no_second_download(hub: Hub) -> None:
    prepare.main(COMMAND)
    hub.asked.clear()
    prepare.main(["prepare", "wikitext-103", "--vocab-size", "256", "--quiet"])
    assert hub.asked == []
    corpus = load_corpus("wikitext-103", seq_len=8)
    assert corpus.train.dtype == np.uint8
    assert corpus.train.tobytes().decode() == text(FIRST, SECOND)
    assert corpus.tokenizer.sha256 is None


def test_the_manifest_says_of_what_and_by_what(hub: Hub) -> None:
    prepare.main(COMMAND)
    manifest = files.read_record(folder() / "manifest.json")
    sources = [Source(**known) for known in manifest["sources"]]
    assert sources == [corpora.source(name, hub.files[name]) for name in ROWS]
    now = {name: corpora.source(name, (folder() / name).read_bytes()) for name in manifest["files"]}
    assert manifest["files"] == {name: [known.size, known.sha256] for name, known in now.items()}
    assert manifest["versions"]["tokenizers"] == pytest.importorskip("tokenizers").__version__
    made = [source._replace(name=f"wikitext-103/{VOCABULARY}/{name}") for name, source in now.items()]
    assert load_corpus("wikitext-103", vocab_size=VOCABULARY, seq_len=8).sources == (*sources, *made)


def test_it_ends_with_what_to_run_next(hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(prepare, "PREPARED_VOCABULARY", VOCABULARY)
    assert prepare.main(["prepare", "wikitext-103", "--json"]) == 0
    *_, line, last = capsys.readouterr().out.splitlines()
    assert line == "next: microumup train --preset paper"
    answer = json.loads(last)
    assert (answer["next"], answer["vocab_size"]) == ("microumup train --preset paper", VOCABULARY)
    assert answer["train_tokens"] == len(load_corpus("wikitext-103", vocab_size=VOCABULARY, seq_len=8).train)


@pytest.mark.parametrize("which", [["sotu"], ["--text", "{text}"]])
def test_what_it_says_to_run_next_finds_the_tokens(
    which: list[str], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers", reason="BPE needs the extra `data`")
    monkeypatch.setenv("MICROUMUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "read_sotu", text.read_bytes)
    assert prepare.main(["prepare", *(word.format(text=text) for word in which), "--vocab-size", "262"]) == 0
    following = capsys.readouterr().out.splitlines()[-1].removeprefix("next: microumup train ")
    monkeypatch.setattr(corpora, "train_bpe", None)  # would fail if called
    sizes = {"steps": 1, "width": 8, "head-dim": 4, "layers": 1, "seq-len": 8, "batch-size": 2}
    small = ["--quiet", *(f"--{name}={size}" for name, size in sizes.items())]
    assert train.main([*following.split(), *small, "--out", str(tmp_path / "run")]) == 0


def test_a_run_knows_its_token_files(hub: Hub, tmp_path: Path) -> None:
    prepare.main(COMMAND)
    config = train.TrainConfig(corpus="wikitext-103", vocab_size=VOCABULARY, seq_len=8)
    corpus = load_corpus("wikitext-103", vocab_size=VOCABULARY, seq_len=8)
    RunDir.create(tmp_path / "run", config, corpus).close()
    RunDir.resume(tmp_path / "run", corpus).close()
    hub.files[VALID] = hub.files[FIRST]  # another text, whose own checksums are all right
    sources = [corpora.source(name, content) for name, content in hub.files.items()]
    prepare.FILES.update({"train": sources[:2], "valid": sources[2:]})  # type: ignore[dict-item]
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    prepare.main(COMMAND)
    other = load_corpus("wikitext-103", vocab_size=VOCABULARY, seq_len=8)
    with pytest.raises(ValueError, match=rf"^{VALID} has changed since {tmp_path / 'run'} began; restore it"):
        RunDir.resume(tmp_path / "run", other)


@pytest.mark.parametrize("vocab_size", [256, VOCABULARY])
def test_another_text_can_be_held_out(vocab_size: int, hub: Hub, tmp_path: Path) -> None:
    prepare.main(["prepare", "wikitext-103", "--vocab-size", str(vocab_size), "--quiet"])
    path = tmp_path / "held out.txt"
    path.write_text("The states of Zürich, once more. " * 10_000)  # of several pieces
    corpus, plain = (load_corpus("wikitext-103", valid=v, vocab_size=vocab_size, seq_len=8) for v in ([path], []))
    assert corpus.tokenizer.decode(corpus.valid) == path.read_text()
    assert corpus.train.tobytes() == plain.train.tobytes()
    assert corpus.sources == (*plain.sources, corpora.source(path, path.read_bytes()))


# ---- Where it is missing ----


@pytest.mark.parametrize(
    ("options", "command"),
    [
        (["--preset", "paper"], "microumup data prepare wikitext-103"),
        (["--corpus", "wikitext-103"], "microumup data prepare wikitext-103 --vocab-size 256"),
    ],
)
def test_train_says_what_to_run_and_downloads_nothing(
    options: list[str], command: str, hub: Hub, tmp_path: Path, refused: Refused
) -> None:
    error = refused(train.main, [*options, "--out", str(tmp_path / "run"), "--quiet"])
    assert "--corpus wikitext-103: " in error
    assert error.endswith(f"; run: {command}\n")
    assert hub.asked == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["train.bin", "valid.bin", "tokenizer.json", "manifest.json"])
def test_damaged_token_files_are_refused_and_made_again(
    name: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.main(COMMAND)
    whole = content(tmp_path / "cache")
    (folder() / name).write_bytes(whole[f"wikitext-103/{VOCABULARY}/{name}"][:-3] + b"\0\0\0")
    with pytest.raises(
        ValueError, match=rf"^{folder()} is damaged \(.*\); run: microumup data prepare wikitext-103 --voc"
    ):
        load_corpus("wikitext-103", vocab_size=VOCABULARY, seq_len=8)
    prepare.main(COMMAND[:-1])
    assert f"{folder()} is damaged" in capsys.readouterr().out
    assert content(tmp_path / "cache") == whole


# ---- Downloads that go wrong ----


def test_a_server_that_cuts_the_line_is_asked_for_the_rest(hub: Hub) -> None:
    hub.cuts_after[FIRST] = 640
    assert prepare.main(COMMAND) == 0
    assert hub.asked[:3] == [f"GET {FIRST} 0", f"GET {FIRST} 640", f"GET {SECOND} 0"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_dies_midway_is_said_and_gone_on_from(hub: Hub, ranges: bool, refused: Refused) -> None:
    hub.dies_after[SECOND], hub.ranges = 640, ranges
    error = refused(prepare.main, COMMAND)
    assert re.search(rf": {SECOND}: 640 of [\d,]+ bytes are here \(.*\); check the network, and run the same", error)
    hub.dead = False
    hub.asked.clear()
    assert prepare.main(COMMAND) == 0
    assert (hub.asked[0], hub.asked[-1]) == (f"GET {SECOND} 640", f"GET {VALID} 0")


@pytest.mark.parametrize("begun", [b"?" * 640, b"?" * 10_000])
def test_a_beginning_that_is_damaged_is_downloaded_anew(hub: Hub, begun: bytes) -> None:
    folder().parent.mkdir(parents=True)
    (folder().parent / f".{FIRST}.part").write_bytes(begun)
    assert prepare.main(COMMAND) == 0
    assert [line for line in hub.asked if FIRST in line][-1] == f"GET {FIRST} 0"


def test_a_truncated_file_is_refused_and_gone_on_from(hub: Hub, refused: Refused) -> None:
    whole = hub.files[FIRST]
    hub.files[FIRST] = whole[:1000]
    error = refused(prepare.main, COMMAND)
    assert f"{FIRST}: 1,000 of {len(whole):,} bytes are here (" in error
    hub.files[FIRST] = whole
    assert prepare.main(COMMAND) == 0


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda whole: whole[:-1] + b"?", r"sha256 \w{64}, expected \w{64}"),
        (lambda whole: whole + b"?", "bytes, expec"),
    ],
)
def test_another_file_is_refused_and_deleted(
    hub: Hub, wrong: Callable[[bytes], bytes], found: str, tmp_path: Path, refused: Refused
) -> None:
    whole = hub.files[VALID]
    hub.files[VALID] = wrong(whole)
    error = refused(prepare.main, COMMAND)
    assert re.search(rf": {VALID}: what came is not it, and is deleted \(.*{found}.*\); check HF_ENDPOINT", error)
    assert not list((tmp_path / "cache").rglob("*validation*"))
    hub.files[VALID] = whole
    assert prepare.main(COMMAND) == 0


def test_a_download_that_was_changed_later_is_refused(hub: Hub, tmp_path: Path, refused: Refused) -> None:
    prepare.main(COMMAND)
    path = folder().parent / SECOND
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    error = refused(prepare.main, ["prepare", "wikitext-103", "--vocab-size", "257", "--quiet"])
    assert f"{path} is damaged (sha256 " in error
    assert error.endswith("; delete it and run again\n")


def test_a_file_that_is_no_more_is_named(hub: Hub, refused: Refused) -> None:
    del hub.files[SECOND]
    assert f": {SECOND}: 0 of " in (error := refused(prepare.main, COMMAND))
    assert "404" in error


def test_without_network_it_is_a_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    fresh_hub(monkeypatch, tmp_path, "http://127.0.0.1:9")  # the discard port: nothing listens
    error = refused(prepare.main, COMMAND)
    assert f"{FIRST}: 0 of " in error
    assert "ConnectError" in error or "ConnectionError" in error
    assert f"or put the file into {folder().parent} yourself" in error


# ---- Everything else that goes wrong ----


@pytest.mark.parametrize("module", ["huggingface_hub", "pyarrow.parquet", "tokenizers"])
def test_a_missing_extra_is_a_hint(hub: Hub, module: str, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail
    error = refused(prepare.main, COMMAND)
    assert error.endswith(f"data prepare wikitext-103: needs {module.split('.')[0]}; {install_hint('data')}\n")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["prepare"], "prepare: name one text, wikitext-103, sotu or --text FILE"),
        (["prepare", "sotu", "--text", "a.txt"], "prepare: name one text"),
        (["prepare", "sotu"], "--vocab-size: say how many tokens"),
        (["prepare", "wikitext-103", "--vocab-size", "255"], "--vocab-size 255: take 256 for bytes, or up to 65536"),
        (["prepare", "wikitext-103", "--vocab-size", "65537"], "--vocab-size 65537: take 256"),
        (["prepare", "--text", "/no/such.txt", "--vocab-size", "300"], "--text /no/such.txt: cannot be read"),
        (["prepare", "c4"], "{wikitext-103,sotu}: invalid choice: 'c4'"),
    ],
)
def test_bad_arguments_are_a_line(argv: list[str], says: str, refused: Refused) -> None:
    assert says in refused(prepare.main, argv)


def test_too_large_a_vocabulary_for_the_text(hub: Hub, refused: Refused) -> None:
    error = refused(prepare.main, ["prepare", "wikitext-103", "--vocab-size", "60000", "--quiet"])
    assert re.search(r"--vocab-size 60000: the text has only \d+ tokens; ask for that", error)


def test_a_cache_that_cannot_be_is_a_line(hub: Hub, tmp_path: Path, monkeypatch: Any, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MICROUMUP_CACHE", str(tmp_path / "file" / "cache"))
    error = refused(prepare.main, COMMAND)
    assert re.search(r"MICROUMUP_CACHE: cannot write to .*file/cache \(Not a directory\); make room there, or", error)


def test_two_at_a_time_do_not_get_into_each_others_way(hub: Hub, refused: Refused) -> None:
    folder().parent.mkdir(parents=True)
    lock = files.lock(folder().parent)
    assert "another process is writing here" in refused(prepare.main, COMMAND)
    lock.release()
    assert hub.asked == []
    assert prepare.main(COMMAND) == 0


def test_ctrl_c_says_that_it_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora, "train_bpe", interrupt)
    assert prepare.main(COMMAND) == 130
    assert capsys.readouterr().err == f"microumup data: interrupted; {prepare.AGAIN}\n"


# ---- Killed, and run again ----

FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))"


@pytest.mark.skipif(os.name == "nt", reason="limits and signals of POSIX")
def test_killed_at_every_stage_it_ends_with_the_same_bytes(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    """The processes share a cache: each is killed a stage later than the one before, and goes on from its leavings."""
    prepare.main(COMMAND)
    whole = content(tmp_path / "cache")
    monkeypatch.setenv("MICROUMUP_CACHE", str(tmp_path / "killed"))
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "100")  # or it would ask again, and all would come
    hub.hangs_after[FIRST] = 640
    hub.asked.clear()
    process = child()
    assert hub.reached.wait(60)
    part = folder().parent / f".{FIRST}.part"
    deadline = time.monotonic() + 30
    while not part.exists() or part.stat().st_size < 640:
        assert time.monotonic() < deadline
    process.kill()
    process.communicate()
    stages = {
        FULL: 2,  # a full disk, in the download
        "corpora.BpeTokenizer.save = die": -signal.SIGKILL,
        "tokens, n = token_files._tokens, iter(range(9))\n"
        "token_files._tokens = lambda *a: die() if next(n) == 3 else tokens(*a)": -signal.SIGKILL,
        "token_files.read = die": -signal.SIGKILL,
    }
    for before, status in stages.items():
        _, error = (process := child(before)).communicate(timeout=60)
        assert process.returncode == status, error
        if before == FULL:
            assert "MICROUMUP_CACHE: cannot write to " in error
            assert "(File too large); make room there, or set it to another folder\n" in error
            assert error.count("\n") == 1
    assert hub.asked[:2] == [f"GET {FIRST} 0", f"GET {FIRST} 640"]
    assert prepare.main(COMMAND) == 0
    assert content(tmp_path / "killed") == whole
