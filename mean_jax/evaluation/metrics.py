"""Metrics of predicted customer value: ranking, agreement per bin, error and total (BASELINES.md section 7).

Every function takes labels (V,), finite and >= 0, and predictions (V,), finite and of any sign, in the same unit, and
raises ValueError otherwise: remove rows with an unknown label first. Sums are float64. A metric that is undefined on
the data (no spend at all, only one class, constant values) is NaN, never an exception.
"""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from mean_jax.evaluation import intervals
from mean_jax.evaluation.ranking import (
    TIE_SEED,
    BinnedError,
    BinWeight,
    GiniCompat,
    RankedSplit,
    Resample,
    ZeroBins,
    checked_pair,
)
from mean_jax.progress import Progress
from mean_jax.threads import map_ahead

NUM_PERCENTILE_BINS = 100
NUM_DECILE_BINS = 10
_COUNTS = ("percentile_mape_bins_skipped", "rows")  # describe the split, so they carry no interval
_ABSOLUTE_DEVIATIONS = ("percentile_mape", "decile_mape", "mutual_gini")  # see intervals.percentile_interval


def gini_raw(label_V: np.ndarray, prediction_V: np.ndarray, *, compat: GiniCompat = None) -> float:
    """Returns the Gini index of the gain curve, in [-1, 1]; 0 for a random order (7.1).

    Twice the area between the diagonal and the share of spend held by the top customers in order of prediction, by
    the trapezoid rule from (0, 0). Equal predictions share their mean label: a constant predictor has exactly 0.
    `compat="google"` gives the reference code's rectangle rule, larger by 1 / V. NaN when nobody spends.
    """
    return Resample(RankedSplit(label_V, prediction_V)).gini_raw(compat)


def gini(label_V: np.ndarray, prediction_V: np.ndarray, *, compat: GiniCompat = None) -> float:
    """Returns the raw Gini divided by that of a perfect order, so 1 is perfect (7.1).

    With 0/1 labels it is exactly 2 AUC - 1. `compat="google"` divides the rectangle-rule values instead. NaN when
    nobody spends or all spend the same.
    """
    return Resample(RankedSplit(label_V, prediction_V)).gini(compat)


def binned_mape(
    label_V: np.ndarray,
    prediction_V: np.ndarray,
    n_bins: int,
    *,
    zero: ZeroBins = "skip",
    weight: BinWeight = "uniform",
    seed: int = TIE_SEED,
) -> BinnedError:
    """Returns how far predicted and actual bin means are apart, as a fraction, and the number of skipped bins (7.2).

    Rows are ordered by prediction (ties in a seeded random order) and cut into `n_bins` parts whose sizes differ by
    at most 1; each bin contributes ``|mean prediction - mean label| / mean label``.

    Args:
      label_V: spend.
      prediction_V: predicted spend, same unit.
      n_bins: 10 for the decile MAPE, 100 for the percentile MAPE; at most V are used.
      zero: what to do with a bin in which nobody spends. "skip" leaves it out and counts it, "merge" adds it to the
        next higher bin with spend (the highest ones to the last with spend), "inf" gives infinity as the reference
        code does (unless the predictions are 0 too).
      weight: "uniform" averages over bins; "label" weights each by its spend, which makes the error of every bin
        count and the value finite, so that nothing is skipped.
      seed: of the order of equal predictions.
    """
    if zero not in ("skip", "inf", "merge") or weight not in ("uniform", "label"):
        raise ValueError(f"zero={zero!r} must be skip, inf or merge and weight={weight!r} uniform or label")
    return Resample(RankedSplit(label_V, prediction_V, seed)).binned_mape(n_bins, zero, weight)


def spearman(label_V: np.ndarray, prediction_V: np.ndarray) -> float:
    """Returns Spearman's rank correlation, average ranks for ties; NaN if either side is constant (7.3).

    A share q of zero labels limits it to sqrt(1 - q^3) for predictions without ties.
    """
    return Resample(RankedSplit(label_V, prediction_V)).spearman()


def auc(label_V: np.ndarray, prediction_V: np.ndarray, *, threshold: float = 0.0) -> float:
    """Returns the chance that a customer above `threshold` outranks one below it, ties 1/2; NaN for one class (7.4)."""
    return Resample(RankedSplit(label_V, prediction_V)).auc(threshold)


def mutual_gini(label_V: np.ndarray, prediction_V: np.ndarray) -> float:
    """Returns the area between the Lorenz curves of labels and of predictions; lower is better (7.5).

    Each side is sorted by itself, so it compares the two distributions and ignores ranking and total. The absolute
    value stands inside the integral. Predictions < 0 count as 0; NaN if either side has no positive value.
    """
    return Resample(RankedSplit(label_V, prediction_V)).mutual_gini()


def mae(label_V: np.ndarray, prediction_V: np.ndarray) -> float:
    """Returns the mean absolute error in the labels' unit; on sparse labels predicting 0 does well (8.0)."""
    label_V, prediction_V = checked_pair(label_V, prediction_V)
    return float(np.mean(np.abs(prediction_V - label_V)))


