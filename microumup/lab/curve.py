"""Loss curves of runs, against what counting letters would know: `python -m microumup curve RUN_DIR … --plot FILE`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from microumup import cli
from microumup.backend import Array
from microumup.corpora import BYTES
from microumup.data import load_corpus
from microumup.lab import pictures as pic
from microumup.lab.tables import text_table
from microumup.run_dir import load_config, read_metrics

Config = dict[str, Any]


class Curve(NamedTuple):
    """A run as it is shown. `losses` are smoothed; the last is of step `steps`, counted from 1. `held_out` has the
    validations along the run, each with the steps behind it."""

    label: str
    losses: Array
    steps: int
    held_out: Sequence[tuple[int, float]] = ()

    def at(self, step: int) -> float | None:
        """The loss of a step, if there is one."""
        first = self.steps - len(self.losses) + 1
        return float(self.losses[step - first]) if first <= step <= self.steps else None


def read_run(run_dir: Path) -> tuple[Config, Array, list[tuple[int, float]]]:
    """The config of a run, its losses, a number a step, and its validations. Raises ValueError when there is no run."""
    config, records = load_config(run_dir), read_metrics(run_dir)
    if not (run_dir / "metrics.jsonl").exists():
        raise ValueError(f"{run_dir} holds no run: there is no metrics.jsonl")
    if not records:
        raise ValueError(f"{run_dir}: no step is logged yet")
    held_out = [(record["step"] + 1, record["loss_valid"]) for record in records if "loss_valid" in record]
    return asdict(config), np.array([record["loss"] for record in records]), held_out


def smoothed(losses: Array) -> Array:
    """Means over windows of 2 % of the run, one for every step at which such a window ends."""
    window = max(1, len(losses) // 50)
    return np.convolve(losses, np.full(window, 1 / window), mode="valid")


def conditional_entropies(tokens: Array, orders: int) -> list[float]:
    """Empirical entropy of a byte given the 0, 1, … `orders` - 1 bytes before it, in nats. tokens: uint8, (N,)."""
    joint = [0.0]
    code = np.zeros(len(tokens), np.uint64)
    for order in range(orders):
        code = code[:-1] * 256 + tokens[order:] if order else tokens.astype(np.uint64)
        counts = np.unique(code, return_counts=True)[1]
        p = counts / counts.sum()
        joint.append(float(-(p * np.log(p)).sum()))
    return np.diff(joint).tolist()


def labels(configs: list[Config], run_dirs: list[Path]) -> list[str]:
    """A name for each run: the options in which they differ, or the scheme and width where there are none.

    `threads` are left out, they change no more than roundings. What tells none apart is followed by its directory.
    """
    shown = [{name: _show(name, value) for name, value in config.items() if name != "threads"} for config in configs]
    names = [name for name in shown[0] if len({options[name] for options in shown}) > 1] or ["scheme", "width"]
    texts = [", ".join(options[name] for name in names) for options in shown]
    dirs = [path.name for path in run_dirs]
    if len(set(zip(texts, dirs, strict=True))) < len(texts):
        dirs = list(map(str, run_dirs))
    return [f"{text} ({dir})" if texts.count(text) > 1 else text for text, dir in zip(texts, dirs, strict=True)]


def _show(name: str, value: Any) -> str:
    if isinstance(value, tuple):  # of files, whose directories say little
        value = "+".join(Path(path).name for path in value) or "none"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def columns(curves: list[Curve]) -> list[int]:
    """The steps to show: nine spread over the longest curve, and the last of every other."""
    longest = max(curves, key=lambda curve: curve.steps)
    spread = np.linspace(longest.steps - len(longest.losses) + 1, longest.steps, 9)
    return sorted({*spread.astype(int).tolist(), *(curve.steps for curve in curves)})


def table(curves: list[Curve]) -> str:
    """A line per curve, under the steps of its columns."""
    steps = columns(curves)
    rows = [["loss, mean over 2 % of a run;  step", *map(str, steps)]]
    for curve in curves:
        losses = map(curve.at, steps)
        rows.append([curve.label, *("-" if loss is None else f"{loss:.3f}" for loss in losses)])
    return text_table(rows, "<" + ">" * len(steps))


def main(argv: list[str] | None = None) -> int:
    """The command `curve`."""
    description = "Loss along training of one run or several, and what counting bytes would know."
    parser = cli.Parser("curve", description, operands="RUN_DIR …", examples=(
        "  microumup curve runs/mine                            a table\n"
        "  microumup curve runs/mine runs/other --plot two.png  both in one picture"))  # fmt: skip
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="runs that train wrote")
    cli.shared(
        parser,
        "plot",
        "quiet",
        json="by run its smoothed losses, the step of the first from 1, and validations; entropies",
    )
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        run_dirs = list({path.resolve(): path for path in args.run_dirs}.values())
        configs, losses, held_out = map(list, zip(*map(read_run, run_dirs), strict=True))
        entropies = _entropies(configs)
        named = zip(labels(configs, run_dirs), losses, held_out, strict=True)
        curves = [Curve(label, smoothed(loss), len(loss), valid) for label, loss, valid in named]
        if args.plot:
            per_byte = all(config["vocab_size"] == BYTES for config in configs)
            plot(args.plot, curves, entropies, unit="byte" if per_byte else "token")
    say = cli.say(args.quiet)
    say(table(curves))
    for curve in curves:
        if curve.held_out:
            say(f"{curve.label}, held out: " + ", ".join(f"{loss:.3f} at {step}" for step, loss in curve.held_out))
    for order, entropy in enumerate(entropies):
        say(f"{_given(order)}: {entropy:.3f}")
    if not entropies:
        say("no entropies beside them: they are known where all runs are on the corpus sotu, in bytes")
    points = {curve.label: curve.losses.tolist() for curve in curves}
    first = {curve.label: curve.steps - len(curve.losses) + 1 for curve in curves}
    valid = {curve.label: curve.held_out for curve in curves if curve.held_out}
    cli.json_line(args, {"curves": points, "first_step": first, "held_out": valid, "entropies": entropies})
    return 0


def _entropies(configs: list[Config]) -> list[float]:
    """Entropies of the shipped corpus, up to the three bytes before; none unless all runs are on it, in bytes."""
    if any(c["corpus"] != "sotu" or c["text"] or c["vocab_size"] != BYTES for c in configs):
        return []
    corpus = load_corpus(seq_len=configs[0]["seq_len"])
    return conditional_entropies(np.concatenate((corpus.train, corpus.valid)), 4)


def _given(order: int) -> str:
    """What `order` bytes of context are worth, in words."""
    words = {0: "by itself", 1: "given the one before it"}
    return f"entropy of a byte {words.get(order, f'given the {order} before it')}"


def plot(path: Path, curves: list[Curve], entropies: list[float], *, unit: str) -> None:
    """Draw smoothed loss, in nats per `unit`, against step. Raises ValueError without matplotlib."""
    figure = pic.new_figure(8, 4.5)
    ax = figure.subplots()
    for (label, losses, steps, held_out), colour in zip(curves, pic.COLOURS * len(curves), strict=False):
        x = np.arange(steps - len(losses), steps) + 1
        ax.plot(x, losses, color=colour, label=label, linewidth=2, zorder=2 + 1 / steps)  # a shorter one is in front
        if held_out:
            ax.plot(*zip(*held_out, strict=True), "o", color=colour, markersize=4, label=f"{label}, held out")
    for order, entropy in enumerate(entropies[1:], start=1):
        ax.axhline(entropy, color="dimgray", linewidth=1, linestyle=(0, (1 + 2 * order, 2)), zorder=0)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, -3), "textcoords": "offset points"}
        ax.annotate(_given(order), (0.995, entropy), **place, ha="right", va="top", color="dimgray")
    bottom = min([*entropies, *(float(curve.losses.min()) for curve in curves)]) - 0.2  # room for the lowest's words
    ax.set(xlabel="step", ylabel=f"training loss (nats per {unit})", ylim=(bottom, None))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    pic.save(figure, path)
