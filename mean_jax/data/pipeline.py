"""The grain pipeline from a store to dispatches of S batches, and the padded batches of a whole split.

The order is a function of (seed, epoch) alone and a position is a step number, so a resumed run continues with the
very next batch on any number of processes. Row ids are drawn in blocks and gathered at once: no Python per row. Every
process reads its own part of each batch.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grain
import numpy as np

from mean_jax.config import DataConfig
from mean_jax.data.store import SplitRows
from mean_jax.types import RowLayout

# Dispatches that grain keeps ready: the loader works while the device does.
_PREFETCH_DISPATCHES = 2


class EpochPlan(NamedTuple):
    """How the steps of an epoch divide into dispatches, all equally long.

    Rows that do not fill the last dispatch are left out of the epoch; the shuffle makes them others each time.
    """

    batch_size: int  # B
    num_dispatches: int  # per epoch
    num_steps: int  # S, per dispatch

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return self.num_dispatches * self.num_steps


def plan_epoch(num_rows: int, batch_size: int, max_steps_per_dispatch: int) -> EpochPlan:
    """Returns the plan with the fewest dispatches."""
    steps = num_rows // batch_size
    num_dispatches = -(-steps // max_steps_per_dispatch)
    return EpochPlan(batch_size, num_dispatches, steps // num_dispatches)


def epoch_order(num_rows: int, seed: int, epoch: int, config: DataConfig) -> np.ndarray:
    """Returns the order of the rows in an epoch, a permutation of their indices.

    `shuffle=rows` draws it from all permutations. `shuffle=blocks` shuffles blocks of consecutive rows, then the rows
    within each window of blocks, so that a disk is read in long pieces.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    # The one array of a training that grows with the rows: four bytes each, shuffled where it is.
    is_small = num_rows + config.block_rows <= np.iinfo(np.int32).max
    index_type: np.dtype[Any] = np.dtype(np.int32 if is_small else np.int64)
    if config.shuffle == "rows":
        order = np.arange(num_rows, dtype=index_type)
        generator.shuffle(order)
        return order
    size = min(config.block_rows, num_rows)
    starts = size * generator.permutation(-(-num_rows // size)).astype(index_type)
    order = (starts[:, None] + np.arange(size, dtype=index_type)).ravel()
    order = order[order < num_rows]
    window = size * config.window_blocks
    num_whole = num_rows // window * window
    windows = order[:num_whole].reshape(-1, window)
    generator.permuted(windows, axis=1, out=windows)
    generator.shuffle(order[num_whole:])
    return order


def stream_layout(stored: RowLayout, config: DataConfig) -> RowLayout:
    """Returns the layout of the rows that reach the devices."""
    return stored if config.numeric_type == "stored" else stored.as_float32._replace(numeric_type=config.numeric_type)


class _DispatchSource:
    """Random access to the words of dispatch i, shaped [S, own rows of B, W]."""

    def __init__(
        self, rows: SplitRows, plan: EpochPlan, num_epochs: int, seed: int, config: DataConfig, own: slice
    ) -> None:
        self._rows = rows
        self._plan = plan
        self._num_epochs = num_epochs
        self._seed = seed
        self._config = config
        self._own = own
        self._layout = stream_layout(rows.layout, config)
        self._epoch = -1
        self._order = np.zeros(0, np.int32)
        self._asker = ThreadPoolExecutor(1)
        self._asked: dict[int, Future[None]] = {}  # by number of the window in this epoch

    def __len__(self) -> int:
        return self._plan.num_dispatches * self._num_epochs

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, dispatch = divmod(index, self._plan.num_dispatches)
        if epoch != self._epoch:
            self._order = epoch_order(len(self._rows), self._seed, epoch, self._config)
            self._epoch = epoch
            self._asked = {}
        batch_size, _, num_steps = self._plan
        size = num_steps * batch_size
        if self._config.shuffle == "blocks":
            self._read_ahead(dispatch * size, size)
        index_SxB = self._order[dispatch * size : (dispatch + 1) * size].reshape(num_steps, batch_size)
        words = self._rows.layout.convert(self._rows.gather(index_SxB[:, self._own].ravel()), self._layout)
        return words.reshape(num_steps, -1, words.shape[1])

    def _read_ahead(self, position: int, size: int) -> None:
        """Has the windows of blocks asked for that these rows are in, and the one after; waits for the asking alone."""
        window = self._config.block_rows * self._config.window_blocks
        first, last = position // window, (position + size - 1) // window
        self._asked = {number: asked for number, asked in self._asked.items() if number >= first}
        in_epoch = -(-self._plan.epoch_steps * self._plan.batch_size // window)
        for number in range(first, min(last + 2, in_epoch)):
            if number not in self._asked:
                rows_B = self._order[number * window : (number + 1) * window]
                self._asked[number] = self._asker.submit(self._ask, rows_B)
        for number in range(first, last + 1):
            self._asked[number].result()

    def _ask(self, rows_B: np.ndarray) -> None:
        block_rows = self._config.block_rows
        for block in np.unique(rows_B // block_rows).tolist():
            self._rows.will_need(block * block_rows, (block + 1) * block_rows)


def train_dispatches(
    rows: SplitRows,
    plan: EpochPlan,
    num_epochs: int,
    seed: int,
    start: int,
    config: DataConfig = DataConfig(),  # noqa: B008  # frozen
    own: slice = slice(None),  # a slice cannot be changed
) -> Iterator[np.ndarray]:
    """Yields words_SxBxW of every dispatch from number `start` on, prefetched by grain.

    Args:
      rows: the training split.
      plan: see `plan_epoch`.
      num_epochs: how many to go through in all.
      seed: of the shuffle.
      start: dispatches that are done already.
      config: shuffle and numeric type.
      own: of the B rows of a batch, those that this process needs; B is their number in what is yielded.
    """
    source = _DispatchSource(rows, plan, num_epochs, seed, config, own)
    dataset = grain.MapDataset.source(source)[start:]
    # One reader thread: the order of an epoch is made once and the gather is bound by memory, not by Python.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH_DISPATCHES)
    return iter(dataset.to_iter_dataset(options))


def padded_batches(
    rows: SplitRows,
    batch_size: int,
    own: slice = slice(None),  # a slice cannot be changed
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (words_BxW, mask_B) over a split in its order; the last batch is padded and the mask says where.

    Args:
      rows: the split.
      batch_size: B.
      own: of the B rows, those whose words this process needs; the mask is that of all.
    """
    for start in range(0, len(rows), batch_size):
        index_B = np.arange(start, start + batch_size)
        yield rows.gather(np.minimum(index_B[own], len(rows) - 1)), index_B < len(rows)
