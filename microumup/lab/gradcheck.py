"""Is every gradient right, where backward is not meant to be the derivative of forward?

Under Unit Scaling an op may multiply its output by one factor and its gradients by others, so finite differences of
its forward would call a correct op wrong. What does hold, and is checked here, comes in three parts:

    (1) pairs    with all factors at 1, every backward is the derivative of its forward
    (2) factors  a factor multiplies the one result it belongs to, and touches no other
    (3) model    the gradient of every parameter is the true one times a constant known beforehand,
                 `plan.gradient_constants`

(3) is what training needs. A factor may differ backward only on a cut edge, which all of a gradient passes. On one of
two parallel ways, as in a residual branch, it would add up their gradients in a wrong proportion, which no constant
mends: the cosine to the true gradient falls below 1.

For an implementation of your own there are `check_pair`, `check_factors` and `check_model`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import cycle, groupby
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from microumup import fused, ops
from microumup.backend import Array
from microumup.cli import Parser, bad_input, json_line, say, shared
from microumup.config import ModelConfig
from microumup.engine import Backward, Forward, Tensor, backpropagate, primitive
from microumup.lab.workers import bar
from microumup.limits import check_least
from microumup.model import init_params, loss
from microumup.ops import ResidualScale, Scale
from microumup.parametrization import SCHEMES
from microumup.plan import gradient_constants, plan

PAIR_TOLERANCE = 1e-7  # the differences themselves are good to about 1e-11
FACTOR_TOLERANCE = 1e-12  # the same float64 computation twice, but for the rounding of the factors
COSINE_TOLERANCE = 1e-9
CONSTANT_TOLERANCE = 1e-6


class Result(NamedTuple):
    """A line of the table: what was found, held against a reference times the predicted factor.

    In parts 1 and 2 the error is |found - predicted · reference| over |predicted · reference|, in part 3 it is
    1 - cosine. `measured` is |found| over |reference|.
    """

    part: int
    name: str
    error: float
    predicted: float
    measured: float
    passed: bool


def check_pair(
    forward: Forward, backward: Backward, arrays: Sequence[Array], *, sample: int = 64, **settings: Any
) -> list[Result]:
    """(1) A Result for every float array: its gradient against differences of `forward`, in float64.

    forward(*arrays, **settings) -> (y, saved) and backward(dy, saved) -> one gradient per array, None for integers,
    as in `ops.py`. A random dy makes a scalar of y, Σ dy · y. For `sample` see `directions`. Raises ValueError
    for gradients of the wrong number or shape.
    """
    arrays = _float64(arrays)
    gradients = _run(forward, backward, arrays, **settings)
    dy = _random_dy(gradients.pop("y").shape)

    def dy_times_y(position: int, moved: Array) -> float:
        y, _ = forward(*arrays[:position], moved, *arrays[position + 1 :], **settings)
        return float((dy * y).sum())

    results = []
    floats = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
    for position, (name, gradient) in zip(floats, gradients.items(), strict=True):
        along = directions(gradient.shape, sample)
        true = derivatives(partial(dy_times_y, position), arrays[position], along)
        label = " ".join([_label(forward, name, gradient), *(f"{k}={v}" for k, v in settings.items())])
        results.append(_compare(1, label, np.tensordot(along, gradient, gradient.ndim), true, 1.0, PAIR_TOLERANCE))
    return results


def check_factors(
    forward: Forward, backward: Backward, arrays: Sequence[Array],
    scale: Scale | ResidualScale, expected: Sequence[float], **settings: Any,
) -> list[Result]:  # fmt: skip
    """(2) A Result for y and for each gradient: the one with `scale` against `expected` times the one without.

    `expected` is the factor of y, then of the gradient of every float array. Give `scale` all different factors:
    then a result that the wrong one has touched is off. Raises ValueError as `check_pair` does.
    """
    arrays = _float64(arrays)
    plain = _run(forward, backward, arrays, **settings)
    scaled = _run(forward, backward, arrays, scale=scale, **settings)
    if len(expected) != len(plain):
        raise ValueError(f"check_factors: expected has {len(expected)} factors; pass one each for {', '.join(plain)}")
    return [
        _compare(2, _label(forward, name, found), found, plain[name], factor, FACTOR_TOLERANCE)
        for (name, found), factor in zip(scaled.items(), expected, strict=True)
    ]


def check_model(config: ModelConfig, seed: int = 0, sample: int = 16) -> list[Result]:
    """(3) A Result for every parameter: its gradient against differences of the loss of a random batch, in float64.

    Raises ValueError where `config` asks for FP8, which is not differentiable.
    """
    if config.fp8 != "none":
        raise ValueError(f"check_model: config.fp8 is {config.fp8!r}; a rounded loss has no differences, use 'none'")
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(config.vocab_size, size=(2, 2, config.seq_len))
    params, numbers = init_params(config, seed, np.float64), plan(config, tokens.size)
    leaves = {name: Tensor(w, name) for name, w in params.items()}
    backpropagate(loss(leaves, tokens, targets, numbers))
    predicted = gradient_constants(numbers)

    def loss_at(name: str, moved: Array) -> float:
        return float(loss({**params, name: moved}, tokens, targets, numbers).data)

    results = []
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        along = directions(leaf.data.shape, sample)
        true = derivatives(partial(loss_at, name), leaf.data, along)
        found = np.tensordot(along, leaf.grad, 2)
        unit_found, unit_true = (g / (_norm(g) or 1.0) for g in (found, true))
        error = _norm(unit_found - unit_true) ** 2 / 2  # 1 - cosine, without the rounding of 1 - 0.999…
        measured = _norm(found) / (_norm(true) or 1.0)
        passed = error <= COSINE_TOLERANCE and abs(measured / predicted[name] - 1) <= CONSTANT_TOLERANCE
        results.append(Result(3, f"{config.scheme} {name}", error, predicted[name], measured, passed))
    return results


def derivatives(f: Callable[[Array], float], x: Array, along: Array) -> Array:
    """f'(x) along each of the directions u: (8 (f(x+hu) - f(x-hu)) - (f(x+2hu) - f(x-2hu))) / 12h, off by O(h⁴)."""
    h = 2e-4 * (float(np.sqrt(np.mean(x * x))) or 1.0)  # h⁴ and the rounding, 1e-16/h, are then both small
    differences = [8 * (f(x + h * u) - f(x - h * u)) - (f(x + 2 * h * u) - f(x - 2 * h * u)) for u in along]
    return np.array(differences) / (12 * h)


