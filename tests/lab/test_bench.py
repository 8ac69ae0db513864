import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Refused

from microumup import fused
from microumup.backend import install_hint
from microumup.config import TrainConfig
from microumup.lab import bench, twins
from microumup.lab.bench import compare, disagreement, main, our_loss_and_gradients, peak_growth, ratio, take_turns
from microumup.plan import gradient_constants
from microumup.trainer import Trainer

TINY: dict[str, Any] = {"width": 16, "layers": 1, "head_dim": 8, "seq_len": 8, "batch_size": 2}


class Clock:
    """A clock that only programs move on."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []  # type: float, list[str]

    def program(self, name: str, *seconds: float) -> Callable[[], None]:
        """One that takes `seconds`, turn by turn."""
        left = iter(seconds)

        def run() -> None:
            self.now += next(left)
            self.log.append(name)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "perf_counter", lambda: clock.now)
    return clock


def test_a_ratio_is_the_median_over_turns(clock: Clock) -> None:
    ours, theirs = clock.program("ours", 9, 1, 3, 2), clock.program("theirs", 9, 2, 2, 2)  # 9: the warm-up
    c = compare("name", ours, theirs, rounds=3)
    assert c == {"name": "name", "ours_ms": 2000, "theirs_ms": 2000, "ratio": 1.0, "low": 0.5, "high": 1.5}


def test_programs_take_turns_in_either_order(clock: Clock) -> None:
    programs = {name: clock.program(name, 1, 1, 1) for name in "abc"}
    times = take_turns(programs, 2)
    assert "".join(clock.log) == "cbaabccba"
    assert {name: seconds.tolist() for name, seconds in times.items()} == {name: [1, 1] for name in "abc"}


def test_a_single_turn_has_no_spread() -> None:
    assert ratio(np.array([3.0]), np.array([2.0])) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize("scheme", ["sp", "umup"])
@pytest.mark.parametrize("threads", [1, 2])
def test_our_gradients_are_those_the_step_has(scheme: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    t = bench.new_trainer(TINY, threads, scheme=scheme)
    monkeypatch.setattr(t.optimizer, "step", lambda grads, *_: seen.update(grads))
    loss, _, _ = t.update(0)
    found, grads = our_loss_and_gradients(TINY, threads, scheme)
    assert found == loss
    constants = gradient_constants(t.plan)
    assert grads.keys() == seen.keys()
    for name, grad in grads.items():
        expected = seen[name] / constants[name]
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())  # float32


def test_a_disagreement_is_named() -> None:
    right = {"a": np.ones(4), "b": np.ones(4)}
    assert disagreement((1.0, right), (1.0, right))[1] == 0
    assert disagreement((1.0, right), (2.0, right)) == ("the loss", 0.5)
    assert disagreement((1.0, right | {"b": np.full(4, 1.01)}), (1.0, right)) == (
        "the gradient of b", pytest.approx(0.01)
    )  # fmt: skip
    what, size = disagreement((1.0, right | {"a": np.full(4, np.nan)}), (1.0, right))
    assert what == "the gradient of a"
    assert not size <= bench.AGREEMENT


# ---------------------------------------------------------------------------------------------------------------------
# the command


class Parrot:
    """A peer that says what we say, but for `wrong`."""

    name, module, scheme = "torch", "torch", "sp"
    wrong = 0.0

    def __init__(self, config: TrainConfig, params: Any, batch: Any, *, fused: bool, threads: int) -> None:
        self.threads = threads

    def step(self) -> None:
        pass

    def loss_and_gradients(self) -> tuple[float, dict[str, Any]]:
        loss, grads = our_loss_and_gradients(TINY, self.threads, self.scheme)
        return loss, grads | {"layer0.o": grads["layer0.o"] * (1 + self.wrong)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Configs that take no time, no processes, and a peer that is always there."""
    monkeypatch.setattr(bench, "CONFIGS", {"A": TINY, "B": TINY | {"width": 32}})
    monkeypatch.setattr(bench, "WIDTHS", (16, 32))
    monkeypatch.setattr(bench, "FP8_SHAPES", [TINY])
    monkeypatch.setattr(bench, "peak_growth", lambda program, shape, threads: 1.5)
    monkeypatch.setattr(bench, "TWINS", {"torch": Parrot})
    monkeypatch.setattr(bench, "load_peer", lambda name: None)
    return


