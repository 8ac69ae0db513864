"""Is an array what it should be? Tolerances and their reasons, the comparison, and the table of what failed.

Both ways to be checked, by files and by callables, end here: `judge` holds what a candidate put out against what is
expected of the case, `explained` finds the likely causes of all that differs, `table` prints it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from microumup.backend import Array
from microumup.interop.cases import Arrays, Case, expected
from microumup.interop.causes import causes


class Tolerance(NamedTuple):
    """Bound on an array's error. `of` says of what: each element, the RMS of the array, or nothing may differ."""

    most: float
    of: str  # "bits", "element", "rms" or "rms of all": the last holds the RMS of the differences, not each of them
    why: str


TOLERANCES = {
    "bits": Tolerance(0.0, "bits", "A value of FP8 is right or wrong. Signs of zeros count; a NaN is a NaN."),
    "numbers": Tolerance(1e-12, "element", "A few powers and logarithms, each good to 1e-16."),
    "float64": Tolerance(
        1e-11, "rms", "Sums of at most some hundred terms: another order moves them by 1e-14 of the terms' size, which "
        "cancellation leaves within 1e-12 of the RMS. Mistakes are of the order of 1."),
    "float32": Tolerance(
        3e-5, "rms", "As float64, at an ε of 1.2e-7 instead of 2.2e-16; expected values are rounded from float64."),
    "trained float64": Tolerance(
        1e-10, "rms", "Twenty updates of Adam: where a gradient is nearly 0, its sign and so its step is rounding's."),
    "trained float32": Tolerance(
        1e-4, "rms of all", "The same in float32: single elements may take another step, all together may not."),
    "fp8": Tolerance(
        1e-2, "rms of all", "float32 sums in another order move single values of FP8 to a neighbour, 1/8 away."),
    "trained fp8": Tolerance(5e-2, "rms of all", "The same over twenty updates, each upon the roundings of the last."),
}  # fmt: skip


MISSING = "missing"  # the problem of an output that nobody wrote


class Finding(NamedTuple):
    """A line of the table: one output of one case."""

    case: Case
    output: str
    error: float  # in units of what is tolerated: more than 1 fails; NaN or infinite where nothing can be compared
    problem: str  # what is wrong in words, where no element can be pointed at; empty otherwise
    where: tuple[int, ...]  # index of the worst element
    expected: float
    received: float
    causes: tuple[str, ...] = ()  # the likely ones, the likeliest first

    @property
    def passed(self) -> bool:
        return self.error <= 1 and not self.problem


def tolerance_of(case: Case, output: str, dtype: str = "") -> str:
    """Name of the tolerance of an output; `dtype` is that of what was received, if it may be coarser than the case."""
    if case.op in ("fp8_decode", "fp8_round"):
        return "bits"
    if case.op == "plan":
        return "numbers"
    trained = "trained " if output.startswith(("trained.", "after1.", "losses")) else ""
    return trained + ("fp8" if case.op == "model_fp8" else "float32" if "float32" in (case.dtype, dtype) else "float64")


def differences(found: Array, true: Array, tolerance: Tolerance) -> Array:
    """Error of each element, over what is tolerated; at least NaN where only one of them is NaN."""
    found, true = (np.asarray(a, np.float64) for a in (found, true))
    if tolerance.of == "bits":
        same = (found == true) & (np.signbit(found) == np.signbit(true)) | np.isnan(found) & np.isnan(true)
        return np.where(same, 0.0, 2.0)
    with np.errstate(all="ignore"):
        rms = float(np.sqrt(np.mean(true * true))) if true.size else 0.0
        unit = np.abs(true) if tolerance.of == "element" else rms
        off = np.abs(found - true) / (tolerance.most * np.maximum(unit, 1e-300))
        if tolerance.of == "rms of all" and np.isfinite(off).all():  # the worst element stands for all
            off *= float(np.sqrt(np.mean(off * off))) / max(float(off.max(initial=0.0)), 1e-300)
    return np.asarray(off)


