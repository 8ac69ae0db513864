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
