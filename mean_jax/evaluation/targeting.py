"""What it is worth to target the customers that a score ranks highest, against targeting as many at random.

Both statistics come with 95 % bootstrap intervals over customers. Ties in the score are broken in a seeded random
order. A random choice stands for the mean over all random choices, which is the mean over all customers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mean_jax.evaluation import intervals
from mean_jax.evaluation.ranking import rank_order


class Comparison(NamedTuple):
    """A quantity per customer among the targeted, among a random choice, and their difference with its interval."""

    targeted: float
    random: float
    difference: float
    low: float
    high: float


def top_weights(counts_V: np.ndarray, share: float) -> np.ndarray:
    """Returns how much of each row is among the first `share` of all rows.

    Args:
      counts_V: how often each row occurs, rows in descending order of score.
      share: in (0, 1].
    """
    before_V = np.cumsum(counts_V) - counts_V
    return np.clip(share * counts_V.sum() - before_V, 0, counts_V)


def _mean(weight_V: np.ndarray, value_V: np.ndarray) -> float:
    total = weight_V.sum()
    return float(weight_V @ value_V / total) if total > 0 else float("nan")


def _effect(weight_V: np.ndarray, value_V: np.ndarray, is_treated_V: np.ndarray) -> float:
    return _mean(weight_V * is_treated_V, value_V) - _mean(weight_V * ~is_treated_V, value_V)


def compare_lift(
    outcome_V: np.ndarray, score_V: np.ndarray, share: float, num_resamples: int = 400, seed: int = 0
) -> Comparison:
    """Returns the mean outcome of the top `share` by score against that of a random choice.

    On data that is not randomised this says how well the score finds customers with a high outcome, not what
    contacting them changes.

    Args:
      outcome_V: any quantity, e.g. spend, or 0 and 1.
      score_V: higher is better.
      share: of the customers that are targeted, in (0, 1].
      num_resamples: of the bootstrap.
      seed: of the bootstrap.
    """
    order_V = rank_order(score_V)[::-1]
    outcome_V = np.asarray(outcome_V, np.float64)[order_V]

    def statistics(repeats: intervals.Repeats) -> dict[str, float]:
        top_V = top_weights(repeats.weights_V, share)
        return {"targeted": _mean(top_V, outcome_V), "random": _mean(repeats.weights_V, outcome_V)}

    return _compare(statistics, len(order_V), num_resamples, seed)


def compare_incremental(
    outcome_V: np.ndarray,
    is_treated_V: np.ndarray,
    score_V: np.ndarray,
    share: float,
    num_resamples: int = 400,
    seed: int = 0,
) -> Comparison:
    """Returns what treating changes per customer among the top `share` by score, against that for a random choice.

    The effect is the mean outcome of the treated minus that of the untreated, which is causal where treatment was
    drawn at random.

    Args:
      outcome_V: any quantity, e.g. spend.
      is_treated_V: bool, drawn at random.
      score_V: higher is better; must not depend on the treatment.
      share: of the customers that are targeted, in (0, 1].
      num_resamples: of the bootstrap.
      seed: of the bootstrap.
    """
    order_V = rank_order(score_V)[::-1]
    outcome_V = np.asarray(outcome_V, np.float64)[order_V]
    is_treated_V = np.asarray(is_treated_V, bool)[order_V]

    def statistics(repeats: intervals.Repeats) -> dict[str, float]:
        targeted = _effect(top_weights(repeats.weights_V, share), outcome_V, is_treated_V)
        return {"targeted": targeted, "random": _effect(repeats.weights_V, outcome_V, is_treated_V)}

    return _compare(statistics, len(order_V), num_resamples, seed)


def _compare(
    statistics_fn: Callable[[intervals.Repeats], dict[str, float]], num_rows: int, num_resamples: int, seed: int
) -> Comparison:
    value = statistics_fn(intervals.Repeats(num_rows))
    replicates = intervals.bootstrap(statistics_fn, num_rows, num_resamples, seed)
    difference = value["targeted"] - value["random"]
    low, high = intervals.percentile_interval(difference, replicates["targeted"] - replicates["random"])
    return Comparison(value["targeted"], value["random"], difference, low, high)
