"""Sweeps whose workers, cluster or selves are killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chaos_base import SIZES, Chaos

from microumup.lab.sweep import load_results
from microumup.lab.tables import read_table

RUNS = 6


def command(chaos: Chaos, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "microumup", "sweep", *SIZES[:-2], "--steps", "60", "--grid", "lr=2^-2:2^0.5:2^0.5",
            "--text", str(chaos.text), "--out", str(out), "--quiet", *more]  # fmt: skip


def workers_of(pid: int) -> list[int]:
    """Processes that a sweep trains in; not the one in which multiprocessing keeps its books."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def kept(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("results/*.json")}


def killed(chaos: Chaos, argv: list[str], out: Path, strike: Any, what: str, ready: Any = lambda: None) -> None:
    """Begin the sweep again and again while `strike(process)` does it harm; then let it end, and look."""
    for attempt in range(4):
        ready()
        before = kept(out)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        chaos.count("tried")
        if attempt < 3:
            time.sleep(chaos.rng.uniform(0.3, 3.0))
            if process.poll() is None:
                chaos.count("kills")
                strike(process)
        try:
            _, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            chaos.fault("wrong", f"{what}: hangs")
            return
        if "Traceback" in error:
            chaos.fault("tracebacks", f"{what}: {error[-1500:]}")
        if lost := [name for name, content in before.items() if kept(out).get(name) != content]:
            chaos.fault("lost", f"{what}: {lost}")
        if process.returncode == 2:
            chaos.count("refused")
        if process.returncode == 0 and attempt < 3:
            chaos.count("resumed")
    if process.returncode:
        chaos.fault("lost", f"{what}: at last it ends with {process.returncode}: {error[-500:]}")
        return
    rows, records = read_table(out / "table.csv"), load_results(out)
    if sorted(row["id"] for row in rows) != sorted(records) or len(records) != RUNS:
        chaos.fault("wrong", f"{what}: {len(rows)} rows of {len(records)} results")
    losses = sorted((r["config"]["lr"], r["loss"], r["loss_valid"]) for r in records.values())
    reference = chaos.base / "pristine" / "swept"
    if not reference.exists():
        subprocess.run(command(chaos, reference, "--workers", "2"), check=True, capture_output=True)
    expected = sorted((r["config"]["lr"], r["loss"], r["loss_valid"]) for r in load_results(reference).values())
    if losses == expected:
        chaos.count("resumed")
    else:
        chaos.fault("wrong", f"{what}: other losses")


def sweep_killed(chaos: Chaos) -> None:
    out = chaos.fresh("swept")

    def strike(process: subprocess.Popen[str]) -> None:
        how = chaos.rng.random()
        if how < 0.4:
            process.send_signal(chaos.rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        else:
            for pid in workers_of(process.pid):
                if chaos.rng.random() < 0.6:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue

    killed(chaos, command(chaos, out, "--workers", "2", "--retries", "3"), out, strike, "sweep")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def cluster_killed(chaos: Chaos) -> None:
    """A dask scheduler and two workers; whoever is killed is started again for the next attempt."""
    try:
        import distributed  # noqa: F401
    except ImportError:
        chaos.notes.append("cluster: skipped, there is no dask here")
        return
    out, port, running = chaos.fresh("clustered"), free_port(), dict[str, subprocess.Popen[bytes]]()
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": chaos.base}
    address = f"tcp://127.0.0.1:{port}"
    programs = {
        "scheduler": ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        **{
            f"worker {i}": ["distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny",
                            "--death-timeout", "30", "--local-directory", str(chaos.base)] for i in (1, 2)
        },
    }  # fmt: skip

    def start() -> None:
        gone = [name for name in programs if name not in running or running[name].poll() is not None]
        for name in gone:
            running[name] = subprocess.Popen([sys.executable, "-m", *programs[name]], **quiet)
        time.sleep(3 if "scheduler" in gone else 0)

    def strike(process: subprocess.Popen[str]) -> None:
        name = chaos.rng.choice([*programs, "sweep"])
        (process if name == "sweep" else running[name]).kill()
        time.sleep(0.5)
        if name.startswith("worker"):
            start()

    try:
        killed(chaos, command(chaos, out, "--cluster", address, "--retries", "5"), out, strike, "cluster", start)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
