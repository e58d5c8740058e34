"""mean-jax-prepare: what stands in the store is what stood in the table, and only training rows are fitted on."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.prepare import main
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import SPLITS, Store
from mean_jax.data.transform import MISSING_CODE, UNKNOWN_CODE
from tests.conftest import LABELS


def prepared(table: pa.Table, folder, **options) -> Store:
    """Returns the store of a table that is written to `folder` first."""
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "table.parquet")
    prepare(str(folder / "table.parquet"), folder / "store", PrepareOptions(label_columns=LABELS, **options))
    return Store(folder / "store")


def replaced(table: pa.Table, **columns) -> pa.Table:
    """Returns the table with the given columns in place of its own, or after them."""
    return pa.table({name: table[name] for name in table.column_names} | columns)


def garbled(table: pa.Table, column: str, row: int, kind: str) -> pa.Table:
    """Returns the table with a text that is not UTF-8 in a row of a column, which Arrow writes without a look."""
    texts = [str(value).encode() for value in table[column].to_pylist()]
    texts[row] = b"caf\xe9"
    if kind == "dictionary":
        values, indices = np.unique(np.array(texts, object), return_inverse=True)
        listed = pa.array(values.tolist(), pa.binary()).view(pa.string())
        return replaced(table, **{column: pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), listed)})
    return replaced(table, **{column: pa.array(texts, pa.binary()).view(pa.string())})


def rows_by_id(store: Store) -> dict[str, tuple[str, np.ndarray]]:
    """Returns split and words of every row."""
    found = {}
    for split in SPLITS:
        rows = store.split(split)
        for name, words in zip(rows.ids().to_pylist(), rows.gather(np.arange(len(rows))), strict=True):
            assert name not in found
            found[name] = (split, words)
    return found


def files_of(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}


def expected_words(store: Store, table: pa.Table) -> np.ndarray:
    """Returns the rows as the module docstring of data/store.py says, column by column."""
    columns = [table[name].cast(pa.float64()).to_numpy().astype(np.float32) for name in store.schema.numeric]
    for name, values in zip(store.schema.categorical, store.transform.vocabularies, strict=True):
        codes = [MISSING_CODE if text is None else values.index(text) + 2 for text in table[name].to_pylist()]
        columns.append(np.array(codes, np.int32).view(np.float32))
    columns += [table[name].to_numpy().astype(np.float32) for name in LABELS]
    return np.stack(columns, axis=1)


def test_rows_are_those_of_the_table(store, table):
    assert store.schema.numeric == ("spend", "orders", "age", "is_member")
    assert store.schema.categorical == ("channel", "city")
    found = rows_by_id(store)
    assert sorted(found) == table["customer_id"].to_pylist()
    words = np.stack([found[name][1] for name in table["customer_id"].to_pylist()])
    np.testing.assert_array_equal(words.view(np.int32), expected_words(store, table).view(np.int32))


def test_a_null_label_is_nan_and_a_row_without_any_label_is_left_out(table, tmp_path):
    unlabelled = pa.array(np.arange(len(table)) % 10 == 0)
    nothing = pa.scalar(None, pa.float64())
    table = replaced(table, **{label: pc.if_else(unlabelled, nothing, table[label]) for label in LABELS})
    store = prepared(table, tmp_path)
    assert store.manifest["rows_without_label"] == 100
    found = rows_by_id(store)
    assert sorted(found) == table.filter(pc.invert(unlabelled))["customer_id"].to_pylist()
    is_null = [found[name][1][-1] != found[name][1][-1] for name in sorted(found)]
    assert is_null == table.filter(pc.invert(unlabelled))["cltv_365"].is_null().to_pylist()


def test_splits_come_from_the_hash_of_the_id(tmp_path):
    rng = np.random.default_rng(0)
    spend = rng.random(20_000)
    table = pa.table({"customer_id": np.arange(20_000), "spend": spend, "cltv_30": spend, "cltv_365": spend})
    store = prepared(table, tmp_path / "a")
    shares = [len(store.split(split)) / 20_000 for split in SPLITS]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.01)
    splits = {name: split for name, (split, _) in rows_by_id(store).items()}
    half = {name: split for name, (split, _) in rows_by_id(prepared(table[:5000], tmp_path / "b")).items()}
    assert half == {name: split for name, split in splits.items() if name < 5000}
    other = {name: split for name, (split, _) in rows_by_id(prepared(table, tmp_path / "c", split_seed=1)).items()}
    assert np.mean([splits[name] == other[name] for name in splits]) == pytest.approx(
        0.7**2 + 0.1**2 + 0.2**2, abs=0.02
    )


def test_a_split_column(table, tmp_path):
    chosen = np.array(SPLITS)[np.arange(len(table)) % 3]
    store = prepared(replaced(table, part=chosen), tmp_path, split_column="part")
    assert "part" not in store.schema.categorical
    found = rows_by_id(store)
    assert [found[name][0] for name in table["customer_id"].to_pylist()] == chosen.tolist()


def test_the_order_and_the_files_of_the_input_do_not_matter(store, table, tmp_path):
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(len(table))))
    folder = tmp_path / "parts"
    folder.mkdir()
    for part, start in enumerate(range(0, 1000, 300)):
        pq.write_table(shuffled[start : start + 300], folder / f"{part}.parquet")
    prepare(str(folder), tmp_path / "store", PrepareOptions(label_columns=LABELS))
    other = files_of(Store(tmp_path / "store"))
    for name, content in files_of(store).items():
        if name.endswith(".bin"):
            assert other[name] == content, name


def test_the_same_input_gives_the_same_files(store, table_path, tmp_path):
    prepare(str(table_path), tmp_path / "store", PrepareOptions(label_columns=LABELS))
    assert files_of(Store(tmp_path / "store")) == files_of(store)


@pytest.mark.parametrize("shard_bytes", [800, 40])
def test_shards_follow_each_other_like_one(store, table, tmp_path, shard_bytes):
    """With 40 bytes a row of 32 has nearly a shard of its own, and some shards stay empty."""
    sharded = prepared(table, tmp_path, shard_bytes=shard_bytes)
    for split in SPLITS:
        rows, expected = sharded.split(split), store.split(split)
        assert len(list(sharded.folder.glob(f"{split}-*.bin"))) > 3
        everything = np.arange(len(expected))
        assert len(rows) == len(expected)
        assert rows.ids().to_pylist() == expected.ids().to_pylist()
        assert rows.gather(everything).tobytes() == expected.gather(everything).tobytes()
        some = np.random.default_rng(0).integers(0, len(expected), 50)
        assert rows.gather(some).tobytes() == expected.gather(some).tobytes()


def test_an_odd_number_of_columns(table, tmp_path):
    store = prepared(table, tmp_path, excluded=("age",))
    assert store.schema.layout.num_words == 7
    found = rows_by_id(store)
    words = np.stack([found[name][1] for name in table["customer_id"].to_pylist()])
    np.testing.assert_array_equal(words.view(np.int32), expected_words(store, table).view(np.int32))


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(np.arange(1000, dtype=np.int32)),
        pa.array(np.arange(1000, dtype=np.uint64) + 2**63),
        pa.array([f"é{index}" for index in range(1000)], pa.large_string()),
        pa.array([f"é{index}" for index in range(1000)], pa.string_view()),
        pa.array([f"é{index}" for index in range(1000)]).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_keep_their_type(table, tmp_path, ids):
    city = table["city"].cast(ids.type) if pa.types.is_string_view(ids.type) else table["city"]
    store = prepared(replaced(table, customer_id=ids, city=city), tmp_path)
    plain = {"dictionary<values=string, indices=int32, ordered=0>": "string", "string_view": "large_string"}
    assert str(store.split("test").ids().type) == plain.get(str(ids.type), str(ids.type))
    assert sorted(rows_by_id(store)) == sorted(ids.to_pylist())


def test_numeric_columns_of_every_kind(table, tmp_path):
    values = np.random.default_rng(0).integers(1, 99, 1000)
    kinds = [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(21, 2)]
    columns = {str(kind): pa.array(values).cast(kind) for kind in kinds}
    store = prepared(replaced(table, **columns), tmp_path)
    assert store.schema.numeric == ("spend", "orders", "age", "is_member", *columns)
    found = rows_by_id(store)
    for position in range(4, 9):
        np.testing.assert_array_equal([found[name][1][position] for name in sorted(found)], values)


def test_a_category_outside_training_is_unknown(table, tmp_path):
    chosen = np.array(SPLITS)[np.arange(len(table)) % 3]
    city = np.where(chosen == "test", "new", np.where(np.arange(len(table)) % 6 == 0, "known", "old")).astype(object)
    city[2] = None
    store = prepared(replaced(table, part=chosen, city=pa.array(city)), tmp_path, split_column="part")
    found = rows_by_id(store)
    codes = {name: words[5:6].view(np.int32)[0] for name, (_, words) in found.items()}
    assert codes["c00002"] == MISSING_CODE
    assert codes["c00005"] == UNKNOWN_CODE
    assert store.transform.vocabularies[1] == ("known", "old")


def test_rare_categories_are_unknown(table, tmp_path):
    city = pa.array(["rare" if index < 3 else "common" for index in range(1000)])
    assert prepared(replaced(table, city=city), tmp_path, min_category_count=4).transform.vocabularies[1] == ("common",)


def test_nothing_is_fitted_on_validation_and_test_rows(table, store, tmp_path):
    """Any features, labels and categories of those rows give the very same constants."""
    found = rows_by_id(store)
    is_train = np.array([found[name][0] == "train" for name in table["customer_id"].to_pylist()])
    rng = np.random.default_rng(5)
    changed = {}
    for field in table.schema:
        if field.name == "customer_id":
            continue
        column, noise = table[field.name], pa.array(rng.lognormal(10, 3, len(table)), mask=rng.random(len(table)) < 0.5)
        if field.name in ("channel", "city"):
            column, noise = column.cast(pa.string()), pa.array(rng.choice(["new", "newer", "web"], len(table)))
        elif field.name == "cltv_30":
            noise = pc.fill_null(noise, 0.0)  # a row without any label would be left out
        changed[field.name] = pc.if_else(pa.array(is_train), column, noise.cast(column.type, safe=False))
    other = prepared(replaced(table, **changed), tmp_path)
    assert other.manifest["transform"] == store.manifest["transform"]
    for split in SPLITS:
        rows, before = other.split(split), store.split(split)
        everything = np.arange(len(before))
        is_same = rows.gather(everything).tobytes() == before.gather(everything).tobytes()
        assert is_same == (split == "train")


def test_a_changed_training_row_does_change_the_constants(table, store, tmp_path):
    found = rows_by_id(store)
    row = next(index for index, name in enumerate(table["customer_id"].to_pylist()) if found[name][0] == "train")
    spend = table["spend"].to_numpy().copy()
    spend[row] *= 2
    other = prepared(replaced(table, spend=spend), tmp_path)
    assert other.manifest["transform"] != store.manifest["transform"]


def test_csv_gives_the_same_rows_as_parquet(table, store, tmp_path):
    pa_csv.write_csv(replaced(table, channel=table["channel"].cast(pa.string())), tmp_path / "table.csv")
    prepare(str(tmp_path / "table.csv"), tmp_path / "store", PrepareOptions(label_columns=LABELS))
    found, expected = rows_by_id(Store(tmp_path / "store")), rows_by_id(store)
    assert found.keys() == expected.keys()
    for name, (split, words) in expected.items():
        assert found[name][0] == split
        np.testing.assert_array_equal(found[name][1], words)


def test_a_csv_column_whose_first_megabytes_are_whole_numbers(tmp_path):
    lines = [f"{index},{index % 7},{index % 3}" for index in range(200_000)] + ["200000,2.5,1"]
    (tmp_path / "table.csv").write_text("customer_id,spend,cltv_30\n" + "\n".join(lines) + "\n")
    prepare(str(tmp_path / "table.csv"), tmp_path / "store", PrepareOptions(label_columns=("cltv_30",)))
    assert rows_by_id(Store(tmp_path / "store"))[200_000][1].tolist() == [2.5, 1.0]


def test_the_command_passes_every_flag(table_path, tmp_path, call):
    code, _ = call(
        main,
        f"--input={table_path}",
        f"--output={tmp_path / 'store'}",
        "--label_columns=cltv_365",
        "--exclude=cltv_30,age",
        "--split=0.5,0.25,0.25",
        "--split_seed=3",
        "--min_category_count=150",
    )
    assert code == 0
    schema = json.loads((tmp_path / "store" / "schema.json").read_text())
    assert (schema["labels"], schema["split"], schema["split_seed"]) == (["cltv_365"], [0.5, 0.25, 0.25], 3)
    assert schema["numeric"] == ["spend", "orders", "is_member"]
    assert Store(tmp_path / "store").transform.vocabularies == (("web",), ("a", "b"))


def test_labels_are_by_default_all_that_features_writes(table, tmp_path):
    more = replaced(table, cltv_90=table["cltv_30"], cltv_7=table["cltv_30"])
    pq.write_table(more, tmp_path / "table.parquet")
    prepare(str(tmp_path / "table.parquet"), tmp_path / "store", PrepareOptions(excluded=("cltv_90",)))
    assert Store(tmp_path / "store").schema.labels == ("cltv_7", "cltv_30", "cltv_365")
    assert Store(tmp_path / "store").schema.numeric == ("spend", "orders", "age", "is_member")


def test_csv_ids_with_leading_zeros_are_split_as_those_of_parquet(table, tmp_path):
    ids = pa.array([f"{index:05d}" for index in range(1000)])
    plain = replaced(table, customer_id=ids, channel=table["channel"].cast(pa.string()))
    expected = rows_by_id(prepared(plain, tmp_path))
    pa_csv.write_csv(plain, tmp_path / "table.csv", pa_csv.WriteOptions(quoting_style="none"))
    prepare(str(tmp_path / "table.csv"), tmp_path / "csv", PrepareOptions(label_columns=LABELS))
    found = rows_by_id(Store(tmp_path / "csv"))
    assert {name: split for name, (split, _) in found.items()} == {name: split for name, (split, _) in expected.items()}


def test_labels_of_days_stand_in_the_order_of_the_days(table_path, tmp_path):
    """ODMN's chain and the longest horizon are found by it."""
    options = PrepareOptions(label_columns=("cltv_365", "cltv_30"))
    prepare(str(table_path), tmp_path / "store", options)
    assert Store(tmp_path / "store").schema.labels == ("cltv_30", "cltv_365")
