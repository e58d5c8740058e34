"""Finding the files of a user's input and telling Parquet from CSV by their content."""

import glob
from pathlib import Path

from mean_jax.errors import UserError

PARQUET_SUFFIXES = (".parquet", ".pq")
CSV_SUFFIXES = (".csv", ".csv.gz")
_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"
_SNIFF_BYTES = 1 << 16


def find_files(path: str, flag: str) -> list[Path]:
    """Returns one file, every data file below a folder, or the matches of a glob, sorted.

    Args:
      path: what the user gave.
      flag: the flag that it came from, for error lines.

    Raises:
      UserError: there is nothing.
    """
    if path and Path(path).is_file():
        return [Path(path)]
    if path and Path(path).is_dir():
        files = [file for file in sorted(Path(path).rglob("*")) if _is_data_file(file.relative_to(path), file)]
        if not files:
            raise UserError(f"{flag}: folder {path} holds no .parquet or .csv file")
        return files
    files = sorted(Path(match) for match in glob.glob(path, recursive=True) if Path(match).is_file())
    if not files:
        raise UserError(f"{flag}: {path} does not exist; give a Parquet or CSV file, a folder or a glob")
    return files


def _is_data_file(relative: Path, file: Path) -> bool:
    """Leaves out what programs keep beside their parts: _SUCCESS, .crc, temporary folders."""
    is_hidden = any(part[0] in "._" for part in relative.parts)
    return not is_hidden and file.name.endswith(PARQUET_SUFFIXES + CSV_SUFFIXES) and file.is_file()


def is_csv(file: Path, flag: str) -> bool:
    """Tells a CSV from a Parquet file by its first bytes.

    Raises:
      UserError: an empty file, a .parquet file that is none, or binary content of another kind.
    """
    with open(file, "rb") as content:
        start = content.read(_SNIFF_BYTES)
    if not start:
        raise UserError(f"{flag}: {file} is empty; remove it or give a table with rows")
    if start.startswith(_PARQUET_MAGIC):
        return False
    if file.name.endswith(PARQUET_SUFFIXES):
        raise UserError(f"{flag}: {file} is not a Parquet file, whatever its name says; write it again")
    is_zipped_csv = file.name.endswith(".gz") and start.startswith(_GZIP_MAGIC)
    if not file.name.endswith(CSV_SUFFIXES) or (b"\0" in start and not is_zipped_csv):
        raise UserError(f"{flag}: {file} is neither Parquet nor CSV; export the table as .parquet or .csv")
    return True
