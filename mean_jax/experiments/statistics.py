"""Statistics over seeds: spread, paired differences, and the agreement of two orders."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from mean_jax.experiments.results import DETERMINISTIC

CONFIDENCE = 0.95
HIGHER_IS_BETTER = ("gini", "gini_raw", "spearman", "auc")


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; the latter is NaN for a single one."""

    mean: float
    deviation: float


class Difference(NamedTuple):
    """The mean of paired differences over seeds and the half width of its 95 % t interval."""

    mean: float
    half_width: float  # NaN for a single pair

    @property
    def is_larger_than_noise(self) -> bool:
        """Whether the interval excludes 0; never true for a single pair."""
        return bool(abs(self.mean) > self.half_width)


def goodness(metric: str, value: float) -> float:
    """Returns a number that grows as the metric improves: the value, its negative, or the bias's nearness to 1."""
    if metric == "bias":
        return -abs(value - 1.0)
    return value if metric in HIGHER_IS_BETTER else -value


def spread(values: Mapping[int, float]) -> Spread:
    """Returns mean and standard deviation of one value per seed."""
    array = np.array(list(values.values()), np.float64)
    if not len(array):
        return Spread(np.nan, np.nan)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else np.nan)


def paired_difference(reference: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """Returns reference minus other over the seeds that both have.

    A system with a single value is compared with every seed of the reference. Where it was fitted once although it is
    random, its own noise is taken to be that of the reference, and the interval is that of a prediction.

    Args:
      reference: a value per seed.
      other: a value per seed, or one value, whose seed is DETERMINISTIC if nothing in the system is random.
    """
    num_random = 0  # values of `other` whose noise the differences do not show
    if len(other) == 1:
        ((other_seed, constant),) = other.items()
        num_random = int(other_seed != DETERMINISTIC)
        other = dict.fromkeys(reference, constant)
    seeds = sorted(set(reference) & set(other))
    differences = np.array([reference[seed] - other[seed] for seed in seeds], np.float64)
    if not len(differences):
        return Difference(np.nan, np.nan)
    if len(differences) == 1:
        return Difference(float(differences[0]), np.nan)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    half_width = quantile * differences.std(ddof=1) * np.sqrt(num_random + 1 / len(differences))
    return Difference(float(differences.mean()), float(half_width))


def order_agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """Returns Kendall's tau-b between two orders of the systems that both have; 1 the same, -1 the reverse."""
    names = [name for name in ours if name in theirs and np.isfinite(ours[name])]
    if len(names) < 2:
        return float("nan")
    return float(stats.kendalltau([ours[name] for name in names], [theirs[name] for name in names]).statistic)
