"""The training scale and the buckets against plain NumPy."""

import numpy as np
import pytest

from mean_jax.config import LabelConfig
from mean_jax.labels import LabelConstants, fit_label_constants, make_targets, to_currency, to_scaled

POSITIVES = np.sort(np.random.default_rng(0).lognormal(3.0, 1.0, 4001))
QUANTILES = np.quantile(POSITIVES, np.linspace(0, 1, 1001))[None]
RATE = np.array([0.3])


def make_constants(scale, edges):
    """Returns constants whose distribution of the labels plays no part."""
    return LabelConstants(scale, edges, np.zeros((len(scale), 3), np.float32), np.full(len(scale), 0.5, np.float32))


def test_scale_maps_the_chosen_quantile_of_positives_to_the_cap():
    constants = fit_label_constants(QUANTILES, RATE, LabelConfig(scale_quantile=0.999, cap=20.0))
    assert np.quantile(POSITIVES, 0.999) / constants.scale[0] == pytest.approx(20.0, rel=1e-5)
    assert fit_label_constants(QUANTILES, RATE, LabelConfig(scale=7.5)).scale[0] == 7.5


@pytest.mark.parametrize("transform", ["linear", "log1p"])
def test_the_distribution_of_the_positives_is_kept_on_the_training_scale(transform):
    constants = fit_label_constants(QUANTILES, RATE, LabelConfig(transform=transform))
    moved = np.log1p(QUANTILES) if transform == "log1p" else QUANTILES
    np.testing.assert_allclose(constants.quantiles, np.minimum(moved / constants.scale[0], 20.0), rtol=1e-5)
    assert constants.quantiles[0, -1] == 20.0 and constants.positive_rate[0] == np.float32(0.3)


@pytest.mark.parametrize("num_buckets", [2, 3, 4, 5, 7])
def test_positive_buckets_hold_equal_shares(num_buckets):
    config = LabelConfig(num_buckets=num_buckets)
    constants = fit_label_constants(QUANTILES, RATE, config)
    labels_BxK = np.append(POSITIVES, 0.0).astype(np.float32)[:, None]
    targets = make_targets(labels_BxK, constants, np.ones(len(labels_BxK), bool), config)
    counts = np.bincount(np.asarray(targets.bucket)[:, 0], minlength=num_buckets)
    assert counts[0] == 1
    assert counts.sum() == len(labels_BxK)
    np.testing.assert_allclose(counts[1:], 4001 / (num_buckets - 1), rtol=0.01)


def test_bucket_edges_belong_to_the_lower_bucket():
    constants = make_constants(np.float32([1.0]), np.float32([[2.0, 5.0]]))
    labels_BxK = np.float32([[0.0], [0.01], [2.0], [2.01], [5.0], [5.01], [1e9]])
    targets = make_targets(labels_BxK, constants, np.ones(7, bool), LabelConfig(num_buckets=4))
    assert np.asarray(targets.bucket)[:, 0].tolist() == [0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("transform", ["linear", "log1p"])
def test_labels_are_scaled_truncated_and_come_back(transform):
    config = LabelConfig(transform=transform, cap=3.0)
    constants = make_constants(np.float32([2.0]), np.zeros((1, 3), np.float32))
    raw = np.float32([0.0, 0.5, 4.0, 1e6])
    expected = np.minimum((np.log1p(raw) if transform == "log1p" else raw) / 2.0, 3.0)
    targets = make_targets(raw[:, None], constants, np.ones(4, bool), config)
    np.testing.assert_allclose(np.asarray(targets.scaled)[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(to_scaled(raw, np.float64(2.0), config), expected, rtol=1e-6)
    np.testing.assert_allclose(to_currency(expected[:3], np.float64(2.0), config), raw[:3], rtol=1e-6)


def test_a_negative_prediction_stays_negative_in_currency():
    for transform in ("linear", "log1p"):
        config = LabelConfig(transform=transform)
        values = to_currency(np.array([-1.0, -0.1, 0.0, 0.1]), np.float64(2.0), config)
        assert (np.diff(values) > 0).all() and values[0] < 0 and values[2] == 0


def test_unknown_labels_and_padding_are_masked():
    constants = make_constants(np.float32([1.0, 1.0]), np.zeros((2, 3), np.float32))
    labels_BxK = np.float32([[1.0, np.nan], [2.0, 3.0], [4.0, 5.0]])
    targets = make_targets(labels_BxK, constants, np.array([True, True, False]), LabelConfig())
    assert np.asarray(targets.mask).tolist() == [[True, False], [True, True], [False, False]]
    assert np.isfinite(np.asarray(targets.scaled)).all()