def rmse(label_V: np.ndarray, prediction_V: np.ndarray) -> float:
    """Returns the root mean squared error in the labels' unit."""
    label_V, prediction_V = checked_pair(label_V, prediction_V)
    return float(np.sqrt(np.mean(np.square(prediction_V - label_V))))


def _per_mean_label(error: float, label_V: np.ndarray) -> float:
    mean = float(np.mean(label_V, dtype=np.float64))
    return error / mean if mean > 0 else math.nan


def nmae(label_V: np.ndarray, prediction_V: np.ndarray) -> float:
    """Returns the mean absolute error over the mean label; NaN when nobody spends (7.6)."""
    return _per_mean_label(mae(label_V, prediction_V), label_V)


def nrmse(label_V: np.ndarray, prediction_V: np.ndarray) -> float:
    """Returns the root mean squared error over the mean label; NaN when nobody spends (7.6)."""
    return _per_mean_label(rmse(label_V, prediction_V), label_V)


def ambe(label_V: np.ndarray, prediction_V: np.ndarray) -> float:
    """Returns the absolute value of the mean error, in the labels' unit (7.6)."""
    label_V, prediction_V = checked_pair(label_V, prediction_V)
    return float(abs(np.mean(prediction_V - label_V)))


def bias(label_V: np.ndarray, prediction_V: np.ndarray) -> float:
    """Returns predicted over actual total; 1 is right, NaN when nobody spends."""
    label_V, prediction_V = checked_pair(label_V, prediction_V)
    return _per_mean_label(float(np.mean(prediction_V)), label_V)


def positive_rate(label_V: np.ndarray) -> float:
    """Returns the share of rows with a label > 0."""
    return float(np.mean(np.asarray(label_V) > 0))


def _all_metrics(resample: Resample) -> dict[str, float]:
    percentile = resample.binned_mape(NUM_PERCENTILE_BINS)
    return {
        "percentile_mape": percentile.value,
        "percentile_mape_bins_skipped": percentile.skipped,
        "decile_mape": resample.binned_mape(NUM_DECILE_BINS).value,
        "gini": resample.gini(),
        "gini_raw": resample.gini_raw(),
        "spearman": resample.spearman(),
        "auc": resample.auc(),
        "mutual_gini": resample.mutual_gini(),
        "mae": resample.mae(),
        "rmse": resample.rmse(),
        "bias": resample.bias(),
        "rows": resample.num_rows,
        "positive_rate": resample.positive_rate(),
    }


def point_metrics(label_V: np.ndarray, prediction_V: np.ndarray) -> dict[str, float]:
    """Returns the metrics of `summarise` without intervals; NaN where undefined."""
    return _all_metrics(Resample(RankedSplit(label_V, prediction_V)))


def summarise(
    label_V: np.ndarray, prediction_V: np.ndarray, *, num_resamples: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Returns the metrics of one horizon in one unit, ready for JSON.

    Args:
      label_V: labels.
      prediction_V: predictions in the same unit.
      num_resamples: bootstrap resamples; `intervals.effective_resamples` makes fewer of very large splits.
      seed: of the bootstrap; the values do not depend on it.

    Returns:
      ``{name: {"value", "low", "high"}}`` with the 95 % bootstrap percentile interval, and plain integers for "rows"
      and "percentile_mape_bins_skipped". None stands where a metric or its interval is undefined. The intervals of
      the binned errors and of the mutual Gini are rescaled as `intervals.percentile_interval` says.
    """
    return summarise_spaces({"": (label_V, prediction_V)}, num_resamples=num_resamples, seed=seed)[""]


def summarise_spaces(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    num_resamples: int = 200,
    seed: int = 0,
    description: str = "resample",
) -> dict[str, dict[str, Any]]:
    """Returns what `summarise` gives for each unit; all are evaluated on the same resamples, which are drawn once.

    Args:
      pairs: (labels, predictions) of the same rows, by the name of their unit.
      num_resamples: see `summarise`.
      seed: see `summarise`.
      description: of the progress.

    Raises:
      ValueError: the units differ in their number of rows, or there is none.
    """
    splits = dict(zip(pairs, map_ahead(lambda pair: RankedSplit(*pair), pairs.values()), strict=True))
    rows = {space: split.num_rows for space, split in splits.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"rows per unit are {rows}; expected one number")
    num_rows = next(iter(rows.values()))

    def statistics(repeats: intervals.Repeats | None) -> dict[tuple[str, str], float]:
        return {
            (space, name): value
            for space, split in splits.items()
            for name, value in _all_metrics(Resample(split, repeats)).items()
        }

    values = statistics(None)
    with Progress(description, num_rows * intervals.effective_resamples(num_rows, num_resamples)) as progress:
        replicates = intervals.bootstrap(statistics, num_rows, num_resamples, seed, progress.update)
    summaries: dict[str, dict[str, Any]] = {space: {} for space in splits}
    for (space, name), value in values.items():
        if name in _COUNTS:
            summaries[space][name] = int(value)
            continue
        low, high = intervals.percentile_interval(value, replicates[space, name], rescale=name in _ABSOLUTE_DEVIATIONS)
        summaries[space][name] = {
            key: number if math.isfinite(number) else None
            for key, number in (("value", value), ("low", low), ("high", high))
        }
    return summaries
