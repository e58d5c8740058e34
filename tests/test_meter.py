"""The epoch's means, their continuation after a restart, and what is said of values that are not finite."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mean_jax.errors import UserError
from mean_jax.training.meter import EpochMeter, horizon_means

NAMES = [("30", 0), ("365", 1)]
ACTIVE = np.array([True, True])


def metrics(huber, kl=(0.5, 0.25), bad_step=(0, 0), skipped=(0, 0)):
    """Returns the metrics of a dispatch of two replicas."""
    huber_R, kl_R = jnp.array(huber), jnp.array(kl)
    counts = {"bad_step": jnp.array(bad_step, jnp.int32), "skipped": jnp.array(skipped, jnp.int32)}
    return {"total": huber_R + kl_R, "huber": huber_R, "kl": kl_R, **counts}


def read(meter, first_step, last_step, *args, is_active=ACTIVE, **kwargs):
    meter.push(first_step, last_step, metrics(*args, **kwargs))
    meter.read(is_active)


def test_means_are_over_steps_however_long_the_dispatches_are():
    meter = EpochMeter(NAMES)
    read(meter, 1, 3, [1.0, 2.0])
    read(meter, 4, 4, [5.0, 2.0])
    assert meter.loss == 3.875
    first, second = meter.means()
    assert first == {"train/total": 2.5, "train/huber": 2.0, "train/kl": 0.5, "train/skipped": 0.0}
    assert second["train/huber"] == 2.0
    meter.reset()
    read(meter, 5, 7, [4.0, 4.0])
    assert meter.means()[0]["train/huber"] == 4.0


def test_a_restart_within_an_epoch_changes_no_digit():
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=(7, 2)).astype(np.float32)
    whole = EpochMeter(NAMES)
    for index, huber in enumerate(values):
        read(whole, 3 * index + 1, 3 * index + 3, huber)
    for cut in range(8):
        first, second = EpochMeter(NAMES), EpochMeter(NAMES)
        for index, huber in enumerate(values):
            if index == cut:
                second.restore(json.loads(json.dumps(first.state())))
            read(first if index < cut else second, 3 * index + 1, 3 * index + 3, huber)
        if cut == len(values):
            second.restore(first.state())
        assert second.means() == whole.means()
    afresh = EpochMeter(NAMES)
    afresh.restore({})
    read(afresh, 1, 3, [1.0, 1.0])
    assert afresh.means()[0]["train/huber"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"huber": [1.0, np.nan], "bad_step": [0, 5]}, r"^loss term huber of horizon 365, seed 1 .*finite at step 5;"),
        ({"huber": [np.inf, 1.0], "kl": [np.nan, 1.0], "bad_step": [6, 0]}, r"^loss term huber, kl of horizon 30, "),
        ({"huber": [1.0, 1.0], "bad_step": [4, 0]}, r"^gradient of horizon 30, seed 0 is not finite at step 4; .*low"),
        ({"huber": [1.0, -np.inf]}, r"^loss term huber of horizon 365, seed 1 is not finite within steps 4 to 6;"),
    ],
)
def test_the_error_names_step_horizon_seed_and_terms(changes, message):
    meter = EpochMeter(NAMES)
    with pytest.raises(UserError, match=message):
        read(meter, 4, 6, changes.pop("huber"), **changes)


def test_a_replica_that_was_stopped_may_do_what_it_likes():
    meter = EpochMeter(NAMES)
    read(meter, 1, 3, [np.nan, 2.0], bad_step=[1, 0], is_active=np.array([False, True]))
    assert meter.means()[1]["train/huber"] == 2.0 and meter.loss == 2.25


def test_skipped_batches_are_counted_left_out_and_said_once_per_epoch(caplog):
    meter = EpochMeter(NAMES)
    for _ in range(2):
        meter.reset()
        caplog.clear()
        read(meter, 1, 4, [1.0, 1.0])
        read(meter, 5, 8, [3.0, 3.0], bad_step=[0, 6], skipped=[0, 2])
        read(meter, 9, 12, [5.0, 0.0], kl=[0.0, 0.0], bad_step=[0, 9], skipped=[0, 4])
        restarted = EpochMeter(NAMES)
        restarted.restore(meter.state())
        assert restarted.means() == meter.means()
        first, second = meter.means()
        assert (first["train/skipped"], second["train/skipped"]) == (0.0, 6.0)
        assert first["train/huber"] == 3.0
        assert second["train/huber"] == pytest.approx((4 * 1.0 + 2 * 3.0) / 6)
        assert [record.getMessage() for record in caplog.records] == [
            "horizon 365, seed 1: skipping batches whose loss or gradient is not finite, first at step 6"
        ]


@pytest.mark.parametrize(
    ("names", "is_active", "expected"),
    [
        (["30", "180", "365"], [True, False, True], "30: 0.1000, 365: 0.3000"),
        (["30", "365", "30", "365", "30", "365"], [True] * 6, "30: 0.3000 (3 seeds), 365: 0.4000 (3 seeds)"),
        (
            ["30", "365", "30", "365", "30"],
            [False, True, True, False, True],
            "30: 0.4000 (2 seeds), 365: 0.2000 (1 seed)",
        ),
        (["30 tau=1", "30 tau=2", "30+365"], [True, True, True], "30 tau=1: 0.1000, 30 tau=2: 0.2000, 30+365: 0.3000"),
        (["30", "365"], [False, False], ""),
    ],
)
def test_horizons_are_named_and_those_that_stopped_left_out(names, is_active, expected):
    value_R = np.arange(1, len(names) + 1, dtype=np.float32) / 10
    assert horizon_means(names, value_R, np.array(is_active)) == expected
