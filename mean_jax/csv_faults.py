"""What is wrong with a CSV file, and on which line: a second, slow reading of a file that could not be read.

Lines count from 1, the header among them; a row whose quoted values hold line breaks is named by its first line.
"""

from collections.abc import Callable
import csv
import functools
import gzip
from pathlib import Path
from typing import Any, TextIO
import zlib

from mean_jax.inputs import FileStamp

_CHUNK_BYTES = 1 << 20
_MAX_HEADER = 1 << 16  # characters; the csv module refuses values of twice as many
_OTHER_SEPARATORS = (";", "\t", "|")
_DAMAGED_ARCHIVE = (OSError, EOFError, zlib.error)
_UNBALANCED = "a quoted value that begins there is not closed; close it, or double a quote that belongs to the value"


def _opener(file: Path) -> Callable[..., Any]:
    return gzip.open if file.name.endswith(".gz") else open


def _open_text(file: Path) -> TextIO:
    """Opens the text behind a byte-order mark; bytes that are not UTF-8 become lone surrogates."""
    return _opener(file)(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def other_separator(file: Path) -> str | None:
    """Returns the character that separates the columns if the header has one column by commas and more by it."""
    try:
        with _open_text(file) as text:
            header = text.readline(_MAX_HEADER)
    except _DAMAGED_ARCHIVE:
        return None  # its reader will say so
    if len(next(csv.reader([header]), [])) == 1:
        return next((mark for mark in _OTHER_SEPARATORS if len(next(csv.reader([header], delimiter=mark))) > 1), None)
    return None


def find_fault(file: Path) -> str | None:
    """Returns 'line N: what is wrong; the mend' for the first broken row, or None if every row is whole.

    Broken is a row of more or fewer fields than the header, one that is not UTF-8, and one with a quote that is never
    closed or closed within another row. Memory holds one row.
    """
    try:
        with _open_text(file) as text:
            return _first_fault(text)
    except _DAMAGED_ARCHIVE:
        return None


def _first_fault(text: TextIO) -> str | None:
    reader = csv.reader(text, strict=True)
    num_columns = 0
    while True:
        first_line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            if reader.line_num > first_line or "end of data" in str(error):
                return f"line {first_line}: {_UNBALANCED}"
            continue  # a quote inside a value on one line: Arrow takes it as it stands
        if row is None:
            return None
        if not "".join(row).isascii() and _is_undecodable(row):
            return f"line {first_line}: is not UTF-8; write the file in UTF-8"
        num_columns = num_columns or len(row)
        if row and len(row) != num_columns:
            return (
                f"line {first_line}: {len(row)} field{'s' * (len(row) > 1)}, the header has {num_columns}; "
                "mend the line, a comma that belongs to a value needs quotes around the value"
            )


def _is_undecodable(row: list[str]) -> bool:
    return any("\udc80" <= letter <= "\udcff" for value in row for letter in value)


@functools.lru_cache(maxsize=1024)
def unclosed_quote(file: Path, stamp: FileStamp, num_rows: int) -> str | None:
    """Returns the fault of a file with quotes whose rows are fewer than its lines, if it has one, else None.

    Arrow does not complain of a quote that is closed by that of a later row, or never: it takes the rows between for
    one value. A value may hold line breaks, so only a second reading tells.

    Args:
      file: a CSV file.
      stamp: of the file as it is now; a file is read once however often it is asked for.
      num_rows: that Arrow read of it, without the header.
    """
    num_quotes = num_lines = 0
    last = b""
    try:
        with _opener(file)(file, "rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                num_quotes += chunk.count(b'"')
                num_lines += chunk.count(b"\n")
                last = chunk[-1:]
    except _DAMAGED_ARCHIVE:
        return None
    num_lines += last != b"\n"
    return find_fault(file) if num_quotes % 2 or (num_quotes and num_lines != 1 + num_rows) else None
