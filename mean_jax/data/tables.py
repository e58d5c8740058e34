"""Reading customer tables: a Parquet or CSV file, a folder or a glob, as a stream of record batches.

The columns of a CSV file are streamed as text, so that no type is guessed from its first rows and an error can name the
row; only ids become integers, where all of them are written as integers are (007 is not).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import difflib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mean_jax.errors import UserError
from mean_jax.inputs import find_files, is_csv
from mean_jax.log import LOGGER

ROWS_PER_BATCH = 16384
# What the text of a CSV column other than the id may stand for; the first that reads every value is its type.
_CSV_KINDS = (pa.float64(), pa.bool_(), pa.timestamp("us"), pa.timestamp("us", "UTC"))


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
    schema: pa.Schema  # of a CSV file: text where no type was asked for
    column_types: Mapping[str, pa.DataType]  # that the columns of a CSV file are read as: text, or int64 ids

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


def _file_schema(file: Path, is_text: bool) -> pa.Schema:
    try:
        if not is_text:
            return without_views(pq.read_schema(file))
        with pa_csv.open_csv(file) as reader:
            return pa.schema([(name, pa.string()) for name in reader.schema.names])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a readable {'CSV' if is_text else 'Parquet'} file: {error}") from error


def _reads_as(texts: pa.Array, kind: pa.DataType) -> bool:
    try:
        if not pa.types.is_integer(kind):
            pc.cast(pc.utf8_trim_whitespace(texts), kind)
            return True
        return pc.cast(pc.cast(texts, kind), pa.string()).equals(texts)
    except pa.ArrowInvalid:
        return False


def _warn_of_text(rows: Rows, name: str, had_numbers: bool) -> None:
    """Names the first value of the column that is no number, if numbers stand before it."""
    column = rows.batch.column(name)
    row = next(row for row in range(len(column)) if not _reads_as(column.slice(row, 1), pa.float64()))
    if had_numbers or column.slice(0, row).null_count < row:
        value = column[row].as_py()
        LOGGER.warning("%s: column %s is %r: the numbers in it are read as text", rows.place(row), name, value)


def _typed(source: TableSource, id_column: str, all_columns: bool) -> TableSource:
    """Returns a CSV source with the types that its values have in every row; null where there is no value."""
    kinds: dict[str, list[pa.DataType]] = {name: list(_CSV_KINDS) for name in source.schema.names if all_columns}
    kinds[id_column] = [pa.int64()]
    filled: set[str] = set()
    for rows in source.rows(kinds):
        for name, possible in kinds.items():
            column = rows.batch.column(name)
            kinds[name] = [kind for kind in possible if _reads_as(column, kind)]
            if pa.float64() in possible and not kinds[name]:
                _warn_of_text(rows, name, name in filled)
            if column.null_count < len(column):
                filled.add(name)
    types = {name: possible[0] if possible else pa.string() for name, possible in kinds.items()}
    types |= {name: pa.null() for name in kinds if name not in filled}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in source.schema.names])
    id_type = pa.string() if pa.types.is_null(types[id_column]) else types[id_column]
    return dataclasses.replace(source, schema=schema, column_types={**source.column_types, id_column: id_type})


def open_tables(path: str, flag: str, id_column: str | None = None, all_types: bool = False) -> TableSource:
    """Returns the input at `path`: a .parquet or .csv file, a folder of them, or a glob.

    Args:
      path: what the user gave.
      flag: the flag that it came from, for error lines.
      id_column: of which the type in CSV files is wanted, int64 or text; it takes a pass over them.
      all_types: find the types of the other CSV columns in the same pass too.

    Raises:
      UserError: nothing there, an empty or unreadable file, a column name twice, or files of different schemas.
    """
    files = find_files(path, flag)
    is_text = is_csv(files[0], flag)
    schema = _file_schema(files[0], is_text)
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise UserError(f"{files[0]}: column {name} stands there {schema.names.count(name)} times; rename one")
    for file in files[1:]:
        if is_csv(file, flag) != is_text:
            raise UserError(f"{flag}: {files[0]} and {file} are of two formats; give Parquet or CSV files, not both")
        other = _file_schema(file, is_text)
        differing = set(other.names) ^ set(schema.names)
        if not differing:
            differing = {name for name in schema.names if other.field(name).type != schema.field(name).type}
        if differing:
            column = min(differing)
            raise UserError(f"{file} and {files[0]} differ in column {column}; all files of {flag} need one schema")
    source = TableSource(tuple(files), is_text, schema, {name: pa.string() for name in schema.names if is_text})
    if not is_text or id_column is None or id_column not in schema.names:
        return source
    return _typed(source, id_column, all_types)


def missing_column(name: str, flag: str, available: Iterable[str], where: object) -> UserError:
    """Returns the error for a column that is not in the table, with the nearest name that is."""
    available = list(available)
    near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(available[:8])}"
    return UserError(f"{flag}: column {name} is not in {where}; {hint}")
