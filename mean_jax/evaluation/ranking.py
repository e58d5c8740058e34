"""A split sorted once by prediction, and every metric of any resample of it in linear time.

A bootstrap resample is a count per row. Sorting does not depend on the counts, so `RankedSplit` does it once and
`Resample` evaluates the definitions of BASELINES.md section 7 on the rows repeated `counts_V` times without ever
repeating them (only the curves of the mutual Gini are spelled out).

All ranking metrics rest on one quantity, the centred rank of a row: rows below it minus rows above it, an integer
that is exactly 0 for every row when all values tie. With average ranks r it is ``2 r - V - 1``, so

  Gini (trapezoid, ties replaced by their mean label) = sum(y d) / (V sum(y)),
  AUC (ties count 1/2)                                = (1 + sum_{positive} d / (P Q)) / 2,
  Spearman (average ranks)                            = the correlation of d(y) and d(prediction).
"""

from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

GiniCompat = Literal["google"] | None
ZeroBins = Literal["skip", "inf", "merge"]
BinWeight = Literal["uniform", "label"]

TIE_SEED = 0  # the order of rows with equal predictions is random but the same in every program


class BinnedError(NamedTuple):
    """A binned error and the number of bins that it leaves out because nobody in them spent anything."""

    value: float
    skipped: int


