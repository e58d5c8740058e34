"""Faults of input tables: files that do not go together, files that change while they are read, broken CSV lines."""

import gzip
import os
from pathlib import Path
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax import csv_faults
from mean_jax.data import tables
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.tables import TableSource, open_tables
from mean_jax.data.unify import wider_type
from mean_jax.errors import UserError

INT8, INT32, INT64, UINT64 = pa.int8(), pa.int32(), pa.int64(), pa.uint64()
FLOAT16, FLOAT32, FLOAT64, BOOL, NULL = pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.null()
TEXT, LARGE, TIME = pa.string(), pa.large_string(), pa.timestamp("us")
CODES8, CODES32 = pa.dictionary(INT8, TEXT), pa.dictionary(INT32, TEXT)
ROWS_OF_A_BLOCK = 300_000  # a MB and more: what Arrow reads of a CSV file at once


def read(path: Path, columns: list[str] | None = None, **options) -> pa.Table:
    return pa.Table.from_batches([rows.batch for rows in open_tables(str(path), "--input", **options).rows(columns)])


def refused(path: Path, message: str, **options) -> None:
    """Expects a line from opening or reading the table."""
    with pytest.raises(UserError, match=message):
        read(path, **options)


def write_csv(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, compresslevel=1) if path.suffix == ".gz" else data)
    return path


def write_pair(folder: Path, a: pa.Array, b: pa.Array) -> Path:
    """Writes two Parquet files with ids and a column x, in another order in the second."""
    ids = pa.array(np.arange(len(a) + len(b)))
    pq.write_table(pa.table({"id": ids[: len(a)], "x": a}), folder / "a.parquet")
    pq.write_table(pa.table({"x": b, "id": ids[len(a) :]}), folder / "b.parquet")
    return folder


# Files of one input.


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (INT32, INT64, INT64),
        (INT8, UINT64, FLOAT64),
        (INT64, FLOAT64, FLOAT64),
        (INT64, FLOAT32, FLOAT64),
        (INT8, FLOAT16, FLOAT16),
        (FLOAT32, FLOAT64, FLOAT64),
        (TEXT, LARGE, LARGE),
        (TEXT, CODES8, LARGE),
        (CODES32, CODES8, LARGE),
        (CODES8, CODES8, CODES8),
        (NULL, FLOAT32, FLOAT32),
        (NULL, BOOL, BOOL),
        (NULL, CODES8, CODES8),
        (NULL, NULL, NULL),
        (BOOL, BOOL, BOOL),
        (TIME, TIME, TIME),
        (BOOL, INT8, None),
        (BOOL, TEXT, None),
        (TEXT, INT64, None),
        (CODES8, FLOAT32, None),
        (TIME, INT64, None),
        (pa.dictionary(INT8, INT64), INT64, None),
    ],
    ids=str,
)
def test_the_wider_type(a, b, expected):
    assert wider_type(a, b) == expected
    assert wider_type(b, a) == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (pa.array([1, None], INT32), pa.array([2**40], INT64), pa.array([1, None, 2**40], INT64)),
        (pa.array([2**53 + 1], INT64), pa.array([0.5], FLOAT64), pa.array([2.0**53, 0.5])),
        (pa.array([0.1], FLOAT32), pa.array([0.1], FLOAT64), pa.array([float(np.float32(0.1)), 0.1])),
        (pa.array(["a", None]).dictionary_encode(), pa.array(["b"], LARGE), pa.array(["a", None, "b"], LARGE)),
        (pa.nulls(2), pa.array(["b"]).dictionary_encode(), pa.array([None, None, "b"]).dictionary_encode()),
        (pa.array([True]), pa.nulls(1), pa.array([True, None])),
        (pa.array(["a"], pa.string_view()), pa.array(["b"], TEXT), pa.array(["a", "b"], LARGE)),
    ],
    ids=["int32 int64", "int64 float64", "float32 float64", "dictionary text", "null dictionary", "bool null", "view"],
)
def test_types_widen_while_streaming(tmp_path, a, b, expected):
    table = read(write_pair(tmp_path, a, b))
    assert table.column_names == ["id", "x"]
    assert table["id"].to_pylist() == list(range(len(expected)))
    assert table["x"].type == expected.type
    assert table["x"].to_pylist() == expected.to_pylist()
    assert open_tables(str(tmp_path), "--input").schema == table.schema
    assert read(tmp_path, ["x", "id"]).equals(table.select(["x", "id"]))


@pytest.mark.parametrize("pattern", ["", "*.parquet"])
def test_types_that_do_not_go_together(tmp_path, pattern):
    write_pair(tmp_path, pa.array([True]), pa.array([1]))
    line = r"--input: column x is bool in .*a\.parquet and int64 in .*b\.parquet; write it with one type in all files"
    refused(tmp_path / pattern, line)


def test_the_file_with_values_is_named(tmp_path):
    write_pair(tmp_path, pa.nulls(1), pa.array(["b"]))
    pq.write_table(pa.table({"id": [9], "x": [1.5]}), tmp_path / "c.parquet")
    refused(tmp_path, r"column x is string in .*b\.parquet and double in .*c\.parquet")


