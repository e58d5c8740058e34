"""Predictors without a model, which every result is printed beside (BASELINES.md section 8.0)."""

import numpy as np

from mean_jax.experiments.peers.task import PeerTask, Predict, Table

SPEND_COLUMN = "amount_sum"


def constant_zero(task: PeerTask) -> Predict:
    """Predicts 0, which on sparse labels has a low mean absolute error."""
    del task
    return lambda table: np.zeros(len(table.numeric))


def constant_mean(task: PeerTask) -> Predict:
    """Predicts the mean label of the training split."""
    mean = float(task.train.label.mean())
    return lambda table: np.full(len(table.numeric), mean)


def past_spend(task: PeerTask) -> Predict:
    """Predicts the spend in the observation window times total label / total spend of the training split.

    Net spend below 0 (more returned than bought) and missing spend count as 0. If nobody in the training split spent
    anything, the factor is 0.
    """

    def spend(table: Table) -> np.ndarray:
        return np.maximum(np.nan_to_num(task.column(table, SPEND_COLUMN)), 0.0)

    total = spend(task.train).sum()
    factor = task.train.label.sum() / total if total > 0 else 0.0
    return lambda table: factor * spend(table)
