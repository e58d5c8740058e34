"""Files that are read and written around the system's cache, between the disk and page-aligned memory.

Rows that are needed once, or never fit, gain nothing from the cache, and its pages cost more than the rows: taken from
the system one by one, filled by a copy, tracked, written back. Whole pages go directly where system, file system and
alignment allow it; anything else goes through the cache, to the same bytes.
"""

import errno
import io
import os
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows, where nothing is direct
    fcntl = None  # type: ignore[assignment]

# What memory, offsets in files and lengths are multiples of; file systems with larger blocks are left to the cache.
PAGE_BYTES = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)  # not on macOS


def pages(num_bytes: int) -> int:
    """Returns the bytes of the whole pages that so many need."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def empty_pages(num_bytes: int) -> np.ndarray:
    """Returns an empty uint8 array of whole pages, at the start of one."""
    memory = np.empty(pages(num_bytes) + PAGE_BYTES, np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    return memory[start : start + pages(num_bytes)]


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | _O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no direct access
            raise
        return os.open(path, flags, 0o666)


def open_direct(path: Path, mode: str) -> io.FileIO:
    """Opens a file for `write` or `read`; modes as of FileIO."""
    return io.FileIO(path, mode, opener=_open)


def _leave_to_cache(file: io.FileIO) -> None:
    """Has the file go through the cache from here on."""
    if fcntl is not None:
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~_O_DIRECT)


def write(file: io.FileIO, memory: np.ndarray) -> None:
    """Writes all bytes of contiguous memory, directly as long as file position and memory are at the start of a page.

    What follows the last whole page may end direct access.
    """
    data = memory.reshape(-1).view(np.uint8).data
    is_refused = False
    while len(data):
        end = len(data) - len(data) % PAGE_BYTES
        try:
            data = data[file.write(data[: end or len(data)]) :]
        except OSError as error:
            if error.errno != errno.EINVAL or is_refused:
                raise
            is_refused = True
            _leave_to_cache(file)


def read(file: io.FileIO, position: int, num_bytes: int, room: np.ndarray) -> np.ndarray:
    """Reads bytes by way of memory that is given; several threads may read from one file.

    Args:
      file: to read from.
      position: of the first byte.
      num_bytes: how many.
      room: as `empty_pages` makes it, of one page more than they need.

    Returns:
      The part of `room` that holds them; shorter where the file ends.
    """
    head = position % PAGE_BYTES
    first, wanted, done = position - head, head + num_bytes, 0
    is_refused = False
    while done < wanted:
        try:
            count = os.preadv(file.fileno(), [room[done : pages(wanted)].data], first + done)
        except OSError as error:
            if error.errno != errno.EINVAL or is_refused:
                raise
            is_refused = True
            _leave_to_cache(file)  # another thread may have been first
            continue
        if not count:
            break
        done += count
    return room[head : max(head, min(done, wanted))]
