"""Reading customer tables: a Parquet or CSV file, a folder or a glob, as a stream of record batches.

The columns of a CSV file are streamed as text, so that no type is guessed from its first rows and an error can name the
row; only ids become integers, where all of them are written as integers are (007 is not). Parquet files of one input
may differ in the order of their columns and in types that go together: each batch is cast to the schema of the whole.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import difflib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mean_jax import csv_faults
from mean_jax.data.unify import is_text, unify_schemas
from mean_jax.errors import UserError
from mean_jax.inputs import FileStamp, find_files, is_csv
from mean_jax.log import LOGGER

ROWS_PER_BATCH = 16384
# Read ahead of each Parquet column. Not mapped: a file that is cut short while it is mapped kills the process.
_BUFFER_BYTES = 1 << 16
_CSV_LAYOUT = pa_csv.ParseOptions(newlines_in_values=True)
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


@dataclasses.dataclass(frozen=True)
class TableSource:
    """The files of one input, read as one schema."""

    files: tuple[Path, ...]
    stamps: tuple[FileStamp, ...]  # of the files when they were opened
    is_csv: bool
    schema: pa.Schema  # of a CSV file: text where no type was asked for
    column_types: Mapping[str, pa.DataType]  # that the columns of a CSV file are read as: text, or int64 ids

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[Rows]:
        """Yields the rows in file order, with only the named columns if given; no batch is empty.

        Raises:
          UserError: a file is damaged, gone or not the one that was opened; the line names it.
        """
        names = self.schema.names if columns is None else list(columns)
        for file, stamp in zip(self.files, self.stamps, strict=True):
            stamp.require(file)
            first_row = 0
            try:
                for batch in self._batches(file, names):
                    if batch.num_rows:
                        yield Rows(batch, file, first_row)
                    first_row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                stamp.require(file)  # a file that is being written looks like a damaged one
                raise _unreadable(file, self.is_csv, error) from error
            stamp.require(file)
            if self.is_csv and (fault := csv_faults.unclosed_quote(file, stamp, first_row)):
                raise UserError(f"{file} {fault}")

    def _batches(self, file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if self.is_csv:
            convert = pa_csv.ConvertOptions(
                include_columns=columns, column_types=self.column_types, strings_can_be_null=True
            )
            with pa_csv.open_csv(file, parse_options=_CSV_LAYOUT, convert_options=convert) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                        yield batch.slice(start, ROWS_PER_BATCH)
        else:
            schema = pa.schema([self.schema.field(name) for name in columns])
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet:
                for batch in parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                    yield batch.cast(schema, safe=False)  # integers beside floats may be rounded


def _unreadable(file: Path, is_csv_file: bool, error: Exception) -> UserError:
    """Returns the error of a file that Arrow gave up on: for CSV with the line at fault, if one is found."""
    fault = csv_faults.find_fault(file) if is_csv_file else None
    return UserError(f"{file} {fault}" if fault else f"{file}: cannot be read, mend or replace it: {error}")


def without_views(table: pa.Schema) -> pa.Schema:
    """Returns the schema with large strings for string views (as Polars gives them), which few kernels know."""

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_dictionary(kind):
            return pa.dictionary(kind.index_type, plain(kind.value_type), kind.ordered)
        return pa.large_string() if pa.types.is_string_view(kind) else kind

    return pa.schema([field.with_type(plain(field.type)) for field in table])


def _file_schema(file: Path, is_csv_file: bool) -> pa.Schema:
    if is_csv_file and (mark := csv_faults.other_separator(file)):
        raise UserError(f"{file}: seems to be separated by {mark!r}; write it with commas between the columns")
    try:
        if is_csv_file:
            with pa_csv.open_csv(file, parse_options=_CSV_LAYOUT) as reader:
                schema = pa.schema([(name, pa.string()) for name in reader.schema.names])
        else:
            schema = without_views(pq.read_schema(file))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, is_csv_file, error) from error
    if "" in schema.names:  # as of the row numbers that pandas writes unless it is told not to
        raise UserError(
            f"{file}: column {1 + schema.names.index('')} has no name; name it or write the file without it"
        )
    for name, count in Counter(schema.names).items():
        if count > 1:
            raise UserError(f"{file}: column {name} stands there {count} times; rename one")
    return schema


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
      UserError: nothing there, an empty or unreadable file, a column without a name or a name twice, a CSV file that
        is not separated by commas, or files whose columns do not go together.
    """
    files = find_files(path, flag)
    stamps = tuple(FileStamp.of(file) for file in files)
    is_csv_file = is_csv(files[0], flag)
    for file in files[1:]:
        if is_csv(file, flag) != is_csv_file:
            raise UserError(f"{flag}: {files[0]} and {file} are of two formats; give Parquet or CSV files, not both")
    schema = unify_schemas(files, lambda file: _file_schema(file, is_csv_file), flag, id_column)
    source = TableSource(
        tuple(files), stamps, is_csv_file, schema, {name: pa.string() for name in schema.names if is_csv_file}
    )
    if not is_csv_file or id_column is None or id_column not in schema.names:
        return source
    return _typed(source, id_column, all_types)


def is_utf8(texts: pa.Array) -> bool:
    """Tells whether an array of texts is UTF-8, which Arrow reads from Parquet without a look at it."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def require_utf8(column: pa.Array, name: str, place: Callable[[int], str]) -> None:
    """Raises UserError if the text of a row is not UTF-8.

    Args:
      column: of one record batch, of any type.
      name: the column's name.
      place: names a row of the batch.
    """
    texts = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    if not is_text(texts.type) or is_utf8(texts):
        return
    for row in range(len(texts)):
        try:
            texts[row].as_py()
        except UnicodeDecodeError as error:
            what = f"{place(row)}: column {name} is {error.object!r}"
            raise UserError(f"{what}, not UTF-8; write text as UTF-8") from None
    texts.validate(full=True)  # raises: Arrow's own memory is broken


def missing_column(name: str, flag: str, available: Iterable[str], where: object, user: str = "") -> UserError:
    """Returns the error for a column that is not in the table, with the nearest name that is.

    Args:
      name: of the column.
      flag: that named the column or the table; empty for a table that no flag named.
      available: the table's columns.
      where: the table.
      user: what needs the column, where no flag named it.
    """
    available = list(available)
    subject = f"column {name}, which {user} needs," if user else f"column {name}"
    near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(available[:8])}"
    return UserError(f"{f'{flag}: ' if flag else ''}{subject} is not in {where}; {hint}")
