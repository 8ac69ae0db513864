"""Exercise 01: the walk back over a tape.

Write `walk_back`. Graded by: pytest -m lesson01 lessons
Hints: python lessons/hint.py 01 1  (then 2, then 3)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from microumup.backend import Array


class Node(NamedTuple):
    """A value on the tape: a leaf, which has no backward, or what an op made of older values."""

    inputs: tuple[int, ...] = ()  # places on the tape of the values that it was made from
    backward: Callable[[Array, Any], tuple[Array, ...]] | None = None  # backward(dy, saved) -> one gradient an input
    saved: Any = None


def walk_back(tape: list[Node], dy: Array) -> list[Array | None]:
    """The gradient of every value on the tape, in the tape's order. The last value's own gradient is `dy`.

    The tape lies in the order in which its values were made, so inputs come before what is made from them. A value that
    the last one does not depend on has the gradient None. Write to no array that is not yours: a backward may return
    the very array that it was given.

    In slow and obvious loops, the gradient of the value at place i is

        if i is the last place:  d[i] = dy
        else:                    d[i] = None
        for every node j that is younger than i and has d[j]:
            parts = tape[j].backward(d[j], tape[j].saved)      # d[j] has to be complete here
            for place, part in zip(tape[j].inputs, parts):
                if place == i:
                    d[i] = part if d[i] is None else d[i] + part

    Yours shall call each backward at most once.
    """
    raise NotImplementedError
