"""The windows of a shuffle of blocks: blocks of consecutive rows, read into memory one window ahead of their use."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mean_jax.data.buffers import Buffers
from mean_jax.data.store import SplitRows

_NUM_READERS = 16  # blocks under way at once
_NUM_COPIERS = 4
_MIN_ROWS_PER_COPY = 1024


class _Window(NamedTuple):
    """Some blocks in memory, in the order of their numbers."""

    blocks: np.ndarray  # [A] their numbers, ascending
    words: np.ndarray  # [A * rows of a block, W]
    readings: list[Future[None]]  # which fill the words


class Windows:
    """The rows of one epoch, to be taken from its first window to its last."""

    def __init__(self, rows: SplitRows, block_rows: int, window_blocks: int) -> None:
        self._rows = rows
        self._block_rows = min(block_rows, len(rows))
        self._size = self._block_rows * window_blocks
        # The last block of the split may be short: windows after it in the order begin and end within a block.
        num_blocks = min(window_blocks + 1, -(-len(rows) // self._block_rows))
        self._buffers = Buffers(num_blocks * self._block_rows, rows.layout.num_words)
        self._readers = ThreadPoolExecutor(_NUM_READERS)
        self._copiers = ThreadPoolExecutor(_NUM_COPIERS)
        self.start(np.zeros(0, np.int32))

    def start(self, order: np.ndarray) -> None:
        """Begins an epoch of these rows, in their order as `epoch_order` gives it."""
        self._order = order
        self._windows: dict[int, _Window] = {}

    def gather(self, position_B: np.ndarray, words_BxW: np.ndarray) -> None:
        """Fills words_BxW with the rows at ascending positions in the epoch.

        Has the window after the one that they are in read meanwhile, and lets go of those before.
        """
        numbers = position_B // self._size
        for number in range(int(numbers[0]), int(numbers[-1]) + 1):
            begin, end = np.searchsorted(numbers, [number, number + 1])
            self._windows = {key: window for key, window in self._windows.items() if key >= number}
            for needed in (number, number + 1):
                if needed not in self._windows and needed * self._size < len(self._order):
                    self._windows[needed] = self._begin(needed)
            self._take(self._windows[number], self._order[position_B[begin:end]], words_BxW[begin:end])

    def _begin(self, number: int) -> _Window:
        """Has the blocks of a window read."""
        blocks = np.unique(self._order[number * self._size : (number + 1) * self._size] // self._block_rows)
        words_NxW = self._buffers.empty()
        readings = []
        for index, block in enumerate(blocks.tolist()):
            first = block * self._block_rows
            begin, count = index * self._block_rows, min(self._block_rows, len(self._rows) - first)
            readings.append(self._readers.submit(self._rows.read, first, words_NxW[begin : begin + count]))
        return _Window(blocks, words_NxW, readings)

    def _take(self, window: _Window, rows_B: np.ndarray, words_BxW: np.ndarray) -> None:
        for reading in window.readings:
            reading.result()
        place_B = np.searchsorted(window.blocks, rows_B // self._block_rows) * self._block_rows
        place_B += rows_B % self._block_rows
        num_parts = max(1, min(_NUM_COPIERS, len(rows_B) // _MIN_ROWS_PER_COPY))
        parts = zip(np.array_split(place_B, num_parts), np.array_split(words_BxW, num_parts), strict=True)
        # Places are in range by construction; any mode but "raise" lets NumPy write into `out` unbuffered.
        copies = [self._copiers.submit(np.take, window.words, place, 0, out, "clip") for place, out in parts]
        for copied in copies:
            copied.result()