def directions(shape: tuple[int, ...], sample: int) -> Array:
    """(n, *shape): every element on its own, or, when they are more than `sample`, that many random directions.

    A random direction moves all elements at once: unlike a sample of the elements it misses none that is wrong.
    """
    size = int(np.prod(shape))
    along: Array = np.eye(size) if size <= sample else np.random.default_rng(1).standard_normal((sample, size))
    return along.reshape(-1, *shape)


def tiny_config(scheme: str) -> ModelConfig:
    """A model small enough for finite differences: no hyperparameter of the scheme is 1, and RMSNorm's ε is 0."""
    config = ModelConfig(scheme=scheme, width=8, head_dim=4, layers=2, vocab_size=11, seq_len=5, norm_eps=0.0)
    floats = [name for name in SCHEMES[scheme].hyperparameters if isinstance(getattr(config, name), float)]
    values: dict[str, Any] = dict(zip(floats, cycle((0.7, 1.6, 1.3, 0.8)), strict=False))
    return replace(config, **values)


class Case(NamedTuple):
    """A pair, the arrays and settings to check it at, and what `check_factors` needs if it has factors."""

    forward: Forward
    backward: Backward
    arrays: Sequence[Array]
    settings: dict[str, Any]
    scale: Scale | ResidualScale | None = None
    expected: Sequence[float] = ()


