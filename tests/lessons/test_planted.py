"""Change a constant of the rules, and a lesson's own claim fails: what the lessons teach, they also check.

A change is planted for a while, and the quickest lesson that teaches the rule is run.
"""

import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from microumup import fp8, multipliers, optim, parametrization
from microumup.lab.figures.rules import taus_as_printed
from microumup.multipliers import UnitScaled
from microumup.ops import Scale
from microumup.parametrization import SCHEMES, UMUP, one

pytest.importorskip("matplotlib")

LESSONS = Path(__file__).resolve().parents[2] / "lessons"


class Change(NamedTuple):
    """What is changed, by which lesson that is seen, and what is put where: a module or class, a name, a value."""

    what: str
    lesson: str
    swaps: Sequence[tuple[Any, str, Any]]


def row(what: str, lesson: str, **cells: Any) -> Change:
    """Other cells in u-µP's row of Tables 1-3."""
    return Change(what, lesson, [(parametrization, "UMUP", UMUP._replace(**cells))])


def factors(what: str, lesson: str, op: str, rule: Callable[..., Any]) -> Change:
    """Another row in Table 4."""
    return Change(what, lesson, [(UnitScaled, op, staticmethod(rule))])


def function(what: str, lesson: str, name: str, value: Callable[..., Any]) -> Change:
    """Another formula in `multipliers`, also where it has been imported to."""
    places = [module for module in (multipliers, parametrization) if hasattr(module, name)]
    return Change(what, lesson, [(module, name, value) for module in places])


def sigma_of_silu(alpha: float) -> float:
    return multipliers.log_interpolate(1 / (1 + 1 / alpha**2), 1, 1 / 2)


def sigma_of_attention(alpha: float, head_dim: int, seq_len: int) -> float:
    return multipliers.log_interpolate(1 / (1 + head_dim / alpha**2), 1.0, sqrt(multipliers.log(seq_len) / seq_len))


CHANGES = [
    factors("dw of a linear 1/b", "02_linear", "linear", lambda A, A_backward, b: Scale(A, A_backward, 1 / b)),
    factors("dx of a linear without a factor", "02_linear", "linear", lambda A, A_backward, b: Scale(A, 1.0, b**-0.5)),
    factors("embedding's dw √V/b", "03_cut_edge", "embedding", lambda A, V, b: Scale(y=A, dw=sqrt(V) / b)),
    factors("loss gradient without V/√(V-1)", "03_cut_edge", "cross_entropy", lambda a, V, b: Scale(dx=b / a)),
    function("upper end of gated_silu's σ 1", "03_cut_edge", "gated_silu_sigma", sigma_of_silu),
    function("K for 4K in attention's σ", "05_residual", "attention_sigma", sigma_of_attention),
    function("τ as eq. (22) prints it", "05_residual", "residual_taus", taus_as_printed),
    function(
        "a = √τ", "05_residual", "residual_multipliers", lambda taus: [(sqrt(t), sqrt(1 / (t + 1))) for t in taus]
    ),
    row("hidden A 1/fan_in", "02_linear", hidden=UMUP.hidden._replace(A=lambda s: 1 / s.fan_in)),
    row("readout A fan_in^-1/2", "02_linear", output=UMUP.output._replace(A=UMUP.hidden.A)),
    row("hidden LR 1", "06_parametrizations", hidden=UMUP.hidden._replace(C=one)),
    row("hidden LR 1/fan_in", "06_parametrizations", hidden=UMUP.hidden._replace(C=lambda s: 1 / s.fan_in)),
    row("embedding LR 1", "07_adam", input=UMUP.input._replace(C=one)),
    row("branch LR without L^-1/2", "06_parametrizations", residual=UMUP.residual._replace(C=one)),
    row("scores K^-1/2", "07_adam", score_scale=lambda K: K**-0.5),
    Change("E4M3 up to 240", "10_fp8", [(fp8, "E4M3", fp8.E4M3._replace(max=240.0))]),
    Change("E4M3 with 2 mantissa bits", "02_linear", [(fp8, "E4M3", fp8.E4M3._replace(mantissa_bits=2))]),
    Change("coupled weight decay", "07_adam", [(optim.DECAYS, "independent", optim.DECAYS["coupled"])]),
]


def run(name: str) -> None:
    script = str(LESSONS / f"{name}.py")
    with patch.object(sys, "argv", [script]):
        runpy.run_path(script, run_name="__main__")


def plant(change: Change, stack: ExitStack) -> None:
    for place, name, value in change.swaps:
        as_item = isinstance(place, dict)
        stack.enter_context(patch.dict(place, {name: value}) if as_item else patch.object(place, name, value))
        if name == "UMUP":
            stack.enter_context(patch.dict(SCHEMES, {"umup": value}))
        if name == "E4M3":
            stack.enter_context(patch.dict(fp8.FORMATS, {"e4m3": value}))


def test_there_are_twelve_changes_at_least() -> None:
    assert len(CHANGES) >= 12


@pytest.mark.parametrize("change", CHANGES, ids=[change.what.replace(" ", "-") for change in CHANGES])
def test_a_changed_constant_fails_a_claim(change: Change, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LESSON_RUNS", str(tmp_path))
    with ExitStack() as stack:
        plant(change, stack)
        with pytest.raises(AssertionError, match=r"measured .*expected"):
            run(change.lesson)
