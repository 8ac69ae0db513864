import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOBS = """
import sys
from functools import partial
from time import sleep
from pathlib import Path
from microumup.lab.workers import new_seats, run_all

def wait(name):
    Path(name).touch()
    sleep(60)

if __name__ == "__main__":
    if sys.argv[1] == "run_all":
        run_all(wait, ["begun 0", "begun 1"], 2)
    else:
        futures = [seat.submit(wait, f"begun {i}") for i, seat in enumerate(new_seats(2, 2))]
        [future.result() for future in futures]
"""


def children(pid: int) -> set[int]:
    """Processes of Python's that the process `pid` has started, as /proc knows them."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = entry.read_text().rpartition(")")[2].split()
            if int(after[1]) == pid and b"spawn_main" in (entry.parent / "cmdline").read_bytes():
                found.add(int(entry.parent.name))
        except (OSError, ValueError):
            continue  # it has ended meanwhile
    return found


def wait_for(condition, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return bool(done)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")
@pytest.mark.parametrize("way", ["run_all", "seats"])
def test_processes_end_with_a_parent_that_is_killed(way: str, tmp_path: Path) -> None:
    """Those of coordcheck, zoo and bench went on for ever: only sweep's followed their parent."""
    script = tmp_path / "jobs.py"
    script.write_text(JOBS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script), way], env=environment, cwd=tmp_path)
    try:
        # what is killed while it starts ends by itself
        assert wait_for(lambda: len([*tmp_path.glob("begun *")]) == 2)
        assert len(mine := children(parent.pid)) == 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in mine))
