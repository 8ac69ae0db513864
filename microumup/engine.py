"""The whole autograd engine: a Tensor, a way to make ops, and the walk back over the tape.

It knows no op and no multiplier. An op is a pair of pure array functions:

    forward(*arrays, **settings) -> (y, saved)        saved is all that backward will need, an explicit tuple
    backward(dy, saved) -> (dx, ...)                  one gradient per array, None for integer arrays

`primitive(forward, backward)` makes of such a pair an op that also takes Tensors and remembers what it did. Within
`using(kernels)` some ops run other pairs of the same signature: the same values, made faster.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

from microumup.backend import Array, xp_of

Forward = Callable[..., tuple[Array, Any]]
Backward = Callable[[Array, Any], tuple[Array | None, ...]]
Op = Callable[..., "Tensor"]
Kernels = Mapping[Op, tuple[Forward, Backward]]

_clock = count()
_kernels: ContextVar[Kernels] = ContextVar("kernels", default={})  # noqa: B039 - nobody writes to it


class Tensor:
    """An array that gradients flow to, and how it was made.

    Made by hand it is a leaf: a parameter, or an input to differentiate with respect to. `backpropagate` puts the
    gradient into `grad`, same shape and dtype as `data`. Tensors that an op returned have `op`, `inputs`, `settings`
    and `saved`. One whose inputs hold no Tensor is a constant: it has no tape behind it and gets no gradient.
    """

    __slots__ = ("_backward", "constant", "data", "grad", "inputs", "name", "op", "order", "saved", "settings")

    def __init__(self, data: Array, name: str = "", *, constant: bool = False) -> None:
        self.data = data
        self.name = name
        self.constant = constant
        self.grad: Array | None = None
        self.op = ""
        self.inputs: tuple[Tensor | Array, ...] = ()
        self.settings: dict[str, Any] = {}
        self.saved: Any = None
        self.order = next(_clock)  # an op is younger than its inputs: sorting by age is a topological order
        self._backward: Backward | None = None

    def accumulate(self, grad: Array) -> None:
        """Add `grad`. Never in place: the one that came first may be shared."""
        self.grad = grad if self.grad is None else self.grad + grad

    def __repr__(self) -> str:
        label = self.name or self.op or ("constant" if self.constant else "leaf")
        return f"Tensor({label}, {self.data.shape}, {self.data.dtype})"


def primitive(forward: Forward, backward: Backward) -> Op:
    """The op made of `forward` and `backward`. Arrays and Tensors are positional, settings are keywords."""
    name, own = forward.__name__.removesuffix("_forward"), (forward, backward)

    def op(*inputs: Tensor | Array, **settings: Any) -> Tensor:
        forward, backward = _kernels.get().get(op, own)
        y, saved = forward(*(x.data if isinstance(x, Tensor) else x for x in inputs), **settings)
        constant = all(not isinstance(x, Tensor) or x.constant for x in inputs)
        out = Tensor(y, constant=constant)
        out.op = name
        if not constant:
            out.inputs, out.settings, out.saved, out._backward = inputs, settings, saved, backward
        return out

    op.__name__ = op.__qualname__ = name
    op.__doc__ = f"{forward.__doc__ or ''}\n\nTakes Tensors or arrays, returns a Tensor."
    return op


@contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Run the ops named in `kernels` by the pairs given there, in this thread and whatever it hands its context to."""
    token = _kernels.set({**_kernels.get(), **kernels})
    try:
        yield
    finally:
        _kernels.reset(token)


def backpropagate(y: Tensor, cotangent: Array | None = None, *, keep: bool = False) -> None:
    """Add the gradient of `y` to the `grad` of every leaf behind it.

    `cotangent` is what the gradient of y itself is: 1 for a loss, and needed when y is no scalar. The walk lets go
    of every gradient, saved array and input as soon as it has been used; with `keep` they all stay, so that they can
    be looked at. Raises ValueError for a constant, a missing or misshapen cotangent, a tape walked before, and an op
    whose backward returns gradients of the wrong number, shape or dtype.
    """
    if y.constant:
        raise ValueError("backpropagate: y was made from arrays alone; wrap what you differentiate by in a Tensor")
    if cotangent is None and y.data.shape != ():
        raise ValueError(f"backpropagate: y has shape {y.data.shape}, not (); pass cotangent=, an array of that shape")
    cotangent = xp_of(y.data).ones_like(y.data) if cotangent is None else cotangent
    if (cotangent.shape, cotangent.dtype) != (y.data.shape, y.data.dtype):
        found = f"{cotangent.dtype} {cotangent.shape}"
        raise ValueError(f"backpropagate: the cotangent is {found}, y is {y.data.dtype} {y.data.shape}")
    y.accumulate(cotangent)
    todo = tape(y)
    while todo:
        node = todo.pop()  # the youngest left: everything made from it has already passed its gradient on
        if node._backward is None:
            raise ValueError(f"backpropagate: the tape behind {node!r} was walked before; run the forward pass again")
        assert node.grad is not None
        grads, node._backward = node._backward(node.grad, node.saved), None
        if len(grads) != len(node.inputs):
            raise ValueError(f"{node.op}: backward returned {len(grads)} gradients for {len(node.inputs)} inputs")
        for position, (x, grad) in enumerate(zip(node.inputs, grads, strict=True)):
            if not isinstance(x, Tensor) or x.constant:
                continue
            if grad is None or (grad.shape, grad.dtype) != (x.data.shape, x.data.dtype):
                found = "None" if grad is None else f"{grad.dtype} {grad.shape}"
                expected = f"{x.data.dtype} {x.data.shape}"
                raise ValueError(f"{node.op}: the gradient of input {position} is {found}, the input is {expected}")
            x.accumulate(grad)
        if not keep:
            node.inputs, node.grad, node.saved = (), None, None


def tape(y: Tensor) -> list[Tensor]:
    """Every op between the leaves and `y`, oldest first. No recursion, so depth costs no stack."""
    found, todo = {y}, [y]
    while todo:
        for x in todo.pop().inputs:
            if isinstance(x, Tensor) and not x.constant and x not in found:
                found.add(x)
                todo.append(x)
    return sorted((t for t in found if t.op), key=lambda t: t.order)
