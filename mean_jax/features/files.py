"""The files of a transaction log: found, recognised by their content, and checked before any query runs."""

from collections.abc import Iterator
import contextlib
import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mean_jax import csv_faults
from mean_jax.errors import UserError
from mean_jax.inputs import FileStamp, find_files, is_csv

FLAG = "--transactions"
_CSV_LAYOUT = pa_csv.ParseOptions(newlines_in_values=True)


@dataclasses.dataclass(frozen=True)
class LogPart:
    """Files of a log with the same columns of the same types.

    Attributes:
      files: at least one.
      empty: the columns that are of Arrow's null type: without any value, hence without a type.
    """

    files: tuple[Path, ...]
    empty: frozenset[str]


@dataclasses.dataclass(frozen=True)
class LogFiles:
    """The files of one log, all Parquet or all CSV.

    Attributes:
      path: what the user gave.
      parts: the files by schema.
      columns: names of all columns in order of appearance; names that differ by case only are one.
      is_csv: of which kind the files are.
      stamps: of each file before anything was read.
    """

    path: str
    parts: tuple[LogPart, ...]
    columns: tuple[str, ...]
    is_csv: bool
    stamps: dict[Path, FileStamp]

    def require_unchanged(self) -> None:
        """Raises UserError if a file is gone or was written since `open_log`: half of it may have been read."""
        for file, stamp in self.stamps.items():
            stamp.require(file)


def open_log(path: str) -> LogFiles:
    """Returns the log's files: one file, every data file below a folder, or the matches of a glob.

    Raises:
      UserError: nothing there, an empty file, a file neither Parquet nor CSV, both kinds together, a CSV file that is
        not separated by commas, a column without a name, or a column name that stands twice in a file (names that
        differ by case only count as the same, as in SQL).
    """
    files = find_files(path, FLAG)
    stamps = {file: FileStamp.of(file) for file in files}
    kinds = {file: is_csv(file, FLAG) for file in files}
    if len(set(kinds.values())) > 1:
        raise UserError(f"{FLAG}: {path} holds both Parquet and CSV files; give one kind")
    columns: dict[str, str] = {}
    parts: dict[str, LogPart] = {}
    for file in files:
        if kinds[file] and (mark := csv_faults.other_separator(file)):
            mend = "write it with commas between the columns"
            raise UserError(f"{FLAG}: {file} seems to be separated by {mark!r}; {mend}")
        with _reading(file, kinds[file]):
            # The text of a Parquet schema tells apart what is one type in Arrow, such as the two forms of nanoseconds.
            metadata = None if kinds[file] else pq.read_metadata(file)
            schema = _csv_schema(file) if metadata is None else metadata.schema.to_arrow_schema()
            key = f"{schema}{metadata and metadata.schema}"
        _check_names(file, schema.names)
        for name in schema.names:
            columns.setdefault(name.lower(), name)
        empty = frozenset(field.name for field in schema if pa.types.is_null(field.type))
        parts[key] = LogPart((*(parts[key].files if key in parts else ()), file), empty)
    return LogFiles(path, tuple(parts.values()), tuple(columns.values()), kinds[files[0]], stamps)


def parquet_parts(log: LogFiles, scratch: Path) -> Iterator[LogPart]:
    """Yields the log's parts as Parquet; CSV files are copied into `scratch`, every column as text, empty ones null.

    So there is one reader of CSV for every database, and no guess of a type from the first rows of a file.

    Raises:
      UserError: a line of a CSV file that is no row.
    """
    for number, part in enumerate(log.parts):
        if not log.is_csv:
            yield part
            continue
        targets = tuple(scratch / f"log-{number:05d}-{i:05d}.parquet" for i in range(len(part.files)))
        for file, target in zip(part.files, targets, strict=True):
            _csv_to_parquet(file, target, log.stamps[file])
        yield LogPart(targets, part.empty)


def _csv_to_parquet(file: Path, target: Path, stamp: FileStamp) -> None:
    as_text = pa_csv.ConvertOptions(
        column_types={name: pa.string() for name in _csv_schema(file).names},
        strings_can_be_null=True,  # of the same words as in prepare and score: empty, NA, NaN, null, ...
    )
    num_rows = 0
    with (
        _reading(file, is_text=True),
        pa_csv.open_csv(file, parse_options=_CSV_LAYOUT, convert_options=as_text) as reader,
        pq.ParquetWriter(target, reader.schema) as writer,
    ):
        for batch in reader:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    if fault := csv_faults.unclosed_quote(file, stamp, num_rows):
        raise UserError(f"{FLAG}: {file} {fault}")


def _csv_schema(file: Path) -> pa.Schema:
    with pa_csv.open_csv(file, parse_options=_CSV_LAYOUT) as reader:
        return pa.schema([(name, pa.string()) for name in reader.schema.names])


@contextlib.contextmanager
def _reading(file: Path, is_text: bool) -> Iterator[None]:
    """Turns Arrow's errors while reading `file` into a UserError."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's or the permissions' fault, not the content's
        fault = csv_faults.find_fault(file) if is_text else None
        if fault:
            raise UserError(f"{FLAG}: {file} {fault}") from error
        raise UserError(f"{FLAG}: {file} cannot be read as Parquet or CSV: {error}; mend or remove it") from error


def _check_names(file: Path, names: list[str]) -> None:
    if "" in names:  # as of the row numbers that pandas writes unless it is told not to
        place = 1 + names.index("")
        raise UserError(f"{FLAG}: column {place} of {file} has no name; name it or write the file without it")
    lowered = [name.lower() for name in names]
    for name in names:
        if lowered.count(name.lower()) > 1:
            raise UserError(f"{FLAG}: column {name} stands more than once in {file} (case ignored); rename one")
