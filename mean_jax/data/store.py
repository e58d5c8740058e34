"""The training store: shards of fixed-width raw rows, mapped into memory, with ids in side files.

A row is `Store.layout.num_words` four-byte words: numeric values (NaN missing) in float32, or in float16 divided by a
power of two per column, two to a word; int32 category codes; float32 labels in currency (NaN unknown). The rows of one
prepare stand in an order that depends on nothing but their ids; those of an append follow as shards of their own.
`manifest.json` names every shard with its row count and checksum and holds the fitted transform, the type of the
numeric values and what was appended; it is written last, and files that it does not name are no part of the store.
"""

import dataclasses
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.data.schema import Schema
from mean_jax.data.transform import Transform
from mean_jax.errors import UserError
from mean_jax.fileio import file_sha256, read_json
from mean_jax.types import RowLayout

KIND = "mean-jax store"
VERSION = 2
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "validation", "test")
NUMERIC_TYPES = ("float32", "float16")
ID_COLUMN = "id"
_ALIGNMENT_BYTES = 64


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of rows and the file of their ids."""

    file: str
    ids_file: str
    rows: int
    sha256: str
    ids_sha256: str


def is_store(path: Path) -> bool:
    """Tells whether a folder is a training store (rather than a folder of tables)."""
    return (Path(path) / MANIFEST_NAME).is_file()


class Store:
    """A training store opened for reading."""

    def __init__(self, folder: Path, flag: str = "--data", verify: bool = True) -> None:
        """Opens the store and checks it.

        Args:
          folder: what mean-jax-prepare wrote.
          flag: the flag that it came from, for error lines.
          verify: also compare the checksum of every shard, which reads all bytes once.

        Raises:
          UserError: not a store, another version, or a file that is missing, cut or altered.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{flag}: folder {folder} does not exist; make a store with mean-jax-prepare")
        if not is_store(self.folder):
            raise UserError(
                f"{flag}: {folder} is not a training store, it has no {MANIFEST_NAME}; use mean-jax-prepare"
            )
        manifest = read_json(self.folder / MANIFEST_NAME, KIND, VERSION)
        self.schema = Schema.load(self.folder)
        self.transform = Transform.from_dict(manifest["transform"])
        self.manifest: dict[str, Any] = manifest
        self.layout: RowLayout = self.schema.layout._replace(
            numeric_type=manifest["numeric_type"], exponents=tuple(manifest["exponents"])
        )
        self.shards = {
            split: tuple(Shard(**shard) for shard in manifest["splits"][split]["shards"]) for split in SPLITS
        }
        for split in SPLITS:
            for shard in self.shards[split]:
                self._check_shard(shard, verify)

    def _check_shard(self, shard: Shard, verify: bool) -> None:
        files = ((shard.file, shard.sha256), (shard.ids_file, shard.ids_sha256))
        for name, digest in files:
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path}: missing from the store; make it again with mean-jax-prepare")
            expected_bytes = 4 * shard.rows * self.layout.num_words
            if name == shard.file and path.stat().st_size != expected_bytes:
                raise UserError(
                    f"{path}: has {path.stat().st_size} bytes, expected {expected_bytes}; "
                    "the shard was cut, make the store again with mean-jax-prepare"
                )
            if verify and file_sha256(path) != digest:
                raise UserError(f"{path}: checksum does not match, it was altered; make the store again")

    def split(self, name: str) -> "SplitRows":
        """Returns the rows of the train, validation or test split."""
        return SplitRows(self.folder, self.shards[name], self.layout)


def _aligned_empty(num_rows: int, num_words: int) -> np.ndarray:
    """Returns an empty float32 array at a multiple of 64 bytes, which JAX takes on a CPU without copying it."""
    size = num_rows * num_words
    buffer = np.empty(size + _ALIGNMENT_BYTES // 4, np.float32)
    start = -buffer.ctypes.data % _ALIGNMENT_BYTES // 4
    return buffer[start : start + size].reshape(num_rows, num_words)


def _map_file(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class SplitRows:
    """The rows of one split, read by index through memory maps."""

    def __init__(self, folder: Path, shards: tuple[Shard, ...], layout: RowLayout) -> None:
        self._folder = folder
        self._shards = shards
        self.layout = layout  # of the words that `gather` returns
        self._words = self.layout.num_words
        self._files = [_map_file(folder / shard.file) for shard in shards]
        self._maps = [np.frombuffer(file, np.float32).reshape(-1, self._words) for file in self._files]
        self._ends = np.cumsum([shard.rows for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def gather(self, rows_B: np.ndarray) -> np.ndarray:
        """Returns words_BxW float32 of the rows at the given indices, as stored: `layout.unpack` names their parts."""
        words_BxW = _aligned_empty(len(rows_B), self._words)
        if len(self._maps) == 1:
            # Indices are in range by construction; any mode but "raise" lets NumPy write into `out` unbuffered.
            np.take(self._maps[0], rows_B, axis=0, out=words_BxW, mode="clip")
            return words_BxW
        shard_B = np.searchsorted(self._ends, rows_B, side="right")
        for index in np.unique(shard_B):
            where = np.flatnonzero(shard_B == index)
            start = self._ends[index - 1] if index else 0
            words_BxW[where] = self._maps[index][rows_B[where] - start]
        return words_BxW

    def will_need(self, start: int, stop: int) -> None:
        """Asks the system to read the rows from `start` to before `stop` soon, in one go, without waiting for them."""
        for index, (rows, end) in enumerate(zip(self._maps, self._ends, strict=True)):
            begin = int(end) - len(rows)
            first, last = max(start, begin) - begin, min(stop, int(end)) - begin
            if first < last:
                row_bytes = 4 * self._words
                page = first * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
                self._files[index].madvise(mmap.MADV_WILLNEED, page, last * row_bytes - page)

    def ids(self) -> pa.ChunkedArray:
        """Returns the customer ids in the order of the rows, in their own type."""
        tables = [pq.read_table(self._folder / shard.ids_file, memory_map=True) for shard in self._shards]
        return pa.chunked_array([chunk for table in tables for chunk in table.column(ID_COLUMN).chunks])
