"""The grain pipeline from a store to dispatches of S batches, and the padded batches of a whole split.

The order is a function of (seed, epoch) alone and a position is a step number, so a resumed run continues with the
very next batch on any number of processes. Row ids are drawn in blocks and gathered at once: no Python per row.
"""

from collections.abc import Iterator

import grain
import numpy as np

from mean_jax.data.store import SplitRows

# Dispatches that grain keeps ready: the loader works while the device does.
_PREFETCH_DISPATCHES = 2


def plan_epoch(num_rows: int, batch_size: int, max_steps_per_dispatch: int) -> tuple[int, int]:
    """Returns (dispatches per epoch, steps per dispatch), all dispatches of an epoch being equally long.

    Rows that do not fill the last dispatch are left out of the epoch; the shuffle makes them others each time.
    """
    steps = num_rows // batch_size
    num_dispatches = -(-steps // max_steps_per_dispatch)
    return num_dispatches, steps // num_dispatches


class _DispatchSource:
    """Random access to the words of dispatch i, shaped [S, B, W]."""

    def __init__(self, rows: SplitRows, batch_size: int, dispatches: int, steps: int, epochs: int, seed: int) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._dispatches = dispatches
        self._steps = steps
        self._epochs = epochs
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return self._dispatches * self._epochs

    def __getitem__(self, index: int) -> np.ndarray:
        epoch, dispatch = divmod(index, self._dispatches)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            self._order = generator.permutation(np.arange(len(self._rows), dtype=np.int64))
            self._epoch = epoch
        size = self._steps * self._batch_size
        words = self._rows.gather(self._order[dispatch * size : (dispatch + 1) * size])
        return words.reshape(self._steps, self._batch_size, -1)


def train_dispatches(
    rows: SplitRows, batch_size: int, dispatches: int, steps: int, epochs: int, seed: int, start: int
) -> Iterator[np.ndarray]:
    """Yields words_SxBxW of every dispatch from number `start` on, prefetched by grain.

    Args:
      rows: the training split.
      batch_size: B.
      dispatches: per epoch, see `plan_epoch`.
      steps: S, per dispatch.
      epochs: how many to go through in all.
      seed: of the shuffle.
      start: dispatches that are done already.
    """
    source = _DispatchSource(rows, batch_size, dispatches, steps, epochs, seed)
    dataset = grain.MapDataset.source(source)[start:]
    # One reader thread: the order of an epoch is made once and the gather is bound by memory, not by Python.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH_DISPATCHES)
    return iter(dataset.to_iter_dataset(options))


def padded_batches(rows: SplitRows, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (words_BxW, mask_B) over a split in its order; the last batch is padded and the mask says where."""
    for start in range(0, len(rows), batch_size):
        index_B = np.arange(start, start + batch_size)
        yield rows.gather(np.minimum(index_B, len(rows) - 1)), index_B < len(rows)
