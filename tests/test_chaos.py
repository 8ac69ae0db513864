"""A short chaos: `python -m tests.chaos --minutes 30` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("kinds", "least"),
    [(["kills", "clock", "writers"], 15), (["full disk", "damage"], 40), (["options"], 40)],
)  # fmt: skip
def test_nothing_is_lost_and_nothing_silently_wrong(kinds: list[str], least: int) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "0.12", "--only", *kinds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    [total] = [line for line in done.stdout.splitlines() if line.startswith("all ")]
    assert int(total.split()[1].replace(",", "")) >= least


def test_chaos_can_fail(tmp_path: Path) -> None:
    """Where a checksum is not looked at, a flipped bit is accepted, and said."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); from microumup import checkpoint, files; "
        "checkpoint._sha256 = lambda *_: 'x'; files._crc32 = lambda *_: 'x'; import chaos; "
        "sys.exit(chaos.main(['--minutes', '0.15', '--only', 'damage']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 1
    assert "accepted, with other bits" in done.stdout
