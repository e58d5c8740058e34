"""The shuffle of prepare on disk: rows are appended to the shard they belong to, then each shard is sorted.

A spill file alternates between Arrow messages of ids and what they are sorted by, and the rows that go with them, as
they are, in the store's float32 layout but with the places of texts instead of codes (see `places`). Every process
appends to files of its own; a shard is the union of them, sorted by a hash of the ids, so that neither the input's
order nor who did what shows.
"""

from collections.abc import Iterator
import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.data.places import Codes
from mean_jax.data.stability import Occupancy, Reference
from mean_jax.data.store import ID_COLUMN, Shard
from mean_jax.fileio import file_sha256, naming
from mean_jax.types import RowLayout

# Written at a time: what is gathered is still in the second cache when it is hashed and written.
_BLOCK_BYTES = 1 << 19
_MAX_FLOAT16 = np.float32(np.finfo(np.float16).max)


def spill_schema(id_type: pa.DataType) -> pa.Schema:
    """Returns the schema of the messages: hash to sort by, position in the input where hashes are equal, id."""
    return pa.schema([("hash", pa.uint64()), ("position", pa.uint64()), ("id", id_type)])


def append_rows(
    folder: Path,
    name: str,
    schema: pa.Schema,
    hashes_B: np.ndarray,
    positions_B: np.ndarray,
    ids: pa.Array,
    words_BxW: np.ndarray,
) -> None:
    """Appends rows, contiguous in memory, to this process's spill of a shard."""
    batch = pa.record_batch([pa.array(hashes_B), pa.array(positions_B), ids], schema=schema)
    path = folder / f"{name}.{os.getpid()}"
    # Opened for each append: open files do not grow with the shards.
    with naming(path), open(path, "ab") as file:
        file.write(batch.serialize())
        file.write(words_BxW.data)


def _read(folder: Path, name: str, schema: pa.Schema, rows_BxW: np.ndarray) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yields (process, message) of a shard and fills `rows_BxW` with the rows that go with them, in turn."""
    start = 0
    for path in sorted(folder.glob(f"{name}.*")):
        size = path.stat().st_size
        with pa.OSFile(str(path)) as file:  # not mapped: the pages would count as this process's memory
            while file.tell() < size:
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)
                part_BxW = rows_BxW[start : start + len(batch)]
                if file.readinto(part_BxW.data) != part_BxW.nbytes:
                    raise OSError(errno.EIO, "cut short", str(path))
                yield path.suffix[1:], batch
                start += len(batch)


def _remove(folder: Path, name: str) -> None:
    for path in folder.glob(f"{name}.*"):
        path.unlink()


def num_clipped(layout: RowLayout, numeric_BxC: np.ndarray) -> np.ndarray:
    """Returns, per column [C], how many float32 values the layout cannot hold: they become its largest number."""
    if layout.numeric_type != "float16":
        return np.zeros(layout.num_numeric, np.int64)
    with np.errstate(over="ignore"):  # a limit beyond float32 clips nothing
        limits_C = np.ldexp(_MAX_FLOAT16, np.array(layout.exponents, np.int32))
    is_clipped_BxC = np.abs(numeric_BxC) > limits_C
    if not is_clipped_BxC.any():  # as a rule, and to count by column takes longer
        return np.zeros(layout.num_numeric, np.int64)
    return np.count_nonzero(is_clipped_BxC, axis=0)


def take_rows(rows_BxW: np.ndarray, order_B: np.ndarray, out_BxW: np.ndarray) -> np.ndarray:
    """Returns the rows of the given indices, which are in range, in the first rows of `out_BxW`."""
    # Any mode but "raise" lets NumPy write into `out` unbuffered.
    return np.take(rows_BxW, order_B, axis=0, out=out_BxW[: len(order_B)], mode="clip")


def _write_rows(path: Path, layout: RowLayout, rows_BxW: np.ndarray, order_B: np.ndarray) -> tuple[str, np.ndarray]:
    """Writes rows of the float32 layout in the given order and the given layout; returns SHA-256 and `num_clipped`."""
    digest = hashlib.sha256()
    clipped_C = np.zeros(layout.num_numeric, np.int64)
    num_words = rows_BxW.shape[1]
    numeric_end, labels_start = layout.num_numeric, num_words - layout.num_labels
    block_BxW = np.empty((max(1, _BLOCK_BYTES // (4 * num_words)), num_words), np.float32)
    with naming(path), open(path, "wb") as file:
        for start in range(0, len(order_B), len(block_BxW)):
            words_BxW = take_rows(rows_BxW, order_B[start : start + len(block_BxW)], block_BxW)
            if layout.numeric_type != "float32":
                clipped_C += num_clipped(layout, words_BxW[:, :numeric_end])
                codes_BxD = words_BxW[:, numeric_end:labels_start].view(np.int32)
                words_BxW = layout.pack(words_BxW[:, :numeric_end], codes_BxD, words_BxW[:, labels_start:])
            digest.update(words_BxW.data)
            file.write(words_BxW.data)
    return digest.hexdigest(), clipped_C


def sort_shard(
    folder: Path,
    name: str,
    rows_BxW: np.ndarray,
    schema: pa.Schema,
    layout: RowLayout,
    output: Path,
    occupancy: tuple[Reference, int] | None = None,
) -> tuple[Shard, np.ndarray, Occupancy | None]:
    """Writes a shard in hash order, not yet to the disk, and removes its spill; memory holds the shard once.

    Args:
      folder: of the spill.
      name: the shard's name.
      rows_BxW: room for the rows that were spilled, in float32; what stands there is overwritten.
      schema: of the spill.
      layout: of the store's rows.
      output: folder of the finished shard.
      occupancy: count every n-th row in the bins of a reference, given as (reference, n).

    Returns:
      The shard's entry of the manifest, per column [C] how many values were clipped, and the counts if they were asked
      for.
    """
    num_rows = len(rows_BxW)
    hashes_B, positions_B = np.empty((2, num_rows), np.uint64)
    ids: list[pa.Array] = []
    start = 0
    codes: dict[str, Codes] = {}  # of each process
    codes_BxD = rows_BxW[:, layout.num_numeric : layout.num_numeric + layout.num_categorical].view(np.int32)
    for process, batch in _read(folder, name, schema, rows_BxW):
        part = slice(start, start + len(batch))
        hashes_B[part], positions_B[part] = batch.column("hash").to_numpy(), batch.column("position").to_numpy()
        if layout.num_categorical:  # the rows of a message are of one batch
            if process not in codes:
                codes = {process: Codes(folder, process)}
            codes_BxD[part] = codes[process].look_up(int(positions_B[start]), codes_BxD[part])
        ids.append(batch.column("id"))
        start += len(batch)
    _remove(folder, name)  # before the shard is written: the disk holds it once, and the system's pages are used again
    order_B = np.lexsort((positions_B, hashes_B))
    files = (f"{name}.bin", f"{name}-ids.parquet")
    rows_sha256, clipped_C = _write_rows(output / files[0], layout, rows_BxW, order_B)
    sorted_ids = pa.chunked_array(ids).combine_chunks().take(pa.array(order_B))
    with naming(output / files[1]):
        pq.write_table(pa.table({ID_COLUMN: sorted_ids}), output / files[1])
    counts = None
    if occupancy is not None:
        reference, stride = occupancy
        counts = Occupancy(reference)
        counts.update(layout.as_float32, rows_BxW[order_B[::stride]])
    return Shard(*files, num_rows, rows_sha256, file_sha256(output / files[1])), clipped_C, counts
