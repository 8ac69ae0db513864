import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Refused

from microumup.lab import fp8_gap, workers
from microumup.lab.fp8_gap import Run, gaps, main


def planted(losses: dict[tuple[str, str], float | None]) -> Any:
    """`run`, but with these losses, the same for every seed."""
    return lambda job: Run(*job, losses[job[:2]], 0.5 if job[1] == "fp8" else 0.25)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))


GOOD = {("umup", "none"): 1.5, ("umup", "fp8"): 1.53, ("mup", "none"): 1.5, ("mup", "fp8"): 2.5}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({("mup", "fp8"): None}, 0),  # it diverged
        ({("umup", "fp8"): 1.55}, 1),
        ({("umup", "fp8"): None}, 1),
        ({("mup", "fp8"): 2.4}, 1),
    ],
)
def test_the_verdict_follows_the_losses(
    change: dict[tuple[str, str], float | None],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fp8_gap, "run", planted(GOOD | change))
    assert main(["--json", "--seeds", "2"]) == status
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["passed"] == (status == 0)
    assert text[-1].startswith("holds" if status == 0 else "does not hold")
    assert result["flushed"] == {"umup": 0.25, "mup": 0.25}  # of the float32 runs
    assert len(result["runs"]) == 8


def test_gaps_go_seed_by_seed() -> None:
    runs = [Run("umup", "none", 0, 1.0, 0), Run("umup", "none", 1, 2.0, 0)]
    runs += [Run("umup", "fp8", 1, 2.5, 0), Run("umup", "fp8", 0, 1.125, 0)]
    assert gaps(runs, "umup") == [0.125, 0.5]


def test_a_run_trains_and_counts_the_flushed_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fp8_gap.RECIPE, "steps", 2)
    u, m = fp8_gap.run(("umup", "fp8", 0)), fp8_gap.run(("mup", "none", 0))
    assert u.loss is not None
    assert u.flushed <= 0.03
    assert m.flushed >= 0.99


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--workers", "0"]])
def test_bad_options_end_in_one_line(options: list[str], refused: Refused) -> None:
    assert f"{options[0]}: 0 is too small" in refused(main, options)