def cases(seed: int = 0) -> list[Case]:
    """Every pair of `ops.py`, and every one of `fused.py`, at settings where each of them shows."""
    rng = np.random.default_rng(seed)
    x, gate, q, k, v = (rng.standard_normal((2, T, 8)) for T in (3, 3, 4, 4, 4))
    past_k, past_v = rng.standard_normal((2, 2, 7, 8))
    w, logits = rng.standard_normal((5, 8)), rng.standard_normal((2, 3, 5))
    tokens, targets = rng.integers(5, size=(2, 2, 3))
    heads = {"head_dim": 4, "score_scale": 0.7}
    s, r = Scale(y=1.7, dx=0.6, dw=2.3), ResidualScale(a=1.7, b=0.6, dbranch=2.3, dbase=0.4)
    found: list[tuple[Any, ...]] = [  # an op, and the rest of a Case
        (ops.linear, [x, w], {}, s, [s.y, s.dx, s.dw]),
        (ops.embedding, [tokens, w], {}, s, [s.y, s.dw]),
        (ops.rms_norm, [x], {"eps": 0.0}),
        (ops.rms_norm, [1e-3 * x], {"eps": 1e-6}),  # x so small that ε counts
        (ops.rope, [x], {"head_dim": 4}),
        (ops.rope, [x], {"head_dim": 4, "start": 3}),
        (ops.attention, [q, k, v], heads, s, [s.y, s.dx, s.dx, s.dx]),
        (ops.attention, [x, past_k, past_v], heads, s, [s.y, s.dx, s.dx, s.dx]),
        (ops.gated_silu, [x, gate], {"alpha": 1.6}, s, [s.y, s.dx, s.dx]),
        (ops.residual_split, [x], {}, r, [1.0, r.dbase]),
        # y = 2 a x + b x, and 3 x when plain
        (ops.residual_add, [2 * x, x], {}, r, [(2 * r.a + r.b) / 3, r.dbranch, r.b]),
        (ops.cross_entropy, [logits, targets], {"alpha": 1.6}, s, [s.y, s.dx]),
        # y = 1 of the linear: one of the logits is none of the loss
        (ops.linear_cross_entropy, [x, w, targets], {"alpha": 1.6}, s._replace(y=1.0), [1.0, s.dx, s.dw]),
    ]
    halves = [[getattr(ops, f"{op.__name__}_{half}") for half in ("forward", "backward")] for op, *_ in found]
    plain = [Case(*pair, *rest) for pair, (_, *rest) in zip(halves, found, strict=True)]
    return plain + [Case(*fused.KERNELS[op], *rest) for op, *rest in found if op in fused.KERNELS]


def check_ops(seed: int = 0) -> list[Result]:
    """(1) and (2) of every case."""
    pairs = cases(seed)
    results = [r for c in pairs for r in check_pair(*c[:3], **c.settings)]
    return results + [r for c in pairs if c.scale for r in check_factors(*c[:3], c.scale, c.expected, **c.settings)]


def main(argv: list[str] | None = None) -> int:
    """`python -m microumup gradcheck`: 0 when every check holds, 1 when one does not, 2 on a bad argument."""
    parser = Parser("gradcheck", __doc__ or "", examples=(
        "  microumup gradcheck                            all of it, in seconds\n"
        "  microumup gradcheck --scheme umup --verbose    a line for every check"))  # fmt: skip
    parser.add_argument("--scheme", nargs="+", metavar="NAME", default=list(SCHEMES),
                        help=f"the models of part 3 (default: {' '.join(SCHEMES)})")  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="print a line for every check")
    shared(parser, "quiet", seed="of inputs and weights", json="passed, and all checks")
    args = parser.parse_args(argv)
    with bad_input(parser):
        check_least(args, seed=0)
        configs = [tiny_config(scheme) for scheme in args.scheme]
    results = check_ops(args.seed)
    for config in bar(configs, progress=not args.quiet, desc="models"):
        results += check_model(config, args.seed)

    failed = [r.name for r in results if not r.passed]
    _print_table(results, say(args.quiet), verbose=args.verbose)
    if failed:
        parser.complain(f"{len(failed)} checks failed: {', '.join(failed)}")
    json_line(args, {"passed": not failed, "checks": results})
    return 1 if failed else 0


