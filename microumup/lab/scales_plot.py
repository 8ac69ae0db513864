"""RMS of x, w and dy of every linear against FP8's limits: for `scales --plot`, and in panels for Figs. 3 and 8."""

from math import nan
from pathlib import Path
from typing import Any

from microumup.fp8 import FORMATS, LINEARS, TENSORS, Format
from microumup.lab import pictures as pic

# a linear's marker and colour
COLOURS = (pic.BLACK, pic.ORANGE, pic.SKY, pic.GREEN, pic.YELLOW, pic.BLUE, pic.VERMILION, pic.PURPLE)
STYLES = {
    kind: {"marker": marker, "color": colour, "markeredgecolor": "black", "markeredgewidth": 0.3}
    for kind, marker, colour in zip(LINEARS, "o^vDs<>P", COLOURS, strict=True)
}


def limits(fmt: Format) -> dict[str, float]:
    """Numbers where a format's range begins and ends, by name."""
    return {"min subnormal": fmt.min_subnormal, "min normal": fmt.min_normal, "max": fmt.max}


def draw_limits(ax: Any, *, words: bool) -> None:
    """Draw the limits of FP8's formats into `ax`, whose y is an RMS; `words` names them to the right of it."""
    ax.set_yscale("log", base=2)
    for fmt, colour in zip(FORMATS.values(), ("black", "dimgray"), strict=True):
        for (name, limit), line in zip(limits(fmt).items(), (":", "--", "-"), strict=True):
            ax.axhline(limit, color=colour, linestyle=line, linewidth=1, zorder=0.9)
            if words:
                ax.text(1.01, limit, f"{fmt.name} {name}", transform=ax.get_yaxis_transform(), color=colour,
                        fontsize=7, va="center")  # fmt: skip


def draw_along(ax: Any, rms: dict[int, dict[str, float | None]], tensor: str, *, words: bool) -> None:
    """Draw the RMS of one tensor, x, w or dy, of every linear against the step; None leaves a hole."""
    for name in next(iter(rms.values())):
        node, _, kind = name.rpartition(".")
        if kind == tensor:
            along = [tensors[name] or nan for tensors in rms.values()]
            ax.plot(list(rms), along, markersize=4, linewidth=1.2, **STYLES[node.rpartition(".")[2]])
    draw_limits(ax, words=words)


def plot(path: Path, rms: dict[int, dict[str, float]], title: str) -> None:
    """Draw `rms`, by step and tensor, at the first and the last step (Fig. 3) and, if they are two, along all (Fig. 8).

    The tensors are those of `scales.linear_ranges`. `path` ends with .png, .svg or .pdf. Raises ValueError without
    matplotlib, OSError where `path` cannot be written.
    """
    steps = sorted({min(rms), max(rms)})
    panels: list[list[int | str]] = [[step for step in steps for _ in range(6 // len(steps))]]
    if len(steps) > 1:
        panels.append([tensor for tensor in TENSORS for _ in range(2)])
    figure = pic.new_figure(11, 4.5 * len(panels))
    axes = figure.subplot_mosaic(panels, sharey=True)
    for step in steps:
        for name, value in rms[step].items():
            node, _, tensor = name.rpartition(".")
            kind = node.rpartition(".")[2]
            place = TENSORS.index(tensor) + (LINEARS.index(kind) - 3.5) / 10
            axes[step].plot(place, value, **STYLES[kind])
        draw_limits(axes[step], words=step == steps[-1])
        axes[step].set_title(f"step {step}")
        axes[step].set_xticks(range(len(TENSORS)), TENSORS)
    for tensor in TENSORS if len(steps) > 1 else ():
        draw_along(axes[tensor], dict(rms), tensor, words=False)  # type: ignore[arg-type]
        axes[tensor].set_title(f"{tensor} of every linear")
        axes[tensor].set_xlabel("step")
    axes[steps[0]].set_ylabel("RMS")
    keys = [axes[steps[0]].plot([], [], linestyle="none", **style)[0] for style in STYLES.values()]
    figure.legend(keys, LINEARS, loc="outside right center", title="a marker is a linear,\na layer each")
    figure.suptitle(title)
    pic.save(figure, path)
