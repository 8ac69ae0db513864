"""Errors for arguments that are no arrays: one line, with the op, the argument, what it is and the mend."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from microumup import ops
from microumup.engine import Tensor


class DType:
    """Like `torch.float32`: no numpy dtype, without `char` and `kind`."""

    def __repr__(self) -> str:
        return "torch.float32"


class TorchTensor:
    """As much of a PyTorch tensor as an op could take for an array."""

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)
        self.shape, self.ndim, self.dtype = self.array.shape, self.array.ndim, DType()

    def size(self) -> tuple[int, ...]:
        return self.shape

    def min(self) -> "TorchTensor":
        return TorchTensor(self.array.min())

    def __len__(self) -> int:
        return len(self.array)


X, W = np.ones((2, 3, 8), np.float32), np.ones((5, 8), np.float32)
TOKENS = np.ones((2, 3), np.int64)
# every op: its name, its forward half, its arguments by name, its settings
OPS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "linear": (ops.linear_forward, {"x": X, "w": W}, {}),
    "embedding": (ops.embedding_forward, {"tokens": TOKENS, "w": W}, {}),
    "rms_norm": (ops.rms_norm_forward, {"x": X}, {}),
    "rope": (ops.rope_forward, {"x": X}, {"head_dim": 4}),
    "attention": (ops.attention_forward, {"q": X, "k": X, "v": X}, {"head_dim": 4, "score_scale": 1.0}),
    "gated_silu": (ops.gated_silu_forward, {"x_in": X, "x_gate": X}, {}),
    "residual_split": (ops.residual_split_forward, {"x": X}, {}),
    "residual_add": (ops.residual_add_forward, {"branch": X, "skip": X}, {}),
    "cross_entropy": (ops.cross_entropy_forward, {"logits": X, "targets": TOKENS}, {}),
    "linear_cross_entropy": (ops.linear_cross_entropy_forward, {"x": X, "w": W, "targets": TOKENS}, {}),
}
HALVES = {"x": "linear", "w": "linear", "targets": "cross_entropy"}  # of linear_cross_entropy, which names that half
CASES = [(op, name) for op, (_, arguments, _) in OPS.items() for name in arguments]
NO_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "a PyTorch tensor": TorchTensor,
    "a list": lambda array: array.tolist(),
    "None": lambda _: None,
    "a numpy scalar": lambda array: array.flat[0],
    "a number": lambda array: array.flat[0].item(),
    "a Tensor": lambda array: Tensor(array) if array.dtype.kind == "f" else [array],  # a half takes bare arrays
}


def test_every_op_is_here() -> None:
    forwards = {name.removesuffix("_forward") for name in vars(ops) if name.endswith("_forward")}
    assert forwards == set(OPS)


@pytest.mark.parametrize("what", NO_ARRAYS)
@pytest.mark.parametrize(("op", "name"), CASES, ids=lambda value: value)
def test_what_is_no_array_is_named_with_the_mend(op: str, name: str, what: str) -> None:
    forward, arguments, settings = OPS[op]
    bad = NO_ARRAYS[what](arguments[name])
    by = HALVES[name] if op == "linear_cross_entropy" else op
    with pytest.raises(ValueError, match=rf"^{by}: {name} (is|are) .*; pass .*(numpy|cupy) array") as error:
        forward(*(arguments | {name: bad}).values(), **settings)
    message = str(error.value)
    assert "\n" not in message
    assert ("None" if bad is None else type(bad).__name__) in message
    assert len(message) < 200  # it names the type, and does not print what is in it


def test_an_op_of_a_tape_says_the_same() -> None:
    with pytest.raises(ValueError, match=r"^linear: x is a .*; pass .*(numpy|cupy) array"):
        ops.linear(TorchTensor(X), Tensor(W))  # type: ignore[arg-type]


def test_a_wrong_target_of_the_fused_loss_is_named_too() -> None:
    with pytest.raises(ValueError, match=r"^cross_entropy: targets (is|are) .*; pass .*(numpy|cupy) array"):
        ops.linear_cross_entropy(
            Tensor(X), Tensor(W), TOKENS.tolist(), scale=ops.Scale(), alpha=1.0, loss_scale=ops.Scale()
        )


@pytest.mark.parametrize("op", OPS)
def test_arrays_are_taken(op: str) -> None:
    forward, arguments, settings = OPS[op]
    forward(*arguments.values(), **settings)
