"""Runs that are killed, whose disk is full, whose clock jumps, and that have company."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from chaos_base import STEPS, Chaos, begin, child, end

from microumup import checkpoint, files, run_dir, train


def until_finished(chaos: Chaos, run: Path, like: str, disturb: Callable[[list[str]], Any], what: str) -> None:
    """Have `disturb(argv)` begin or resume the run again and again; at last nothing disturbs it."""
    for attempt in range(12):
        argv = (
            ["--resume", str(run), "--quiet"]
            if (run / "config.json").exists()
            else chaos.options(run, bpe=like == "bpe")
        )
        chaos.count("tried")
        last = attempt == 11
        outcome = child(lambda argv=argv: train.main(argv), 60) if last else disturb(argv)
        chaos.tidy(outcome, f"{what}: {argv}")
        if (run / "result.json").exists() and (outcome.status == 0 or attempt == 11):
            break
        if outcome.status == 2 and "is finished" in outcome.error:
            break
        if outcome.status == 2 and "No space" not in outcome.error:
            chaos.fault("lost", f"{what}: {outcome.error}")
            return
    chaos.judge(run, like, what)


def dies_in_a_file(moment: int, part: float, argv: list[str]) -> int:
    """A training that is killed at its `moment`th file operation, when so much of that is done."""
    left = [moment]

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and part < 0.3:
                kill()
            result = function(*args, **kwargs)
            if left[0] == 0:
                if part < 0.7 and args and isinstance(args[-1 if function is save else 0], Path):
                    path = args[-1 if function is save else 0]
                    if path.is_file():
                        os.truncate(path, int(path.stat().st_size * part))  # as if it had died while writing
                kill()
            return result

        return wrapped

    save = checkpoint.save_file
    os.fsync = mortal(os.fsync)
    for name in ("touch", "replace", "unlink", "write_bytes", "write_text", "mkdir", "chmod"):
        setattr(Path, name, mortal(getattr(Path, name)))
    checkpoint.save_file = mortal(save)
    append = files.append

    def half_a_line(path: Path, *records: Any, owner: str = "") -> None:
        left[0] -= 1
        whole = path.stat().st_size if path.exists() else 0
        append(path, *records, owner=owner)
        if left[0] == 0:
            os.truncate(path, whole + int((path.stat().st_size - whole) * part))
            kill()

    files.append = half_a_line
    return train.main(argv)


def kills(chaos: Chaos) -> None:
    rng, like = chaos.rng, chaos.rng.choice(["plain", "plain", "bpe"])

    def disturb(argv: list[str]) -> Any:
        chaos.count("kills")
        how = rng.random()
        if how < 0.5:
            moment, part = rng.randrange(1, 60), rng.random()
            return child(lambda: dies_in_a_file(moment, part, argv), 60)
        sent = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        outcome = child(lambda: train.main(argv), rng.uniform(0, 0.3), sent)
        if outcome.status in (130, 143) and "continue with --resume" not in outcome.error:
            chaos.fault("wrong", f"stopped without a word: {outcome.error}")
        if sent == signal.SIGINT and "KeyboardInterrupt" in outcome.error:  # before the command began, or at its end
            outcome.error = ""
        return outcome

    until_finished(chaos, chaos.fresh("kills"), like, disturb, "killed")


def clock(chaos: Chaos) -> None:
    """Time that goes back, stands still or leaps by years, for whoever asks; and files dated at random."""
    rng, run = chaos.rng, chaos.fresh("clock")

    def jumps() -> float:
        return rng.choice([0.0, 1e9, 4e9, time.monotonic() * 1e3, -1.0])

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Jumping":
            return cls(1999, 12, 31) + timedelta(seconds=rng.uniform(-1e9, 2e9))

    def disturb(argv: list[str]) -> Any:
        chaos.count("kills")
        for path in run.iterdir() if run.exists() else ():
            os.utime(path, (abs(jumps()), abs(jumps())))

        def work() -> int:
            time.time = jumps
            run_dir.datetime = Jumping  # type: ignore[misc,assignment]
            return train.main(argv)

        return child(work, rng.uniform(0, 0.4))

    until_finished(chaos, run, "plain", disturb, "clock")


def full_disk(chaos: Chaos) -> None:
    """A tmpfs that is full but for a random rest, which is larger each time."""
    mount = chaos.fresh("disk")
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if made.returncode:
        chaos.notes.append(f"full disk: skipped, no tmpfs can be mounted here ({made.stderr.strip()})")
        return
    try:
        ballast = mount / "ballast"

        def disturb(argv: list[str]) -> Any:
            room = chaos.rng.randrange(0, 250_000)
            ballast.unlink(missing_ok=True)
            free = shutil.disk_usage(mount).free
            ballast.write_bytes(bytes(max(0, free - room)))
            outcome = child(lambda: train.main(argv), 60)
            if outcome.status not in (0, 1, 2):
                chaos.fault("wrong", f"full disk: status {outcome.status}")
            if outcome.status == 1 and "No space left" not in outcome.error:
                chaos.fault("wrong", f"full disk: {outcome.error}")
            if outcome.status in (1, 2):
                chaos.count("refused")
            ballast.unlink(missing_ok=True)
            return outcome

        until_finished(chaos, mount / "run", "plain", disturb, "full disk")
    finally:
        subprocess.run(["umount", "-l", str(mount)], capture_output=True)


def writers(chaos: Chaos) -> None:
    """Three that resume one run, and four that begin one, at once."""
    run = chaos.fresh("writers")
    shutil.copytree(chaos.pristine / "plain-half", run)
    children = [begin(lambda: train.main(["--resume", str(run), "--quiet"])) for _ in range(3)]
    outcomes = [end(*each, 60) for each in children]
    chaos.count("tried", 3)
    for outcome in outcomes:
        chaos.tidy(outcome, "writers")
    refused = [outcome for outcome in outcomes if outcome.status == 2]
    chaos.count("refused", len(refused))
    for outcome in refused:
        if "another process is writing here" not in outcome.error and "is finished" not in outcome.error:
            chaos.fault("wrong", f"two writers: {outcome.error}")
    if len(refused) != 2:
        chaos.fault("wrong", f"{3 - len(refused)} of 3 went on with one run")
    chaos.judge(run, "plain", "two writers")

    folder = chaos.fresh("beginners")
    folder.mkdir()
    argv = chaos.options(Path("x"))
    argv = [*argv[: argv.index("--out")], *argv[argv.index("--out") + 2 :]]
    children = [begin(lambda: train.main(argv), folder) for _ in range(4)]
    outcomes = [end(*each, 60) for each in children]
    chaos.count("tried", 4)
    found = list((folder / "runs").iterdir())
    if len(found) != 4 or any(outcome.status for outcome in outcomes):
        chaos.fault("lost", f"four begun at once left {len(found)} directories: {[o.error for o in outcomes]}")
    for each in found:
        lines = len((each / "metrics.jsonl").read_text().splitlines())
        if lines != STEPS:
            chaos.fault("wrong", f"{lines} lines of metrics for {STEPS} steps")
        chaos.judge(each, "plain", "begun at once")
