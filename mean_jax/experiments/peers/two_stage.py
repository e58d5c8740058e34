"""The two-stage scheme: whether a customer spends, times how much a spender spends."""

import dataclasses

import numpy as np

from mean_jax.experiments.peers.task import Peer, PeerTask, Predict, Table


def _with_purchase_label(table: Table) -> Table:
    return table._replace(label=(table.label > 0).astype(np.float64))


def _constant(value: float) -> Predict:
    return lambda table: np.full(len(table.numeric), value)


def two_stage(task: PeerTask, classify: Peer, regress: Peer) -> Predict:
    """Returns P(label > 0) * E[label | label > 0].

    Args:
      task: labels >= 0. Where all of the training split are positive, or none is, the first stage is that constant.
      classify: fitted on labels 0 and 1 (both present); predicts the probability of 1.
      regress: fitted on the rows with a positive label (at least one; perhaps none in validation).
    """
    is_positive_V = task.train.label > 0
    if not is_positive_V.any():
        return _constant(0.0)
    purchase_task = dataclasses.replace(
        task, train=_with_purchase_label(task.train), validation=_with_purchase_label(task.validation)
    )
    amount_task = dataclasses.replace(
        task, train=task.train.rows(is_positive_V), validation=task.validation.rows(task.validation.label > 0)
    )
    probability = _constant(1.0) if is_positive_V.all() else classify(purchase_task)
    amount = regress(amount_task)
    return lambda table: probability(table) * amount(table)
