"""Reading customer tables: a Parquet or CSV file, a folder or a glob, as a stream of record batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import difflib
import glob
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mean_jax.errors import UserError

ROWS_PER_BATCH = 16384
_PARQUET_SUFFIXES = (".parquet", ".pq")
_CSV_SUFFIXES = (".csv", ".csv.gz")
_PARQUET_MAGIC = b"PAR1"


@dataclasses.dataclass(frozen=True)
class Rows:
    """A record batch and where it stands, so that an error can name file and row."""

    batch: pa.RecordBatch
    file: Path
    first_row: int  # of the batch within the file, counted from 0 without the header

    def place(self, index: int) -> str:
        """Returns 'FILE row N' for a row of the batch; rows count from 1, a CSV header not among them."""
        return f"{self.file} row {self.first_row + index + 1}"

    def place_of(self, positions: np.ndarray) -> Callable[[int], str]:
        """Returns `place` for a selection of the batch's rows."""
        return lambda index: self.place(int(positions[index]))


@dataclasses.dataclass(frozen=True)
class TableSource:
    """The files of one input, all of the same schema."""

    files: tuple[Path, ...]
    schema: pa.Schema
    column_types: Mapping[str, pa.DataType]

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[Rows]:
        """Yields the rows in file order, with only the named columns if given; no batch is empty.

        Raises:
          UserError: a file is damaged; the line names it.
        """
        names = None if columns is None else list(columns)
        for file in self.files:
            first_row = 0
            try:
                for batch in _file_batches(file, names, self.column_types):
                    if batch.num_rows:
                        yield Rows(batch, file, first_row)
                    first_row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{file}: cannot be read, mend or replace it: {error}") from error


def _file_batches(file: Path, columns: list[str] | None, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    if _is_parquet(file):
        with pq.ParquetFile(file, memory_map=True) as parquet:
            yield from parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns)
    else:
        convert = pa_csv.ConvertOptions(include_columns=columns, column_types=types, strings_can_be_null=True)
        with pa_csv.open_csv(file, convert_options=convert) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                    yield batch.slice(start, ROWS_PER_BATCH)


def _is_parquet(file: Path) -> bool:
    return file.name.endswith(_PARQUET_SUFFIXES)


def _find_files(path: str, flag: str) -> list[Path]:
    if path and Path(path).is_dir():
        names = sorted(file for file in Path(path).iterdir() if file.is_file() and file.name[0] not in "._")
        names = [file for file in names if file.name.endswith(_PARQUET_SUFFIXES + _CSV_SUFFIXES)]
        if not names:
            raise UserError(f"{flag}: folder {path} holds no .parquet or .csv file")
        return names
    if Path(path).is_file():
        return [Path(path)]
    matches = sorted(Path(match) for match in glob.glob(path, recursive=True) if Path(match).is_file())
    if not matches:
        raise UserError(f"{flag}: {path} does not exist; give a Parquet or CSV file, a folder or a glob")
    return matches


def _file_schema(file: Path, types: Mapping[str, pa.DataType]) -> pa.Schema:
    if file.stat().st_size == 0:
        raise UserError(f"{file}: is empty; expected a Parquet or CSV table")
    with open(file, "rb") as content:
        has_magic = content.read(4) == _PARQUET_MAGIC
    if not file.name.endswith(_PARQUET_SUFFIXES + _CSV_SUFFIXES):
        raise UserError(f"{file}: neither Parquet nor CSV; name it .parquet or .csv")
    if _is_parquet(file) != has_magic:
        raise UserError(f"{file}: not a {'Parquet' if _is_parquet(file) else 'CSV'} file, whatever its name says")
    try:
        if _is_parquet(file):
            return pq.read_schema(file)
        with pa_csv.open_csv(
            file, convert_options=pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        ) as reader:
            return reader.schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable {'Parquet' if _is_parquet(file) else 'CSV'} file: {error}") from error


def open_tables(path: str, flag: str, column_types: Mapping[str, pa.DataType] | None = None) -> TableSource:
    """Returns the input at `path`: a .parquet or .csv file, a folder of them, or a glob.

    Args:
      path: what the user gave.
      flag: the flag that it came from, for error lines.
      column_types: types of CSV columns where they are known (scoring); the others are inferred.

    Raises:
      UserError: nothing there, an empty or unreadable file, a column name twice, or files of different schemas.
    """
    types = dict(column_types or {})
    files = _find_files(path, flag)
    schema = _file_schema(files[0], types)
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UserError(f"{files[0]}: column {name} stands there {schema.names.count(name)} times; rename one")
    for file in files[1:]:
        if _is_parquet(file) != _is_parquet(files[0]):
            raise UserError(f"{flag}: {files[0]} and {file} are of two formats; give Parquet or CSV files, not both")
        other = _file_schema(file, types)
        differing = set(other.names) ^ set(schema.names)
        if not differing and _is_parquet(file):  # the types of CSV columns are guesses from the first rows
            differing = {name for name in schema.names if other.field(name).type != schema.field(name).type}
        if differing:
            column = min(differing)
            raise UserError(f"{file} and {files[0]} differ in column {column}; all files of {flag} need one schema")
    return TableSource(tuple(files), schema, types)


def missing_column(name: str, flag: str, available: Iterable[str], where: object) -> UserError:
    """Returns the error for a column that is not in the table, with the nearest name that is."""
    available = list(available)
    near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(available[:8])}"
    return UserError(f"{flag}: column {name} is not in {where}; {hint}")
