import json

import pytest
from conftest import Refused

from microumup.lab import bench
from microumup.lab.bench import compare, main


def test_a_ratio_is_the_median_over_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 9, 0, 9, 0, 1, 0, 2, 0, 3, 0, 2, 0, 2, 0, 2])  # warm-up; then 1/2, 3/2, 2/2
    monkeypatch.setattr(bench, "perf_counter", lambda: next(clock))
    c = compare("name", lambda: None, lambda: None, rounds=3)
    assert (c.ratio, c.ours_ms, c.theirs_ms) == (1.0, 2000, 2000)
    assert c.low <= c.ratio <= c.high


def test_the_command_lists_every_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SHAPES", [{"width": 16, "layers": 1, "head_dim": 8, "seq_len": 8, "batch_size": 2}])
    assert main(["--rounds", "1", "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    comparisons = json.loads(last)["comparisons"]
    assert len(comparisons) == len(text) - 1 == 3
    assert all(c["ratio"] > 0 for c in comparisons)


def test_no_rounds_is_no_benchmark(refused: Refused) -> None:
    assert "--rounds: 0 is too small; the least is 1" in refused(main, ["--rounds", "0"])
