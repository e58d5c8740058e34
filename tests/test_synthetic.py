"""The synthetic table: its columns are as promised, shards the same however they are made, features tell enough."""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from mean_jax.data import synthetic
from mean_jax.data import synthetic_laws as laws
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import SPLITS, Store
from mean_jax.data.synthetic import ID_COLUMN, LABELS, ORACLES, SyntheticSpec, generate_shard, write_synthetic
from mean_jax.data.synthetic_features import GROUPS, MIN_FEATURES, design_features, make_columns
from mean_jax.errors import UserError
from mean_jax.evaluation import metrics
from mean_jax.fileio import read_json

SMALL = MIN_FEATURES
SHARD_ROWS = 20_000  # many enough for the statistics here


def matrix(table: pa.Table, names: tuple[str, ...] | list[str]) -> np.ndarray:
    """Returns the columns [rows, names] in float64."""
    return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float64)


def encoded(table: pa.Table, names: list[str]) -> np.ndarray:
    """Returns numbers by rank in [-1, 1] with a gap column, and categories one-hot, as a linear model wants them."""
    columns = []
    for name in names:
        column = table[name].combine_chunks()
        is_null = column.is_null().to_numpy(zero_copy_only=False)
        if pa.types.is_dictionary(column.type):
            texts = column.dictionary_decode().to_numpy(zero_copy_only=False)
            columns += [texts == text for text in column.dictionary.to_pylist()[1:]]
        else:
            ranks = stats.rankdata(column.fill_null(0.0).to_numpy()) / len(table) * 2 - 1
            columns.append(np.where(is_null, 0.0, ranks))
        columns.append(is_null)
    return np.stack(columns, axis=1).astype(np.float64)


@pytest.fixture(scope="module")
def shard() -> tuple[pa.Table, pa.Table]:
    """One shard at the smallest number of features."""
    return generate_shard(SyntheticSpec(SHARD_ROWS, num_features=SMALL, rows_per_shard=SHARD_ROWS), 0)


@pytest.fixture(scope="module")
def wide() -> tuple[pa.Table, pa.Table]:
    """The same customers at the paper's number of features."""
    return generate_shard(SyntheticSpec(SHARD_ROWS, rows_per_shard=SHARD_ROWS), 0)


@pytest.fixture(scope="module")
def customers() -> laws.Customers:
    return laws.draw_customers(np.random.default_rng(3), 200_000)


# Tables.


@pytest.mark.parametrize("num_features", [SMALL, 25, 720])
def test_the_columns(num_features):
    table, oracle = generate_shard(SyntheticSpec(50, num_features=num_features, rows_per_shard=2000), 0)
    names = table.column_names
    assert names[0] == ID_COLUMN
    assert tuple(names[-4:]) == LABELS == ("cltv_30", "cltv_90", "cltv_180", "cltv_365")
    assert oracle.column_names == [ID_COLUMN, "oracle_30", "oracle_90", "oracle_180", "oracle_365"]
    features = names[1:-4]
    assert len(set(features)) == num_features
    assert {name.split("_")[0] for name in features} == set(GROUPS)
    types = {str(table.schema.field(name).type) for name in features}
    assert types == {"float", "dictionary<values=string, indices=int8, ordered=0>"}
    assert {str(table.schema.field(name).type) for name in LABELS} == {"double"}
    table.validate(full=True)
    assert table[ID_COLUMN].to_pylist() == oracle[ID_COLUMN].to_pylist() == list(range(50))


def test_every_kind_is_what_it_says(wide):
    table, _ = wide
    for feature in design_features(720):
        column = table[feature.name].combine_chunks()
        share_missing = column.null_count / len(column)
        assert (0.01 < share_missing < 0.6) if feature.source else share_missing == 0
        if feature.categories:
            counts = np.bincount(column.indices.drop_null().to_numpy(), minlength=len(feature.categories))
            assert counts.min() >= 20, feature.name
            continue
        values = column.drop_null().to_numpy()
        assert np.isfinite(values).all()
        zero_share = (values == 0).mean()
        if feature.kind == "score":
            assert abs(stats.skew(values)) < 0.1
        elif feature.kind == "share":
            assert 0 <= values.min() < 0.2 < 0.8 < values.max() <= 1
        elif feature.kind == "amount":
            assert values.min() > 0
            assert stats.skew(values) > 3
        else:
            assert feature.kind in ("spend", "count")
            assert 0.55 < zero_share < 0.95, feature.name
            assert stats.skew(values) > 3
            assert (values == np.floor(values)).all() == (feature.kind == "count")


def test_labels_are_cumulative_amounts_around_the_oracle(shard):
    table, oracle = shard
    label_BxT, oracle_BxT = matrix(table, LABELS), matrix(oracle, ORACLES)
    for values_BxT in (label_BxT, oracle_BxT):
        assert np.isfinite(values_BxT).all()
        assert values_BxT.min() >= 0
        assert (np.diff(values_BxT, axis=1) >= 0).all()
    residual_BxT = label_BxT - oracle_BxT
    error_T = residual_BxT.std(axis=0) / np.sqrt(SHARD_ROWS)
    assert (np.abs(residual_BxT.mean(axis=0)) < 4 * error_T).all()
    assert (error_T < 0.1 * label_BxT.mean(axis=0)).all()


