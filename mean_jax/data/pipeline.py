"""The grain pipeline from a store to dispatches of S batches, and the padded batches of a whole split.

The order is a function of (seed, epoch) alone and a position is a step number, so a resumed run continues with the
very next batch on any number of processes. Row ids are drawn in blocks and gathered at once: no Python per row. Every
process reads its own part of each batch.
"""

from collections.abc import Iterator
import functools
from typing import Any, NamedTuple

import grain
import numpy as np

from mean_jax.config import DataConfig
from mean_jax.data.buffers import Buffers
from mean_jax.data.store import SplitRows
from mean_jax.data.windows import Windows
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
    """Returns the layout of the rows that reach the devices.

    Stored values of two bytes stay as they are: bfloat16 would take as many and say less.
    """
    is_stored = config.numeric_type == "stored" or stored.numeric_type != "float32"
    return stored if is_stored else stored._replace(numeric_type=config.numeric_type)


def _used_rows(rows: SplitRows, plan: EpochPlan, seed: int, config: DataConfig, epoch: int) -> np.ndarray:
    """Returns the rows that an epoch has in its batches, in their order."""
    return epoch_order(len(rows), seed, epoch, config)[: plan.epoch_steps * plan.batch_size]


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
        self._order = np.zeros(0, np.int32)  # of the epoch, where single rows are shuffled
        own_size = len(range(plan.batch_size)[own])
        self._buffers = Buffers(plan.num_steps * own_size, rows.layout.num_words)
        self._windows: Windows | None = None
        if config.shuffle == "blocks":
            order_fn = functools.partial(_used_rows, rows, plan, seed, config)
            self._windows = Windows(rows, config.block_rows, config.window_blocks, num_epochs, order_fn)

    def __len__(self) -> int:
        return self._plan.num_dispatches * self._num_epochs

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, dispatch = divmod(index, self._plan.num_dispatches)
        batch_size, _, num_steps = self._plan
        step_S = dispatch * num_steps + np.arange(num_steps)
        position_B = (step_S[:, None] * batch_size + np.arange(batch_size)[None, self._own]).ravel()
        words = self._buffers.empty()
        if self._windows is not None:
            self._windows.gather(epoch, position_B, words)
        else:
            if epoch != self._epoch:
                self._epoch, self._order = epoch, _used_rows(self._rows, self._plan, self._seed, self._config, epoch)
            self._rows.gather(self._order[position_B], words)
        words = self._rows.layout.convert(words, self._layout)
        return words.reshape(num_steps, -1, words.shape[1])


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
