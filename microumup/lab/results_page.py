"""x."""

from pathlib import Path


def write(out: Path, names: list[str]) -> None:
    """X."""