def test_shards_depend_on_seed_and_index_alone():
    spec = SyntheticSpec(2500, num_features=30, rows_per_shard=1000)
    long = dataclasses.replace(spec, num_rows=10**9)
    assert (spec.num_shards, long.num_shards) == (3, 10**6)
    for index, rows in enumerate((1000, 1000, 500)):
        for short_table, long_table in zip(generate_shard(spec, index), generate_shard(long, index), strict=True):
            assert short_table.num_rows == rows
            assert short_table.equals(long_table[:rows])
    first, second = (generate_shard(spec, index)[0] for index in (0, 1))
    other_seed = generate_shard(dataclasses.replace(spec, seed=1), 0)[0]
    for other in (second, other_seed):
        assert not np.isin(first["transactions_amount_009"], other["transactions_amount_009"]).any()
    with pytest.raises(ValueError, match="shard 3 is not among the 3"):
        generate_shard(spec, 3)


def test_the_number_of_features_leaves_the_customers_as_they_are(shard, wide):
    for name in (*LABELS, ID_COLUMN, "channel_name", "seasonal_month"):
        assert shard[0][name].equals(wide[0][name])
    assert shard[1].equals(wide[1])
    assert set(shard[0].column_names) < set(wide[0].column_names)


# What features tell.


def out_of_sample_correlation(x_BxF: np.ndarray, y_B: np.ndarray) -> float:
    """Returns the correlation of a ridge regression of one half with the other half."""
    half = len(y_B) // 2
    x_BxF = (x_BxF - x_BxF[:half].mean(axis=0)) / np.maximum(x_BxF[:half].std(axis=0), 1e-9)
    gram = x_BxF[:half].T @ x_BxF[:half] + 10 * np.eye(x_BxF.shape[1])
    weights = np.linalg.solve(gram, x_BxF[:half].T @ (y_B[:half] - y_B[:half].mean()))
    return float(np.corrcoef(x_BxF[half:] @ weights, y_B[half:])[0, 1])


def test_relevant_features_tell_of_the_oracle_and_the_others_do_not(wide):
    table, oracle = wide
    log_oracle_B = np.log(oracle["oracle_365"].to_numpy())
    features = design_features(720)
    irrelevant = [feature.name for feature in features if not feature.is_relevant]
    relevant = [feature.name for feature in features if feature.is_relevant]
    assert len(irrelevant) > 500
    assert out_of_sample_correlation(encoded(table, relevant), log_oracle_B) > 0.4
    # Of 10,000 rows a correlation by chance has standard deviation 0.01.
    assert abs(out_of_sample_correlation(encoded(table, irrelevant[:200]), log_oracle_B)) < 0.04


def test_every_latent_variable_shows_in_the_smallest_table(customers):
    """Of the kinds whose ranks are those of the sum, a trait correlates with the sum by its weight."""
    features = design_features(SMALL)
    seen = {name for feature in features for name in feature.weights}
    assert seen == {*laws.TRAITS, *GROUPS, "rate", "level"}
    assert len(seen) == len(laws.TRAITS) + len(GROUPS) + 2, "no name stands for two things"
    columns = make_columns(np.random.default_rng(8), features, customers, SHARD_ROWS)
    for feature, column in zip(features, columns, strict=True):
        if feature.kind in ("score", "share", "amount") and not {"rate", "level"} & set(feature.weights):
            is_known_B = column.is_valid().to_numpy(zero_copy_only=False)
            normal_B = stats.norm.ppf((stats.rankdata(column.drop_null()) - 0.5) / is_known_B.sum())
            for name, trait_B in zip(laws.TRAITS, customers.traits[:, :SHARD_ROWS], strict=True):
                found = np.corrcoef(normal_B, trait_B[is_known_B])[0, 1]
                assert found == pytest.approx(feature.weights.get(name, 0.0), abs=0.04), (feature.name, name)


def test_gaps_tell_of_traits_in_relevant_features_alone(customers):
    features = tuple(feature for feature in design_features(720) if feature.source)[::7]
    columns = make_columns(np.random.default_rng(0), features, customers, len(customers.type))
    patterns = {}  # one per source
    for feature, column in zip(features, columns, strict=True):
        patterns[feature.is_relevant, feature.source] = column.is_null().to_numpy(zero_copy_only=False)
    assert {source for _, source in patterns} == {"bureau", "survey", "device", "import"}
    correlations: dict[bool, list[float]] = {False: [], True: []}
    for (is_relevant, _), is_null_B in patterns.items():
        correlations[is_relevant].append(
            max(abs(np.corrcoef(is_null_B, trait_B)[0, 1]) for trait_B in customers.traits)
        )
    assert min(correlations[True]) > 0.1
    assert max(correlations[False]) < 0.012, "five standard deviations of chance"


