"""The user's copy of an official file: found in a folder, recognised by its content, streamed with named errors."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import csv
from pathlib import Path
import re
from typing import Any
import zipfile

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mean_jax.data.tables import missing_column, without_views
from mean_jax.errors import UserError

FLAG = "--source"
_BLOCK_BYTES = 1 << 22
_MEND = "give the publisher's file as it is"
_BAD_VALUE = re.compile(r"In CSV column #(\d+): Row #(\d+): CSV conversion error to (\S+): (.*)", re.DOTALL)
_BAD_ROW = re.compile(r"CSV parse error: Row #(\d+): (.*)", re.DOTALL)


def find_source(source: Path, *stems: str) -> Path:
    """Returns `source` if it is a file, else the file in that folder whose name up to the first dot is one of `stems`.

    Case and endings (.csv, .txt, .gz, .zip) do not matter; of several the first in alphabetical order is taken.

    Raises:
      UserError: there is no such file.
    """
    source = source.expanduser()
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{FLAG}: {source} does not exist; give the official file or the folder that holds it")
    found = [file for file in sorted(source.iterdir()) if file.name.lower().split(".")[0] in stems and file.is_file()]
    if not found:
        raise UserError(f"{FLAG}: folder {source} holds no file {' or '.join(stems)} (any ending, case ignored)")
    return found[0]


def is_parquet(file: Path) -> bool:
    return _starts_with(file, b"PAR1")


def read_parquet(file: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """Returns the named columns of a Parquet file, cast to the given types.

    Raises:
      UserError: the file is damaged or empty, a column is missing, or a value does not fit its type.
    """
    with _reading(file):
        names = pq.read_schema(file).names
        for name in columns:
            if name not in names:
                raise missing_column(name, FLAG, names, file)
        table = pq.read_table(file, columns=list(columns))
        table = table.cast(without_views(table.schema))
    if not table.num_rows:
        raise UserError(f"{FLAG}: {file} holds no rows; {_MEND}")
    for name, kind in columns.items():
        table = table.set_column(table.column_names.index(name), name, cast(table[name], kind, name, file))
    return table


def cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, file: Path) -> pa.ChunkedArray:
    """Returns the column of the file with another type; raises UserError for a value that does not fit."""
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise UserError(f"{FLAG}: {file} column {name}: {error}; {_MEND}") from error


def read_text(file: Path, columns: Mapping[str, pa.DataType], **options: Any) -> pa.Table:
    """Returns all of `stream_text`, which names the options."""
    return pa.Table.from_batches(stream_text(file, columns, **options), pa.schema(columns.items()))


def stream_text(
    file: Path,
    columns: Mapping[str, pa.DataType],
    *,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
    null_values: Sequence[str] = ("",),
) -> Iterator[pa.RecordBatch]:
    """Streams the named columns of a delimited text file, plain, gzipped or alone in a zip.

    Args:
      file: of which the first line is looked at before this returns.
      columns: names and types of the wanted columns, the order of the result's.
      names: of all columns where the file has no header line.
      delimiter: between fields.
      null_values: what a missing value is written as.

    Raises:
      UserError: the file cannot be unpacked, lacks a column or has no rows; on reading, a line with too many or too few
        fields or a value that does not fit its type. The line and column are named.
    """
    with _reading(file), _unpacked(file) as stream:
        start = stream.read(_BLOCK_BYTES)
    if start[257:262] == b"ustar":
        raise UserError(f"{FLAG}: {file} is a tar archive; unpack it and give the file in it")
    line, _, rest = start.partition(b"\n")
    found = next(csv.reader([line.decode("utf-8-sig", errors="replace").strip("\r")], delimiter=delimiter), [])
    if names is None:
        for name in columns:
            if name not in found:
                raise UserError(f"{missing_column(name, FLAG, found, f'line 1 of {file}')}; {_MEND}")
    elif len(found) != len(names):
        raise UserError(f"{FLAG}: {file} line 1 has {len(found)} fields, expected {len(names)}; {_MEND}")
    if names is None and not rest.strip():
        raise UserError(f"{FLAG}: {file} holds no rows; {_MEND}")
    return _text_batches(file, columns, names or found, names is None, delimiter, null_values)


def _text_batches(
    file: Path,
    columns: Mapping[str, pa.DataType],
    names: Sequence[str],
    has_header: bool,
    delimiter: str,
    null_values: Sequence[str],
) -> Iterator[pa.RecordBatch]:
    read = pa_csv.ReadOptions(
        block_size=_BLOCK_BYTES,
        column_names=None if has_header else list(names),
        use_threads=False,  # only then does Arrow count the lines, for its errors
    )
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns), column_types=columns, null_values=null_values, strings_can_be_null=True
    )
    # In Criteo's file, the one with tabs, a quote is a character as any other.
    parse = pa_csv.ParseOptions(delimiter=delimiter, quote_char='"' if delimiter == "," else False)
    with _reading(file, names), _unpacked(file) as stream:
        yield from pa_csv.open_csv(stream, read, parse, convert)


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[Any]:
    """Yields a binary stream of the text in the file."""
    if _starts_with(file, b"PK"):
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
            if len(members) != 1:
                raise UserError(
                    f"{FLAG}: {file} holds {len(members)} files, expected one; unpack it, or save a workbook as CSV"
                )
            with archive.open(members[0]) as stream:
                yield stream
        return
    compression = "gzip" if _starts_with(file, b"\x1f\x8b") else None
    with pa.input_stream(str(file), compression=compression) as stream:
        yield stream


def _starts_with(file: Path, magic: bytes) -> bool:
    with open(file, "rb") as content:
        return content.read(len(magic)) == magic


@contextlib.contextmanager
def _reading(file: Path, names: Sequence[str] = ()) -> Iterator[None]:
    """Words the errors of Arrow and zipfile while reading `file`, whose columns are `names`."""
    try:
        yield
    except (pa.ArrowException, zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's or the permissions' fault, not the content's
        text = str(error)
        if match := _BAD_VALUE.match(text):
            column, line, kind, what = match.groups()
            raise UserError(
                f"{FLAG}: {file} line {line} column {names[int(column)]}: {what} for {kind}; {_MEND}"
            ) from None
        if match := _BAD_ROW.match(text):
            raise UserError(f"{FLAG}: {file} line {match[1]}: {match[2][:200]}; {_MEND}") from None
        raise UserError(f"{FLAG}: {file} cannot be read: {text or type(error).__name__}; {_MEND}") from error
