"""A split sorted once by prediction, and every metric of any resample of it in linear time.

A bootstrap resample is a count per row. Sorting does not depend on the counts, so `RankedSplit` does it once and
`Resample` evaluates the definitions of BASELINES.md section 7 on the rows repeated `counts_V` times without ever
repeating them (only the upper part of the mutual Gini's curves is spelled out).

All ranking metrics rest on one quantity, the centred rank of a row: rows below it minus rows above it, an integer
that is exactly 0 for every row when all values tie. With average ranks r it is ``2 r - V - 1``, so

  Gini (trapezoid, ties replaced by their mean label) = sum(y d) / (V sum(y)),
  AUC (ties count 1/2)                                = (1 + sum_{positive} d / (P Q)) / 2,
  Spearman (average ranks)                            = the correlation of d(y) and d(prediction).

Dimensions: V rows, P rows with a label > 0, G distinct labels among those, U groups of equal predictions,
L rows of lowest prediction, as many as fit into the share of those without spend.
"""

from functools import cached_property
import threading
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


class _Room(threading.local):
    """Memory of a thread, kept as long as it lives: fresh pages cost more than what is computed in them."""

    def __init__(self, dtype: type) -> None:
        self._values: np.ndarray = np.empty(0, dtype)

    def __call__(self, size: int) -> np.ndarray:
        """Returns an array of a size with anything in it, until the next call."""
        if len(self._values) < size:
            self._values = np.empty(size, self._values.dtype)
        return self._values[:size]


_room, _integer_room = _Room(np.float64), _Room(np.int64)


def _products(a_V: np.ndarray, b_V: np.ndarray) -> np.ndarray:
    return np.multiply(a_V, b_V, out=_room(len(a_V)), dtype=np.float64)


def _dot(a_V: np.ndarray, b_V: np.ndarray) -> float:
    """Returns the sum of products, in one order on every machine; BLAS would start threads within each resample's."""
    return float(np.sum(_products(a_V, b_V)))


class RankedSplit:
    """Labels and predictions of V rows in ascending order of prediction, with the groups of equal values.

    Most customers spend nothing, so what needs labels is kept for the P rows with a label > 0 alone.
    """

    def __init__(self, label_V: np.ndarray, prediction_V: np.ndarray, seed: int = TIE_SEED):
        label_V, prediction_V = checked_pair(label_V, prediction_V)
        order_V = rank_order(prediction_V, seed)
        self.label_V = label_V[order_V]
        self.prediction_V = prediction_V[order_V]
        self.num_rows = len(label_V)
        self.positive_P = np.flatnonzero(self.label_V)
        self.label_P = self.label_V[self.positive_P]
        self.label_value_G, self.label_group_P = np.unique(self.label_P, return_inverse=True)  # ascending
        # Groups of equal predictions, numbered from 0: the last row of each, and the group of the positive rows.
        is_last_V = np.append(self.prediction_V[1:] != self.prediction_V[:-1], True)
        self.has_ties = not is_last_V.all()
        self.last_row_U = np.flatnonzero(is_last_V)
        self.prediction_group_P = np.searchsorted(self.last_row_U, self.positive_P)

    @cached_property
    def spend_V(self) -> np.ndarray:
        """Predictions, those below 0 as 0."""
        return np.maximum(self.prediction_V, 0)

    @cached_property
    def absolute_error_V(self) -> np.ndarray:
        """How far predictions are from labels."""
        return np.abs(self.prediction_V - self.label_V)

    @cached_property
    def squared_error_V(self) -> np.ndarray:
        """Its square."""
        return np.square(self.absolute_error_V)


