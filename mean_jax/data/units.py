"""The units of work that an input is divided into: they depend on its files alone, never on who does the work.

A unit is about 65,536 rows: runs of row groups of Parquet files, small files together; CSV files cannot be entered in
the middle and stay whole.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.data.tables import Rows, TableSource
from mean_jax.errors import UserError
from mean_jax.inputs import FileStamp

UNIT_ROWS = 1 << 16
UNIT_CSV_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 16  # read ahead of each column, so that memory does not grow with the row groups


@functools.lru_cache(maxsize=1)  # units come in the order of the files
def _footer(file: Path, stamp: FileStamp) -> pq.FileMetaData:
    """Returns the metadata of a Parquet file as it was when it was stamped."""
    metadata = pq.read_metadata(file)
    stamp.require(file)
    return metadata


@dataclasses.dataclass(frozen=True)
class Piece:
    """A file, or some row groups of it."""

    source: TableSource  # of this file alone
    row_groups: tuple[int, ...] | None  # None: all of a CSV file
    first_row: int  # within the file

    @property
    def file(self) -> Path:
        return self.source.files[0]

    @property
    def stamp(self) -> FileStamp:
        return self.source.stamps[0]

    def rows(self, columns: Iterable[str], batch_rows: int) -> Iterator[Rows]:
        """Yields the piece's rows with the named columns; see `TableSource.rows` for the errors."""
        if self.row_groups is None:
            yield from self.source.rows(columns)
            return
        names, row = list(columns), self.first_row
        schema = pa.schema([self.source.schema.field(name) for name in names])
        self.stamp.require(self.file)
        try:
            metadata = _footer(self.file, self.stamp)
            with pq.ParquetFile(self.file, metadata=metadata, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet:
                groups, is_shared = list(self.row_groups), pa.cpu_count() > 1
                for batch in parquet.iter_batches(batch_rows, groups, names, use_threads=is_shared):
                    batch = batch.select(names)
                    if not batch.schema.equals(schema):  # a cast to the same types costs a tenth of the decoding
                        batch = batch.cast(schema, safe=False)
                    yield Rows(batch, self.file, row)
                    row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            self.stamp.require(self.file)  # a file that is being written looks like a damaged one
            raise UserError(f"{self.file}: cannot be read, mend or replace it: {error}") from error
        self.stamp.require(self.file)


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one worker reads at a time."""

    index: int  # results are put together in this order
    pieces: tuple[Piece, ...]
    num_rows: int | None  # None where only reading tells
    batch_rows: int  # read at a time; CSV files come as they are parsed

    def rows(self, columns: Iterable[str]) -> Iterator[Rows]:
        """Yields the unit's rows in order."""
        names = list(columns)
        for piece in self.pieces:
            yield from piece.rows(names, self.batch_rows)


def _pieces(source: TableSource) -> Iterator[tuple[Piece, int | None, float]]:
    """Yields every piece with its rows, if known, and the share of a unit that it fills."""
    for file, stamp in zip(source.files, source.stamps, strict=True):
        alone = dataclasses.replace(source, files=(file,), stamps=(stamp,))
        if source.is_csv:
            yield Piece(alone, None, 0), None, stamp.num_bytes / UNIT_CSV_BYTES
            continue
        try:
            metadata = _footer(file, stamp)
        except (pa.ArrowException, OSError) as error:
            stamp.require(file)
            raise UserError(f"{file}: cannot be read, mend or replace it: {error}") from error
        first_row = 0
        for group in range(metadata.num_row_groups):
            num_rows = metadata.row_group(group).num_rows
            yield Piece(alone, (group,), first_row), num_rows, num_rows / UNIT_ROWS
            first_row += num_rows


def split_units(source: TableSource, batch_rows: int) -> list[Unit]:
    """Returns the units of the input in the order of its rows; none if no file has a row group.

    Args:
      source: the input.
      batch_rows: of a Parquet file, read at a time.

    Raises:
      UserError: the footer of a Parquet file cannot be read.
    """
    units: list[Unit] = []
    pieces: list[Piece] = []
    rows: list[int | None] = []
    filled = 0.0

    def close() -> None:
        known = [count for count in rows if count is not None]
        num_rows = sum(known) if len(known) == len(rows) else None
        units.append(Unit(len(units), tuple(pieces), num_rows, batch_rows))
        pieces.clear()
        rows.clear()

    for piece, num_rows, share in _pieces(source):
        if pieces and filled + share > 1:
            close()
            filled = 0.0
        last = pieces[-1] if pieces else None
        if last is not None and last.file == piece.file and last.row_groups and piece.row_groups:
            pieces[-1] = dataclasses.replace(last, row_groups=last.row_groups + piece.row_groups)
        else:
            pieces.append(piece)
        rows.append(num_rows)
        filled += share
    if pieces:
        close()
    return units
