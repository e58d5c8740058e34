"""The population stability index: how far the rows of an append have moved from those that the transform was fitted on.

PSI = sum over bins of (a - e) ln(a / e), with e the share of the training rows in a bin and a that of the new ones (the
symmetrised Kullback-Leibler divergence of the binned columns). It is usually read as: below 0.1 stable, up to 0.25
moderate, above that shifted. Chance alone gives about (bins - 1) / rows.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from mean_jax.data.schema import Schema
from mean_jax.data.transform import Transform
from mean_jax.log import LOGGER
from mean_jax.types import RowLayout

NUM_BINS = 10
# Values of a categorical column that are bins of their own, the most frequent ones; the rest share one.
MAX_CATEGORY_BINS = 48
MODERATE, SHIFTED = 0.1, 0.25
# Rows that are counted at most: chance moves the index of 10 bins by less than 1e-4 then.
SAMPLE_ROWS = 200_000
_MAX_LINES = 10
# Below this share a bin counts as this share: an empty bin would make the index infinite.
_MIN_SHARE = 1e-4


def stability_index(expected_shares: np.ndarray, counts: np.ndarray) -> float:
    """Returns the index of counts [bins] against expected shares [bins]; 0 if nothing was counted."""
    if not counts.sum():
        return 0.0
    expected = np.maximum(expected_shares, _MIN_SHARE)
    actual = np.maximum(counts / counts.sum(), _MIN_SHARE)
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def reading(index: float) -> str:
    """Returns the usual word for an index."""
    return "stable" if index < MODERATE else "moderate" if index <= SHIFTED else "shifted"


def quantile_bins(knots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (edges [E], shares [E + 1]) of at most ten bins (-inf, e1], (e1, e2], ... (eE, inf).

    Args:
      knots: [Q] quantiles at equidistant levels from 0 to 1, non-decreasing.

    A value that fills several quantiles, such as zero, makes bins fall together. Its cumulative share is then known to
    one step between levels only, and the middle of that step is taken.
    """
    last = len(knots) - 1
    inner = np.round(np.linspace(0, last, NUM_BINS + 1)).astype(int)[1:-1]
    edges = np.unique(knots[inner])
    at = np.searchsorted(knots, edges, side="right") - 1
    is_repeated = (at > 0) & (knots[at] == knots[np.maximum(at - 1, 0)]) & (at < last)
    cumulative = (at + 0.5 * is_repeated) / last
    return edges, np.diff(cumulative, prepend=0.0, append=1.0)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Bins and training shares of every column: features in the order of the schema, then labels."""

    names: tuple[str, ...]
    num_numeric: int
    num_categorical: int
    edges: tuple[np.ndarray, ...]  # of numeric columns and labels
    shares: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, schema: Schema, transform: Transform) -> "Reference":
        """Returns the bins that the fitted transform describes."""
        edges, shares = [], []
        for knots, missing in zip(transform.knots, transform.missing_rate, strict=True):
            column_edges, column_shares = quantile_bins(knots)
            edges.append(column_edges)
            shares.append(np.append(column_shares * (1 - missing), missing))
        for counts in transform.category_counts:
            head, rest = counts[: MAX_CATEGORY_BINS + 2], counts[MAX_CATEGORY_BINS + 2 :]
            shares.append(np.array([*head, sum(rest)]) / sum(counts))
        for quantiles, positive_rate in zip(transform.positive_quantiles, transform.positive_rate, strict=True):
            label_edges, label_shares = quantile_bins(quantiles)
            edges.append(label_edges)
            shares.append(np.append(1 - positive_rate, label_shares * positive_rate))
        names = (*schema.numeric, *schema.categorical, *schema.labels)
        return cls(names, len(schema.numeric), len(schema.categorical), tuple(edges), tuple(shares))


class Occupancy:
    """Counts of rows in the bins of a reference; mergeable in any order."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self.num_rows = 0
        self._counts = [np.zeros(len(shares), np.int64) for shares in reference.shares]

    def update(self, layout: RowLayout, words_BxW: np.ndarray) -> None:
        """Adds rows in the float32 layout."""
        self.num_rows += len(words_BxW)
        reference, num_numeric = self._reference, self._reference.num_numeric
        for column, counts in enumerate(self._counts):
            values_B = words_BxW[:, column]
            if num_numeric <= column < num_numeric + reference.num_categorical:
                bins_B = np.minimum(values_B.copy().view(np.int32), len(counts) - 1)
            elif column < num_numeric:
                bins_B = np.searchsorted(reference.edges[column], values_B)
                bins_B[np.isnan(values_B)] = len(counts) - 1
            else:
                known_B = values_B[~np.isnan(values_B)]
                edges = reference.edges[column - reference.num_categorical]
                bins_B = np.where(known_B > 0, 1 + np.searchsorted(edges, known_B), 0)
            counts += np.bincount(bins_B, minlength=len(counts))

    def merge(self, other: "Occupancy") -> None:
        """Adds the rows of another."""
        self.num_rows += other.num_rows
        for counts, more in zip(self._counts, other._counts, strict=True):
            counts += more

    def indices(self) -> dict[str, float]:
        """Returns the stability index of every column."""
        pairs = zip(self._reference.shares, self._counts, strict=True)
        indices = (stability_index(shares, counts) for shares, counts in pairs)
        return dict(zip(self._reference.names, indices, strict=True))


def log_stability(indices: dict[str, float], labels: Sequence[str], num_rows: int) -> None:
    """Writes a line for each shifted column, the worst first and at most ten, and one that sums up."""
    words = {name: reading(index) for name, index in indices.items()}
    shifted = sorted((name for name in indices if words[name] == "shifted"), key=lambda name: -indices[name])
    for name in shifted[:_MAX_LINES]:
        what = "label" if name in labels else "column"
        LOGGER.warning("%s %s has shifted: population stability index %.2f", what, name, indices[name])
    counts = [list(words.values()).count(word) for word in ("stable", "moderate", "shifted")]
    chance = (NUM_BINS - 1) / max(num_rows, 1)
    LOGGER.info(
        "population stability: %d columns stable (index below %g), %d moderate, %d shifted (above %g); "
        "with %d rows chance alone gives about %.2g",
        *(counts[0], MODERATE, counts[1], counts[2], SHIFTED),
        *(num_rows, chance),
    )
