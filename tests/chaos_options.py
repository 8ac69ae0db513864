"""Option sets of every command: sensible, extreme and senseless."""

import argparse
import os
import random
from importlib import import_module
from pathlib import Path
from typing import Any

from chaos_base import SIZES, Chaos, both, call

from microumup import cli
from microumup.__main__ import COMMANDS
from microumup.lab import sweep
from microumup.lab.workers import InThisProcess

CASES = 50  # in a child
SECONDS = 4.0  # for a case; what is cut was going to take longer, which is no fault

NUMBERS = [
    "0", "1", "-1", "2", "3", "7", "8", "1e308", "-1e308", "nan", "inf", "-inf", "1e-320", "2^-3", "2^99999", "0^-1",
    "-8^0.5", "1e999", "", " ", "x", "0x10", "1_000", "٣", "1+2j", "9" * 30, "9" * 5000, "65536", "4294967296",
    "18446744073709551616", "0.5", "1e-9", "100000",
]  # fmt: skip
WORDS = [
    "", "x", "umup", "sp", "mup", "none", "fp8", "fp8-iclr", "fp8,head.x=e4m3", "fp8,=,", "adamw", "sgd", "coupled",
    "sotu", "wikitext-103", "auto", "gpu", "cpu", "tiny", "paper", "-", "--", "-x", "µ", "\udcff", "a\nb", "a\0b",
    "on", "%s", "{}", "A" * 5000,
]  # fmt: skip
PATHS = [
    "", ".", "..", "/", "/no/such/place", "/dev/null", "/dev/full", "new", "new/er", "text.txt", "half", "whole",
    "sweep", "µ.png", "figure.png", "figure.svg", "figure.xyz", "a\0b", "\udcff", "N" * 300, "text.txt/x",
    "latin.txt", "nul.txt", "empty.txt",
]  # fmt: skip
GRIDS = [
    "lr=1,2", "lr=2^-2:2^2:2", "lr=1:2:1", "lr=1:2:0", "lr=2:1:+1", "lr=nan", "lr=", "=", "width=8,16",
    "width=1:99:+7", "fp8=none,fp8", "seed=0,1", "lr=1:1e308:1.0000001", "text=text.txt", "text=half",
    "scheme=umup,sp", "steps=0", "x=1", "lr=-1,1", "lr=inf", "layers=9999999999", "embedding-lr-rule=on,off,perhaps",
    "lr=1:2:2:3",
]  # fmt: skip

# What keeps a command short where nothing else is drawn; what is drawn comes later and wins
CHEAP = {
    "train": [*SIZES, "--steps", "2", "--text", "text.txt", "--quiet"],
    "data": ["prepare", "--text", "text.txt", "--vocab-size", "270"],
    "generate": ["half", "--tokens", "3"],
    "explain": SIZES[:-2],
    "scales": [*SIZES],
    "coordcheck": ["--widths", "8,16", "--steps", "1", "--seeds", "1", "--workers", "0"],
    "sweep": [*SIZES[:-2], "--steps", "2", "--text", "text.txt", "--grid", "lr=1,2", "--out", "swept"],
    "figures": ["--dry-run"],
    "transfer": ["swept", "--width", "16"],
    "gpu-report": ["--parts", "device", "--limit", "1"],
    "curve": ["half"],
    "bench": ["--dry-run"],
}
SLOW = ("gradcheck", "chain", "zoo", "fp8-gap", "bench")  # even so: fewer of them


def options_of(command: str) -> list[argparse.Action]:
    """Everything that a command's parser takes."""
    found: list[argparse.Action] = []

    def capture(parser: cli.Parser, *_: Any, **__: Any) -> None:
        found.extend(parser._actions)
        raise SystemExit(0)

    before = cli.Parser.parse_args
    cli.Parser.parse_args = capture  # type: ignore[method-assign,assignment]
    try:
        call(import_module(COMMANDS[command][0]).main, [])
    finally:
        cli.Parser.parse_args = before  # type: ignore[method-assign]
    return found