def checked_pair(label_V: np.ndarray, prediction_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both vectors as float64.

    Raises:
      ValueError: not two vectors of one length >= 1, a value that is not finite, or a negative label.
    """
    label_V = np.asarray(label_V, np.float64)
    prediction_V = np.asarray(prediction_V, np.float64)
    if label_V.ndim != 1 or label_V.shape != prediction_V.shape or label_V.size == 0:
        raise ValueError(
            f"labels {label_V.shape} and predictions {prediction_V.shape} must be vectors of one length >= 1"
        )
    for name, value_V in (("label", label_V), ("prediction", prediction_V)):
        is_bad_V = ~np.isfinite(value_V)
        if is_bad_V.any():
            row = int(np.argmax(is_bad_V))
            raise ValueError(f"{name} of row {row} is {value_V[row]}; remove rows without a finite {name}")
    if label_V.min() < 0:
        raise ValueError(f"label of row {int(np.argmin(label_V))} is {label_V.min()}; labels must be >= 0")
    return label_V, prediction_V


def rank_order(prediction_V: np.ndarray, seed: int = TIE_SEED) -> np.ndarray:
    """Returns the row numbers in ascending order of prediction, ties in a seeded random order.

    A stable sort after a random permutation (BASELINES.md 7.2): the order of tied rows depends neither on their
    labels nor on an order by label that the rows may have come in.
    """
    shuffled_V = np.random.default_rng(seed).permutation(len(prediction_V))
    return shuffled_V[np.argsort(prediction_V[shuffled_V], kind="stable")]


def bin_edges(num_rows: int, n_bins: int) -> np.ndarray:
    """Returns the ranks between which the bins lie, int64 (bins + 1,); sizes differ by at most 1.

    There are `n_bins` bins, or as many as rows where these are fewer, so that no bin is empty.
    """
    if n_bins < 1:
        raise ValueError(f"n_bins is {n_bins}; need at least 1")
    n_bins = min(n_bins, num_rows)
    return np.arange(n_bins + 1, dtype=np.int64) * num_rows // n_bins


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator != 0 else float("nan")


def _dot(a_V: np.ndarray, b_V: np.ndarray) -> float:
    """Returns the sum of products, in one order on every machine; BLAS would start threads within each resample's."""
    return float(np.sum(a_V * b_V, dtype=np.float64))


class RankedSplit:
    """Labels and predictions of V rows in ascending order of prediction, with the groups of equal values."""

    def __init__(self, label_V: np.ndarray, prediction_V: np.ndarray, seed: int = TIE_SEED):
        label_V, prediction_V = checked_pair(label_V, prediction_V)
        order_V = rank_order(prediction_V, seed)
        self.label_V = label_V[order_V]
        self.prediction_V = prediction_V[order_V]
        self.num_rows = len(label_V)
        self.error_V = self.prediction_V - self.label_V

    @cached_property
    def prediction_group_V(self) -> np.ndarray:
        """The number of each row's group of equal predictions, ascending from 0."""
        is_new_V = np.zeros(self.num_rows, np.int64)
        is_new_V[1:] = self.prediction_V[1:] != self.prediction_V[:-1]
        return np.cumsum(is_new_V)

    @cached_property
    def label_values_and_group_V(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct labels, ascending, and the number of each row's label among them."""
        return np.unique(self.label_V, return_inverse=True)


class Resample:
    """The metrics of a split whose row i occurs `counts_V[i]` times (once each by default)."""

    def __init__(self, split: RankedSplit, counts_V: np.ndarray | None = None):
        self.split = split
        self.counts_V = np.ones(split.num_rows, np.int64) if counts_V is None else counts_V
        self.num_rows = int(self.counts_V.sum())
        self.label_sum = _dot(self.counts_V, split.label_V)

    @cached_property
    def _prediction_rank_V(self) -> np.ndarray:
        return self._centred_ranks(np.bincount(self.split.prediction_group_V, weights=self.counts_V))[
            self.split.prediction_group_V
        ]

    @cached_property
    def _label_count_G(self) -> np.ndarray:
        _, group_V = self.split.label_values_and_group_V
        return np.bincount(group_V, weights=self.counts_V)

    @cached_property
    def _label_rank_V(self) -> np.ndarray:
        _, group_V = self.split.label_values_and_group_V
        return self._centred_ranks(self._label_count_G)[group_V]

    @staticmethod
    def _centred_ranks(count_G: np.ndarray) -> np.ndarray:
        """Rows below minus rows above, for each of G ascending groups of equal values."""
        end_G = np.cumsum(count_G)
        return 2 * end_G - count_G - end_G[-1]

    @cached_property
    def _weighted_label_V(self) -> np.ndarray:
        return self.counts_V * self.split.label_V

    @cached_property
    def _cumulative(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, labels and predictions summed over the rows before each position, (V + 1,) each."""
        values = (self.counts_V, self._weighted_label_V, self.counts_V * self.split.prediction_V)
        rows_V, label_V, prediction_V = (np.concatenate(([0], np.cumsum(value_V))) for value_V in values)
        return rows_V, label_V, prediction_V

    def gini_raw(self, compat: GiniCompat = None) -> float:
        """See `metrics.gini_raw`."""
        excess = 1 / self.num_rows if compat == "google" else 0.0
        return _ratio(_dot(self._weighted_label_V, self._prediction_rank_V), self.num_rows * self.label_sum) + excess

    def gini(self, compat: GiniCompat = None) -> float:
        """See `metrics.gini`."""
        perfect = _ratio(_dot(self._weighted_label_V, self._label_rank_V), self.num_rows * self.label_sum)
        if not perfect > 0:  # no label is positive, or all are equal
            return float("nan")
        return self.gini_raw(compat) / (perfect + (1 / self.num_rows if compat == "google" else 0.0))

    def spearman(self) -> float:
        """See `metrics.spearman`."""
        weighted_V = self.counts_V * self._label_rank_V
        label_variance = _dot(weighted_V, self._label_rank_V)
        prediction_variance = _dot(self.counts_V * self._prediction_rank_V, self._prediction_rank_V)
        return _ratio(_dot(weighted_V, self._prediction_rank_V), np.sqrt(label_variance * prediction_variance))

    def auc(self, threshold: float = 0.0) -> float:
        """See `metrics.auc`."""
        positive_count_V = self.counts_V * (self.split.label_V > threshold)
        num_positive = int(positive_count_V.sum())
        pairs = num_positive * (self.num_rows - num_positive)
        return (1 + _ratio(_dot(positive_count_V, self._prediction_rank_V), pairs)) / 2

    def mutual_gini(self) -> float:
        """See `metrics.mutual_gini`."""
        value_G, _ = self.split.label_values_and_group_V
        label_curve_V = np.cumsum(np.repeat(value_G, self._label_count_G.astype(np.int64)))
        prediction_curve_V = np.cumsum(np.repeat(np.maximum(self.split.prediction_V, 0), self.counts_V))
        if label_curve_V[-1] == 0 or prediction_curve_V[-1] == 0:
            return float("nan")
        difference_V = label_curve_V / label_curve_V[-1] - prediction_curve_V / prediction_curve_V[-1]
        # Both curves are 0 at 0 and 1 at 1, so the trapezoid rule is the plain mean over the other grid points. The
        # shares of the lowest x mirror those of the top x; the area between the curves is the same.
        return float(np.mean(np.abs(difference_V)))

    def binned_mape(self, n_bins: int, zero: ZeroBins = "skip", weight: BinWeight = "uniform") -> BinnedError:
        """See `metrics.binned_mape`."""
        edge = bin_edges(self.num_rows, n_bins)
        rows_V, label_V, prediction_V = self._cumulative
        # The position whose repeats hold rank `edge`; on a boundary between rows the partial term is exactly 0, so a
        # bin without spend has a label sum of exactly 0.
        position = np.minimum(np.searchsorted(rows_V, edge, side="right") - 1, self.split.num_rows - 1)
        partial = edge - rows_V[position]
        label_sum = np.diff(label_V[position] + partial * self.split.label_V[position])
        prediction_sum = np.diff(prediction_V[position] + partial * self.split.prediction_V[position])
        if zero == "merge":
            label_sum, prediction_sum = _merge_zero_bins(label_sum, prediction_sum)
        error = np.abs(prediction_sum - label_sum)
        if weight == "label":
            return BinnedError(_ratio(error.sum(), label_sum.sum()), 0)
        has_spend = label_sum > 0
        skipped = int(np.count_nonzero(~has_spend))
        if zero == "inf" and np.any(error[~has_spend] > 0):
            return BinnedError(float("inf"), 0)
        relative = error[has_spend] / label_sum[has_spend]
        return BinnedError(float(relative.mean()) if relative.size else float("nan"), skipped)

    def mae(self) -> float:
        """See `metrics.mae`."""
        return _dot(self.counts_V, np.abs(self.split.error_V)) / self.num_rows

    def rmse(self) -> float:
        """See `metrics.rmse`."""
        return float(np.sqrt(_dot(self.counts_V * self.split.error_V, self.split.error_V) / self.num_rows))

    def bias(self) -> float:
        """See `metrics.bias`."""
        return _ratio(_dot(self.counts_V, self.split.prediction_V), self.label_sum)

    def positive_rate(self) -> float:
        """See `metrics.positive_rate`."""
        return float(self.counts_V[self.split.label_V > 0].sum()) / self.num_rows


def _merge_zero_bins(label_sum: np.ndarray, prediction_sum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds each bin without spend to the next higher one with spend (the highest ones to the last with spend)."""
    with_spend = np.flatnonzero(label_sum > 0)
    if with_spend.size == 0:
        return label_sum, prediction_sum
    target = np.minimum(np.searchsorted(with_spend, np.arange(len(label_sum))), len(with_spend) - 1)
    return np.bincount(target, weights=label_sum), np.bincount(target, weights=prediction_sum)
