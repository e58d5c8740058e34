"""A split sorted once by prediction, and every metric of any resample of it in linear time.

A bootstrap resample is a count per row. Sorting does not depend on the counts, so `RankedSplit` does it once and
`Resample` evaluates the definitions of BASELINES.md section 7 on the rows repeated as `Repeats` says without ever
repeating them (only the upper part of the mutual Gini's curves is spelled out).

All ranking metrics rest on one quantity, the centred rank of a row: rows below it minus rows above it, an integer
that is exactly 0 for every row when all values tie. With average ranks r it is ``2 r - V - 1``, so

  Gini (trapezoid, ties replaced by their mean label) = sum(y d) / (V sum(y)),
  AUC (ties count 1/2)                                = (1 + sum_{positive} d / (P Q)) / 2,
  Spearman (average ranks)                            = the correlation of d(y) and d(prediction).

Dimensions: V rows, P rows with a label > 0, G distinct labels among those, U groups of equal predictions, K of them of
more than one row, J rows in those, L rows of lowest prediction, as many as fit into the share of those without spend.
"""

from functools import cached_property
import threading
from typing import Literal, NamedTuple

import numpy as np

from mean_jax.evaluation.intervals import Repeats

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

    def __init__(self) -> None:
        self._values = np.empty(0)

    def __call__(self, size: int) -> np.ndarray:
        """Returns float64 numbers of any value, until the next call."""
        if len(self._values) < size:
            self._values = np.empty(size)
        return self._values[:size]


_room = _Room()


