"""Bootstrap intervals of statistics that are computed from a count per row.

Resampling V rows with replacement is drawing one multinomial count per row, so a statistic that accepts counts needs
no copy of the data. Draws depend on the seed, the number of rows and the number of the resample only.
"""

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from mean_jax.threads import available_processors

Name = TypeVar("Name", bound=Hashable)

COVERAGE = 0.95
# Drawing costs about 10 ns per row and resample, evaluating 20 to 50 in each unit; beyond this many draws fewer
# resamples are made, never fewer than MIN_RESAMPLES, from which 2.5 % quantiles can still be read.
MAX_DRAWS = 200_000_000
MIN_RESAMPLES = 100
_BLOCK_ROWS = 2**16  # numbered by 16 random bits
_MAX_THREADS = 16  # each holds some seven numbers per row


def effective_resamples(num_rows: int, num_resamples: int) -> int:
    """Returns how many resamples are made of a split of `num_rows` rows when `num_resamples` are asked for."""
    return min(num_resamples, max(MIN_RESAMPLES, MAX_DRAWS // num_rows))


def _any_16_bits(rng: np.random.Generator, num_draws: int) -> np.ndarray:
    """Returns draws from 0 to 2^16 - 1, uint16 (num_draws,)."""
    return rng.bit_generator.random_raw(-(-num_draws // 4)).view(np.uint16)[:num_draws]


class Repeats:
    """How often each of V rows occurs: once at first, then as in the last resample drawn.

    Its arrays stay where they are, as fresh memory costs more than what is computed in it, and are worked on whole:
    threads that call NumPy for many small parts wait for each other.

    Attributes:
      num_rows: V.
      counts_V: as int64.
      weights_V: the same as float64, for products.
      rows_before: drawn rows before each row and, in the end, all of them; float64 (V + 1,), exact up to 2^53.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.counts_V = np.ones(num_rows, np.int64)
        self.weights_V = np.ones(num_rows)
        self.rows_before = np.arange(num_rows + 1, dtype=np.float64)
        self._sums_V = np.empty(num_rows, np.int64)

    def draw(self, resample: int, seed: int) -> None:
        """Takes the counts of resample number `resample`.

        How many rows fall into each block is drawn first: counting over all of a large split would miss the caches.
        """
        rng = np.random.default_rng((seed, resample))
        starts = range(0, self.num_rows, _BLOCK_ROWS)
        sizes = [min(_BLOCK_ROWS, self.num_rows - start) for start in starts]
        draws = [self.num_rows]
        if len(sizes) > 1:
            draws = rng.multinomial(self.num_rows, np.divide(sizes, self.num_rows)).tolist()
        for start, size, num_drawn in zip(starts, sizes, draws, strict=True):
            rows = rng.integers(size, size=num_drawn) if size < _BLOCK_ROWS else _any_16_bits(rng, num_drawn)
            self.counts_V[start : start + size] = np.bincount(rows, minlength=size)
        self.weights_V[:] = self.counts_V
        # Summed as integers: a sum of floating numbers has to wait for the one before.
        self.rows_before[1:] = np.cumsum(self.counts_V, out=self._sums_V)


def bootstrap(
    statistics_fn: Callable[[Repeats], dict[Name, float]],
    num_rows: int,
    num_resamples: int = 200,
    seed: int = 0,
    progress_fn: Callable[[int], None] = lambda num_resampled: None,
) -> dict[Name, np.ndarray]:
    """Returns each statistic on every resample, float64 (resamples,).

    Args:
      statistics_fn: maps a resample to named statistics; NaN where one is undefined. Called by several threads.
      num_rows: V.
      num_resamples: asked for; `effective_resamples` of them are made.
      seed: of the draws.
      progress_fn: called with the rows of each resample once it is done, in the caller's thread.
    """
    resamples = range(effective_resamples(num_rows, num_resamples))
    num_threads = max(1, min(_MAX_THREADS, available_processors(), len(resamples)))
    idle: SimpleQueue[Repeats] = SimpleQueue()
    for _ in range(num_threads):
        idle.put(Repeats(num_rows))

    def evaluate(resample: int) -> dict[Name, float]:
        repeats = idle.get()
        try:
            repeats.draw(resample, seed)
            return statistics_fn(repeats)
        finally:
            idle.put(repeats)

    replicates = []
    with ThreadPoolExecutor(num_threads) as pool:
        for replicate in pool.map(evaluate, resamples):
            replicates.append(replicate)
            progress_fn(num_rows)
    return {name: np.array([replicate[name] for replicate in replicates]) for name in replicates[0]}


def percentile_interval(value: float, replicates: np.ndarray, rescale: bool = False) -> tuple[float, float]:
    """Returns the interval between the outer quantiles of the replicates (COVERAGE of them lie inside).

    Replicates on which the statistic is undefined are left out; where they are more than half, or the value itself is
    undefined, the interval is (NaN, NaN).

    Args:
      value: the statistic on the data itself.
      replicates: the statistic on each resample.
      rescale: for a statistic >= 0 that adds up absolute deviations. Resampling adds noise to the noise that the data
        already has, so its replicates lie above the value and their quantiles would exclude it; they are scaled to
        have the value as their mean. The interval then says how much the statistic varies between samples of this
        size.
    """
    defined = replicates[np.isfinite(replicates)]
    if not np.isfinite(value) or len(defined) * 2 <= len(replicates):
        return float("nan"), float("nan")
    mean = defined.mean()
    if rescale and mean > 0:
        defined = defined * (value / mean)
    low, high = np.quantile(defined, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
