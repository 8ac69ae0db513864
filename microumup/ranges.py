"""Places of the operands of every linear in FP8's range: what `train --log-scales` writes and `scales` shows.

A cast to FP8 goes wrong in two ways: small elements are flushed to zero, large ones saturate. Both are counted here,
for the three tensors that a linear multiplies, x, w and dy, as they are before any cast.
"""

from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup import files
from microumup.backend import Array, xp_of
from microumup.config import ModelConfig
from microumup.engine import Tensor, tape
from microumup.fp8 import TENSORS, Format, LinearFormats, parse_recipe, quantize
from microumup.ops import cross_entropy_backward, cross_entropy_forward, linear_forward
from microumup.run_dir import identity


class Range(NamedTuple):
    """A tensor's place in a format's range. Shares are of all its elements."""

    format: str  # what it is cast to: e4m3, e5m2, or none where it stays float32
    size: int  # how many elements it has
    rms: float
    absmax: float
    underflow: float  # share that is not 0 before the cast, and 0 after it
    saturated: float  # share past ±max


Ranges = dict[str, Range]  # by tensor: layer0.q.x, layer0.q.w, layer0.q.dy, …


def linear_ranges(losses: Tensor | list[Tensor], recipe: dict[str, LinearFormats] | None = None) -> Ranges:
    """The Range of x, w and dy of every linear, as they are before any cast. All float32.

    `losses` are the loss of a batch, or those of the shares that threads have made of it. `recipe` has the formats to
    hold them against, by default those of `fp8`, whatever the model itself casts to. Raises ValueError without
    gradients.
    """
    recipe = recipe or parse_recipe("fp8")
    tapes = [tape(loss) for loss in (losses if isinstance(losses, list) else [losses])]
    ranges: Ranges = {}
    for parts in zip(*tapes, strict=True):
        if parts[0].op not in ("linear", "linear_cross_entropy"):
            continue
        w = parts[0].inputs[1]
        assert isinstance(w, Tensor)
        x = _joined([node.inputs[0].data for node in parts])
        dy = _joined([grad_of(node) if node.op == "linear" else dlogits(node) for node in parts])
        formats = recipe[w.name.rpartition(".")[2]]
        for tensor, array, fmt in zip(TENSORS, (x, w.data, dy), formats, strict=True):
            ranges[f"{w.name}.{tensor}"] = measure(array, fmt)
    return ranges


def dlogits(node: Tensor) -> Array:
    """The gradient (N, V) of the logits inside a linear_cross_entropy, after `backpropagate` with `keep`."""
    x, w, targets = (x.data if isinstance(x, Tensor) else x for x in node.inputs)
    scale, fp8, loss_scale, alpha = (node.settings[name] for name in ("scale", "fp8", "loss_scale", "alpha"))
    logits, _ = linear_forward(x, w, scale=scale, fp8=fp8)
    _, saved = cross_entropy_forward(logits, targets, alpha=alpha, scale=loss_scale)
    return cross_entropy_backward(grad_of(node), saved)[0].reshape(-1, len(w))


def casts_or_fp8(config: ModelConfig) -> dict[str, LinearFormats]:
    """Formats to hold a model's scales against: those it casts to or, if it casts nothing, those of FP8 training."""
    return parse_recipe("fp8" if config.fp8 == "none" else config.fp8)


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else xp_of(parts[0]).concatenate(parts)


def measure(x: Array, fmt: Format | None) -> Range:
    """The Range of x, float32 of any shape, in `fmt`; None is float32, in whose range everything lies."""
    magnitude = abs(x)
    rms, absmax = rms_of(x), float(magnitude.max())
    if fmt is None:
        return Range("none", x.size, rms, absmax, 0.0, 0.0)
    flushed = (quantize(x, fmt) == 0) & (x != 0)
    return Range(fmt.name, x.size, rms, absmax, float(flushed.mean()), float((magnitude > fmt.max).mean()))


def grad_of(t: Tensor) -> Array:
    """The gradient that a walk with `keep` left in `t`. Raises ValueError when there is none."""
    if t.grad is None:
        raise ValueError(f"{t!r} has no gradient; call backpropagate(loss, keep=True) before looking at scales")
    return t.grad


def rms_of(x: Array) -> float:
    """Root mean square of all elements."""
    xp = xp_of(x)
    return float(xp.sqrt(xp.mean(xp.square(x), dtype=np.float64)))


def log_scales(
    run_dir: Path, step: int, losses: Tensor | list[Tensor], recipe: dict[str, LinearFormats] | None = None
) -> None:
    """Append the ranges at `step` to RUN_DIR/scales.jsonl, a line of JSON."""
    tensors = {name: r._asdict() for name, r in linear_ranges(losses, recipe).items()}
    files.append(run_dir / "scales.jsonl", {"step": step, "tensors": tensors}, owner=identity(run_dir))


def read_scales(run_dir: Path) -> dict[int, Ranges]:
    """The logged ranges by step, in order; none if the run has no log. Of a step logged twice, by a resumed run, the
    later. Raises ValueError, naming the line, for what `log_scales` did not write.
    """
    path, logged = run_dir / "scales.jsonl", {}
    for number, record in enumerate(files.read_lines(path, identity(run_dir)), start=1):
        try:
            logged[int(record["step"])] = {name: _range(r) for name, r in record["tensors"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = files.one_line(error)
            raise ValueError(f"{path}: line {number} is damaged ({what}); restore it, or delete the line") from None
    return dict(sorted(logged.items()))


def _range(record: dict[str, Any]) -> Range:
    found = Range(**record)
    numbers = [nan if x is None else float(x) for x in found[2:]]  # what is not finite is null in JSON
    return Range(str(found.format), int(found.size), *numbers)
