"""The four numbers per customer that models of repeat purchases read, from the columns of the customer table.

    frequency  active_days - 1: days with a purchase after the first one
    recency    tenure_days: days from the first to the last purchase, 0 without a repeat purchase
    age        tenure_days + recency_days: days from the first purchase to the end of the observation window. Where
               the window begins with the customer's first purchase, this is observation_days for every customer.
    money      (amount_sum - amount_first) / frequency: spend per repeat purchase day, 0 without one

Days are whole, as such models are fitted in practice; that also leaves few distinct combinations. Money is per day and
not per order, since frequency counts days: frequency times money is the spend after the first order. Further orders on
the first day count as repeat spend, as the table does not tell them apart. Missing values: a customer without
active_days or tenure_days has no repeat purchase, one without recency_days the age observation_days.
"""

from typing import NamedTuple

import numpy as np

from mean_jax.experiments.peers.task import PeerTask, Table

HISTORY_COLUMNS = ("active_days", "tenure_days", "recency_days", "amount_sum", "amount_first")


class History(NamedTuple):
    """Purchase histories of V customers."""

    frequency: np.ndarray  # [V] float64, whole numbers
    recency: np.ndarray  # [V] float64 days, 0 <= recency <= age
    age: np.ndarray  # [V] float64 days
    money: np.ndarray  # [V] float64 currency per repeat purchase day; <= 0 where nothing is known


def purchase_history(task: PeerTask, table: Table) -> History:
    """Returns the histories of a table's customers.

    Raises:
      UserError: a column is missing, or the observation window is not known.
    """
    active_V, tenure_V, since_last_V, total_V, first_V = (task.column(table, name) for name in HISTORY_COLUMNS)
    window = task.required_observation_days()
    is_repeat_V = (active_V >= 2) & (tenure_V >= 0)
    frequency_V = np.where(is_repeat_V, np.rint(active_V) - 1, 0.0)
    age_V = np.nan_to_num(tenure_V) + since_last_V
    age_V = np.rint(np.where(np.isnan(age_V), window, np.clip(age_V, 0.0, window)))
    recency_V = np.where(is_repeat_V, np.minimum(np.rint(tenure_V), age_V), 0.0)
    money_V = np.where(is_repeat_V, np.nan_to_num(total_V - first_V), 0.0) / np.maximum(frequency_V, 1.0)
    return History(frequency_V, recency_V, age_V, money_V)
