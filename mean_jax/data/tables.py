"""Reading customer tables: a Parquet or CSV file, a folder or a glob, as a stream of record batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import difflib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mean_jax.errors import UserError
from mean_jax.inputs import find_files, is_csv

ROWS_PER_BATCH = 16384


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
    is_csv: bool
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
                for batch in self._batches(file, names):
                    if batch.num_rows:
                        yield Rows(batch, file, first_row)
                    first_row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{file}: cannot be read, mend or replace it: {error}") from error

    def _batches(self, file: Path, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        if self.is_csv:
            convert = pa_csv.ConvertOptions(
                include_columns=columns, column_types=self.column_types, strings_can_be_null=True
            )
            with pa_csv.open_csv(file, convert_options=convert) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                        yield batch.slice(start, ROWS_PER_BATCH)
        else:
            with pq.ParquetFile(file, memory_map=True) as parquet:
                for batch in parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                    yield batch.cast(without_views(batch.schema))


def without_views(table: pa.Schema) -> pa.Schema:
    """Returns the schema with large strings for string views (as Polars gives them), which few kernels know."""

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_dictionary(kind):
            return pa.dictionary(kind.index_type, plain(kind.value_type), kind.ordered)
        return pa.large_string() if pa.types.is_string_view(kind) else kind

    return pa.schema([field.with_type(plain(field.type)) for field in table])


def _file_schema(file: Path, types: Mapping[str, pa.DataType], is_text: bool) -> pa.Schema:
    try:
        if not is_text:
            return without_views(pq.read_schema(file))
        convert = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        with pa_csv.open_csv(file, convert_options=convert) as reader:
            return reader.schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable {'CSV' if is_text else 'Parquet'} file: {error}") from error


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
    files = find_files(path, flag)
    is_text = is_csv(files[0], flag)
    schema = _file_schema(files[0], types, is_text)
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UserError(f"{files[0]}: column {name} stands there {schema.names.count(name)} times; rename one")
    for file in files[1:]:
        if is_csv(file, flag) != is_text:
            raise UserError(f"{flag}: {files[0]} and {file} are of two formats; give Parquet or CSV files, not both")
        other = _file_schema(file, types, is_text)
        differing = set(other.names) ^ set(schema.names)
        if not differing and not is_text:  # the types of CSV columns are guesses from the first rows
            differing = {name for name in schema.names if other.field(name).type != schema.field(name).type}
        if differing:
            column = min(differing)
            raise UserError(f"{file} and {files[0]} differ in column {column}; all files of {flag} need one schema")
    return TableSource(tuple(files), is_text, schema, types)


def missing_column(name: str, flag: str, available: Iterable[str], where: object) -> UserError:
    """Returns the error for a column that is not in the table, with the nearest name that is."""
    available = list(available)
    near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(available[:8])}"
    return UserError(f"{flag}: column {name} is not in {where}; {hint}")
