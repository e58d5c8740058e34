"""The files of a user's input: found, told apart by their content, and watched for changes while they are read."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class FileStamp:
    """What tells that a file is still the one that was opened."""

    num_bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> "FileStamp":
        """Raises UserError if the file is gone."""
        try:
            stat = file.stat()
        except FileNotFoundError:
            raise UserError(f"{file}: vanished while it was read; let its writer finish and run again") from None
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)

    def require(self, file: Path) -> None:
        """Raises UserError if the file is gone or was written since the stamp was taken."""
        now = self.of(file)
        if now != self:
            sizes = f" from {self.num_bytes} to {now.num_bytes} bytes" if now.num_bytes != self.num_bytes else ""
            raise UserError(f"{file}: changed{sizes} while it was read; let its writer finish and run again")
