"""Faults of input tables: files that do not go together, files that change while they are read."""

import gzip
import os
from pathlib import Path
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mean_jax.data import tables
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.tables import TableSource, open_tables
from mean_jax.data.unify import wider_type
from mean_jax.errors import UserError

INT8, INT32, INT64, UINT64 = pa.int8(), pa.int32(), pa.int64(), pa.uint64()
FLOAT16, FLOAT32, FLOAT64, BOOL, NULL = pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.null()
TEXT, LARGE, TIME = pa.string(), pa.large_string(), pa.timestamp("us")
CODES8, CODES32 = pa.dictionary(INT8, TEXT), pa.dictionary(INT32, TEXT)


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