def judge(case: Case, received: Arrays, outputs: Sequence[str] = (), *, any_float: bool = False) -> list[Finding]:
    """A Finding for every output of the case, or for those of the names `outputs`.

    With `any_float` an output may be float32 where float64 was asked for, and is then judged as such.
    """
    true = expected(case)
    found = []
    for name in outputs or true:
        e, problem = true[name], ""
        r = received.get(name)
        if r is None:
            problem = f"{MISSING}; expected {e.dtype} {e.shape}"
        elif r.shape != e.shape:
            problem = f"shape {r.shape}, expected {e.shape}"
        elif r.dtype != e.dtype and not (any_float and r.dtype in (np.float32, np.float64)):
            problem = f"dtype {r.dtype}, expected {e.dtype}"
        if problem or r is None:
            found.append(Finding(case, name, np.inf, problem, (), np.nan, np.nan))
            continue
        tolerance = TOLERANCES[tolerance_of(case, name, str(r.dtype))]
        off = differences(r, e, tolerance)
        bad = ~np.isfinite(off)
        worst = int(np.argmax(np.where(bad, np.inf, off))) if off.size else 0
        index = tuple(int(i) for i in np.unravel_index(worst, off.shape)) if off.size else ()
        if tolerance.of != "bits" and not np.isfinite(r).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(r))[0])
            kinds = "NaN" if np.isnan(r).any() else "infinite"
            problem = f"{kinds} at {list(index)}; {int((~np.isfinite(r)).sum())} of {r.size} elements are no numbers"
        error = float(off.max(initial=0.0)) if not bad.any() else np.inf
        found.append(Finding(case, name, error, problem, index, float(e[index]), float(r[index])))
    return found


def explained(findings: Iterable[Finding], received: dict[str, Arrays]) -> list[Finding]:
    """The findings, each failure with its causes: of those that explain it, first what explains most of its op's.

    `received` are the outputs by name of the case.
    """
    findings = list(findings)
    names: dict[int, list[str]] = {}
    votes: Counter[tuple[str, str]] = Counter()
    cases = {f.case.name: f.case for f in findings if not f.passed}
    for case in cases.values():
        of_case = [i for i, f in enumerate(findings) if f.case.name == case.name]
        failed = [findings[i].output for i in of_case if not findings[i].passed]
        of_output = causes(case, expected(case), received.get(case.name, {}), failed, same)
        for i in of_case:
            names[i] = of_output.get(findings[i].output, [])
            votes.update((case.op, words) for words in dict.fromkeys(names[i]))
    return [
        f._replace(causes=tuple(sorted(dict.fromkeys(names.get(i, ())), key=lambda words: -votes[f.case.op, words])))
        for i, f in enumerate(findings)
    ]


def same(case: Case, output: str, found: Array, other: Array, times: float = 1.0) -> bool:
    """True where two arrays are equal within the tolerance of the output, or so many times that of a float64."""
    if found.shape != other.shape:
        return False
    name = tolerance_of(case, output, str(found.dtype))
    most = times if name == "float64" else 1.0
    return bool((differences(found, other, TOLERANCES[name]) <= most).all())


def table(findings: Sequence[Finding]) -> str:
    """A line for every op with what passed, under it one for each output that failed; then the likely causes."""
    ops: dict[str, list[Finding]] = {}
    for f in findings:
        ops.setdefault(f.case.op, []).append(f)
    lines = []
    for op, of_op in ops.items():
        bad = [f for f in of_op if not f.passed]
        cases = len({f.case.name for f in of_op})
        worst = max((f.error for f in of_op if np.isfinite(f.error)), default=0.0)
        right = f"{len(of_op)} right, the worst at {worst:.2g} of its tolerance"
        lines.append(f"{op:22}{cases:3} cases  {f'{len(bad)} of {len(of_op)} WRONG' if bad else right}")
        missing = [f for f in bad if f.problem.startswith(MISSING)]
        there = [f for f in bad if not f.problem.startswith(MISSING)]
        lines += [f"    {line(f)}" for f in there[:12]]
        if len(there) > 12:
            lines.append(f"    and {len(there) - 12} more")
        lines += [f"    {line(f)}" for f in missing[:3]]
        if len(missing) > 3:
            lines.append(f"    and {len(missing) - 3} more are missing")
        likely = verdicts(bad)
        lines += [f"    likely cause: {words} ({count} of {len(bad)} failures)" for words, count in likely[:3]]
        if there and not likely:
            lines.append("    likely cause: none of those known; compare with the pair in ops.py, line by line")
    passed = sum(f.passed for f in findings)
    return "\n".join([*lines, f"{passed} of {len(findings)} outputs are right"])


def line(f: Finding) -> str:
    """An output that failed: which, where, what was expected and what received."""
    name = f"{f.case.name} {f.output}"
    if f.problem:
        return f"{name}: {f.problem}"
    where = f"[{', '.join(map(str, f.where))}]" if f.where else ""
    exact = tolerance_of(f.case, f.output) == "bits"
    off = "" if exact else f", {f.error:.3g} times what is tolerated"
    return f"{name}{where}: expected {f.expected:.10g}, received {f.received:.10g}{off}"


def verdicts(failures: Sequence[Finding]) -> list[tuple[str, int]]:
    """First causes with the number of failures that each explains first, the most frequent first."""
    return Counter(f.causes[0] for f in failures if f.causes).most_common()
