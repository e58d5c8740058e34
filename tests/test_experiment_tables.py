"""What the tables of an experiment print and say, from rows made by hand; nothing is trained."""

import math

import numpy as np
import pytest
from scipy import stats

from mean_jax.experiments import comparison
from mean_jax.experiments.data import ExperimentData
from mean_jax.experiments.layouts import LAYOUTS
from mean_jax.experiments.page import Page, PageTable
from mean_jax.experiments.paper import paper_value
from mean_jax.experiments.results import Results
from mean_jax.experiments.spec import METRICS, ExperimentSpec
from mean_jax.experiments.targeting import interval_over_seeds

SYSTEMS = ("DNN-ZILN", "MDAN", "MEAN")  # in the paper, at 30 days, percentile MAPE falls in this order
CALIBRATED = {"DNN-ZILN": 0.9, "MDAN": 0.5, "MEAN": 0.3}  # the paper's order
RAW = {"DNN-ZILN": 0.4, "MDAN": 0.6, "MEAN": 0.8}  # the reverse
SKIPPED = {"DNN-ZILN": (23, 24), "MDAN": (0, 0), "MEAN": (5, 8)}  # of both seeds
SPEC = ExperimentSpec(networks=tuple((name, "mean") for name in SYSTEMS), paper="table1")


def comparison_rows() -> list[dict]:
    rows = []
    for system in SYSTEMS:
        for seed in range(2):
            for split in ("validation", "test"):
                row = {"system": system, "kind": "network", "horizon": "30", "seed": seed, "point": None}
                row |= {"split": split, "cell": system, "cell_seconds": 1.0}
                row |= {f"{space}_{metric}": 0.1 * seed for space in ("calibrated", "raw") for metric in METRICS}
                row["calibrated_percentile_mape"] = CALIBRATED[system] + 0.01 * seed
                row["raw_percentile_mape"] = RAW[system] + 0.01 * seed
                row["calibrated_percentile_mape_bins_skipped"] = float(SKIPPED[system][seed])
                row["raw_percentile_mape_bins_skipped"] = 99.0
                rows.append(row)
    return rows


def targeting_rows(seeds_of: dict[str, list[tuple[float, float, float]]]) -> list[dict]:
    """Returns rows from (difference, low, high) per seed of each system."""
    shared = {"horizon": "30", "split": "test", "outcome": "visit", "comparison": "lift", "random": 1.0}
    return [
        shared
        | {"system": system, "seed": seed, "targeted": 1.0 + difference, "difference": difference}
        | {"low": low, "high": high}
        for system, values in seeds_of.items()
        for seed, (difference, low, high) in enumerate(values)
    ]


def page_of(layout: str, rows: list[dict], store) -> Page:
    return LAYOUTS[layout](SPEC, Results(tuple(rows)), ExperimentData("x", store), {})


def table_of(page: Page, title: str) -> PageTable:
    (table,) = [table for table in page.tables if table.title == title]
    return table


def column_of(table: PageTable, heading: str) -> dict[str, str]:
    """Returns the texts of one column by system; every heading stands once."""
    assert len(set(table.columns)) == len(table.columns)
    index, system = list(table.columns).index(heading), list(table.columns).index("system")
    return {row[system].text: row[index].text for row in table.rows}


def test_the_papers_order_is_compared_with_the_calibrated_and_with_the_raw_one(store):
    table = table_of(page_of("comparison", comparison_rows(), store), "The paper's numbers and ours")
    for heading, ours, tau in (("calibrated", CALIBRATED, 1.0), ("raw", RAW, -1.0)):
        column = column_of(table, f"percentile MAPE, {heading}")
        for system in SYSTEMS:
            printed = paper_value("table1", system, "30", "percentile_mape")
            assert column[system] == f"{printed:.4f} / {ours[system] + 0.005:.4f}"
        assert column["order, Kendall tau"] == f"{tau:.4f}"
    assert list(table.columns[-3:]) == ["Gini", "Spearman", "AUC"]  # calibration keeps the order of customers
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "mentions no calibration" in table.note


def test_skipped_bins_stand_beside_the_calibrated_percentile_mape(store):
    page = page_of("comparison", comparison_rows(), store)
    for title in ("All horizons together", "Test split", "Validation split"):
        table = table_of(page, title)
        first = list(table.columns).index("percentile MAPE")
        assert list(table.columns[first : first + 3]) == ["percentile MAPE", "bins skipped", "percentile MAPE, raw"]
        assert column_of(table, "bins skipped") == {"DNN-ZILN": "23.5", "MDAN": "0.0", "MEAN": "6.5"}
        assert not any(row[first + 1].is_best for row in table.rows)
        best = {row[first - 1].text for row in table.rows if row[first].is_best}
        assert best == {"MEAN"}
        assert "Bins skipped: those of the 100" in table.note
    assert "bins skipped" not in table_of(page, "Totals and errors, test split").columns
    assert "Bins skipped" not in table_of(page, "Totals and errors, test split").note


