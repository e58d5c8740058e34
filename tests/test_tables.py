"""Customer tables: the ways to name them, what a batch knows of its place, and each error line."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.data import tables
from mean_jax.data.tables import missing_column, open_tables
from mean_jax.errors import UserError


def people(start: int, stop: int) -> pa.Table:
    return pa.table({"id": np.arange(start, stop), "spend": np.arange(start, stop) * 0.5})


def read_ids(path) -> list[int]:
    return [
        value for rows in open_tables(str(path), "--input", "id").rows(["id"]) for value in rows.batch["id"].to_pylist()
    ]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(3):
        pq.write_table(people(part * 10, part * 10 + 10), folder / f"part-{part}.parquet")
    (folder / "_SUCCESS").write_text("")
    (folder / ".hidden.parquet").write_text("")
    return folder


def test_a_file_a_folder_and_a_glob(folder):
    assert read_ids(folder / "part-1.parquet") == list(range(10, 20))
    assert read_ids(folder) == list(range(30))
    assert read_ids(folder / "part-[02].parquet") == [*range(10), *range(20, 30)]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv(tmp_path, name):
    with pa.output_stream(tmp_path / name, compression="detect") as file:
        pa_csv.write_csv(people(0, 10), file)
    assert read_ids(tmp_path / name) == list(range(10))


def test_rows_know_their_file_and_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_BATCH", 4)
    pq.write_table(people(0, 10), tmp_path / "a.parquet")
    pa_csv.write_csv(people(10, 20), tmp_path / "b.csv")
    for name, first in (("a.parquet", 0), ("b.csv", 10)):
        stream = list(open_tables(str(tmp_path / name), "--input", "id").rows(["id"]))
        assert [rows.batch.num_rows for rows in stream] == [4, 4, 2]
        assert stream[1].batch["id"][1].as_py() == first + 5
        assert stream[1].place(1) == f"{tmp_path / name} row 6"


def test_a_file_without_rows_gives_no_batch(folder):
    pq.write_table(people(0, 0), folder / "part-0.parquet")
    assert read_ids(folder) == list(range(10, 30))


def test_columns_may_stand_in_another_order(folder):
    pq.write_table(people(0, 10).select(["spend", "id"]), folder / "part-0.parquet")
    assert read_ids(folder) == list(range(30))


def test_csv_files_need_not_look_alike(tmp_path):
    (tmp_path / "a.csv").write_text("id,spend\n1,2\n")
    (tmp_path / "b.csv").write_text("spend,id\n2.5,2\n")
    assert read_ids(tmp_path) == [1, 2]


def check_refused(path, message: str) -> None:
    """Expects `message` from opening or reading the table."""
    with pytest.raises(UserError, match=message):
        for _ in open_tables(str(path), "--input").rows():
            pass


def test_nothing_there(tmp_path):
    for path in ("", tmp_path / "no.parquet", tmp_path / "*.csv"):
        check_refused(path, r"--input: .*does not exist; give a Parquet or CSV file, a folder or a glob")
    check_refused(tmp_path, r"--input: folder .* holds no \.parquet or \.csv file")


def test_an_empty_file(tmp_path):
    (tmp_path / "a.csv").write_text("")
    check_refused(tmp_path / "a.csv", r"a\.csv is empty; remove it or give a table with rows")


def test_neither_parquet_nor_csv(tmp_path, folder):
    (tmp_path / "a.txt").write_text("id,spend\n1,2\n")
    (tmp_path / "a.parquet").write_text("id,spend\n1,2\n")
    (tmp_path / "a.csv").write_bytes(bytes(range(256)))
    (tmp_path / "b.csv").write_text("id,spend\n1,2\n", encoding="utf-16")
    check_refused(tmp_path / "a.txt", r"a\.txt is neither Parquet nor CSV; export the table as \.parquet or \.csv")
    check_refused(tmp_path / "a.parquet", r"a\.parquet is not a Parquet file, whatever its name says")
    check_refused(tmp_path / "a.csv", r"a\.csv is neither Parquet nor CSV")
    check_refused(tmp_path / "b.csv", r"b\.csv is neither Parquet nor CSV")


def test_a_cut_parquet_file(folder):
    path = folder / "part-0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    check_refused(folder, r"part-0\.parquet: cannot be read, mend or replace it: .*Parquet magic bytes not found")


def test_a_parquet_file_damaged_inside(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": np.arange(10_000.0)}), path)
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)
    check_refused(path, r"a\.parquet: cannot be read, mend or replace it: Corrupt snappy")


def test_a_csv_row_with_a_column_too_few(tmp_path):
    (tmp_path / "a.csv").write_text("id,spend\n" + "1,2\n" * 1_000_000 + "3\n")
    check_refused(tmp_path / "a.csv", r"a\.csv line 1000002: 1 field, the header has 2; mend the line")


def test_a_column_name_twice(tmp_path):
    (tmp_path / "a.csv").write_text("id,spend,spend\n1,2,3\n")
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, ["id", "id"]), tmp_path / "a.parquet")
    check_refused(tmp_path / "a.csv", r"a\.csv: column spend stands there 2 times; rename one")
    check_refused(tmp_path / "a.parquet", r"a\.parquet: column id stands there 2 times; rename one")


def test_parquet_and_csv_together(folder):
    pa_csv.write_csv(people(0, 10), folder / "all.csv")
    check_refused(folder, r"--input: .*all\.csv and .*part-0\.parquet are of two formats")


def test_a_missing_column_has_a_nearest_name():
    line = str(missing_column("spnd", "--exclude", ["id", "spend"], "table.csv"))
    assert line == "--exclude: column spnd is not in table.csv; did you mean spend?"
    line = str(missing_column("x", "--exclude", ["id", "spend"], "table.csv"))
    assert re.search(r"it has id, spend$", line)
    line = str(missing_column("spnd", "--input", ["id", "spend"], "table.csv", "the model"))
    assert line == "--input: column spnd, which the model needs, is not in table.csv; did you mean spend?"
    line = str(missing_column("spnd", "", ["id", "spend"], "the table"))
    assert line == "column spnd is not in the table; did you mean spend?"


def csv_types(path, lines: list[str]) -> list[str]:
    path.write_text("id,spend\n" + "\n".join(lines) + "\n")
    return [str(kind) for kind in open_tables(str(path), "--input", "id", all_types=True).schema.types]


@pytest.mark.parametrize("late", ["007", "+7", " 7", "x7", "7.0", "99999999999999999999"])
def test_ids_of_csv_are_text_if_one_of_them_is(tmp_path, late):
    lines = [f"{index},1" for index in range(100, 200_000)]
    assert csv_types(tmp_path / "a.csv", lines)[0] == "int64"
    assert csv_types(tmp_path / "a.csv", [*lines, f"{late},1"])[0] == "string"
    assert read_ids(tmp_path / "a.csv")[-2:] == ["199999", late]


@pytest.mark.parametrize(
    ("late", "expected"),
    [("2.5", "double"), ("x", "string"), ("true", "bool"), ("2020-01-31", "timestamp[us]"), ("", "null")],
)
def test_the_type_of_a_csv_column_depends_on_its_last_row(tmp_path, late, expected):
    lines = [f"{index}," for index in range(200_000)]
    assert csv_types(tmp_path / "a.csv", [*lines, f"200000,{late}"]) == ["int64", expected]


@pytest.mark.parametrize("num_rows", [5, 200_000])
def test_a_number_column_with_a_late_text_is_said_to_be_text(tmp_path, caplog, monkeypatch, num_rows):
    monkeypatch.setattr(tables.LOGGER, "propagate", True)
    lines = [f"{index},{index}.5" for index in range(num_rows)]
    assert csv_types(tmp_path / "a.csv", [*lines, f"{num_rows},abc"])[1] == "string"
    assert f"a.csv row {num_rows + 1}: column spend is 'abc': the numbers in it are read as text" in caplog.text
