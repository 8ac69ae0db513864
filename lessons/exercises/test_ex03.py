"""Grader of exercise 03: `gradient_constant` against the package's `gradient_constants`, for random factors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grading import compare, solve

from microumup.config import ModelConfig
from microumup.ops import ResidualScale, Scale
from microumup.plan import Plan, gradient_constants, plan

pytestmark = pytest.mark.lesson03


def random_plan(rng: np.random.Generator) -> Plan:
    """A Plan in which no two factors are alike, so that each of them shows. Only what has to be equal is."""

    def factors(n: int) -> list[float]:
        return [float(f) for f in np.exp2(rng.uniform(-3, 3, n))]

    def branch() -> ResidualScale:
        a, b, dbranch = factors(3)
        return ResidualScale(a, b, dbranch=dbranch, dbase=a / dbranch)

    start = plan(ModelConfig(width=16, head_dim=4, layers=int(rng.integers(2, 5))), batch_tokens=64)
    return start._replace(
        embedding=Scale(*factors(3)), attention=Scale(*factors(3)), gated_silu=Scale(*factors(3)),
        loss=Scale(*factors(3)), branches=tuple(branch() for _ in start.branches),
        linears={name: of._replace(scale=Scale(*factors(3))) for name, of in start.linears.items()},
    )  # fmt: skip


def grade(gradient_constant: Callable[..., Any]) -> None:
    """Raise AssertionError at the first weight whose constant is wrong, near ones first."""
    numbers = random_plan(np.random.default_rng())
    constants = gradient_constants(numbers)
    layer = numbers.config.layers - 1
    first = ("head", "embedding", f"layer{layer}.down", f"layer{layer}.up", f"layer{layer}.o", f"layer{layer}.q")
    for name in dict.fromkeys((*first, *constants)):
        right, yours = constants[name], gradient_constant(numbers, name)
        compare(f"c of {name}", yours, right, mistakes=mistakes(numbers, name, right))


def mistakes(numbers: Plan, name: str, right: float) -> dict[str, float]:
    """What a hint says, and the constant that comes of the mistake."""
    own = numbers.embedding if name == "embedding" else numbers.linears[name].scale
    head, loss = numbers.linears["head"].scale, numbers.loss
    found = {
        "it is the inverse: backward factors go over forward factors": 1 / right,
        "the weight's own op passes dw, not dx": right * own.dx / own.dw,
        "the weight's own dw is not divided by the op's forward factor": right * own.y,
        "the weight's own op is missing": right * own.y / own.dw,
        "the loss is missing": right * loss.y / loss.dx,
    }
    if name == "head":
        return found
    found["the head, which the gradient passes, is missing"] = right * head.y / head.dx
    if name == "embedding":
        return found
    layer, _, kind = name.partition(".")
    in_attention = kind in ("q", "k", "v", "o")
    place = 2 * int(layer.removeprefix("layer"))
    branch, other = numbers.branches[place : place + 2][:: 1 if in_attention else -1]
    entry = branch.dbranch / branch.a
    found |= {
        "dbranch over a is missing, where the branch begins backward (dbase acts at its base, which comes later)":
            right / entry,
        "where the branch begins backward, dbranch is not divided by a": right * branch.a,
        "the other branch of this layer was taken: attention first, then FFN":
            right / entry * other.dbranch / other.a,
    }  # fmt: skip
    if kind in ("o", "down"):
        return found
    last, middle = ("o", "attention") if in_attention else ("down", "gated_silu")
    before, op = numbers.linears[f"{layer}.{last}"].scale, getattr(numbers, middle)
    return found | {
        f"{last}, which the gradient passes, is missing": right * before.y / before.dx,
        f"{middle}, which the gradient passes, is missing": right * op.y / op.dx,
        f"{last} and {middle}, which the gradient passes, are missing": right * before.y / before.dx * op.y / op.dx,
    }


def test_exercise() -> None:
    solve("03", grade, "gradient_constant")
