"""Bootstrap intervals of statistics that are computed from a count per row.

Resampling V rows with replacement is drawing one multinomial count per row, so a statistic that accepts counts needs
no copy of the data. Draws depend on the seed, the number of rows and the number of the resample only.
"""

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from mean_jax.threads import available_processors

Name = TypeVar("Name", bound=Hashable)

COVERAGE = 0.95
# Drawing costs 10 to 20 ns per row and resample, evaluating 20 to 50 in each unit; beyond this many draws fewer
# resamples are made, never fewer than MIN_RESAMPLES, from which 2.5 % quantiles can still be read.
MAX_DRAWS = 200_000_000
MIN_RESAMPLES = 100
_MAX_THREADS = 16  # each holds some seven numbers per row


def effective_resamples(num_rows: int, num_resamples: int) -> int:
    """Returns how many resamples are made of a split of `num_rows` rows when `num_resamples` are asked for."""
    return min(num_resamples, max(MIN_RESAMPLES, MAX_DRAWS // num_rows))


def resample_counts(num_rows: int, resample: int, seed: int) -> np.ndarray:
    """Returns how often each row occurs in resample number `resample`, int64 (V,), summing to V."""
    rng = np.random.default_rng((seed, resample))
    return np.bincount(rng.integers(num_rows, size=num_rows), minlength=num_rows)


def bootstrap(
    statistics_fn: Callable[[np.ndarray], dict[Name, float]],
    num_rows: int,
    num_resamples: int = 200,
    seed: int = 0,
    progress_fn: Callable[[int], None] = lambda num_resampled: None,
) -> dict[Name, np.ndarray]:
    """Returns each statistic on every resample, float64 (resamples,).

    Args:
      statistics_fn: maps counts (V,) to named statistics; NaN where one is undefined. Called by several threads.
      num_rows: V.
      num_resamples: asked for; `effective_resamples` of them are made.
      seed: of the draws.
      progress_fn: called with the rows of each resample once it is done, in the caller's thread.
    """
    resamples = range(effective_resamples(num_rows, num_resamples))
    replicates = []
    with ThreadPoolExecutor(min(_MAX_THREADS, available_processors())) as pool:
        for replicate in pool.map(lambda number: statistics_fn(resample_counts(num_rows, number, seed)), resamples):
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
