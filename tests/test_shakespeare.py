"""The tables of docs/shakespeare.md, and the README's, are those of docs/shakespeare.json."""

import json
import re
import shlex
from math import log
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from microumup import cli
from microumup.cli import Parser
from microumup.config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGE, README = ((ROOT / name).read_text() for name in ("docs/shakespeare.md", "README.md"))
MEASURED: dict[str, Any] = json.loads((ROOT / "docs" / "shakespeare.json").read_text())


def spread(values: list[float], digits: int = 3) -> str:
    """The mean and the standard deviation over seeds; of one value the value."""
    around = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{around}"


def row(group: dict[str, Any]) -> str:
    """A line of the tables: whose, its rate, its seeds, the loss in nats and bits, and seconds."""
    runs = group["runs"]
    losses = [run["loss"] for run in runs]
    bits = mean(losses) / log(2)
    seconds = mean(run["seconds"] for run in runs)
    return f"| {group['name']} | {group['lr']} | {len(runs)} | {spread(losses)} | {bits:.3f} | {seconds:.0f} |"


@pytest.mark.parametrize("group", MEASURED["equal tokens"], ids=lambda group: f"{group['name']}, {group['lr']}")
def test_a_line_of_the_table_of_equal_tokens_is_what_was_measured(group: dict[str, Any]) -> None:
    assert row(group) in PAGE
    if group["main"]:
        assert row(group) in README


def test_the_learning_rate_is_the_best_of_the_small_model() -> None:
    sweep = {point["lr"]: point["loss"] for point in MEASURED["sweep"]}
    assert f"| η | {' | '.join(sweep)} |" in PAGE
    assert f"| loss | {' | '.join(f'{loss:.3f}' for loss in sweep.values())} |" in PAGE
    best = min(sweep, key=lambda lr: sweep[lr])
    carried = next(group for group in MEASURED["equal tokens"] if group["name"].startswith("u-µP"))
    assert carried["lr"] == best


@pytest.mark.parametrize("group", MEASURED["known loss"], ids=lambda group: group["name"])
def test_a_line_of_the_table_of_a_known_loss_is_what_was_measured(group: dict[str, Any]) -> None:
    assert row(group) in PAGE
    if group["main"]:
        assert row(group) in README
        assert mean(run["loss"] for run in group["runs"]) < 1.88


def test_the_cost_of_a_step_is_what_was_measured() -> None:
    step = {name: of["cpu_ratio_to_nano"] for name, of in MEASURED["step"].items() if name != "nano"}
    assert f"takes {step['128x4']:.2f} of one of nanoGPT's" in PAGE
    assert f"one of width 48 {step['48x2']:.2f}" in PAGE
    equal = 2000 / step["128x4"]
    assert f"{equal:,.0f} of ours" in PAGE


@pytest.mark.parametrize("text", [PAGE, README], ids=["page", "readme"])
def test_the_commands_of_shakespeare_can_be_typed(text: str) -> None:
    commands = re.findall(r"^microumup train (--text \S+ --valid (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert commands
    for options in commands:
        parser = Parser("train", "")
        cli.add_options(parser, TrainConfig)
        for name in ("--out", "--eval-every"):
            parser.add_argument(name)
        parser.add_argument("--quiet", action="store_true")
        args = parser.parse_args(shlex.split(options.replace("\\\n", " ")))
        TrainConfig(**cli.given(args, TrainConfig))
