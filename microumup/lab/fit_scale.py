"""A multiplier rule for an op that the paper lacks: measure its scale, fit it, and print the function and its test.

App. B models the scale of an op's output over the multiplier α before it as

    σ(α) = log_interpolate(1/(1 + c/α²), upper, lower)         log_interpolate(w, u, l) = exp(w log u + (1 - w) log l)

gated_silu has c = 1, causal attention c = 4K and √(log s/s) as lower. Here c, upper and lower are fitted to what an op
measures on unit-scale inputs, in the form that fits best. Scale is the root mean square, which a matmul feels.
A branch needs one factor forward and backward (the cut-edge rule): the rule is the output's, and what it leaves of the
gradients is said. Name a function of arrays that goes element by element, f(x, …, alpha=1.0) or f(x), or a Subject.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import signature
from itertools import product
from math import log, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup import cli
from microumup.backend import Array
from microumup.engine import Op, Tensor, backpropagate
from microumup.lab.tables import text_table
from microumup.multipliers import log_interpolate
from microumup.ranges import rms_of

ELEMENTS = 1 << 16  # of an array of a function that goes element by element: scales are then good to 0.5 %
WIDE = 0.10  # error from which on the rule is said not to hold
Sizes = dict[str, int]


class Subject(NamedTuple):
    """An op that is no function of single elements, and what to run it on."""

    op: Op  # op(*Tensors, alpha=…, **sizes)
    inputs: Callable[..., list[Array]]  # inputs(rng, **sizes), all unit-scale, (B, T, …)
    sizes: Mapping[str, tuple[int, ...]]  # values to go over; seq_len and head_dim may be part of a rule


class Form(NamedTuple):
    """A member of the family: what c and lower are multiplied by."""

    words: str
    c_by: Callable[[Sizes], float]
    lower_by: Callable[[Sizes], float]


class Measured(NamedTuple):
    """Scales of an op at one α and size: of y, and of each gradient for a unit-scale dy."""

    alpha: float
    sizes: Sizes
    rms: dict[str, float]


class Rule(NamedTuple):
    """A fitted rule; `error` is the largest relative one, over everything measured."""

    form: Form
    c: float
    upper: float
    lower: float
    error: float

    def __call__(self, alpha: float, sizes: Sizes) -> float:
        weight = 1 / (1 + self.c * self.form.c_by(sizes) / alpha**2)
        return log_interpolate(weight, self.upper, self.lower * self.form.lower_by(sizes))


def one(_: Sizes) -> float:
    """1, whatever the sizes."""
    return 1.0


def log_s_over_s(sizes: Sizes) -> float:
    """√(log s/s), causal attention's at α = 0."""
    return sqrt(log(sizes["seq_len"]) / sizes["seq_len"])


FORMS = (
    Form("{c} / alpha**2|{lower}", one, one),
    Form("{c} * head_dim / alpha**2|{lower}", lambda n: n["head_dim"], one),
    Form("{c} / alpha**2|{lower} * sqrt(log(seq_len) / seq_len)", one, log_s_over_s),
    Form("{c} * head_dim / alpha**2|{lower} * sqrt(log(seq_len) / seq_len)", lambda n: n["head_dim"], log_s_over_s),
)


def load(target: str) -> tuple[str, Subject | Callable[..., Array]]:
    """Name, and the function or Subject that MODULE:NAME is. Raises ValueError where there is none."""
    module, _, name = target.partition(":")
    if not re.fullmatch(r"[\w.]+:\w+", target):
        raise ValueError(f"{target!r} is no module:function, as microumup.lab.fit_cases:gelu")
    if "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look there
    try:
        found = getattr(import_module(module), name)
    except ImportError as error:
        raise ValueError(f"{target}: {error}") from None
    except AttributeError:
        raise ValueError(f"{target}: {module} has no {name}") from None
    if not isinstance(found, Subject) and not callable(found):
        raise ValueError(f"{target} is neither a function nor a Subject")
    return name, found


def measure(subject: Any, alphas: list[float], change: Callable[[Array, Any], Array] | None = None,
            sizes: list[Sizes] | None = None) -> list[Measured]:  # fmt: skip
    """Scales at every α and size. `change(x, rng)` alters the inputs first. Raises ValueError for a function that is no
    function of single elements, or that takes no array."""
    found = []
    for size, alpha in product(sizes or list(_sizes(subject)), alphas):
        rng = np.random.default_rng(0)
        arrays = subject.inputs(rng, **size) if isinstance(subject, Subject) else _elements(subject, rng)
        arrays = [change(a, rng) if change else a for a in arrays]
        run = _run_op if isinstance(subject, Subject) else _run_elementwise
        found.append(Measured(alpha, size, {k: rms_of(a) for k, a in run(subject, arrays, alpha, size, rng).items()}))
    return found


