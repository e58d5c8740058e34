"""CSV as it comes: the line of a broken row, dialects that are read and others that are named, large numbers."""

import numpy as np
import pyarrow as pa
import pytest

from mean_jax import csv_faults
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.tables import open_tables
from mean_jax.errors import UserError
from tests.test_input_faults import read, refused, write_csv

ROWS_OF_A_BLOCK = 300_000  # a MB and more: what Arrow reads of a CSV file at once


# Broken lines.

WHOLE = "7,x\n"
FAULTS = {
    "too few": ("8\n", "1 field, the header has 2; mend the line, a comma that belongs to a value needs quotes"),
    "too many": ("8,y,1,5\n", "4 fields, the header has 2"),
    "not closed": ('8,"y\n', "a quoted value that begins there is not closed; close it, or double a quote"),
    "closed in the next row": ('8,"y\n9,"z"\n', "a quoted value that begins there is not closed"),
    "not UTF-8": (b"8,\xe9\n", "is not UTF-8; write the file in UTF-8"),
    "not UTF-8, quoted over lines": (b'8,"a\n\xe9"\n', "is not UTF-8"),
}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("num_rows", [3, ROWS_OF_A_BLOCK])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_line_of_a_broken_row(tmp_path, name, num_rows, fault):
    broken, message = FAULTS[fault]
    broken = broken.encode() if isinstance(broken, str) else broken
    start = ("id,x\n" + WHOLE * num_rows + '7,"two\nlines"\n').encode()
    path = write_csv(tmp_path / name, start + broken + WHOLE.encode() * num_rows)
    refused(path, rf"^{path} line {num_rows + 4}: {message}")
    for columns in (["id"], ["x"]):
        if not (columns == ["id"] and fault.startswith("not UTF-8")):
            with pytest.raises(UserError, match=rf"^{path} line {num_rows + 4}: {message}"):
                read(path, columns)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_two_quotes_that_swallow_the_rows_between(tmp_path, name):
    rows = [f"{row},x" for row in range(100)]
    rows[10], rows[30] = '10,"Bob', '30,"Bob'
    path = write_csv(tmp_path / name, "\n".join(["id,x", *rows]))
    for columns in (None, ["id"]):
        with pytest.raises(UserError, match=rf"^{path} line 12: a quoted value that begins there is not closed"):
            read(path, columns)


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_only_files_whose_quotes_may_hide_rows_are_read_again(tmp_path, monkeypatch, end):
    searched = []
    monkeypatch.setattr(csv_faults, "find_fault", searched.append)
    path = write_csv(tmp_path / "a.csv", f'id,x\r\n1,"a, ""b"""\r\n2,5" by 6"{end}')
    assert read(path)["x"].to_pylist() == ['a, "b"', '5" by 6"']
    assert bool(searched) == (end == "\n\n")  # an empty line looks like one that a value holds


def test_a_quote_that_the_end_of_the_file_leaves_open(tmp_path):
    refused(write_csv(tmp_path / "a.csv", 'id,x\n1,a\n2,"b'), r"a\.csv line 3: a quoted value that begins there is not")


def test_the_file_with_the_broken_row_is_named(tmp_path):
    for name, end in (("a.csv", "2,b\n"), ("b.csv", "2\n")):
        write_csv(tmp_path / name, "id,x\n" + WHOLE * ROWS_OF_A_BLOCK + end)
    refused(tmp_path, rf"b\.csv line {ROWS_OF_A_BLOCK + 2}: 1 field")


def test_a_header_that_is_not_utf8(tmp_path):
    refused(write_csv(tmp_path / "a.csv", b"id,\xe9\n1,2\n"), r"a\.csv line 1: is not UTF-8")


def test_a_damaged_archive(tmp_path):
    path = write_csv(tmp_path / "a.csv.gz", "id,x\n" + "".join(f"{i},{i * i}\n" for i in range(ROWS_OF_A_BLOCK)))
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, r"a\.csv\.gz: cannot be read, mend or replace it: .*")


def test_quotes_inside_values_are_no_fault(tmp_path, monkeypatch):
    content = 'id,x\n1,5" pipe\n2,"a ""b"" c"\n3,"d"e\n4,"five\n\nlines, ""two"" empty\n\n"\n'
    path = write_csv(tmp_path / "a.csv", content)
    expected = ['5" pipe', 'a "b" c', "de", 'five\n\nlines, "two" empty\n\n']
    assert read(path)["x"].to_pylist() == expected
    monkeypatch.setattr(csv_faults, "find_fault", None)  # a file is searched once, not at each pass
    assert read(path)["x"].to_pylist() == expected