def _print_table(results: list[Result], echo: Callable[..., None], *, verbose: bool) -> None:
    """Print a line for each op or scheme, with its worst error, and one for every check that fails, or for all."""
    titles = {
        1: f"(1) pairs: every gradient and the finite differences, error at most {PAIR_TOLERANCE:g}",
        2: f"(2) factors: every result with and without them, error at most {FACTOR_TOLERANCE:g}",
        3: f"(3) model: every parameter's gradient and the true one, 1 - cosine at most {COSINE_TOLERANCE:g}, "
           f"measured/predicted within {CONSTANT_TOLERANCE:g} of 1",
    }  # fmt: skip
    for part, title in titles.items():
        heading = f"    {'':54}{'1 - cosine' if part == 3 else 'error':>10}{'predicted':>13}{'measured':>13}"
        echo(title + f"\n{heading}" * verbose)
        for family, group in groupby((r for r in results if r.part == part), key=lambda r: r.name.split()[0]):
            checks = list(group)
            shown = [r for r in checks if verbose or not r.passed]
            if not verbose:
                worst = f"the worst {_largest(r.error for r in checks):.1e}"
                off = _largest(abs(r.measured / r.predicted - 1) for r in checks)
                worst += f", measured/predicted off by {off:.1e}" * (part == 3)
                verdict = f"{len(shown)} wrong:\n{heading}" if shown else "ok"
                echo(f"    {family:28}{len(checks):3} checks, {worst}  {verdict}")
            for r in shown:
                verdict = "ok" if r.passed else "FAIL"
                echo(f"    {r.name:54}{r.error:10.1e}{r.predicted:13.7g}{r.measured:13.7g}  {verdict}")
    echo(f"{sum(r.passed for r in results)} of {len(results)} checks hold")


def _largest(errors: Iterable[float]) -> float:
    return max(error if isfinite(error) else inf for error in errors)


def _run(forward: Forward, backward: Backward, arrays: Sequence[Array], **settings: Any) -> dict[str, Array]:
    """y, and the gradients of the float arrays: dx of forward's argument x, and so on."""
    inputs = [Tensor(a) if a.dtype.kind == "f" else a for a in arrays]
    y = primitive(forward, backward)(*inputs, **settings)
    backpropagate(y, _random_dy(y.data.shape))
    named = zip(signature(forward).parameters, inputs, strict=False)
    return {"y": y.data} | {f"d{name}": x.grad for name, x in named if isinstance(x, Tensor) and x.grad is not None}


def _float64(arrays: Sequence[Array]) -> list[Array]:
    return [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]


def _random_dy(shape: tuple[int, ...]) -> Array:
    # a seed nobody draws x with: if dy were x, rms_norm's gradient would be 0, and a comparison nothing but rounding
    return np.asarray(np.random.default_rng((27, 18, 28)).standard_normal(shape))


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))


def _label(forward: Forward, name: str, result: Array) -> str:
    fast = "fused." if forward.__module__ == fused.__name__ else ""
    return f"{fast}{forward.__name__.removesuffix('_forward')} {name} {result.shape}"


def _compare(part: int, name: str, found: Array, reference: Array, predicted: float, tolerance: float) -> Result:
    size = _norm(reference) or 1.0
    error = _norm(found - predicted * reference) / (predicted * size)
    return Result(part, name, error, predicted, _norm(found) / size, error <= tolerance)
