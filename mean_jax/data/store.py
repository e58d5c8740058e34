"""The training store: shards of fixed-width raw rows, mapped into memory, with ids in side files.

A row is `Store.layout.num_words` four-byte words: numeric values (NaN missing) in float32, or in float16 divided by a
power of two per column, two to a word; int32 category codes; float32 labels in currency (NaN unknown). The rows of one
prepare stand in an order that depends on nothing but their ids; those of an append follow as shards of their own.
`manifest.json` names every shard with its row count and checksum and holds the fitted transform, the type of the
numeric values and what was appended; it is written last, and files that it does not name are no part of the store.
"""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import errno
import io
import mmap
import os
from pathlib import Path
import threading
from typing import Any
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mean_jax.data.buffers import aligned_empty
from mean_jax.data.direct import PAGE_BYTES, empty_pages, open_direct, read
from mean_jax.data.memory import available_bytes
from mean_jax.data.schema import Schema
from mean_jax.data.transform import Transform
from mean_jax.errors import UserError
from mean_jax.fileio import file_sha256, naming, read_json
from mean_jax.threads import available_processors
from mean_jax.types import RowLayout

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

KIND = "mean-jax store"
VERSION = 2
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "validation", "test")
NUMERIC_TYPES = ("float32", "float16")
ID_COLUMN = "id"
_OTHER_FILES = 256  # that a process has open besides the shards
# macOS has no posix_fadvise; there the maps are left to the system's own reading ahead.
_HAS_ADVICE = hasattr(os, "posix_fadvise")
_HAS_PREADV = hasattr(os, "preadv")  # not on Windows
# Linux reads at most a device's read-ahead size per advice and drops the rest; this is the usual smallest size.
_ADVICE_BYTES = 1 << 17
# A row whose page is on the disk stops its thread: as many reads are under way at once as there are threads.
_NUM_READERS = 16
_MAX_CHECKS = 8  # files whose checksums are computed at once
_MIN_ROWS_PER_READER = 64
_DIRECT_BYTES = 1 << 20  # that a thread reads at a time around the system's cache
# Rows that pass from a shard to their places by a buffer that stays in the processor's cache.
_ROWS_PER_PIECE = 128


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
        if self.folder.is_file():
            raise UserError(
                f"{flag}: {folder} is a file, not a training store; make one of it with "
                f"mean-jax-prepare --input={folder} --output=STORE, and give {flag}=STORE"
            )
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
        _allow_open_files(3 * sum(len(shards) for shards in self.shards.values()))
        all_shards = [shard for split in SPLITS for shard in self.shards[split]]
        # Checksums are computed without Python's lock.
        with ThreadPoolExecutor(min(_MAX_CHECKS, available_processors())) as pool:
            for _ in pool.map(lambda shard: self._check_shard(shard, verify), all_shards):
                pass  # raises what the first bad shard raised

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


