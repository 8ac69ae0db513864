"""Loss curves of runs, against what counting letters would know: `python -m microumup curve RUN_DIR … --plot FILE`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from microumup import cli
from microumup.backend import Array
from microumup.data import load_corpus
from microumup.lab import pictures as pic


def read_run(run_dir: Path) -> tuple[dict[str, Any], Array]:
    """The config of a run and its losses, a number a step. Raises ValueError when there is none."""
    try:
        config = json.loads((run_dir / "config.json").read_text())
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
    except FileNotFoundError as error:
        raise ValueError(f"{run_dir} holds no run: there is no {Path(error.filename).name}") from None
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{run_dir}: its config or metrics are damaged ({error})") from None
    if not losses:
        raise ValueError(f"{run_dir}: no step is logged yet")
    return config, np.array(losses)


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


def labels(configs: list[dict[str, Any]]) -> list[str]:
    """What tells the runs apart: the options in which they differ, or the scheme and width of a single one."""
    names = [name for name in configs[0] if len({json.dumps(config.get(name)) for config in configs}) > 1]
    return [", ".join(f"{name} {config.get(name)}" for name in names or ("scheme", "width")) for config in configs]


def main(argv: list[str] | None = None) -> int:
    """The command `curve`."""
    parser = cli.Parser(
        "curve", "Loss along training of one run or several, and what counting bytes would know.", operands="RUN_DIR …"
    )
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR", help="runs that train wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw to FILE, a .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON: steps and smoothed losses by run")
    args = parser.parse_args(argv)
    with cli.bad_input(parser):
        pic.check_path(args.plot)
        configs, losses = zip(*map(read_run, args.run_dirs), strict=True)
        entropies = _entropies(configs[0])
        curves = {label: smoothed(loss) for label, loss in zip(labels(list(configs)), losses, strict=True)}
        if args.plot:
            plot(args.plot, curves, [len(loss) for loss in losses], entropies)
    for label, curve in curves.items():
        at = np.linspace(0, len(curve) - 1, min(9, len(curve))).astype(int)
        print(f"{label}: " + " ".join(f"{loss:.3f}" for loss in curve[at]))
    for order, entropy in enumerate(entropies):
        print(f"entropy of a byte given the {order} before it: {entropy:.3f}")
    if args.json:
        points = {label: curve.tolist() for label, curve in curves.items()}
        print(json.dumps({"curves": points, "entropies": entropies}))
    return 0


def _entropies(config: dict[str, Any]) -> list[float]:
    """Of the shipped corpus, up to the three bytes before; of others nothing is known beforehand."""
    if config["corpus"] != "sotu" or config["text"] or config["vocab_size"] != 256:
        return []
    corpus = load_corpus(seq_len=config["seq_len"])
    return conditional_entropies(np.concatenate((corpus.train, corpus.valid)), 4)


def plot(path: Path, curves: dict[str, Array], steps: list[int], entropies: list[float]) -> None:
    """Draw smoothed loss against step. Raises ValueError without matplotlib."""
    figure = pic.new_figure(8, 4.5)
    ax = figure.subplots()
    for (label, curve), count, colour in zip(curves.items(), steps, pic.COLOURS * len(curves), strict=False):
        ax.plot(np.arange(count - len(curve), count) + 1, curve, color=colour, label=label, linewidth=2)
    for order, entropy in enumerate(entropies[1:], start=1):
        ax.axhline(entropy, color="dimgray", linewidth=1, linestyle=(0, (1 + 2 * order, 2)), zorder=0)
        text = f"entropy of a byte given the {order} before it".replace("the 1 before", "the one before")
        place = {"xycoords": ("axes fraction", "data"), "xytext": (0, -3), "textcoords": "offset points"}
        ax.annotate(text, (0.995, entropy), **place, ha="right", va="top", color="dimgray")
    ax.set(xlabel="step", ylabel="training loss (nats per byte)" if entropies else "training loss (nats per token)")
    lowest = min([*entropies, *(float(curve.min()) for curve in curves.values())])
    ax.set_ylim(bottom=lowest - 0.2)  # room for the lowest line's words
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    pic.save(figure, path)


if __name__ == "__main__":
    cli.run(main)