def test_an_id_never_becomes_a_float(tmp_path):
    write_pair(tmp_path, pa.array([2**53, 2**53 + 1]), pa.array([0.5]))
    assert read(tmp_path, id_column="id")["x"].type == FLOAT64
    refused(tmp_path, r"column x is int64 in .*a\.parquet and double in .*b\.parquet", id_column="x")
    write_pair(tmp_path, pa.array([1], INT32), pa.array([2**53 + 1]))
    assert read(tmp_path, id_column="x")["x"].to_pylist() == [1, 2**53 + 1]


def test_a_column_that_one_file_lacks(tmp_path):
    write_pair(tmp_path, pa.array([1]), pa.array([2]))
    pq.write_table(pa.table({"id": [1], "y": [2], "x": [3]}), tmp_path / "c.parquet")
    refused(tmp_path, r"--input: column y is in .*c\.parquet and not in .*a\.parquet; all files of one input need the")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "c.parquet")
    refused(tmp_path, r"--input: column x is in .*a\.parquet and not in .*c\.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_files_with_columns_in_another_order_or_missing(tmp_path, suffix):
    write_csv(tmp_path / f"a{suffix}", "id,x\n1,a\n")
    write_csv(tmp_path / f"b{suffix}", "x,id\nb,2\n")
    assert read(tmp_path).to_pylist() == [{"id": "1", "x": "a"}, {"id": "2", "x": "b"}]
    write_csv(tmp_path / f"c{suffix}", "id\n1\n")
    refused(tmp_path / f"*{suffix}", rf"column x is in .*a\{suffix} and not in .*c\{suffix}")


def test_a_name_twice_in_a_later_file(tmp_path):
    write_csv(tmp_path / "a.csv", "id,x\n1,a\n")
    write_csv(tmp_path / "b.csv", "id,x,x\n1,a,a\n")
    refused(tmp_path, r"b\.csv: column x stands there 2 times; rename one")


# Files that change.


@pytest.fixture(params=["a.csv", "a.csv.gz", "a.parquet"])
def changing(request, tmp_path, monkeypatch) -> tuple[Path, TableSource]:
    """A file of 40 rows in batches of 4, and its source."""
    monkeypatch.setattr(tables, "ROWS_PER_BATCH", 4)
    path = tmp_path / request.param
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(40), "x": range(40)}), path)
    else:
        write_csv(path, "id,x\n" + "".join(f"{i},{i}\n" for i in range(40)))
    return path, open_tables(str(path), "--input", "id")


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\n")


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def swap(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".new"))  # of the same size and time
    os.replace(path.with_suffix(".new"), path)


def cut(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (append, r"changed from \d+ to \d+ bytes while it was read; let its writer finish and run again"),
        (touch, r"changed while it was read; let its writer finish and run again"),
        (swap, r"changed while it was read"),
        (cut, r"changed from \d+ to 0 bytes while it was read"),
        (Path.unlink, r"vanished while it was read; let its writer finish and run again"),
    ],
)
def test_a_file_that_changes(changing, change, message):
    path, source = changing
    assert sum(rows.batch.num_rows for rows in source.rows()) == 40
    assert sum(rows.batch.num_rows for rows in source.rows(["x"])) == 40
    stream = source.rows()
    next(stream)
    change(path)
    with pytest.raises(UserError, match=rf"^{path}: {message}"):
        list(stream)
    with pytest.raises(UserError, match=rf"^{path}: {message}"):  # nor does a later pass take it for the same
        next(source.rows())


def test_a_parquet_file_that_is_cut_under_its_reader(tmp_path):
    """Were the file mapped, reading behind its new end would kill the process."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": np.random.default_rng(0).random(500_000)}), path, row_group_size=50_000)
    stream = open_tables(str(path), "--input").rows()
    next(stream)
    cut(path)
    with pytest.raises(UserError, match=r"a\.parquet: changed from \d+ to 0 bytes while it was read"):
        list(stream)


def test_a_change_ends_prepare_without_a_trace(table_path, tmp_path, monkeypatch):
    path = Path(shutil.copy(table_path, tmp_path / "a.parquet"))
    require_ids = iter(range(100))

    def change_in_the_second_pass(*_):
        if next(require_ids) == 1:
            touch(path)

    monkeypatch.setattr("mean_jax.data.labelled.require_ids", change_in_the_second_pass)
    with pytest.raises(UserError, match=r"a\.parquet: changed while it was read"):
        prepare(str(path), tmp_path / "store", PrepareOptions(label_columns=("cltv_30", "cltv_365")))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]


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
    assert open_tables(str(path), "--input", "customer_id", all_types=True).schema.field("spend").type == FLOAT64
    prepare(str(path), tmp_path / "store", PrepareOptions())


@pytest.mark.parametrize("text", ["1e999", "-1e999", "9" * 400])
@pytest.mark.parametrize("column", ["spend", "cltv_30"])
def test_numbers_beyond_float64(tmp_path, text, column):
    path = write_csv(tmp_path / "a.csv", labelled(**{column: text}))
    with pytest.raises(
        UserError, match=rf"a\.csv row 300: column {column}\b.* is '{text}'; expected a finite number below"
    ):
        prepare(str(path), tmp_path / "store", PrepareOptions())