def _allow_open_files(num_files: int) -> None:
    """Raises the process's limit of open files if it can and has to: shards are open as long as they are mapped."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_files + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _is_run(rows_B: np.ndarray) -> bool:
    """Tells whether the indices are consecutive."""
    return (
        len(rows_B) > 1 and int(rows_B[-1]) - int(rows_B[0]) == len(rows_B) - 1 and bool((np.diff(rows_B) == 1).all())
    )


class SplitRows:
    """The rows of one split, read by index through memory maps."""

    def __init__(self, folder: Path, shards: tuple[Shard, ...], layout: RowLayout) -> None:
        self._folder = folder
        self._shards = shards
        self.layout = layout  # of the words that `gather` returns
        self._words = self.layout.num_words
        self._files: list[int] = []
        self._direct_files: list[io.FileIO] = []  # of the same shards, if memory cannot hold them
        num_bytes = 4 * self._words * sum(shard.rows for shard in shards)
        available = available_bytes()
        self._fits = available is None or num_bytes <= available  # in memory, as far as the system tells
        self._maps = [self._map(folder / shard.file) for shard in shards]
        self._ends = np.cumsum([shard.rows for shard in shards])
        self._thread = threading.local()  # holds the memory that a thread reads into around the system's cache
        self._readers = ThreadPoolExecutor(_NUM_READERS)  # starts its threads at their first work

    def _map(self, path: Path) -> np.ndarray:
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        self._files.append(file)
        if not self._fits:
            direct_file = open_direct(path, "rb")
            weakref.finalize(self, direct_file.close)
            self._direct_files.append(direct_file)
        mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        if _HAS_ADVICE:
            # A row that is not in memory would else bring its surroundings, megabytes on some disks, for its 3 kB.
            mapped.madvise(mmap.MADV_RANDOM)
            if not self._fits:
                # A block would bring what follows it, which is driven out before its turn. Where there is room, that
                # is welcome, and the system reads faster by it.
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        return np.frombuffer(mapped, np.float32).reshape(-1, self._words)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, first: int, words_BxW: np.ndarray) -> None:
        """Fills words_BxW with the consecutive rows from `first` on, as `gather` does, which are not soon read again.

        Goes around the system's cache if that cannot hold the split.

        Raises:
          UserError: a shard has lost rows since the store was opened.
        """
        self._read(first, words_BxW, not self._fits)

    def _read(self, first: int, words_BxW: np.ndarray, is_direct: bool) -> None:
        row_bytes = 4 * self._words
        for index, begin, end in self._overlaps(first, first + len(words_BxW)):
            offset = self._start(index) - first
            words = words_BxW[begin + offset : end + offset]
            target = words.reshape(-1).view(np.uint8)
            if is_direct:
                self._read_direct(index, begin * row_bytes, target)
            elif _HAS_PREADV:  # half the work of reading through the map, page by page
                self._read_file(index, begin * row_bytes, target.data)
            else:
                words[:] = self._maps[index][begin:end]

    def _read_direct(self, index: int, position: int, target: np.ndarray) -> None:
        if not hasattr(self._thread, "room"):
            self._thread.room = empty_pages(_DIRECT_BYTES + PAGE_BYTES)
        with naming(self._folder / self._shards[index].file):
            for start in range(0, len(target), _DIRECT_BYTES):
                piece = target[start : start + _DIRECT_BYTES]
                found = read(self._direct_files[index], position + start, len(piece), self._thread.room)
                if len(found) < len(piece):
                    self._require_whole()
                    raise OSError(errno.EIO, "cut short")
                piece[:] = found

    def _read_file(self, index: int, position: int, target: memoryview) -> None:
        while len(target):
            try:
                count = os.preadv(self._files[index], [target], position)
            except OSError as error:
                error.filename = str(self._folder / self._shards[index].file)
                raise
            if not count:
                self._require_whole()
            position, target = position + count, target[count:]

    def _require_whole(self) -> None:
        """Raises UserError if a shard has lost rows: to touch them in the map would end the process."""
        for file, shard in zip(self._files, self._shards, strict=True):
            size = os.fstat(file).st_size
            if size < 4 * self._words * shard.rows:
                path = self._folder / shard.file
                raise UserError(f"{path}: ends at byte {size}, it was cut while it was read; make the store again")

    def gather(self, rows_B: np.ndarray, words_BxW: np.ndarray | None = None) -> np.ndarray:
        """Returns words_BxW float32 of the rows at the given indices, as stored: `layout.unpack` names their parts.

        Consecutive rows are read in long pieces, together with as many after them; others by several threads.

        Args:
          rows_B: the indices.
          words_BxW: memory to fill and return; if none, it is new.

        Raises:
          UserError: a shard has lost rows since the store was opened.
        """
        if words_BxW is None:
            words_BxW = aligned_empty(len(rows_B), self._words)
        if _is_run(rows_B):
            first, count = int(rows_B[0]), len(rows_B)
            self.will_need(first, first + 2 * count)
            self._read(first, words_BxW, is_direct=False)
            return words_BxW
        self._require_whole()
        num_parts = min(_NUM_READERS, len(rows_B) // _MIN_ROWS_PER_READER)
        if num_parts < 2:
            self._copy(rows_B, words_BxW)
            return words_BxW
        parts = zip(np.array_split(rows_B, num_parts), np.array_split(words_BxW, num_parts), strict=True)
        for copied in [self._readers.submit(self._copy, *part) for part in parts]:
            copied.result()
        return words_BxW

    def _copy(self, rows_B: np.ndarray, words_BxW: np.ndarray) -> None:
        # Indices are in range by construction; any mode but "raise" lets NumPy write into `out` unbuffered.
        if len(self._maps) == 1:
            np.take(self._maps[0], rows_B, axis=0, out=words_BxW, mode="clip")
            return
        shard_B = np.searchsorted(self._ends, rows_B, side="right")
        by_shard_B = np.argsort(shard_B, kind="stable")
        lasts = np.cumsum(np.bincount(shard_B, minlength=len(self._maps)))
        piece_BxW = np.empty((min(_ROWS_PER_PIECE, len(rows_B)), self._words), np.float32)
        first = 0
        for index, last in enumerate(lasts.tolist()):
            for begin in range(first, last, _ROWS_PER_PIECE):
                where = by_shard_B[begin : min(begin + _ROWS_PER_PIECE, last)]
                taken_BxW = piece_BxW[: len(where)]
                np.take(self._maps[index], rows_B[where] - self._start(index), axis=0, out=taken_BxW, mode="clip")
                words_BxW[where] = taken_BxW
            first = last

    def _start(self, index: int) -> int:
        return int(self._ends[index]) - len(self._maps[index])

    def _overlaps(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Returns (shard, first row, row after the last), counted in the shard, of the rows from `start` to `stop`."""
        overlaps = []
        for index, end in enumerate(self._ends.tolist()):
            begin = self._start(index)
            first, last = max(start, begin) - begin, min(stop, end) - begin
            if first < last:
                overlaps.append((index, first, last))
        return overlaps

    def will_need(self, start: int, stop: int) -> None:
        """Asks the system to read the rows from `start` to before `stop`, without waiting until it has."""
        if not _HAS_ADVICE:
            return
        row_bytes = 4 * self._words
        for index, first, last in self._overlaps(start, stop):
            end = last * row_bytes
            # Not madvise: Python holds its global lock during that, and not during this.
            for position in range(first * row_bytes, end, _ADVICE_BYTES):
                size = min(_ADVICE_BYTES, end - position)
                os.posix_fadvise(self._files[index], position, size, os.POSIX_FADV_WILLNEED)

    def ids(self) -> pa.ChunkedArray:
        """Returns the customer ids in the order of the rows, in their own type."""
        tables = [pq.read_table(self._folder / shard.ids_file, memory_map=True) for shard in self._shards]
        return pa.chunked_array([chunk for table in tables for chunk in table.column(ID_COLUMN).chunks])