def _products(first_V: np.ndarray, second_V: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Returns the products of the vectors' elements, until the next call."""
    product_V = np.multiply(first_V, second_V, out=_room(len(first_V)))
    for other_V in others:
        product_V *= other_V
    return product_V


def _dot(*factors: np.ndarray) -> float:
    """Returns the sum of products, in one order on every machine; BLAS would start threads within each resample's."""
    return float(np.add.reduce(_products(*factors)))


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
        # Groups of equal predictions: the first row and the one after the last, of the positive rows and of ties.
        first_U = np.flatnonzero(np.append(True, self.prediction_V[1:] != self.prediction_V[:-1]))
        after_U = np.append(first_U[1:], self.num_rows)
        group_P = np.searchsorted(first_U, self.positive_P, side="right") - 1
        self.group_first_P, self.group_after_P = first_U[group_P], after_U[group_P]
        self.num_negative = int(np.searchsorted(self.prediction_V, 0))
        is_tie_U = after_U - first_U > 1
        self.tie_first_K, self.tie_after_K = first_U[is_tie_U], after_U[is_tie_U]
        self.tied_row_J = np.flatnonzero(np.repeat(is_tie_U, after_U - first_U))

    @cached_property
    def absolute_error_V(self) -> np.ndarray:
        """How far predictions are from labels."""
        return np.abs(self.prediction_V - self.label_V)

    @cached_property
    def squared_error_V(self) -> np.ndarray:
        """Its square."""
        return np.square(self.absolute_error_V)


class Resample:
    """The metrics of a split whose rows are repeated (once each by default), as long as `repeats` stays as it is."""

    def __init__(self, split: RankedSplit, repeats: Repeats | None = None):
        repeats = Repeats(split.num_rows) if repeats is None else repeats
        self.split = split
        self.num_rows = int(repeats.rows_before[-1])
        self._counts_V, self._weights_V = repeats.counts_V, repeats.weights_V
        self._rows_before = repeats.rows_before
        # Labels. No cached_property from here on: in Python 3.11 threads would wait for each other.
        self._count_P = self._weights_V[split.positive_P]
        self._num_positive = int(self._count_P.sum())
        self._weighted_label_P = self._count_P * split.label_P
        self._label_sum = _dot(self._weights_V, split.label_V)  # over all, as that of predictions: their ratio can be 1
        self._label_count_G = np.bincount(split.label_group_P, self._count_P, minlength=len(split.label_value_G))
        end_G = self.num_rows - self._num_positive + np.cumsum(self._label_count_G)
        self._label_rank_G = 2 * end_G - self._label_count_G - self.num_rows
        self._label_rank_P = self._label_rank_G[split.label_group_P]
        self._prediction_rank_P = self._rows_before[split.group_first_P] + self._rows_before[split.group_after_P]
        self._prediction_rank_P -= self.num_rows

    def _prediction_variance(self) -> float:
        """Returns the sum of the squared centred ranks of the predictions: (N^3 - sum of t^3) / 3, groups of t rows."""
        split, weights_V = self.split, self._weights_V
        cubes_V = _products(weights_V, weights_V, weights_V)
        cubes_V[split.tied_row_J] = 0
        cubes = float(np.add.reduce(cubes_V))
        size_K = self._rows_before[split.tie_after_K] - self._rows_before[split.tie_first_K]
        cubes += _dot(size_K, size_K, size_K)
        total = np.array([self.num_rows], np.float64)
        return (_dot(total, total, total) - cubes) / 3  # rounded alike: exactly 0 if one group has all rows

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
        first = int(np.searchsorted(self._rows_before[1:], num_below + 1))
        num_points = float(self._rows_before[first])
        # Each of c repeats counts at its own place and all higher ones: c (n - rows before) - c (c - 1) / 2 in all.
        rows = slice(self.split.num_negative, first)  # negative predictions count as 0
        weights_L, prediction_L = self._weights_V[rows], self.split.prediction_V[rows]
        spend_below = _dot(weights_L, prediction_L)
        area_below = (num_points + 0.5) * spend_below
        area_below -= _dot(weights_L, prediction_L, self._rows_before[rows])
        area_below -= _dot(weights_L, prediction_L, weights_L) / 2
        curve = np.repeat(np.maximum(self.split.prediction_V[first:], 0), self._counts_V[first:])
        np.cumsum(curve, out=curve)
        curve += spend_below
        if self._label_sum == 0 or curve[-1] == 0:
            return float("nan")
        total = float(curve[-1])
        curve /= total
        label_curve = np.cumsum(np.repeat(self.split.label_value_G, self._label_count_G.astype(np.int64)))
        curve[len(curve) - len(label_curve) :] -= label_curve / label_curve[-1]
        # Both curves are 0 at 0 and 1 at 1, so the trapezoid rule is the plain mean over the other grid points. The
        # shares of the lowest x mirror those of the top x; the area between the curves is the same.
        return (area_below / total + float(np.sum(np.abs(curve, out=curve)))) / self.num_rows

    def binned_mape(self, n_bins: int, zero: ZeroBins = "skip", weight: BinWeight = "uniform") -> BinnedError:
        """See `metrics.binned_mape`."""
        edge = bin_edges(self.num_rows, n_bins)
        # The position whose repeats hold rank `edge`, and how many of them lie below it: 0 on a boundary between rows,
        # so the label sum of a bin without spend has only zeros in it and is exactly 0.
        position = np.minimum(np.searchsorted(self._rows_before[1:], edge, side="right"), self.split.num_rows - 1)
        partial = edge - self._rows_before[position]

        def bin_sums(value_V: np.ndarray) -> np.ndarray:
            sums = np.add.reduceat(_products(self._weights_V, value_V), position)[:-1]
            between = np.where(np.diff(position) > 0, sums, 0)
            return between + np.diff(partial * value_V[position])

        label_sum, prediction_sum = bin_sums(self.split.label_V), bin_sums(self.split.prediction_V)
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
        return _dot(self._weights_V, self.split.absolute_error_V) / self.num_rows

    def rmse(self) -> float:
        """See `metrics.rmse`."""
        return float(np.sqrt(_dot(self._weights_V, self.split.squared_error_V) / self.num_rows))

    def bias(self) -> float:
        """See `metrics.bias`."""
        return _ratio(_dot(self._weights_V, self.split.prediction_V), self._label_sum)

    def positive_rate(self) -> float:
        """See `metrics.positive_rate`."""
        return self._num_positive / self.num_rows


def _merge_zero_bins(label_sum: np.ndarray, prediction_sum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds each bin without spend to the next higher one with spend (the highest ones to the last with spend)."""
    with_spend = np.flatnonzero(label_sum > 0)
    if with_spend.size == 0:
        return label_sum, prediction_sum
    target = np.minimum(np.searchsorted(with_spend, np.arange(len(label_sum))), len(with_spend) - 1)
    return np.bincount(target, weights=label_sum), np.bincount(target, weights=prediction_sum)
