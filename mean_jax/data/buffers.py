"""Arrays of rows whose memory is used again."""

from typing import Any
import weakref

import numpy as np

from mean_jax.data.direct import empty_pages


def _as_rows(memory: np.ndarray, num_rows: int, num_words: int) -> np.ndarray:
    return memory[: 4 * num_rows * num_words].view(np.float32).reshape(num_rows, num_words)


def aligned_empty(num_rows: int, num_words: int) -> np.ndarray:
    """Returns an empty float32 array at the start of a page; JAX takes it on a CPU without copying it."""
    return _as_rows(empty_pages(4 * num_rows * num_words), num_rows, num_words)


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


class RowPages:
    """Memory of whole pages for some rows, kept from one use to the next: fresh pages cost as much as the rows."""

    def __init__(self, num_words: int) -> None:
        self._num_words = num_words
        self.memory = empty_pages(0)

    def rows(self, num_rows: int) -> np.ndarray:
        """Returns words_BxW float32 at the start of the memory, which is larger from now on if it has to be."""
        if self.memory.size < 4 * self._num_words * num_rows:
            self.memory = empty_pages(4 * self._num_words * num_rows)
        return _as_rows(self.memory, num_rows, self._num_words)
