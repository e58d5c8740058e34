"""Rows on their way to the shards that they belong to, on disk in the order in which they were read.

A process spills the rows of a shard to a file of its own, in the store's float32 layout but with the places of texts
instead of codes (see `places`), in pieces of whole pages that go around the system's cache; ids and what rows are
sorted by stand in a second file, in a message for each piece. A shard is the union of these files, sorted by a hash of
the ids, so that neither the input's order nor who did what shows.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
import errno
import os
from pathlib import Path
import sys
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mean_jax.data.buffers import RowPages
from mean_jax.data.direct import PAGE_BYTES, empty_pages, open_direct, pages, read, write
from mean_jax.fileio import naming

_NUM_WRITERS = 4  # of a process: pieces under way at once
_READ_BYTES = 1 << 22  # at a time: what is read is still in the outer caches when it is sorted


def spill_schema(id_type: pa.DataType) -> pa.Schema:
    """Returns the schema of the messages: hash to sort by, position in the input where hashes are equal, id."""
    return pa.schema([("hash", pa.uint64()), ("position", pa.uint64()), ("id", id_type)])


class Spiller:
    """Appends the rows of a process to the shards, beside what else the process does."""

    def __init__(self, folder: Path, names: Sequence[str], schema: pa.Schema, num_words: int) -> None:
        """Writes nothing yet.

        Args:
          folder: of the spill.
          names: of the shards.
          schema: of the messages.
          num_words: W, of a row.
        """
        self._folder = folder
        self._names = names
        self._schema = schema
        self._row_bytes = 4 * num_words
        self._pages = RowPages(num_words)
        self._writers = ThreadPoolExecutor(_NUM_WRITERS)
        self._writing: list[Future[None]] = []

    def room(self, num_rows: int) -> np.ndarray:
        """Returns memory for rows, words_BxW float32, once those of the last call are written."""
        self.finish()
        return self._pages.rows(num_rows)

    def append(self, shard: int, part: slice, hashes_P: np.ndarray, positions_P: np.ndarray, ids_P: pa.Array) -> None:
        """Has some rows of the room written; each shard gets one part of it."""
        columns = [pa.array(hashes_P), pa.array(positions_P), ids_P]
        batch = pa.record_batch(columns, schema=self._schema)
        self._writing.append(self._writers.submit(self._write, self._names[shard], part, batch))

    def finish(self) -> None:
        """Waits until all is written, or raises why it could not be, then with nothing under way."""
        wait(self._writing)
        futures, self._writing = self._writing, []
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise errors[0]

    def stop(self) -> None:
        """Begins no more pieces and waits for those under way: nothing is written from then on."""
        self._writers.shutdown(cancel_futures=True)

    def _write(self, name: str, part: slice, batch: pa.RecordBatch) -> None:
        start, end = part.start * self._row_bytes, part.stop * self._row_bytes
        head = start % PAGE_BYTES  # the first page may begin with other rows, and the last one end with such
        paths = _paths(self._folder, name, str(os.getpid()))
        # Opened for each piece: open files do not grow with the shards.
        with naming(paths.rows), open_direct(paths.rows, "ab") as file:
            write(file, self._pages.memory[start - head : pages(end)])
        with naming(paths.keys), open(paths.keys, "ab") as file:
            file.write(np.int64(head).data)
            file.write(batch.serialize())


class _Paths(NamedTuple):
    rows: Path
    keys: Path


def _paths(folder: Path, name: str, process: str) -> _Paths:
    return _Paths(folder / f"{name}.{process}.rows", folder / f"{name}.{process}.keys")


class Piece(NamedTuple):
    """Rows that were appended together, or some of them."""

    process: str
    begin: int  # number of its first row in the shard as it was spilled
    end: int
    first_byte: int  # in the file of the process
    end_byte: int


class Keys(NamedTuple):
    """What is known of a shard's rows before they are read, in the order in which they were spilled."""

    hashes: np.ndarray
    positions: np.ndarray
    ids: pa.Array
    pieces: list[Piece]


def _read_messages(path: Path, schema: pa.Schema) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the bytes before the rows of a piece in their first page, and the piece's keys."""
    size = path.stat().st_size
    with naming(path), pa.OSFile(str(path)) as file:  # not mapped: the pages would count as this process's memory
        while file.tell() < size:
            try:
                head = int.from_bytes(file.read(8), sys.byteorder)
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)
            except (pa.ArrowException, EOFError) as error:
                raise OSError(errno.EIO, f"cut short: {error}") from error
            yield head, batch


def read_keys(folder: Path, name: str, schema: pa.Schema, row_bytes: int) -> Keys:
    """Returns the keys of the rows that all processes have spilled for a shard."""
    batches: list[pa.RecordBatch] = []
    pieces: list[Piece] = []
    step = max(1, _READ_BYTES // row_bytes)
    begin = 0
    for path in sorted(folder.glob(f"{name}.*.keys")):
        process, page = path.suffixes[-2][1:], 0
        for head, batch in _read_messages(path, schema):
            first_byte = page + head
            batches.append(batch)
            for start in range(0, len(batch), step):
                count = min(step, len(batch) - start)
                end_byte = first_byte + count * row_bytes
                pieces.append(Piece(process, begin, begin + count, first_byte, end_byte))
                begin, first_byte = begin + count, end_byte
            page = pages(first_byte)
    table = pa.Table.from_batches(batches, schema)
    hashes, positions = (table.column(column).to_numpy() for column in ("hash", "position"))
    return Keys(hashes, positions, table.column("id").combine_chunks(), pieces)


def _runs(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Yields pieces that are read together."""
    run: list[Piece] = []
    for piece in pieces:
        if run and (piece.process != run[0].process or piece.end_byte - run[0].first_byte > _READ_BYTES):
            yield run
            run = []
        run.append(piece)
    yield run


def read_rows(folder: Path, name: str, pieces: Sequence[Piece], num_words: int) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yields every piece with its words [P, W] float32, to be used before the next; others are read meanwhile."""
    runs = list(_runs(pieces))
    room_bytes = max(run[-1].end_byte - run[0].first_byte for run in runs) + PAGE_BYTES
    rooms = [empty_pages(room_bytes) for _ in runs[:2]]

    def read_run(index: int) -> np.ndarray:
        first, last = runs[index][0], runs[index][-1]
        num_bytes = last.end_byte - first.first_byte
        path = _paths(folder, name, first.process).rows
        with naming(path), open_direct(path, "rb") as file:
            found = read(file, first.first_byte, num_bytes, rooms[index % 2])
            if len(found) < num_bytes:
                raise OSError(errno.EIO, "cut short")
        return found

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read_run, 0)
        for index, run in enumerate(runs):
            found = reading.result()
            if index + 1 < len(runs):
                reading = reader.submit(read_run, index + 1)
            for piece in run:
                start, end = (byte - run[0].first_byte for byte in (piece.first_byte, piece.end_byte))
                yield piece, found[start:end].view(np.float32).reshape(-1, num_words)


def remove(folder: Path, name: str) -> None:
    """Removes what was spilled for a shard."""
    for path in folder.glob(f"{name}.*"):
        path.unlink()
