"""Means per bin of predicted value, and gain curves: the aggregates that the report draws and `bins.parquet` holds.

Bins are those of `metrics.binned_mape` (same order, same ties, same edges), so a chart and the metric beside it agree.
"""

import dataclasses

import numpy as np

from mean_jax.evaluation.ranking import bin_edges, rank_order


@dataclasses.dataclass(frozen=True)
class Bins:
    """Rows in ascending order of calibrated prediction, cut into nearly equal parts; every array is (bins,)."""

    rows: np.ndarray
    label: np.ndarray  # means in currency
    raw: np.ndarray
    calibrated: np.ndarray
    low: np.ndarray  # lowest and highest calibrated prediction
    high: np.ndarray


def bin_means(label_V: np.ndarray, raw_V: np.ndarray, calibrated_V: np.ndarray, n_bins: int) -> Bins:
    """Returns the means of `n_bins` bins (as many as rows where these are fewer)."""
    order_V = rank_order(calibrated_V)
    edges = bin_edges(len(order_V), n_bins)
    rows = np.diff(edges)
    sums = (np.add.reduceat(np.asarray(value_V, np.float64)[order_V], edges[:-1]) for value_V in (label_V, raw_V))
    label, raw = (value / rows for value in sums)
    sorted_V = np.asarray(calibrated_V, np.float64)[order_V]
    calibrated = np.add.reduceat(sorted_V, edges[:-1]) / rows
    return Bins(rows, label, raw, calibrated, low=sorted_V[edges[:-1]], high=sorted_V[edges[1:] - 1])


def gain_curve(label_V: np.ndarray, score_V: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns the share of all spend held by the top `share` of the customers in order of `score_V`.

    Customers with equal scores are taken in proportion, which is the average over their orders. The labels must not
    all be 0.
    """
    order_V = rank_order(score_V)[::-1]
    sorted_V = np.asarray(score_V)[order_V]
    is_last_V = np.append(sorted_V[1:] != sorted_V[:-1], True)
    gain_V = np.cumsum(np.asarray(label_V, np.float64)[order_V])
    customers = np.concatenate(([0], np.flatnonzero(is_last_V) + 1)) / len(order_V)
    return np.interp(share, customers, np.concatenate(([0], gain_V[is_last_V])) / gain_V[-1])
