"""RFM segments: customers grouped by recency, frequency and monetary value (Fader, Hardie and Lee 2005).

Each of the three is scored 0-4 by its quintiles in the training split, a higher score for the more recent, more
frequent and larger. The score is the number of distinct quintile edges below the value, so equal customers have equal
scores and a value that fills several quintiles (one purchase, mostly) takes one score for all of them. Missing values
score 0. A segment g of the up to 125 predicts its mean label, shrunken towards the mean of all customers:

    prediction_g = (sum of labels in g + SHRINKAGE * mean label) / (customers in g + SHRINKAGE)
"""

import numpy as np

from mean_jax.experiments.peers.task import PeerTask, Predict, Table

# Column, and the sign that makes a higher value the better customer.
RFM_COLUMNS = {"recency_days": -1.0, "order_count": 1.0, "amount_sum": 1.0}
SHRINKAGE = 10.0  # a segment of ten customers is believed by half
_NUM_SCORES = 5
_LEVELS = np.arange(1, _NUM_SCORES) / _NUM_SCORES


def quintile_edges(value_V: np.ndarray) -> np.ndarray:
    """Returns the distinct values among the 20, 40, 60 and 80 % quantiles; missing values are left out."""
    known_V = value_V[~np.isnan(value_V)]
    return np.unique(np.quantile(known_V, _LEVELS)) if len(known_V) else np.empty(0)


def scores(value_V: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns how many edges lie below each value, 0 for missing values."""
    return np.searchsorted(edges, np.where(np.isnan(value_V), -np.inf, value_V), side="left")


def rfm(task: PeerTask) -> Predict:
    """Predicts the shrunken mean label of the customer's segment."""
    train_values = {name: sign * task.column(task.train, name) for name, sign in RFM_COLUMNS.items()}
    edges = {name: quintile_edges(value_V) for name, value_V in train_values.items()}

    def segment(table: Table) -> np.ndarray:
        segment_V = np.zeros(len(table.numeric), np.int64)
        for name, sign in RFM_COLUMNS.items():
            segment_V = segment_V * _NUM_SCORES + scores(sign * task.column(table, name), edges[name])
        return segment_V

    num_segments = _NUM_SCORES ** len(RFM_COLUMNS)
    segment_V, label_V = segment(task.train), task.train.label
    customers = np.bincount(segment_V, minlength=num_segments)
    totals = np.bincount(segment_V, weights=label_V, minlength=num_segments)
    prediction = (totals + SHRINKAGE * label_V.mean()) / (customers + SHRINKAGE)
    return lambda table: prediction[segment(table)]
