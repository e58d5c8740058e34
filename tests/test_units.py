"""Units of work: each row once and in order, whatever the files, and errors that name the row of the file."""

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.data import units
from mean_jax.data.tables import open_tables
from mean_jax.data.units import split_units
from mean_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Parquet files of 10, 0 and 250 rows, the last in row groups of 40."""
    monkeypatch.setattr(units, "UNIT_ROWS", 100)
    for name, start, stop in (("a", 0, 10), ("b", 10, 10), ("c", 10, 260)):
        table = pa.table({"id": np.arange(start, stop), "value": np.arange(start, stop) * 0.5})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=40)
    return tmp_path


def ids_of(found):
    return [row["id"] for unit in found for rows in unit.rows(["id"]) for row in rows.batch.to_pylist()]


def test_units_cover_the_rows_in_order(folder):
    found = split_units(open_tables(str(folder), "--input"), 32)
    assert ids_of(found) == list(range(260))
    assert [unit.index for unit in found] == list(range(len(found)))
    assert [unit.num_rows for unit in found] == [90, 80, 90]
    assert [len(unit.pieces) for unit in found] == [3, 1, 1]


def test_places_count_from_the_start_of_the_file(folder):
    last = split_units(open_tables(str(folder), "--input"), 32)[2]
    rows = next(iter(last.rows(["value"])))
    assert rows.place(1) == f"{folder / 'c.parquet'} row 162"
    assert rows.batch.column("value")[1].as_py() == 0.5 * 171


def test_csv_files_stay_whole_and_small_ones_go_together(tmp_path, monkeypatch):
    for name, start in (("a", 0), ("b", 100), ("c", 200)):
        pa_csv.write_csv(pa.table({"id": np.arange(start, start + 100)}), tmp_path / f"{name}.csv")
    size = (tmp_path / "c.csv").stat().st_size
    monkeypatch.setattr(units, "UNIT_CSV_BYTES", 2 * size)
    found = split_units(open_tables(str(tmp_path), "--input", "id"), 32)
    assert [len(unit.pieces) for unit in found] == [2, 1]
    assert ids_of(found) == list(range(300))
    assert [unit.num_rows for unit in found] == [None, None]


def test_a_footer_is_parsed_once_for_the_units_of_a_file(folder, monkeypatch):
    parsed, given = [], []
    read_metadata, parquet_file = pq.read_metadata, pq.ParquetFile
    monkeypatch.setattr(pq, "read_metadata", lambda file: parsed.append(file.name) or read_metadata(file))
    monkeypatch.setattr(
        pq,
        "ParquetFile",
        lambda *args, metadata=None, **kwargs: given.append(metadata) or parquet_file(*args, **kwargs),
    )
    found = split_units(open_tables(str(folder), "--input"), 32)
    names = ["a.parquet", "b.parquet", "c.parquet"]
    assert parsed == names
    assert ids_of(found) == list(range(260))
    assert parsed == 2 * names  # when they are divided, and at the first unit of each
    assert len(given) == 5 and None not in given


def test_a_file_that_is_written_again_before_it_is_divided_has_changed(folder):
    source = open_tables(str(folder), "--input")
    (folder / "c.parquet").write_bytes(b"PAR1 and not yet more")
    with pytest.raises(UserError, match=r"c\.parquet: changed from \d+ to 21 bytes while it was read"):
        split_units(source, 32)


def test_a_damaged_or_changed_file_is_named(folder):
    source = open_tables(str(folder), "--input")
    found = split_units(source, 32)
    path = folder / "c.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.parquet: changed while it was read"):
        ids_of(found)
    with pytest.raises(UserError, match=r"c\.parquet: cannot be read, mend or replace it"):
        ids_of(split_units(open_tables(str(folder), "--input"), 32))
