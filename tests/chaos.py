"""Chaos, counted: what happens to runs, sweeps and files, done to them thousands of times.

    python -m tests.chaos --minutes 30 --seed 0

kills       a run is killed at a random moment or inside a file operation, and resumed until it is finished
full disk   a run on a small tmpfs that has too little room, resumed when it has
clock       the same kills, with a clock that jumps and files of any date
writers     several processes at once that resume one run, or begin one in the same second
damage      a file of a run, a sweep or a cache is damaged, and a command reads it
options     a command with options drawn from sensible, extreme and senseless ones
sweep       the workers or the whole of a sweep are killed, and it goes on
cluster     the same with dask: its workers, its scheduler

For each it counts what was tried; refused in one line; resumed, or used with the same outcome as without the damage;
and what must not be: results lost, other bits accepted, tracebacks (or lines that are no sentence of ours). What took
too long is cut, which is no fault. It ends with 1 if there is anything that must not be.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for those who run it from elsewhere

import chaos_files
import chaos_options
import chaos_runs
import chaos_sweeps
from chaos_base import COLUMNS, Chaos

KINDS: dict[str, tuple[float, Callable[[Chaos], None]]] = {  # the share of the time that each gets
    "kills": (1.5, chaos_runs.kills),
    "full disk": (0.5, chaos_runs.full_disk),
    "clock": (0.5, chaos_runs.clock),
    "writers": (0.5, chaos_runs.writers),
    "damage": (8, chaos_files.damage),
    "options": (6, chaos_options.options),
    "sweep": (1.5, chaos_sweeps.sweep_killed),
    "cluster": (1.5, chaos_sweeps.cluster_killed),
}
AIMS = {"damage": 10_000, "options": 5_000}  # of the long form; the last fifth of its time goes to what is behind


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="a new folder for what went wrong")
    args = parser.parse_args(argv)
    shm = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="microumup-chaos-", dir=shm if os.access(shm, os.W_OK) else None))
    chaos = Chaos(base, random.Random(args.seed), args.keep)
    began, spent = time.monotonic(), Counter[str]()
    try:
        chaos.prepare()
        while time.monotonic() - began < 60 * args.minutes or len(spent) < len(args.only):
            kind = min(args.only, key=lambda kind: spent[kind] / KINDS[kind][0])
            if args.minutes >= 30 and time.monotonic() - began > 48 * args.minutes:
                kind = next((kind for kind, aim in AIMS.items() if chaos.tally[kind, "tried"] < aim), kind)
            start, chaos.kind = time.monotonic(), kind
            KINDS[kind][1](chaos)
            spent[kind] += 1e-9 + time.monotonic() - start  # type: ignore[assignment]
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(f"seed {args.seed}, {(time.monotonic() - began) / 60:.1f} minutes")
    print(f"{'':12}" + "".join(f"{column:>12}" for column in COLUMNS))
    for kind in args.only:
        print(f"{kind:12}" + "".join(f"{chaos.tally[kind, column]:>12,}" for column in COLUMNS))
    total = {column: sum(chaos.tally[kind, column] for kind in args.only) for column in COLUMNS}
    print(f"{'all':12}" + "".join(f"{count:>12,}" for count in total.values()))
    for note in dict.fromkeys(chaos.notes):
        print(note)
    return 1 if total["lost"] or total["wrong"] or total["tracebacks"] else 0


if __name__ == "__main__":
    sys.exit(main())
