"""Files that are cut, flipped, swapped, forged or missing, and the commands that read them."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_base import SIZES, Chaos, Outcome, bits, both, call, child

from microumup import generate, train
from microumup.lab import curve, scales, sweep
from microumup.lab.workers import InThisProcess
from microumup.run_dir import load_config, read_metrics

CASES = 40  # in a child

NONSENSE = ["NaN", "1e999", "-1", "0", '"text"', "null", "[]", "{}", "true", "1e308", "9" * 400,
            '"../../../etc/passwd"', '"\\ud800"', "[" * 5000, "1.5", "123456789012345678901234567890"]  # fmt: skip


def mutate(path: Path, others: list[Path], rng: random.Random) -> str:
    """Damage a file, and say how."""
    content = path.read_bytes()
    at, size = rng.randrange(len(content) + 1), rng.randrange(1, 40)
    byte = min(at, max(0, len(content) - 1))

    def numbers(text: str) -> list[re.Match[str]]:
        return list(re.finditer(r"-?\d+(\.\d+)?(e[-+]?\d+)?|\"[^\"]*\"|true|false|null", text))

    def value() -> bytes:
        text = content.decode(errors="replace")
        found = numbers(text)
        if not found:
            return content + b"x"
        one = rng.choice(found)
        return (text[: one.start()] + rng.choice([*NONSENSE, rng.choice(found).group()]) + text[one.end() :]).encode()

    def lines(change: Callable[[list[bytes]], None]) -> bytes:
        every = content.splitlines(keepends=True)
        if every:
            change(every)
        return b"".join(every)

    def swap(every: list[bytes]) -> None:
        i, j = rng.randrange(len(every)), rng.randrange(len(every))
        every[i], every[j] = every[j], every[i]

    ways: dict[str, Callable[[], bytes]] = {
        "a bit flipped": lambda: (
            content[:byte] + bytes([content[byte] ^ (1 << rng.randrange(8))]) + content[byte + 1 :]
        ),
        "a byte changed": lambda: content[:byte] + bytes([rng.randrange(256)]) + content[byte + 1 :],
        "cut": lambda: content[:at],
        "empty": lambda: b"",
        "a piece lost": lambda: content[:at] + content[at + size :],
        "a piece twice": lambda: content[: at + size] + content[at:],
        "noise in it": lambda: content[:at] + rng.randbytes(size) + content[at:],
        "zeros in it": lambda: content[:at] + bytes(size) + content[at + size :],
        "noise alone": lambda: rng.randbytes(size * 10),
        "noise behind": lambda: content + rng.randbytes(size),
        "another file": lambda: rng.choice(others).read_bytes(),
        "a value replaced": value,
        "a line lost": lambda: lines(lambda every: every.pop(rng.randrange(len(every))) and None),
        "a line twice": lambda: lines(lambda every: every.insert(rng.randrange(len(every)), rng.choice(every))),
        "lines swapped": lambda: lines(swap),
    }
    special: dict[str, Callable[[], Any]] = {
        "missing": path.unlink,
        "a directory": lambda: (path.unlink(), path.mkdir()),
        "a pipe": lambda: (path.unlink(), os.mkfifo(path)),
        "endless": lambda: (path.unlink(), path.symlink_to("/dev/zero")),
        "a link to itself": lambda: (path.unlink(), path.symlink_to(path.name)),
        "huge": lambda: os.truncate(path, 1 << 42),
        "of nobody": lambda: path.chmod(0),  # for root the same as before
    }
    how = rng.choice([*ways, *ways, *special])
    if how in ways:
        path.write_bytes(ways[how]())
    else:
        special[how]()
    return f"{path.name}: {how}"


# ---- What reads them, and what must come of it ----


def resumed(chaos: Chaos, run: Path, like: str) -> tuple[Outcome, Callable[[], bool]]:
    outcome = call(train.main, ["--resume", str(run), "--quiet"])
    return outcome, lambda: bits(run) == bits(chaos.pristine / like)


def generated(chaos: Chaos, run: Path, like: str) -> tuple[Outcome, Callable[[], bool]]:
    argv = ["--tokens", "5", "--temperature", "3", "--prompt", "people"]
    outcome = call(generate.main, [str(run), *argv])
    undamaged = [call(generate.main, [str(chaos.pristine / name), *argv]).out for name in (like, f"{like}-half")]
    return outcome, lambda: outcome.out in undamaged  # a later checkpoint of the same run is none of another


def scaled(chaos: Chaos, run: Path, like: str) -> tuple[Outcome, Callable[[], bool]]:
    """A line of scales.jsonl may be missing: nobody can know. Those that are there are the undamaged ones; without any
    the checkpoint, of step 10, is measured."""
    outcome, pristine = call(scales.main, [str(run), "--quiet", "--json"]), chaos.pristine / like

    def same() -> bool:
        lines = (pristine / "scales.jsonl").read_text().splitlines()
        known = {str(r["step"]): r["tensors"] for r in map(json.loads, lines)}
        found = json.loads(outcome.out)["steps"]
        return list(found) == ["10"] or all(known[step] == tensors for step, tensors in found.items())

    return outcome, same


def curved(chaos: Chaos, run: Path, like: str) -> tuple[Outcome, Callable[[], bool]]:
    """Lines may be missing at the end, as of a run that is on; what is there is undamaged."""
    outcome, whole = call(curve.main, [str(run), "--json"]), chaos.pristine / like

    def same() -> bool:
        found, known = ([(r["step"], r["loss"]) for r in read_metrics(folder)] for folder in (run, whole))
        return found == known[: len(found)] and load_config(run) == load_config(whole)

    return outcome, same


def swept(chaos: Chaos, out: Path, like: str) -> tuple[Outcome, Callable[[], bool]]:
    outcome = call(sweep.main, sweep_options(chaos, out))

    def losses(folder: Path) -> Any:
        return {id: (r["config"], r["loss"], r["loss_valid"]) for id, r in sweep.load_results(folder).items()}

    return outcome, lambda: losses(out) == losses(chaos.pristine / "sweep")


def tokenized(chaos: Chaos, cache: Path, like: str) -> tuple[Outcome, Callable[[], bool]]:
    """A BPE run from a damaged cache."""
    os.environ["MICROUMUP_CACHE"] = str(cache)
    run = cache.with_name(cache.name + "-run")
    shutil.rmtree(run, ignore_errors=True)
    outcome = call(train.main, chaos.options(run, bpe=True))
    return outcome, lambda: bits(run) == bits(chaos.pristine / "bpe")


def sweep_options(chaos: Chaos, out: Path) -> list[str]:
    return [*SIZES, "--steps", "3", "--grid", "lr=2^-2:2^1:2", "--text", str(chaos.text), "--out", str(out), "--quiet"]


READERS: list[tuple[str, str, Any]] = [
    *[(name, f"{name}-half", read) for name in ("plain", "bpe") for read in (resumed, generated, scaled, curved)],
    *[(name, f"{name}-half", resumed) for name in ("plain", "bpe")],
    ("sweep", "sweep", swept),
    ("bpe", "cache", tokenized),
]


def damage(chaos: Chaos) -> None:
    if not (chaos.pristine / "sweep").exists():
        sweep.new_seats = lambda workers, runs=1: [InThisProcess()]  # no processes, in the children too
        assert child(lambda: sweep.main(sweep_options(chaos, chaos.pristine / "sweep")), 60).status == 0
        shutil.copytree(chaos.base / "cache", chaos.pristine / "cache")
    work = chaos.fresh("damage")
    work.mkdir()
    both(chaos, lambda seed: batch(chaos, work / str(seed), random.Random(seed)), 400)


def batch(chaos: Chaos, work: Path, rng: random.Random) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    others = [path for path in sorted(chaos.pristine.rglob("*")) if path.is_file() and path.stat().st_size < 1e6]
    for number in range(CASES):
        like, source, read = rng.choice(READERS)
        target = work / str(number)
        shutil.copytree(chaos.pristine / source, target)
        files = [
            path for path in sorted(target.rglob("*")) if path.is_file() and path.name not in (".lock", "table.csv")
        ]
        how = mutate(rng.choice(files), others, rng)
        what = f"{read.__name__}, {source}/{how}"
        found.append(("tried", ""))
        outcome, same = read(chaos, target, like)
        strange = [line for line in outcome.error.splitlines() if line and not line.startswith("microumup")]
        if strange:
            found.append(("tracebacks", f"{what}: {outcome.error[-1500:]}"))
        elif outcome.status is None:
            found.append(("cut", f"{what}: took too long"))
        elif outcome.status:
            named = "microumup" in outcome.error and len(outcome.error) < 1500
            found.append(("refused", "") if named else ("wrong", f"{what}: status {outcome.status} without a word"))
        else:
            try:
                found.append(("resumed", "") if same() else ("wrong", f"{what}: accepted, with other bits"))
            except Exception as error:
                found.append(("wrong", f"{what}: accepted, and then {type(error).__name__}: {error}"))
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(target.with_name(target.name + "-run"), ignore_errors=True)
    return found
