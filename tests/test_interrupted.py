"""What happens to a run while it writes: others, signals, a full disk, numbers that are none any more."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Refused
from small_runs import content, options, refuses

from microumup import checkpoint, files, run_dir, trainer
from microumup.config import TrainConfig
from microumup.data import Corpus
from microumup.diverged import Diverged
from microumup.generate import main as generate
from microumup.lab.scales import main as scales
from microumup.records import Command
from microumup.run_dir import RunDir, load_config, read_config, read_metrics
from microumup.train import main

SMALL = TrainConfig(width=8, head_dim=4, layers=1, seq_len=8, batch_size=2, steps=12)


# ---- One writer ----


def test_a_second_writer_is_refused(half: Path, corpus: Corpus, refused: Refused) -> None:
    held = files.lock(half)
    refuses(refused, half, str(half), "another process is writing here")
    held.release()
    assert main(["--resume", str(half), "--quiet"]) == 0


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = f"from microumup import files as f; h = f.lock(f.Path({str(tmp_path)!r})); print(1, flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"1\n"
    with pytest.raises(ValueError, match="another process is writing here"):
        files.lock(tmp_path)
    process.kill()
    process.communicate()
    files.lock(tmp_path).release()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS])
def test_where_a_file_system_has_no_locks_it_is_said(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For ENOSYS, Lustre's, filelock warned in two lines of its own and left a file in place of a lock."""

    def without(*_: object) -> None:
        raise OSError(number, "no flock")

    monkeypatch.setattr(fcntl, "flock", without)
    held = files.lock(tmp_path)
    error = capsys.readouterr().err
    assert error.startswith(f"microumup: {tmp_path}: its file system has no locks (")
    assert error.count("\n") == 1
    assert not held.is_locked
    held.release()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        files.lock(tmp_path / "file" / "run")


def begin(folder: str, text: str, out: str | None, barrier: Any) -> None:
    os.chdir(folder)
    argv = options(Path(out or "x"), Path(text))
    argv = argv if out else [word for word in argv if word not in ("--out", "x")]
    barrier.wait()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - of a process that ends
    sys.exit(main(argv))


@pytest.mark.parametrize("out", [None, "run"])
def test_four_started_at_once(out: str | None, tmp_path: Path, text: Path) -> None:
    """Without a name they get four directories, with one name one of them gets it."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=begin, args=(str(tmp_path), str(text), out, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    statuses = sorted(process.exitcode or 0 for process in processes)
    runs = [tmp_path / "run"] if out else list((tmp_path / "runs").iterdir())
    assert len(runs) == (1 if out else 4)
    assert statuses == ([0, 2, 2, 2] if out else [0, 0, 0, 0])
    for run in runs:
        assert len(read_metrics(run)) == 12


# ---- Stopping ----


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(
    number: int, status: int, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, launch = tmp_path / "run", trainer.Trainer.launch

    def signalled(self: trainer.Trainer, step: int, **kwargs: Any) -> Any:
        if step == 6:
            os.kill(os.getpid(), number)
        return launch(self, step, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "launch", signalled)
        argv = options(run, text)
        argv[argv.index("--save-every") + 1] = "1000"
        assert main(argv) == status
    assert checkpoint.load(run / "checkpoint.safetensors")[1]["step"] == 7
    assert f"interrupted; continue with --resume {run}" in capsys.readouterr().err
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    assert main(["--resume", str(run), "--quiet"]) == 0


def test_a_signal_is_heard_before_anything_is_written(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM ended the process without a word while a long history was written anew."""
    run, write = RunDir.create(tmp_path / "run", SMALL, corpus), files.write_lines

    def signalled(*args: Any, **kwargs: Any) -> None:
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        write(*args, **kwargs)

    monkeypatch.setattr(files, "write_lines", signalled)
    with pytest.raises(KeyboardInterrupt):
        run.__enter__()
    assert run.asked == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    RunDir.resume(tmp_path / "run", corpus).close()