def test_a_quoted_line_break_on_the_edge_of_a_block(tmp_path):
    """Where Arrow cuts the file must not matter."""
    path = write_csv(tmp_path / "a.csv", "id,x\n" + '7,"two\nlines"\n' * ROWS_OF_A_BLOCK)
    assert set(read(path)["x"].to_pylist()) == {"two\nlines"}


# Dialects of CSV.


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "mark"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_dialects_that_are_read(tmp_path, name, mark, line_break, end):
    text = f"{mark}id,x\n1,a\n\n2,b{end}".replace("\n", line_break)
    path = write_csv(tmp_path / name, text)
    assert read(path, id_column="id").to_pylist() == [{"id": 1, "x": "a"}, {"id": 2, "x": "b"}]
    write_csv(path, f"{text}{line_break}3{line_break}")
    lines_before = 4 + max(0, end.count("\n"))
    refused(path, rf"line {lines_before + 1}: 1 field")


def test_a_quoted_name_behind_a_byte_order_mark(tmp_path):
    path = write_csv(tmp_path / "a.csv", '\ufeff"id, own",x\n1,2\n')
    assert read(path).column_names == ["id, own", "x"]
    refused(write_csv(path, '\ufeff"id, own",x\n1,2\n1,2,3\n'), "line 3: 3 fields, the header has 2")


def test_line_breaks_of_windows_on_the_edge_of_a_block(tmp_path):
    rows = ROWS_OF_A_BLOCK
    for shift in range(5):
        path = write_csv(tmp_path / "a.csv", "id,x\r\n" + "0" * shift + "7,x\r\n" * rows)
        assert read(path, ["x"]).num_rows == rows


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("row", ["1{}2.5", "1{}2,5"])
def test_other_separators(tmp_path, name, mark, row):
    header = f'\ufeff"id"{mark}"spend"'
    path = write_csv(tmp_path / name, f"{header}\n{row.format(mark)}\n")
    shown = repr(mark).replace("\\", "\\\\").replace("|", r"\|")
    refused(path, rf"^{path}: seems to be separated by {shown}; write it with commas between the columns")


def test_other_separators_inside_a_name(tmp_path):
    assert read(write_csv(tmp_path / "a.csv", "id,a;b|c\n1,2\n")).column_names == ["id", "a;b|c"]
    assert read(write_csv(tmp_path / "b.csv", '"a;b"\n1\n')).column_names == ["a;b"]


# Numbers.


def labelled(num_rows: int = 300, **last: str) -> str:
    """Returns CSV text whose last row has the given values."""
    rng = np.random.default_rng(0)
    rows = [
        {"customer_id": str(2**53 + i), "spend": f"{rng.random():.6f}", "cltv_30": str(int(rng.integers(0, 3)))}
        for i in range(num_rows)
    ]
    rows[-1] |= last
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n"


def test_ids_beyond_the_integers_of_a_float_stay_apart(tmp_path):
    path = write_csv(tmp_path / "a.csv", labelled())
    assert read(path, id_column="customer_id")["customer_id"].to_pylist() == [2**53 + i for i in range(300)]
    prepare(str(path), tmp_path / "store", PrepareOptions())


def test_features_beyond_the_integers_of_a_float_are_rounded(tmp_path):
    path = write_csv(tmp_path / "a.csv", labelled(spend=str(2**53 + 1)))
    assert open_tables(str(path), "--input", "customer_id", all_types=True).schema.field("spend").type == pa.float64()
    prepare(str(path), tmp_path / "store", PrepareOptions())


@pytest.mark.parametrize("text", ["1e999", "-1e999", "9" * 400])
@pytest.mark.parametrize("column", ["spend", "cltv_30"])
def test_numbers_beyond_float64(tmp_path, text, column):
    path = write_csv(tmp_path / "a.csv", labelled(**{column: text}))
    with pytest.raises(
        UserError, match=rf"a\.csv row 300: column {column}\b.* is '{text}'; expected a finite number below"
    ):
        prepare(str(path), tmp_path / "store", PrepareOptions())
