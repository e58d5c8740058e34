"""mean-jax-prepare: what stands in the store is what stood in the table, and only training rows are fitted on."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mean_jax.cli.prepare import main
from mean_jax.data import transform
from mean_jax.data.prepare import PrepareOptions, prepare
from mean_jax.data.store import SPLITS, Store
from mean_jax.data.transform import (
    MISSING_CODE,
    UNKNOWN_CODE,
    CategoryEncoder,
    category_codes,
    category_indices,
    numeric_block,
    numeric_tiles,
)
from mean_jax.errors import UserError
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


@pytest.mark.parametrize("start", [0, 3, 8, 13])
def test_slices_are_read_from_where_they_begin(start):
    """Values, gaps and categories of batches that begin within a byte of the bits that say what is null."""
    rng = np.random.default_rng(start)
    kinds = [pa.float32(), pa.float64(), pa.int8(), pa.uint32(), pa.int64(), pa.bool_()]
    is_null = rng.random((40, 50)) < 0.3
    is_null[0] = False
    arrays = [pa.array(rng.integers(0, 2, 50), mask=mask).cast(kinds[i % len(kinds)]) for i, mask in enumerate(is_null)]
    texts = pa.DictionaryArray.from_arrays(
        pa.array(rng.integers(0, 3, 50).astype(np.int8), mask=is_null[1]), list("abc")
    )
    names = tuple(f"x{index}" for index in range(len(arrays)))
    batch = pa.record_batch([*arrays, texts], names=[*names, "texts"]).slice(start, 21)
    expected = np.where(is_null, np.nan, [pc.fill_null(array.cast(pa.float64()), 0) for array in arrays])
    np.testing.assert_array_equal(numeric_block(batch, names, str), expected[:, start : start + 21].T)
    values, indices = category_indices(batch["texts"], "texts")
    assert [None if i < 0 else values[i].as_py() for i in indices.tolist()] == batch["texts"].to_pylist()


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_what_stands_behind_a_null_does_not_show(kind):
    """Infinities and NaN of other bits there give the same bytes; values keep theirs, -0.0 and tiny ones too."""
    values = np.array([1.5, -0.0, 1e-45, np.nan, np.inf, -np.nan, 7.0, np.finfo(np.float32).max, 2.0])
    values = values.astype(kind.to_pandas_dtype())
    values[3] = -values[3]
    is_known = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1], bool)
    buffers = [pa.py_buffer(np.packbits(is_known, bitorder="little").tobytes()), pa.py_buffer(values.tobytes())]
    batch = pa.record_batch([pa.Array.from_buffers(kind, len(values), buffers)], ["x"])
    expected = np.where(is_known, values, np.nan).astype(np.float32)
    order = np.array([8, 3, 0, 5, 1, 2, 4, 7, 6])
    found = numeric_block(batch, ("x",), str)[:, 0]
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    ((start, tile),) = numeric_tiles(batch, ("x",), str, order)
    assert start == 0
    np.testing.assert_array_equal(tile[0].view(np.uint32), expected[order].view(np.uint32))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_slices_are_encoded_as_the_whole(kind):
    texts = [(None, "x", "y", "new")[row % 7 % 4] for row in range(60)]
    column = pa.array(texts, kind).dictionary_encode()
    encoder = CategoryEncoder(("a",), (("y", "x"),))
    whole = encoder(pa.record_batch([column], ["a"]), str)
    assert whole[:4, 0].tolist() == [MISSING_CODE, 3, 2, UNKNOWN_CODE]
    for start, size in ((0, 60), (3, 17), (8, 16), (59, 1)):
        batch = pa.record_batch([column], ["a"]).slice(start, size)
        np.testing.assert_array_equal(encoder(batch, str), whole[start : start + size])
    other = pa.array(["y", "z", None]).dictionary_encode()  # another dictionary than the one that was kept
    assert encoder(pa.record_batch([other], ["a"]), str)[:, 0].tolist() == [2, UNKNOWN_CODE, MISSING_CODE]


def test_a_text_that_is_not_utf8_is_found_in_a_later_batch_with_the_same_dictionary(monkeypatch):
    looked_up = []
    monkeypatch.setattr(transform, "category_codes", lambda *texts: looked_up.append(texts) or category_codes(*texts))
    texts = garbled(pa.table({"a": ["x", "y", "x", "z"]}), "a", 3, "dictionary")["a"].chunk(0)
    encoder = CategoryEncoder(("a",), (("y", "x"),))
    first, second = (pa.record_batch([texts.slice(start, 2)], ["a"]) for start in (0, 2))
    assert encoder(first, str)[:, 0].tolist() == [3, 2]
    with pytest.raises(UserError, match=r"^1: column a is b'caf\\xe9', not UTF-8"):
        encoder(second, str)
    assert len(looked_up) == 1  # for both batches
