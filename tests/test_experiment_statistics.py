"""Statistics over seeds and the orders of systems, against SciPy and values by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from mean_jax.experiments import paper
from mean_jax.experiments.results import DETERMINISTIC, CellFile, Results, write_results
from mean_jax.experiments.statistics import goodness, order_agreement, paired_difference, spread

A = {0: 0.61, 1: 0.64, 2: 0.60, 3: 0.66}
B = {0: 0.58, 1: 0.63, 2: 0.55, 3: 0.64}


def test_the_paired_interval_is_that_of_the_paired_t_test():
    difference = paired_difference(A, B)
    test = stats.ttest_rel(list(A.values()), list(B.values()))
    interval = test.confidence_interval(0.95)
    assert difference.mean == pytest.approx((interval.low + interval.high) / 2)
    assert difference.half_width == pytest.approx((interval.high - interval.low) / 2)
    assert difference.is_larger_than_noise == (test.pvalue < 0.05)
    assert difference.is_larger_than_noise
    assert not paired_difference(A, {**B, 0: 0.70}).is_larger_than_noise


def test_a_system_without_randomness_is_paired_with_every_seed():
    difference = paired_difference(A, {DETERMINISTIC: 0.6})
    test = stats.ttest_1samp(list(A.values()), 0.6)
    assert difference.mean == pytest.approx(np.mean(list(A.values())) - 0.6)
    assert difference.is_larger_than_noise == (test.pvalue < 0.05)


def test_a_random_system_that_was_fitted_once_brings_noise_of_its_own():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 4))  # nothing differs: about one in twenty may pass for a difference
    found = [paired_difference(dict(enumerate(draw[:3])), {0: draw[3]}).is_larger_than_noise for draw in draws]
    assert np.mean(found) == pytest.approx(0.05, abs=0.015)


def test_only_common_seeds_are_paired_and_one_pair_has_no_interval():
    assert paired_difference(A, {0: 0.6, 9: 1.0}).mean == pytest.approx(0.01)
    assert math.isnan(paired_difference(A, {0: 0.6, 9: 1.0}).half_width)
    assert not paired_difference({0: 1.0}, {0: 0.0}).is_larger_than_noise
    assert math.isnan(paired_difference(A, {}).mean)


def test_spread():
    assert spread(A).mean == pytest.approx(0.6275) and spread(A).deviation == pytest.approx(
        np.std([0.61, 0.64, 0.60, 0.66], ddof=1)
    )
    assert math.isnan(spread({0: 1.0}).deviation) and math.isnan(spread({}).mean)


def test_order_agreement_is_kendalls_tau_over_common_systems():
    ours = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 9.0}
    assert order_agreement(ours, {"a": 10.0, "b": 20.0, "c": 30.0}) == 1.0
    assert order_agreement(ours, {"a": 3.0, "b": 2.0, "c": 1.0}) == -1.0
    assert order_agreement(ours, {"a": 1.0, "b": 3.0, "c": 2.0}) == pytest.approx(1 / 3)
    assert math.isnan(order_agreement(ours, {"a": 1.0}))


def test_the_papers_numbers():
    """Points that its text makes: MEAN has the best percentile MAPE everywhere, MDAN the best Spearman at 180 days."""
    assert paper.paper_value("table1", "MEAN", "365", "auc") == 0.7649
    assert paper.paper_value("table2_3", "MVFE", "30", "percentile_mape") == 0.2317
    assert paper.paper_value("table1", "LightGBM", "30", "auc") is None
    assert (
        paper.paper_value("table1", "MEAN", "60", "auc") is None and paper.paper_value("", "MEAN", "30", "auc") is None
    )
    for horizon in range(4):
        errors = {system: values[horizon][0] for system, values in paper.TABLE_1.items()}
        assert min(errors, key=errors.get) == "MEAN"
        spearman = {system: values[horizon][2] for system, values in paper.TABLE_1.items()}
        assert max(spearman, key=spearman.get) == ("MDAN" if horizon == 2 else "MEAN")
        for index, metric in enumerate(("percentile_mape", "auc")):
            for horizon_name in paper.HORIZONS:
                both = paper.TABLES_2_3["MEAN"][paper.HORIZONS.index(horizon_name)][index]
                assert both == paper.paper_value("table1", "MEAN", horizon_name, metric)


def test_results_give_one_value_per_seed_and_refuse_ambiguity():
    rows = tuple(
        {"system": "a", "split": split, "seed": seed, "m": seed + 0.5} for split in ("test", "train") for seed in (0, 1)
    )
    results = Results((*rows, {"system": "b", "split": "test", "seed": 0, "m": None}))
    assert results.values("m", system="a", split="test") == {0: 0.5, 1: 1.5}
    assert math.isnan(results.values("m", system="b", split="test")[0])
    assert results.distinct("system") == ["a", "b"]
    with pytest.raises(ValueError, match="does not tell"):
        results.values("m", system="a")


def test_a_cell_is_kept_for_its_configuration_alone(tmp_path):
    from mean_jax.errors import UserError

    file = CellFile(tmp_path / "cell.json", {"store": "x", "sizes": (1, 2)})
    assert file.load() is None
    file.save([{"seed": 0, "m": math.nan, "n": 1.5}])
    assert file.load() == [{"seed": 0, "m": None, "n": 1.5}]
    with pytest.raises(UserError, match="another configuration or store"):
        CellFile(tmp_path / "cell.json", {"store": "y", "sizes": (1, 2)}).load()


def test_results_table_has_all_columns_and_says_what_it_is(tmp_path):
    import pyarrow.parquet as pq

    write_results(tmp_path / "results.parquet", [{"a": 1, "b": 2.0}, {"a": 2, "c": "x"}])
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.to_pylist() == [{"a": 1, "b": 2.0, "c": None}, {"a": 2, "b": None, "c": "x"}]
    assert b'"version": 1' in table.schema.metadata[b"mean-jax"]


def test_goodness_grows_as_a_metric_improves():
    assert goodness("gini", 0.7) > goodness("gini", 0.6)
    assert goodness("mae", 1.0) > goodness("mae", 2.0)
    assert goodness("bias", 0.95) > goodness("bias", 1.1) > goodness("bias", 0.6)


def test_a_peer_fitted_once_is_compared_with_every_seed():
    assert paired_difference({0: 0.60, 1: 0.64, 2: 0.62}, {0: 0.63}).mean == pytest.approx(-0.01)
