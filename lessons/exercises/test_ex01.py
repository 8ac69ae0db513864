"""Grader of exercise 01: `walk_back` against the package's engine, on a random tape."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grading import compare, load, require, solve

from microumup import ops
from microumup.engine import Tensor, backpropagate, primitive

pytestmark = pytest.mark.lesson01

add = primitive(lambda a, b: (a + b, None), lambda dy, saved: (dy, dy))  # hands on the very array that it is given


def forward(rng: np.random.Generator) -> list[Tensor]:
    """Values in the order in which they were made. Some are used twice, one not at all, one leads nowhere."""
    x, w, unused = Tensor(rng.standard_normal((3, 4))), Tensor(rng.standard_normal((4, 4))), Tensor(np.ones(2))
    h = ops.linear(x, w)
    n = ops.rms_norm(h)
    h2 = add(h, n)
    h3 = add(h2, x)
    nowhere = ops.rms_norm(h2)
    again = ops.linear(h3, w)
    return [x, w, unused, h, n, h2, h3, nowhere, again, add(again, h3)]


def grade(walk_back: Callable[..., Any]) -> None:
    """Raise AssertionError at the first gradient of the tape that is wrong."""
    Node = load("01").Node
    rng = np.random.default_rng()
    values = forward(rng)
    places, calls = {id(t): i for i, t in enumerate(values)}, [0] * len(values)

    def counted(place: int, t: Tensor) -> Callable[..., Any]:
        backward = t._backward
        assert backward is not None

        def call(dy: Any, saved: Any) -> Any:
            calls[place] += 1
            return backward(dy, saved)

        return call

    tape = [
        Node(tuple(places[id(x)] for x in t.inputs), counted(i, t) if t.op else None, t.saved)
        for i, t in enumerate(values)
    ]
    dy = rng.standard_normal(values[-1].data.shape)
    overwritten, of_ones = overwriting(tape, dy), overwriting(tape, np.ones_like(dy), add_up=True)
    calls[:] = [0] * len(values)

    given = dy.copy()
    yours = walk_back(tape, given)
    require(isinstance(yours, list), f"yours is {type(yours).__name__}, expected a list, a gradient for each value")
    require(len(yours) == len(tape), f"yours has {len(yours)} gradients for {len(tape)} values on the tape")
    require(
        np.array_equal(given, dy),
        "dy was changed. Likely: += writes into an array that another value shares; make a new one, d = d + part",
    )
    for place, count in enumerate(calls):
        require(
            count <= 1,
            f"the backward of value {place} was called {count} times. Likely: the walk follows each path by itself; "
            "wait until a value's gradient is complete, then pass it on once",
        )
    backpropagate(values[-1], dy, keep=True)
    for place, (found, t) in enumerate(zip(yours, values, strict=True)):
        what = f"d[{place}]"
        if t.grad is None:
            require(found is None, f"{what}: the last value does not depend on it, so its gradient is None")
            continue
        late = "the walk began at the oldest value; begin at the youngest"
        require(found is not None, f"{what}: yours is None. Likely: {late}")
        compare(what, found, t.grad, mistakes={
            "a part replaced the one before; a value used twice gets the sum of both": overwritten[place],
            "the walk began with ones instead of dy": of_ones[place],
        })  # fmt: skip


def overwriting(tape: list[Any], dy: Any, *, add_up: bool = False) -> list[Any]:
    """The gradients when parts are not added up."""
    d: list[Any] = [None] * len(tape)
    d[-1] = dy
    for node, i in zip(reversed(tape), reversed(range(len(tape))), strict=True):
        if node.backward and d[i] is not None:
            for place, part in zip(node.inputs, node.backward(d[i], node.saved), strict=True):
                d[place] = d[place] + part if add_up and d[place] is not None else part
    return [np.nan if x is None else x for x in d]


def test_exercise() -> None:
    solve("01", grade, "walk_back")
