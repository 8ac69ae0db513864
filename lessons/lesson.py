"""Parts that all lessons share: a prediction, claims that are checked, a look at the source, a figure.

A lesson runs as a script (`python lessons/05_residual.py --guess 3.2`), as a notebook, and as a page of the book.
"""

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before numpy: two BLAS threads on a busy machine wait for each other

import ast
import inspect
import sys
from importlib.util import find_spec
from math import inf, isfinite, log2
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(sys.argv[0]) if Path(sys.argv[0]).stem[:2].isdigit() else None  # None in a notebook, a test, the book


def ready() -> None:
    """End a lesson before it begins, with a line, where it lacks a package or was given what is no option."""
    for needed in ("microumup", "matplotlib"):
        if find_spec(needed) is None:
            mend = f"run .venv/bin/pip install -e '.[lessons]' in {ROOT}, and the lesson with .venv/bin/python"
            _end(f"the lessons need {needed}, which {sys.executable} does not have; {mend}", 2)
    words, usage = sys.argv[1:], f"usage: python lessons/{name()}.py [--guess NUMBER]"
    if words and SCRIPT:
        if words[0] in ("-h", "--help"):
            _end(f"{usage}\n\nRuns the lesson, whose text is in the script, to be read along.", 0)
        if words[0] != "--guess":
            _end(f"{words[0]} is no option; {usage}", 2)
    if SCRIPT:
        print(f"Read lessons/{SCRIPT.name} along: the text is there, and this is what its code prints.")


def _end(text: str, status: int) -> NoReturn:
    print(text, file=sys.stderr if status else sys.stdout)
    raise SystemExit(status)


def name() -> str:
    """Name of the lesson that runs, `05_residual`: as book.py says, or the script's name, or Jupyter."""
    paths = os.environ.get("LESSON_NAME", ""), sys.argv[0], os.environ.get("JPY_SESSION_NAME", "")
    return next((stem for stem in (Path(path).stem for path in paths) if stem[:2].isdigit()), "lesson")


ready()

from microumup.lab import pictures

# ---- A prediction ----


def guess(question: str, unit: str = "") -> float | None:
    """The reader's prediction: `--guess X`, or asked for at a terminal; None where nobody is there to ask."""
    print(f"Predict: {question}" + (f" [{unit}]" if unit else ""))
    words = sys.argv[1:]
    if "--guess" in words:
        given = words[words.index("--guess") + 1 : words.index("--guess") + 2]
        try:
            value = float(given[0])
        except (IndexError, ValueError):
            raise SystemExit(
                f"--guess: {' '.join(given) or 'nothing'} is no number; write it like --guess 3.2"
            ) from None
        print(f"Your prediction: {value:g}")
        return value
    while in_notebook() or (sys.stdin is not None and sys.stdin.isatty()):
        try:
            text = input("Your prediction, a number (or Enter to go on without): ").strip()
        except NotImplementedError:  # a notebook that nobody sits at
            break
        try:
            return float(text) if text else None
        except ValueError:
            print(f"{text!r} is no number")
    print(f"No prediction; make one with: python lessons/{name()}.py --guess NUMBER")
    return None


def answer(guess: float | None, measured: float, why: str) -> None:
    """Print what was measured beside what was predicted, by what factor that was off, and why it is as it is."""
    print(f"Measured: {measured:,.0f}, {why}" if 1e4 <= abs(measured) < inf else f"Measured: {measured:.4g}, {why}")
    if guess is None:
        return
    if guess * measured > 0 and isfinite(guess) and isfinite(measured):
        octaves = log2(guess / measured)
        factor = 2 ** abs(octaves)
        verdict = "right" if factor < 1.05 else f"{factor:.3g} times too {'large' if octaves > 0 else 'small'}"
    else:  # a factor says nothing about signs and zeros
        verdict = f"off by {abs(guess - measured):.3g}"
    print(f"Your prediction of {guess:g} is {verdict}.")


# ---- Claims ----


def claim(what: str, measured: float, expected: float, *, within: float, relative: bool = True) -> None:
    """Print a number that the prose claims, and raise AssertionError unless it is as expected.

    `within` is a share of `expected`, or, with relative=False, a distance.
    """
    allowed = within * abs(expected) if relative else within
    margin = "exactly" if within == 0 else f"within {100 * within:g} %" if relative else f"within {within:g}"
    _judge(what, measured, f"expected {expected:.6g} {margin}", abs(measured - expected) <= allowed)


def claim_least(what: str, measured: float, least: float) -> None:
    """Print a number of which the prose claims that it is at least so large; raise AssertionError unless it is."""
    _judge(what, measured, f"expected at least {least:.6g}", measured >= least)


def claim_most(what: str, measured: float, most: float) -> None:
    """Print a number of which the prose claims that it is at most so large; raise AssertionError unless it is."""
    _judge(what, measured, f"expected at most {most:.6g}", measured <= most)


def _judge(what: str, measured: float, expected: str, holds: Any) -> None:
    line = f"{what}: measured {float(measured):.6g}, {expected}"
    print(f"  {'ok  ' if holds else 'FAIL'}  {line}")
    if not holds:  # no assert: a claim is checked under python -O too
        raise AssertionError(line)


# ---- Source ----


def show(*objects: Any) -> None:
    """Print the source of functions and classes; of a constant as (module, "NAME"); with file and line number."""
    for found in objects:
        if isinstance(found, tuple):
            path, line, source = _constant(*found)
        else:
            path = inspect.getsourcefile(found) or ""
            lines, line = inspect.getsourcelines(found)
            source = "".join(lines)
        place = Path(path).resolve()
        place = place.relative_to(ROOT) if place.is_relative_to(ROOT) else place
        if in_notebook():
            from IPython.display import Markdown, display

            display(Markdown(f"```python\n# {place}:{line}\n{source.rstrip()}\n```"))
        else:
            print(f"# {place}:{line}\n{source.rstrip()}\n")


def _constant(module: ModuleType, name: str) -> tuple[str, int, str]:
    path = Path(inspect.getsourcefile(module) or "")
    text = path.read_text("utf-8")
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return str(path), node.lineno, "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
    raise ValueError(f"show: {module.__name__} assigns no {name}")


# ---- A figure ----


def figure(width: float = 7, height: float = 4, **subplots: Any) -> tuple[Any, Any]:
    """A new figure of that many inches and its axes, with a grid; `subplots` are those of Figure.subplots."""
    figure = pictures.new_figure(width, height)
    axes = figure.subplots(**subplots)
    for axis in getattr(axes, "flat", [axes]):
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, caption: str) -> None:
    """Write the figure to runs/lessons/NN_name.png and say where; a notebook shows it, with its caption."""
    folder = Path(os.environ.get("LESSON_RUNS", ROOT / "runs" / "lessons"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name()}.png"
    pictures.save(figure, path)
    if in_notebook():
        from IPython.display import Image, Markdown, display

        display(Image(filename=str(path), alt=caption, metadata={"alt": caption}), Markdown(f"*{caption}*"))
    else:
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        print(f"Figure: {shown}\n  {caption}")


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    return "ipykernel" in sys.modules and "IPython" in sys.modules and _shell() is not None


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython()


def rms(x: Any) -> float:
    """Root mean square of an array, in float64; infinite where an element is."""
    size = float((x.astype("float64") ** 2).mean()) if x.size else 0.0
    return size**0.5 if isfinite(size) else inf
