"""Bootstrap: the law of the draws, how many are made, and intervals of what is undefined on some of them."""

import math

import numpy as np
import pytest
from scipy import stats

from mean_jax.evaluation import intervals


def test_one_block_is_drawn_plainly():
    repeats = intervals.Repeats(1000)
    repeats.draw(3, seed=7)
    rows = np.random.default_rng((7, 3)).integers(1000, size=1000)
    assert repeats.counts_V.tolist() == np.bincount(rows, minlength=1000).tolist()


def test_many_blocks_are_a_multinomial_draw():
    num_rows, block = 150_000, 2**16  # two whole ones and a part
    sums, sizes = [], np.array([block, block, num_rows - 2 * block])
    repeats = intervals.Repeats(num_rows)
    counts_of = np.zeros(6)
    for resample in range(200):
        repeats.draw(resample, seed=1)
        assert repeats.counts_V.sum() == num_rows and repeats.counts_V.min() == 0
        assert np.array_equal(repeats.weights_V, repeats.counts_V)
        assert np.array_equal(repeats.rows_before, np.append(0, np.cumsum(repeats.counts_V)))
        sums.append(np.add.reduceat(repeats.counts_V, [0, block, 2 * block]))
        counts_of += np.bincount(np.minimum(repeats.counts_V, 5), minlength=6)
    first, second = repeats.counts_V[:block], repeats.counts_V[block : 2 * block]
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(block)  # no bits serve twice
    part = repeats.counts_V[2 * block :]
    assert abs(np.corrcoef(first[: len(part)], part)[0, 1]) < 5 / np.sqrt(len(part))
    share = sizes / num_rows
    covariance = num_rows * (np.diag(share) - np.outer(share, share))
    assert np.cov(np.transpose(sums)) == pytest.approx(covariance, rel=0.35)
    assert np.abs(np.mean(sums, axis=0) - sizes).max() < 4 * np.sqrt(covariance.max() / 200)
    law = stats.binom(num_rows, 1 / num_rows).pmf(np.arange(5))
    assert counts_of[:5] / counts_of.sum() == pytest.approx(law, rel=0.01)
    # Every row is as likely as every other: the last draw's rows, in parts of a block.
    of_parts = np.add.reduceat(repeats.counts_V, np.arange(0, num_rows, 10_000))
    assert stats.chisquare(of_parts).pvalue > 1e-4


def test_a_failing_statistic_is_raised():
    def fail(repeats):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        intervals.bootstrap(fail, 100, 50)


def test_large_splits_get_fewer_resamples():
    assert intervals.effective_resamples(1_000_000, 200) == 200
    assert intervals.effective_resamples(1_600_000, 200) == 125
    assert intervals.effective_resamples(10**9, 200) == intervals.MIN_RESAMPLES
    assert intervals.effective_resamples(10**9, 20) == 20


def test_a_statistic_that_is_undefined_on_most_resamples_has_no_interval():
    replicates = np.array([math.nan, math.nan, 1.0])
    assert all(map(math.isnan, intervals.percentile_interval(1.0, replicates)))
