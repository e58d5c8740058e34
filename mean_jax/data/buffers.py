"""Arrays of rows whose memory is used again."""

from typing import Any
import weakref

import numpy as np

_ALIGNMENT_BYTES = 64


def aligned_empty(num_rows: int, num_words: int) -> np.ndarray:
    """Returns an empty float32 array at a multiple of 64 bytes, which JAX takes on a CPU without copying it."""
    size = num_rows * num_words
    buffer = np.empty(size + _ALIGNMENT_BYTES // 4, np.float32)
    start = -buffer.ctypes.data % _ALIGNMENT_BYTES // 4
    return buffer[start : start + size].reshape(num_rows, num_words)


class _Lent:
    """Owns a lent array: every view of it keeps this alive, and nothing else does."""

    def __init__(self, memory: np.ndarray) -> None:
        self.__array_interface__: dict[str, Any] = memory.__array_interface__


class Buffers:
    """Lends arrays of one shape; a lent one comes back by itself once nobody holds it or a view of it.

    Pages that are fresh from the system cost half as much as the rows that fill them.
    """

    def __init__(self, num_rows: int, num_words: int) -> None:
        self._shape = (num_rows, num_words)
        self._free: list[np.ndarray] = []

    def empty(self) -> np.ndarray:
        """Returns a float32 array with anything in it, aligned as `aligned_empty`."""
        memory = self._free.pop() if self._free else aligned_empty(*self._shape)
        lent = _Lent(memory)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return np.asarray(lent)
