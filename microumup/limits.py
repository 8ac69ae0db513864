"""Limits of options: numbers of Python's own, in ranges that mean something, of sizes there is memory for."""

import operator
from dataclasses import fields
from typing import Any

import numpy as np

from microumup.checks import real
from microumup.cpu import available_memory

SMALLEST = {  # all else 1
    "vocab_size": 2, "seq_len": 2, "head_dim": 2, "width": 4, "base_width": 4, "seed": 0, "micro_batch": 0,
    "save_every": 0, "log_every": 0, "eval_every": 0, "log_scales": 0,
}  # fmt: skip
MANY = 10**9  # steps, say: more than anybody has time for
LARGEST = {  # whole numbers, past which nothing can be meant; all else MANY
    "width": 2**20, "base_width": 2**20, "layers": 10_000, "base_layers": 10_000, "head_dim": 2**20, "seq_len": 2**24,
    "vocab_size": 2**24, "batch_size": 2**24, "micro_batch": 2**24, "seed": 2**64 - 1, "threads": 4096,
}  # fmt: skip
USUAL = (1e-6, 1e6)  # of a hyperparameter: further from 1 float32 cannot hold what it multiplies
SHARES = ("warmup", "weight_decay", "beta1", "beta2")
RANGES = {
    "norm_eps": (0.0, 1.0), "rope_base": (1.0, 1e9), "save_minutes": (0.0, 1e9),
    "beta1": (0.0, 1 - 1e-9), "beta2": (0.0, 1 - 1e-9), "adam_eps": (1e-30, 1.0), "clip": (1e-30, 1e30),
    "warmup": (0.0, 1.0), "weight_decay": (0.0, 1.0), "lr": (1e-45, 1e45), "loss_scale": (1e-30, 1e30),
}  # fmt: skip


def option_name(field: str) -> str:
    """`alpha_res` -> `--alpha-res`."""
    return "--" + field.replace("_", "-")


def check_least(options: object, **least: float) -> None:
    """Raise ValueError, naming the option, when an attribute of `options` is below its least value, is NaN, or counts
    more things than anybody has time for."""
    for name, bound in least.items():
        value, most = getattr(options, name), LARGEST.get(name, MANY)
        if not value >= bound:
            raise ValueError(f"{option_name(name)}: {value} is too small; the least is {bound}")
        if type(value) is int and value > most:
            raise ValueError(f"{option_name(name)}: {value} is too large; the most is {most}")


def check_fields(options: Any) -> None:
    """Make every field of a dataclass plain, in place. Raises ValueError as `plain` and `check_range` do."""
    for f in fields(options):
        value = plain(f.name, f.type, getattr(options, f.name))
        check_range(f.name, value)
        object.__setattr__(options, f.name, value)


def plain(name: str, kind: Any, value: Any) -> Any:
    """The value of an option as Python's own type, whatever number of NumPy it was. Raises ValueError for another kind
    of value: what is no number, has a fraction or an imaginary part where none can be, is no text or no switch."""
    try:
        if kind is bool and not isinstance(value, (bool, np.bool)):
            raise TypeError
        if kind is int and isinstance(value, (bool, np.bool)):
            raise TypeError
        if kind in (str, tuple[str, ...]):
            texts = (value,) if kind is str else value
            if not isinstance(texts, tuple) or any(not isinstance(text, str) for text in texts):
                raise TypeError
            return value
        if kind in (float, float | None):
            return value if value is None and kind is not float else real(value)
        return bool(value) if kind is bool else operator.index(value)
    except (TypeError, ValueError, OverflowError):
        kinds = {bool: "a switch, True or False", int: "a whole number", str: "a text", float: "a number"}
        what = kinds.get(kind, "a number" if kind == float | None else "a tuple of texts")
        raise ValueError(f"{option_name(name)}: {str(value)[:80]!r} is not {what}") from None


def check_range(name: str, value: Any) -> None:
    """Raise ValueError for a number outside of what the option can be."""
    if type(value) is int:
        low, high = SMALLEST.get(name, 1), LARGEST.get(name, MANY)
        if not low <= value <= high:
            which, bound = ("small; the least", low) if value < low else ("large; the most", high)
            raise ValueError(f"{option_name(name)}: {value} is too {which} is {bound}")
    if type(value) is float:
        least, most = RANGES.get(name, USUAL)
        if not least <= value <= most:
            share = "no share; use" if name in SHARES else "not a positive finite number of"
            raise ValueError(f"{option_name(name)}: {value} is {share} {least:g} to {most:g}")


def check_memory(config: Any) -> None:
    """Raise ValueError, naming an option, for a TrainConfig that this machine's memory cannot hold.

    What it would need at least: weights, gradients and two moments, and for the backward pass what each layer keeps.
    """
    c, (D, F, T) = config, (config.width, config.ffn_dim, config.seq_len)
    layer = 4 * D * D + 3 * D * F
    kept = c.batch_size * T * (8 * D + 3 * F + D // c.head_dim * T // 2)
    need, have = 16 * (2 * c.vocab_size * D + c.layers * layer) + 4 * c.layers * kept, available_memory()
    if need > have:
        sizes = ("width", "layers", "vocab_size", "seq_len", "batch_size")
        largest = max(sizes, key=lambda name: getattr(c, name) / getattr(type(c), name))
        raise ValueError(
            f"{option_name(largest)}: {getattr(c, largest):,} needs {need / 1e9:,.0f} GB of memory or more, and there "
            f"are {have / 1e9:,.0f}; make it smaller"
        )
