"""mean_jax.load(run).predict(table): the columns and numbers of the score files, for any kind of table."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mean_jax
from mean_jax.errors import UserError
from mean_jax.scoring.score import score
from tests.conftest import LABELS


@pytest.fixture(scope="module")
def predictor(run_path):
    return mean_jax.load(run_path)


@pytest.fixture(scope="module")
def expected(predictor, table):
    return predictor.predict(table)


def test_the_score_files_are_the_same(expected, run_path, table_path, tmp_path):
    score(str(run_path), str(table_path), tmp_path / "scores.parquet")
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.schema.equals(expected.schema)
    assert scores.equals(expected)


def test_calibrated_totals_are_those_of_validation_and_training(expected, table, store_path):
    ids = pa.concat_tables(
        [pq.read_table(path) for path in store_path.glob("*-ids.parquet") if "test" not in path.name]
    )
    fitted = np.isin(table["customer_id"].to_numpy(), ids["id"].to_numpy())
    assert 600 < fitted.sum() < 1000
    for label in LABELS:
        known = fitted & table[label].is_valid().to_numpy()
        assert expected[label].to_numpy()[known].sum() == pytest.approx(table[label].to_numpy()[known].sum(), rel=1e-4)


def test_a_path_may_be_text(run_path, table, expected):
    assert mean_jax.load(str(run_path)).predict(table).equals(expected)


def test_a_table_of_several_chunks(predictor, table, expected):
    assert predictor.predict(pa.concat_tables([table[:10], table[10:500], table[500:]])).equals(expected)


def test_a_table_beyond_one_batch(predictor, table, expected, monkeypatch):
    monkeypatch.setattr("mean_jax.scoring.predictor.ROWS_PER_BATCH", 300)
    scores = predictor.predict(table)
    assert scores.equals(expected)
    assert scores.column("customer_id").num_chunks == 1
    spend = ["1"] * 1000
    spend[700] = "x"
    with pytest.raises(UserError, match=r"^row 701: column spend is 'x'; expected a number$"):
        predictor.predict(table.set_column(1, "spend", pa.array(spend)))


def test_a_record_batch(predictor, table, expected):
    assert predictor.predict(table.combine_chunks().to_batches()[0]).equals(expected)


def test_pandas(predictor, table, expected):
    frame = table.to_pandas()
    assert isinstance(frame["channel"].dtype, pd.CategoricalDtype)
    scores = predictor.predict(frame)
    assert scores.column_names == expected.column_names
    assert scores["customer_id"].to_pylist() == expected["customer_id"].to_pylist()
    assert scores.drop_columns("customer_id").equals(expected.drop_columns("customer_id"))


def test_pandas_with_integer_categories_and_another_index(predictor, table, expected):
    frame = table.to_pandas().astype({"orders": "category"}).set_index("spend", drop=False).rename_axis(None)
    scores = predictor.predict(frame)
    assert scores.drop_columns("customer_id").equals(expected.drop_columns("customer_id"))


def test_polars(predictor, table, expected):
    frame = pl.from_arrow(table)
    scores = predictor.predict(frame)
    assert scores["customer_id"].to_pylist() == expected["customer_id"].to_pylist()
    assert scores.drop_columns("customer_id").equals(expected.drop_columns("customer_id"))


def test_the_caller_names_the_id_column(predictor):
    assert predictor.id_column == "customer_id"


def with_ids(table: pa.Table, ids) -> pa.Table:
    return table.set_column(0, "customer_id", ids)


def test_tables_that_are_refused(predictor, table):
    ids = table["customer_id"].to_pylist()
    hidden_null = pa.DictionaryArray.from_arrays(pa.array(range(1000)), pa.array([*ids[:-1], None]))
    cases = [
        (table[:0], r"^the table has no rows$"),
        (table.drop_columns(["age"]), r"^column age, which the model needs, is not in the table; it has customer_id"),
        (table.append_column("age", table["age"]), r"^the table: column age stands there 2 times; rename one$"),
        (
            with_ids(table, pa.array([*ids[:-1], None])),
            r"^row 1000: column customer_id is null; every row needs an id$",
        ),
        (with_ids(table, hidden_null), r"^row 1000: column customer_id is null; every row needs an id$"),
        (
            with_ids(table, pa.array([*ids[:-1], ids[3]])),
            r"^customer_id 'c00003' stands in 2 rows; one row per customer is",
        ),
        (table.set_column(1, "spend", pa.array(["x"] * 1000)), r"^row 1: column spend is 'x'; expected a number$"),
        (pd.DataFrame({"city": ["a", 1]}), r"^the table cannot be read: .*column city.*; give a pyarrow, pandas or"),
        (None, r"^the table cannot be read: .*; give a pyarrow, pandas or polars table$"),
    ]
    for refused, message in cases:
        with pytest.raises(UserError, match=message):
            predictor.predict(refused)


def test_no_run(tmp_path):
    with pytest.raises(UserError, match=r"^run: run folder .* does not exist"):
        mean_jax.load(tmp_path / "no")
