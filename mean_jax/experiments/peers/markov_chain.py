"""A Markov chain over recency (Pfeifer and Carraway 2000), counted from the sub-windows of the customer table.

P periods (the sub-windows of the observation window, all of one length) and Q = P - 1 recency states, V customers.
State r = 1 .. Q-1: the last purchase was r periods ago (1: in the period just ended); state Q: Q or more periods ago.
In each period a customer in state r buys with probability p_r and moves to state 1, else to state min(r + 1, Q):

    A[r, 1] = p_r,   A[r, min(r + 1, Q)] = 1 - p_r   (their sum where both are the same state)

p_r is counted over all customers of the training split and all pairs of successive periods inside the observation
window that follow the customer's first purchase, with PRIOR_TRANSITIONS further ones at the rate of all states. The
chain of the paper ends in a former-customer state; inside the window nobody is seen to leave it or to stay in it, so
state Q keeps its counted probability instead. The expected number of periods with a purchase among the next n, from
state r, with n = horizon / period and f its fractional part, is

    e_r = sum over k = 0 .. floor(n) - 1 of (A^k p)_r  +  f * (A^floor(n) p)_r

and the prediction e_r times the customer's spend in a period with a purchase, shrunken towards its mean over the
training split by PRIOR_PERIODS periods. Nothing is discounted, as labels are plain sums. Negative spend counts as 0.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from mean_jax.errors import UserError
from mean_jax.experiments.peers.task import PeerTask, Predict, Table

_COUNT_COLUMN = "order_count_window_{}"
_SPEND_COLUMN = "amount_sum_window_{}"
MARKOV_COLUMNS = tuple(name.format(k) for k in (1, 2) for name in (_COUNT_COLUMN, _SPEND_COLUMN))  # at the least
PRIOR_TRANSITIONS = 1.0
PRIOR_PERIODS = 1.0


class Periods(NamedTuple):
    """What customers did in each sub-window."""

    is_bought: np.ndarray  # [V, P] bool
    spend: np.ndarray  # [V, P] float64 currency >= 0, 0 where nothing was bought


def read_periods(task: PeerTask, table: Table) -> Periods:
    """Returns the sub-windows that the table has, from the first on; missing values count as no purchase.

    Raises:
      UserError: there are fewer than two.
    """
    has_both = (
        _COUNT_COLUMN.format(k) in task.numeric_names and _SPEND_COLUMN.format(k) in task.numeric_names
        for k in itertools.count(1)
    )
    num_periods = sum(itertools.takewhile(bool, has_both))
    if num_periods < 2:
        raise UserError(
            f"needs the columns {_COUNT_COLUMN.format('<k>')} and {_SPEND_COLUMN.format('<k>')} of at least two "
            "sub-windows; make the customer table with mean-jax-features"
        )
    windows = range(1, num_periods + 1)
    count_VxP = np.stack([task.column(table, _COUNT_COLUMN.format(k)) for k in windows], axis=1)
    spend_VxP = np.stack([task.column(table, _SPEND_COLUMN.format(k)) for k in windows], axis=1)
    is_bought_VxP = count_VxP > 0
    return Periods(is_bought_VxP, np.where(is_bought_VxP & (spend_VxP > 0), spend_VxP, 0.0))


def recency_states(is_bought_VxP: np.ndarray) -> np.ndarray:
    """Returns state_VxP after each period: 1 .. Q, and 0 before the first purchase."""
    num_states = is_bought_VxP.shape[1] - 1
    state_VxP = np.zeros(is_bought_VxP.shape, np.int64)
    state_V = np.zeros(len(is_bought_VxP), np.int64)
    for k in range(is_bought_VxP.shape[1]):
        waiting_V = np.where(state_V > 0, np.minimum(state_V + 1, num_states), 0)
        state_V = np.where(is_bought_VxP[:, k], 1, waiting_V)
        state_VxP[:, k] = state_V
    return state_VxP


def purchase_probabilities(is_bought_VxP: np.ndarray) -> np.ndarray:
    """Returns p_Q, the probability of a purchase in the next period by recency state."""
    before = recency_states(is_bought_VxP)[:, :-1].ravel()
    after = is_bought_VxP[:, 1:].ravel()[before > 0]
    before = before[before > 0] - 1
    num_states = is_bought_VxP.shape[1] - 1
    visits_Q = np.bincount(before, minlength=num_states)
    purchases_Q = np.bincount(before, weights=after, minlength=num_states)
    overall = purchases_Q.sum() / visits_Q.sum() if len(before) else 0.0
    return (purchases_Q + PRIOR_TRANSITIONS * overall) / (visits_Q + PRIOR_TRANSITIONS)


def transition_matrix(probability_Q: np.ndarray) -> np.ndarray:
    """Returns A_QxQ, the probability of each next state (second axis) by state."""
    states = np.arange(len(probability_Q))
    matrix_QxQ = np.zeros((len(states), len(states)))
    matrix_QxQ[:, 0] = probability_Q
    matrix_QxQ[states, np.minimum(states + 1, states[-1])] += 1 - probability_Q
    return matrix_QxQ


def expected_purchase_periods(probability_Q: np.ndarray, num_periods: float) -> np.ndarray:
    """Returns e_Q, the expected number of periods with a purchase among the next `num_periods`, which may be broken."""
    matrix_QxQ = transition_matrix(probability_Q)
    whole = math.floor(num_periods)
    expected_Q = np.zeros(len(probability_Q))
    in_period_Q = probability_Q
    for _ in range(whole):
        expected_Q = expected_Q + in_period_Q
        in_period_Q = matrix_QxQ @ in_period_Q
    return expected_Q + (num_periods - whole) * in_period_Q


def markov(task: PeerTask) -> Predict:
    """Predicts expected periods with a purchase within the horizon times spend in such a period."""
    train = read_periods(task, task.train)
    period_days = task.required_observation_days() / train.is_bought.shape[1]
    probability_Q = purchase_probabilities(train.is_bought)
    expected_Q = expected_purchase_periods(probability_Q, task.required_horizon_days() / period_days)
    mean_spend = train.spend.sum() / max(1, train.is_bought.sum())

    def predict(table: Table) -> np.ndarray:
        periods = read_periods(task, table)
        state_V = recency_states(periods.is_bought)[:, -1]
        state_V = np.where(state_V > 0, state_V, len(probability_Q))  # never seen to buy: the oldest recency
        spend_V = (periods.spend.sum(axis=1) + PRIOR_PERIODS * mean_spend) / (
            periods.is_bought.sum(axis=1) + PRIOR_PERIODS
        )
        return expected_Q[state_V - 1] * spend_V

    return predict