def test_closing_a_second_time_does_nothing(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the handlers away that others had set since."""
    with RunDir.create(tmp_path / "run", SMALL, corpus) as run:
        run.close()
        monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("another's handler is gone"))


def test_ctrl_c_after_the_end_does_not_ask_to_resume_it(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was finished, and being told of, was to be continued."""

    def stops(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("microumup.train.told", stops)
    assert main(options(tmp_path / "run", text)) == 130
    assert capsys.readouterr().err == "microumup train: interrupted\n"


def test_a_second_ctrl_c_quits_at_once(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, launch = tmp_path / "run", trainer.Trainer.launch

    def impatient(self: trainer.Trainer, step: int, **kwargs: Any) -> Any:
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        return launch(self, step, **kwargs)

    monkeypatch.setattr(trainer.Trainer, "launch", impatient)
    began = time.monotonic()
    assert main(options(run, text)) == 130
    assert time.monotonic() - began < 5
    assert checkpoint.load(run / "checkpoint.safetensors")[1]["step"] == 4


def test_minutes_bound_what_is_lost(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a checkpoint is 5 minutes old at most, however long a step takes."""
    now, saved = [0.0], []
    save = checkpoint.save
    monkeypatch.setattr(run_dir, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        checkpoint, "save", lambda path, arrays, info: (saved.append(info["step"]), save(path, arrays, info))
    )
    launch = trainer.Trainer.launch

    def slow(self: trainer.Trainer, step: int, **kwargs: Any) -> Any:
        now[0] += 100  # seconds
        return launch(self, step, **kwargs)

    monkeypatch.setattr(trainer.Trainer, "launch", slow)
    argv = options(tmp_path / "run", text)
    del argv[argv.index("--save-every") : argv.index("--save-every") + 2]
    assert main(argv) == 0
    assert saved == [3, 6, 9, 12]


def test_a_checkpoint_is_never_ahead_of_what_was_logged(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """scales.jsonl was not on the disk: after a power cut its run was refused, or began at 0."""
    did, fsync = list[str](), os.fsync

    def synced(descriptor: int) -> None:
        did.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    assert main(options(tmp_path / "run", text, "--log-scales", "1")) == 0
    first = next(i for i, name in enumerate(did) if name.startswith(".checkpoint"))
    assert {"metrics.jsonl", "scales.jsonl"} <= {*did[:first]}


# ---- A full disk ----


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def full(arrays: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        assert main(options(run, text)) == 1
    error = capsys.readouterr().err
    assert error.startswith("microumup train: ")
    assert "No space left on device" in error
    assert f"--resume {run}" in error
    assert error.count("\n") == 1
    assert set(content(run)) == {"config.json", "metrics.jsonl"}
    assert main(["--resume", str(run), "--quiet"]) == 0


# ---- Divergence ----


def test_weights_ruined_by_the_last_update_are_divergence(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = trainer.Trainer.launch

    def ruins(self: trainer.Trainer, step: int, **kwargs: Any) -> Any:
        found = launch(self, step, **kwargs)
        if step == 11:
            self.params["head"][:] = np.nan
        return found

    monkeypatch.setattr(trainer.Trainer, "launch", ruins)
    run = tmp_path / "run"
    assert main([*options(run, text), "--json"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    advice = "try a lower --lr than 1.5 or a longer --warmup"
    assert error == f"microumup train: diverged: the validation loss is nan at step 12; {advice}\n"
    assert not (run / "result.json").exists()
    monkeypatch.undo()
    assert generate([str(run)]) == 1
    error = capsys.readouterr().err
    assert "diverged: the largest element of head is nan at step 12" in error
    assert error.count("\n") == 1
    assert scales([str(run), "--quiet", "--json"]) in (0, 1)
    for line in capsys.readouterr().out.splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_gradient_that_overflows_is_divergence_and_the_advice_fits(corpus: Corpus) -> None:
    config = replace(SMALL, loss_scale=1e25)
    with pytest.raises(Diverged, match=r"the gradient's norm is inf at step 0; try a lower --loss-scale than 1e\+25$"):
        trainer.train(config, corpus)


def test_advice_before_any_update_is_not_about_the_learning_rate(corpus: Corpus) -> None:
    config = replace(SMALL, scheme="mup", alpha_loss_softmax=1e6, sigma_init=1e6, alpha_emb=1e6, lr=1.0)
    found = Diverged(0, "loss", float("inf"), config)
    assert "--lr" not in str(found)
    assert "--sigma-init and --alpha-emb nearer to the default" in str(found)
    assert "--warmup" not in str(Diverged(3, "loss", float("inf"), replace(config, warmup=1.0)))


def test_a_run_directory_is_read_back(half: Path) -> None:
    config, command, _ = read_config(half)
    assert config == load_config(half)
    assert command == Command(save_every=4, log_scales=3)
    with pytest.raises(ValueError, match="holds no run"):
        load_config(half / "nowhere")


def test_a_failure_lets_go_of_the_directory(tmp_path: Path, corpus: Corpus) -> None:
    run = RunDir.create(tmp_path / "run", SMALL, corpus)
    run.metrics.mkdir()
    with pytest.raises(OSError, match="metrics"):
        run.__enter__()
    files.lock(tmp_path / "run").release()
