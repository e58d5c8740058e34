"""One shard of a store from the rows that were spilled for it."""

from concurrent.futures import ThreadPoolExecutor
import errno
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.data.buffers import RowPages
from mean_jax.data.direct import open_direct, write
from mean_jax.data.places import Codes
from mean_jax.data.spill import read_keys, read_rows, remove
from mean_jax.data.stability import Occupancy, Reference
from mean_jax.data.store import ID_COLUMN, Shard
from mean_jax.fileio import file_sha256, naming
from mean_jax.types import RowLayout

_PACK_BYTES = 1 << 19  # of float32 rows at a time: they are in the second cache when they are read again
_MAX_FLOAT16 = np.float32(np.finfo(np.float16).max)


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


def _pack(layout: RowLayout, rows_BxW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of the float32 layout in the given one, where they stood, and `num_clipped` of them."""
    clipped_C = np.zeros(layout.num_numeric, np.int64)
    if layout.numeric_type == "float32":
        return rows_BxW, clipped_C
    numeric_end, labels_start = layout.num_numeric, rows_BxW.shape[1] - layout.num_labels
    packed_BxW = rows_BxW.reshape(-1)[: len(rows_BxW) * layout.num_words].reshape(-1, layout.num_words)
    block_rows = max(1, _PACK_BYTES // (4 * rows_BxW.shape[1]))
    for start in range(0, len(rows_BxW), block_rows):
        words_BxW = rows_BxW[start : start + block_rows]
        clipped_C += num_clipped(layout, words_BxW[:, :numeric_end])
        codes_BxD = words_BxW[:, numeric_end:labels_start].view(np.int32)
        # A packed row is no longer than it was: what it is written over has been packed before.
        packed_BxW[start : start + block_rows] = layout.pack(
            words_BxW[:, :numeric_end], codes_BxD, words_BxW[:, labels_start:]
        )
    return packed_BxW, clipped_C


def _write_rows(path: Path, rows_BxW: np.ndarray) -> str:
    """Writes rows, which begin with a page, and returns their SHA-256."""
    with naming(path), open_direct(path, "wb") as file, ThreadPoolExecutor(1) as beside:
        writing = beside.submit(write, file, rows_BxW)
        digest = hashlib.sha256(rows_BxW.data)
        writing.result()
    return digest.hexdigest()


def sort_shard(
    folder: Path,
    name: str,
    num_rows: int,
    room: RowPages,
    schema: pa.Schema,
    layout: RowLayout,
    output: Path,
    occupancy: tuple[Reference, int] | None = None,
) -> tuple[Shard, np.ndarray, Occupancy | None]:
    """Writes a shard in hash order, not yet to the disk, and removes its spill; memory holds the shard once.

    Args:
      folder: of the spill.
      name: the shard's name.
      num_rows: that were spilled for it.
      room: for the rows that were spilled, in float32; what stands there is overwritten.
      schema: of the spill.
      layout: of the store's rows.
      output: folder of the finished shard.
      occupancy: count every n-th row in the bins of a reference, given as (reference, n).

    Returns:
      The shard's entry of the manifest, per column [C] how many values were clipped, and the counts if they were asked
      for.

    Raises:
      OSError: of the disk, or not all that was spilled is there.
    """
    num_words = layout.as_float32.num_words
    keys = read_keys(folder, name, schema, 4 * num_words)
    if len(keys.hashes) != num_rows:
        raise OSError(errno.EIO, "cut short", str(folder / name))
    order_B = np.lexsort((keys.positions, keys.hashes))
    place_B = np.empty_like(order_B)
    place_B[order_B] = np.arange(num_rows)
    sorted_BxW = room.rows(num_rows)
    codes: dict[str, Codes] = {}  # of one process, as its rows come together
    for piece, rows_PxW in read_rows(folder, name, keys.pieces, num_words):
        if layout.num_categorical:  # the rows of a piece are of one batch
            if piece.process not in codes:
                codes = {piece.process: Codes(folder, piece.process)}
            codes_PxD = rows_PxW[:, layout.num_numeric : layout.num_numeric + layout.num_categorical].view(np.int32)
            codes_PxD[:] = codes[piece.process].look_up(int(keys.positions[piece.begin]), codes_PxD)
        sorted_BxW[place_B[piece.begin : piece.end]] = rows_PxW
    remove(folder, name)  # before the shard is written: the disk holds it once
    counts = None
    if occupancy is not None:
        reference, stride = occupancy
        counts = Occupancy(reference)
        counts.update(layout.as_float32, sorted_BxW[::stride])
    stored_BxW, clipped_C = _pack(layout, sorted_BxW)
    files = (f"{name}.bin", f"{name}-ids.parquet")
    rows_sha256 = _write_rows(output / files[0], stored_BxW)
    with naming(output / files[1]):
        pq.write_table(pa.table({ID_COLUMN: keys.ids.take(pa.array(order_B))}), output / files[1])
    return Shard(*files, num_rows, rows_sha256, file_sha256(output / files[1])), clipped_C, counts
