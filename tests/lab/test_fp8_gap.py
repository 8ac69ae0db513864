import json
from typing import Any

import pytest
from conftest import Refused

from microumup.lab import fp8_gap
from microumup.lab.figures import store
from microumup.lab.figures.settings import MUP_SMALL, UMUP
from microumup.lab.figures.store import wanted
from microumup.lab.fp8_gap import main
from microumup.lab.sweep import plain

GOOD = {(UMUP, "none"): 1.5, (UMUP, "fp8"): 1.53, (MUP_SMALL, "none"): 1.5, (MUP_SMALL, "fp8"): 7.512}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planted(losses: dict[tuple[str, str], float | None]) -> Any:
    """`collect`, but with these losses, the same for every seed."""

    def collect(figures: Any, setting: Any, *args: Any, **how: Any) -> Any:
        known = {}
        for id, job in wanted(figures, setting, {}).items():
            config = plain(job.config)
            loss = losses[UMUP if config["scheme"] == "umup" else MUP_SMALL, config["fp8"]]
            dy = {"size": 4, "underflow": 0.5 if config["fp8"] == "fp8" else 0.25}
            known[id] = {"config": config, "loss": loss, "diverged": loss is None, "seconds": 1, "version": "0",
                         "ranges": {"0": {"head.dy": dy}}}  # fmt: skip
        return known, {}

    return collect


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({(MUP_SMALL, "fp8"): None}, 0),  # it diverged
        ({(UMUP, "fp8"): 1.55}, 1),
        ({(UMUP, "fp8"): None}, 1),
        ({(MUP_SMALL, "fp8"): 2.4}, 1),
    ],
)
def test_the_verdict_follows_the_losses(
    change: dict[tuple[str, str], float | None],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fp8_gap, "collect", planted(GOOD | change))
    assert main(["--json", "--seeds", "2"]) == status
    *text, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert list(result) == ["passed", "gaps", "flushed", "runs"]
    assert result["passed"] == (status == 0)
    assert text[-1].startswith("holds" if status == 0 else "does not hold")
    assert result["flushed"] == {"umup": 0.25, "mup": 0.25}  # of the float32 runs
    assert len(result["runs"]) == 8
    assert list(result["runs"][0]) == ["scheme", "fp8", "seed", "loss", "flushed"]


def test_it_says_what_it_does_and_no_digits_that_another_machine_would_not_find(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fp8_gap, "collect", planted(GOOD))
    assert main(["--seeds", "2", "--workers", "3"]) == 0
    first, _, umup, mup, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("training 8 models of width 64, 512 steps, in 3 processes")
    assert "+0.030, +0.030" in umup
    assert "about +6, about +6" in mup
    assert "7.512" not in mup
    assert main(["--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_what_the_figure_has_run_is_not_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fp8_gap, "LAPTOP", fp8_gap.LAPTOP._replace(usual=fp8_gap.LAPTOP.usual | {"steps": 2}))
    real, made = store.sweep, list[int]()

    def sweep(jobs: Any, out: Any, **how: Any) -> Any:
        made.append(len(jobs))
        return real(jobs, out, **how | {"workers": 0})

    monkeypatch.setattr(store, "sweep", sweep)
    for seeds in (1, 1):
        assert main(["--seeds", str(seeds), "--json"]) == 1  # two steps are no training
    assert made == [4]
    *_, line = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["flushed"]["umup"] <= 0.03
    assert result["flushed"]["mup"] >= 0.99


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--workers", "0"]])
def test_bad_options_end_in_one_line(options: list[str], refused: Refused) -> None:
    assert f"{options[0]}: 0 is too small" in refused(main, options)
