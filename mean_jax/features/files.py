"""The files of a transaction log: found, recognised by their content, and checked before any query runs."""

from collections.abc import Iterator
import contextlib
import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mean_jax.errors import UserError
from mean_jax.inputs import find_files, is_csv

FLAG = "--transactions"


@dataclasses.dataclass(frozen=True)
class LogFiles:
    """The files of one log, all Parquet or all CSV, and the path that the user gave."""

    path: str
    files: tuple[Path, ...]
    is_csv: bool


def open_log(path: str) -> LogFiles:
    """Returns the log's files: one file, every data file below a folder, or the matches of a glob.

    Raises:
      UserError: nothing there, an empty file, a file neither Parquet nor CSV, both kinds together, or a column name
        that stands twice in a file (names that differ by case only count as the same, as in SQL).
    """
    files = find_files(path, FLAG)
    kinds = {file: is_csv(file, FLAG) for file in files}
    if len(set(kinds.values())) > 1:
        raise UserError(f"{FLAG}: {path} holds both Parquet and CSV files; give one kind")
    for file in files:
        with _reading(file):
            names = pa_csv.open_csv(file).schema.names if kinds[file] else pq.read_schema(file).names
        _check_names(file, names)
    return LogFiles(path, tuple(files), kinds[files[0]])


def csv_to_parquet(file: Path, target: Path) -> None:
    """Copies a CSV file into a Parquet file, every column as text; an empty field is null.

    Raises:
      UserError: a row with too few or too many fields, or text that is not UTF-8.
    """
    with _reading(file):
        names = pa_csv.open_csv(file).schema.names
        as_text = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        with (
            pa_csv.open_csv(file, convert_options=as_text) as reader,
            pq.ParquetWriter(target, reader.schema) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns Arrow's errors while reading `file` into a UserError."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's or the permissions' fault, not the content's
        raise UserError(f"{FLAG}: {file} cannot be read as Parquet or CSV: {error}; mend or remove it") from error


def _check_names(file: Path, names: list[str]) -> None:
    lowered = [name.lower() for name in names]
    for name in names:
        if lowered.count(name.lower()) > 1:
            raise UserError(f"{FLAG}: column {name} stands more than once in {file} (case ignored); rename one")
