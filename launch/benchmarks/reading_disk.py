"""Made-up stores on disk, with their pages in or out of memory, for the benchmark of reading. Linux only."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import ctypes
import gc
import mmap
import os
from pathlib import Path
import time
from typing import Any
import weakref

import numpy as np

from mean_jax.data.memory import available_bytes
from mean_jax.data.store import Shard, SplitRows
from mean_jax.errors import UserError
from mean_jax.types import RowLayout

SHARD_BYTES = 256 << 20  # as mean-jax-prepare writes them
_BLOCK_BYTES = 4 << 20  # of the sequential reads
_ROWS_PER_WRITE = 16_384
_CLOSING_SECONDS = 30.0
_READING_SECONDS = 0.5  # for what was asked of the disk to arrive
_OPEN: weakref.WeakSet[SplitRows] = weakref.WeakSet()


def write_store(folder: Path, layout: RowLayout, num_rows: int) -> tuple[Shard, ...]:
    """Writes shards of normal features and zero-inflated lognormal labels, on the disk when it returns.

    Raises:
      UserError: the disk has not the room.
    """
    free, needed = os.statvfs(folder), 4 * num_rows * layout.num_words
    if free.f_bavail * free.f_frsize < needed:
        raise UserError(f"--folder: {folder} has no room for {needed / 1e9:.1f} GB; use fewer --rows or another folder")
    rng = np.random.default_rng(0)
    shards = []
    size = max(1, SHARD_BYTES // (4 * layout.num_words))
    for first in range(0, num_rows, size):
        shard = Shard(f"{layout.numeric_type}-{len(shards):05d}.bin", "", min(size, num_rows - first), "", "")
        with open(folder / shard.file, "wb") as file:
            for start in range(0, shard.rows, _ROWS_PER_WRITE):
                count = min(_ROWS_PER_WRITE, shard.rows - start)
                label_BxT = rng.lognormal(3.0, 1.0, (count, layout.num_labels)).astype(np.float32)
                label_BxT[rng.random(label_BxT.shape) < 0.7] = 0.0
                numeric_BxC = rng.standard_normal((count, layout.num_numeric), np.float32)
                file.write(layout.pack(numeric_BxC, np.zeros((count, 0), np.int32), label_BxT).data)
            file.flush()
            os.fsync(file.fileno())  # only written pages can be dropped
        shards.append(shard)
    return tuple(shards)


def open_rows(folder: Path, shards: Sequence[Shard], layout: RowLayout) -> SplitRows:
    """Returns the rows of such shards."""
    rows = SplitRows(folder, tuple(shards), layout)
    _OPEN.add(rows)
    return rows


def drop_pages(folder: Path, shards: Sequence[Shard]) -> None:
    """Has the system forget the pages of the shards.

    Raises:
      UserError: rows are still open, whose pages would stay.
    """
    deadline = time.monotonic() + _CLOSING_SECONDS
    while gc.collect() or _OPEN:  # the threads of a pipeline end some time after it
        if time.monotonic() > deadline:
            raise UserError(f"{folder}: {len(_OPEN)} readers of the store are still open; its pages cannot be dropped")
        time.sleep(0.05)
    for pause in (_READING_SECONDS, 0.0):  # pages that are just being read are kept by the first advice
        for shard in shards:
            file = os.open(folder / shard.file, os.O_RDONLY)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
        time.sleep(pause)


def read_sequentially(folder: Path, shards: Sequence[Shard]) -> int:
    """Reads the shards from first to last in blocks of 4 MB; returns the bytes."""
    block, total = bytearray(_BLOCK_BYTES), 0
    for shard in shards:
        with open(folder / shard.file, "rb", buffering=0) as file:
            while count := file.readinto(block):
                total += count
    return total


def bytes_from_disk(io_text: str | None = None) -> int:
    """Returns the bytes that this process has had fetched from disks, as /proc/self/io counts them."""
    lines = (io_text or Path("/proc/self/io").read_text()).splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def timed(work: Callable[[], Any]) -> tuple[float, int]:
    """Returns the seconds of a call and the bytes that it had fetched from disks."""
    before, start = bytes_from_disk(), time.perf_counter()
    work()
    return time.perf_counter() - start, bytes_from_disk() - before


@contextlib.contextmanager
def locked_memory(num_bytes: int) -> Iterator[None]:
    """Keeps so much memory from everybody, pages of files included.

    Raises:
      UserError: the system does not let this process lock so much.
    """
    library = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, num_bytes) as block:
        view = ctypes.c_char.from_buffer(block)
        failed = library.mlock(ctypes.byref(view), ctypes.c_size_t(num_bytes))
        del view  # an open view would keep the block from being closed
        if failed:
            reason, size = os.strerror(ctypes.get_errno()), f"{num_bytes / 1e9:.1f} GB"
            raise UserError(f"--free_gb: cannot lock {size} ({reason}); raise `ulimit -l` or leave the flag out")
        yield


def scarce_memory(free_bytes: int) -> contextlib.AbstractContextManager[None]:
    """Locks memory until only `free_bytes` of the machine's are left.

    Raises:
      UserError: no more is free anyhow.
    """
    available = available_bytes() or 0
    if available <= free_bytes:
        raise UserError(f"--free_gb: only {available / 1e9:.1f} GB are free on this machine; use less")
    return locked_memory(available - free_bytes)