def _sizes(subject: Any) -> Iterator[Sizes]:
    of = subject.sizes if isinstance(subject, Subject) else {}
    for values in product(*of.values()):
        yield dict(zip(of, values, strict=True))


def _elements(f: Callable[..., Array], rng: Any) -> list[Array]:
    names = [p.name for p in signature(f).parameters.values() if p.default is p.empty and p.name != "alpha"]
    if not names:
        raise ValueError(f"{f.__name__} takes no array by position")
    return [rng.standard_normal((64, ELEMENTS // 64)) for _ in names]


def _run_elementwise(
    f: Callable[..., Array], arrays: list[Array], alpha: float, _: Sizes, rng: Any
) -> dict[str, Array]:
    settings = {"alpha": alpha} if "alpha" in signature(f).parameters else {}
    y, h = np.asarray(f(*arrays, **settings)), 1e-5
    if y.shape != arrays[0].shape:
        raise ValueError(f"{f.__name__} makes {y.shape} of {arrays[0].shape}; what is not elementwise needs a Subject")
    dy, found = rng.standard_normal(y.shape), {"y": y}
    for i, name in zip(range(len(arrays)), signature(f).parameters, strict=False):
        up, down = ([*arrays[:i], arrays[i] + sign * h, *arrays[i + 1 :]] for sign in (1, -1))
        found[f"d{name}"] = dy * (f(*up, **settings) - f(*down, **settings)) / (2 * h)
    return found


def _run_op(subject: Subject, arrays: list[Array], alpha: float, sizes: Sizes, rng: Any) -> dict[str, Array]:
    leaves = [Tensor(a) for a in arrays]
    y = subject.op(*leaves, alpha=alpha, **sizes)
    backpropagate(y, rng.standard_normal(y.data.shape))
    return {"y": y.data} | {f"dx{i}": t.grad for i, t in enumerate(leaves) if t.grad is not None}


def fit(measured: list[Measured], output: str = "y") -> Rule:
    """The rule that fits best: for every form, and every c of a fine grid, log σ is linear in log upper and log lower.
    Its three numbers have three digits; the error is that of the rule with those."""
    target = np.log([m.rms[output] for m in measured])
    best: tuple[float, Rule] | None = None
    for form in FORMS:
        try:
            c_by, lower_by = (np.array([rule(m.sizes) for m in measured]) for rule in (form.c_by, form.lower_by))
        except (KeyError, ZeroDivisionError):
            continue  # the op has no such size
        alphas = np.array([m.alpha for m in measured])
        for c in 2.0 ** np.arange(-8, 8.01, 1 / 16):
            w = 1 / (1 + c * c_by / alphas**2)
            solution, *_ = np.linalg.lstsq(np.stack([w, 1 - w], 1), target - (1 - w) * np.log(lower_by), rcond=None)
            c_, upper, lower = (float(f"{x:.3g}") for x in (c, *np.exp(solution)))
            rule = Rule(form, c_, upper, lower, 0.0)
            errors = [abs(rule(m.alpha, m.sizes) / m.rms[output] - 1) for m in measured]
            if best is None or max(errors) < 0.98 * best[0]:  # a form with more in it has to pay
                best = max(errors), rule._replace(error=max(errors))
    assert best
    return best[1]


def correlated(x: Array, rng: Any) -> Array:
    """x with half of its variance shared by all tokens: unit-scale still."""
    return (x + rng.standard_normal(x.shape)[:, :1]) / sqrt(2)


def limits(subject: Any, rule: Rule, alphas: list[float]) -> list[tuple[str, float]]:
    """Measured over predicted, where it is furthest from 1, in conditions that the rule was not fitted to."""
    conditions: list[tuple[str, Any, list[Sizes] | None]] = [
        ("tokens that share half of their variance", correlated, None)
    ]
    if isinstance(subject, Subject) and "seq_len" in subject.sizes:
        short = [size | {"seq_len": 4} for size in _sizes(subject)]
        conditions.append(("sequences of 4 tokens", None, short))
    found = []
    for words, change, sizes in conditions:
        ratios = [m.rms["y"] / rule(m.alpha, m.sizes) for m in measure(subject, alphas, change, sizes)]
        found.append((words, max(ratios, key=lambda r: abs(log(r)))))
    return found


def code(name: str, rule: Rule, measured: list[Measured]) -> str:
    """The multiplier function and its test, as Python."""
    c, lower = (part.format(c=f"{rule.c:g}", lower=f"{rule.lower:g}") for part in rule.form.words.split("|"))
    sizes = [size for size in ("head_dim", "seq_len") if size in c + lower]
    has_alpha = abs(log(rule.upper / rule.lower)) > 1e-3 or bool(sizes)
    alphas = sorted({m.alpha for m in measured})
    arguments = ["alpha"] * has_alpha + sizes
    value = f"log_interpolate(1 / (1 + {c}), {rule.upper:g}, {lower})" if has_alpha else f"{rule.upper:g}"
    points = [m for m in measured if m.alpha in (alphas[0], 1.0, alphas[-1])]
    by_arguments = {tuple([m.alpha] * has_alpha + [m.sizes[n] for n in sizes]): m.rms["y"] for m in points}
    rows = "\n".join(f"        ({''.join(f'{x}, ' for x in key)}{rms:.4g})," for key, rms in by_arguments.items())
    typed = ", ".join(f"{a}: {'float' if a == 'alpha' else 'int'}" for a in arguments)
    loop = ", ".join([*arguments, "measured"])
    imports = ["log", "sqrt"] if sizes and "sqrt" in lower else []
    return "\n".join([
        *(["from math import log, sqrt\n"] if imports else []),
        *(["from microumup.multipliers import log_interpolate\n\n"] if has_alpha else []),
        f"def {name}_sigma({typed}) -> float:",
        f'    """Scale of {name}\'s output for unit-scale inputs; within {100 * rule.error:.1f} %'
        + f", measured at α in [{alphas[0]:g}, {alphas[-1]:g}]" * has_alpha + '."""',
        f"    return {value}\n\n",
        f"def test_{name}_sigma() -> None:",
        f"    for {loop} in (\n{rows}\n    ):",
        f"        assert abs({name}_sigma({', '.join(arguments)}) / measured - 1) < {1.1 * rule.error + 0.001:.3f}",
    ])  # fmt: skip


def report(name: str, subject: Any, alphas: list[float]) -> tuple[str, Rule, list[Measured]]:
    """Everything that is found out, as text; the rule, and what was measured."""
    measured = measure(subject, alphas)
    rule = fit(measured)
    outputs = list(measured[0].rms)
    sizes = list(measured[0].sizes)
    lines = [
        f"{name}: scales for unit-scale inputs and dy; under σ the rule, off by at most {100 * rule.error:.1f} %",
        "",
    ]
    rows = []
    for m in measured:
        sigma = rule(m.alpha, m.sizes)
        numbers = [m.alpha, *(m.sizes[n] for n in sizes), *m.rms.values(), sigma, m.rms["y"] / sigma]
        rows.append([f"{x:.4g}" for x in numbers])
    titles = ["α", *sizes, *outputs, "σ", "y/σ"]
    lines += [text_table([titles, *rows], ">" * len(titles)), ""]
    for output in outputs[1:]:
        left = [m.rms[output] / rule(m.alpha, m.sizes) for m in measured]
        lines.append(f"{output} times the same 1/σ: {min(left):.3g} to {max(left):.3g}")
    lines += ["", "where it stops holding (measured over rule, at the worst α and size):"]
    for words, ratio in limits(subject, rule, alphas):
        lines.append(f"  {words:42}{ratio:7.3g}  {'holds' if abs(ratio - 1) <= WIDE else 'does not hold'}")
    return "\n".join([*lines, "", code(name, rule, measured)]), rule, measured


def main(argv: list[str] | None = None) -> int:
    """The command `fit_scale`."""
    parser = cli.Parser("fit_scale", __doc__ or "", operands="MODULE:NAME", examples=(
        "  microumup fit_scale microumup.lab.fit_cases:gelu\n"
        "  worked cases: gelu, relu_squared, gated_silu, softcapped_attention, grouped_query_attention"))  # fmt: skip
    parser.add_argument("target", metavar="MODULE:NAME", help="a function of arrays, or a Subject")
    parser.add_argument("--octaves", type=cli.whole, default=3, metavar="N", help="α from 2^-N to 2^N (default: 3)")
    cli.shared(parser, "quiet", json="the rule and all scales")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        if not 1 <= args.octaves <= 10:
            raise ValueError(f"--octaves: {args.octaves} is not between 1 and 10")
        name, subject = load(args.target)
        alphas = [2.0**octave for octave in range(-args.octaves, args.octaves + 1)]
        text, rule, measured = report(name, subject, alphas)
    cli.say(args.quiet)(text)
    numbers = {"c": rule.c, "upper": rule.upper, "lower": rule.lower, "error": rule.error, "form": rule.form.words}
    cli.json_line(args, numbers | {"measured": measured})
    return 0


if __name__ == "__main__":
    cli.run(main)
