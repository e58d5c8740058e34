"""The windows of a shuffle of blocks: blocks of consecutive rows, read into memory one window ahead of their use."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
import weakref

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
    """The rows of some epochs, to be taken from the first window to the last."""

    def __init__(
        self,
        rows: SplitRows,
        block_rows: int,
        window_blocks: int,
        num_epochs: int,
        order_fn: Callable[[int], np.ndarray],
    ) -> None:
        """Reads nothing yet.

        Args:
          rows: the split.
          block_rows: rows of a block.
          window_blocks: blocks of a window.
          num_epochs: how many there are.
          order_fn: the rows of an epoch in their order, as `epoch_order` makes it.
        """
        self._rows = rows
        self._num_epochs = num_epochs
        self._order_fn = order_fn
        self._orders: dict[int, np.ndarray] = {}  # of this epoch and, in its last window, of the next one
        self._windows: dict[tuple[int, int], _Window] = {}  # by epoch and number
        self._block_rows = min(block_rows, len(rows))
        self._size = self._block_rows * window_blocks
        # The last block of the split may be short: windows after it in the order begin and end within a block.
        num_blocks = min(window_blocks + 1, -(-len(rows) // self._block_rows))
        self._buffers = Buffers(num_blocks * self._block_rows, rows.layout.num_words)
        self._readers = ThreadPoolExecutor(_NUM_READERS)
        self._copiers = ThreadPoolExecutor(_NUM_COPIERS)
        # Else what is left of a window would be read for nobody.
        weakref.finalize(self, self._readers.shutdown, wait=False, cancel_futures=True)

    def gather(self, epoch: int, position_B: np.ndarray, words_BxW: np.ndarray) -> None:
        """Fills words_BxW with the rows at ascending positions in an epoch.

        Has the window after the one that they are in read meanwhile, and lets go of those before.
        """
        self._orders = {key: order for key, order in self._orders.items() if key >= epoch}
        numbers = position_B // self._size
        for number in range(int(numbers[0]), int(numbers[-1]) + 1):
            begin, end = np.searchsorted(numbers, [number, number + 1])
            own = (epoch, number)
            self._windows = {key: window for key, window in self._windows.items() if key >= own}
            for needed in (own, self._after(*own)):
                if needed[0] < self._num_epochs and needed not in self._windows:
                    self._windows[needed] = self._begin(*needed)
            self._take(self._windows[own], self._order(epoch)[position_B[begin:end]], words_BxW[begin:end])

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders[epoch] = self._order_fn(epoch)
        return self._orders[epoch]

    def _after(self, epoch: int, number: int) -> tuple[int, int]:
        return (epoch, number + 1) if (number + 1) * self._size < len(self._order(epoch)) else (epoch + 1, 0)

    def _begin(self, epoch: int, number: int) -> _Window:
        """Has the blocks of a window read."""
        blocks = np.unique(self._order(epoch)[number * self._size : (number + 1) * self._size] // self._block_rows)
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
