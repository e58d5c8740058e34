"""Synthetic customers for the tests of the peers: purchases simulated day by day, then counted as features are."""

import dataclasses

import numpy as np
import pytest

from mean_jax.experiments.peers import unavailable
from mean_jax.experiments.peers.task import PeerTask, Table

WINDOW_DAYS = 90
HORIZON_DAYS = 60
NUM_WINDOWS = 3


def simulate(num_customers: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Returns (numeric columns, channel codes (V,), spend in the horizon after the window (V,)).

    A customer buys on each day with an own probability until leaving, for amounts around an own mean; customers of
    channel 3 buy twice as often as those of channel 2.
    """
    rng = np.random.default_rng(seed)
    days = np.arange(WINDOW_DAYS + HORIZON_DAYS)
    channel_V = rng.integers(2, 4, num_customers)
    rate_V = rng.gamma(0.8, 0.05, num_customers) * (channel_V - 1)
    leaves_V = rng.exponential(1, num_customers) / rng.gamma(0.6, 0.02, num_customers)
    is_bought_VxD = (rng.random((num_customers, len(days))) < rate_V[:, None]) & (days < leaves_V[:, None])
    is_bought_VxD[:, 0] = True
    mean_V = 5 / rng.gamma(3, 0.1, num_customers)
    amount_VxD = np.where(is_bought_VxD, mean_V[:, None] * rng.gamma(4, 0.25, is_bought_VxD.shape), 0)
    bought, amount = is_bought_VxD[:, :WINDOW_DAYS], amount_VxD[:, :WINDOW_DAYS]
    last_V = WINDOW_DAYS - 1 - bought[:, ::-1].argmax(axis=1)
    columns = {
        "order_count": bought.sum(axis=1),
        "active_days": bought.sum(axis=1),
        "amount_sum": amount.sum(axis=1),
        "amount_first": amount[:, 0],
        "recency_days": WINDOW_DAYS - last_V,
        "tenure_days": last_V,
        "age": np.where(rng.random(num_customers) < 0.3, np.nan, rng.normal(40, 10, num_customers)),
    }
    for k, part in enumerate(np.split(np.arange(WINDOW_DAYS), NUM_WINDOWS), 1):
        columns[f"order_count_window_{k}"] = bought[:, part].sum(axis=1)
        columns[f"amount_sum_window_{k}"] = amount[:, part].sum(axis=1)
    return columns, channel_V, amount_VxD[:, WINDOW_DAYS:].sum(axis=1)


def make_table(num_customers: int, seed: int) -> Table:
    columns, channel_V, label_V = simulate(num_customers, seed)
    numeric_VxC = np.stack(list(columns.values()), axis=1).astype(np.float32)
    return Table(numeric_VxC, channel_V[:, None].astype(np.int32), label_V)


def make_task(num_customers: int = 500, seed: int = 0) -> PeerTask:
    return PeerTask(
        numeric_names=tuple(simulate(1, 0)[0]),
        categorical_names=("channel",),
        train=make_table(num_customers, seed),
        validation=make_table(num_customers // 2, seed + 1),
        horizon_days=HORIZON_DAYS,
        observation_days=WINDOW_DAYS,
        seed=0,
    )


def with_columns(task: PeerTask, **columns: list[float]) -> PeerTask:
    """Returns a task whose training rows have exactly these columns and a label "label", or zeros."""
    label_V = np.array(columns.pop("label", [0.0] * len(next(iter(columns.values())))))
    numeric_VxC = np.stack([np.array(value_V, np.float32) for value_V in columns.values()], axis=1)
    table = Table(numeric_VxC, np.zeros((len(label_V), 0), np.int32), label_V)
    return dataclasses.replace(
        task, numeric_names=tuple(columns), categorical_names=(), train=table, validation=table.rows(label_V < 0)
    )


def skip_unless_available(name: str) -> None:
    """Skips the test if the peer's library is not installed; pytest.importorskip would raise the library's warnings."""
    reason = unavailable(name)
    if reason:
        pytest.skip(reason)