def draw(actions: list[argparse.Action], rng: random.Random) -> list[str]:
    """Some options with values that fit their kind, or do not."""
    argv: list[str] = []
    for action in rng.sample(actions, min(len(actions), rng.choice([0, 1, 1, 1, 2, 2, 3, 5]))):
        if not action.option_strings:
            argv += [rng.choice(PATHS) for _ in range(rng.choice([0, 1, 1, 2]))]
            continue
        option = rng.choice(action.option_strings)
        if action.nargs == 0:
            argv.append(option)
            continue
        pool = NUMBERS if action.type in (cli.number, cli.whole) else PATHS if action.type is Path else WORDS
        if action.choices:
            pool = [*map(str, action.choices), *WORDS[:3]]
        if action.dest == "grid":
            pool = GRIDS
        if action.dest in ("text", "valid"):
            pool = PATHS
        if action.default not in (None, argparse.SUPPRESS) and rng.random() < 0.2:
            pool = [str(action.default)]
        if rng.random() < 0.1:
            pool = [*NUMBERS, *WORDS, *PATHS]
        values = [rng.choice(pool) for _ in range(rng.choice([0, 1, 2]) if action.nargs in ("+", "*") else 1)]
        argv += [f"{option}={values[0]}"] if len(values) == 1 and rng.random() < 0.7 else [option, *values]
    return argv


def options(chaos: Chaos) -> None:
    folder = chaos.fresh("options")
    folder.mkdir()
    (folder / "text.txt").symlink_to(chaos.text)
    (folder / "latin.txt").write_bytes(b"na\xefve " * 500)
    (folder / "nul.txt").write_bytes(b"a\0b " * 500)
    (folder / "empty.txt").touch()
    (folder / "half").symlink_to(chaos.pristine / "plain-half")
    (folder / "whole").symlink_to(chaos.pristine / "plain")
    both(chaos, lambda seed: batch(random.Random(seed)), CASES * (SECONDS + 2), folder)


def batch(rng: random.Random) -> list[tuple[str, str]]:
    sweep.new_seats = lambda workers, runs=1: [InThisProcess()]
    found: list[tuple[str, str]] = []
    names = [name for name in COMMANDS if name not in SLOW for _ in range(8)] + list(SLOW)
    kinds: dict[str, list[argparse.Action]] = {}
    for _ in range(CASES):
        name = rng.choice(names)
        actions = kinds.setdefault(name, options_of(name))
        known = {option for action in actions for option in action.option_strings}
        cheap = [word for word in CHEAP.get(name, []) if not word.startswith("--") or word in known]
        argv = [*cheap, *draw(actions, rng)]
        found.append(("tried", ""))
        os.environ["COLUMNS"] = rng.choice(["0", "1", "80", "-5", "x", "100000"])
        outcome = call(import_module(COMMANDS[name][0]).main, argv, SECONDS / 5 if name in SLOW else SECONDS)
        what = f"{name} {[word[:60] for word in argv]}"
        lines = [line for line in outcome.error.splitlines() if line.strip()]
        if outcome.status is None:
            found.append(("cut", what))
        elif outcome.status not in (0, 1, 2) or "Traceback" in outcome.error:
            found.append(("tracebacks", f"{what}: {outcome.error[-1200:]}"))
        elif outcome.status == 2:
            said = [line for line in lines if not line.startswith("microumup: ")]  # notes
            tidy = len(said) == 1 and said[0].startswith("microumup ")
            found.append(
                ("refused", "") if tidy else ("tracebacks", f"{what}: refused in {len(said)} lines: {said[:3]}")
            )
        else:
            strange = [line for line in lines if "Warning" in line or "Error" in line]
            found.append(("tracebacks", f"{what}: {strange[0][:300]}") if strange else ("resumed", ""))
    return found
