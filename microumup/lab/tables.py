"""Output of commands: CSV that reads back as it was written, columns of text, and lines of JSON.

In a CSV None is an empty cell, text is bare, all else is as in JSON. Text that JSON would take for something else, as
the name 123456789012, is quoted as in JSON too.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from microumup import files


def text_table(rows: Iterable[Sequence[str]], align: str = "", *, gap: str = "  ") -> str:
    """Lines with the cells of `rows` under each other, `gap` between two columns, nothing behind the last.

    `align` has a `<` or a `>` for each column, to the left or to the right. Without it all columns stand to the right,
    but the last to the left.
    """
    rows = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    align = align or ">" * (len(widths) - 1) + "<"
    cells = ([f"{x:{side}{width}}" for x, side, width in zip(row, align, widths, strict=False)] for row in rows)
    return "\n".join(gap.join(row).rstrip() for row in cells)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write the rows, each with a value for every column, whole or not at all."""
    lines = map(to_line, [columns, *rows])
    files.write_atomically(path, lambda temporary: temporary.write_bytes("".join(lines).encode()))


def to_line(row: Sequence[Any]) -> str:
    """A row as its line of the file."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(map(_cell, row))
    return line.getvalue()


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows by column. Raises ValueError, naming the file, where a row has not as many cells as the table has
    columns, and for a file that is no text, or too large for a table."""
    try:
        text = files.read_bytes(path).decode()
        columns, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"its rows have not all {len(columns)} cells")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a table ({files.one_line(error)}); restore it, or delete it") from None
    return [dict(zip(columns, map(_value, row), strict=True)) for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) and value and _value(value) is value else json.dumps(value)


def _value(cell: str) -> Any:
    if not cell:
        return None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets of thousands of levels
        return cell