def test_no_feature_ranks_like_the_oracle(shard):
    table, oracle = shard
    features = [feature for feature in design_features(SMALL) if not feature.categories]
    for label, expected in ((LABELS[0], ORACLES[0]), (LABELS[-1], ORACLES[-1])):
        label_B, oracle_B = table[label].to_numpy(), oracle[expected].to_numpy()
        best_gini = best_spearman = 0.0
        for feature in features:
            values_B = table[feature.name].combine_chunks().fill_null(0.0).to_numpy()
            best_gini = max(best_gini, abs(metrics.gini(label_B, values_B)))
            best_spearman = max(best_spearman, abs(metrics.spearman(label_B, values_B)))
        assert 0.1 < best_gini < metrics.gini(label_B, oracle_B) - 0.2
        assert 0.05 < best_spearman < metrics.spearman(label_B, oracle_B) - 0.1


# Files and the command.


def test_files_do_not_depend_on_the_workers(tmp_path):
    spec = SyntheticSpec(2600, seed=5, num_features=SMALL, rows_per_shard=500)
    for workers in (1, 3):
        write_synthetic(spec, tmp_path / str(workers), workers)
    one, three = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "1", tmp_path / "3")
    )
    assert one == three
    parts = [f"part-{index:05d}.parquet" for index in range(6)]
    assert sorted(map(str, one)) == [
        "card.json",
        *(f"{kind}/{part}" for kind in ("customers", "oracle") for part in parts),
    ]
    for index in range(6):
        for folder, table in zip(("customers", "oracle"), generate_shard(spec, index), strict=True):
            assert pq.read_table(tmp_path / "1" / folder / parts[index]).equals(table)

    card = read_json(tmp_path / "1" / "card.json", synthetic.KIND, synthetic.VERSION)
    labels = matrix(pq.read_table(tmp_path / "1" / "customers"), LABELS)
    assert card["spec"] == {"num_rows": 2600, "seed": 5, "num_features": SMALL, "rows_per_shard": 500}
    assert card["zero_shares"] == pytest.approx(dict(zip(LABELS, (labels == 0).mean(axis=0), strict=True)))
    assert card["mean_labels"] == pytest.approx(dict(zip(LABELS, labels.mean(axis=0), strict=True)))
    assert "transactions_amount_009" in card["relevant_features"]
    assert "transactions_amount_014" not in card["relevant_features"]


@pytest.mark.parametrize("num_features", [SMALL, 720])
def test_prepare_takes_it_as_it_is(tmp_path, num_features):
    spec = SyntheticSpec(3000, num_features=num_features, rows_per_shard=2000)
    write_synthetic(spec, tmp_path / "data")
    prepare(str(tmp_path / "data" / "customers"), tmp_path / "store", PrepareOptions())
    store = Store(tmp_path / "store")
    assert store.schema.labels == LABELS
    assert len(store.schema.numeric) + len(store.schema.categorical) == num_features
    assert len(store.schema.categorical) == sum(bool(feature.categories) for feature in design_features(num_features))
    assert sum(len(store.split(split)) for split in SPLITS) == 3000


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"num_rows": 0}, "--rows=0: expected 1 or more"),
        ({"num_rows": -3}, "--rows=-3: expected 1 or more"),
        ({"seed": -1}, "--seed=-1: expected 0 or more"),
        ({"num_features": SMALL - 1}, f"--features=23: expected {SMALL} or more"),
        ({"rows_per_shard": 0}, "--rows_per_shard=0: expected 1 or more"),
    ],
)
def test_mistakes(mistake, message):
    with pytest.raises(UserError, match=message):
        SyntheticSpec(**{"num_rows": 10, **mistake})


def test_the_command(tmp_path: Path, call: Callable[..., tuple[int, str]]):
    arguments = ["--rows=300", "--seed=2", "--features=24", f"--output={tmp_path / 'data'}"]
    code, report = call(synthetic.main, *arguments)
    assert code == 0
    assert "300 customers with 24 features written" in report
    expected, _ = generate_shard(SyntheticSpec(300, seed=2, num_features=24), 0)
    assert pq.read_table(tmp_path / "data" / "customers").equals(expected)
    assert json.loads((tmp_path / "data" / "card.json").read_text())["spec"]["num_rows"] == 300

    for mistake, words in (
        (arguments, "--output: folder"),
        (["--rows=0", f"--output={tmp_path / 'other'}"], "--rows=0: expected 1 or more"),
        (["--rows=9", "--features=5", f"--output={tmp_path / 'other'}"], "--features=5: expected 24 or more"),
        (["--rows=9"], "--output"),
    ):
        code, error = call(synthetic.main, *mistake)
        assert (code, error.count("\n")) == (2, 1)
        assert words in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"], "a mistake leaves nothing behind"
