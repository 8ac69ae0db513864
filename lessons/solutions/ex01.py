"""Exercise 01, solved."""

from collections.abc import Callable
from typing import Any, NamedTuple

from microumup.backend import Array


class Node(NamedTuple):
    """A value on the tape: a leaf, which has no backward, or what an op made of older values."""

    inputs: tuple[int, ...] = ()
    backward: Callable[[Array, Any], tuple[Array, ...]] | None = None
    saved: Any = None


def walk_back(tape: list[Node], dy: Array) -> list[Array | None]:
    """The gradient of every value on the tape, in the tape's order. The last value's own gradient is `dy`."""
    d: list[Array | None] = [None] * len(tape)
    d[-1] = dy
    for i in reversed(range(len(tape))):  # youngest first: whatever was made from value i has passed its part on
        backward, complete = tape[i].backward, d[i]
        if backward is None or complete is None:
            continue
        for place, part in zip(tape[i].inputs, backward(complete, tape[i].saved), strict=True):
            before = d[place]
            d[place] = part if before is None else before + part  # a new array: += would change one that is shared
    return d
