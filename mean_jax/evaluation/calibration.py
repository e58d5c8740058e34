"""Strictly increasing calibration of predictions to currency, fitted on the validation split.

The curve runs through the mean labels of prediction bins: made monotone by isotonic regression, joined by PCHIP, and
extended linearly above the highest bin. Three things are added to the plain recipe, all so that a calibrated ranking
is the raw ranking, without a single new tie:

- a tilt: a line of slope MIN_ELASTICITY times the proportional one is added, because isotonic regression leaves
  plateaus and PCHIP inflection points;
- below the lowest bin, where a straight line would become negative and clipping it would make ties, the curve goes on
  as ``y0 / (1 + s (x0 - x) / y0)``: the same value and slope at x0, positive and strictly increasing for ever;
- the slope above the highest bin is capped, so that one customer with a large label in a small top bin does not
  multiply every prediction beyond it.

float64 has room for the order of predictions that differ by one float32 step (1e-7 of their size) as long as they
are not within about 1e-5 of zero relative to their spread; differences below 1e-12 of the spread may round away.
"""

from collections.abc import Mapping
import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from mean_jax.evaluation.ranking import checked_pair

# The number of bins grows with the cube root of the positive labels. On simulated zero-inflated log-normal spend this
# came within a few percent of the best number of bins from 2,000 to 200,000 rows; more bins only make the isotonic
# curve a staircase that follows the noise.
MIN_BIN_POSITIVES = 25  # on average; fewer leave a bin mean with a standard error above a third
MIN_BIN_ROWS = 50
# The highest bin is halved while its upper half has this many positive labels: it holds much of the money, and the
# curve is steepest there (a tenth less money-weighted error in the same simulation, a quarter less squared error).
TOP_BIN_POSITIVES = 100
MIN_ELASTICITY = 1e-3  # slope everywhere, relative to proportional growth; moves totals by about a thousandth at most
MAX_ELASTICITY = 2.0  # slope beyond the highest bin, relative to proportional growth
MIN_VALUE = 1e-3  # lowest bin mean, relative to the mean label: the curve must leave room for smaller values below
NO_SPEND_MEAN = 1e-6  # currency; stands in for the mean label where no label is positive


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A strictly increasing, positive map from a prediction of any unit to currency."""

    knots: tuple[float, ...]  # K mean predictions of the bins, strictly increasing
    values: tuple[float, ...]  # K currency values there without the tilt, positive, not decreasing
    tilt: float  # currency per unit of prediction, added between the knots
    lower_slope: float  # of the whole curve just below the first knot
    upper_slope: float  # of the whole curve above the last knot
    num_rows: int  # rows and positive labels it was fitted on
    num_positive: int

    def __post_init__(self) -> None:
        knots, values = np.asarray(self.knots, np.float64), np.asarray(self.values, np.float64)
        slopes = np.array([self.tilt, self.lower_slope, self.upper_slope])
        if knots.ndim != 1 or knots.size == 0 or knots.shape != values.shape:
            raise ValueError(f"calibration has {knots.size} knots and {values.size} values; need as many of both")
        if not (np.isfinite(knots).all() and np.isfinite(values).all() and np.isfinite(slopes).all()):
            raise ValueError("calibration has a knot, value or slope that is not finite")
        if np.any(np.diff(knots) <= 0) or np.any(np.diff(values) < 0) or values[0] <= 0 or np.any(slopes <= 0):
            raise ValueError("calibration is not strictly increasing and positive")

    @cached_property
    def _curve(self) -> PchipInterpolator | None:
        return PchipInterpolator(self.knots, self.values) if len(self.knots) > 1 else None

    def __call__(self, prediction: np.ndarray) -> np.ndarray:
        """Returns calibrated predictions in currency, float64 of the same shape.

        Raises:
          ValueError: a prediction is not finite.
        """
        prediction = np.asarray(prediction, np.float64)
        if not np.isfinite(prediction).all():
            raise ValueError("a prediction to be calibrated is not finite")
        first, last = self.knots[0], self.knots[-1]
        inside = np.clip(prediction, first, last)
        curve = self._curve(inside) if self._curve is not None else self.values[0]
        value = curve + self.tilt * (inside - first) + self.upper_slope * np.maximum(prediction - last, 0)
        decline = self.lower_slope * np.maximum(first - prediction, 0) / self.values[0]
        return np.asarray(value / (1 + decline))

    def scaled(self, factor: float) -> "Calibration":
        """Returns the calibration whose every value is `factor` > 0 times this one's."""
        return dataclasses.replace(
            self,
            values=tuple(factor * value for value in self.values),
            tilt=factor * self.tilt,
            lower_slope=factor * self.lower_slope,
            upper_slope=factor * self.upper_slope,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers and lists for JSON."""
        return {**dataclasses.asdict(self), "knots": list(self.knots), "values": list(self.values)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Calibration":
        """Returns the calibration that `to_dict` described.

        Raises:
          ValueError: a field is missing, unknown or impossible.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(content) != names:
            raise ValueError(f"calibration has the fields {sorted(content)}, expected {sorted(names)}")
        return cls(**{**content, "knots": tuple(content["knots"]), "values": tuple(content["values"])})


def default_num_bins(num_rows: int, num_positive: int) -> int:
    """Returns the number of equally large bins: the cube root of the number of positive labels, rounded.

    Fewer where a bin would have less than 50 rows or on average less than 25 positive labels. 2,000 rows with 200
    positive labels give 6, 200,000 rows with 20,000 give 27.
    """
    return max(1, min(num_rows // MIN_BIN_ROWS, num_positive // MIN_BIN_POSITIVES, round(num_positive ** (1 / 3))))


def fit_calibration(prediction_V: np.ndarray, label_V: np.ndarray, num_bins: int | None = None) -> Calibration:
    """Returns the calibration of V predictions to their labels; its mean on these rows is the mean label.

    After the curve is built one factor makes the means equal (the curve between bin means and the tilt shift it by a
    little). Degenerate cases keep the ranking and stay finite: constant predictions or too few positive labels for
    two bins give a proportional curve through the means; without any positive label all values are near
    NO_SPEND_MEAN times MIN_VALUE, practically 0.

    Args:
      prediction_V: predictions of the validation split, any unit and sign.
      label_V: labels in currency, >= 0.
      num_bins: equally large bins before the highest is halved; `default_num_bins` by default.

    Raises:
      ValueError: lengths differ, no rows, a value that is not finite, a negative label, or num_bins < 1.
    """
    label_V, prediction_V = checked_pair(label_V, prediction_V)
    num_positive = int(np.count_nonzero(label_V > 0))
    if num_bins is None:
        num_bins = default_num_bins(len(label_V), num_positive)
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; need at least 1")
    mean_label = float(label_V.mean()) if num_positive else NO_SPEND_MEAN
    count_K, knot_K, mean_K = _bin_means(prediction_V, label_V, num_bins)
    value_K = isotonic_regression(np.maximum(mean_K, MIN_VALUE * mean_label), weights=count_K).x
    if len(knot_K) == 1 and knot_K[0] > 0:
        knot_K, value_K = _proportional(knot_K[0], value_K[0], float(prediction_V.min()))
    curve = _with_slopes(knot_K, value_K, mean_label / _scale(prediction_V), len(label_V), num_positive)
    return curve.scaled(mean_label / float(curve(prediction_V).mean()) if num_positive else 1.0)


def fit_levelled(
    prediction_V: np.ndarray, label_V: np.ndarray, train_prediction_V: np.ndarray, train_label_V: np.ndarray
) -> Calibration:
    """Returns the calibration of validation rows with the level of validation and training rows together.

    The shape of the curve is fitted on the validation split. Its level, one factor, makes the total of predictions
    equal the total of labels over both splits: a validation split of a few thousand customers knows the mean of a
    heavy-tailed label only to 10 %, and a factor, unlike a shape, can hardly be overfitted.

    Args:
      prediction_V, label_V: of the validation split, see `fit_calibration`.
      train_prediction_V, train_label_V: of training rows, another V.
    """
    calibration = fit_calibration(prediction_V, label_V)
    total = label_V.sum() + train_label_V.sum()
    return calibration.scaled(total / (calibration(prediction_V).sum() + calibration(train_prediction_V).sum()))


def _scale(prediction_V: np.ndarray) -> float:
    """A typical size of the predictions: mean label / size is the slope of proportional growth."""
    return max(abs(float(prediction_V.mean())), float(prediction_V.std())) or 1.0


def _bin_means(
    prediction_V: np.ndarray, label_V: np.ndarray, num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows, mean prediction (strictly increasing) and mean label of each non-empty bin.

    Bins lie between equidistant quantiles of the prediction, the highest one halved further as TOP_BIN_POSITIVES
    says. Equal predictions stay together, in the bin of their average rank.
    """
    _, group_V, count_G = np.unique(prediction_V, return_inverse=True, return_counts=True)
    quantile_V = ((np.cumsum(count_G) - count_G / 2) / len(prediction_V))[group_V]
    edges = list(np.arange(1, num_bins) / num_bins)
    if num_bins > 1:
        positive_quantiles = quantile_V[label_V > 0]
        top = 1 / num_bins
        while np.count_nonzero(positive_quantiles >= 1 - top / 2) >= TOP_BIN_POSITIVES:
            top /= 2
            edges.append(1 - top)
    bin_V = np.searchsorted(edges, quantile_V, side="right")
    count_K = np.bincount(bin_V)
    filled_K = count_K > 0
    prediction_K = np.bincount(bin_V, weights=prediction_V)[filled_K] / count_K[filled_K]
    label_K = np.bincount(bin_V, weights=label_V)[filled_K] / count_K[filled_K]
    return _merge_equal(count_K[filled_K], prediction_K, label_K)


def _merge_equal(
    count_K: np.ndarray, prediction_K: np.ndarray, label_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merges bins whose mean predictions rounding has made equal (float64 neighbours in different bins)."""
    knot_K, group_K = np.unique(prediction_K, return_inverse=True)
    merged_count_K = np.bincount(group_K, weights=count_K)
    return merged_count_K, knot_K, np.bincount(group_K, weights=count_K * label_K) / merged_count_K


def _proportional(knot: float, value: float, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns knots and values of the straight line through the origin and (knot, value), down to `lowest`."""
    lowest = max(lowest, MIN_VALUE * knot)
    if lowest >= knot:
        return np.array([knot]), np.array([value])
    return np.array([lowest, knot]), value * np.array([lowest / knot, 1.0])


def _with_slopes(
    knot_K: np.ndarray, value_K: np.ndarray, proportional_slope: float, num_rows: int, num_positive: int
) -> Calibration:
    tilt = MIN_ELASTICITY * proportional_slope
    if len(knot_K) > 1:
        lower_slope, curve_slope = PchipInterpolator(knot_K, value_K)(knot_K[[0, -1]], nu=1)
        size = max(abs(knot_K[-1]), knot_K[-1] - knot_K[0])
        upper_slope = min(curve_slope, MAX_ELASTICITY * value_K[-1] / size)
    else:
        lower_slope = upper_slope = proportional_slope
    return Calibration(
        knots=tuple(knot_K.tolist()),
        values=tuple(value_K.tolist()),
        tilt=tilt,
        lower_slope=float(lower_slope) + tilt,
        upper_slope=float(upper_slope) + tilt,
        num_rows=num_rows,
        num_positive=num_positive,
    )
