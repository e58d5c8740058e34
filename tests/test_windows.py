"""Windows of blocks: the rows of any order, read one window ahead, in memory that is used again."""

import gc
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from mean_jax.config import DataConfig
from mean_jax.data import buffers as buffers_module
from mean_jax.data.buffers import Buffers
from mean_jax.data.pipeline import epoch_order
from mean_jax.data.windows import Windows
from mean_jax.types import RowLayout

SEED = 3


class ReadRows:
    """Stands for a split of two words per row, its number and half of it; notes what is read."""

    layout = RowLayout(2, 0, 0)

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self.read_rows: list[int] = []

    def __len__(self) -> int:
        return self._num_rows

    def read(self, first, words_BxW):
        number_B = first + np.arange(len(words_BxW))
        assert number_B[-1] < self._num_rows
        self.read_rows += number_B.tolist()
        words_BxW[:] = number_B[:, None] * np.array([1.0, 0.5])


def order_of(num_rows: int, block_rows: int, window_blocks: int, epoch: int = 0) -> np.ndarray:
    config = DataConfig(shuffle="blocks", block_rows=block_rows, window_blocks=window_blocks)
    return epoch_order(num_rows, SEED, epoch, config)


def windows_of(rows, block_rows: int = 16, window_blocks: int = 4, num_epochs: int = 1, num_used: int | None = None):
    """Returns the windows of epochs in which the first `num_used` rows of the order are used."""
    order_fn = lambda epoch: order_of(len(rows), block_rows, window_blocks, epoch)[:num_used]  # noqa: E731
    return Windows(rows, block_rows, window_blocks, num_epochs, order_fn)


def take(windows: Windows, positions: np.ndarray, epoch: int = 0) -> np.ndarray:
    words = np.full((len(positions), 2), np.nan, np.float32)
    windows.gather(epoch, positions, words)
    return words


@settings(deadline=None)
@given(
    num_rows=st.integers(1, 300),
    block_rows=st.integers(1, 40),
    window_blocks=st.integers(1, 6),
    size=st.integers(1, 120),
    step=st.integers(1, 3),
    start=st.integers(0, 100),
)
def test_any_order_is_followed(num_rows, block_rows, window_blocks, size, step, start):
    """Short last blocks, takes over several windows, rows of a part of the batch, and a start within the epoch."""
    order = order_of(num_rows, block_rows, window_blocks)
    windows = windows_of(ReadRows(num_rows), block_rows, window_blocks)
    for first in range(start, num_rows, size):
        positions = np.arange(first, min(first + size, num_rows), step)
        np.testing.assert_array_equal(take(windows, positions), order[positions][:, None] * np.array([1.0, 0.5]))


def test_every_block_is_read_once_and_one_window_ahead():
    rows = ReadRows(1024)
    order = order_of(1024, 16, 4)
    windows = windows_of(rows)
    for first in range(0, 1024, 32):
        take(windows, np.arange(first, first + 32))
        end = (first // 64 + 1) * 64
        assert set(order[:end].tolist()) <= set(rows.read_rows) <= set(order[: end + 64].tolist())
    assert sorted(rows.read_rows) == list(range(1024))


def test_a_start_within_the_epoch_reads_nothing_of_the_windows_before():
    rows = ReadRows(1024)
    order = order_of(1024, 16, 4)
    windows = windows_of(rows, num_used=900)  # an epoch that leaves rows out
    for first in range(200, 900, 50):
        take(windows, np.arange(first, first + 50))
    last_blocks = np.unique(order[896:900] // 16)
    expected = set(order[192:896].tolist()) | set(np.add.outer(16 * last_blocks, np.arange(16)).ravel().tolist())
    assert set(rows.read_rows) == expected


def test_two_windows_are_held_in_memory(monkeypatch):
    made = []
    original = buffers_module.aligned_empty

    def note(num_rows, num_words):
        made.append((num_rows, num_words))
        return original(num_rows, num_words)

    monkeypatch.setattr(buffers_module, "aligned_empty", note)
    windows = windows_of(ReadRows(1000), num_epochs=3)
    for epoch in range(3):
        order = order_of(1000, 16, 4, epoch)
        for first in range(0, 1000, 40):  # some takes lie in two windows
            words = take(windows, np.arange(first, first + 40), epoch)
            np.testing.assert_array_equal(words[:, 0], order[first : first + 40])
    assert made == [(5 * 16, 2)] * 2


def test_the_next_window_is_not_waited_for():
    is_open = threading.Event()
    order = order_of(256, 16, 4)

    class SlowRows(ReadRows):
        def read(self, first, words_BxW):
            assert first in order[:64] or is_open.wait(30)
            super().read(first, words_BxW)

    windows = windows_of(SlowRows(256))
    words = take(windows, np.arange(64))
    np.testing.assert_array_equal(words[:, 0], order[:64])
    is_open.set()
    np.testing.assert_array_equal(take(windows, np.arange(64, 128))[:, 0], order[64:128])


def test_the_first_window_of_the_next_epoch_is_read_ahead_too():
    rows = ReadRows(256)
    windows = windows_of(rows, num_epochs=2)
    for first in range(0, 256, 64):
        take(windows, np.arange(first, first + 64))
    while len(rows.read_rows) < 256 + 64:  # ends with the time limit of the test if nothing is read
        time.sleep(0.01)
    # The threads that read note their rows in any order.
    assert sorted(rows.read_rows) == sorted([*range(256), *order_of(256, 16, 4, 1)[:64].tolist()])
    for first in range(0, 256, 64):
        take(windows, np.arange(first, first + 64), epoch=1)
    assert len(rows.read_rows) == 2 * 256  # nothing after the last epoch


def test_what_nobody_waits_for_is_not_read():
    is_open, begun = threading.Event(), threading.Semaphore(0)
    first_window = order_of(4096, 16, 100)[:1600]

    class SlowRows(ReadRows):
        def read(self, first, words_BxW):
            if first not in first_window:
                begun.release()
                assert is_open.wait(30)
            super().read(first, words_BxW)

    rows = SlowRows(4096)
    windows = windows_of(rows, window_blocks=100)
    take(windows, np.arange(64))
    readers = windows._readers
    for _ in range(16):
        begun.acquire()
    del windows
    gc.collect()
    is_open.set()
    readers.shutdown()  # waits for the blocks that were under way
    assert len(rows.read_rows) == 1600 + 16 * 16


def test_windows_that_are_gone_leave_their_readers():
    windows = windows_of(ReadRows(256))
    take(windows, np.arange(10))
    readers = windows._readers
    del windows
    gc.collect()
    with pytest.raises(RuntimeError, match="shutdown"):
        readers.submit(print)


def test_a_failure_of_reading_ahead_is_not_lost():
    class UnreadableRows(ReadRows):
        def read(self, first, words_BxW):
            raise OSError("the disk is gone")

    windows = windows_of(UnreadableRows(100))
    with pytest.raises(OSError, match="the disk is gone"):
        take(windows, np.arange(10))


def test_lent_memory_comes_back_when_its_last_view_is_gone():
    buffers = Buffers(4, 3)
    first = buffers.empty()
    assert first.shape == (4, 3) and first.dtype == np.float32 and first.ctypes.data % 64 == 0
    address, view = first.ctypes.data, first.reshape(2, 2, 3)[1:]
    del first
    gc.collect()
    second = buffers.empty()
    assert second.ctypes.data != address  # the view still needs it
    view[:] = 7.0
    second[:] = 0.0
    assert (view == 7.0).all()
    del view
    assert buffers.empty().ctypes.data == address
