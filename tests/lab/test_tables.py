from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microumup.lab.tables import read_table, text_table, to_line, write_table

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))  # of one line
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.lists(st.integers())


@given(rows=st.lists(st.tuples(VALUES, VALUES)))
def test_a_table_reads_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    write_table(path, ["a", "b, with a comma"], rows)
    found = [tuple(row.values()) for row in read_table(path)]
    assert found == rows
    assert [[type(v) for v in row] for row in found] == [[type(v) for v in row] for row in rows]


def test_a_line_can_be_appended(tmp_path):
    write_table(tmp_path / "t.csv", ["id", "loss"], [])
    with (tmp_path / "t.csv").open("a") as file:
        file.write(to_line(["123456789012", 0.5]))
    assert read_table(tmp_path / "t.csv") == [{"id": "123456789012", "loss": 0.5}]


def test_text_is_bare_where_it_can_be():
    assert to_line(["µP, a", "0.1.0", "none", None, True, "12e3"]) == '"µP, a",0.1.0,none,,true,"""12e3"""\n'


@pytest.mark.parametrize("content", ["a,b\n1\n", "a,b\n1,2,3\n"])
def test_what_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=r"t\.csv is not a table"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("align", "text"),
    [
        ("", " a  bbb  c\n22    1  x"),
        ("<><", "a   bbb  c\n22    1  x"),
    ],
)
def test_columns_stand_under_each_other(align, text):
    assert text_table([["a", "bbb", "c"], ["22", "1", "x"]], align) == text


def test_nothing_stands_behind_the_last_column():
    assert text_table([["a", ""], ["b", "long"]], "<<", gap=" | ") == "a |\nb | long"


DAMAGED = {
    "no text": b"a,b\n\xff,1\n",
    "a row too short": b"a,b\n1\n",
    "a row too long": b"a,b\n1,2,3\n",
    "a quote that does not end": b'a,b\n"1,2\n',
    "a NUL": b"a,b\n1,\x00\n",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_table_is_named_with_the_mend(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(DAMAGED[damage])
    if damage == "a NUL":  # which is text, and no number
        assert read_table(path) == [{"a": 1, "b": "\0"}]
        return
    with pytest.raises(ValueError, match=rf"^{path} is not a table \(.*\); restore it, or delete it$"):
        read_table(path)


@pytest.mark.parametrize("cell", ["9" * 5000, "[" * 5000, "1e999", "NaN"])
def test_a_cell_of_nonsense_is_no_traceback(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"a\n{cell}\n")
    assert len(read_table(path)) == 1


def test_a_table_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^/dev/zero is not a table \(it is no regular file\)"):
        read_table(Path("/dev/zero"))
