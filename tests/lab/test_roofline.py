"""The ledger of a step on a GPU: its bounds at the paper's scale, its arithmetic, its command."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Refused

from microumup.config import PRESETS, TrainConfig
from microumup.lab import bench, roofline
from microumup.lab.ledger import Call
from microumup.lab.roofline import GPUS, LAUNCH, Step, estimate, seconds

ROOT = Path(__file__).parent.parent.parent
PAPER = TrainConfig(**PRESETS["paper"])
count_step = cache(roofline.count_step)


@pytest.mark.parametrize("fp8", ["none", "fp8"])
def test_a_step_of_the_paper_fits_8_gb_and_never_waits(fp8: str) -> None:
    step = count_step(replace(PAPER, fp8=fp8))
    assert step.peak <= 8e9
    assert step.held < 0.3e9  # four arrays of 19.6 million float32 less the gradients
    assert step.syncs == 0
    assert step.uploads == 1  # inputs and targets together
    assert len(step.calls) <= (700 if fp8 == "none" else 850)  # some 630 and 770


def test_kernels_halve_launches_and_bytes() -> None:
    fast, plain = (count_step(replace(PAPER, kernels=kernels)) for kernels in ("fast", "plain"))
    assert len(fast.calls) < len(plain.calls) / 2
    assert sum(c.bytes for c in fast.calls) < sum(c.bytes for c in plain.calls) / 2
    assert fast.peak < plain.peak / 3
    assert plain.peak > 2 * 4 * 64 * 256 * 32_000  # all logits and their gradients


def test_the_time_of_a_launch_is_that_of_what_takes_longest() -> None:
    device = GPUS["a100"]
    moving = Call("linear", "matmul", 10**6, 0, 2 * 10**9, 0)
    computing = Call("linear", "matmul", 39 * 10**9, 0, 1000, 0)
    other = Call("linear", "exp", 0, 39 * 10**9, 1000, 0)
    assert seconds(moving, device) == pytest.approx(LAUNCH + 2 / 2039)
    assert seconds(computing, device) == seconds(other, device) == pytest.approx(LAUNCH + 2e-3)
    assert seconds(computing, device, tf32=True) == pytest.approx(LAUNCH + 0.25e-3)
    assert seconds(other, device, tf32=True) == seconds(other, device)


def test_an_estimate_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [Call("a", "exp", 0, 0, 10**9, 0), Call("b", "exp", 0, 0, 10**10, 0), Call("a", "exp", 0, 5, 0, 0)]
    monkeypatch.setattr(roofline, "count_step", lambda config: Step(calls, 2, 1, 3, 25 * 10**9))
    config, device = TrainConfig(steps=100, batch_size=4, seq_len=64), GPUS["rtx4090"]
    found = estimate(config, device)
    assert [row["op"] for row in found["rows"]] == ["b", "a", "total"]
    assert found["rows"][1] | {"ms": 0} == {"op": "a", "launches": 2, "bytes": 10**9, "flops": 5, "ms": 0}
    took = 3 * LAUNCH + 11 / 1008
    assert found["step_ms"] == found["rows"][-1]["ms"] == pytest.approx(1000 * took)
    assert found["tokens_per_second"] == pytest.approx(256 / took)
    assert found["run_hours"] == pytest.approx(100 * took / 3600)
    assert not found["fits"]
    assert estimate(config, GPUS["h100"])["fits"]


# ---- The command ----
def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, dict[str, Any]]:
    status = bench.main(["--ledger", *argv, "--json"])
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    return status, text, json.loads(last)


def test_the_command_prints_both_ledgers_and_calls_them_estimates(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, found = run(["--gpu", "a100", "--preset", "tiny", "--with", "batch-size=8"], capsys)
    assert status == 0
    assert "preset tiny, batch-size=8: 8 x 64 tokens a step" in text
    assert "All times are estimates: nothing was measured" in text
    assert text.count("ms, estimated") == text.count("estimate: ") == text.count("GB at most") == 2
    assert "waits for the device: 0 a step" in text
    assert (found["preset"], found["options"], found["asked"]) == ("tiny", ["batch-size=8"], "fast")
    assert found["gpu"] == GPUS["a100"]._asdict()
    for kernels in ("fast", "plain"):
        ledger = found[kernels]
        assert f"{ledger['step_ms']:.1f} ms a step" in text
        *rows, total = ledger["rows"]
        assert sum(row["launches"] for row in rows) == total["launches"] == ledger["launches"]
    assert found["fast"]["step_ms"] < found["plain"]["step_ms"]


@pytest.mark.parametrize(
    ("options", "status", "advice"),
    [
        ([], 0, "plain needs more than the 0 GB there are: keep --kernels fast"),
        (["kernels=plain"], 1, "too large for 0 GB: take --kernels fast, which needs 0.0 GB, or a --micro-batch"),
        (["batch-size=64"], 1, "too large for 0 GB: take --micro-batch 32 or less"),
        (["batch-size=64", "micro-batch=16"], 0, "plain needs more than the 0 GB there are: keep --kernels fast"),
        (["batch-size=64", "micro-batch=4"], 0, ""),
        (["width=512", "micro-batch=1"], 1, "too large for 0 GB: take a smaller model, or another GPU"),
    ],
)
def test_what_does_not_fit_ends_with_1_and_advice(
    options: list[str], status: int, advice: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    between = sum(count_step(TrainConfig(kernels=kernels)).peak for kernels in ("fast", "plain")) / 2
    monkeypatch.setitem(GPUS, "a100", GPUS["a100"]._replace(memory=between))
    argv = ["--gpu", "a100", "--preset", "tiny", *(f"--with={option}" for option in options)]
    found, text, _ = run(argv, capsys)
    _, *after = text.rpartition("the run ")[2].split("\n\n")  # behind the last table
    assert (found, after) == (status, [advice] if advice else [])


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--gpu", "h100"], "--gpu: is for --ledger"),
        (["--ledger", "--gpu", "h100", "--pairs"], "--gpu: is for --ledger, with no option but --preset"),
        (["--ledger", "--gpu", "h100", "--fp8"], "--gpu: is for --ledger, with no option but --preset"),
        (["--ledger", "--preset", "paper"], "--preset: is for --gpu"),
        (["--ledger", "--with", "width=64"], "--with: is for --gpu"),
        (["--ledger", "--gpu", "h100", "--with", "wide=64"], "--with wide=64: 'wide' is no option of train"),
        (["--ledger", "--gpu", "h100", "--with", "width=64,128"], "--with width=64,128: has 2 values"),
        (["--ledger", "--gpu", "h100", "--with", "width=-64"], "--width: -64 is too small"),
        (["--ledger", "--gpu", "v100"], "--gpu: invalid choice: 'v100'"),
    ],
)
def test_bad_arguments(refused: Refused, argv: list[str], complaint: str) -> None:
    assert complaint in refused(bench.main, argv)


def test_what_the_readme_says_of_the_paper_on_a_gpu() -> None:
    said = []
    for kernels in ("fast", "plain"):
        step = count_step(replace(PAPER, kernels=kernels))
        times = [1000 * sum(seconds(call, device) for call in step.calls) for device in GPUS.values()]
        said.append(
            (f"{len(step.calls):,} launches", f"{step.peak / 1e9:.1f} GB", ", ".join(f"{ms:.0f}" for ms in times))
        )
    (launches, memory, times), (plain_launches, plain_memory, plain_times) = said
    sentence = (
        f"A step of it is {launches}, needs {memory} at most and, by an estimate from published peaks, {times} ms on "
        f"an H100, an A100 and an RTX 4090; with `--kernels plain` {plain_launches}, {plain_memory} and {plain_times} "
        "ms (`microumup bench --ledger --gpu h100`"
    )
    assert sentence in " ".join((ROOT / "README.md").read_text().split())