class Resample:
    """The metrics of a split whose row i occurs `counts_V[i]` times (once each by default)."""

    def __init__(self, split: RankedSplit, counts_V: np.ndarray | None = None):
        self.split = split
        self.counts_V = np.ones(split.num_rows, np.int64) if counts_V is None else counts_V
        self._sums_before: tuple[np.ndarray, np.ndarray] | None = None  # for both numbers of bins
        self._end_V = np.cumsum(self.counts_V)
        self.num_rows = int(self._end_V[-1])
        # Labels. No cached_property from here on: in Python 3.11 threads would wait for each other.
        self._count_P = self.counts_V[split.positive_P]
        self._num_positive = int(self._count_P.sum())
        self._weighted_label_P = self._count_P * split.label_P
        self._label_sum = float(np.sum(self._weighted_label_P))
        count_G = np.bincount(split.label_group_P, self._count_P, minlength=len(split.label_value_G))
        self._label_count_G = count_G.astype(np.int64)
        end_G = self.num_rows - self._num_positive + np.cumsum(self._label_count_G)
        self._label_rank_G = _centred_ranks(self._label_count_G, end_G, self.num_rows)
        self._label_rank_P = self._label_rank_G[split.label_group_P]
        # Predictions: rows in each group of equal ones, and rows up to its end.
        self._prediction_count_U, self._prediction_end_U = self.counts_V, self._end_V
        if split.has_ties:
            self._prediction_end_U = self._end_V[split.last_row_U]
            self._prediction_count_U = np.diff(self._prediction_end_U, prepend=0)
        group_P = split.prediction_group_P
        self._prediction_rank_P = _centred_ranks(
            self._prediction_count_U[group_P], self._prediction_end_U[group_P], self.num_rows
        )

    def _prediction_variance(self) -> float:
        """Returns the sum of the squared centred ranks of the predictions."""
        count_U = self._prediction_count_U
        if self.split.has_ties:
            return _dot(count_U, np.square(_centred_ranks(count_U, self._prediction_end_U, self.num_rows)))
        # (N^3 - sum of t^3) / 3 for groups of t of N rows: exact enough where all groups are small.
        groups_of_size = np.bincount(count_U)
        return (float(self.num_rows) ** 3 - _dot(groups_of_size, np.arange(len(groups_of_size), dtype=float) ** 3)) / 3

    def gini_raw(self, compat: GiniCompat = None) -> float:
        """See `metrics.gini_raw`."""
        excess = 1 / self.num_rows if compat == "google" else 0.0
        area = _dot(self._weighted_label_P, self._prediction_rank_P)
        return _ratio(area, self.num_rows * self._label_sum) + excess

    def gini(self, compat: GiniCompat = None) -> float:
        """See `metrics.gini`."""
        area = _dot(self._weighted_label_P, self._label_rank_P)  # by rows, as that of the predictions: 1 is then exact
        perfect = _ratio(area, self.num_rows * self._label_sum)
        if not perfect > 0:  # no label is positive, or all are equal
            return float("nan")
        return self.gini_raw(compat) / (perfect + (1 / self.num_rows if compat == "google" else 0.0))

    def spearman(self) -> float:
        """See `metrics.spearman`."""
        zero_rank = -self._num_positive  # of the rows without spend, where there are any
        num_zero = self.num_rows - self._num_positive
        label_variance = num_zero * zero_rank**2 + _dot(self._label_count_G, np.square(self._label_rank_G))
        # Ranks of predictions sum to 0 over all rows, so those without spend, of one rank, need not be gone through.
        weight_P = self._count_P * (self._label_rank_P - zero_rank)
        return _ratio(_dot(weight_P, self._prediction_rank_P), np.sqrt(label_variance * self._prediction_variance()))

    def auc(self, threshold: float = 0.0) -> float:
        """See `metrics.auc`."""
        if threshold < 0:
            return float("nan")  # every label is above it
        count_P = self._count_P * (self.split.label_P > threshold)
        num_above = float(np.sum(count_P))
        pairs = num_above * (self.num_rows - num_above)
        return (1 + _ratio(_dot(count_P, self._prediction_rank_P), pairs)) / 2

    def mutual_gini(self) -> float:
        """See `metrics.mutual_gini`."""
        # The curves are spelled out from the first row on that reaches the share of customers who spend. Below, that of
        # the labels is 0, and the area under that of the predictions follows from the places of each row's repeats.
        num_below = self.num_rows - self._num_positive
        first = int(np.searchsorted(self._end_V, num_below + 1))
        count_L, spend_L = self.counts_V[:first], self.split.spend_V[:first]
        num_points = int(self._end_V[first - 1]) if first else 0
        spend_below = _dot(count_L, spend_L)
        # c repeats of a row that end at place e of n count at c (2 n + 1 - 2 e + c) / 2 places, theirs and higher ones.
        twice_points_L = np.multiply(self._end_V[:first], -2, out=_integer_room(first))
        twice_points_L += count_L
        twice_points_L += 2 * num_points + 1
        twice_points_L *= count_L
        area_below = _dot(twice_points_L, spend_L) / 2
        curve = np.repeat(self.split.spend_V[first:], self.counts_V[first:])
        np.cumsum(curve, out=curve)
        curve += spend_below
        if self._label_sum == 0 or curve[-1] == 0:
            return float("nan")
        total = float(curve[-1])
        curve /= total
        label_curve = np.cumsum(np.repeat(self.split.label_value_G, self._label_count_G))
        curve[len(curve) - len(label_curve) :] -= label_curve / label_curve[-1]
        # Both curves are 0 at 0 and 1 at 1, so the trapezoid rule is the plain mean over the other grid points. The
        # shares of the lowest x mirror those of the top x; the area between the curves is the same.
        return (area_below / total + float(np.sum(np.abs(curve, out=curve)))) / self.num_rows

    def binned_mape(self, n_bins: int, zero: ZeroBins = "skip", weight: BinWeight = "uniform") -> BinnedError:
        """See `metrics.binned_mape`."""
        edge = bin_edges(self.num_rows, n_bins)
        if self._sums_before is None:  # labels before each positive row and at their end, predictions before each row
            weighted_V = _products(self.counts_V, self.split.prediction_V)
            self._sums_before = _cumulative_sums(self._weighted_label_P), _cumulative_sums(weighted_V)
        label, prediction = self._sums_before
        # The position whose repeats hold rank `edge`; on a boundary between rows the partial term is exactly 0, so a
        # bin without spend has a label sum of exactly 0.
        position = np.minimum(np.searchsorted(self._end_V, edge, side="right"), self.split.num_rows - 1)
        partial = edge - (self._end_V[position] - self.counts_V[position])
        label_before = label[np.searchsorted(self.split.positive_P, position)]
        label_sum = np.diff(label_before + partial * self.split.label_V[position])
        prediction_sum = np.diff(prediction[position] + partial * self.split.prediction_V[position])
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
        return _dot(self.counts_V, self.split.absolute_error_V) / self.num_rows

    def rmse(self) -> float:
        """See `metrics.rmse`."""
        return float(np.sqrt(_dot(self.counts_V, self.split.squared_error_V) / self.num_rows))

    def bias(self) -> float:
        """See `metrics.bias`."""
        return _ratio(_dot(self.counts_V, self.split.prediction_V), _dot(self.counts_V, self.split.label_V))

    def positive_rate(self) -> float:
        """See `metrics.positive_rate`."""
        return self._num_positive / self.num_rows


def _centred_ranks(count_G: np.ndarray, end_G: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns rows below minus rows above, for ascending groups that end after so many of `num_rows` rows."""
    return 2 * end_G - count_G - num_rows


def _cumulative_sums(values: np.ndarray) -> np.ndarray:
    """Returns the sums of the values before each place, the one after the last included."""
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, out=sums[1:])
    return sums


def _merge_zero_bins(label_sum: np.ndarray, prediction_sum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds each bin without spend to the next higher one with spend (the highest ones to the last with spend)."""
    with_spend = np.flatnonzero(label_sum > 0)
    if with_spend.size == 0:
        return label_sum, prediction_sum
    target = np.minimum(np.searchsorted(with_spend, np.arange(len(label_sum))), len(with_spend) - 1)
    return np.bincount(target, weights=label_sum), np.bincount(target, weights=prediction_sum)
