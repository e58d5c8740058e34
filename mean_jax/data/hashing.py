"""A stable hash of customer ids, the same on every machine, for every batch size and row order."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
# Constants of the splitmix64 finaliser: FNV alone leaves the high bits of short ids poorly mixed.
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15


def hash_ids(ids: pa.Array) -> np.ndarray:
    """Returns a uint64 hash [rows] of the ids' text, so that 17 and "17" are the same customer."""
    text = pc.cast(ids, pa.large_binary() if pa.types.is_binary(ids.type) else pa.large_string())
    _, offsets_buffer, data_buffer = text.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[text.offset : text.offset + len(text) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    hashes = np.full(len(text), _FNV_OFFSET)
    for position in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > position)
        hashes[rows] = (hashes[rows] ^ data[starts[rows] + position].astype(np.uint64)) * _FNV_PRIME
    return remix(hashes, 0)


def remix(hashes: np.ndarray, salt: int) -> np.ndarray:
    """Returns hashes that are independent of the given ones for each salt (splitmix64)."""
    mixed = hashes + np.uint64(_GOLDEN * (salt + 1) % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))


def to_unit_interval(hashes: np.ndarray) -> np.ndarray:
    """Returns the hashes as float64 numbers in [0, 1)."""
    return (hashes >> np.uint64(11)) * 2.0**-53