def test_rows_that_do_not_say_how_many_bins_were_skipped_show_a_dash():
    rows = comparison_rows()
    for row in rows:
        if row["system"] == "MDAN":
            del row["calibrated_percentile_mape_bins_skipped"]
    results = Results(tuple(rows))
    tables = (
        comparison.systems_table(results, SPEC.metrics, "test", "Test split"),
        comparison.summary_table(results, SPEC.metrics, "test"),
    )
    for table in tables:
        assert column_of(table, "bins skipped") == {"DNN-ZILN": "23.5", "MDAN": "-", "MEAN": "6.5"}


def test_the_validation_split_alone_says_that_it_flatters(store):
    tables = page_of("comparison", comparison_rows(), store).tables
    saying = {table.title for table in tables if "fitted the calibration curve and stopped the training" in table.note}
    assert saying == {"Validation split"}


def test_without_noise_of_the_seeds_the_interval_is_the_bootstraps():
    difference, low, high = dict.fromkeys(range(3), 0.5), {0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.9, 1: 1.0, 2: 1.1}
    assert interval_over_seeds(difference, low, high) == pytest.approx((0.2, 1.0))


def test_without_noise_of_the_customers_the_interval_is_the_t_interval_over_seeds():
    difference = {0: 0.5, 1: 0.8, 2: 0.2, 3: 0.4}
    expected = stats.ttest_1samp(list(difference.values()), 0.0).confidence_interval(0.95)
    assert interval_over_seeds(difference, difference, difference) == pytest.approx((expected.low, expected.high))


def test_both_noises_add_in_squares_on_either_side():
    values = np.array([0.5, 0.8, 0.2])
    half = stats.t.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)
    low, high = interval_over_seeds(*(dict(enumerate(values + shift)) for shift in (0.0, -0.3, 0.6)))
    assert low == pytest.approx(0.5 - math.sqrt(0.3**2 + half**2))
    assert high == pytest.approx(0.5 + math.sqrt(0.6**2 + half**2))


def test_one_seed_has_the_interval_of_its_customers_and_an_undefined_one_none():
    assert interval_over_seeds({-1: 0.5}, {-1: 0.1}, {-1: 0.7}) == pytest.approx((0.1, 0.7))
    assert np.isnan(interval_over_seeds({0: 0.5, 1: 0.6}, {0: 0.1, 1: math.nan}, {0: 0.7, 1: math.nan})).all()
    assert np.isnan(interval_over_seeds({0: math.nan}, {0: math.nan}, {0: math.nan})).all()


def test_the_interval_covers_where_the_average_of_the_seeds_ends_does_not():
    """Seeds that share their customers: the truth is 0, the noise of customers and of seeds as large as each other."""
    rng, trials, seeds = np.random.default_rng(0), 1500, 3
    customers, networks = rng.normal(size=(trials, 1)), rng.normal(0, np.sqrt(seeds), (trials, seeds))
    covered, covered_by_average = 0, 0
    for difference in customers + networks:
        low, high = interval_over_seeds(*(dict(enumerate(difference + shift)) for shift in (0.0, -1.96, 1.96)))
        covered += low <= 0 <= high
        covered_by_average += abs(difference.mean()) <= 1.96
    assert covered_by_average / trials < 0.88
    assert 0.94 < covered / trials < 0.995


def test_the_table_of_targeting_counts_its_intervals(store):
    seeds_of = {
        "steady": [(0.50, 0.30, 0.70), (0.51, 0.31, 0.71), (0.52, 0.32, 0.72)],
        "harmful": [(-0.50, -0.70, -0.30), (-0.51, -0.71, -0.31)],
        "wavering": [(0.1, 0.05, 0.15), (0.9, 0.85, 0.95), (0.4, 0.35, 0.45)],  # no seed's interval holds 0
        "one seed": [(0.2, -0.1, 0.5)],
        "undefined": [(math.nan, math.nan, math.nan)],
    }
    table = table_of(page_of("targeting", targeting_rows(seeds_of), store), "Lift")
    assert "Intervals that exclude 0: 2 of 4; if targeting made no difference, up to about 0.2 (5 %)" in table.note
    assert "t interval over seeds" in table.note
    intervals = column_of(table, "95 % interval")
    assert intervals["one seed"] == "-0.1000 to 0.5000"
    values = [0.1, 0.9, 0.4]
    half = math.hypot(0.05, stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3))
    mean = np.mean(values)
    assert intervals["wavering"] == f"{mean - half:.4f} to {mean + half:.4f}" and mean < half
    assert column_of(table, "difference")["steady"] == "0.5100"
