"""Metrics against hand values, definitions spelled out naively, scipy, and materialised resamples."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mean_jax.evaluation import intervals, metrics
from mean_jax.evaluation.ranking import RankedSplit, Resample, bin_edges, rank_order

LABEL = np.array((0, 0, 0, 1, 0, 2, 0, 5, 0, 12.0))
PREDICTION = np.array((0.1, 0.4, 0.2, 1, 0.3, 0.9, 0.8, 6, 0.7, 4))


def make_split(num_rows: int, seed: int = 0, tied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    signal_V = rng.normal(size=num_rows)
    spends_V = rng.random(num_rows) < 0.3
    label_V = np.where(spends_V, np.exp(2 + signal_V + rng.normal(size=num_rows)), 0)
    prediction_V = signal_V + 0.5 * rng.normal(size=num_rows)  # negative values too
    return (np.round(label_V, -1), np.round(prediction_V)) if tied else (label_V, prediction_V)


class TestGolden:
    """BASELINES.md 7.7, to the printed digits."""

    @pytest.mark.parametrize(
        ("value", "printed"),
        [
            (metrics.gini_raw(LABEL, PREDICTION, compat="google"), ".800000"),
            (metrics.gini_raw(LABEL, LABEL, compat="google"), ".880000"),
            (metrics.gini(LABEL, PREDICTION, compat="google"), ".909091"),
            (metrics.gini_raw(LABEL, PREDICTION), ".700000"),
            (metrics.gini_raw(LABEL, LABEL), ".780000"),
            (metrics.gini(LABEL, PREDICTION), ".897436"),
            (metrics.spearman(LABEL, PREDICTION), ".860314"),
            (metrics.auc(LABEL, PREDICTION), "1.000000"),
            (metrics.mutual_gini(LABEL, PREDICTION), ".095556"),
            (metrics.binned_mape(LABEL, PREDICTION, 5).value, ".389216"),
            (metrics.binned_mape(LABEL, PREDICTION, 5, weight="label").value, ".530000"),
            (metrics.ambe(LABEL, PREDICTION), ".560000"),
            (metrics.nrmse(LABEL, PREDICTION), "1.300385"),
            (metrics.nmae(LABEL, PREDICTION), ".630000"),
        ],
    )
    def test_vector(self, value, printed):
        assert f"{value:.6f}".removeprefix("0") == printed

    def test_skipped_bins(self):
        assert metrics.binned_mape(LABEL, PREDICTION, 5).skipped == 3

    def test_mutual_gini_takes_the_absolute_value_inside_the_integral(self):
        label_V, prediction_V = np.array((0, 0, 0, 10, 10, 10.0)), np.array((1, 1, 1, 2, 5, 20.0))
        assert metrics.mutual_gini(label_V, prediction_V) == pytest.approx(0.1167, abs=5e-5)


class TestAgainstNaiveDefinitions:
    def test_gini_is_the_mean_over_all_orders_of_ties(self):
        label_V, prediction_V = np.array((0, 3, 0, 1, 7, 2.0)), np.array((1, 1, 2, 2, 2, 0.0))
        values = []
        for order in itertools.permutations(range(6)):
            order = sorted(order, key=lambda row: -prediction_V[row])  # stable: ties stay in permuted order
            curve = np.concatenate(([0], np.cumsum(label_V[order]) / label_V.sum()))
            values.append(2 * np.trapezoid(curve, dx=1 / 6) - 1)
        assert metrics.gini_raw(label_V, prediction_V) == pytest.approx(np.mean(values), abs=1e-14)

    @pytest.mark.parametrize("tied", [False, True])
    def test_auc_counts_pairs(self, tied):
        label_V, prediction_V = make_split(80, tied=tied)
        above_V, below_V = prediction_V[label_V > 10], prediction_V[label_V <= 10]
        wins = [(a > b) + (a == b) / 2 for a in above_V for b in below_V]
        assert metrics.auc(label_V, prediction_V, threshold=10) == pytest.approx(np.mean(wins), abs=1e-14)

    @pytest.mark.parametrize("tied", [False, True])
    def test_spearman_is_scipys(self, tied):
        label_V, prediction_V = make_split(500, tied=tied)
        expected = stats.spearmanr(label_V, prediction_V).statistic
        assert metrics.spearman(label_V, prediction_V) == pytest.approx(expected, abs=1e-13)

    def test_mutual_gini_by_interpolated_lorenz_curves(self):
        label_V, prediction_V = make_split(300)
        grid = np.arange(301) / 300
        curves = []
        for value_V in (label_V, np.maximum(prediction_V, 0)):
            top_first_V = np.sort(value_V)[::-1]
            curves.append(np.concatenate(([0], np.cumsum(top_first_V))) / value_V.sum())
        expected = np.trapezoid(np.abs(curves[0] - curves[1]), grid)
        assert metrics.mutual_gini(label_V, prediction_V) == pytest.approx(expected, abs=1e-13)

    @pytest.mark.parametrize("n_bins", [1, 7, 10, 100])
    def test_binned_mape_over_split_arrays(self, n_bins):
        label_V, prediction_V = make_split(700)
        rows = np.array_split(np.argsort(prediction_V), n_bins)  # 700 divides evenly
        pairs = [(prediction_V[part].mean(), label_V[part].mean()) for part in rows]
        expected = [abs(p - y) / y for p, y in pairs if y > 0]
        error = metrics.binned_mape(label_V, prediction_V, n_bins)
        assert error.value == pytest.approx(np.mean(expected), rel=1e-10)
        assert error.skipped == n_bins - len(expected)

    def test_errors(self):
        label_V, prediction_V = make_split(50)
        differences = [p - y for p, y in zip(prediction_V, label_V, strict=True)]
        assert metrics.mae(label_V, prediction_V) == pytest.approx(sum(map(abs, differences)) / 50)
        assert metrics.rmse(label_V, prediction_V) == pytest.approx(math.sqrt(sum(d * d for d in differences) / 50))
        assert metrics.bias(label_V, prediction_V) == pytest.approx(sum(prediction_V) / sum(label_V))
        assert metrics.ambe(label_V, prediction_V) == pytest.approx(abs(sum(differences)) / 50)
        assert metrics.positive_rate(label_V) == sum(y > 0 for y in label_V) / 50


class TestIdentities:
    @pytest.mark.parametrize("tied", [False, True])
    def test_binary_label(self, tied):
        label_V, prediction_V = make_split(997, tied=tied)
        is_buyer_V = (label_V > 0).astype(float)
        auc, rate = metrics.auc(is_buyer_V, prediction_V), is_buyer_V.mean()
        assert metrics.gini(is_buyer_V, prediction_V) == pytest.approx(2 * auc - 1, abs=1e-14)
        if not tied:
            expected = (2 * auc - 1) * math.sqrt(3 * rate * (1 - rate) / (1 - 1 / 997**2))
            assert metrics.spearman(is_buyer_V, prediction_V) == pytest.approx(expected, abs=1e-13)

    @pytest.mark.parametrize("constant", [-2.0, 0.0, 0.1, 1e9])
    def test_constant_prediction_has_gini_exactly_zero(self, constant):
        label_V, _ = make_split(1000)
        assert metrics.gini(label_V, np.full(1000, constant)) == 0.0
        assert metrics.auc(label_V, np.full(1000, constant)) == 0.5

    def test_google_compat_differs_by_one_over_rows(self):
        label_V, prediction_V = make_split(400)
        raw = metrics.gini_raw(label_V, prediction_V)
        assert metrics.gini_raw(label_V, prediction_V, compat="google") == pytest.approx(raw + 1 / 400, abs=1e-15)

    def test_perfect_and_reversed_order(self):
        label_V, _ = make_split(1000)
        assert metrics.gini(label_V, np.exp(label_V / 100)) == 1.0
        assert metrics.gini(label_V, -label_V) == pytest.approx(-1.0, abs=1e-14)

    @pytest.mark.parametrize("seed", range(20))
    def test_a_perfect_order_of_labels_with_ties_is_exactly_one(self, seed):
        rng = np.random.default_rng(seed)
        label_V = np.where(rng.random(997) < 0.7, 0, np.round(rng.lognormal(2, 1, 997), 1))
        assert metrics.gini(label_V, label_V) == metrics.bias(label_V, label_V) == 1.0
        assert metrics.point_metrics(label_V, label_V)["bias"] == 1.0

    @pytest.mark.parametrize(("zeros", "ceiling"), [(0.9, 0.521), (0.928, 0.448)])
    def test_spearman_ceiling_of_a_prediction_without_ties(self, zeros, ceiling):
        rng = np.random.default_rng(0)
        label_V = np.where(np.arange(20_000) < 20_000 * zeros, 0, 1 + rng.random(20_000))
        assert metrics.spearman(label_V, label_V + 1e-9 * rng.random(20_000)) == pytest.approx(ceiling, abs=5e-4)

    def test_exact_predictions_have_no_error(self):
        label_V, _ = make_split(1000)
        for name in ("percentile_mape", "decile_mape", "mutual_gini", "mae", "rmse"):
            assert metrics.point_metrics(label_V, label_V)[name] == 0
        assert metrics.bias(label_V, label_V) == 1

    def test_mutual_gini_ignores_order_and_scale(self):
        label_V, _ = make_split(500)
        assert metrics.mutual_gini(label_V, 7 * label_V[::-1]) == pytest.approx(0, abs=1e-14)

    def test_row_order_changes_nothing(self):
        label_V, prediction_V = make_split(1000)
        order_V = np.random.default_rng(1).permutation(1000)
        permuted = metrics.point_metrics(label_V[order_V], prediction_V[order_V])
        assert permuted == pytest.approx(metrics.point_metrics(label_V, prediction_V), rel=1e-12)

    def test_row_order_changes_no_ranking_metric_under_ties(self):
        label_V, prediction_V = make_split(1000, tied=True)
        by_label_V = np.argsort(label_V)
        for metric in (metrics.gini, metrics.gini_raw, metrics.auc, metrics.spearman, metrics.mutual_gini):
            assert metric(label_V[by_label_V], prediction_V[by_label_V]) == pytest.approx(
                metric(label_V, prediction_V), abs=1e-13
            )


class TestBins:
    @pytest.mark.parametrize(("rows", "n_bins"), [(1001, 10), (1001, 100), (100, 100), (7, 100), (1, 10)])
    def test_sizes_differ_by_at_most_one_and_none_is_empty(self, rows, n_bins):
        sizes = np.diff(bin_edges(rows, n_bins))
        assert sizes.sum() == rows and sizes.min() >= 1 and np.ptp(sizes) <= 1 and len(sizes) == min(rows, n_bins)

    def test_ties_are_not_broken_by_label_nor_by_row_order(self):
        label_V = np.repeat((0.0, 1.0), 5000)  # sorted by label, one constant prediction
        error = metrics.binned_mape(label_V, np.full(10_000, 0.5), 10)
        assert error.skipped == 0 and error.value < 0.1
        assert rank_order(np.zeros(50), seed=3).tolist() == rank_order(np.zeros(50), seed=3).tolist()
        assert rank_order(np.zeros(50), seed=3).tolist() != rank_order(np.zeros(50), seed=4).tolist()

    def test_zero_bins(self):
        label_V, prediction_V = np.array((0, 0, 4, 0, 8, 0.0)), np.array((1, 1.5, 2, 3, 4, 5))
        assert metrics.binned_mape(label_V, prediction_V, 6) == (pytest.approx((2 / 4 + 4 / 8) / 2), 4)
        assert metrics.binned_mape(label_V, prediction_V, 6, zero="inf") == (math.inf, 0)
        # Bins 0-2 and 3-5: the last one has no spending bin above it and joins the one below.
        merged = (abs(4.5 - 4) / 4 + abs(12 - 8) / 8) / 2
        assert metrics.binned_mape(label_V, prediction_V, 6, zero="merge") == (pytest.approx(merged), 0)
        weighted = (1 + 1.5 + 2 + 3 + 4 + 5) / 12
        assert metrics.binned_mape(label_V, prediction_V, 6, weight="label") == (pytest.approx(weighted), 0)

    def test_inf_needs_a_prediction(self):
        assert metrics.binned_mape(np.array((0, 2.0)), np.array((0, 1.0)), 2, zero="inf").value == 0.5

    def test_bad_options(self):
        with pytest.raises(ValueError, match="n_bins is 0"):
            metrics.binned_mape(LABEL, PREDICTION, 0)
        with pytest.raises(ValueError, match="zero='drop'"):
            metrics.binned_mape(LABEL, PREDICTION, 5, zero="drop")


class TestUndefined:
    def test_no_spend(self):
        values = metrics.point_metrics(np.zeros(20), np.arange(20) - 5.0)
        undefined = {name for name, value in values.items() if math.isnan(value)}
        assert undefined == {
            *("percentile_mape", "decile_mape", "gini", "gini_raw", "spearman", "auc", "mutual_gini", "bias")
        }
        assert math.isnan(metrics.nmae(np.zeros(3), np.ones(3))) and math.isnan(metrics.nrmse(np.zeros(3), np.ones(3)))

    def test_all_spend_the_same(self):
        values = metrics.point_metrics(np.full(20, 3.0), np.arange(20.0))
        assert {name for name, value in values.items() if math.isnan(value)} == {"gini", "spearman", "auc"}

    def test_constant_or_negative_predictions(self):
        assert math.isnan(metrics.spearman(LABEL, np.full(10, 0.3)))
        assert math.isnan(metrics.mutual_gini(LABEL, -PREDICTION))
        assert all(math.isfinite(value) for value in metrics.point_metrics(LABEL, PREDICTION - 3).values())

    def test_one_row(self):
        values = metrics.point_metrics(np.array([2.0]), np.array([1.0]))
        assert values["percentile_mape"] == 0.5 and values["mae"] == 1 and math.isnan(values["gini"])

    @pytest.mark.parametrize(
        ("label_V", "prediction_V", "message"),
        [
            ([1, math.nan], [1, 1], "label of row 1 is nan"),
            ([1, 1], [math.inf, 1], "prediction of row 0 is inf"),
            ([1, -2], [1, 1], "label of row 1 is -2.0"),
            ([1, 1], [1], "vectors of one length"),
            ([], [], "vectors of one length"),
            ([[1]], [[1]], "vectors of one length"),
        ],
    )
    def test_bad_input(self, label_V, prediction_V, message):
        for metric in (metrics.point_metrics, metrics.mae, metrics.gini):
            with pytest.raises(ValueError, match=message):
                metric(np.array(label_V), np.array(prediction_V))


def drawn(num_rows, resample, seed):
    repeats = intervals.Repeats(num_rows)
    repeats.draw(resample, seed)
    return repeats


def given(counts_V):
    repeats = intervals.Repeats(len(counts_V))
    repeats.counts_V[:] = counts_V
    repeats.weights_V[:] = counts_V
    repeats.rows_before[1:] = np.cumsum(counts_V)
    return repeats


class TestResample:
    @pytest.mark.parametrize(("num_rows", "resample"), [*((613, resample) for resample in range(5)), (70_000, 0)])
    def test_equals_the_materialised_resample(self, num_rows, resample):
        split = RankedSplit(*make_split(num_rows))
        repeats = drawn(num_rows, resample, seed=0)  # the larger one by blocks
        counts_V = repeats.counts_V
        weighted = metrics._all_metrics(Resample(split, repeats))
        repeated = metrics.point_metrics(np.repeat(split.label_V, counts_V), np.repeat(split.prediction_V, counts_V))
        assert weighted == pytest.approx(repeated, rel=1e-11, abs=1e-13)

    @pytest.mark.parametrize(
        ("label_V", "counts_V"),
        [
            ([3.0, 1.0, 2.0, 5.0, 1.0, 4.0], [0, 2, 1, 0, 3, 0]),  # all spend; rows that are not drawn at both ends
            ([0.0] * 6, [1, 0, 2, 3, 0, 0]),
            ([2.0] * 6, [1, 0, 2, 3, 0, 0]),
            ([0.0, 1.0, 0.0, 2.0, 0.0, 2.0], [0, 0, 0, 6, 0, 0]),  # one row alone
            ([0.0, 1.0, 0.0, 2.0, 0.0, 2.0], [6, 0, 0, 0, 0, 0]),
            ([0.0, 1.0, 0.0, 2.0, 0.0, 2.0], [1, 1, 1, 1, 1, 1]),
            ([4.0], [3]),
        ],
    )
    def test_equals_the_materialised_resample_at_the_edges(self, label_V, counts_V):
        split = RankedSplit(np.array(label_V), np.array([0.5, 1.5, -1.0, 3.0, 2.0, 7.0])[: len(label_V)])
        counts_V = np.array(counts_V)
        weighted = metrics._all_metrics(Resample(split, given(counts_V)))
        repeated = metrics.point_metrics(np.repeat(split.label_V, counts_V), np.repeat(split.prediction_V, counts_V))
        assert weighted == pytest.approx(repeated, rel=1e-12, nan_ok=True)

    def test_a_row_drawn_millions_of_times(self):
        split = RankedSplit(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0]))
        counts = [4_000_000, 1, 1]
        values, weights = np.array([[0.0, 1.0, 2.0], [1.0, 3.0, 2.0]]), np.array(counts, np.float64)
        ranks = [  # centred, times 2
            [2 * weights[row < value].sum() + weights[row == value].sum() - weights.sum() for value in row]
            for row in values
        ]
        expected = (weights * ranks[0] * ranks[1]).sum() / np.sqrt(
            (weights * np.square(ranks[0])).sum() * (weights * np.square(ranks[1])).sum()
        )
        by_prediction = np.array(counts)[np.argsort([1.0, 3.0, 2.0])]
        assert Resample(split, given(by_prediction)).spearman() == pytest.approx(expected, rel=1e-9)

    def test_equals_the_materialised_resample_under_ties(self):
        split = RankedSplit(*make_split(613, tied=True))
        repeats = drawn(613, 0, seed=1)
        counts_V = repeats.counts_V
        weighted = metrics._all_metrics(Resample(split, repeats))
        label_V, prediction_V = np.repeat(split.label_V, counts_V), np.repeat(split.prediction_V, counts_V)
        repeated = metrics.point_metrics(label_V, prediction_V)
        for name in set(weighted) - {"percentile_mape", "percentile_mape_bins_skipped", "decile_mape"}:
            assert weighted[name] == pytest.approx(repeated[name], rel=1e-11), name
        # Bins cut the repeated rows in the order of the split: ties keep the order they drew.
        edges = bin_edges(613, 10)
        pairs = [
            (prediction_V[a:b].sum(), label_V[a:b].sum()) for a, b in itertools.pairwise(edges) if label_V[a:b].any()
        ]
        assert weighted["decile_mape"] == pytest.approx(np.mean([abs(p - y) / y for p, y in pairs]), rel=1e-11)

    def test_a_constant_prediction_has_no_rank_correlation_where_cubes_are_rounded(self):
        num_rows = 208_069  # whose cube is rounded otherwise as a power than as a product
        assert math.isnan(metrics.spearman(np.arange(num_rows) % 3, np.ones(num_rows)))

    def test_bins_without_spend_stay_exactly_empty(self):
        label_V, prediction_V = make_split(1000)
        label_V[prediction_V < 0] = 0
        split = RankedSplit(label_V * 1e9 + (label_V > 0) / 3, prediction_V)
        repeats = drawn(1000, 0, seed=0)
        counts_V = repeats.counts_V
        expected = sum(
            not part.any() for part in np.split(np.repeat(split.label_V, counts_V), bin_edges(1000, 100)[1:-1])
        )
        assert Resample(split, repeats).binned_mape(100).skipped == expected


class TestSummary:
    def test_shape_and_determinism(self):
        label_V, prediction_V = make_split(400)
        summary = metrics.summarise(label_V, prediction_V, num_resamples=40, seed=5)
        point = metrics.point_metrics(label_V, prediction_V)
        assert list(summary) == [
            *("percentile_mape", "percentile_mape_bins_skipped", "decile_mape", "gini", "gini_raw", "spearman", "auc"),
            *("mutual_gini", "mae", "rmse", "bias", "rows", "positive_rate"),
        ]
        assert summary["rows"] == 400 and summary["percentile_mape_bins_skipped"] == point.pop(
            "percentile_mape_bins_skipped"
        )
        for name in set(point) - {"rows"}:
            assert summary[name]["value"] == point[name]
            assert summary[name]["low"] < summary[name]["value"] < summary[name]["high"]
        assert summary == metrics.summarise(label_V, prediction_V, num_resamples=40, seed=5)
        assert summary != metrics.summarise(label_V, prediction_V, num_resamples=40, seed=6)

    def test_spaces_have_the_summary_of_each(self):
        label_V, prediction_V = make_split(400)
        pairs = {"currency": (label_V, prediction_V), "scaled": (np.minimum(label_V, 9.0), prediction_V**3)}
        found = metrics.summarise_spaces(pairs, num_resamples=40, seed=5)
        assert found == {space: metrics.summarise(*pair, num_resamples=40, seed=5) for space, pair in pairs.items()}
        assert found["currency"] != found["scaled"]

    def test_spaces_of_other_rows_are_refused(self):
        pairs = {"currency": make_split(400), "scaled": make_split(300)}
        with pytest.raises(ValueError, match="'currency': 400, 'scaled': 300"):
            metrics.summarise_spaces(pairs)
        with pytest.raises(ValueError, match="expected one number"):
            metrics.summarise_spaces({})

    def test_undefined_is_none(self):
        summary = metrics.summarise(np.zeros(30), np.arange(30.0), num_resamples=10)
        assert summary["gini"] == {"value": None, "low": None, "high": None}
        assert summary["percentile_mape_bins_skipped"] == 30 and summary["mae"]["value"] == 14.5

    def test_threads_change_nothing(self, monkeypatch):
        rng = np.random.default_rng(3)
        label_V = np.where(rng.random(3000) < 0.3, rng.lognormal(3.0, 1.0, 3000), 0.0)
        prediction_V = rng.lognormal(2.0, 1.0, 3000).round(1)  # with ties
        found = []
        for num_threads in (1, 4):
            monkeypatch.setattr(intervals, "available_processors", lambda number=num_threads: number)
            found.append(metrics.summarise(label_V, prediction_V, num_resamples=40))
        assert found[0] == found[1]

    def test_resamples_that_leave_the_metric_undefined(self):
        label_V = np.zeros(50)
        label_V[3] = 9.0  # about a third of the resamples miss the only buyer
        summary = metrics.summarise(label_V, np.arange(50.0), num_resamples=60)
        assert summary["auc"]["low"] is not None

    @pytest.mark.parametrize("name", ["gini", "auc", "bias", "decile_mape"])
    def test_intervals_cover_the_expected_value(self, name, coverage_sample):
        values, lows, highs = (
            np.array([summary[name][key] for summary in coverage_sample]) for key in ("value", "low", "high")
        )
        covered = np.mean((lows <= values.mean()) & (values.mean() <= highs))
        assert 0.8 <= covered <= 1.0
        assert np.mean(highs - lows) / 3.92 == pytest.approx(values.std(), rel=0.4)


@pytest.fixture(scope="module")
def coverage_sample():
    summaries = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        signal_V = rng.normal(size=600)
        label_V = np.where(rng.random(600) < 0.4, np.exp(1 + signal_V + 0.4 * rng.normal(size=600)), 0)
        summaries.append(metrics.summarise(label_V, np.exp(signal_V), num_resamples=80, seed=seed))
    return summaries
