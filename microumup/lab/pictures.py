"""A look for all pictures, colours that all eyes can tell apart, and a file that is whole or not there."""

from importlib import import_module
from pathlib import Path
from typing import Any

from microumup import files
from microumup.backend import install_hint

# Okabe and Ito's set
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)  # for lines, the most distinct first


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure of that many inches. Raises ValueError without matplotlib."""
    try:
        figure = import_module("matplotlib.figure").Figure
    except ImportError:
        raise ValueError(f"--plot: needs matplotlib, {install_hint('plot')}; the table shows the same") from None
    return figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write the figure in the format that the suffix of `path` names: of the same figure the same bytes, whenever.

    Raises OSError where that cannot be.
    """
    undated = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    options = {"format": path.suffix[1:], "dpi": 150, "metadata": undated}
    with import_module("matplotlib").rc_context({"svg.hashsalt": "microumup", "svg.fonttype": "path"}):
        files.write_atomically(path, lambda temporary: figure.savefig(temporary, **options))
