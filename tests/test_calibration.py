"""Calibration: strictly increasing everywhere, right in total, sane where the validation split is poor."""

import dataclasses
import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from mean_jax.evaluation import metrics
from mean_jax.evaluation.calibration import Calibration, default_num_bins, fit_calibration, fit_levelled
from mean_jax.run import PERCENTILE_LEVELS, HorizonCalibration


def make_split(num_rows: int, seed: int = 0, positive_rate: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Zero-inflated log-normal spend and a float32 prediction that ranks well but is far too low, at times < 0."""
    rng = np.random.default_rng(seed)
    signal_V = rng.normal(size=num_rows)
    spends_V = rng.random(num_rows) < np.clip(positive_rate * np.exp(0.8 * signal_V - 0.3), 0, 1)
    label_V = np.where(spends_V, np.exp(3 + 0.4 * signal_V + 1.1 * rng.normal(size=num_rows)), 0)
    prediction_V = 0.1 * np.exp(signal_V + 0.3 * rng.normal(size=num_rows)) - 0.02
    return prediction_V.astype(np.float32), label_V


def float32_neighbours(value: np.ndarray) -> np.ndarray:
    """The values with their next float32 above each, ascending and distinct."""
    value = np.asarray(value, np.float32)
    return np.unique(np.concatenate((value, np.nextafter(value, np.float32(np.inf)))))


def assert_strictly_increasing(calibration: Calibration, ascending: np.ndarray) -> None:
    value = calibration(ascending)
    assert np.all(value > 0) and np.all(np.isfinite(value))
    assert np.all(np.diff(value) > 0)


class TestFit:
    @pytest.mark.parametrize("num_rows", [200, 2000, 20_000])
    def test_ranking_metrics_are_equal_and_the_total_is_right(self, num_rows):
        prediction_V, label_V = make_split(num_rows)
        calibration = fit_calibration(prediction_V, label_V)
        calibrated_V = calibration(prediction_V)
        assert calibrated_V.mean() == pytest.approx(label_V.mean(), rel=1e-12)
        for metric in (metrics.gini, metrics.gini_raw, metrics.spearman, metrics.auc):
            assert metric(label_V, calibrated_V) == metric(label_V, prediction_V.astype(np.float64))

    def test_mends_totals_and_bins_of_other_rows(self):
        calibration = fit_calibration(*make_split(20_000, seed=1))
        prediction_V, label_V = make_split(100_000, seed=2)
        raw = metrics.point_metrics(label_V, prediction_V)
        calibrated = metrics.point_metrics(label_V, calibration(prediction_V))
        assert raw["bias"] < 0.1 and 0.9 < calibrated["bias"] < 1.1
        assert calibrated["decile_mape"] < 0.2 < 0.9 < raw["decile_mape"]
        assert calibrated["gini"] == raw["gini"]

    def test_values_are_the_isotonic_bin_means(self):
        rng = np.random.default_rng(0)
        prediction_V = np.repeat([1.0, 2, 3, 4, 5], 100)
        label_V = np.repeat([1.0, 4, 3, 5, 9], 100) * rng.choice([0.5, 1.5], 500)
        means = label_V.reshape(5, 100).mean(axis=1)
        calibration = fit_calibration(prediction_V, label_V, num_bins=5)
        expected = isotonic_regression(means).x
        assert calibration.knots == (1, 2, 3, 4, 5)
        assert expected[1] == expected[2]
        np.testing.assert_allclose(calibration(np.arange(1.0, 6)), expected, rtol=3e-3)  # the tilt
        curve = PchipInterpolator(np.arange(1.0, 6), expected)
        np.testing.assert_allclose(calibration(np.array([1.5, 3.3, 4.7])), curve([1.5, 3.3, 4.7]), rtol=3e-3)

    @pytest.mark.parametrize(
        ("rows", "positives", "bins"),
        [(2000, 200, 6), (200_000, 20_000, 27), (2000, 2000, 13), (120, 120, 2), (2000, 40, 1), (40, 40, 1), (9, 0, 1)],
    )
    def test_number_of_bins(self, rows, positives, bins):
        assert default_num_bins(rows, positives) == bins

    def test_highest_bin_is_halved_while_there_are_buyers(self):
        prediction_V = np.arange(10_000.0)
        calibration = fit_calibration(prediction_V, prediction_V, num_bins=2)
        # Halves of the upper half: 5000, 2500, ... down to at least 100 rows.
        assert len(calibration.knots) == 2 + 5
        np.testing.assert_allclose(calibration(prediction_V[2500:]), prediction_V[2500:], rtol=0.05)


class TestFitLevelled:
    def test_shape_of_one_split_and_level_of_both(self):
        (prediction_V, label_V), (train_prediction_V, train_label_V) = make_split(2000), make_split(9000, seed=1)
        levelled = fit_levelled(prediction_V, label_V, train_prediction_V, 3 * train_label_V)
        total = levelled(prediction_V).sum() + levelled(train_prediction_V).sum()
        assert total == pytest.approx(label_V.sum() + 3 * train_label_V.sum(), rel=1e-12)
        alone = fit_calibration(prediction_V, label_V)
        factor_V = levelled(train_prediction_V) / alone(train_prediction_V)
        np.testing.assert_allclose(factor_V, factor_V[0], rtol=1e-12)
        assert factor_V[0] > 2


class TestPercentile:
    def test_share_of_lower_predictions_with_and_without_ties(self):
        rng = np.random.default_rng(0)
        prediction_V = np.concatenate([np.full(6000, -1.0), np.full(1000, 2.0), rng.normal(4.0, 1.0, 3000)])
        curve = fit_calibration(prediction_V, np.maximum(prediction_V, 0.0))
        calibration = HorizonCalibration(curve, (curve,), np.percentile(prediction_V, PERCENTILE_LEVELS))
        value_B = np.concatenate([[-9.0, -1.0, 2.0, 99.0], rng.permutation(prediction_V)[:500], rng.normal(4, 1, 500)])
        lower_B = 100 * (prediction_V[None] < value_B[:, None]).mean(axis=1)
        np.testing.assert_allclose(calibration.percentile(value_B), lower_B, atol=0.11)


class TestStrictlyIncreasing:
    def test_across_plateaus_knots_and_far_outside(self):
        calibration = fit_calibration(*make_split(2000), num_bins=30)
        knots = np.array(calibration.knots)
        assert np.any(np.diff(calibration.values) == 0), "the case needs a plateau"
        far = np.geomspace(1e-3, 3e38, 200)
        points = np.concatenate((np.linspace(-2, 5, 5001), knots, -far, far))
        assert_strictly_increasing(calibration, float32_neighbours(points[np.abs(points) > 1e-4]))

    @settings(deadline=None, max_examples=150)
    @given(
        st.integers(0, 10_000),
        st.sampled_from([1e-3, 1.0, 1e4]),
        st.sampled_from([-100.0, -1.0, 0.0, 1.0, 100.0]),
        st.sampled_from([1e-6, 1e-2, 1.0]),
        st.sampled_from(["related", "reversed", "unrelated", "one buyer", "equal", "none"]),
        st.integers(1, 40),
        st.integers(1, 300),
    )
    def test_for_any_split(self, seed, unit, centre, spread, labels, num_bins, num_rows):
        rng = np.random.default_rng(seed)
        signal_V = rng.standard_t(3, size=num_rows)
        prediction_V = (unit * (centre + spread * signal_V)).astype(np.float32)
        noise_V = np.exp(rng.normal(size=num_rows) * 2) * (rng.random(num_rows) < 0.3)
        label_V = {
            "related": noise_V * np.exp(signal_V.clip(-5, 5)),
            "reversed": noise_V * np.exp(-signal_V.clip(-5, 5)),
            "unrelated": noise_V,
            "one buyer": np.where(np.arange(num_rows) == num_rows // 2, 1e6, 0),
            "equal": np.full(num_rows, 7.0),
            "none": np.zeros(num_rows),
        }[labels]
        calibration = fit_calibration(prediction_V, label_V, num_bins)
        if label_V.any():
            assert calibration(prediction_V).mean() == pytest.approx(label_V.mean(), rel=1e-9)
        size = max(abs(float(prediction_V.mean())), float(prediction_V.std()))
        far = size * np.array([1e-2, 1.0, 10, 1e3, 1e10, 1e30])
        points = np.concatenate((prediction_V, -far, far))
        assert_strictly_increasing(calibration, float32_neighbours(points[np.abs(points) >= 1e-2 * size]))


class TestPoorSplits:
    def test_no_buyers(self):
        prediction_V, label_V = make_split(2000)
        calibration = fit_calibration(prediction_V, 0 * label_V)
        assert calibration.num_positive == 0
        assert calibration(prediction_V).max() < 1e-6
        assert_strictly_increasing(calibration, np.unique(prediction_V))

    @pytest.mark.parametrize("constant", [-3.0, -0.1, 0.0, 0.1, 250.0])
    def test_constant_prediction_gives_the_mean(self, constant):
        label_V = np.array((0, 0, 0, 8.0) * 50)
        calibration = fit_calibration(np.full(200, constant), label_V)
        np.testing.assert_allclose(calibration(np.full(3, constant)), 2.0, rtol=1e-12)
        outside = calibration(np.array([constant - 1, constant + 1]))
        assert 0 < outside[0] < 2 < outside[1] < 25

    def test_few_buyers_give_a_proportional_curve(self):
        prediction_V = np.linspace(1, 3, 41)
        calibration = fit_calibration(prediction_V, np.where(prediction_V > 2.5, 10.0, 0))
        ratio = calibration(prediction_V) / prediction_V
        assert len(calibration.knots) == 2 and np.ptp(ratio) < 1e-2 * ratio.mean()
        assert calibration(np.array([30.0])) == pytest.approx(30 * ratio.mean(), rel=0.02)

    def test_one_huge_label_does_not_explode_beyond_the_knots(self):
        prediction_V, label_V = make_split(2000)
        label_V[np.argsort(prediction_V)[-3]] = 1e6
        calibration = fit_calibration(prediction_V, label_V)
        last = calibration.knots[-1]
        value = calibration(np.array([last, 10 * last]))
        assert value[1] < 25 * value[0]

    def test_one_huge_prediction_does_not_starve_the_others(self):
        prediction_V, label_V = make_split(2000)
        plain = fit_calibration(prediction_V, label_V)
        prediction_V[0] = 1e6
        outlier = fit_calibration(prediction_V, label_V)
        typical_V = np.quantile(prediction_V, [0.2, 0.5, 0.8])
        ratio = outlier(typical_V) / plain(typical_V)
        assert np.all((ratio > 0.5) & (ratio < 2))

    def test_ties_share_a_bin(self):
        prediction_V = np.repeat((0.0, 1.0, 2.0), (900, 60, 40))
        label_V = np.where(np.arange(1000) % 3 == 0, prediction_V + 1, 0)
        calibration = fit_calibration(prediction_V, label_V, num_bins=50)
        assert calibration.knots == (0.0, 1.0, 2.0)

    def test_neighbouring_float64_values(self):
        prediction_V = np.repeat((1.0, np.nextafter(1.0, 2), np.nextafter(np.nextafter(1.0, 2), 2)), 100)
        calibration = fit_calibration(prediction_V, np.arange(300.0), num_bins=3)
        assert np.isfinite(calibration(np.array([0.0, 1.0, 2.0]))).all()

    @pytest.mark.parametrize(
        ("prediction_V", "label_V", "num_bins", "message"),
        [
            ([math.nan, 1], [0, 1], 1, "prediction of row 0 is nan"),
            ([0, 1], [0, math.inf], 1, "label of row 1 is inf"),
            ([0, 1], [0, -1], 1, "label of row 1"),
            ([], [], 1, "length"),
            ([0, 1], [0, 1], 0, "num_bins is 0"),
        ],
    )
    def test_bad_input(self, prediction_V, label_V, num_bins, message):
        with pytest.raises(ValueError, match=message):
            fit_calibration(np.array(prediction_V), np.array(label_V), num_bins)


class TestCall:
    def test_any_shape(self):
        calibration = fit_calibration(*make_split(2000))
        grid = np.linspace(-1, 1, 12).astype(np.float32)
        assert calibration(grid.reshape(3, 4)).tolist() == calibration(grid).reshape(3, 4).tolist()
        assert calibration(np.float32(0.5)).shape == () and calibration(np.zeros((0, 2))).shape == (0, 2)
        assert calibration(grid).dtype == np.float64

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_refuses_what_is_not_finite(self, bad):
        with pytest.raises(ValueError, match="not finite"):
            fit_calibration(*make_split(200))(np.array([0.0, bad]))

    def test_value_and_slope_are_continuous_at_the_lowest_knot(self):
        calibration = fit_calibration(*make_split(2000))
        first, step = calibration.knots[0], 1e-6
        below, at, above = calibration(np.array([first - step, first, first + step]))
        assert (at - below) / step == pytest.approx((above - at) / step, rel=1e-3)

    def test_linear_above_the_highest_knot(self):
        calibration = fit_calibration(*make_split(2000))
        value = calibration(calibration.knots[-1] + np.arange(4.0))
        np.testing.assert_allclose(np.diff(value), calibration.upper_slope, rtol=1e-9)


class TestJson:
    def test_round_trip_is_exact(self):
        prediction_V, label_V = make_split(2000)
        calibration = fit_calibration(prediction_V, label_V)
        restored = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
        assert restored == calibration
        assert restored(prediction_V).tolist() == calibration(prediction_V).tolist()

    def test_refuses_other_fields(self):
        content = fit_calibration(*make_split(200)).to_dict()
        with pytest.raises(ValueError, match="expected"):
            Calibration.from_dict({**content, "extra": 1})
        del content["tilt"]
        with pytest.raises(ValueError, match="expected"):
            Calibration.from_dict(content)

    @pytest.mark.parametrize(
        "change",
        [
            {"knots": (1.0, 1.0)},
            {"values": (2.0, 1.0)},
            {"values": (0.0, 1.0)},
            {"tilt": 0.0},
            {"upper_slope": math.nan},
            {"values": (1.0,)},
            {"knots": (), "values": ()},
        ],
    )
    def test_refuses_what_is_not_increasing(self, change):
        good = Calibration((0.0, 1.0), (1.0, 2.0), 0.1, 0.1, 0.1, 10, 5)
        with pytest.raises(ValueError, match="calibration"):
            dataclasses.replace(good, **change)
