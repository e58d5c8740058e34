"""Evaluation of a run: metrics.json as the design fixes it, the same for store and table, and mistakes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import mean_jax
from mean_jax.cli import evaluate as evaluate_cli
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.errors import UserError
from mean_jax.evaluation.evaluate import KIND, VERSION, evaluate
from mean_jax.evaluation.metrics import point_metrics
from mean_jax.evaluation.outcomes import collect_outcomes
from mean_jax.fileio import file_sha256, read_json
from mean_jax.run import load_run
from mean_jax.training.predictions import split_words
from tests.conftest import LABELS, make_table
from tests.test_prepare import garbled

METRICS = {
    "percentile_mape",
    "percentile_mape_bins_skipped",
    "decile_mape",
    "gini",
    "gini_raw",
    "spearman",
    "auc",
    "mutual_gini",
    "mae",
    "rmse",
    "bias",
    "rows",
    "positive_rate",
}
COUNTS = {"rows", "percentile_mape_bins_skipped"}


@pytest.fixture(scope="module")
def output(run_path, store_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluations") / "evaluation"
    evaluate(str(run_path), str(store_path), "test", path, num_resamples=20)
    return path


@pytest.fixture(scope="module")
def metrics(output):
    return json.loads((output / "metrics.json").read_text())


def test_metrics_json_has_exactly_the_shape_of_the_design(metrics, store):
    assert set(metrics) == {"model", "rows", "split", "horizons"}
    assert (metrics["model"], metrics["split"]) == ("mean", "test")
    assert metrics["rows"] == len(store.split("test"))
    assert set(metrics["horizons"]) == {"30", "365"}
    for spaces in metrics["horizons"].values():
        assert set(spaces) == {"currency", "currency_raw", "scaled"}
        for values in spaces.values():
            assert set(values) == METRICS
            for name, value in values.items():
                if name in COUNTS:
                    assert isinstance(value, int)
                else:
                    assert set(value) == {"value", "low", "high"}
                    assert value["low"] <= value["value"] <= value["high"], name


def test_metrics_are_those_of_the_scores_that_the_api_gives(metrics, run_path, table, store):
    ids = set(store.split("test").ids().to_pylist())
    test_rows = table.filter([value in ids for value in table["customer_id"].to_pylist()])
    scores = mean_jax.load(run_path).predict(test_rows)
    for horizon, label in zip(("30", "365"), LABELS, strict=True):
        y = test_rows[label].to_numpy(zero_copy_only=False)
        is_known = ~np.isnan(y)
        for space, column in (("currency", label), ("currency_raw", f"{label}_raw")):
            expected = point_metrics(np.float32(y[is_known]), scores[column].to_numpy()[is_known])
            found = metrics["horizons"][horizon][space]
            for name in METRICS - COUNTS - {"percentile_mape", "decile_mape"}:  # binning breaks ties by row order
                assert found[name]["value"] == pytest.approx(expected[name], rel=1e-5), (horizon, space, name)


def test_rows_in_many_blocks_are_those_in_one(run_path, store, monkeypatch):
    run = load_run(run_path)

    def collect():
        return collect_outcomes(run, split_words(store.split("test")), "the store")

    expected, expected_means = collect()
    monkeypatch.setattr("mean_jax.training.predictions.PREDICT_BATCH_SIZE", 16)
    found, means = collect()
    assert len(found[0].label_V) > 5 * 16
    for horizon, outcome in expected.items():
        np.testing.assert_array_equal(found[horizon].label_V, outcome.label_V)
        # Between the knots of the calibration a prediction's rounding is multiplied.
        np.testing.assert_allclose(found[horizon].calibrated_SxV, outcome.calibrated_SxV, rtol=1e-3)
        np.testing.assert_allclose(means.attention(horizon), expected_means.attention(horizon), rtol=1e-4)
        np.testing.assert_allclose(means.gate(horizon), expected_means.gate(horizon), rtol=1e-4)


def test_calibration_changes_totals_and_not_the_ranking(metrics):
    for spaces in metrics["horizons"].values():
        for name in ("gini", "gini_raw", "spearman", "auc"):
            assert spaces["currency"][name]["value"] == spaces["currency_raw"][name]["value"]
        assert spaces["currency"]["bias"]["value"] != spaces["currency_raw"]["bias"]["value"]


def test_scaled_space_is_the_truncated_label(metrics, store, program):
    label_V = store.schema.layout.labels_of(store.split("test").gather(np.arange(len(store.split("test")))))[:, 0]
    scaled_V = np.minimum(label_V / program.label_constants.scale[0], 20.0)
    space = metrics["horizons"]["30"]["scaled"]
    raw = metrics["horizons"]["30"]["currency_raw"]
    ratio = (scaled_V.sum() * program.label_constants.scale[0]) / label_V.sum()
    assert space["bias"]["value"] == pytest.approx(raw["bias"]["value"] / ratio, rel=1e-4)
    assert space["positive_rate"] == raw["positive_rate"]


@pytest.mark.usefixtures("undrawn")
def test_a_labelled_table_gives_the_numbers_of_the_store(metrics, run_path, table_path, tmp_path):
    again = evaluate(str(run_path), str(table_path), "test", tmp_path / "evaluation", num_resamples=2)
    assert again["rows"] == metrics["rows"]
    for horizon in ("30", "365"):
        for name in ("gini", "bias", "mae", "auc"):
            found = again["horizons"][horizon]["currency"][name]["value"]
            assert found == pytest.approx(metrics["horizons"][horizon]["currency"][name]["value"], rel=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_all_rows_of_a_table(run_path, tmp_path):
    path = tmp_path / "new.parquet"
    pq.write_table(make_table(80, seed=5), path)
    assert evaluate(str(run_path), str(path), "all", tmp_path / "evaluation", num_resamples=2)["rows"] == 80


def without_values(table, *names):
    for name in names:
        table = table.set_column(table.column_names.index(name), name, [[None] * len(table)])
    return table


@pytest.mark.parametrize(("missing", "horizon"), [("cltv_365", "30"), ("cltv_30", "365")])
def test_a_horizon_without_a_label_is_left_out(missing, horizon, run_path, tmp_path, call):
    table = make_table(80, seed=5)
    pq.write_table(table, tmp_path / "new.parquet")
    expected = evaluate(str(run_path), str(tmp_path / "new.parquet"), "all", tmp_path / "both", num_resamples=2)
    pq.write_table(without_values(table, missing), tmp_path / "newer.parquet")
    output = tmp_path / "evaluation"
    flags = [f"--workdir={run_path}", f"--data={tmp_path / 'newer.parquet'}", "--split=all", "--num_resamples=2"]
    code, err = call(evaluate_cli.main, *flags, f"--output={output}")
    assert code == 0
    warning = f"newer.parquet has no known label {missing} in this split; left out of the evaluation"
    assert err.count(warning) == err.count("no known label") == 1
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["horizons"] == {horizon: expected["horizons"][horizon]}
    assert metrics["rows"] == metrics["horizons"][horizon]["currency"]["rows"]
    for name, shown in (("seeds", horizon), ("bins", f"{horizon} days")):
        found, whole = (pq.read_table(folder / f"{name}.parquet") for folder in (output, tmp_path / "both"))
        assert found.to_pylist() == [row for row in whole.to_pylist() if row["horizon"] == shown]
    html = (output / "report.html").read_text()
    assert f"{horizon} days" in html and f"{missing.removeprefix('cltv_')} days" not in html


def test_seeds_table_has_every_seed_on_its_own(output):
    seeds = pq.read_table(output / "seeds.parquet").to_pylist()
    keys = {(row["horizon"], row["seed"], row["space"]) for row in seeds}
    assert keys == {(h, s, p) for h in ("30", "365") for s in (0, 1) for p in ("currency", "currency_raw", "scaled")}
    ginis = [row["value"] for row in seeds if row["metric"] == "gini" and row["space"] == "currency"]
    assert len(set(ginis)) == 4


def test_report_and_bins_and_their_checksums(output):
    html = (output / "report.html").read_text()
    assert "30 days" in html and "365 days" in html and "<svg" in html
    bins = pq.read_table(output / "bins.parquet").to_pylist()
    assert {row["binning"] for row in bins} == {"decile", "percentile"}
    manifest = read_json(output / "manifest.json", KIND, VERSION)
    assert set(manifest["files"]) == {"metrics.json", "report.html", "bins.parquet", "seeds.parquet"}
    for name, digest in manifest["files"].items():
        assert file_sha256(output / name) == digest


@pytest.mark.parametrize(
    ("flag", "value", "parts"),
    [
        ("workdir", "nothing", ["--workdir", "mean-jax-train"]),
        ("data", "nothing", ["--data", "nothing"]),
        ("split", "all", ["--split=all", "store"]),
        ("split", "tset", ["split", "test"]),
    ],
)
def test_mistakes_get_one_line(flag, value, parts, run_path, store_path, tmp_path, call):
    flags = {"workdir": run_path, "data": store_path, "split": "test", "output": tmp_path / "evaluation"} | {
        flag: value
    }
    code, err = call(evaluate_cli.main, *(f"--{name}={content}" for name, content in flags.items()))
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in err
    assert all(part in errors[0] for part in parts), errors[0]
    assert not (tmp_path / "evaluation").exists()


def test_wrong_tables_and_stores(run_path, store_path, tmp_path, call):
    def error(data, split="test", output="evaluation"):
        code, err = call(
            evaluate_cli.main,
            f"--workdir={run_path}",
            f"--data={data}",
            f"--split={split}",
            f"--output={tmp_path / output}",
        )
        assert code == 2
        return next(line for line in err.splitlines() if line.startswith("error:"))

    table = make_table(60, seed=6)
    pq.write_table(table.drop_columns(["cltv_365"]), tmp_path / "no_label.parquet")
    assert "--data: column cltv_365, which the run needs, is not in" in error(tmp_path / "no_label.parquet")
    pq.write_table(table.drop_columns(["age"]), tmp_path / "no_feature.parquet")
    assert "age" in error(tmp_path / "no_feature.parquet")
    pq.write_table(garbled(table, "city", 17, "plain"), tmp_path / "garbled.parquet")
    assert "garbled.parquet row 18: column city is b'caf\\xe9', not UTF-8" in error(tmp_path / "garbled.parquet")
    pq.write_table(without_values(table, *LABELS), tmp_path / "censored.parquet")
    line = error(tmp_path / "censored.parquet", split="all")
    assert "has no known label cltv_30 or cltv_365 in this split; evaluate customers whose horizons are over" in line
    pq.write_table(make_table(300, seed=9), tmp_path / "other.parquet")
    prepare(str(tmp_path / "other.parquet"), tmp_path / "other", PrepareOptions(label_columns=LABELS))
    assert "another transform" in error(tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "not empty" in error(store_path, output="full")
    assert not (tmp_path / "evaluation").exists()


def test_a_table_without_rows_of_the_split_says_so(run_path, table, tmp_path):
    pq.write_table(table[:2], tmp_path / "two.parquet")
    with pytest.raises(UserError, match="has no rows in this split"):
        evaluate(str(run_path), str(tmp_path / "two.parquet"), "validation", tmp_path / "out")
