from collections.abc import Callable
from typing import Any

import pytest

from microumup.plan import Plan, gradient_constants


def test_the_solution_passes(graded: Callable[..., str]) -> None:
    assert graded("03") == ""


def test_the_stub_is_skipped(graded: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LESSON_SOLUTIONS")
    with pytest.raises(pytest.skip.Exception, match=r"hint\.py 03 1"):
        graded("03")


def but_for(mistake: Callable[[Plan, str], float]) -> Callable[..., Any]:
    """The right answer times what the mistake makes of it."""
    return lambda plan, name: gradient_constants(plan)[name] * mistake(plan, name)


def own(plan: Plan, name: str) -> Any:
    return plan.embedding if name == "embedding" else plan.linears[name].scale


def branch(plan: Plan, name: str) -> Any:
    layer, _, kind = name.partition(".")
    return plan.branches[2 * int(layer[5:]) + (kind in ("up", "gate", "down"))]


def in_branch(name: str) -> bool:
    return name.startswith("layer")


def at_its_end(name: str) -> bool:
    return name.endswith((".o", ".down"))


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (lambda plan, name: 1 / gradient_constants(plan)[name], "it is the inverse"),
        (but_for(lambda plan, name: own(plan, name).y), "own dw is not divided"),
        (but_for(lambda plan, name: own(plan, name).dx / own(plan, name).dw), "passes dw, not dx"),
        (but_for(lambda plan, name: plan.loss.y / plan.loss.dx), "the loss is missing"),
        (
            but_for(lambda plan, name: 1 if name == "head" else own(plan, "head").y / own(plan, "head").dx),
            "the head, which the gradient passes",
        ),
        (
            but_for(lambda plan, name: branch(plan, name).a / branch(plan, name).dbranch if in_branch(name) else 1),
            "dbranch over a is missing",
        ),
        (
            but_for(lambda plan, name: branch(plan, name).a if in_branch(name) else 1),
            "dbranch is not divided by a",
        ),
        (
            but_for(lambda plan, name: branch(plan, name).dbase if in_branch(name) else 1),
            "dbase acts at its base, which comes later",
        ),
        (
            but_for(
                lambda plan, name: (
                    plan.gated_silu.y / plan.gated_silu.dx if in_branch(name) and not at_its_end(name) else 1
                )
            ),
            "c of layer\\d.up: .*gated_silu, which the gradient passes, is missing",
        ),
        (lambda plan, name: 2 * gradient_constants(plan)[name], "yours is 2 times what is expected"),
        (lambda plan, name: None, "does the function return its result"),
    ],
)
def test_a_typical_mistake_gets_its_hint(graded: Callable[..., str], mistake: Callable[..., Any], hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        raise AssertionError(graded("03", mistake))