def run(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, Any]]:
    assert main([*argv, "--rounds", "2", "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    return text, json.loads(last)


@pytest.mark.usefixtures("small")
def test_without_peers(capsys: pytest.CaptureFixture[str]) -> None:
    text, found = run([], capsys)
    assert (found["config"], found["threads"], found["rounds"]) == ("A", 1, 2)
    assert (found["ratio_to"], found["umup_over_sp"]) == ({}, None)
    assert found["step_ms"].keys() == {"umup", "its matrix products alone"}
    assert found["gemm_share"] == 1 / found["gemm_ratio"] < 1
    assert found["gemm_gflops"] > 0
    assert found["peak_growth_mib"] == {"umup": 1.5}
    low, high = found["gemm_ratio_spread"]
    assert low <= found["gemm_ratio"] <= high
    assert any("1.5 MiB" in line or "2 MiB" in line for line in text)


@pytest.mark.usefixtures("small")
def test_against_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    text, found = run(["--vs", "torch", "--threads", "2"], capsys)
    assert found["step_ms"].keys() == {
        "umup", "sp", "torch", "torch, fused AdamW", "its matrix products alone"
    }  # fmt: skip
    fastest = found["fastest"]["torch"]
    assert found["step_ms"][fastest] == min(ms for name, ms in found["step_ms"].items() if name.startswith("torch"))
    assert found["peak_growth_mib"].keys() == {"umup", "sp", fastest}
    low, high = found["ratio_to_spread"]["torch"]
    assert low <= found["ratio_to"]["torch"] <= high
    assert found["ratio_to"]["torch"] > 100  # it does nothing
    assert found["agreement"]["torch"] < 1e-6
    assert found["umup_over_sp"] > 0
    assert any(f"{found['ratio_to']['torch']:.3f}" in line for line in text)


@pytest.mark.usefixtures("small")
def test_what_is_made_of_the_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"umup": 1.0, "sp": 2.0, "torch": 8.0, "torch, fused AdamW": 4.0, "its matrix products alone": 0.5}
    times = {name: np.array([s, 2 * s]) for name, s in seconds.items()}
    monkeypatch.setattr(bench, "take_turns", lambda programs, rounds, **_: {name: times[name] for name in programs})
    _, found = run(["--vs", "torch"], capsys)
    assert found["fastest"] == {"torch": "torch, fused AdamW"}
    assert found["ratio_to"] == {"torch": 0.5}  # of sp, which it is the twin of
    assert (found["umup_over_sp"], found["gemm_ratio"], found["gemm_share"]) == (0.5, 2.0, 0.5)
    assert found["step_ms"]["umup"] == 1500
    tokens, params, pairs = 2 * 8, 4 * 16**2 + 3 * 16 * 44 + 16 * 256, 2 * 8 * 8
    flops = 6 * params * tokens + 12 * pairs * 16
    assert found["gemm_gflops"] == pytest.approx(flops / 0.75 / 1e9)


@pytest.mark.usefixtures("small")
def test_a_peer_that_computes_something_else_is_not_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parrot, "wrong", 1e-3)
    monkeypatch.setattr(bench, "take_turns", None)
    assert main(["--vs", "torch", "--json"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("microumup bench: config A: torch and we do not compute the same: the gradient of layer0.o")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("small")
def test_several_configs_widths_and_a_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    text, found = run(["--config", "B", "A", "B", "--widths", "--ledger"], capsys)
    assert [b["config"] for b in found["benches"]] == ["B", "A"]
    assert found["widths"].keys() == {"16", "32"}
    for b in found["benches"]:
        *rows, total = b["ledger"]["rows"]
        assert total["op"] == "total"
        assert total["gemm_flops"] == sum(row["gemm_flops"] for row in rows) > 0
        assert b["ledger"]["memory"]["peak"] > b["ledger"]["memory"]["held"] > 0
    assert sum("memory alive" in line for line in text) == 2


@pytest.mark.usefixtures("small")
def test_fp8_lists_every_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    text, found = run(["--fp8"], capsys)
    assert len(found["comparisons"]) == len(text) - 1 == 3
    assert all(c["ratio"] > 0 for c in found["comparisons"])


@pytest.mark.usefixtures("small")
def test_what_a_pair_gains_is_what_a_step_without_it_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are as long as they say here: 1 s for each pair that runs, 3 s for the readable one in its place."""
    ran: list[dict[Any, Any]] = []
    monkeypatch.setattr(Trainer, "update", lambda self, step: ran.append(self.kernels))

    def take_turns(programs: dict[str, Any], rounds: int, **_: Any) -> dict[str, Any]:
        ran.clear()
        for program in programs.values():
            program()
        took = (3.0 * len(fused.KERNELS) - 2.0 * len(kernels) for kernels in ran)
        return {name: np.full(rounds, seconds) for name, seconds in zip(programs, took, strict=True)}

    monkeypatch.setattr(bench, "take_turns", take_turns)
    found = bench.by_pair("A", 1, 2, progress=False)
    assert ran[0] == fused.KERNELS
    for without, op in zip(ran[1:], fused.KERNELS, strict=True):
        assert without == {other: pair for other, pair in fused.KERNELS.items() if other is not op}
    n = len(fused.KERNELS)
    assert found == pytest.approx({op.__name__: (n + 2) / n - 1 for op in fused.KERNELS})


@pytest.mark.usefixtures("small")
def test_pairs_are_listed_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    text, found = run(["--pairs"], capsys)
    assert found["pairs"].keys() == {op.__name__ for op in fused.KERNELS}
    assert any(line.startswith("gain: linear ") for line in text)


@pytest.mark.usefixtures("small")
def test_quiet_prints_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = run(["--quiet", "--ledger", "--widths"], capsys)
    assert text == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_growth_is_what_the_model_takes() -> None:
    shape = TINY | {"vocab_size": 2**15, "width": 64}
    weights = 2 * 2**15 * 64 * 4 / 2**20  # MiB of embedding and head, 16; the rest is small
    grown = peak_growth("umup", shape, 1)
    assert grown is not None
    assert 4 * weights < grown < 6 * weights  # weights, gradients, m, v; and what is on the way


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--rounds", "0"], "--rounds: 0 is too small; the least is 1"),
        (["--rounds", "999999999999999999"], "--rounds: 999999999999999999 is too large; the most is 1000000000"),
        (["--threads", "0"], "--threads: 0 is too small; the least is 1"),
        (["--threads", "17"], "--threads: 17 is more than --batch-size 16"),
        (["--config", "E"], "--config: invalid choice: 'E'"),
        (["--vs", "jax"], "--vs: invalid choice: 'jax'"),
        (["--fp8", "--vs", "torch"], "--fp8: has shapes and peers of its own"),
    ],
)
def test_bad_input(refused: Refused, argv: list[str], complaint: str) -> None:
    assert complaint in refused(main, argv)


@pytest.mark.parametrize(("peer", "missing"), [("torch", "torch"), ("unit-scaling", "unit_scaling")])
def test_a_missing_peer_is_named_with_how_to_get_it(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, peer: str, missing: str
) -> None:
    def import_module(name: str) -> None:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(twins, "import_module", import_module)
    line = refused(main, ["--vs", peer])
    assert f"--vs {peer}: needs {missing}, {install_hint('peers')}" in line
